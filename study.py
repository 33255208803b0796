"""The study: do nets with structured matrices generalise better, in the paper's protocol and when they are trained well?

    python study.py

runs the sweeps below with benchmark.py, each into a file of its own in `study/`, and from these files writes every number,
table and figure of docs/results.md, docs/fidelity.md and the README's answer: what stands there between
`<!-- study: NAME -->` and `<!-- end -->`. Started again it continues. Data sets that are missing are named and left out.
"""

import io
import math
import pickle
import re
import sys
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
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
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
    RESULTS_FOLDER.mkdir(exist_ok=True)
    settings = [{**benchmark.get_hyperparameters(), **PROTOCOLS[sweep.protocol],
                 "dataset_loading_functions": [sweep.load_data], "training_set_shares": [sweep.share],
                 "nb_neurons_list": sweep.nb_neurons_list, "nb_iterations": sweep.nb_iterations,
                 "result_file": sweep.path} for sweep in SWEEPS]
    nb_runs = [len(s["model_names"]) * len(s["nb_neurons_list"]) * s["nb_iterations"] for s in settings]
    largest_status = 0
    with tqdm(total=sum(nb_runs), desc="study", unit="run", disable=None, dynamic_ncols=True) as bar:
        for sweep, hyperparameters, nb_runs_here in zip(SWEEPS, settings, nb_runs):
            # On a terminal the bars of the study and of the sweep say enough.
            with nullcontext() if bar.disable else redirect_stdout(io.StringIO()):
                exit_status = benchmark.main(hyperparameters)
            bar.update(nb_runs_here)
            largest_status = max(largest_status, exit_status)
            if exit_status > 1:
                break
    return largest_status


# ---- numbers and figures of the documents ----

def make_blocks(study):
    """{name: Markdown} of what the documents show, and the figures in FIGURES_FOLDER.

    :param study: {Sweep: its runs as get_runs returns them, without any if its data are missing}
    """
    def select(condition):
        """{title of the protocol: runs of the sweeps of that protocol for which the condition holds}"""
        return {title: [runs for sweep, runs in study.items() if sweep.protocol == protocol and condition(sweep)]
                for protocol, title in PROTOCOL_TITLES.items()}

    pendigits = select(lambda sweep: sweep.dataset == "pendigits" and sweep.nb_neurons_list == (50,))
    widths = select(lambda sweep: sweep.dataset == "pendigits" and sweep.share == 0.1)
    others = [sweep for sweep in study if sweep.dataset != "pendigits" and any(study[sweep].values())]
    missing = {sweep.dataset for sweep in study if not any(study[sweep].values())}
    titles = {sweep.dataset: describe_dataset(sweep) for sweep in others}
    blocks = {"runs": describe_runs(study), "missing": "Left out, for their data are missing: "
              + ", ".join(DATASETS[dataset][0] for dataset in missing) + "." if missing else "No data set is missing."}
    if others:
        blocks["others"] = "\n\n".join(
            f"{title[0].upper()}{title[1:]}:\n\n" + format_table(combine(
                {titles[sweep.dataset]: [study[sweep]] for sweep in others if sweep.protocol == protocol}))
            for protocol, title in PROTOCOL_TITLES.items())
        save_figure("others", plot_differences(combine(
            {f"{DATASETS[sweep.dataset][0]} ({PROTOCOL_TITLES[sweep.protocol]})": [study[sweep]] for sweep in others})))
    if combine(pendigits)["dataset_names"] == [*pendigits]:
        blocks["answer"] = answer(pendigits, widths)
        blocks["pendigits"] = "\n\n".join(f"{title[0].upper()}{title[1:]}:\n\n" + format_table(combine({title: runs}))
                                          for title, runs in pendigits.items())
        blocks["widths"] = "\n".join(f"- {title}: {difference}" for title, runs in widths.items()
                                     for difference in compare_at_equal_size(combine({title: runs})))
        blocks["authors"] = compare_with_authors(combine({"": pendigits[PROTOCOL_TITLES["paper"]]}))
        save_figure("differences", plot_differences(combine(pendigits)))
        save_figure("widths", plot_accuracy(combine(widths)))
        save_figure("learning_curves", plot_learning_curves(combine(widths, ["standard_nn", "ss_2_dim", "rank_1"]), 50))
    return blocks


