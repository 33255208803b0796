"""The study: do nets with a structured matrix test better, in the paper's protocol and when they are trained well?

    python study.py

runs the sweeps below with benchmark.py, each into a file of its own in `study/`. From these files it draws the figures
`docs/study_*`, and writes the tables and sentences with numbers of docs/results.md, docs/fidelity.md and README.md, all
that stands there between `<!-- study: NAME -->` and `<!-- end -->`. Started again it continues. A data set that is
missing is named and left out.
"""

import io
import math
import pickle
import re
import sys
import textwrap
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Callable, NamedTuple

from parallel_runs import start_fork_server
if __name__ == "__main__":  # as in benchmark.py
    start_fork_server(["torch._dynamo", "sklearn.model_selection"])
import numpy as np
from tqdm import tqdm

import benchmark
import datasets
from benchmark_results import load_results
from datasets import (get_dataset_name_for_loading_function, load_digits_data, load_hand_posture_data, load_mnist_data,
                      load_pendigits_data)
from plot_results import plot_accuracy, plot_differences, plot_learning_curves
from result_tables import compare_with_dense, get_mean_interval, get_nb_parameters, get_runs, summary_table


def load_cifar10_data(datasets_folder):
    """As load_cifar10_data of datasets.py; also a part of the data, whose checksums are not the official ones.

    :raises ValueError: a file holds anything but arrays
    """
    try:
        return datasets.load_cifar10_data(datasets_folder)
    except ValueError:  # of the checksums
        folder = Path(datasets_folder, "cifar-10-batches-py")
        batches = [_ArrayUnpickler((folder / name).open("rb"), encoding="latin1").load()
                   for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        X = [batch["data"].reshape(-1, 3, 32, 32).astype(np.float32) for batch in batches]
        y = [np.array(batch["labels"], dtype=np.int64) for batch in batches]
        return (np.concatenate(X[:5]), np.concatenate(y[:5])), (X[5], y[5])


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module.replace("_core", "core"), name) in (
                ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            return super().find_class(module, name)
        raise ValueError(f"a file of CIFAR-10 wants {module}.{name}, and arrays need none of that")


class Sweep(NamedTuple):
    load_data: Callable
    protocol: str  # one of PROTOCOLS
    share: float
    nb_neurons_list: tuple
    nb_iterations: int

    @property
    def dataset(self):
        return get_dataset_name_for_loading_function(self.load_data)

    @property
    def path(self):
        widths = "_".join(map(str, self.nb_neurons_list))
        return RESULTS_FOLDER / f"{self.dataset}_{self.protocol}_{self.share:g}_{widths}.p"


# ======================================================================================================================
# Settings; all other hyperparameters, such as nb_jobs, are those at the top of benchmark.py

PROTOCOLS = {
    "paper": {"standardise_inputs": False, "softmax_twice": True},
    "trained_well": {"standardise_inputs": True, "softmax_twice": False},
}
# So many iterations that the 95 % intervals of differences to the dense net with 50 neurons are at most +-0.02 wide.
SWEEPS = [
    Sweep(load_pendigits_data, "trained_well", 0.1, (50,), 60),
    Sweep(load_pendigits_data, "trained_well", 0.3, (50,), 60),
    Sweep(load_pendigits_data, "trained_well", 1.0, (50,), 30),
    Sweep(load_pendigits_data, "paper", 0.1, (50,), 150),
    Sweep(load_pendigits_data, "paper", 0.3, (50,), 150),
    Sweep(load_pendigits_data, "paper", 1.0, (50,), 150),
    Sweep(load_pendigits_data, "trained_well", 0.1, (25, 100, 200), 20),
    Sweep(load_pendigits_data, "paper", 0.1, (25, 100, 200), 20),
    *(Sweep(load_data, protocol, 1.0, (50,), nb_iterations)
      for load_data, nb_iterations in ((load_digits_data, 20), (load_mnist_data, 5), (load_cifar10_data, 10),
                                       (load_hand_posture_data, 10))
      for protocol in PROTOCOLS),
]
FOLDER = Path(__file__).resolve().parent
RESULTS_FOLDER = FOLDER / "study"
FIGURES_FOLDER = FOLDER / "docs"
DOCUMENTS = [FOLDER / "README.md", FOLDER / "docs" / "results.md", FOLDER / "docs" / "fidelity.md"]
# ======================================================================================================================

PROTOCOL_TITLES = {"paper": "paper's protocol", "trained_well": "trained well"}
DATASETS = {  # title and number of training samples of the whole data set
    "pendigits": ("pendigits", 7494), "digits": ("digits", 1437), "mnist": ("MNIST", 60000),
    "cifar10": ("CIFAR-10", 50000), "hand_posture": ("hand postures", 62476),
}
AUTHORS_ACCURACIES = {  # mean and standard deviation of 24 runs each: pendigits, share 0.1, 50 neurons
    "standard_nn": (0.66, 0.12), "ss_1_dim": (0.70, 0.08), "ss_2_dim": (0.68, 0.11), "ss_3_dim": (0.68, 0.11),
    "ss_4_dim": (0.67, 0.10), "ss_5_dim": (0.64, 0.11), "rank_1": (0.44, 0.05),
}
NB_AUTHORS_RUNS = 24


def main():
    """Run what is missing of the sweeps, then write the documents; the exit status is as benchmark.py's."""
    try:
        exit_status = run_sweeps()
        if exit_status < 2:
            write_documents(make_blocks({sweep: get_runs(load_results(sweep.path))[0] for sweep in SWEEPS}))
    except KeyboardInterrupt:  # between two sweeps
        exit_status = 130
    except (OSError, ValueError) as problem:
        print(f"study.py: {problem}", file=sys.stderr)
        exit_status = 2
    if exit_status > 2:
        print("study.py: interrupted, python study.py continues", file=sys.stderr)
    return exit_status


def run_sweeps():
    """The largest exit status of benchmark.py, which ends this if it is larger than 1."""
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    settings = [{**benchmark.get_hyperparameters(), **PROTOCOLS[sweep.protocol],
                 "dataset_loading_functions": [sweep.load_data], "training_set_shares": [sweep.share],
                 "nb_neurons_list": sweep.nb_neurons_list, "nb_iterations": sweep.nb_iterations,
                 "result_file": sweep.path} for sweep in SWEEPS]
    nb_runs = [len(s["model_names"]) * len(s["nb_neurons_list"]) * s["nb_iterations"] for s in settings]
    largest_status = 0
    with tqdm(total=sum(nb_runs), unit="run", disable=None, dynamic_ncols=True) as bar:
        for sweep, hyperparameters, nb_runs_here in zip(SWEEPS, settings, nb_runs):
            bar.set_description(sweep.path.stem)
            # On a terminal the bars, this one and the sweep's, say enough.
            with nullcontext() if bar.disable else redirect_stdout(io.StringIO()):
                exit_status = benchmark.main(hyperparameters)
            bar.update(nb_runs_here)
            largest_status = max(largest_status, exit_status)
            if exit_status > 1:
                break
    return largest_status


# ---- numbers and figures of the documents ----

def make_blocks(study):
    """{name: Markdown} of what stands in the documents; draws the figures.

    :param study: {Sweep: its runs, as get_runs returns them, none if its data are missing}
    """
    def select(condition):
        return {title: [runs for sweep, runs in study.items() if sweep.protocol == protocol and condition(sweep)]
                for protocol, title in PROTOCOL_TITLES.items()}

    pendigits = select(lambda sweep: sweep.dataset == "pendigits" and sweep.nb_neurons_list == (50,))
    widths = select(lambda sweep: sweep.dataset == "pendigits" and sweep.share == 0.1)
    others = [sweep for sweep in study if sweep.dataset != "pendigits" and any(study[sweep].values())]
    blocks = {"runs": describe_runs(study)}
    if all(combine({"": runs})["dataset_names"] for runs in pendigits.values()):
        blocks["answer"] = format_answer(pendigits, widths)
        blocks["pendigits"] = format_tables({title: combine({title: runs}) for title, runs in pendigits.items()})
        blocks["widths"] = "\n".join(f"- {title}: {text}" for title, runs in widths.items()
                                     for text in compare_at_equal_size(combine({title: runs})))
        blocks["authors"] = compare_with_authors(combine({"": pendigits[PROTOCOL_TITLES["paper"]]}))
        save_figure("differences", plot_differences(combine(pendigits)))
        save_figure("widths", plot_accuracy(combine(widths)))
        save_figure("learning_curves", plot_learning_curves(combine(widths, ["standard_nn", "ss_2_dim", "rank_1"]), 50))
    if others:
        titles = {sweep.dataset: describe_dataset(sweep) for sweep in others}
        blocks["others"] = format_tables({title: combine({
            titles[sweep.dataset]: [study[sweep]] for sweep in others if sweep.protocol == protocol})
            for protocol, title in PROTOCOL_TITLES.items()})
        save_figure("others", plot_differences(combine({
            f"{DATASETS[sweep.dataset][0]} ({PROTOCOL_TITLES[sweep.protocol]})": [study[sweep]]
            for sweep in sorted(others, key=lambda sweep: list(PROTOCOLS).index(sweep.protocol))})))
    return blocks


def combine(runs_by_label, model_names=None):
    """A results dict of the runs of several sweeps, for result_tables.py and plot_results.py.

    :param runs_by_label: {what stands for the data set: [runs of a sweep, ...]}
    :param model_names: families; None: all
    """
    by_identity = {(label, *identity[1:]): iterations for label, several in runs_by_label.items() for runs in several
                   for identity, iterations in runs.items()
                   if iterations and (model_names is None or identity[3] in model_names)}
    labels, shares, widths, families = [list(dict.fromkeys(values)) for values in zip(*by_identity)] or ([],) * 4
    combined = {"dataset_names": labels, "training_set_shares": sorted(shares), "nb_neurons_list": sorted(widths),
                "model_names": families, "nb_iterations": max(map(len, by_identity.values()), default=0)}
    for (label, share, nb_neurons, model_name), iterations in by_identity.items():
        combined.setdefault(label, {}).setdefault(share, {}).setdefault(model_name, {})[nb_neurons] = iterations
    return combined


def format_answer(pendigits, widths):
    """Three sentences."""
    paper, well = (combine({"": pendigits[PROTOCOL_TITLES[protocol]]}) for protocol in ("paper", "trained_well"))
    of_ss_2 = [row for row in compare_with_dense(well) if row["model_name"] == "ss_2_dim"]
    at_equal_size = compare_at_equal_size(combine({"": widths[PROTOCOL_TITLES["trained_well"]]}))
    dense_paper, dense_well = (", ".join(f"{row['test_accuracy_mean']:.3f}" for row in summary_table(results)
                                         if row["model_name"] == "standard_nn") for results in (paper, well))
    return textwrap.fill(
        f"Trained well (standardised inputs, one softmax in the loss), nets of 50 neurons with an SSS matrix test "
        f"{count_verdicts(well)} on pendigits (state dimensions 1 to 5 at shares "
        f"{', '.join(f'{share:g}' for share in well['training_set_shares'])} of the training data); with d = 2 and "
        f"{of_ss_2[0]['parameter_ratio']:.0%} of the parameters the differences at these shares are "
        f"{', '.join(map(format_difference, of_ss_2))}. "
        f"Compared at equal size they are {' and '.join(at_equal_size)}. "
        f"In the paper's protocol, in which the dense net reaches {dense_paper} instead of {dense_well}, SSS nets test "
        f"{count_verdicts(paper)}.", 120, break_long_words=False, break_on_hyphens=False)


def count_verdicts(results):
    verdicts = [row["verdict"] for row in compare_with_dense(results) if row["model_name"].startswith("ss_")]
    return (f"better than the dense net in {verdicts.count('better')}, worse in {verdicts.count('worse')} of "
            f"{len(verdicts)} comparisons")


def compare_at_equal_size(results):
    """A text for each dense net that has a counterpart: the SSS net of twice its neurons with the largest state
    dimension that needs no more parameters."""
    texts, by_identity = [], get_runs(results)[0]
    for (*where, nb_neurons, model_name), dense in by_identity.items():
        smaller = [(get_nb_parameters(runs), name, runs) for (*other, width, name), runs in by_identity.items()
                   if (other, width) == (where, 2 * nb_neurons) and name.startswith("ss_")
                   and get_nb_parameters(runs) <= get_nb_parameters(dense)]
        if model_name == "standard_nn" and smaller:
            size, name, runs = max(smaller)
            mean, low, high = get_mean_interval(
                [runs[i]["test_accuracy"] - dense[i]["test_accuracy"] for i in runs if i in dense])
            difference = format_difference(dict(difference_mean=mean, interval_low=low, interval_high=high))
            texts.append(f"{difference} ({format_family(name)}, {2 * nb_neurons} neurons, {size:,} parameters; dense, "
                         f"{nb_neurons} neurons, {get_nb_parameters(dense):,} parameters)")
    return texts


def format_tables(results_by_title):
    """A table for each: a row per family, a column per data set with accuracy and difference to the dense net; or per
    share, where the data set of the results stands for that title."""
    tables = []
    for title, results in results_by_title.items():
        summary, differences = ({(row["dataset"], row["share"], row["model_name"]): row for row in rows}
                                for rows in (summary_table(results), compare_with_dense(results)))
        columns = {key[:2]: row for key, row in summary.items() if row["nb_runs"]}
        is_one = results["dataset_names"] == [title]
        lines = [[title, *["parameters"] * is_one, *(
            f"share {share:g}, n = {row['nb_runs']}" if is_one else f"{dataset}, n = {row['nb_runs']}"
            for (dataset, share), row in columns.items())]]
        lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
        for model_name in results["model_names"]:
            rows = [summary[(*column, model_name)] for column in columns]
            lines.append([format_family(model_name), *[f"{rows[0]['nb_model_parameters']:,}"] * is_one])
            for row, difference in zip(rows, [differences.get((*column, model_name)) for column in columns]):
                mark = "**" if difference and difference["verdict"] != "undecided" else ""
                lines[-1].append(f"{row['test_accuracy_mean']:.3f} ± {row['test_accuracy_sd']:.3f}"
                                 + (f" ({mark}{format_difference(difference)}{mark})" if difference else ""))
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def format_difference(row):
    half_width = (row["interval_high"] - row["interval_low"]) / 2
    return f"{row['difference_mean']:+.3f} ± {half_width:.3f}".replace("-", "−")


def format_family(model_name):
    other_names = {"standard_nn": "dense", "rank_1": "rank-1"}
    return other_names.get(model_name) or re.sub(r"ss_(\d+)_dim", r"SSS-\1", model_name)


def compare_with_authors(results):
    """A table, and two sentences."""
    rows = [row for row in summary_table(results) if row["share"] == 0.1]
    lines, distances = [], []
    for row in rows:
        mean, sd = AUTHORS_ACCURACIES[row["model_name"]]
        error = math.hypot(sd / math.sqrt(NB_AUTHORS_RUNS), row["test_accuracy_sd"] / math.sqrt(row["nb_runs"]))
        distances.append(abs(row["test_accuracy_mean"] - mean) / error)
        lines.append(f"| {format_family(row['model_name'])} | {mean:.2f} ± {sd:.2f} | "
                     f"{row['test_accuracy_mean']:.2f} ± {row['test_accuracy_sd']:.2f} | {distances[-1]:.1f} |")
    epochs = [row["epochs_mean"] for row in rows]
    return "\n".join([
        f"| family | authors, n = {NB_AUTHORS_RUNS} | here, n = {rows[0]['nb_runs']} | difference in standard errors |",
        "|---|---|---|---:|", *lines, "",
        f"The largest difference is {max(distances):.1f} standard errors. The authors' nets train for about 203 to 232 "
        f"epochs, these for", f"{min(epochs):.0f} to {max(epochs):.0f}."])


def describe_dataset(sweep):
    """Its title, and how much of it there is."""
    title, nb_samples = DATASETS[sweep.dataset]
    try:
        nb_found = len(sweep.load_data(FOLDER / benchmark.datasets_folder)[0][0])
    except Exception:  # the runs are there, the data no longer
        return f"{title}, samples unknown"
    nb_found = int(sweep.share * nb_found)
    return f"{title}, {nb_found:,} of {nb_samples:,} samples" if nb_found < nb_samples else f"{title}, all samples"


def describe_runs(study):
    """How many runs there are, what is missing, and the widest interval on pendigits with 50 neurons."""
    all_runs = [run for runs in study.values() for iterations in runs.values() for run in iterations.values()]
    half_widths = [(row["interval_high"] - row["interval_low"]) / 2
                   for sweep, runs in study.items() if sweep.dataset == "pendigits" and sweep.nb_neurons_list == (50,)
                   for row in compare_with_dense(combine({"": [runs]})) if row["nb_pairs"] > 1]
    missing = {DATASETS[sweep.dataset][0] for sweep, runs in study.items() if not any(runs.values())}
    hours = sum(run["training_time"] for run in all_runs) / 3600
    return (f"{len(all_runs):,} runs, {hours:.1f} hours of training on one thread.\n"
            f"The widest 95 % interval on pendigits with 50 neurons is ±{max(half_widths, default=math.nan):.3f}.\n"
            + (f"Missing: {', '.join(sorted(missing))}." if missing else "No data set is missing."))


def save_figure(name, figure):
    figure.savefig(FIGURES_FOLDER / f"study_{name}.svg", metadata={"Date": None})


def write_documents(blocks):
    """Put the blocks where the documents name them."""
    for path in DOCUMENTS:
        text = re.sub(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)",
                      lambda mark: f"{mark[1]}{blocks.get(mark[2], 'No results.')}\n{mark[3]}",
                      path.read_text(encoding="utf-8"), flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
