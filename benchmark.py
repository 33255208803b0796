"""The benchmark of the paper: the same small nets with a dense, an SSS and a rank-1 hidden matrix, compared by test
accuracy and number of parameters.

    python benchmark.py

trains every combination of the hyperparameters below, prints a table and leaves `benchmark_result.p` and
`benchmark_result.png` beside this script. Started again it resumes, and extends what is there by what was added.
"""

import hashlib
import sys
import time
from contextlib import closing
from pathlib import Path

from parallel_runs import Interrupted, describe, interrupts_as_exceptions, make_runs, open_cluster, start_fork_server

if __name__ == "__main__":  # so that workers are forks of a process that imports these while this one does
    start_fork_server(["torch._dynamo", "sklearn.model_selection"])

import numpy as np
import torch
from filelock import FileLock, Timeout

from benchmark_results import ResultsFile, get_environment
from checks import (check_choice, check_device, check_distinct, check_integers, check_positive_integers,
                    check_shares, to_plain_data)
from datasets import (get_dataset_name_for_loading_function, load_cifar10_data, load_digits_data,
                      load_hand_posture_data, load_mnist_data, load_pendigits_data)
from model_training import (check_training_hyperparameters, get_loss_and_accuracy, get_nb_model_parameters, train_model)
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


def get_hyperparameters():
    """{name: value} of the variables above; nothing below reads them in another way."""
    return dict(
        dataset_loading_functions=dataset_loading_functions, model_names=model_names, nb_iterations=nb_iterations,
        nb_neurons_list=nb_neurons_list, training_set_shares=training_set_shares, learning_rate=learning_rate,
        batch_size=batch_size, use_Adam=use_Adam, patience=patience, min_accuracy_improvement=min_accuracy_improvement,
        min_number_training_epochs=min_number_training_epochs, max_number_training_epochs=max_number_training_epochs,
        initialisation=initialisation, seed=seed, datasets_folder=datasets_folder, device=device, nb_jobs=nb_jobs,
        nb_threads_per_run=nb_threads_per_run, joblib_backend=joblib_backend,
        dask_scheduler_address=dask_scheduler_address, result_file=result_file)


TRAINING_HYPERPARAMETERS = ("learning_rate", "batch_size", "use_Adam", "min_accuracy_improvement", "patience",
                            "min_number_training_epochs", "max_number_training_epochs")  # what train_model takes

# results key -> (net for vectors, net for images, extra arguments)
MODEL_FAMILIES = {
    "standard_nn": (StandardTHLFFNN, StandardTHLConvNet, {}),
    **{f"ss_{d}_dim": (TwoHiddenLayeredSSNet, SSSTHLConvNet, {"statespace_dim": d}) for d in range(1, 6)},
    "rank_1": (Rank1THLFFNN, Rank1THLConvNet, {}),
}

FOLDER = Path(__file__).resolve().parent
WORKER_FILES = [FOLDER / f"{name}.py" for name in (  # for a cluster; each after those that it imports itself
    "benchmark_results", "plot_results", "checks", "realisation", "standardmodels", "semiseparablemodels",
    "rank1models", "model_training", "datasets", "benchmark")]
SOURCE_FILES = WORKER_FILES[2:]  # what results depend on


def main():
    """Run, resume or extend the sweep; the exit status: 0, 1 if something could not be run, 2 if nothing could."""
    try:
        hyperparameters = check_hyperparameters(get_hyperparameters())
        path = FOLDER / hyperparameters.pop("result_file")
        loading_functions = hyperparameters.pop("dataset_loading_functions")
        with FileLock(f"{path}.lock", timeout=0), interrupts_as_exceptions():
            environment = get_environment(hyperparameters["device"], SOURCE_FILES)
            with closing(ResultsFile(path, hyperparameters, environment)) as results_file:
                print(f"{path.name}: {results_file.message}", flush=True)
                with open_cluster(hyperparameters["joblib_backend"], hyperparameters["nb_jobs"],
                                  hyperparameters["dask_scheduler_address"], WORKER_FILES) as cluster:
                    run_sweep(results_file, loading_functions, hyperparameters, cluster)
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


def run_sweep(results_file, loading_functions, hyperparameters, cluster):
    """Train all that results_file misses, one dataset after the other, and record what comes of it."""
    for dataset, load_data in loading_functions.items():
        runs = [run for run in results_file.missing_runs if run.dataset == dataset]
        if not runs:
            continue
        try:
            data = load_shuffled_data(dataset, load_data, hyperparameters)
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
        results = make_runs(train_run, runs, data, hyperparameters, hyperparameters["nb_jobs"], cluster, dataset)
        for run, result in results:
            if isinstance(result, dict):
                results_file.add(run, result)
            else:
                results_file.add_failure(result, *run)


