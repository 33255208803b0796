"""How fast are the hidden layers? Dense, SSS and rank-1 layers, square and not, and training epochs of nets; float32.

    python speed_benchmark.py

prints what it measures and leaves `speed_result.p` (plain Python data) and `speed_result.png` beside this script; an
older file is kept under its time. Layers carry the names that their nets have in benchmark.py.

"Forward" is a call without gradients, as in prediction. "Forward+backward" ends with the gradients of the input and of
all parameters, for a given gradient of the output. A ratio is the time of the dense layer divided by that of the layer.
Times are medians, beside them the quartiles; the file has all.

A training epoch is one of model_training.train_model with all samples in a batch: the difference between trainings of
E + 1 epochs and of one, divided by E. The samples are made-up numbers, as many and as large as those of the data sets.

A multiply-add is one product with a weight and its addition, in a sample's forward pass in its plain form: a product
with the dense matrix, the recursion of an SSS layer. What SemiseparableLayer does takes more, but larger products.
"""

import copy
import math
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise, product
from pathlib import Path

# How long torch's threads spin while they wait for each other, read when torch is imported. By default it is 30 times
# this, and another program, which then holds up one of them at every operation, makes a call of 1 ms take 100.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
import numpy as np
import torch
from tqdm import tqdm

from benchmark_results import finish_script, get_environment
from checks import check_finite_numbers, check_integers, check_positive_integers, check_script_hyperparameters
from console import prints_without_failing
from digests import digest_code
from model_training import get_nb_model_parameters, train_model
from plot_results import ResultFigure, get_family_style
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer
from standardmodels import ConvNet, FeedForwardNet

_other_names = {*globals(), "_other_names"} - {*globals().get("HYPERPARAMETERS", ())}  # which a reload finds here
# ======================================================================================================================
# Hyperparameters

# what is measured: every layer for every n and every batch size
nb_neurons_list = [50, 128, 256, 512, 1024, 2048, 4096, 8192]  # n, inputs and outputs of a hidden layer
rectangular_sizes = [(784, 256), (256, 784)]  # (inputs, outputs) of further layers
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

# training epochs, on one thread, each case and layer in a process of its own; None or [] leaves them out
epoch_cases = [  # (name, samples, shape of one, classes, E), the sizes of the official training data
    ("pendigits, share 0.1", 749, (16,), 10, 300),
    ("pendigits", 7494, (16,), 10, 20),
    ("hand_posture", 62476, (36,), 5, 4),
    ("mnist", 60000, (1, 28, 28), 10, 1),
    ("cifar10", 50000, (3, 32, 32), 10, 1),
]
epoch_layers = ["standard_nn", "ss_5_dim"]  # hidden layer of the nets
epoch_nb_neurons = 50  # its n
epoch_repetitions = 3

# further measurements; None or [] leaves one out
memory_case = [4096, 6370]  # n and batch size whose peak memory is measured, on Linux and on GPUs
memory_layers = ["standard_nn", "ss_1_dim", "ss_5_dim"]  # each in a process of its own
initialisation_sizes = [500]  # n for which the paper's initialisation is timed; 2000 takes more than a minute
initialisation_statespace_dim = 5  # d of these layers
# ======================================================================================================================

HYPERPARAMETERS = [name for name in globals() if name not in _other_names]  # those of the block
LISTS = ("nb_neurons_list", "rectangular_sizes", "batch_sizes", "statespace_dims", "epoch_cases", "epoch_layers",
         "memory_case", "memory_layers", "initialisation_sizes")
BUSY = "* The quartiles differ by more than a factor of 1.5, or other programs took 0.2 cores: this machine is busy."
FOLDER = Path(__file__).resolve().parent


