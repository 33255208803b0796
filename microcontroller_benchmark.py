"""What do the nets take on a microcontroller? Instructions, flash and RAM of their C code, on emulated cores.

    python microcontroller_benchmark.py

needs the packages in requirements-microcontroller.txt and no board. It prints tables and leaves
`microcontroller_result.p` (plain Python data) and `microcontroller_result.png` beside this script; an older file is
kept under its time. c_export.py writes hidden layers alone, whole nets with initial weights, and trained nets;
emulated_core.py compiles and executes them.

Instructions are counted exactly, but they are no cycles: those beside them are an estimate, see emulated_core.py. A
ratio is the number of instructions of the dense layer or net divided by that of this one. Flash, in bytes, is weights
and code, with the compiler's library for floats where the core has no unit for them. RAM, in bytes, is the stack; input
and output, which the caller holds, come on top. A multiply-add is one product with a weight and its addition, in the
plain form of a layer; the C code of an SSS layer merges stages and may take others.

No figure counts without its output: scores must be PyTorch's, and trained nets must classify test samples alike.
"""

import importlib.metadata
import math
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

import benchmark
from benchmark_results import Run, finish_script, get_environment
from c_export import export_to_c
from checks import check_choice, check_distinct, check_positive_integers, check_script_hyperparameters
from console import prints_without_failing
from datasets import is_available, load_digits_data, load_pendigits_data
from digests import derive_seed, digest_code
from emulated_core import CORES, check_packages, measure_calls
from model_training import get_loss_and_accuracy, get_nb_model_parameters, train_model
from plot_results import ResultFigure, get_family_style
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer

_other_names = {*globals(), "_other_names"} - {*globals().get("HYPERPARAMETERS", ())}  # which a reload finds here
# ======================================================================================================================
# Hyperparameters

# layers and nets with initial weights: every one on every core, at every optimisation
model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_5_dim", "rank_1"]  # as in benchmark.py
nb_neurons_list = [16, 32, 50, 100, 200, 256]  # n, inputs and outputs of a hidden layer alone
net_cases = [("pendigits", (16,), 10), ("mnist", (1, 28, 28), 10)]  # (name, shape of a sample, classes); [] or None: no
net_nb_neurons_list = [50, 200]  # n of whole nets
cores = ["cortex-m4f", "cortex-m0plus"]  # with a unit for floats, and without; also "cortex-m3", "riscv32imc"
optimisations = ["-O2", "-Os"]  # of the compiler: for speed, for size

# trained nets, on the first core, at the first optimisation: those of the first iteration of benchmark.py
trained_model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]
dataset_loading_functions = [load_pendigits_data, load_digits_data]  # the first that needs no download is taken
training_set_share = 0.1  # in (0, 1]
nb_neurons = 50
nb_test_samples = 500  # that the C code classifies, evenly spread over the test data; None: all
learning_rate = 1e-3
batch_size = 100000  # samples per step; as large as this, each epoch is one step
use_Adam = True
patience = 20  # epochs without better validation accuracy after which training stops
min_accuracy_improvement = 5e-4
min_number_training_epochs = 200
max_number_training_epochs = None  # None: no limit
standardise_inputs = True  # not the paper's protocol, in which accuracies of single nets differ too much to show
softmax_twice = False  # likewise

# nets
nb_hidden_layers = 2
inputoutput_dim = 1  # inputs and outputs of a stage of the SSS layers
initialisation = "realisation"  # of the SSS layers; or "direct"

# how
seed = 0  # everything random derives from it
datasets_folder = "datasets/"  # relative to this script, as all paths
result_file = "microcontroller_result.p"  # the figure goes beside it
nb_jobs = -1  # programs that are compiled and executed at a time; -1: one per core of this machine
# ======================================================================================================================

HYPERPARAMETERS = [name for name in globals() if name not in _other_names]  # those of the block
TOLERANCE = 2e-5  # of scores, relative to the largest one: rounding of float32
FOLDER = Path(__file__).resolve().parent
SCORES = '#include "{}.h"\nint run(const float *x, float *y) {{ net_scores(x, y); return 0; }}\n'
CLASSIFICATION = '#include "{}.h"\nint run(const float *x, float *y) {{ (void)y; return net_classify(x); }}\n'


