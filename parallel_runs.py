"""Many runs at a time, in processes on this machine or on a Dask cluster, by one loop of concurrent.futures.

A run is a hashable tuple with a readable str(). What it does is the caller's business: `make_run(run, data, settings)`
returns its result, a dict, or raises. Workers find it by its name, so it is a function of a module, not of the script.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque, namedtuple
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from tqdm import tqdm

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_Worker = namedtuple("_Worker", "submit data")  # submit(task, run, data) -> future; data stands for the arrays there


def make_runs(make_run, runs, data, settings, nb_jobs=-1, cluster=None, title="runs"):
    """Iterate over (run, its result, or the reason (str) why there is none) as they end, and show how far they are.

    A run that loses its worker is tried again in the end, alone. Close the iterator, and the workers end.

    :param runs: list
    :param data, settings: tuple of arrays, read-only, and {name: value}, the same for all runs
    :param nb_jobs: runs at a time; 1: in this very process, -1: one per core, or as many as the cluster takes
    :param cluster, title: what open_cluster gives; what the runs are, on the progress bar
    """
    if nb_jobs == -1:
        nb_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        nb_jobs = sum(cluster.nthreads().values()) if cluster else nb_cores
    task = partial(_try_run, make_run=make_run, settings=settings)
    ended, results, in_workers = SimpleQueue(), SimpleQueue(), nb_jobs > 1 or cluster
    with ExitStack() as stack:
        if in_workers:
            open_worker = partial(_open_place_on_cluster, cluster, data) if cluster else _prepare_processes(stack, data)
            idle = [open_worker()] * nb_jobs if cluster else [open_worker() for _ in range(nb_jobs)]
            # In a thread: an interrupt reaches the main one only, where it would leave locks of the futures closed.
            thread = threading.Thread(target=_hand_out, args=(task, runs, idle, open_worker, ended, results))
            stack.callback(thread.join)
            stack.callback(ended.put, None)
            thread.start()
        bar = stack.enter_context(tqdm(total=len(runs), desc=title, unit="run", dynamic_ncols=True, miniters=1,
                                       mininterval=0.1 if sys.stderr.isatty() else 60))
        for run in runs:
            run, result = results.get() if in_workers else (run, task(run, data))
            bar.update()
            if not isinstance(result, dict):
                bar.write(f"{run} failed: {result}", file=sys.stderr)
            yield run, result


def _hand_out(task, runs, idle, open_worker, ended, results):
    """Give runs to idle workers and put (run, result or reason) into results, until None is among what has ended."""
    waiting, in_hand, lost = deque(runs), {}, set()
    try:
        while waiting or in_hand:
            while waiting and idle and not (in_hand and waiting[0] in lost):
                worker = idle.pop()
                try:
                    with _hidden_main_module():
                        future = worker.submit(task, waiting[0], worker.data)
                except BrokenExecutor:  # it was killed while it had nothing to do
                    idle.append(open_worker())
                    continue
                in_hand[future] = waiting.popleft(), worker
                future.add_done_callback(ended.put)
            if (future := ended.get()) is None:
                return
            run, worker = in_hand.pop(future)
            try:
                results.put((run, future.result()))
            except BaseException as problem:  # a task raises none: the worker has died
                if run in lost:
                    results.put((run, f"its worker died twice, killed or out of memory: {describe(problem)}"))
                else:
                    lost.add(run)
                    waiting.append(run)
                worker = open_worker()
            idle.append(worker)
    except BaseException as problem:  # as when no worker is left on the cluster
        for run in [*waiting, *(run for run, _ in in_hand.values())]:
            results.put((run, describe(problem)))


def _try_run(run, data, make_run, settings):
    """The result of a run, or the reason (str) why there is none."""
    arrays = tuple(np.load(array, mmap_mode="r") if isinstance(array, Path) else array.view() for array in data)
    for array in arrays:
        array.flags.writeable = False
    try:
        return make_run(run, arrays, settings)
    except Exception as problem:
        return describe(problem)


def describe(problem):
    return f"{type(problem).__name__}: {problem}"


# ---- processes on this machine ----

def start_fork_server(modules=()):
    """Start the process whose forks the workers will be, unless it runs; it imports these modules, once for all."""
    if START_METHOD == "forkserver":
        from multiprocessing import forkserver
        multiprocessing.set_forkserver_preload(list(modules))  # by default it would import the main script
        set_handler = signal.signal if threading.current_thread() is threading.main_thread() else lambda *_: None
        handler = set_handler(signal.SIGINT, signal.SIG_IGN)  # is inherited: Ctrl-C is for the main process alone
        folder = tempfile.gettempdir()
        tempfile.tempdir = folder if len(os.fsencode(folder)) <= 70 else "/tmp"  # the name of its socket has 103 bytes
        forkserver.ensure_running()
        tempfile.tempdir = folder
        set_handler(signal.SIGINT, handler)


def _prepare_processes(stack, data):
    """Function that opens a worker; its process, and the files with the data, are there until the stack is closed."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parallel_runs_", ignore_cleanup_errors=True)))
    files = [folder / f"{i}.npy" for i in range(len(data))]
    for file, array in zip(files, data):
        np.save(file, array)
    others, executors, context = set(multiprocessing.active_children()), [], multiprocessing.get_context(START_METHOD)

    def stop():  # at once: what the workers are at, nobody needs any more
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        for executor in executors:
            executor.shutdown()

    def open_worker():  # a pool of one process: if that is killed, no other run is lost with its own
        try:
            executors.append(ProcessPoolExecutor(1, context, _end_with_main_process, (folder,)))
        except OSError as problem:
            raise OSError(f"locks of processes need a writable /dev/shm, nb_jobs = 1 needs none ({problem})") from problem
        return _Worker(executors[-1].submit, files)
    stack.callback(stop)
    start_fork_server()
    return open_worker


