"""The benchmark of the paper: the same small nets with a dense, an SSS and a rank-1 hidden matrix, compared by test
accuracy and number of parameters.

    python benchmark.py

trains every combination of the hyperparameters below, prints a table and leaves `benchmark_result.p` and
`benchmark_result.png` beside this script. Started again it resumes, and extends what is there by what was added.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from numbers import Real
from pathlib import Path

import joblib
import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib.externals.loky import get_reusable_executor
from tqdm import tqdm

from benchmark_results import ResultsFile, Run, get_environment
from checks import check_choice, check_device, check_positive_integers
from datasets import (get_dataset_name_for_loading_function, load_cifar10_data, load_digits_data,
                      load_hand_posture_data, load_mnist_data, load_pendigits_data)
from model_training import (check_training_hyperparameters, get_loss_and_accuracy, get_nb_model_parameters,
                            train_model)
from plot_results import format_summary_table, plot_accuracy
from rank1models import Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import StandardTHLConvNet, StandardTHLFFNN

# ======================================================================================================================
# Hyperparameters

# what is run
dataset_loading_functions = [load_digits_data]
# the paper's: [load_pendigits_data, load_hand_posture_data, load_mnist_data, load_cifar10_data]
model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]
nb_iterations = 5  # repetitions of each training, with other initial weights, validation splits and shuffles
nb_neurons_list = [50]  # neurons in each of the two hidden layers
training_set_shares = [0.1]  # shares of the training data, in (0, 1]; smaller ones are contained in larger ones

# training
learning_rate = 1e-3
batch_size = 100000  # samples per step; as large as this, each epoch is one step
use_Adam = True  # False: plain stochastic gradient descent
patience = 20  # epochs without better validation accuracy after which training stops
min_accuracy_improvement = 5e-4  # what counts as better, as a share of the validation samples
min_number_training_epochs = 200
max_number_training_epochs = None  # None as in the paper: no limit
initialisation = "realisation"  # of the SSS layers, as in the paper; "direct" is fast for thousands of neurons
seed = 0  # everything random derives from it and the run's identity

# where and how; none of these changes results, but for rounding on another device or number of threads
datasets_folder = "datasets/"  # relative to this script, as all paths; missing datasets are downloaded into it
result_file = "benchmark_result.p"
device = "cpu"  # or "cuda"
nb_jobs = -1  # trainings at a time; -1: one per core
nb_threads_per_run = 1
joblib_backend = "loky"  # processes on this machine; "dask": a Dask cluster (pip install "dask[distributed]")
dask_scheduler_address = None  # e.g. "tcp://10.0.0.1:8786"; None: a cluster of processes on this machine
# ======================================================================================================================

TRAINING_HYPERPARAMETERS = ("learning_rate", "batch_size", "use_Adam", "min_accuracy_improvement", "patience",
                            "min_number_training_epochs", "max_number_training_epochs")
RESULT_HYPERPARAMETERS = (
    "model_names", "nb_iterations", "nb_neurons_list", "training_set_shares", *TRAINING_HYPERPARAMETERS,
    "initialisation", "seed", "datasets_folder", "device", "nb_jobs", "nb_threads_per_run", "joblib_backend",
    "dask_scheduler_address")

# results key -> (net for vectors, net for images, extra arguments)
MODEL_FAMILIES = {
    "standard_nn": (StandardTHLFFNN, StandardTHLConvNet, {}),
    **{f"ss_{d}_dim": (TwoHiddenLayeredSSNet, SSSTHLConvNet, {"statespace_dim": d}) for d in range(1, 6)},
    "rank_1": (Rank1THLFFNN, Rank1THLConvNet, {}),
}

FOLDER = Path(__file__).resolve().parent
MODEL_FILES = [FOLDER / f"{name}.py"
               for name in ("checks", "standardmodels", "semiseparablemodels", "rank1models", "model_training")]


def main():
    """Run, resume or extend the sweep; the exit status: 0, 1 if something could not be run, 2 if nothing could."""
    path = FOLDER / result_file
    try:
        hyperparameters = check_hyperparameters()
        with FileLock(f"{path}.lock", timeout=0), interrupts_as_exceptions():
            environment = get_environment(device, [FOLDER / "benchmark.py", FOLDER / "datasets.py", *MODEL_FILES])
            results_file = ResultsFile(path, hyperparameters, environment)
            print(f"{path.name}: {results_file.message}", flush=True)
            try:
                with worker_cluster():
                    run_sweep(results_file, hyperparameters)
            finally:
                results_file.close()
    except Timeout:
        return report_error(f"another benchmark.py is writing {path}; wait for it or set another result_file", 2)
    except OSError as problem:
        return report_error(f"{describe(problem)}\nIf {path.parent} cannot be written to, set another result_file", 2)
    except (ValueError, ImportError) as problem:
        return report_error(problem, 2)
    except Interrupted as interrupted:
        return report_error(f"interrupted; {path.name} has all finished runs, python benchmark.py continues the sweep",
                            128 + interrupted.signal_number)
    results = results_file.results
    print(format_summary_table(results))
    try:
        plot_accuracy(results).savefig(path.with_suffix(".png"), dpi=100)
    except Exception as problem:  # whatever it is, the results are safe and matter more
        report_error(f"no figure: {describe(problem)}", 0)
    return 1 if results["failures"] else 0


def run_sweep(results_file, hyperparameters):
    """Train all that results_file misses, one dataset after the other, and record what comes of it."""
    for load_data in dataset_loading_functions:
        dataset = get_dataset_name_for_loading_function(load_data)
        runs = [run for run in results_file.missing_runs if run.dataset == dataset]
        if not runs:
            continue
        try:
            data = load_shuffled_data(load_data)
        except Exception as problem:  # the other datasets go on
            results_file.add_failure(describe(problem), dataset)
            report_error(f"{dataset} is left out: {describe(problem)}", 1)
            continue
        for share in hyperparameters["training_set_shares"]:
            nb_samples = int(share * len(data[0]))
            if nb_samples < 2:
                reason = f"training share {share} of {dataset} has {nb_samples} of {len(data[0])} samples, 2 are needed"
                results_file.add_failure(reason, dataset, share)
                report_error(reason, 1)
                runs = [run for run in runs if run.share != share]
        for run, result in progress(execute(runs, data, hyperparameters), runs):
            if isinstance(result, dict):
                results_file.add(run, result)
            else:
                results_file.add_failure(result, *run)


def load_shuffled_data(load_data):
    """X_train, y_train, X_test, y_test of a dataset; the training data shuffled once, so that shares are nested."""
    (X_train, y_train), (X_test, y_test) = load_data(FOLDER / datasets_folder)
    shuffle = np.random.default_rng(derive_seed(seed, get_dataset_name_for_loading_function(load_data)))
    order = shuffle.permutation(len(X_train))
    return X_train[order], y_train[order], X_test, y_test


def train_run(run, data, hyperparameters):
    """One training and its test: the entry of the results dict, see README.md.

    :param run: its identity; with the seed alone it determines everything random
    :param data: see load_shuffled_data
    """
    torch.set_num_threads(hyperparameters["nb_threads_per_run"])
    X_train, y_train, X_test, y_test = data
    nb_samples = int(run.share * len(X_train))
    net_for_vectors, net_for_images, arguments = MODEL_FAMILIES[run.model_name]
    net, input_size = (net_for_vectors, X_train.shape[1]) if X_train.ndim == 2 else (net_for_images, X_train.shape[1:])
    if arguments:  # SSS layers have a choice here
        arguments = {**arguments, "initialisation": hyperparameters["initialisation"]}
    nb_classes = int(max(y_train.max(), y_test.max())) + 1
    initial_weights_seed = derive_seed(hyperparameters["seed"], *run)
    # The same for all families and widths, so that they are compared on the same splits.
    split_seed = derive_seed(hyperparameters["seed"], run.dataset, run.share, run.iteration)
    torch.manual_seed(initial_weights_seed)
    model = net(input_size, nb_classes, run.nb_neurons, **arguments).to(hyperparameters["device"])

    start = time.perf_counter()
    histories = train_model(
        model, X_train[:nb_samples], y_train[:nb_samples], seed=split_seed,
        **{name: hyperparameters[name] for name in TRAINING_HYPERPARAMETERS})
    training_time = time.perf_counter() - start
    test_loss, test_accuracy = get_loss_and_accuracy(model, X_test, y_test)
    return {**dict(zip(("training_loss_history", "accuracy_history", "val_accuracy_history"), histories)),
            "test_loss": test_loss, "test_accuracy": test_accuracy,
            "nb_model_parameters": get_nb_model_parameters(model),
            "training_time": training_time, "seed": initial_weights_seed}


def derive_seed(*identity):
    """A seed (int, 32 bits) that depends on the identity of what it is for and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:4], "little")


