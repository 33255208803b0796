"""Many runs at a time, of functions that take no time: in processes, on Dask, with workers killed and interrupted."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from parallel_runs import make_runs, open_cluster

PROJECT = Path(__file__).resolve().parents[1]
RUNS = [("power", exponent) for exponent in range(6)]
DATA = np.arange(3), np.ones((2, 2), np.float32)
RESULTS = {("power", exponent): {"powers": [0 ** exponent, 1, 2 ** exponent]} for exponent in range(6)}


def power(run, data, settings):
    numbers, ones = data
    assert ones.shape == (2, 2) and ones.dtype == np.float32 and settings["name"] == run[0]
    return {"powers": (numbers ** run[1]).tolist()}


def fail(run, data, settings):
    mark = Path(settings["mark"])
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


@pytest.fixture(params=["processes", "dask"])
def make_runs_in_workers(request):
    """make_runs on two workers."""
    if request.param == "processes":
        yield lambda make_run, settings: dict(make_runs(make_run, RUNS, DATA, settings, 2))
        return
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    with distributed.LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        with open_cluster(cluster.scheduler_address) as client:
            yield lambda make_run, settings: dict(make_runs(make_run, RUNS, DATA, settings, cluster=client))


def test_results_are_those_of_one_run_after_the_other(make_runs_in_workers):
    assert dict(make_runs(power, RUNS, DATA, {"name": "power"}, 1)) == RESULTS
    assert make_runs_in_workers(power, {"name": "power"}) == RESULTS


def test_lost_raising_and_deadly_runs_cost_no_other_run(make_runs_in_workers, tmp_path):
    results = make_runs_in_workers(fail, {"name": "power", "mark": str(tmp_path / "killed")})
    assert (tmp_path / "killed").exists()
    assert results.pop(("power", 2)).startswith("its worker died twice")
    assert results.pop(("power", 4)) == "RuntimeError: cosmic ray"
    assert "read-only" in results.pop(("power", 5))
    assert results == {run: RESULTS[run] for run in RUNS if run[1] in (0, 1, 3)}


def test_workers_killed_while_idle_are_replaced(monkeypatch):
    to_break, submit = [True, True], ProcessPoolExecutor.submit

    def submit_unless_broken(*arguments):
        if to_break:
            raise BrokenProcessPool(f"a worker was killed while it had nothing to do: {to_break.pop()}")
        return submit(*arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_unless_broken)
    assert dict(make_runs(power, RUNS, DATA, {"name": "power"}, 2)) == RESULTS


def test_without_locks_for_processes_the_remedy_is_named(monkeypatch):
    def raise_error(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("parallel_runs.ProcessPoolExecutor", raise_error)
    with pytest.raises(OSError, match=r"/dev/shm, nb_jobs = 1 .*Read-only"):
        next(make_runs(power, RUNS, DATA, {"name": "power"}, 2))


MODULE = """
import os, time

def make_run(run, data, settings):
    if run[0] > 2:
        time.sleep(100)
    return {"pid": os.getpid()}
"""
SCRIPT_WITHOUT_MAIN_GUARD = """
import signal, sys
from contextlib import closing
import numpy as np
import module, parallel_runs

parallel_runs.START_METHOD = sys.argv[1]
signal.signal(signal.SIGTERM, signal.default_int_handler)
runs = [(i,) for i in range(9)]
try:
    with closing(parallel_runs.make_runs(module.make_run, runs, (np.arange(3),), {}, 2)) as ended:
        for run, result in ended:
            print(result["pid"], flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_runs_start_in_a_thread_and_with_a_long_path_for_temporary_files(tmp_path):
    folder = tmp_path / (100 * "t")
    folder.mkdir()
    (tmp_path / "module.py").write_text(MODULE)
    script = """
from concurrent import futures
import numpy, module, parallel_runs
def run():
    runs = parallel_runs.make_runs(module.make_run, [(0,), (1,)], (numpy.arange(3),), {}, 2)
    return len({result["pid"] for _, result in runs})
print(futures.ThreadPoolExecutor().submit(run).result())"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(folder)})
    assert done.stdout == "2\n", done.stderr


@pytest.fixture
def short_folder():
    """Unlike tmp_path: in it is the fork server's socket, which a kill leaves behind."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize("start_method, signal_number", [
    ("forkserver", signal.SIGINT), ("forkserver", signal.SIGTERM), ("forkserver", signal.SIGKILL),
    ("spawn", signal.SIGINT)])  # as on Windows
def test_a_script_without_main_guard_that_is_interrupted_or_killed_leaves_no_process_and_no_file(
        start_method, signal_number, tmp_path, short_folder):
    (tmp_path / "script.py").write_text(SCRIPT_WITHOUT_MAIN_GUARD)
    (tmp_path / "module.py").write_text(MODULE)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", start_method], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(short_folder)})
    assert all(int(process.stdout.readline()) != process.pid for _ in range(3))
    assert list(short_folder.glob("parallel_runs_*/0.npy"))
    # As a terminal does it, Ctrl-C reaches the workers as well.
    os.killpg(process.pid, signal_number) if signal_number == signal.SIGINT else process.send_signal(signal_number)
    assert process.wait() == (-9 if signal_number == signal.SIGKILL else 130)
    output, errors = process.communicate()  # returns when all who could write there have ended
    assert output == "" and "Traceback" not in errors
    deadline = time.monotonic() + 30
    while list(short_folder.glob("parallel_runs_*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dask_cluster_whose_workers_have_threads_is_refused():
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    with distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="--nthreads 1"), open_cluster(cluster.scheduler_address):
            pass
