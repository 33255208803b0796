"""Many runs at a time: in processes on this machine or on a Dask cluster, with lost workers, interrupts and progress.

A run is a hashable tuple with a readable str(). What it does is the caller's business: `make_run(run, data, settings)`
returns its result, a dict, or raises. A make_run of the script that was started, or of a notebook, is sent to the
workers by value, so they import neither.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import wait
from types import ModuleType

import joblib
import numpy as np
from tqdm import tqdm

_has_fork_server = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
_context = multiprocessing.get_context("forkserver" if _has_fork_server else "spawn")
_one_run_at_a_time = threading.Lock()  # also in a Dask worker with several threads: runs may draw global random numbers


class WorkerDied(RuntimeError):
    """A worker process ended before its run did, killed for want of memory for example."""


def make_runs(make_run, runs, data, settings, nb_jobs=-1, cluster=None, title="runs"):
    """Iterate over (run, its result, or the reason (str) why there is none) as they end, and show how far they are.

    :param data: tuple of numeric arrays that all runs share, read-only
    :param settings: {name: value}, the same for all runs
    :param nb_jobs: runs at a time; 1: in this very process, -1: one per core, or as many as the cluster takes
    :param cluster: what open_cluster gives
    :param title: what the runs are, in messages
    """
    if nb_jobs == -1:
        nb_jobs = sum(cluster.nthreads().values()) if cluster else joblib.cpu_count()
    if nb_jobs == 1 and not cluster:
        results = ((run, _try_run(make_run, run, data, settings)) for run in runs)
    else:
        task = pickle.dumps((joblib.wrap_non_picklable_objects(make_run, keep_wrapper=False), settings))
        results = _in_workers(partial(_in_cluster, cluster) if cluster else _in_processes, task, runs, data, nb_jobs)
    return _show_progress(results, runs, nb_jobs, title)


def _in_workers(pass_over, task, runs, data, nb_jobs):
    """As make_runs: one pass over all runs, another over those that have lost their workers."""
    lost = []
    for run, result in pass_over(task, runs, data, nb_jobs):
        if isinstance(result, WorkerDied):
            lost.append(run)
        else:
            yield run, result
    yield from _retry_one_by_one(pass_over, task, lost, data)


def _retry_one_by_one(pass_over, task, lost, data):
    """As make_runs. Alone, only a run that kills its own worker fails."""
    for run in lost:
        (_, result), = pass_over(task, [run], data, 1)
        yield run, f"its worker process died twice: {result}" if isinstance(result, WorkerDied) else result


def _try_run(make_run, run, data, settings):
    """The result of a run, or the reason (str) why there is none."""
    data = tuple(array.view() for array in data)
    for array in data:
        array.flags.writeable = False
    with _one_run_at_a_time:
        try:
            return make_run(run, data, settings)
        except Exception as problem:
            return describe(problem)


def _make_run_in_worker(pickled_run, data, task):
    make_run, settings = pickle.loads(task)
    return make_run(pickle.loads(pickled_run), data, settings)


# ---- processes on this machine ----

def start_fork_server(modules=()):
    """Start the process whose forks the workers will be, unless it runs, or there is none, as on Windows.

    :param modules: names (str) of what it imports, once for all workers, while this process goes on
    """
    if not _has_fork_server:
        return
    from multiprocessing import forkserver

    # By default it would import the main script. On a single core it would keep this process waiting.
    multiprocessing.set_forkserver_preload(list(modules) if joblib.cpu_count() > 1 else [])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server and its forks inherit
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_processes(task, runs, data, nb_jobs):
    """(run, its result, reason or WorkerDied) as they end. A worker that dies takes no run with it but its own."""
    start_fork_server()
    shared_data = [_share(array) for array in data]
    waiting, busy, idle, processes = iter(runs), {}, [], []
    try:
        while True:
            for run in islice(waiting, nb_jobs - len(busy)):
                if not idle:
                    connection, other_end = multiprocessing.Pipe()
                    processes.append(_WorkerProcess(target=_work, args=(other_end, task, shared_data), daemon=True))
                    processes[-1].start()
                    other_end.close()  # so that the connection ends with the process
                    idle.append(connection)
                busy[idle[-1]] = run
                with suppress(OSError):  # the worker has died meanwhile: recv finds out
                    idle.pop().send(pickle.dumps(run))
            if not busy:
                return
            for connection in wait(list(busy)):
                try:
                    result = connection.recv()
                    idle.append(connection)
                except (EOFError, OSError):
                    result = WorkerDied("killed, or out of memory")
                yield busy.pop(connection), result
    finally:
        for process in processes:
            process.kill()
            process.join()


class _WorkerProcess(_context.Process):
    """A process that does not import the main script, which may be a notebook or have no main guard."""

    def start(self):
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # where multiprocessing looks for what to import
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


def _share(array):
    """An array in memory that processes share, as arguments of _shared_array."""
    memory = _context.RawArray("b", max(1, array.nbytes))
    np.copyto(_shared_array(memory, array.dtype, array.shape), array)
    return memory, array.dtype, array.shape


def _shared_array(memory, dtype, shape):
    return np.ndarray(shape, dtype, memory)


def _work(connection, task, shared_data):
    """Make the runs that arrive until the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_when_orphaned, daemon=True).start()
    data = tuple(_shared_array(*arguments) for arguments in shared_data)
    with suppress(EOFError, OSError):
        while True:
            connection.send(_try_run(_make_run_in_worker, connection.recv(), data, task))


