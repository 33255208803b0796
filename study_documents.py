"""What the documents show of the study's results: tables, sentences with numbers, figures."""

import math
import re
import textwrap

from figure_parts import save_figure
from plot_results import plot_accuracy, plot_differences, plot_validation_curves
from result_tables import DENSE, compare_with_dense, get_mean_interval, get_nb_parameters, get_runs, summary_table

DATASETS = {  # title and number of training samples of the whole data set
    "pendigits": ("pendigits", 7494), "digits": ("digits", 1437), "mnist": ("MNIST", 60000),
    "cifar10": ("CIFAR-10", 50000), "hand_posture": ("hand postures", 62476),
}
AUTHORS_ACCURACIES = {  # mean and standard deviation of 24 runs each: pendigits, share 0.1, 50 neurons
    "standard_nn": (0.66, 0.12), "ss_1_dim": (0.70, 0.08), "ss_2_dim": (0.68, 0.11), "ss_3_dim": (0.68, 0.11),
    "ss_4_dim": (0.67, 0.10), "ss_5_dim": (0.64, 0.11), "rank_1": (0.44, 0.05),
}
NB_AUTHORS_RUNS = 24
PAPER, WELL = "as in the paper", "trained well"


def make_blocks(study, nb_samples, figures_folder):
    """{name: Markdown} of what stands in the documents; draws the figures `study_*`.

    :param study: {study.Sweep: its runs as get_runs returns them, none if its data are missing}
    :param nb_samples: {data set: number of training samples that are there}
    :param figures_folder: pathlib.Path
    """
    protocols = list(dict.fromkeys(sweep.protocol for sweep in study))

    def select(condition):
        return {protocol: [runs for sweep, runs in study.items() if sweep.protocol == protocol and condition(sweep)]
                for protocol in protocols}

    pendigits = select(lambda sweep: sweep.dataset == "pendigits" and sweep.nb_neurons_list == (50,))
    widths = select(lambda sweep: sweep.dataset == "pendigits" and sweep.share == 0.1)
    others = [sweep for sweep in study if sweep.dataset != "pendigits" and any(study[sweep].values())]
    blocks = {"runs": describe_runs(study)}
    if all(combine({"": runs})["dataset_names"] for runs in pendigits.values()):
        blocks["answer"] = format_answer(pendigits, widths)
        blocks["pendigits"] = format_tables({protocol: combine({protocol: pendigits[protocol]})
                                             for protocol in protocols})
        blocks["widths"] = "\n".join(f"- {protocol}: {text}" for protocol in protocols
                                     for text in compare_at_equal_size(combine({"": widths[protocol]})))
        blocks["authors"] = compare_with_authors(combine({"": pendigits[PAPER]}))
        save_figure(plot_differences(combine(pendigits)), figures_folder / "study_differences.png")
        for protocol, runs in widths.items():  # rank-1 lies so far below that the others would be one line
            results = combine({protocol: runs})
            families = [name for name in results["model_names"] if name != "rank_1"]
            save_figure(plot_accuracy(results, families),
                        figures_folder / f"study_widths_{protocol.replace(' ', '_')}.png")
        save_figure(plot_validation_curves({protocol: combine({"pendigits": widths[protocol]})
                                            for protocol in protocols}, 50), figures_folder / "study_curves.png")
    if others:
        titles = {sweep.dataset: describe_dataset(sweep, nb_samples[sweep.dataset]) for sweep in others}
        blocks["others"] = format_tables({protocol: combine({
            titles[sweep.dataset]: [study[sweep]] for sweep in others if sweep.protocol == protocol})
            for protocol in protocols})
        save_figure(plot_differences(combine({f"{DATASETS[sweep.dataset][0]} ({protocol})": [study[sweep]]
                                              for protocol in protocols for sweep in others
                                              if sweep.protocol == protocol})), figures_folder / "study_others.png")
    return blocks


