"""Many runs at a time, of functions that take no time: in processes, on Dask, with workers killed and interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parallel_runs
from parallel_runs import make_runs, open_cluster

PROJECT = Path(__file__).resolve().parents[1]
RUNS = [("power", exponent) for exponent in range(6)]
DATA = np.arange(3), np.ones((2, 0, 2), np.float32)
RESULTS = {("power", exponent): {"powers": [0 ** exponent, 1, 2 ** exponent]} for exponent in range(6)}


def power(run, data, settings):
    numbers, empty = data
    assert empty.shape == (2, 0, 2) and empty.dtype == np.float32 and settings == {"name": run[0]}
    return {"powers": (numbers ** run[1]).tolist()}


@pytest.fixture(params=["processes", "dask"])
def make_runs_in_workers(request):
    """make_runs on two workers."""
    if request.param == "dask":
        pytest.importorskip("dask.distributed", reason="Dask is not installed")
    with open_cluster(request.param, nb_jobs=2) as cluster:
        yield lambda make_run: dict(make_runs(make_run, RUNS, DATA, {"name": "power"}, 2, cluster))


def test_results_are_those_of_one_run_after_the_other(make_runs_in_workers):
    assert dict(make_runs(power, RUNS, DATA, {"name": "power"}, 1)) == RESULTS
    assert make_runs_in_workers(power) == RESULTS


def test_lost_raising_and_deadly_runs_cost_no_other_run(make_runs_in_workers, tmp_path):
    mark = tmp_path / "killed"

    def fail(run, data, settings):
        if run[1] == 0 and not mark.exists():  # dies once
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if run[1] == 2:  # dies always
            os.kill(os.getpid(), signal.SIGKILL)
        if run[1] == 4:
            raise RuntimeError("cosmic ray")
        if run[1] == 5:
            data[0][0] = 1  # which other runs would see
        return power(run, data, settings)

    results = make_runs_in_workers(fail)
    assert mark.exists()
    assert results.pop(("power", 2)).startswith("its worker process died twice")
    assert results.pop(("power", 4)) == "RuntimeError: cosmic ray"
    assert "read-only" in results.pop(("power", 5))
    assert results == {run: RESULTS[run] for run in RUNS if run[1] in (0, 1, 3)}


SCRIPT_WITHOUT_MAIN_GUARD = """
import multiprocessing, os, sys, time
if sys.argv[1] == "spawn":  # as on Windows
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
import parallel_runs

def make_run(run, data, settings):
    if run[0] > 2:
        time.sleep(100)
    return {"pid": os.getpid()}

try:
    with parallel_runs.interrupts_as_exceptions():
        for run, result in parallel_runs.make_runs(make_run, [(i,) for i in range(9)], (), {}, 2):
            print(result["pid"], flush=True)
except parallel_runs.Interrupted as interrupted:
    sys.exit(128 + interrupted.signal_number)
"""


@pytest.mark.parametrize("start_method, signal_number", [
    ("default", signal.SIGINT), ("default", signal.SIGTERM), ("default", signal.SIGKILL), ("spawn", signal.SIGINT)])
def test_a_script_without_main_guard_that_is_interrupted_or_killed_leaves_no_process(
        start_method, signal_number, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT_WITHOUT_MAIN_GUARD)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", start_method], env={**os.environ, "PYTHONPATH": str(PROJECT)},
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output = [process.stdout.readline() for _ in range(4)]
    assert output[0] == "runs: 9 runs, 2 at a time\n" and all(int(pid) != process.pid for pid in output[1:])
    # As a terminal does it, Ctrl-C reaches the workers as well.
    os.killpg(process.pid, signal_number) if signal_number == signal.SIGINT else process.send_signal(signal_number)
    assert process.wait() == (-9 if signal_number == signal.SIGKILL else 128 + signal_number)
    output, errors = process.communicate()  # returns when all who could write there have ended
    assert output == ""
    if start_method == "default":  # without a fork server, a worker that is just starting tells of its end
        assert "Traceback" not in errors


SCRIPT_WITH_A_SLOW_THREAD = """
import os, signal, sys, threading, time
from joblib.externals.loky.process_executor import ProcessPoolExecutor
import parallel_runs

submit = ProcessPoolExecutor.submit

def submit_slowly(*arguments):
    if threading.current_thread() is not threading.main_thread():
        time.sleep(0.5)
    return submit(*arguments)

ProcessPoolExecutor.submit = submit_slowly
try:
    with parallel_runs.interrupts_as_exceptions():
        for run, result in parallel_runs.make_runs(lambda *arguments: {}, [(i,) for i in range(9)], (), {}, 2):
            os.kill(os.getpid(), signal.SIGINT)
except parallel_runs.Interrupted:
    sys.exit(130)
"""


def test_an_interrupt_while_joblib_starts_another_run_waits_for_nothing(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT_WITH_A_SLOW_THREAD)
    process = subprocess.run([sys.executable, tmp_path / "script.py"], env={**os.environ, "PYTHONPATH": str(PROJECT)},
                             text=True, capture_output=True, timeout=60)
    assert process.returncode == 130 and "Traceback" not in process.stderr


def test_redirected_progress_is_a_line_at_the_start_and_at_most_one_per_minute(monkeypatch, capsys):
    now = [0.]
    monkeypatch.setattr(parallel_runs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(parallel_runs.joblib, "cpu_count", lambda: 1)

    def sleep(run, data, settings):
        now[0] += 40 if run == RUNS[0] else 25  # the start of the first worker takes its time
        return {}

    results = make_runs(sleep, RUNS, (), {}, title="digits")
    assert capsys.readouterr().out == ""
    assert list(results) == [(run, {}) for run in RUNS]
    assert capsys.readouterr().out.splitlines() == [
        "digits: 6 runs, 1 at a time", "digits: 2 of 6 runs done, 01:40 left", "digits: 5 of 6 runs done, 00:25 left",
        "digits: 6 of 6 runs done, 00:00 left"]


def test_a_dask_cluster_that_is_not_there_is_named():
    dask = pytest.importorskip("dask", reason="Dask is not installed")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        with pytest.raises(ValueError, match="tcp://127.0.0.1:9"), open_cluster("dask", 2, "tcp://127.0.0.1:9"):
            pass
