"""Many runs at a time: in joblib's processes on this machine or on a Dask cluster, with lost workers, interrupts and
progress.

A run is a hashable tuple with a readable str(). What it does is the caller's business: `make_run(run, data, settings)`
returns its result, a dict, or raises. A make_run of the script that was started, or of a notebook, is sent to the
workers by value, so they import neither.
"""

import asyncio
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker
from joblib.externals.loky.backend.context import set_start_method
from tqdm import tqdm

from digests import list_imported_files

# joblib's word on an interrupt, which is no news to who interrupts.
warnings.filterwarnings("ignore", r"\d+ tasks (which were still being processed|have been)", UserWarning)
_one_run_at_a_time = threading.Lock()  # also in a Dask worker with several threads: runs may draw global random numbers


def make_runs(make_run, runs, data, settings, nb_jobs=-1, cluster=None, title="runs"):
    """Iterate over (run, its result, or the reason (str) why there is none) as they end, and show how far they are.

    :param data: tuple of arrays that all runs share, read-only
    :param settings: {name: value}, the same for all runs
    :param nb_jobs: runs at a time; 1: in this very process, -1: one per core, or as many as the cluster takes
    :param cluster: what open_cluster gives
    :param title: what the runs are, in messages
    """
    runs = list(runs)
    if nb_jobs == -1:
        nb_jobs = sum(cluster.nthreads().values()) if cluster else joblib.cpu_count()
    task = partial(_try_run, make_run=make_run, settings=settings, main_process=os.getpid())
    in_workers = partial(_in_cluster, cluster, task, data) if cluster else partial(_in_processes, task, data)
    return _show_progress(_in_one_pass_and_another(in_workers, runs, nb_jobs), runs, nb_jobs, title)


def _in_one_pass_and_another(in_workers, runs, nb_jobs):
    """As make_runs; the runs that lose their workers in the first pass are tried again."""
    lost = yield from in_workers(runs, nb_jobs)
    for run in lost:  # alone, so that only one that kills its own worker fails
        if (yield from in_workers([run], 2)):  # of one job, joblib would take this very process for a worker
            yield run, "its worker process died twice: killed, or out of memory"


def _try_run(run, data, make_run, settings, main_process):
    """(run, its result, or the reason (str) why there is none)"""
    if os.getpid() != main_process:
        _prepare_worker()
    data = tuple(array.view() for array in data)
    for array in data:
        array.flags.writeable = False
    with _one_run_at_a_time:
        try:
            return run, make_run(run, data, settings)
        except Exception as problem:
            return run, describe(problem)


# ---- processes on this machine ----

def start_fork_server(modules=()):
    """Start the process whose forks the workers will be, unless it runs, or there is none, as on Windows.

    :param modules: names (str) of what it imports, once for all workers, while this process goes on
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    set_start_method("forkserver", force=True)
    # By default it would import the main script. On a single core it would keep this process waiting.
    multiprocessing.set_forkserver_preload(list(modules) if joblib.cpu_count() > 1 else [])
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server and its forks inherit
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _in_processes(task, data, runs, nb_jobs):
    """Iterate over (run, result or reason) as they end; returns the runs that were lost with a worker."""
    if nb_jobs > 1:  # else joblib takes this very process
        start_fork_server()
    lost = []
    with _in_shared_memory(data) if nb_jobs > 1 else nullcontext(data) as shared_data:
        while runs:
            begun, ended = [], set()

            def tasks():
                for run in runs:
                    begun.append(run)
                    yield joblib.delayed(task)(run, shared_data)

            # Without batches and stock, a worker that is killed takes no other runs with it than those in hand.
            parallel = joblib.Parallel(nb_jobs, batch_size=1, pre_dispatch="n_jobs", max_nbytes=None,
                                       return_as="generator_unordered")
            try:
                with _hidden_main_module():
                    results = parallel(tasks())
                for run, result in results:
                    ended.add(run)
                    yield run, result
            except Exception:  # a task raises none: a worker was killed
                if ended.issuperset(begun):
                    raise
            lost += [run for run in begun if run not in ended]
            runs = runs[len(begun):]
    return lost


@contextmanager
def _in_shared_memory(arrays):
    """The arrays as read-only memory maps, which joblib hands to processes by their names.

    Those that joblib makes itself are traced by a process that forks do not share, which complains in the end.
    """
    memory, nb_bytes = Path("/dev/shm"), sum(array.nbytes for array in arrays)
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 * nb_bytes
    folder = tempfile.mkdtemp(prefix="parallel_runs_", dir=memory if has_room else None)
    resource_tracker.register(folder, "folder")  # removes it if this process is killed
    try:
        yield tuple(joblib.load(joblib.dump(array, f"{folder}/{i}")[0], mmap_mode="r") if array.size else array
                    for i, array in enumerate(arrays))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        resource_tracker.unregister(folder, "folder")


@contextmanager
def _hidden_main_module():
    """Processes that start now do not import the main script, which may be a notebook or have no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # where multiprocessing looks for what to import
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _prepare_worker():
    """Leave Ctrl-C to the main process, and end with it even if that is killed."""
    # Dask makes runs in threads of processes that look after themselves.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        main_process = multiprocessing.parent_process()
        if main_process and main_process.sentinel:  # not where there is no fork server
            threading.Thread(target=_exit_with, args=(main_process,), daemon=True).start()