def check_hyperparameters():
    """{name: plain value}, to which the variables above are set; ValueError for one that cannot work."""
    hyperparameters = check_script_hyperparameters({name: globals()[name] for name in HYPERPARAMETERS}, FOLDER)
    for name in LISTS:
        hyperparameters[name] = hyperparameters[name] or []
        if not isinstance(hyperparameters[name], list):
            raise ValueError(f"{name} must be a list, got {hyperparameters[name]!r}")
    globals().update(hyperparameters)
    for name in ("nb_neurons_list", "batch_sizes", "statespace_dims", "memory_case", "initialisation_sizes"):
        for value in hyperparameters[name]:
            check_positive_integers(**{f"each entry of {name}": value})
    for name in ("largest_dense_n", "nb_threads", "direct_initialisation_from", "repetitions", "epoch_nb_neurons",
                 "epoch_repetitions", "initialisation_statespace_dim"):
        if hyperparameters[name] is not None or name not in ("largest_dense_n", "nb_threads"):
            check_positive_integers(**{name: hyperparameters[name]})
    check_integers(warm_up=warm_up)
    check_finite_numbers(min_measuring_time=min_measuring_time)
    if not (min(warm_up, min_measuring_time, seed) >= 0 and seed < 2 ** 32 and nb_neurons_list and batch_sizes
            and len(memory_case) in (0, 2)):
        raise ValueError("warm_up, min_measuring_time and seed must be 0 or more, seed below 2 ** 32, nb_neurons_list "
                         "and batch_sizes not empty, memory_case [n, batch size]")
    for name in memory_layers + epoch_layers:
        if not re.fullmatch(r"standard_nn|rank_1|ss_[1-9]\d*_dim", str(name)):
            raise ValueError(f"memory_layers and epoch_layers are standard_nn, rank_1, ss_1_dim, ..., got {name!r}")
    try:
        for n, nb_outputs in rectangular_sizes:
            check_positive_integers(inputs=n, outputs=nb_outputs)
        for _, nb_samples, shape, nb_classes, nb_epochs in epoch_cases:
            check_positive_integers(**{"samples beyond one": nb_samples - 1, "E": nb_epochs})
            make_net("standard_nn", shape, nb_classes)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"rectangular_sizes or epoch_cases: {problem}") from problem
    return dict(hyperparameters)


def make_layer(name, n, nb_outputs=None):
    """The hidden layer of one of the benchmark's nets, with n inputs and, if nb_outputs is None, n outputs."""
    nb_outputs = nb_outputs or n
    if name == "standard_nn":
        return torch.nn.Linear(n, nb_outputs, device=device)
    if name == "rank_1":
        return Rank1Layer(n, nb_outputs, device=device)
    statespace_dim = int(name.removeprefix("ss_").removesuffix("_dim"))
    initialisation = "realisation" if max(n, nb_outputs) < direct_initialisation_from else "direct"
    return SemiseparableLayer(n, statespace_dim, output_size=nb_outputs, initialisation=initialisation, device=device)


def make_net(name, shape, nb_classes):
    """The benchmark's net for vectors or images of that shape, with the named hidden layer."""
    def make_vector_net(nb_features):
        return FeedForwardNet(nb_features, nb_classes, epoch_nb_neurons, lambda: make_layer(name, epoch_nb_neurons),
                              device=device)
    return ConvNet(shape, make_vector_net, device=device) if len(shape) > 1 else make_vector_net(*shape)


def make_samples(batch_size, n, nb_outputs):
    """An input (batch_size, n) that requires its gradient and a gradient of the output, normal."""
    u, grad_y = torch.randn(batch_size, n, device=device), torch.randn(batch_size, nb_outputs, device=device)
    return u.requires_grad_(), grad_y


def forward(layer, u, grad_y):
    with torch.no_grad():
        return layer(u)


def forward_backward(layer, u, grad_y):
    return torch.autograd.grad(layer(u), (u, *layer.parameters()), grad_y)


def time_call(call):
    """Milliseconds that call() takes, on a GPU until that has finished."""
    start = time.perf_counter()
    call()
    if "cuda" in device:
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def measure_interleaved(calls):
    """{key: [milliseconds, ...]} of functions without arguments {key: function}. Each repetition runs all of them once:
    what slows the machine down for a while hits all, the ratios hold."""
    for _ in range(warm_up):
        for call in calls.values():
            call()
    times = {key: [] for key in calls}
    nb_repetitions, start = 0, time.perf_counter()
    while nb_repetitions < repetitions or time.perf_counter() - start < min_measuring_time:
        for key, call in calls.items():
            times[key].append(time_call(call))
        nb_repetitions += 1
    return times