class WrongOutput(Exception):
    """The C code gives something else than PyTorch."""


class Case(NamedTuple):
    """A layer or net, and what it is run on."""
    row: dict  # of the table, as far as it is known: kind, n, layer, parameters, ...
    source: str  # of the program; its header is in the folder of the programs
    X: np.ndarray  # samples (N, inputs), float32
    scores: np.ndarray  # (N, outputs) of PyTorch, float32
    labels: np.ndarray  # (N,); None for layers and nets with initial weights


def check_hyperparameters():
    """({name: plain value}, the same with all that benchmark.py has beside it); ValueError or ImportError for what
    cannot work."""
    check_packages()
    checked = check_script_hyperparameters({name: globals()[name] for name in HYPERPARAMETERS}, FOLDER,
                                           functions=("dataset_loading_functions",))
    for name in ("net_cases", "trained_model_names"):
        checked[name] = checked[name] or []
    for name in ("model_names", "nb_neurons_list", "net_nb_neurons_list", "cores", "optimisations",
                 "dataset_loading_functions"):
        check_distinct(name, checked[name])
    for core in checked["cores"]:
        check_choice("each of cores", core, tuple(CORES))
    for optimisation in checked["optimisations"]:
        check_choice("each of optimisations", optimisation, ("-O1", "-O2", "-O3", "-Os", "-Oz"))
    if checked["trained_model_names"]:
        check_distinct("trained_model_names", checked["trained_model_names"])
    if checked["nb_test_samples"] is not None:
        check_positive_integers(nb_test_samples=checked["nb_test_samples"])
    check_positive_integers(nb_hidden_layers=checked["nb_hidden_layers"])
    if checked["nb_hidden_layers"] < 2:
        raise ValueError("nb_hidden_layers must be 2 or more, for the matrix that differs joins two, got 1")
    datasets_folder = FOLDER / checked["datasets_folder"]
    available = [load for load in checked["dataset_loading_functions"] if is_available(load, datasets_folder)]
    if not available:
        raise ValueError(f"the files of dataset_loading_functions are not in {datasets_folder}, and this script "
                         f"downloads nothing; add load_digits_data, which needs no file")
    sweep = benchmark.check_hyperparameters({
        **benchmark.get_hyperparameters(),
        **{name: value for name, value in checked.items() if name in benchmark.HYPERPARAMETERS},
        "dataset_loading_functions": available[:1], "training_set_shares": [checked["training_set_share"]],
        "nb_neurons_list": list(dict.fromkeys([checked["nb_neurons"], *checked["nb_neurons_list"],
                                               *checked["net_nb_neurons_list"]])),
        "model_names": list(dict.fromkeys(checked["model_names"] + checked["trained_model_names"])), "device": "cpu"})
    try:
        for kind, shape, nb_classes in checked["net_cases"]:
            make_net(kind, checked["inputoutput_dim"], "standard_nn", shape, nb_classes, sweep)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"net_cases: {problem}") from problem
    return {**checked, "dataset_loading_functions": sweep["dataset_names"]}, sweep