def _exit_with(process):
    process.join()
    os._exit(1)


# ---- a Dask cluster ----

@contextmanager
def open_cluster(backend, nb_jobs=-1, scheduler_address=None, script=None):
    """The Dask cluster that make_runs takes, None if the backend is another one than "dask".

    :param scheduler_address: None starts a cluster of nb_jobs processes on this machine
    :param script: path of the one with make_run, None if it needs no files; the workers at scheduler_address, which
        need not share a folder with this one, get it and all that it imports of its project
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
        except (OSError, asyncio.TimeoutError) as problem:  # the latter is no OSError before Python 3.11
            raise ValueError(f"no Dask cluster at dask_scheduler_address {scheduler_address!r}: {problem}") from problem
        if scheduler_address:
            own_files = list_imported_files(__file__)
            for file in own_files:
                client.upload_file(str(file))  # to the scheduler as well, which unpickles what it passes on
            for file in list_imported_files(script) if script else ():
                if file not in own_files:
                    client.register_plugin(UploadFile(str(file)), name=file.name)
        yield client


def _in_cluster(cluster, task, data, runs, nb_jobs):
    """As _in_processes. Dask itself gives the runs of a lost worker to others, until it takes a run for the reason.

    joblib's Dask backend would wait for such a run forever.
    """
    import cloudpickle  # comes with Dask
    from dask.distributed import as_completed

    task = cloudpickle.dumps(task)  # so that the scheduler, which has not all modules, need not understand it
    shared_data, = cluster.scatter([data], broadcast=True)
    waiting, in_hand, lost = iter(runs), {}, []

    def submit(nb_runs):
        for run in islice(waiting, nb_runs):
            future = cluster.submit(_call_pickled, task, pickle.dumps(run), shared_data, pure=False)
            in_hand[future] = run
            yield future

    completed = as_completed(submit(nb_jobs))
    for future in completed:
        run = in_hand.pop(future)
        try:
            _, result = future.result()
        except Exception:  # Dask's: a task raises none
            lost.append(run)
        else:
            yield run, result
        completed.update(submit(1))
    return lost


def _call_pickled(pickled_task, pickled_run, data):
    return pickle.loads(pickled_task)(pickle.loads(pickled_run), data)


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
        # Threads of joblib would report that they can submit nothing any more.
        logging.getLogger("concurrent.futures").disabled = True
        raise Interrupted(signal_number)

    previous = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    except Interrupted:
        # joblib may wait for runs that have not ended; nobody needs them any more. Without reuse=True this would wait
        # for threads that may wait for it.
        get_reusable_executor(reuse=True, kill_workers=True).shutdown(wait=True, kill_workers=True)
        raise
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)


def _show_progress(results, runs, nb_jobs, title):
    """Pass (run, result) on; a line at the start, then a bar on a terminal, else at most a line per minute."""
    if not runs:
        return
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
