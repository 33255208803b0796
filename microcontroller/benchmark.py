"""What do the nets take on a microcontroller? Instructions, flash and RAM of their C code, on emulated cores.

    python -m microcontroller.benchmark

needs the packages in microcontroller/requirements.txt and no board. It measures hidden layers alone, whole nets with
initial weights and trained nets, prints tables, and leaves `microcontroller_result.p` (plain data) and a figure beside
this script; an older file of data is kept under its time.

Instructions are counted exactly, but they are no cycles: those beside them are an estimate, see emulated_core.py. A
ratio is the number of instructions of the dense layer or net divided by that of this one. Flash, in bytes, is weights
and code, with the compiler's library for floats where the core has no unit for them. RAM, in bytes, is the stack; input
and output, which the caller holds, come on top. Multiply-adds are those of the C code, which merges stages of an SSS
layer. No figure counts without its output: scores must be PyTorch's.
"""

import importlib.metadata
import math
import multiprocessing
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import benchmark
from benchmark_results import Run, get_environment, keep_file, save_results
from checks import check_choice, check_script_hyperparameters
from datasets import load_pendigits_data, load_shuffled_data, take_share
from microcontroller.c_export import export_to_c
from microcontroller.emulated_core import CORES, measure_calls
from model_training import get_loss_and_accuracy, get_nb_model_parameters
from plot_results import get_family_style, make_figure, save_figure

# ======================================================================================================================
# Hyperparameters; those that are not here are those of benchmark.py

model_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]

# layers and nets with initial weights: every one on every core, at every optimisation
nb_neurons_list = [16, 32, 50, 100, 200, 256]  # n, inputs and outputs of a hidden layer alone
net_cases = [("pendigits", (16,), 10), ("mnist", (1, 28, 28), 10)]  # (name, shape of a sample, classes)
net_nb_neurons_list = [50, 200]  # n of whole nets
cores = ["cortex-m4f", "cortex-m0plus"]  # with a unit for floats, and without; others are in emulated_core.py
optimisations = ["-O2", "-Os"]  # of the compiler: for speed, for size

# trained nets, on the first core, at the first optimisation: those of the first iteration of benchmark.py
dataset_loading_functions = [load_pendigits_data]  # of vectors
training_set_share = 0.1  # in (0, 1]
nb_neurons = 50
nb_test_samples = 500  # that the C code classifies, evenly spread over the test data
# Not the paper's protocol, in which accuracies of single nets differ too much to show; so inputs are standardised, too.
softmax_twice = False

result_file = "microcontroller_result.p"  # relative to this script; the figure goes beside it
# ======================================================================================================================

HYPERPARAMETERS = [name for name, value in globals().items() if name[0].islower() and not hasattr(value, "__name__")]
TOLERANCE = 2e-5  # of scores, relative to the largest one: rounding of float32


def check_hyperparameters():
    """{name: value} of the block above and, for the others, of benchmark.py; ValueError for what cannot work."""
    own = check_script_hyperparameters({name: globals()[name] for name in HYPERPARAMETERS},
                                       functions=("dataset_loading_functions",))
    for core in own["cores"]:
        check_choice("each of cores", core, tuple(CORES))
    checked = benchmark.check_hyperparameters({
        **benchmark.get_hyperparameters(), **{name: own[name] for name in own if name in benchmark.HYPERPARAMETERS},
        "nb_neurons_list": list({own["nb_neurons"], *own["nb_neurons_list"], *own["net_nb_neurons_list"]}),
        "training_set_shares": [own["training_set_share"]], "standardise_inputs": True, "device": "cpu"})
    return {**checked, **own, "dataset_loading_functions": checked["dataset_loading_functions"]}


