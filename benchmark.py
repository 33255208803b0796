"""The benchmark of the paper: the same small nets with a dense, an SSS and a rank-1 hidden matrix compared.

`python benchmark.py` trains every combination of the hyperparameters below, prints a table and leaves
`benchmark_result.p` and `benchmark_result.png` beside this script. Started again it resumes or extends what is there.
"""

import inspect
import re
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from parallel_runs import describe, make_runs, open_cluster, start_fork_server
if __name__ == "__main__":  # so that workers are forks of a process that imports these while this one does
    start_fork_server(["torch._dynamo", "sklearn.datasets", "sklearn.model_selection"])
import torch

from benchmark_results import ResultsFile, digest_arrays, digest_code, get_environment, lock_results
from checks import check_choice, check_distinct, check_integers, check_script_hyperparameters
from datasets import (derive_seed, get_loading_functions_by_name, load_cifar10_data, load_digits_data,
                      load_hand_posture_data, load_mnist_data, load_pendigits_data, load_shuffled_data, take_share)
from model_training import (check_training_hyperparameters, get_loss_and_accuracy, get_nb_model_parameters, train_model)
from monarchmodels import MonarchTHLConvNet, MonarchTHLFFNN
from plot_results import draw_figures, format_summary_table, plot_accuracy
from rank1models import Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import StandardTHLConvNet, StandardTHLFFNN

# ======================================================================================================================
# Hyperparameters

# what is run; the paper's data sets: load_pendigits_data, load_hand_posture_data, load_mnist_data, load_cifar10_data;
# further names: ss_d_dim, rank_r, monarch_b, standard_as_ss_d, standard_scaled_p with other numbers, see MODEL_FAMILIES
dataset_loading_functions = [load_digits_data]
model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]
nb_iterations = 5  # repetitions of each training, with other initial weights, validation splits and shuffles
nb_neurons_list = [50]  # neurons in each hidden layer
training_set_shares = [0.1]  # shares of the training data, in (0, 1]; smaller ones are contained in larger ones

# nets
nb_hidden_layers = 2  # of neurons; the hidden matrices, one less, join them; 2 as in the paper
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
standardise_inputs = False  # True: features, or channels of images, to mean 0 and deviation 1 over the share's samples
softmax_twice = True  # as in the paper; False: cross-entropy of the probabilities themselves
restore_best_weights = False  # as in the paper: the last ones are tested; True: those of the best validation accuracy
seed = 0  # everything random derives from it and the run's identity

# where and how; none of these changes results, but for rounding on another device or number of threads
datasets_folder = "datasets/"  # relative to this script, as all paths; missing datasets are downloaded into it
result_file = "benchmark_result.p"
device = "cpu"  # or "cuda"
nb_jobs = -1  # trainings at a time; -1: one per core
nb_threads_per_run = 1
dask_scheduler_address = None  # e.g. "tcp://10.0.0.1:8786" of a Dask cluster; None: processes on this machine
# ======================================================================================================================

HYPERPARAMETERS = [name for name, value in globals().items() if name[0].islower() and not hasattr(value, "__name__")]
TRAINING_HYPERPARAMETERS = inspect.signature(check_training_hyperparameters).parameters
FOLDER = Path(__file__).resolve().parent

# pattern of the results key -> net for vectors, net for images, their further arguments
MODEL_FAMILIES = {
    r"standard_nn": (StandardTHLFFNN, StandardTHLConvNet, lambda match, _: {}),
    r"ss_([1-9]\d*)_dim": (TwoHiddenLayeredSSNet, SSSTHLConvNet, lambda match, hyperparameters: {
        "statespace_dim": int(match[1]), "input_output_dim": hyperparameters["inputoutput_dim"],
        "initialisation": hyperparameters["initialisation"]}),
    r"rank_([1-9]\d*)": (Rank1THLFFNN, Rank1THLConvNet, lambda match, _: {"rank": int(match[1])}),
    r"monarch_([1-9]\d*)": (MonarchTHLFFNN, MonarchTHLConvNet, lambda match, _: {"nb_blocks": int(match[1])}),
    # controls: a dense matrix that starts as the one of ss_d_dim, or as a Glorot-uniform one scaled by so many per cent
    r"standard_as_ss_([1-9]\d*)": (TwoHiddenLayeredSSNet, SSSTHLConvNet, lambda match, hyperparameters: {
        **find_family(f"ss_{match[1]}_dim")[1][2](match, hyperparameters), "is_dense": True}),
    r"standard_scaled_(\d+)": (StandardTHLFFNN, StandardTHLConvNet, lambda match, _: {"scale": int(match[1]) / 100}),
}