def measure(hyperparameters, sweep):
    """All measurements: the dict that `result_file` holds.

    - hyperparameters, environment
    - rows: list of dicts
        kind, n, layer, core, optimisation; kind is "hidden layer" or the name of a net case
        parameters, multiply_adds
        instructions, cycles: of a call, means over the samples; largest_instructions
        code_bytes, constant_bytes, stack_bytes
        ratio: of instructions, NaN without a dense layer or net
        difference: the largest of a score from PyTorch's, relative to the largest score
    - trained: the same of trained nets; kind is the name of the data set; instead of the difference
        test_accuracy: of PyTorch on all test data
        accuracy, nb_test_samples: of the C code
        nb_ties: samples that the C code puts into another class, whose score is the same to rounding
    """
    environment = {**get_environment("cpu"), "source_digest": digest_code(Path(__file__)), **{
        package: importlib.metadata.version(package) for package in ("ziglang", "unicorn")}}
    with tempfile.TemporaryDirectory() as folder:
        cases = list(tqdm(make_cases(hyperparameters, sweep, folder), "nets and their C code", disable=None))
        everywhere = list(product(hyperparameters["cores"], hyperparameters["optimisations"]))
        tasks = [(case, *where) for case in cases for where in everywhere[:None if case.labels is None else 1]]
        results = Parallel(hyperparameters["nb_jobs"], return_as="generator")(
            delayed(measure_calls)(case.source, case.X, case.scores.shape[1], core, optimisation, folder)
            for case, core, optimisation in tasks)
        rows = [make_row(*task, *result)
                for task, result in zip(tasks, tqdm(results, "programs", len(tasks), disable=None))]
    dense = {get_key(row): row["instructions"] for row in rows if row["layer"] == "standard_nn"}
    rows = [{**row, "ratio": dense.get(get_key(row), math.nan) / row["instructions"]} for row in rows]
    return {"hyperparameters": hyperparameters, "environment": environment,
            "rows": [row for row in rows if "test_accuracy" not in row],
            "trained": [row for row in rows if "test_accuracy" in row]}


def get_key(row):
    return row["kind"], row["n"], row["core"], row["optimisation"], "test_accuracy" in row


def make_cases(hyperparameters, sweep, folder):
    """Cases, one after the other, their headers written to the folder: layers, nets with initial weights, trained."""
    for n, name in product(hyperparameters["nb_neurons_list"], hyperparameters["model_names"]):
        layer = make_net("hidden layer", n, name, (1,), 1, sweep).hidden_layers[0]
        yield make_case(folder, SCORES, "hidden layer", n, name, layer, torch.randn(1, n))
    for (kind, shape, nb_classes), n, name in product(
            hyperparameters["net_cases"], hyperparameters["net_nb_neurons_list"], hyperparameters["model_names"]):
        net = make_net(kind, n, name, shape, nb_classes, sweep)
        yield make_case(folder, SCORES, kind, n, name, net, torch.randn(1, *shape))
    if hyperparameters["trained_model_names"]:
        yield from make_trained_cases(hyperparameters, sweep, folder)


def make_trained_cases(hyperparameters, sweep, folder):
    torch.set_num_threads(sweep["nb_threads_per_run"])
    (dataset, load_data), = sweep["dataset_loading_functions"].items()
    X_train, y_train, X_test, y_test = benchmark.load_shuffled_data(dataset, load_data, sweep)
    share, n, seed = sweep["training_set_shares"][0], hyperparameters["nb_neurons"], hyperparameters["seed"]
    nb_samples, nb_classes = int(share * len(X_train)), int(max(y_train.max(), y_test.max())) + 1
    nb_test_samples = min(hyperparameters["nb_test_samples"] or len(X_test), len(X_test))
    tested = np.linspace(0, len(X_test) - 1, nb_test_samples).astype(int)
    for name in hyperparameters["trained_model_names"]:
        net = make_net(dataset, n, name, X_train.shape[1:], nb_classes, sweep)
        train_model(net, X_train[:nb_samples], y_train[:nb_samples],
                    seed=derive_seed(seed, dataset, share, 0),
                    **{name: sweep[name] for name in benchmark.TRAINING_HYPERPARAMETERS})
        X = torch.from_numpy(X_test[tested])
        case = make_case(folder, CLASSIFICATION, dataset, n, name, net, X, y_test[tested])
        case.row["test_accuracy"] = get_loss_and_accuracy(net, X_test, y_test)[1]
        yield case


def make_net(kind, n, name, shape, nb_classes, sweep):
    """A net of benchmark.py with the initial weights that its first iteration gives it on a data set of that name."""
    run = Run(kind, sweep["training_set_shares"][0], name, n, 0)
    torch.manual_seed(derive_seed(sweep["seed"], *run))
    return benchmark.make_net(run, tuple(shape), nb_classes, sweep)