def measure(hyperparameters):
    """All measurements: the dict that the file holds.

    - hyperparameters, environment
    - rows: list of dicts
        kind, n, layer, core, optimisation; kind is "hidden layer", "net for ..." or "net trained on ..."
        parameters, multiply_adds
        instructions, cycles: of a call, means over the samples
        code_bytes, constant_bytes, stack_bytes
        ratio: of instructions, NaN without a dense layer or net
        difference: the largest of a score from PyTorch's, relative to the largest score of the sample
        of trained nets also test_accuracy, of PyTorch on all test data; nb_test_samples, accuracy, of the C code;
        nb_ties, samples that it puts into another class whose score is the same to rounding

    :raises RuntimeError: a program cannot be built or run, or its scores are not PyTorch's
    """
    everywhere = list(product(hyperparameters["cores"], hyperparameters["optimisations"]))
    tasks = []  # (row as far as it is known, scores, labels, call of measure_calls)
    # Processes, as the emulator holds the lock of Python's interpreter.
    pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row, module, X, labels in tqdm(make_cases(hyperparameters), "nets and their C code", disable=None):
                header = Path(folder, f"{len(tasks)}.h")
                export_to_c(module, header)
                source = (f'#include "{header.name}"\n'
                          f'int run(const float *x, float *y) {{ net_scores(x, y); return 0; }}')
                with torch.no_grad():
                    scores = getattr(module, "scores", module)(X).numpy()  # a layer's are its outputs
                row.update(parameters=get_nb_model_parameters(module), multiply_adds=int(re.search(
                    r"(\d+) multiply-adds", header.read_text(encoding="utf-8"))[1]))
                for core, optimisation in everywhere if labels is None else everywhere[:1]:
                    tasks.append(({**row, "core": core, "optimisation": optimisation}, scores, labels, pool.submit(
                        measure_calls, source, X.flatten(1).numpy(), scores.shape[1], core, optimisation, folder)))
            rows = [make_row(row, scores, labels, *call.result())
                    for row, scores, labels, call in tqdm(tasks, "programs", disable=None)]
        finally:
            pool.shutdown(cancel_futures=True)
    get_key = itemgetter("kind", "n", "core", "optimisation")
    dense = {get_key(row): row["instructions"] for row in rows if row["layer"] == "standard_nn"}
    return {"hyperparameters": {**hyperparameters, "dataset_loading_functions": hyperparameters["dataset_names"]},
            "environment": {**get_environment("cpu"), **{
                package: importlib.metadata.version(package) for package in ("ziglang", "unicorn")}},
            "rows": [{**row, "ratio": dense.get(get_key(row), math.nan) / row["instructions"]} for row in rows]}


def make_cases(hyperparameters):
    """(row with kind, n and layer; module; samples X (N, ...); labels (N,) or None), one after the other."""
    names, share = hyperparameters["model_names"], hyperparameters["training_set_share"]
    for n, name in product(hyperparameters["nb_neurons_list"], names):
        net = benchmark.make_net(Run("hidden layer", share, name, n, 0), (1,), 1,
                                 {**hyperparameters, "nb_hidden_layers": 2})
        yield {"kind": "hidden layer", "n": n, "layer": name}, net.hidden_layers[0], torch.randn(1, n), None
    for (kind, shape, nb_classes), n, name in product(
            hyperparameters["net_cases"], hyperparameters["net_nb_neurons_list"], names):
        net = benchmark.make_net(Run(kind, share, name, n, 0), tuple(shape), nb_classes, hyperparameters)
        yield {"kind": f"net for {kind}", "n": n, "layer": name}, net, torch.randn(1, *shape), None
    for dataset, load_data in hyperparameters["dataset_loading_functions"].items():
        data = load_shuffled_data(load_data, benchmark.FOLDER / hyperparameters["datasets_folder"],
                                  benchmark.derive_seed(hyperparameters["seed"], dataset))
        X_train, y_train, _, _ = take_share(share, data, standardise_inputs=True)
        raw_X_train, _, X_test, y_test = take_share(share, data, standardise_inputs=False)
        scaler = StandardScaler().fit(raw_X_train)
        tested = np.linspace(0, len(X_test) - 1, min(hyperparameters["nb_test_samples"], len(X_test))).astype(int)
        for n, name in product([hyperparameters["nb_neurons"]], names):
            net, _ = benchmark.train_net(Run(dataset, share, name, n, 0), X_train, y_train, int(data[1].max()) + 1,
                                         hyperparameters)
            with torch.no_grad():  # so that the net takes raw inputs: W ((x - mean) / scale) = (W / scale) (x - mean)
                net.input_layer.weight /= torch.from_numpy(scaler.scale_)
                net.input_layer.bias -= net.input_layer.weight.double() @ torch.from_numpy(scaler.mean_)
            yield ({"kind": f"net trained on {dataset}", "n": n, "layer": name,
                    "test_accuracy": get_loss_and_accuracy(net, X_test, y_test)[1]},
                   net, torch.from_numpy(X_test[tested]), y_test[tested])


