"""How fast are the hidden layers? Dense, SSS and rank-1 layers with n inputs and n outputs, in float32.

    python speed_benchmark.py

prints what it measures and leaves `speed_result.p` (plain Python data) and `speed_result.png` beside this
script.

Layers carry the names that their nets have in benchmark.py: `standard_nn` is `nn.Linear`, `ss_d_dim` a
`SemiseparableLayer` with d state dimensions, `rank_1` a `Rank1Layer`. "Forward" is a call without gradients,
as in prediction. "Forward+backward" ends with the gradients of the input and of all parameters, for a given
gradient of the output. Times are medians. A ratio is the time of the dense layer divided by that of the
layer; above 1 the layer is faster.

A multiply-add is one product with a weight and its addition. Counted are those of a sample's forward pass in
its plain form, which uses every weight except the bias once: the matrix of a dense layer, the recursion over
the stages of an SSS layer. What SemiseparableLayer does takes more of them, about 64 + 4d per input above
n = 128 and n below, because few large products take less time than many tiny ones.
"""

import math
import multiprocessing
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from matplotlib.lines import Line2D
from torch import nn
from tqdm import tqdm

from benchmark_results import get_environment, save_results
from checks import check_device, check_positive_integers
from model_training import get_accuracy_score, get_loss, get_nb_model_parameters, predict, train_epoch
from plot_results import ResultFigure, get_family_style
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer
from standardmodels import FeedForwardNet

# ============================================================================================================
# Hyperparameters

# what is measured: every layer for every n and every batch size
nb_neurons_list = [50, 128, 256, 512, 1024, 2048, 4096, 8192]  # n, inputs and outputs of a hidden layer
batch_sizes = [637]  # samples; 637 is an epoch of pendigits at training share 0.1, 6370 at share 1
statespace_dims = [1, 2, 3, 4, 5]  # d, one SSS layer for each
largest_dense_n = 4096  # dense layers beyond are left out, for their time grows like n²; None: no bound
direct_initialisation_from = 1000  # n from which SSS layers are drawn directly; the paper's way takes O(n³)

# how
device = "cpu"  # or "cuda"
nb_threads = None  # of torch on the CPU; None: torch's default, one per core
warm_up = 1  # rounds before those that are measured; a round runs all layers once
repetitions = 7  # measured rounds, at least
min_measuring_time = 0.5  # seconds; short rounds are repeated until these are over
seed = 0  # of weights and samples
result_file = "speed_result.p"  # relative to this script; the figure goes beside it

# further measurements; None or [] leaves one out
growth_from = 1024  # n from which the growth of the time is computed, up to the largest n of a layer
memory_case = [4096, 6370]  # n and batch size whose peak memory is measured, on Linux and on GPUs
memory_layers = ["standard_nn", "ss_1_dim", "ss_5_dim"]  # each in a process of its own
epoch_nb_neurons = 50  # n of the nets whose training epoch is timed, on one thread
initialisation_sizes = [500]  # n for which the paper's initialisation is timed; 2000 takes more than a minute
initialisation_statespace_dim = 5  # d of these layers
# ============================================================================================================

HYPERPARAMETERS = (
    "nb_neurons_list", "batch_sizes", "statespace_dims", "largest_dense_n", "direct_initialisation_from",
    "device", "nb_threads", "warm_up", "repetitions", "min_measuring_time", "seed", "result_file",
    "growth_from", "memory_case", "memory_layers", "epoch_nb_neurons", "initialisation_sizes",
    "initialisation_statespace_dim")
# an epoch of pendigits at training share 0.1
EPOCH_INPUTS, EPOCH_CLASSES, EPOCH_TRAINING_SAMPLES, EPOCH_VALIDATION_SAMPLES = 16, 10, 637, 112
FOLDER = Path(__file__).resolve().parent
SOURCE_FILES = [FOLDER / f"{name}.py" for name in (
    "speed_benchmark", "checks", "standardmodels", "semiseparablemodels", "rank1models", "model_training")]