def make_case(folder, program, kind, n, name, module, X, labels=None):
    """The Case of a module and samples X (N, ...), its header written."""
    header = f"{len(list(Path(folder).glob('*.h')))}_{name}"
    export_to_c(module, Path(folder, f"{header}.h"))
    row = {"kind": kind, "n": n, "layer": name, "parameters": get_nb_model_parameters(module),
           "multiply_adds": count_multiply_adds(module, X[:1])}
    return Case(row, program.format(header), X.flatten(1).numpy(), get_scores(module, X).numpy(), labels)


@torch.no_grad()
def get_scores(module, X):
    """What the softmax of a net is applied to, or the output of a layer; (N, ...) -> (N, outputs)."""
    return getattr(module, "scores", module)(X)


@torch.no_grad()
def count_multiply_adds(module, X):
    """Multiply-adds (int) of one sample X (1, ...) in all layers with weights, a convolution's at every position."""
    nb_multiply_adds = []

    def count(layer, inputs, output):
        nb_weights = get_nb_model_parameters(layer) - layer.bias.numel()
        nb_multiply_adds.append(nb_weights * output.numel() // layer.bias.numel())

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(
        layer, (torch.nn.Linear, torch.nn.Conv2d, SemiseparableLayer, Rank1Layer))]
    module(X)
    for hook in hooks:
        hook.remove()
    return sum(nb_multiply_adds)


def make_row(case, core, optimisation, program, calls, outputs):
    """An entry of rows or trained, without the ratio; WrongOutput if the C code does not give what PyTorch gives."""
    where = f"{case.row['kind']}, n {case.row['n']}, {case.row['layer']} on {core}, {optimisation}"
    scores, largest = case.scores, np.abs(case.scores).max(1)
    if case.labels is None:
        difference = (np.abs(outputs - scores).max(1) / largest).max()
        if not difference <= TOLERANCE:
            raise WrongOutput(f"{where}: a score differs from PyTorch's by {difference:.1e} of the largest one")
        output = {"difference": float(difference)}
    else:
        classes = np.array([call.value for call in calls])
        lead = scores.max(1) - scores[np.arange(len(scores)), classes]  # of PyTorch's class over that of the C code
        if (wrong := lead > TOLERANCE * largest).any():
            raise WrongOutput(f"{where}: {wrong.sum()} of {len(scores)} samples are classified unlike by PyTorch, the "
                              f"first is number {wrong.argmax()}")
        output = {"nb_test_samples": len(scores), "accuracy": float((classes == case.labels).mean()),
                  "nb_ties": int((lead > 0).sum())}
    instructions = [call.instructions for call in calls]
    return {**case.row, "core": core, "optimisation": optimisation, **output,
            "instructions": sum(instructions) / len(calls), "largest_instructions": max(instructions),
            "cycles": sum(call.cycles for call in calls) / len(calls), "code_bytes": program.code_bytes,
            "constant_bytes": program.constant_bytes, "stack_bytes": max(call.stack_bytes for call in calls)}


def format_table(rows):
    """The rows as text of at most 100 columns, a block per kind, core and optimisation."""
    blocks = {}
    for row in rows:
        what = "hidden layers" if row["kind"] == "hidden layer" else f"whole nets, {row['kind']}"
        blocks.setdefault(f"{what} on {row['core']}, {row['optimisation']}", []).append(row)
    lines = []
    for title, block in blocks.items():
        lines += ["", title, f"{'n':>5}  {'layer':<12}{'multiply-adds':>13}{'instructions':>13}{'each':>8}{'ratio':>8}"
                             f"{'cycles, est.':>13}{'code':>8}{'weights':>11}{'RAM':>7}"]
        lines += [f"{row['n']:>5}  {row['layer']:<12}{row['multiply_adds']:>13,}{row['instructions']:>13,.0f}"
                  f"{row['instructions'] / row['multiply_adds']:>8.2f}{format_number(row['ratio'], '.2f'):>8}"
                  f"{format_number(row['cycles'], ',.0f'):>13}{row['code_bytes']:>8,}{row['constant_bytes']:>11,}"
                  f"{row['stack_bytes']:>7,}" for row in block]
    return "\n".join(lines[1:])