def get_hyperparameters():
    """{name: value} as the variables are now; nothing below reads them in another way."""
    return {name: globals()[name] for name in HYPERPARAMETERS}


def main(hyperparameters=None):  # as of get_hyperparameters, which None calls
    """Run, resume or extend the sweep; the exit status: 0, 1 if something could not be run, 2 if nothing could, 130."""
    try:
        hyperparameters = check_hyperparameters(hyperparameters or get_hyperparameters())
        path = FOLDER / hyperparameters.pop("result_file")
        loading_functions = hyperparameters.pop("dataset_loading_functions")

        def load(dataset):
            return load_shuffled_data(loading_functions[dataset], FOLDER / hyperparameters["datasets_folder"],
                                      derive_seed(hyperparameters["seed"], dataset))
        with (lock_results(path), closing(ResultsFile(
                path, hyperparameters, get_environment(hyperparameters["device"]),
                {name: digest_family(name, hyperparameters) for name in hyperparameters["model_names"]},
                lambda dataset: digest_arrays(*load(dataset)))) as results_file,
              open_cluster(hyperparameters["dask_scheduler_address"]) as cluster):
            print(f"{path.name}: {results_file.message}", flush=True)
            for dataset in loading_functions:
                run_missing(results_file, dataset, load, hyperparameters, cluster)
    except (OSError, ValueError, ImportError) as problem:
        print(f"benchmark.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {path.name} has all finished runs, the same command continues the sweep", file=sys.stderr)
        return 130
    draw_figures(results_file.results, path, [plot_accuracy])
    print(format_summary_table(results_file.results))
    return 1 if results_file.results["failures"] else 0


def run_missing(results_file, dataset, load, hyperparameters, cluster):
    """Train all that results_file misses of a dataset, and record what comes of it."""
    if not (runs := [run for run in results_file.missing_runs if run.dataset == dataset]):
        return
    try:
        data = load(dataset)
        results_file.record_data_digest(dataset, digest_arrays(*data))
    except Exception as problem:  # the other datasets go on
        results_file.add_failure(describe(problem), dataset)
        print(f"{dataset} is left out: {describe(problem)}", file=sys.stderr)
        return
    nb_jobs = hyperparameters["nb_jobs"]
    with closing(make_runs(train_run, runs, data, hyperparameters, nb_jobs, cluster, dataset)) as ended_runs:
        for run, result in ended_runs:
            if isinstance(result, dict):
                results_file.add(run, result)
            else:
                results_file.add_failure(result, *run)


def make_net(run, sample_shape, nb_classes, hyperparameters):
    """The net of a run, with its initial weights, for samples of shape (features,) or (channels, height, width)."""
    match, (net_for_vectors, net_for_images, get_arguments) = find_family(run.model_name)
    arguments = {"nb_hidden_layers": hyperparameters["nb_hidden_layers"], **get_arguments(match, hyperparameters)}
    torch.manual_seed(derive_seed(hyperparameters["seed"], *run))
    if len(sample_shape) == 1:
        return net_for_vectors(*sample_shape, nb_classes, run.nb_neurons, **arguments)
    return net_for_images(sample_shape, nb_classes, run.nb_neurons, **arguments)