def check_hyperparameters():
    """{name: plain value} of all hyperparameters; ValueError for the first that cannot work."""
    def plain(value):  # NumPy's numbers and pathlib's paths work as hyperparameters, but are no plain data
        return value.item() if isinstance(value, np.generic) else str(value) if isinstance(value, Path) else value

    for name in ("dataset_loading_functions", "model_names", "nb_neurons_list", "training_set_shares"):
        values = globals()[name]
        if not isinstance(values, (list, tuple)) or not values or any(values.count(value) > 1 for value in values):
            raise ValueError(f"{name} must be a list of one entry or more without repetitions, got {values!r}")
    hyperparameters = {"dataset_names": [get_dataset_name_for_loading_function(f) for f in dataset_loading_functions],
                       **{name: plain(globals()[name]) for name in RESULT_HYPERPARAMETERS}}
    for model_name in model_names:
        if model_name not in MODEL_FAMILIES:
            raise ValueError(f"unknown model name {model_name!r}, known are {', '.join(MODEL_FAMILIES)}")
    for share in training_set_shares:
        if not isinstance(share, Real) or not 0 < share <= 1:
            raise ValueError(f"training_set_shares must be numbers in (0, 1], got {share!r}")
    for nb_neurons in nb_neurons_list:
        check_positive_integers(nb_neurons_list=nb_neurons)
    # Equal values of other types, such as 1 and 1.0, are the same runs and must have the same seeds.
    hyperparameters["model_names"] = [str(name) for name in model_names]
    hyperparameters["training_set_shares"] = [float(share) for share in training_set_shares]
    hyperparameters["nb_neurons_list"] = [int(nb_neurons) for nb_neurons in nb_neurons_list]
    check_positive_integers(nb_iterations=nb_iterations, nb_threads_per_run=nb_threads_per_run)
    check_training_hyperparameters(learning_rate, batch_size, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs)
    check_choice("use_Adam", use_Adam, (True, False))
    check_choice("initialisation", initialisation, ("realisation", "direct"))
    check_choice("joblib_backend", joblib_backend, ("loky", "dask"))
    if nb_jobs != -1:
        check_positive_integers(nb_jobs=nb_jobs)
    hyperparameters["device"] = check_device(device)
    return hyperparameters


