"""The benchmark of the paper: the same small nets with a dense, an SSS and a rank-1 hidden matrix, compared by test
accuracy and number of parameters.

`python benchmark.py` trains every combination of the hyperparameters below, prints a table and leaves
`benchmark_result.p` and `benchmark_result.png` beside this script. Started again it resumes or extends what is there.
"""

import re
import sys
import time
from contextlib import closing
from inspect import signature
from pathlib import Path

from parallel_runs import Interrupted, describe, interrupts_as_exceptions, make_runs, open_cluster, start_fork_server
if __name__ == "__main__":  # so that workers are forks of a process that imports these while this one does
    start_fork_server(["torch._dynamo", "sklearn.model_selection"])
import numpy as np
import torch

from benchmark_results import ResultsFile, get_environment, lock_results
from checks import (check_choice, check_data, check_distinct, check_positive_integers, check_script_hyperparameters,
                    check_shares)
from console import prints_without_failing
from datasets import (get_loading_functions_by_name, load_cifar10_data, load_digits_data,
                      load_hand_posture_data, load_mnist_data, load_pendigits_data)
from digests import derive_seed, digest_arrays, digest_code
from model_training import (check_training_hyperparameters, get_loss_and_accuracy, get_nb_model_parameters, train_model)
from plot_results import draw_figures, format_summary_table, remove_figures
from rank1models import Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import StandardTHLConvNet, StandardTHLFFNN

_other_names = {*globals(), "_other_names"} - {*globals().get("HYPERPARAMETERS", ())}  # which a reload finds here
# ======================================================================================================================
# Hyperparameters

# what is run; the paper's data sets: load_pendigits_data, load_hand_posture_data, load_mnist_data, load_cifar10_data
dataset_loading_functions = [load_digits_data]
model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]
nb_iterations = 5  # repetitions of each training, with other initial weights, validation splits and shuffles
nb_neurons_list = [50]  # neurons in each hidden layer
training_set_shares = [0.1]  # shares of the training data, in (0, 1]; smaller ones are contained in larger ones

# nets
nb_hidden_layers = 2  # hidden layers of neurons, joined by one matrix less; 2 as in the paper
inputoutput_dim = 1  # inputs and outputs of a stage of the SSS layers, 1 as in the paper; divides the number of neurons
initialisation = "realisation"  # of the SSS layers, as in the paper; "direct" is fast for thousands of neurons

# training
learning_rate = 1e-3
batch_size = 100000  # samples per step; as large as this, each epoch is one step
use_Adam = True  # False: plain stochastic gradient descent
patience = 20  # epochs without better validation accuracy after which training stops
min_accuracy_improvement = 5e-4  # what counts as better, as a share of the validation samples
min_number_training_epochs = 200
max_number_training_epochs = None  # None as in the paper: no limit
standardise_inputs = False  # True: features, or channels of images, to mean 0 and deviation 1 over the training part
softmax_twice = True  # as in the paper; False: cross-entropy of the probabilities themselves
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

HYPERPARAMETERS = [name for name in globals() if name not in _other_names]  # those of the block
TRAINING_HYPERPARAMETERS = signature(train_model).parameters.keys() & {*HYPERPARAMETERS} - {"seed"}


def get_hyperparameters():
    """{name: value} as the variables are now; nothing below reads them in another way."""
    return {name: globals()[name] for name in HYPERPARAMETERS}


# pattern of the results key -> (net for vectors, net for images); the number in an SSS family's is its statespace_dim
MODEL_FAMILIES = {
    r"standard_nn": (StandardTHLFFNN, StandardTHLConvNet),
    r"ss_([1-9]\d*)_dim": (TwoHiddenLayeredSSNet, SSSTHLConvNet),
    r"rank_1": (Rank1THLFFNN, Rank1THLConvNet),
}

FOLDER = Path(__file__).resolve().parent