def load_shuffled_data(dataset, load_data, hyperparameters):
    """X_train, y_train, X_test, y_test of a dataset; the training data shuffled once, so that shares are nested."""
    (X_train, y_train), (X_test, y_test) = load_data(FOLDER / hyperparameters["datasets_folder"])
    order = np.random.default_rng(derive_seed(hyperparameters["seed"], dataset)).permutation(len(X_train))
    return X_train[order], y_train[order], X_test, y_test


def train_run(run, data, hyperparameters):
    """One training on data of load_shuffled_data, and its test: the entry of the results dict, see README.md.

    :param run: its identity; with the seed alone it determines everything random
    """
    torch.set_num_threads(hyperparameters["nb_threads_per_run"])
    X_train, y_train, X_test, y_test = data
    nb_samples = int(run.share * len(X_train))
    nb_classes = int(max(y_train.max(), y_test.max())) + 1
    net_for_vectors, net_for_images, arguments = MODEL_FAMILIES[run.model_name]
    if X_train.ndim == 2:
        net, input_size = net_for_vectors, X_train.shape[1]
    else:
        net, input_size = net_for_images, X_train.shape[1:]
    if arguments:  # SSS layers have a choice here
        arguments = {**arguments, "initialisation": hyperparameters["initialisation"]}
    initial_weights_seed = derive_seed(hyperparameters["seed"], *run)
    # The same for all families and widths, so that they are compared on the same splits.
    split_seed = derive_seed(hyperparameters["seed"], run.dataset, run.share, run.iteration)
    torch.manual_seed(initial_weights_seed)
    model = net(input_size, nb_classes, run.nb_neurons, **arguments).to(hyperparameters["device"])

    start = time.perf_counter()
    histories = train_model(model, X_train[:nb_samples], y_train[:nb_samples], seed=split_seed,
                            **{name: hyperparameters[name] for name in TRAINING_HYPERPARAMETERS})
    training_time = time.perf_counter() - start
    test_loss, test_accuracy = get_loss_and_accuracy(model, X_test, y_test)
    return {**dict(zip(("training_loss_history", "accuracy_history", "val_accuracy_history"), histories)),
            "test_loss": test_loss, "test_accuracy": test_accuracy, "training_time": training_time,
            "nb_model_parameters": get_nb_model_parameters(model), "seed": initial_weights_seed}


def derive_seed(*identity):
    """A seed (int, 32 bits) that depends on the identity of what it is for and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:4], "little")


def check_hyperparameters(hyperparameters):
    """The same as plain data, loading functions by name (dict); ValueError for the first one that cannot work."""
    checked = {name: to_plain_data(value) for name, value in hyperparameters.items()}
    for name in ("dataset_loading_functions", "model_names", "nb_neurons_list", "training_set_shares"):
        check_distinct(name, checked[name])
    for model_name in checked["model_names"]:
        check_choice("model_names", model_name, list(MODEL_FAMILIES))
    for nb_neurons in checked["nb_neurons_list"]:
        check_positive_integers(nb_neurons_list=nb_neurons)
    check_shares("training_set_shares", checked["training_set_shares"])
    check_training_hyperparameters(**{name: checked[name] for name in TRAINING_HYPERPARAMETERS if name != "use_Adam"})
    check_positive_integers(nb_iterations=checked["nb_iterations"], nb_threads_per_run=checked["nb_threads_per_run"],
                            nb_jobs=1 if checked["nb_jobs"] == -1 else checked["nb_jobs"])
    check_integers(seed=checked["seed"])
    check_choice("use_Adam", checked["use_Adam"], (True, False))
    check_choice("initialisation", checked["initialisation"], ("realisation", "direct"))
    check_choice("joblib_backend", checked["joblib_backend"], ("loky", "dask"))
    checked["device"] = check_device(checked["device"])
    checked["training_set_shares"] = [float(share) for share in checked["training_set_shares"]]  # 1 is the same as 1.0
    checked["dataset_loading_functions"] = {get_dataset_name_for_loading_function(load_data): load_data
                                            for load_data in checked["dataset_loading_functions"]}
    return {**checked, "dataset_names": list(checked["dataset_loading_functions"])}


def report_error(message, exit_status):
    print(f"benchmark.py: {message}", file=sys.stderr, flush=True)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