def combine(runs_by_label, model_names=None):
    """A results dict for result_tables.py and plot_results.py of runs of several sweeps.

    :param runs_by_label: {what stands for the data set: [runs of a sweep, ...]}
    :param model_names: families; None: all
    """
    by_identity = {(label, *identity[1:]): iterations for label, several in runs_by_label.items() for runs in several
                   for identity, iterations in runs.items()
                   if iterations and (not model_names or identity[3] in model_names)}
    names = "dataset_names", "training_set_shares", "nb_neurons_list", "model_names"
    combined = {name: list(dict.fromkeys(values)) for name, values in zip(names, zip(*by_identity))}
    combined = {**dict.fromkeys(names, []), **combined, "nb_iterations": max(map(len, by_identity.values()), default=0)}
    combined["training_set_shares"].sort()
    combined["nb_neurons_list"].sort()
    for (label, share, nb_neurons, model_name), iterations in by_identity.items():
        combined.setdefault(label, {}).setdefault(share, {}).setdefault(model_name, {})[nb_neurons] = iterations
    return combined


def answer(pendigits, widths):
    """Three sentences."""
    paper, well = ([row for row in compare_with_dense(combine({title: pendigits[title]}))
                    if row["model_name"].startswith("ss_")] for title in PROTOCOL_TITLES.values())
    of_2 = [row for row in well if row["model_name"] == "ss_2_dim"]
    dense = {title: ", ".join(f"{row['test_accuracy_mean']:.3f}" for row in summary_table(combine({title: runs}))
                              if row["model_name"] == "standard_nn") for title, runs in pendigits.items()}
    shares = ", ".join(f"{row['share']:g}" for row in of_2)
    return (f"Trained well (standardised inputs, one softmax), SSS nets of 50 neurons test {count_verdicts(well)} than the "
            f"dense net of 50 neurons in {len(well)} comparisons on pendigits (state dimensions 1 to 5, shares {shares}); "
            f"with d = 2, {of_2[0]['parameter_ratio']:.0%} of the parameters, the difference is "
            f"{', '.join(format_difference(row) for row in of_2)}. "
            f"At equal size, SSS nets of twice the neurons against a dense net of as many parameters or more, it is "
            + "; ".join(compare_at_equal_size(combine({"": widths[PROTOCOL_TITLES["trained_well"]]}))) + ". "
            f"In the paper's protocol SSS nets test {count_verdicts(paper)} in {len(paper)} comparisons, and the dense net "
            f"reaches {dense[PROTOCOL_TITLES['paper']]} instead of {dense[PROTOCOL_TITLES['trained_well']]}: it stops "
            f"training early.")


def count_verdicts(rows):
    verdicts = [row["verdict"] for row in rows]
    return (f"better {verdicts.count('better')} times, worse {verdicts.count('worse')} times and undecided "
            f"{verdicts.count('undecided')} times")


def compare_at_equal_size(results):
    """A text for each dense net: its difference to the SSS nets of twice the neurons and of the largest state dimension
    with no more parameters."""
    texts, by_identity = [], get_runs(results)[0]
    for (label, share, nb_neurons, model_name), dense in by_identity.items():
        smaller = [(get_nb_parameters(runs), name, runs) for (*where, name), runs in by_identity.items()
                   if where == [label, share, 2 * nb_neurons] and name.startswith("ss_")
                   and get_nb_parameters(runs) <= get_nb_parameters(dense)]
        if model_name == "standard_nn" and smaller:
            size, name, runs = max(smaller)
            mean, low, high = get_mean_interval([runs[i]["test_accuracy"] - dense[i]["test_accuracy"]
                                                 for i in runs if i in dense])
            texts.append(f"{format_difference(dict(difference_mean=mean, interval_low=low, interval_high=high))} "
                         f"({format_family(name)} of {2 * nb_neurons} neurons, {size:,} parameters, against "
                         f"{nb_neurons} neurons, {get_nb_parameters(dense):,} parameters)")
    return texts