# ---- many runs at a time ----

def execute(runs, data, hyperparameters):
    """Train runs in parallel; iterate over (run, result dict, or the reason why there is none) as they end."""
    unfinished, started = list(runs), []

    def train_in_parallel(runs, nb_processes):
        def tasks():
            for run in runs:
                started.append(run)
                yield joblib.delayed(train_run_in_worker)(tuple(run), data, hyperparameters, os.getpid())

        # Without batches and stock, a worker that is killed takes no other runs with it than those in hand.
        parallel = joblib.Parallel(nb_processes, batch_size=1, pre_dispatch="n_jobs", return_as="generator_unordered")
        for run, result in parallel(tasks()):
            unfinished.remove(run)
            yield Run(*run), result

    with joblib.parallel_config(joblib_backend, **({"scatter": list(data)} if joblib_backend == "dask" else {})):
        while unfinished:
            try:
                yield from train_in_parallel(list(unfinished), nb_jobs)
            except Exception:  # train_run_in_worker raises none: a worker was killed, and the runs in hand are lost
                in_hand = [run for run in started if run in unfinished]
                if not in_hand:
                    raise
                # Tried again one by one, so that only the run that kills its worker can fail. Two jobs, as joblib
                # would take this very process for one.
                for run in in_hand:
                    try:
                        yield from train_in_parallel([run], 2)
                    except Exception as problem:
                        unfinished.remove(run)
                        yield run, f"its worker process died twice: {describe(problem)}"