@prints_without_failing
def main(hyperparameters=None, figures=("",)):  # values as from get_hyperparameters, which None calls; see draw_figures
    """Run, resume or extend the sweep; the exit status: 0, 1 if something could not be run, 2 if nothing could."""
    try:
        hyperparameters = check_hyperparameters(hyperparameters or get_hyperparameters())
        path = FOLDER / hyperparameters.pop("result_file")
        loading_functions = hyperparameters.pop("dataset_loading_functions")
        with lock_results(path), interrupts_as_exceptions():
            code_digests = {name: digest_code(train_run, *find_family(name)[1], ignored={"MODEL_FAMILIES"})
                            for name in hyperparameters["model_names"]}
            with closing(ResultsFile(
                path, hyperparameters, get_environment(hyperparameters["device"]), code_digests,
                lambda name: digest_arrays(*load_shuffled_data(name, loading_functions[name], hyperparameters))
            )) as results_file:
                print(f"{path.name}: {results_file.message}", flush=True)
                remove_figures(path)  # which would be older than the file
                with open_cluster(hyperparameters["joblib_backend"], hyperparameters["nb_jobs"],
                                  hyperparameters["dask_scheduler_address"], __file__) as cluster:
                    run_sweep(results_file, loading_functions, hyperparameters, cluster)
    except OSError as problem:
        return report_error(f"{describe(problem)}\nIf {path.parent} cannot be written to, set another result_file", 2)
    except (ValueError, ImportError) as problem:
        return report_error(problem, 2)
    except Interrupted as interrupted:
        remove_figures(path)  # somebody may have drawn them in the meantime
        return report_error(f"interrupted; {path.name} has all finished runs, the same command continues the sweep",
                            128 + interrupted.signal_number)
    print(format_summary_table(results_file.results))
    try:
        draw_figures(results_file.results, path, figures)
    except Exception as problem:  # whatever it is, the results are safe and matter more
        report_error(f"no figure: {describe(problem)}", 0)
    return 1 if results_file.results["failures"] else 0


def run_sweep(results_file, loading_functions, hyperparameters, cluster):
    """Train all that results_file misses, one dataset after the other, and record what comes of it."""
    for dataset, load_data in loading_functions.items():
        runs = [run for run in results_file.missing_runs if run.dataset == dataset]
        if not runs:
            continue
        try:
            data = load_shuffled_data(dataset, load_data, hyperparameters)
            results_file.record_data_digest(dataset, digest_arrays(*data))
        except Exception as problem:  # the other datasets go on
            results_file.add_failure(describe(problem), dataset)
            report_error(f"{dataset} is left out: {describe(problem)}", 1)
            continue
        too_small = [share for share in hyperparameters["training_set_shares"] if int(share * len(data[0])) < 2]
        for share in too_small:
            results_file.add_failure(f"less than 2 of {len(data[0])} samples are in share {share}", dataset, share)
        runs = [run for run in runs if run.share not in too_small]
        nb_jobs = hyperparameters["nb_jobs"]
        for run, result in make_runs(train_run, runs, data, hyperparameters, nb_jobs, cluster, dataset):
            if isinstance(result, dict):
                results_file.add(run, result)
            else:
                results_file.add_failure(result, *run)


def load_shuffled_data(dataset, load_data, hyperparameters):
    """X_train, y_train, X_test, y_test of a dataset; the training data shuffled once, so that shares are nested."""
    X_train, y_train, X_test, y_test = check_data(load_data(FOLDER / hyperparameters["datasets_folder"]))
    order = np.random.default_rng(derive_seed(hyperparameters["seed"], dataset)).permutation(len(X_train))
    return X_train[order], y_train[order], X_test, y_test