def format_table(results):
    """A row per family, a column per data set and share: accuracy, difference to the dense net."""
    summary = {(row["dataset"], row["share"], row["model_name"]): row for row in summary_table(results)}
    differences = {(row["dataset"], row["share"], row["model_name"]): row for row in compare_with_dense(results)}
    columns = list(dict.fromkeys(key[:2] for key, row in summary.items() if row["nb_runs"]))
    several = len(results["dataset_names"]) > 1
    lines = [["family", *([] if several else ["parameters"]),
              *(dataset if several else f"share {share:g}" for dataset, share in columns)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for model_name in results["model_names"]:
        rows = [summary[*column, model_name] for column in columns]
        lines.append([format_family(model_name), *([] if several else [f"{rows[0]['nb_model_parameters']:,}"])])
        for row in rows:
            text = f"{row['test_accuracy_mean']:.3f} ± {row['test_accuracy_sd']:.3f}"
            if difference := differences.get((row["dataset"], row["share"], model_name)):
                mark = "" if difference["verdict"] == "undecided" else "**"
                text += f" ({mark}{format_difference(difference)}{mark})"
            lines[-1].append(text)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_difference(row):
    half_width = (row["interval_high"] - row["interval_low"]) / 2
    return f"{row['difference_mean']:+.3f} ± {half_width:.3f}".replace("-", "−")


def format_family(model_name):
    dimension = re.fullmatch(r"ss_(\d+)_dim", model_name)
    return f"SSS-{dimension[1]}" if dimension else {"standard_nn": "dense", "rank_1": "rank-1"}.get(model_name, model_name)


def compare_with_authors(results):
    """A table, and a sentence."""
    rows = [row for row in summary_table(results) if row["share"] == 0.1]
    lines = [f"| family | authors (n = {NB_AUTHORS_RUNS}) | here (n = {rows[0]['nb_runs']}) | difference in standard errors |",
             "|---|---|---|---:|"]
    distances = []
    for row in rows:
        mean, sd = AUTHORS_ACCURACIES[row["model_name"]]
        error = math.sqrt(sd ** 2 / NB_AUTHORS_RUNS + row["test_accuracy_sd"] ** 2 / row["nb_runs"])
        distances.append(abs(row["test_accuracy_mean"] - mean) / error)
        lines.append(f"| {format_family(row['model_name'])} | {mean:.2f} ± {sd:.2f} | {row['test_accuracy_mean']:.2f} ± "
                     f"{row['test_accuracy_sd']:.2f} | {distances[-1]:.1f} |")
    epochs = [row["epochs_mean"] for row in rows]
    return "\n".join(lines) + (f"\n\nThe largest of {len(rows)} differences is {max(distances):.1f} standard errors. The "
                               f"authors' nets train for 203 to 232 epochs in the mean, these for {min(epochs):.0f} to "
                               f"{max(epochs):.0f}.")


def describe_dataset(sweep):
    """Its title, and how much of it there is."""
    title, nb_samples = DATASETS[sweep.dataset]
    try:
        nb_found = len(sweep.load_data(FOLDER / benchmark.datasets_folder)[0][0])
    except Exception:  # the data have been there before
        return f"{title}, an unknown part"
    return f"{title}, {nb_found:,} " + (f"of {nb_samples:,} " if nb_found != nb_samples else "") + "samples"


def describe_runs(study):
    """How many runs there are, and how wide their intervals."""
    lines, nb_runs, seconds = [], 0, 0.0
    for sweep, runs in study.items():
        times = [run["training_time"] for iterations in runs.values() for run in iterations.values()]
        nb_runs, seconds = nb_runs + len(times), seconds + sum(times)
        rows = compare_with_dense(combine({"": [runs]})) if times else []
        widths = [(row["interval_high"] - row["interval_low"]) / 2 for row in rows]
        if rows:
            lines.append(f"| {DATASETS[sweep.dataset][0]} | {PROTOCOL_TITLES[sweep.protocol]} | {sweep.share:g} | "
                         f"{', '.join(map(str, sweep.nb_neurons_list))} | {rows[0]['nb_pairs']} | {max(widths):.3f} |")
    return "\n".join(["| data set | protocol | share | neurons | iterations | largest ± of a difference |",
                      "|---|---|---:|---:|---:|---:|", *lines, "",
                      f"{nb_runs:,} runs, {seconds / 3600:.1f} hours of training time on one thread each."])


def save_figure(name, figure):
    figure.savefig(FIGURES_FOLDER / f"study_{name}.svg", metadata={"Date": None})


def write_documents(blocks):
    """Put the Markdown of the blocks between their marks in the documents; ValueError if a mark names no block."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)",
                      lambda match: f"{match[1]}{blocks.get(match[2], 'No results of this part.')}\n{match[3]}", text,
                      flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