def _exit_when_orphaned():
    multiprocessing.parent_process().join()
    os._exit(1)


# ---- a Dask cluster ----

@contextmanager
def open_cluster(backend, nb_jobs=-1, scheduler_address=None, files=()):
    """The Dask cluster that make_runs takes, None if the backend is another one than "dask".

    :param scheduler_address: None starts a cluster of nb_jobs processes on this machine
    :param files: paths of the modules that make_run imports, each after those that it imports itself; the workers at
        scheduler_address need not share a folder with this one
    :raises ImportError: Dask is not installed
    :raises ValueError: there is no scheduler at its address, or it has no workers
    """
    if backend != "dask":
        yield None
        return
    try:
        from dask.distributed import Client, LocalCluster, UploadFile
    except ImportError as problem:
        raise ImportError('joblib_backend = "dask" needs Dask: pip install "dask[distributed]"') from problem
    nb_workers = joblib.cpu_count() if nb_jobs == -1 else nb_jobs
    with ExitStack() as stack:
        try:
            cluster = scheduler_address or stack.enter_context(
                LocalCluster(nb_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None))
            client = stack.enter_context(Client(cluster))
            client.wait_for_workers(1, timeout=60)
        except OSError as problem:
            raise ValueError(f"no Dask cluster at dask_scheduler_address {scheduler_address!r}: {problem}") from problem
        if scheduler_address:
            client.upload_file(__file__)  # to the scheduler as well, which unpickles what it passes on
            for file in files:
                client.register_plugin(UploadFile(str(file)), name=file.name)
        yield client


def _in_cluster(cluster, task, runs, data, nb_jobs):
    """As _in_processes. Dask itself gives the runs of a lost worker to others, until it takes a run for the reason."""
    from dask.distributed import as_completed

    shared_data, = cluster.scatter([data], broadcast=True)
    waiting, in_hand = iter(runs), {}

    def submit(nb_runs):
        for run in islice(waiting, nb_runs):
            future = cluster.submit(_try_run, _make_run_in_worker, pickle.dumps(run), shared_data, task, pure=False)
            in_hand[future] = run
            yield future

    completed = as_completed(submit(nb_jobs))
    for future in completed:
        try:
            result = future.result()
        except Exception as problem:  # Dask's, as _try_run raises none
            result = WorkerDied(describe(problem))
        completed.update(submit(1))
        yield in_hand.pop(future), result


# ---- interrupts and messages ----

class Interrupted(BaseException):
    """Ctrl-C, or a request to terminate; no Exception, as nothing but the main function may handle it."""

    def __init__(self, signal_number):
        self.signal_number = signal_number


@contextmanager
def interrupts_as_exceptions():
    """Raise Interrupted in the main thread for the first SIGINT or SIGTERM; what follows then is not disturbed."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def interrupt(signal_number, frame):
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted(signal_number)

    previous = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)


def _show_progress(results, runs, nb_jobs, title):
    """Pass (run, result) on; a line at the start, then a bar on a terminal, else at most a line per minute."""
    print(f"{title}: {len(runs)} runs, {min(nb_jobs, len(runs))} at a time", flush=True)
    unfinished, last_line, time_left = dict.fromkeys(runs), time.monotonic(), ""
    with tqdm(total=len(runs), disable=not sys.stderr.isatty(), dynamic_ncols=True,
              bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]") as bar:
        bar.set_description(str(next(iter(unfinished), "")))
        for nb_done, (run, result) in enumerate(results, start=1):
            del unfinished[run]
            if nb_done == nb_jobs:
                start = time.monotonic()  # the first runs have waited for their workers
            elif nb_done > nb_jobs:
                seconds_left = (time.monotonic() - start) / (nb_done - nb_jobs) * len(unfinished)
                time_left = f"{tqdm.format_interval(seconds_left)} left"
            bar.set_postfix_str(time_left, refresh=False)
            bar.set_description(str(next(iter(unfinished), "")), refresh=False)  # the oldest one in hand
            bar.update()
            if not isinstance(result, dict):
                bar.write(f"{run} failed: {result}", file=sys.stderr)
            if bar.disable and (time.monotonic() - last_line >= 60 or not unfinished):
                last_line = time.monotonic()
                print(f"{title}: {nb_done} of {len(runs)} runs done{time_left and ', ' + time_left}", flush=True)
            yield run, result


def describe(problem):
    """Type and message of an exception."""
    return f"{type(problem).__name__}: {problem}"