def train_run(run, data, hyperparameters):
    """One training on data of load_shuffled_data, and its test: an entry of the results dict, see docs/running.md."""
    torch.set_num_threads(hyperparameters["nb_threads_per_run"])
    X_train, y_train, X_test, y_test = data
    nb_samples = int(run.share * len(X_train))
    nb_classes = int(max(y_train.max(), y_test.max())) + 1
    initial_weights_seed = derive_seed(hyperparameters["seed"], *run)
    # The same for all families and widths, so that they are compared on the same splits.
    split_seed = derive_seed(hyperparameters["seed"], run.dataset, run.share, run.iteration)
    torch.manual_seed(initial_weights_seed)
    model = make_net(run, X_train.shape[1:], nb_classes, hyperparameters).to(hyperparameters["device"])

    start = time.perf_counter()
    histories = train_model(model, X_train[:nb_samples], y_train[:nb_samples], seed=split_seed,
                            **{name: hyperparameters[name] for name in TRAINING_HYPERPARAMETERS})
    training_time = time.perf_counter() - start
    test = get_loss_and_accuracy(model, X_test, y_test, softmax_twice=hyperparameters["softmax_twice"])
    return {**dict(zip(("training_loss_history", "accuracy_history", "val_accuracy_history"), histories)),
            "test_loss": test[0], "test_accuracy": test[1], "training_time": training_time,
            "nb_model_parameters": get_nb_model_parameters(model), "seed": initial_weights_seed}


def make_net(run, sample_shape, nb_classes, hyperparameters):
    """The net of a run, with its initial weights, for samples of shape (features,) or (channels, height, width)."""
    family, (net_for_vectors, net_for_images) = find_family(run.model_name)
    arguments = {"nb_hidden_layers": hyperparameters["nb_hidden_layers"]}
    if family.groups():
        arguments.update(statespace_dim=int(family[1]), input_output_dim=hyperparameters["inputoutput_dim"],
                         initialisation=hyperparameters["initialisation"])
    if len(sample_shape) == 1:
        return net_for_vectors(*sample_shape, nb_classes, run.nb_neurons, **arguments)
    return net_for_images(sample_shape, nb_classes, run.nb_neurons, **arguments)


def find_family(model_name):
    """(match of the pattern, nets) of the family in MODEL_FAMILIES; ValueError if there is none."""
    for pattern, nets in MODEL_FAMILIES.items():
        if family := re.fullmatch(pattern, str(model_name)):
            return family, nets
    raise ValueError(f"unknown model name {model_name!r}, known are standard_nn, ss_1_dim, ss_2_dim, .. rank_1")


def check_hyperparameters(hyperparameters):
    """The same as plain data, loading functions by name (dict); ValueError for the first one that cannot work."""
    checked = check_script_hyperparameters(hyperparameters, FOLDER, functions=("dataset_loading_functions",))
    for name in ("dataset_loading_functions", "model_names", "nb_neurons_list", "training_set_shares"):
        check_distinct(name, checked[name])
    for model_name in checked["model_names"]:
        find_family(model_name)
    for nb_neurons in checked["nb_neurons_list"]:
        check_positive_integers(nb_neurons_list=nb_neurons, inputoutput_dim=checked["inputoutput_dim"])
        if nb_neurons % checked["inputoutput_dim"]:
            raise ValueError(f"inputoutput_dim {checked['inputoutput_dim']} does not divide {nb_neurons} neurons")
    check_shares("training_set_shares", checked["training_set_shares"])
    check_training_hyperparameters(**{
        name: checked[name] for name in signature(check_training_hyperparameters).parameters})
    check_positive_integers(nb_jobs=1 if checked["nb_jobs"] == -1 else checked["nb_jobs"], **{
        name: checked[name] for name in ("nb_iterations", "nb_threads_per_run", "nb_hidden_layers")})
    check_choice("initialisation", checked["initialisation"], ("realisation", "direct"))
    check_choice("joblib_backend", checked["joblib_backend"], ("loky", "dask"))
    checked["training_set_shares"] = [float(share) for share in checked["training_set_shares"]]  # 1 is the same as 1.0
    loading_functions = get_loading_functions_by_name(checked["dataset_loading_functions"])
    return {**checked, "dataset_loading_functions": loading_functions, "dataset_names": list(loading_functions)}


def report_error(message, exit_status):
    print(f"benchmark.py: {message}", file=sys.stderr, flush=True)
    return exit_status


if __name__ == "__main__":
    sys.exit(main())