def check_hyperparameters():
    """{name: plain value} of all hyperparameters.

    :raises ValueError: one that is out of range, or a device that does not exist
    """
    for name in ("nb_neurons_list", "batch_sizes", "statespace_dims", "memory_case", "initialisation_sizes"):
        for value in globals()[name] or []:
            check_positive_integers(**{f"each entry of {name}": value})
    for name in ("repetitions", "initialisation_statespace_dim", "nb_threads", "growth_from",
                 "epoch_nb_neurons"):
        if globals()[name] is not None or name == "repetitions":
            check_positive_integers(**{name: globals()[name]})
    if not nb_neurons_list or not batch_sizes:
        raise ValueError("nb_neurons_list and batch_sizes must not be empty")
    if not (warm_up >= 0 and 0 <= min_measuring_time < math.inf):
        raise ValueError("warm_up and min_measuring_time must be 0 or more, and finite, "
                         f"got {warm_up} and {min_measuring_time}")
    if memory_case and len(memory_case) != 2:
        raise ValueError(f"memory_case must be [n, batch size], got {memory_case}")
    for name in memory_layers or []:
        if not re.fullmatch(r"standard_nn|rank_1|ss_[1-9]\d*_dim", name):
            raise ValueError(f"memory_layers are standard_nn, rank_1, ss_1_dim, ss_2_dim, ..., got {name!r}")
    check_device(device)
    values = ((name, globals()[name]) for name in HYPERPARAMETERS)
    return {name: list(value) if isinstance(value, (tuple, range)) else value for name, value in values}


def on_gpu():
    return device.startswith("cuda")


def get_layer_names():
    return ["standard_nn", *(f"ss_{d}_dim" for d in dict.fromkeys(statespace_dims)), "rank_1"]


def make_layer(name, n):
    """The hidden layer of one of the benchmark's nets, n inputs and n outputs."""
    if name == "standard_nn":
        return nn.Linear(n, n, device=device)
    if name == "rank_1":
        return Rank1Layer(n, device=device)
    statespace_dim = int(name.removeprefix("ss_").removesuffix("_dim"))
    initialisation = "realisation" if n < direct_initialisation_from else "direct"
    return SemiseparableLayer(n, statespace_dim, initialisation=initialisation, device=device)


def make_samples(batch_size, n):
    """An input that requires its gradient and a gradient of the output, both (batch_size, n), normal."""
    u, grad_y = torch.randn(batch_size, n, device=device), torch.randn(batch_size, n, device=device)
    return u.requires_grad_(), grad_y


# ---- time ----

def forward(layer, u, grad_y):
    with torch.no_grad():
        return layer(u)


def forward_backward(layer, u, grad_y):
    return torch.autograd.grad(layer(u), (u, *layer.parameters()), grad_y)


