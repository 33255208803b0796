"""How fast are the hidden layers? Dense, SSS and rank-1 layers, square and not, and training epochs of nets; float32.

    python speed_benchmark.py

leaves `speed_result.p` (plain Python data) and `speed_result.png` beside this script and prints tables; an older file
is kept under its time. Layers carry the names that their nets have in benchmark.py. A ratio is the time of the dense
layer divided by that of the layer.

- layers: "forward" is a call without gradients, as in prediction; "forward+backward" ends with the gradients of the
  input and of all parameters, for a given gradient of the output
- epochs: of the benchmark's nets in train_model with all samples in a batch, the difference between trainings of
  E + 1 epochs and of one, divided by E; with made-up samples, as many and as large as those of the data sets
- memory: the most that tensors take during forward+backward, beyond parameters, input and gradient of the output
"""

import math
import os
import re
import sys
from itertools import accumulate, product
from pathlib import Path
from timeit import timeit

# How long torch's threads spin while they wait for each other, read when torch is imported. By default it is 30 times
# this, and another program, which then holds up one of them at every operation, makes a call of 1 ms take 100.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences what torch's profiler says of itself
import numpy as np
import pandas as pd
import torch
from torch.autograd.profiler import profile
from torch.utils.benchmark import Measurement, TaskSpec, Timer, set_torch_threads
from tqdm import tqdm

from benchmark import get_hyperparameters, make_net
from benchmark_results import Run, get_environment, keep_file, save_results
from checks import check_integers, check_script_hyperparameters
from model_training import train_model
from monarchmodels import MonarchLayer
from plot_results import get_family_style, make_figure, save_figure
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer

# ======================================================================================================================
# Hyperparameters

# layers
layer_names = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]  # see make_layer
nb_neurons_list = [50, 128, 256, 512, 1024, 2048, 4096, 8192]  # n, inputs and outputs of a hidden layer
rectangular_sizes = [(784, 256), (256, 784)]  # (inputs, outputs) of further layers
batch_sizes = [637]  # samples; 637 is an epoch of pendigits at training share 0.1, 6370 at share 1
largest_dense_n = 4096  # dense layers beyond are left out, for their time grows like n²

# how
device = "cpu"  # or "cuda"
nb_threads = None  # of torch on the CPU; None: torch's default, one per core
rounds = 5  # in each, all layers of a size, or nets of a case, are measured in turn
min_measuring_time = 0.05  # seconds per layer and round
seed = 0  # of weights and samples
result_file = "speed_result.p"  # relative to this script; the figure goes beside it

# training epochs, on one thread
epoch_cases = [  # (name, samples, shape of one, classes, E), the sizes of the official training data; [] for none
    ("pendigits, share 0.1", 749, (16,), 10, 300),
    ("pendigits", 7494, (16,), 10, 20),
    ("hand_posture", 62476, (36,), 5, 4),
    ("mnist", 60000, (1, 28, 28), 10, 1),
    ("cifar10", 50000, (3, 32, 32), 10, 1),
]
epoch_layers = ["standard_nn", "ss_5_dim"]  # hidden layer of the nets
epoch_nb_neurons = 50  # its n

# further measurements; [] leaves one out
memory_layers = ["standard_nn", "ss_1_dim", "ss_5_dim"]  # whose peak memory is measured
memory_case = [4096, 6370]  # n and batch size of these layers
initialisation_sizes = [500]  # n for which the paper's initialisation (d = 5) is timed; 2000 takes minutes
# ======================================================================================================================

HYPERPARAMETERS = [name for name, value in globals().items() if name[0].islower() and not hasattr(value, "__name__")]
RUNS = {
    "forward": "with torch.no_grad(): layer(u)",
    "forward+backward": "torch.autograd.grad(layer(u), (u, *layer.parameters()), grad_y)",
}