def get_foreign_time():
    """Seconds that the cores have spent on other programs so far, NaN where the system does not tell."""
    if not Path("/proc/stat").exists():
        return math.nan
    user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def summarise(name, times):
    """Entries of a row: the median of the times, the quartiles [lower, upper], and all of them, in milliseconds."""
    lower, median, upper = np.percentile(times, [25, 50, 75]).tolist()
    return {f"{name}_ms": median, f"{name}_quartiles_ms": [lower, upper], f"{name}_times_ms": times}


def measure_layers(layers, n, nb_outputs, batch_size):
    """Rows of the table, one (a dict) per layer in {name: layer}.

    - n, nb_outputs, batch_size, layer, parameters; multiply_adds: per sample
    - foreign_load: number of cores that other programs kept busy meanwhile; NaN where the system does not tell
    - forward_ms, forward_quartiles_ms, forward_times_ms, forward_backward_ms, ...: see summarise
    - forward_ratio, forward_backward_ratio: NaN without a dense layer
    """
    samples, rows = make_samples(batch_size, n, nb_outputs), []
    start, foreign_time = time.perf_counter(), get_foreign_time()
    times = measure_interleaved({(run, name): partial(run, layer, *samples) for run in (forward, forward_backward)
                                 for name, layer in layers.items()})
    foreign_load = (get_foreign_time() - foreign_time) / (time.perf_counter() - start)
    for name, layer in layers.items():
        nb_parameters = get_nb_model_parameters(layer)
        row = {"n": n, "nb_outputs": nb_outputs, "batch_size": batch_size, "layer": name, "parameters": nb_parameters,
               "multiply_adds": nb_parameters - nb_outputs, "foreign_load": foreign_load}
        for run in (forward, forward_backward):
            row.update(summarise(run.__name__, times[run, name]))
            dense_ms = np.median(times.get((run, "standard_nn"), math.nan)).item()
            row[f"{run.__name__}_ratio"] = dense_ms / row[f"{run.__name__}_ms"]
        rows.append(row)
    return rows


def measure_in_own_process(prepare, *arguments):
    """(result, peak memory in bytes beyond what is held before) of the function that prepare(*arguments) returns."""
    hyperparameters = {name: globals()[name] for name in HYPERPARAMETERS}
    try:
        # A fresh process holds no freed memory that the measured run could use unseen.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
            return executor.submit(run_prepared, hyperparameters, prepare, *arguments).result()
    except (RuntimeError, MemoryError) as problem:  # torch and NumPy say so, or the system has stopped the process
        print(f"speed_benchmark.py: no measurement of {arguments}: {problem}", file=sys.stderr)
        return math.nan, math.nan


def run_prepared(hyperparameters, prepare, *arguments):
    set_up(hyperparameters)
    run, before = prepare(*arguments), get_peak_memory()
    return run(), get_peak_memory() - before


def prepare_forward_backward(name, n, batch_size):
    layer = make_layer(name, n)
    forward_backward(layer, *make_samples(2, n, n))  # loads libraries and starts threads
    samples = make_samples(batch_size, n, n)  # large and last, so that the peak so far is what is held now
    return lambda: time_call(partial(forward_backward, layer, *samples))


def prepare_epochs(name, nb_samples, shape, nb_classes, nb_epochs):
    torch.set_num_threads(1)
    net, generator = make_net(name, shape, nb_classes), np.random.default_rng(seed)
    y = generator.integers(nb_classes, size=nb_samples)

    def time_training(X, nb_epochs):
        return time_call(partial(train_model, copy.deepcopy(net), X, y[:len(X)], batch_size=len(X), seed=seed,
                                 min_number_training_epochs=nb_epochs, max_number_training_epochs=nb_epochs))

    time_training(generator.random((2, *shape), dtype=np.float32), 1)  # loads libraries
    X = generator.random((nb_samples, *shape), dtype=np.float32)  # large and last, as above
    counts = ([1, nb_epochs + 1] * (epoch_repetitions + 1))[:epoch_repetitions + 2]
    return lambda: [(later_ms - ms) / (later - count) for (count, ms), (later, later_ms) in pairwise(
        (count, time_training(X, count)) for count in counts)][1:]  # the first training also has to get its memory