def train_net(run, X, y, nb_classes, hyperparameters):
    """The net of a run, trained on samples X and labels y of take_share, and its training's part of the results."""
    torch.set_num_threads(hyperparameters["nb_threads_per_run"])
    net = make_net(run, X.shape[1:], nb_classes, hyperparameters).to(hyperparameters["device"])
    # The same for all families and widths, so that they are compared on the same splits.
    split_seed = derive_seed(hyperparameters["seed"], run.dataset, run.share, run.iteration)
    start = time.perf_counter()
    histories = train_model(net, X, y, seed=split_seed,
                            **{name: hyperparameters[name] for name in TRAINING_HYPERPARAMETERS})
    return net, {**dict(zip(("training_loss_history", "accuracy_history", "val_accuracy_history"), histories)),
                 "training_time": time.perf_counter() - start}


def train_run(run, data, hyperparameters):
    """One training on data of load_shuffled_data, and its test: an entry of the results dict, see docs/running.md."""
    X_train, y_train, X_test, y_test = take_share(run.share, data, hyperparameters["standardise_inputs"])
    net, result = train_net(run, X_train, y_train, int(data[1].max()) + 1, hyperparameters)
    test_loss, test_accuracy = get_loss_and_accuracy(net, X_test, y_test,
                                                     softmax_twice=hyperparameters["softmax_twice"])
    return {**result, "test_loss": test_loss, "test_accuracy": test_accuracy,
            "nb_model_parameters": get_nb_model_parameters(net), "seed": derive_seed(hyperparameters["seed"], *run)}


def find_family(model_name):
    """(match of the pattern, entry) of the family in MODEL_FAMILIES; ValueError if there is none."""
    for pattern, entry in MODEL_FAMILIES.items():
        if match := re.fullmatch(pattern, str(model_name)):
            return match, entry
    raise ValueError(f"unknown name in model_names: {model_name!r}, known are {', '.join(MODEL_FAMILIES)}")


def digest_family(model_name, hyperparameters):
    """Digest (str) of the code that the runs of a family depend on."""
    match, (*nets, get_arguments) = find_family(model_name)
    return digest_code(*(FOLDER / file for file in ("model_training.py", "standardmodels.py", "realisation.py")),
                       *(Path(inspect.getfile(net)) for net in nets),
                       derive_seed, take_share, make_net, train_net, train_run,
                       repr(([net.__name__ for net in nets], get_arguments(match, hyperparameters))))


def check_hyperparameters(hyperparameters):
    """The same as plain data, loading functions by name (dict); ValueError for the first one that cannot work."""
    checked = check_script_hyperparameters(hyperparameters, functions=("dataset_loading_functions",))
    for name in ("dataset_loading_functions", "model_names", "nb_neurons_list", "training_set_shares"):
        check_distinct(name, checked[name])
    for share in checked["training_set_shares"]:
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ValueError(f"training_set_shares must be in (0, 1], got {share!r}")
    shares = checked["training_set_shares"] = [float(f"{share:.6g}") for share in checked["training_set_shares"]]
    check_distinct("training_set_shares", shares)  # 1 is the same as 1.0, and 0.1 the same in float32
    check_integers(nb_jobs=1 if checked["nb_jobs"] == -1 else checked["nb_jobs"], **{name: checked[name] for name in (
        "nb_iterations", "nb_hidden_layers", "inputoutput_dim", "nb_threads_per_run")})
    for nb_neurons in checked["nb_neurons_list"]:
        check_integers(nb_neurons_list=nb_neurons)
        if nb_neurons % checked["inputoutput_dim"]:
            raise ValueError(f"inputoutput_dim {checked['inputoutput_dim']} does not divide {nb_neurons} neurons")
    check_integers(0, seed=checked["seed"])
    check_choice("standardise_inputs", checked["standardise_inputs"], (True, False))
    check_training_hyperparameters(**{name: checked[name] for name in TRAINING_HYPERPARAMETERS})
    loading_functions = get_loading_functions_by_name(checked["dataset_loading_functions"])
    return {**checked, "dataset_loading_functions": loading_functions, "dataset_names": list(loading_functions)}


if __name__ == "__main__":
    sys.modules.pop("benchmark", None)  # of an earlier %run in a notebook
    import benchmark  # for workers find functions of modules, not of the script that was started
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")
    sys.exit(benchmark.main())