def make_layer(name, n, nb_outputs):
    """The hidden layer of the nets of that name in benchmark.py, (batch, n) -> (batch, nb_outputs)."""
    if name == "standard_nn":
        return torch.nn.Linear(n, nb_outputs, device=device)
    if match := re.fullmatch(r"rank_([1-9]\d*)", name):
        return Rank1Layer(n, nb_outputs, rank=int(match[1]), device=device)
    if match := re.fullmatch(r"monarch_([1-9]\d*)", name):
        return MonarchLayer(n, int(match[1]), output_size=nb_outputs, device=device)
    if match := re.fullmatch(r"ss_([1-9]\d*)_dim", name):
        # Drawn directly, which takes no time; that of a product does not depend on how the layer was drawn.
        return SemiseparableLayer(n, int(match[1]), output_size=nb_outputs, initialisation="direct", device=device)
    raise ValueError(f"layers are named standard_nn, ss_1_dim, ..., rank_1, ... and monarch_2, ..., got {name!r}")


def make_timer(run, name, layer, batch_size, n, nb_outputs):
    """Timer of a layer on normal samples u (batch_size, n), with a gradient grad_y (batch_size, nb_outputs)."""
    u = torch.randn(batch_size, n, device=device, requires_grad=True)
    grad_y = torch.randn(batch_size, nb_outputs, device=device)
    return Timer(RUNS[run], globals={"layer": layer, "u": u, "grad_y": grad_y}, sub_label=name,
                 num_threads=torch.get_num_threads())


def make_rows(measurements, **case):
    """A dict per layer: the case, layer, times_ms, their median and interquartile range, ratio (NaN without a dense
    layer), and is_unsteady: whether the range is more than a tenth of the median."""
    dense = [measurement.median for measurement in measurements if measurement.sub_label == "standard_nn"]
    return [{**case, "layer": measurement.sub_label, "ms": 1e3 * measurement.median, "iqr_ms": 1e3 * measurement.iqr,
             "ratio": dense[0] / measurement.median if dense else math.nan, "is_unsteady": measurement.has_warnings,
             "times_ms": [1e3 * seconds for seconds in measurement.times]} for measurement in measurements]


def measure_layers(n, nb_outputs, batch_size):
    layers = {name: make_layer(name, n, nb_outputs) for name in layer_names
              if name != "standard_nn" or max(n, nb_outputs) <= largest_dense_n}
    rows = []
    for run in RUNS:
        timers = [make_timer(run, name, layer, batch_size, n, nb_outputs) for name, layer in layers.items()]
        # The layers take turns: what slows the machine down for a while hits all, and the ratios hold.
        measurements = Measurement.merge(timer.blocked_autorange(min_run_time=min_measuring_time)
                                         for _ in range(rounds) for timer in timers)
        rows += make_rows(measurements, run=run, batch_size=batch_size, n=n, nb_outputs=nb_outputs)
    return rows


def measure_epochs(case, nb_samples, shape, nb_classes, nb_epochs):
    generator = np.random.default_rng(seed)
    X, y = generator.random((nb_samples, *shape), dtype=np.float32), generator.integers(nb_classes, size=nb_samples)

    def time_training(name, nb_epochs):
        net = make_net(Run(case, 1, name, epoch_nb_neurons, 0), shape, nb_classes, get_hyperparameters()).to(device)
        return timeit(lambda: train_model(net, X, y, batch_size=nb_samples, min_number_training_epochs=nb_epochs,
                                          max_number_training_epochs=nb_epochs, seed=seed), number=1)

    with set_torch_threads(1):
        time_training(epoch_layers[0], 1)  # loads libraries
        measurements = Measurement.merge(
            Measurement(1, [(time_training(name, 1 + nb_epochs) - time_training(name, 1)) / nb_epochs],
                        TaskSpec("train_model", "", sub_label=name)) for name in epoch_layers * rounds)
    return make_rows(measurements, case=case, nb_samples=nb_samples, n=epoch_nb_neurons)