def get_peak_memory():
    """Most memory that this process has held so far, in bytes; NaN where the system does not tell."""
    if "cuda" in device:
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its ru_maxrss begins with the memory of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else math.nan


def set_up(hyperparameters):
    globals().update(hyperparameters)
    if nb_threads is not None:
        torch.set_num_threads(nb_threads)
    torch.manual_seed(seed)


def measure(hyperparameters):
    """All measurements: the dict that `result_file` holds.

    - hyperparameters, environment; rows: see measure_layers
    - epochs, memory, initialisation: a list of dicts each, empty if left out; NaN where memory ran out or is unknown
    """
    set_up(hyperparameters)
    environment = {**get_environment(device), "source_digest": digest_code(Path(__file__)),
                   "nb_threads": torch.get_num_threads(),
                   "gpu": torch.cuda.get_device_name(device) if "cuda" in device else None}
    rows = []
    for n, nb_outputs in tqdm([*((n, n) for n in nb_neurons_list), *rectangular_sizes], "layers", disable=None):
        has_dense = largest_dense_n is None or max(n, nb_outputs) <= largest_dense_n
        names = ["standard_nn"] * has_dense + [f"ss_{d}_dim" for d in dict.fromkeys(statespace_dims)] + ["rank_1"]
        layers = {name: make_layer(name, n, nb_outputs) for name in names}
        for batch_size in batch_sizes:
            rows += measure_layers(layers, n, nb_outputs, batch_size)
    further = {"epochs": [], "memory": [], "initialisation": []}
    for (case, *sizes), name in tqdm(list(product(epoch_cases, epoch_layers)), "epochs", disable=None):
        times, extra = measure_in_own_process(prepare_epochs, name, *sizes)
        further["epochs"].append({"case": case, "nb_samples": sizes[0], "layer": name, "n": epoch_nb_neurons,
                                  "extra_bytes": extra, **summarise("epoch", times)})
    for name in tqdm(memory_layers if memory_case else [], "memory", disable=None):
        n, batch_size = memory_case
        _, extra = measure_in_own_process(prepare_forward_backward, name, n, batch_size)
        further["memory"].append({"layer": name, "n": n, "batch_size": batch_size, "extra_bytes": extra,
                                  "relative_to_input": extra / (4 * n * batch_size)})  # float32
    for n in tqdm(initialisation_sizes, "initialisation", disable=None):
        d = initialisation_statespace_dim
        milliseconds = time_call(partial(SemiseparableLayer, n, d, initialisation="realisation", device=device))
        further["initialisation"].append({"layer": f"ss_{d}_dim", "n": n, "seconds": milliseconds / 1e3})
    return {"hyperparameters": hyperparameters, "environment": environment, "rows": rows, **further}


FURTHER_MEASUREMENTS = {  # key of the result -> (heading, line for each of its dicts)
    "epochs": ("training epoch of a net on made-up samples, one thread; peak memory beyond the samples",
               "{case}, n {n}: {epoch_ms:.1f} ms ({epoch_quartiles_ms[0]:.1f}-{epoch_quartiles_ms[1]:.1f}), "
               "{extra_bytes:,} bytes"),
    "memory": ("peak memory of forward+backward beyond parameters, input and gradient of the output",
               "n {n}, batch {batch_size}: {extra_bytes:,} bytes, {relative_to_input:.2f} times the input"),
    "initialisation": ("the paper's initialisation", "n {n}: {seconds:.2f} s"),
}


def is_busy(row):
    """Whether other programs have disturbed a time; a steady load moves no quartiles apart."""
    quartiles = (row[key] for key in row if key.endswith("_quartiles_ms"))
    return row.get("foreign_load", 0) > 0.2 or any(upper > 1.5 * lower for lower, upper in quartiles)


def format_number(value):
    """Three digits, or all before the point if there are more, and three decimals at most; - for NaN."""
    nb_decimals = sum(abs(value) < limit for limit in (0.9995, 9.995, 99.95))
    return "-" if math.isnan(value) else f"{value:.{nb_decimals}f}"