def train_run_in_worker(run, data, hyperparameters, main_process):
    """(run, result dict of train_run, or the reason why there is none)"""
    if os.getpid() != main_process:
        prepare_worker(main_process)
    try:
        return run, train_run(Run(*run), data, hyperparameters)
    except Exception as problem:
        return run, describe(problem)


def prepare_worker(main_process):
    """Leave Ctrl-C to the main process, and end with it even if that is killed."""
    # Dask runs trainings in threads of processes that look after themselves.
    if threading.current_thread() is threading.main_thread() and os.getppid() == main_process:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # the first run of this worker
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=exit_when_orphaned, args=(main_process,), daemon=True).start()


def exit_when_orphaned(parent_process):
    while os.getppid() == parent_process:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def worker_cluster():
    """The Dask cluster that the sweep runs on, if it does."""
    if joblib_backend != "dask":
        yield
        return
    try:
        from dask.distributed import Client, LocalCluster, UploadFile
    except ImportError as problem:
        raise ImportError('joblib_backend = "dask" needs Dask: pip install "dask[distributed]"') from problem
    nb_workers = os.cpu_count() if nb_jobs == -1 else nb_jobs
    with ExitStack() as stack:
        try:
            cluster = dask_scheduler_address or stack.enter_context(
                LocalCluster(nb_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None))
            client = stack.enter_context(Client(cluster))
        except OSError as problem:
            raise ValueError(
                f"no Dask cluster at dask_scheduler_address {dask_scheduler_address!r}: {problem}") from problem
        for file in MODEL_FILES:  # the workers of a cluster need not share a folder with this script
            client.register_plugin(UploadFile(str(file)), name=file.name)
        yield


class Interrupted(BaseException):
    """Ctrl-C, or a request to terminate; no Exception, as nothing but `main` may handle it."""

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
    except Interrupted:
        # joblib may wait for trainings that have not ended; nobody needs them any more.
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise
    finally:
        for number, handler in zip(signals, previous):
            signal.signal(number, handler)


# ---- messages ----

def progress(results, runs):
    """Pass (run, result) on and show how far the runs are: a bar on a terminal, else at most a line per minute."""
    unfinished, start, last_line = dict.fromkeys(runs), time.monotonic(), time.monotonic()
    with tqdm(total=len(runs), unit="run", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        bar.set_description(str(next(iter(unfinished), "")))
        for run, result in results:
            unfinished.pop(run)
            nb_done = len(runs) - len(unfinished)
            bar.update()
            bar.set_description(str(next(iter(unfinished), "")))  # the oldest one in hand
            if not isinstance(result, dict):
                bar.write(f"{run} failed: {result}", file=sys.stderr)
            if bar.disable and (time.monotonic() - last_line >= 60 or not unfinished):
                last_line = time.monotonic()
                time_left = tqdm.format_interval((last_line - start) / nb_done * len(unfinished))
                print(f"{nb_done} of {len(runs)} runs on {run.dataset}, {time_left} left", flush=True)
            yield run, result


def describe(problem):
    return f"{type(problem).__name__}: {problem}"


def report_error(message, exit_status):
    print(f"benchmark.py: {message}", file=sys.stderr, flush=True)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