def time_call(call):
    """Milliseconds that call() takes: on a GPU between two events in its queue, else by the wall clock."""
    if on_gpu():
        with torch.cuda.device(device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure_interleaved(calls):
    """({key: median milliseconds}, number of repetitions) of functions without arguments {key: function}.

    Each repetition runs all of them once: what slows the machine down for a while hits all, the ratios hold.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    times = {key: [] for key in calls}
    nb_repetitions, start = 0, time.perf_counter()
    while nb_repetitions < repetitions or time.perf_counter() - start < min_measuring_time:
        for key, call in calls.items():
            times[key].append(time_call(call))
        nb_repetitions += 1
    return {key: statistics.median(values) for key, values in times.items()}, nb_repetitions


def measure_layers(layers, n, batch_size):
    """Rows of the table, one (a dict) per layer in {name: layer}.

    - n, batch_size, layer
    - forward_ms, forward_backward_ms
    - forward_ratio, forward_backward_ratio: NaN without a dense layer
    - multiply_adds: per sample
    - parameters, repetitions
    """
    samples = make_samples(batch_size, n)
    times, nb_repetitions = measure_interleaved({
        (run, name): partial(run, layer, *samples) for run in (forward, forward_backward)
        for name, layer in layers.items()})
    rows = []
    for name, layer in layers.items():
        row = {"n": n, "batch_size": batch_size, "layer": name}
        for run in (forward, forward_backward):
            row[f"{run.__name__}_ms"] = times[run, name]
            row[f"{run.__name__}_ratio"] = times.get((run, "standard_nn"), math.nan) / times[run, name]
        nb_parameters = get_nb_model_parameters(layer)
        row.update(multiply_adds=nb_parameters - layer.bias.numel(), parameters=nb_parameters,
                   repetitions=nb_repetitions)
        rows.append(row)
    return rows


def get_growth(rows):
    """How forward+backward grows from growth_from to a layer's largest n; a dict per layer and batch size."""
    growth = []
    for first in (row for row in rows if row["n"] == growth_from):
        same = [row for row in rows if all(row[key] == first[key] for key in ("layer", "batch_size"))]
        last = max(same, key=lambda row: row["n"])
        if last["n"] > growth_from:
            growth.append({"layer": first["layer"], "batch_size": first["batch_size"], "from_n": growth_from,
                           "to_n": last["n"], "ratio_of_n": last["n"] / growth_from,
                           "ratio_of_times": last["forward_backward_ms"] / first["forward_backward_ms"]})
    return growth


def measure_epochs(n):
    """Milliseconds of a training epoch as in model_training.train_model, on one thread; a dict per net.

    One optimiser step on all training samples, then predictions for them and the validation samples, the loss
    of the former and the accuracy of both.
    """
    nb_training, nb_samples = EPOCH_TRAINING_SAMPLES, EPOCH_TRAINING_SAMPLES + EPOCH_VALIDATION_SAMPLES
    X = torch.randn(nb_samples, EPOCH_INPUTS, device=device)
    y = torch.randint(EPOCH_CLASSES, (nb_samples,), device=device)
    shuffles = torch.Generator().manual_seed(seed)

    def run_epoch(net, optimizer):
        train_epoch(net, X[:nb_training], y[:nb_training], optimizer, nb_training, shuffles)
        y_pred = predict(net, X)
        get_loss(y[:nb_training], y_pred[:nb_training]).item()
        get_accuracy_score(y[:nb_training], y_pred[:nb_training])
        get_accuracy_score(y[nb_training:], y_pred[nb_training:])

    calls = {}
    for name in get_layer_names():
        net = FeedForwardNet(EPOCH_INPUTS, EPOCH_CLASSES, n, [make_layer(name, n)], device=device)
        calls[name] = partial(run_epoch, net, torch.optim.Adam(net.parameters(), fused=True))
    nb_threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times, _ = measure_interleaved(calls)
    finally:
        torch.set_num_threads(nb_threads_before)
    return [{"layer": name, "n": n, "batch_size": nb_training, "milliseconds": times[name]} for name in times]


def measure_initialisation(n, statespace_dim):
    """Seconds that the paper's initialisation of an SSS layer takes, measured once; a dict."""
    call = partial(SemiseparableLayer, n, statespace_dim, initialisation="realisation", device=device)
    return {"layer": f"ss_{statespace_dim}_dim", "n": n, "seconds": time_call(call) / 1e3}


# ---- memory ----

def measure_memory(name, n, batch_size, hyperparameters):
    """Peak memory of one forward+backward, beyond parameters, input and gradient of the output; a dict.

    In bytes and relative to the size of the input; NaN if it cannot be measured.
    """
    try:
        # A fresh process holds no freed memory that the measured run could use unseen.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            extra = executor.submit(get_extra_memory, name, n, batch_size, hyperparameters).result()
    except RuntimeError as problem:  # out of memory: torch says so, or the system has stopped the process
        print(f"speed_benchmark.py: no peak memory of {name}: {problem}", file=sys.stderr)
        extra = math.nan
    return {"layer": name, "n": n, "batch_size": batch_size, "extra_bytes": extra,
            "relative_to_input": extra / (n * batch_size * torch.float32.itemsize)}


def get_extra_memory(name, n, batch_size, hyperparameters):
    """Bytes, see measure_memory; to be called once in a fresh process."""
    globals().update(hyperparameters)
    if nb_threads is not None:
        torch.set_num_threads(nb_threads)
    layer = make_layer(name, n)
    forward_backward(layer, *make_samples(2, n))  # loads libraries and starts threads
    samples = make_samples(batch_size, n)  # large and last, so that the peak so far is what is held now
    before = get_peak_memory()
    forward_backward(layer, *samples)
    return get_peak_memory() - before


def get_peak_memory():
    """Most memory that this process has held so far, in bytes; NaN where the system does not tell."""
    if on_gpu():
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its ru_maxrss begins with the memory of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else math.nan


# ---- results ----

def measure():
    """All measurements: the dict that `result_file` holds.

    - hyperparameters, environment
    - rows: see measure_layers
    - growth, epochs, memory, initialisation: lists of what get_growth, measure_epochs, ... return, empty if left out
    """
    hyperparameters = check_hyperparameters()
    if nb_threads is not None:
        torch.set_num_threads(nb_threads)
    torch.manual_seed(seed)
    environment = {**get_environment(device, SOURCE_FILES), "nb_threads": torch.get_num_threads(),
                   "gpu": torch.cuda.get_device_name(device) if on_gpu() else None}
    rows = []
    for n in tqdm(nb_neurons_list, "layers", disable=None):
        names = get_layer_names()
        if largest_dense_n is not None and n > largest_dense_n:
            names.remove("standard_nn")
        layers = {name: make_layer(name, n) for name in names}
        for batch_size in batch_sizes:
            rows += measure_layers(layers, n, batch_size)
    memory_names = (memory_layers or []) if memory_case else []
    return {
        "hyperparameters": hyperparameters, "environment": environment, "rows": rows,
        "growth": get_growth(rows),
        "epochs": measure_epochs(epoch_nb_neurons) if epoch_nb_neurons else [],
        "memory": [measure_memory(name, *memory_case, hyperparameters)
                   for name in tqdm(memory_names, "memory", disable=None)],
        "initialisation": [measure_initialisation(n, initialisation_statespace_dim)
                           for n in tqdm(initialisation_sizes or [], "initialisation", disable=None)],
    }


FURTHER_MEASUREMENTS = {  # key of the result -> (heading, line for each of its dicts)
    "growth": ("growth of the time of forward+backward",
               "batch {batch_size}, n {from_n} to {to_n}, {ratio_of_n:.1f}-fold: {ratio_of_times:.1f}-fold"),
    "epochs": ("training epoch of a net, one thread", "n {n}, batch {batch_size}: {milliseconds:.2f} ms"),
    "memory": ("peak memory of forward+backward beyond parameters, input and gradient of the output",
               "n {n}, batch {batch_size}: {extra_bytes:,} bytes, {relative_to_input:.2f} times the input"),
    "initialisation": ("the paper's initialisation", "n {n}: {seconds:.2f} s"),
}


def format_table(rows):
    """The rows of measure_layers as text of at most 100 columns, with a gap before each n and batch size."""
    lines = [f"{'n':>6}{'batch':>7}  {'layer':<12}{'forward':>11}{'ratio':>8}{'forward+':>13}{'ratio':>8}"
             f"{'multiply-adds':>15}{'parameters':>13}",
             f"{'ms':>38}{'backward ms':>21}{'per sample':>23}"]
    case = None
    for row in rows:
        if case != (row["n"], row["batch_size"]):
            lines.append("")
        case = row["n"], row["batch_size"]
        ratios = [f"{row[f'{run}_ratio']:.2f}".replace("nan", "-") for run in ("forward", "forward_backward")]
        lines.append(f"{row['n']:>6}{row['batch_size']:>7}  {row['layer']:<12}{row['forward_ms']:>11.3f}"
                     f"{ratios[0]:>8}{row['forward_backward_ms']:>13.3f}{ratios[1]:>8}"
                     f"{row['multiply_adds']:>15,}{row['parameters']:>13,}")
    return "\n".join(lines)


def format_further_measurements(result):
    """Growth, epochs, memory and initialisation as text, those that were not left out."""
    blocks = [[heading, *(f"  {row['layer']:<12}{line.format(**row)}" for row in result[key])]
              for key, (heading, line) in FURTHER_MEASUREMENTS.items() if result[key]]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def plot_speed(result):
    """Time against n, a panel per batch size, a line per layer; forward is thin and dashed."""
    rows = sorted(result["rows"], key=lambda row: row["n"])
    sizes = list(dict.fromkeys(row["n"] for row in rows))
    batch_sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    figure = ResultFigure(figsize=(4.8 * len(batch_sizes) + 2.2, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(batch_sizes), squeeze=False, sharey=True)[0]
    for ax, batch_size in zip(axes, batch_sizes):
        for name in dict.fromkeys(row["layer"] for row in result["rows"]):
            style = get_family_style(name)
            points = [row for row in rows if (row["layer"], row["batch_size"]) == (name, batch_size)]
            ns = [row["n"] for row in points]
            ax.loglog(ns, [row["forward_ms"] for row in points], color=style["color"], linestyle="--",
                      linewidth=0.8)
            ax.loglog(ns, [row["forward_backward_ms"] for row in points], **style, markersize=5.5,
                      markeredgecolor="white", markeredgewidth=0.5, linewidth=1.4, label=name)
        ax.set_title(f"hidden layers, batch of {batch_size} samples", fontsize=10)
        ax.set_xlabel("n, inputs and outputs of the layer (count)")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("Time (ms)")
    handles = [*axes[0].get_legend_handles_labels()[0],
               Line2D([], [], color="#555555", label="forward+backward"),
               Line2D([], [], color="#555555", linestyle="--", linewidth=0.8, label="forward")]
    environment = result["environment"]
    where = environment["gpu"] or f"{environment['device']}, {environment['nb_threads']} threads"
    figure.legend(handles=handles, title=where, loc="outside right upper", fontsize=8, title_fontsize=8)
    return figure


def main():
    """Measure, print, save and draw; the exit status: 0, or 2 if a hyperparameter is out of range."""
    try:
        result = measure()
    except ValueError as problem:
        print(f"speed_benchmark.py: {problem}", file=sys.stderr)
        return 2
    print(format_table(result["rows"]), format_further_measurements(result), sep="\n\n")
    path = FOLDER / result_file
    save_results(result, path)
    plot_speed(result).savefig(path.with_suffix(".png"), dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