def format_table(rows):
    """The rows of measure_layers as text of at most 100 columns, with a gap before each size and batch size."""
    lines = [f"{'n':>10}{'batch':>7}  {'layer':<11}{'forward':>8}{'quartiles':>13}{'ratio':>7}{'forward+':>9}"
             f"{'quartiles':>12}{'ratio':>7}{'multiply-adds':>14}",
             f"{'ms':>38}{'backward ms':>28}{'per sample':>34}"]
    case = None
    for row in rows:
        if case != (row["n"], row["nb_outputs"], row["batch_size"]):
            lines.append("")
        case = row["n"], row["nb_outputs"], row["batch_size"]
        size = f"{row['n']}x{row['nb_outputs']}" if row["n"] != row["nb_outputs"] else row["n"]
        line = f"{'*' * is_busy(row):<1}{size:>9}{row['batch_size']:>7}  {row['layer']:<11}"
        for run in ("forward", "forward_backward"):
            quartiles = "-".join(map(format_number, row[f"{run}_quartiles_ms"]))
            line += f"{format_number(row[f'{run}_ms']):>8}{quartiles:>13}{format_number(row[f'{run}_ratio']):>7}"
        lines.append(f"{line}{row['multiply_adds']:>14,}")
    return "\n".join(lines + ["", BUSY] * any(map(is_busy, rows)))


def format_further_measurements(result):
    """Epochs, memory and initialisation as text, those that were not left out."""
    blocks = []
    for key, (heading, line) in FURTHER_MEASUREMENTS.items():
        rows = [f"{'*' * is_busy(row):<2}{row['layer']:<12}{line.format(**row)}" for row in result[key]]
        blocks += ["\n".join([heading, *rows, *[BUSY] * any(map(is_busy, result[key]))])] if rows else []
    return "\n\n".join(blocks)


def plot_speed(result):
    """Time of square layers against n, a panel per batch size, a line per layer; forward is thin and dashed."""
    rows = sorted((row for row in result["rows"] if row["n"] == row["nb_outputs"]), key=lambda row: row["n"])
    sizes = list(dict.fromkeys(row["n"] for row in rows))
    batch_sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    figure = ResultFigure(figsize=(4.8 * len(batch_sizes) + 2.2, 4.8), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(batch_sizes), squeeze=False, sharey=True)[0]
    for ax, batch_size in zip(axes, batch_sizes):
        for name in dict.fromkeys(row["layer"] for row in result["rows"]):
            style = get_family_style(name)
            points = [row for row in rows if (row["layer"], row["batch_size"]) == (name, batch_size)]
            ns = [row["n"] for row in points]
            ax.loglog(ns, [row["forward_ms"] for row in points], color=style["color"], linestyle="--", linewidth=0.8)
            ax.loglog(ns, [row["forward_backward_ms"] for row in points], **style, markersize=5.5,
                      markeredgecolor="white", markeredgewidth=0.5, linewidth=1.4, label=name)
        ax.set_title(f"hidden layers, batch of {batch_size} samples", fontsize=10)
        ax.set_xlabel("n, inputs and outputs of the layer (count)")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("Time (ms)")
    environment = result["environment"]
    where = environment["gpu"] or f"{environment['device']}, {environment['nb_threads']} threads"
    figure.legend(*axes[0].get_legend_handles_labels(), title=f"{where}\nforward+backward,\ndashed: forward",
                  loc="outside right upper", fontsize=8, title_fontsize=8)
    return figure


@prints_without_failing
def main():
    """Measure, print, save and draw; the exit status: 0, or 2 if a hyperparameter, the file or the figure fails."""
    try:
        hyperparameters = check_hyperparameters()
    except ValueError as problem:
        print(f"speed_benchmark.py: {problem}", file=sys.stderr)
        return 2
    result = measure(hyperparameters)
    print(format_table(result["rows"]), format_further_measurements(result), sep="\n\n")
    return finish_script("speed_benchmark.py", result, FOLDER / result_file, plot_speed)


if __name__ == "__main__":
    sys.exit(main())
