"""What is printed, and cannot be, ends nothing: neither a script nor what it has in hand."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
import plot_results
import speed_benchmark
from console import prints_without_failing

PROJECT = Path(__file__).resolve().parents[1]


class BrokenStream(io.StringIO):
    def write(self, text):
        raise OSError(errno.EPIPE, "broken pipe")

    def flush(self):
        raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_the_console_cannot_encode_is_replaced(name, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(content, encoding="ascii"))
    prints_without_failing(lambda: print("0.9 ± 0.1", file=getattr(sys, name)))()
    assert content.getvalue().split() == [b"0.9", b"?", b"0.1"]


@pytest.mark.parametrize("stream", [BrokenStream(), None], ids=["broken", "none"])
def test_a_console_that_is_gone_ends_nothing_and_is_there_again_afterwards(stream, monkeypatch):
    @prints_without_failing
    def main(argument):
        print("a", flush=True)
        print("b", file=sys.stderr)
        return argument, sys.stderr.isatty()

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    assert main(3) == (3, False)
    assert sys.stdout is sys.stderr is stream


@pytest.mark.skipif(os.name == "nt", reason="pipes are closed in another way on Windows")
def test_a_closed_pipe_leaves_no_trace_when_python_ends(monkeypatch):
    code = "from console import prints_without_failing\nprints_without_failing(lambda: print('a'))()"
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    process = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, stdout=writing_end, stderr=subprocess.PIPE)
    os.close(writing_end)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.parametrize("script", [benchmark, plot_results, speed_benchmark])
def test_no_message_can_end_a_script(script, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, BrokenStream())
    monkeypatch.setattr(script, "seed", None, raising=False)
    assert script.main(*[["no_such_file.p"]] * (script is plot_results)) == 2