def make_row(row, scores, labels, program, calls, outputs):
    """An entry of rows, without the ratio; RuntimeError if the C code does not give what PyTorch gives."""
    difference = (np.abs(outputs - scores).max(1) / np.abs(scores).max(1)).max()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{row['kind']}, n {row['n']}, {row['layer']} on {row['core']}, {row['optimisation']}: "
                           f"a score differs from PyTorch's by {difference:.1e} of the largest one")
    if labels is not None:
        classes = outputs.argmax(1)
        row = {**row, "nb_test_samples": len(classes), "accuracy": float((classes == labels).mean()),
               "nb_ties": int((classes != scores.argmax(1)).sum())}
    return {**row, "difference": float(difference),
            "instructions": sum(call.instructions for call in calls) / len(calls),
            "cycles": sum(call.cycles for call in calls) / len(calls), "code_bytes": program.code_bytes,
            "constant_bytes": program.constant_bytes, "stack_bytes": max(call.stack_bytes for call in calls)}


def format_table(rows):
    """The rows as text, a block per kind, core and optimisation."""
    formats = {"n": "{}", "layer": "{}", "multiply_adds": "{:,}", "instructions": "{:,.0f}", "ratio": "{:.2f}",
               "cycles": "{:,.0f}", "code_bytes": "{:,}", "constant_bytes": "{:,}", "stack_bytes": "{:,}",
               "test_accuracy": "{:.3f}", "accuracy": "{:.3f}"}
    formatters = {name: specification.format for name, specification in formats.items()}
    blocks = []
    for where, block in pd.DataFrame(rows).groupby(["kind", "core", "optimisation"], sort=False):
        columns = [name for name in formats if name in block and block[name].notna().any()]
        blocks.append(f"{', '.join(where)}\n{block[columns].to_string(index=False, formatters=formatters)}")
    return "\n\n".join(blocks)


def plot_microcontroller(result):
    """Instructions and flash of the hidden layers at the first optimisation against n, a column per core."""
    optimisation = result["hyperparameters"]["optimisations"][0]
    frame = pd.DataFrame(result["rows"]).query("kind == 'hidden layer' and optimisation == @optimisation")
    frame = frame.assign(flash=frame["code_bytes"] + frame["constant_bytes"])
    cores, sizes = list(frame["core"].unique()), list(frame["n"].unique())
    figure = make_figure(4.8 * len(cores) + 2, 7.6)
    axes = figure.subplots(2, len(cores), squeeze=False, sharex=True, sharey="row")
    for (core, name), line in frame.groupby(["core", "layer"], sort=False):
        for ax, quantity in zip(axes[:, cores.index(core)], ("instructions", "flash")):
            ax.loglog(line["n"], line[quantity], label=name, **get_family_style(name))
    for ax, (label, core) in zip(axes.flat, product(("Instructions (count)", "Flash (bytes)"), cores)):
        ax.set(title=core, ylabel=label, xlabel="n, inputs and outputs of the layer (count)")
        ax.set_xticks(sizes, sizes)
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.25)
        ax.label_outer()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title=f"hidden layers, {optimisation}",
                  loc="outside right upper", fontsize=8, title_fontsize=8)
    return figure


def main():
    """Measure, save, print and draw; the exit status: 0, 1 if a program in C fails or gives not what PyTorch gives, 2
    for hyperparameters or data that do not work."""
    try:
        result = measure(check_hyperparameters())
    except (ValueError, OSError, RuntimeError) as problem:
        print(f"microcontroller.benchmark: {problem}", file=sys.stderr)
        return 1 if isinstance(problem, RuntimeError) else 2
    path = Path(__file__).parent / result["hyperparameters"]["result_file"]
    keep_file(path)
    save_results(result, path)
    print(format_table(result["rows"]))
    save_figure(plot_microcontroller(result), path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