@contextmanager
def _hidden_main_module():
    """A process that starts now does not import the main script, which may be a notebook or have no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = type(main)("__main__")  # where multiprocessing looks for what to import
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with_main_process(folder):
    """In a worker: leave Ctrl-C to the main process, and end with it, and the folder too, even if that is killed."""
    def wait():
        multiprocessing.parent_process().join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


# ---- a Dask cluster ----

@contextmanager
def open_cluster(scheduler_address):
    """The Dask cluster that make_runs takes; None if the address is None. ImportError without Dask, OSError without a
    scheduler there or without workers, ValueError for workers with several threads."""
    if scheduler_address is None:
        yield None
        return
    try:
        from dask.distributed import Client
    except ImportError as problem:
        raise ImportError('dask_scheduler_address needs Dask: pip install "dask[distributed]"') from problem
    with Client(scheduler_address) as client:
        client.wait_for_workers(1, timeout=60)
        if max(client.nthreads().values()) > 1:
            raise ValueError("start Dask's workers with --nthreads 1: runs draw from the one generator of a process")
        yield client


def _open_place_on_cluster(client, data):
    """All are alike, with one copy of the data. Dask gives the run of a lost worker to others, three times at most."""
    import cloudpickle  # comes with Dask

    # The modules of this folder go with the task, for workers elsewhere do not have them.
    for module in [each for each in sys.modules.values() if getattr(each, "__file__", None)]:
        if Path(module.__file__).parent == Path(__file__).parent:
            cloudpickle.register_pickle_by_value(module)
    client.wait_for_workers(1, timeout=60)

    def call(task_and_run, data):  # a local function goes by value, also to the scheduler, which has no modules of ours
        import pickle
        task, run = pickle.loads(task_and_run)
        return task(run, data)

    def submit(task, run, data):
        return client.submit(call, cloudpickle.dumps((task, run)), data, pure=False)
    return _Worker(submit, *client.scatter([data], broadcast=True, hash=False))