def measure_memory(name, n, batch_size):
    timer = make_timer("forward+backward", name, make_layer(name, n, n), batch_size, n, n)
    with profile(profile_memory=True) as profiler:
        timer.timeit(1)
    # An event for each tensor that gets memory, or with a negative number gives it back.
    changes = [event.nbytes() for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return [{"n": n, "batch_size": batch_size, "layer": name, "extra_megabytes": max(accumulate(changes)) / 1e6}]


def measure_initialisation(n):
    timer = Timer("SemiseparableLayer(n, 5)", globals={"SemiseparableLayer": SemiseparableLayer, "n": n},
                  sub_label="ss_5_dim", num_threads=torch.get_num_threads())
    return make_rows([timer.blocked_autorange()], n=n)


def print_tables(result):
    """Print a table of each number, with a column per layer; ! marks times that are unsteady."""
    for part, value in product(("layers", "epochs", "memory", "initialisation"), ("ms", "ratio", "extra_megabytes")):
        frame = pd.DataFrame(result[part])
        if "ms" in frame:
            frame["ms"] = frame["ms"].map("{:,.3f}".format) + frame["is_unsteady"].map({True: "!", False: " "})
        if value in frame and frame[value].notna().any():
            index = [name for name in ("run", "case", "batch_size", "n", "nb_outputs") if name in frame]
            table = frame.pivot_table(value, index, "layer", aggfunc="first", sort=False)
            print(f"\n{part}, {value}:\n{table.to_string(float_format='{:,.3f}'.format, na_rep='-')}")


def plot_speed(result):
    """Time of square layers against n, a panel per batch size, a line per layer; forward is dashed."""
    frame = pd.DataFrame(result["layers"]).query("n == nb_outputs").sort_values("n", kind="stable")
    figure = make_figure(4.8 * len(batch_sizes) + 2.2, 4.8)
    axes = figure.subplots(1, len(batch_sizes), squeeze=False, sharey=True)[0]
    for ax, (batch_size, panel) in zip(axes, frame.groupby("batch_size", sort=False)):
        for (name, run), points in panel.groupby(["layer", "run"], sort=False):
            style = {"label": name} if run == "forward+backward" else {"linestyle": "--", "linewidth": 0.8}
            ax.loglog(points["n"], points["ms"], **get_family_style(name), **style)
        ax.set(title=f"forward+backward, batch of {batch_size} samples, {device}", xticks=nb_neurons_list,
               xticklabels=nb_neurons_list, xlabel="n, inputs and outputs of the layer (count)")
        ax.minorticks_off()
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("Time (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), title="dashed: forward", loc="outside right upper")
    return figure


def main():
    """Measure, save, draw and print; the exit status: 0, or 2 for a hyperparameter that cannot work."""
    try:
        hyperparameters = dict(check_script_hyperparameters({name: globals()[name] for name in HYPERPARAMETERS}))
        check_integers(rounds=rounds)
        for name in layer_names + epoch_layers + memory_layers:
            make_layer(name, epoch_nb_neurons, epoch_nb_neurons)  # refuses unknown names
    except ValueError as problem:
        print(f"speed_benchmark.py: {problem}", file=sys.stderr)
        return 2
    torch.manual_seed(seed)
    torch.set_num_threads(nb_threads or torch.get_num_threads())
    if device != "cpu":
        torch.cuda.set_device(torch.device(device).index or 0)  # the one that a Timer waits for
    path = Path(__file__).resolve().parent / hyperparameters["result_file"]
    keep_file(path)
    result = {"hyperparameters": hyperparameters,
              "environment": {**get_environment(device), "nb_threads": torch.get_num_threads(),
                              "gpu": torch.cuda.get_device_name() if device != "cpu" else None}}
    save_results(result, path)  # if that fails, it should before minutes of measuring
    sizes = [*((n, n) for n in nb_neurons_list), *rectangular_sizes]
    for part, measure, cases in (
            ("layers", measure_layers, [(*size, batch_size) for size in sizes for batch_size in batch_sizes]),
            ("epochs", measure_epochs, epoch_cases),
            ("memory", measure_memory, [(name, *memory_case) for name in memory_layers]),
            ("initialisation", measure_initialisation, [(n,) for n in initialisation_sizes])):
        result[part] = [row for case in tqdm(cases, part, disable=None) for row in measure(*case)]
        save_results(result, path)  # after each part, so that one which fails takes no other with it
    save_figure(plot_speed(result), path.with_suffix(".png"))
    print_tables(result)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