def combine(runs_by_label):
    """A results dict of the runs of several sweeps, for result_tables.py and plot_results.py.

    :param runs_by_label: {what stands for the data set: [runs of a sweep, ...]}
    """
    by_identity = {(label, *identity[1:]): iterations for label, several in runs_by_label.items() for runs in several
                   for identity, iterations in runs.items() if iterations}
    labels, shares, widths, families = [list(dict.fromkeys(values)) for values in zip(*by_identity)] or ([],) * 4
    combined = {"dataset_names": labels, "training_set_shares": sorted(shares), "nb_neurons_list": sorted(widths),
                "model_names": families, "nb_iterations": max(map(len, by_identity.values()), default=0)}
    for (label, share, nb_neurons, model_name), iterations in by_identity.items():
        combined.setdefault(label, {}).setdefault(share, {}).setdefault(model_name, {})[nb_neurons] = iterations
    return combined


def format_answer(pendigits, widths):
    """Three sentences."""
    paper, well = (compare_with_dense(combine({"": pendigits[protocol]})) for protocol in (PAPER, WELL))
    of_ss_2 = [row for row in well if row["model_name"] == "ss_2_dim"]
    shares = ", ".join(f"{row['share']:g}" for row in of_ss_2)
    return textwrap.fill(
        f"On pendigits, nets of 50 neurons with an SSS matrix (state dimensions 1 to 5, shares {shares} of the "
        f"training data), trained as in the paper, test {count_verdicts(paper)}, which has an accuracy of "
        f"{list_dense(pendigits[PAPER])}. "
        f"Trained well, with standardised inputs and one softmax in the loss (dense: {list_dense(pendigits[WELL])}), "
        f"they test {count_verdicts(well)}, and SSS-2 with {of_ss_2[0]['parameter_ratio']:.0%} of the parameters "
        f"differs by {', '.join(map(format_difference, of_ss_2))} at these shares. "
        f"From a narrower dense net of about equal size, trained well, SSS nets differ by "
        f"{' and '.join(compare_at_equal_size(combine({'': widths[WELL]})))}.",
        120, break_long_words=False, break_on_hyphens=False)


def count_verdicts(rows):
    differences = {"better": [], "worse": [], "undecided": []}
    for row in rows:
        if row["model_name"].startswith("ss_"):
            differences[row["verdict"]].append(abs(row["difference_mean"]))
    counts = [f"{verdict} in {len(found)}" + (f" (by up to {max(found):.3f})" if found else "")
              for verdict, found in list(differences.items())[:2]]
    return f"{counts[0]} and {counts[1]} of {sum(map(len, differences.values()))} comparisons with the dense net"


def list_dense(several):
    """Its mean accuracy at each share."""
    return ", ".join(f"{row['test_accuracy_mean']:.3f}" for row in summary_table(combine({"": several}))
                     if row["model_name"] == DENSE)


def compare_at_equal_size(results):
    """A text for each dense net that has a counterpart: the SSS net of twice its neurons with the largest state
    dimension that needs no more parameters."""
    texts, by_identity = [], get_runs(results)[0]
    for (*where, nb_neurons, model_name), dense in by_identity.items():
        smaller = [(get_nb_parameters(runs), name, runs) for (*other, width, name), runs in by_identity.items()
                   if (other, width) == (where, 2 * nb_neurons) and name.startswith("ss_")
                   and get_nb_parameters(runs) <= get_nb_parameters(dense)]
        if model_name == DENSE and smaller:
            size, name, runs = max(smaller)
            mean, low, high = get_mean_interval(
                [runs[i]["test_accuracy"] - dense[i]["test_accuracy"] for i in runs if i in dense])
            difference = format_difference(dict(difference_mean=mean, interval_low=low, interval_high=high))
            texts.append(f"{difference} ({format_family(name)} of {2 * nb_neurons} neurons, {size:,} parameters; dense "
                         f"of {nb_neurons}, {get_nb_parameters(dense):,})")
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


def describe_dataset(sweep, nb_found):
    """Its title, and how many of its training samples are used."""
    title, nb_samples = DATASETS[sweep.dataset]
    nb_used = int(sweep.share * nb_found)
    return f"{title}, {nb_used:,} of {nb_samples:,} samples" if nb_used < nb_samples else f"{title}, all samples"


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


def write_documents(blocks, paths):
    """Put the blocks where the documents name them."""
    for path in paths:
        text = re.sub(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)",
                      lambda mark: f"{mark[1]}{blocks.get(mark[2], 'No results.')}\n{mark[3]}",
                      path.read_text(encoding="utf-8"), flags=re.DOTALL)
        path.write_text(text, encoding="utf-8")