def format_trained(rows):
    """The trained nets as text of at most 100 columns, empty without any."""
    if not rows:
        return ""
    first = rows[0]
    lines = [f"trained nets, {first['kind']}, n {first['n']}, on {first['core']}, {first['optimisation']}: accuracy of "
             f"PyTorch on all test data,", f"and of the C code on {first['nb_test_samples']} test samples, which it "
             f"classifies as PyTorch does ({sum(row['nb_ties'] for row in rows)} ties)",
             f"{'net':<12}{'parameters':>11}{'accuracy':>9}{'of C':>7}{'instructions':>13}{'at most':>9}{'ratio':>7}"
             f"{'cycles, est.':>13}{'flash':>9}{'RAM':>7}"]
    lines += [f"{row['layer']:<12}{row['parameters']:>11,}{row['test_accuracy']:>9.3f}{row['accuracy']:>7.3f}"
              f"{row['instructions']:>13,.0f}{row['largest_instructions']:>9,}{format_number(row['ratio'], '.2f'):>7}"
              f"{format_number(row['cycles'], ',.0f'):>13}{row['code_bytes'] + row['constant_bytes']:>9,}"
              f"{row['stack_bytes']:>7,}" for row in rows]
    return "\n".join(lines)


def format_number(value, specification):
    return "-" if math.isnan(value) else f"{value:{specification}}"


def plot_microcontroller(result):
    """Instructions and flash of the hidden layers against n, a column per core; further optimisations are dashed."""
    rows = [row for row in result["rows"] if row["kind"] == "hidden layer"]
    cores, optimisations, names, sizes = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("core", "optimisation", "layer", "n"))
    figure = ResultFigure(figsize=(4.8 * len(cores) + 2, 7.6), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(cores), squeeze=False, sharex=True, sharey="row")
    quantities = {"Instructions (count)": lambda row: row["instructions"],
                  "Flash (bytes)": lambda row: row["code_bytes"] + row["constant_bytes"]}
    for (i, (label, get_value)), (j, core) in product(enumerate(quantities.items()), enumerate(cores)):
        ax = axes[i, j]
        for name, optimisation in product(names, optimisations):
            points = sorted((row["n"], get_value(row)) for row in rows
                            if (row["core"], row["optimisation"], row["layer"]) == (core, optimisation, name))
            style = get_family_style(name)
            line = {**style, "markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.5, "linewidth": 1.4,
                    "label": name}
            if optimisation != optimisations[0]:
                line = {"color": style["color"], "linestyle": "--", "linewidth": 0.8}
            ax.loglog(*zip(*points), **line)
        ax.set_title(core, fontsize=10)
        ax.set_ylabel(label)
        ax.set_xlabel("n, inputs and outputs of the layer (count)")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.grid(alpha=0.25)
        ax.label_outer()
    dashed = f"\ndashed: {', '.join(optimisations[1:])}" if optimisations[1:] else ""
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title=f"hidden layers\n{optimisations[0]}{dashed}",
                  loc="outside right upper", fontsize=8, title_fontsize=8)
    return figure


@prints_without_failing
def main():
    """Measure, print, save and draw; the exit status: 0, 1 if a program in C fails or gives not what PyTorch gives, 2
    for a hyperparameter or a file that does not work."""
    try:
        hyperparameters, sweep = check_hyperparameters()
    except (ValueError, ImportError) as problem:
        print(f"microcontroller_benchmark.py: {problem}", file=sys.stderr)
        return 2
    try:
        result = measure(hyperparameters, sweep)
    except (WrongOutput, RuntimeError) as problem:
        print(f"microcontroller_benchmark.py: {problem}", file=sys.stderr)
        return 1
    print(*filter(None, (format_table(result["rows"]), format_trained(result["trained"]))), sep="\n\n")
    return finish_script("microcontroller_benchmark.py", result, FOLDER / hyperparameters["result_file"],
                         plot_microcontroller)


if __name__ == "__main__":
    sys.exit(main())
