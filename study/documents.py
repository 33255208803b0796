"""What the study shows: all numbers in results.json; docs/results.md, of them and results_template.md; figures."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
from scipy.stats import ttest_1samp

from plot_results import (DENSE, compare_with_dense, format_family, plot_accuracy, plot_differences,
                          results_to_dataframe, save_figure, summary_table)

PAPER, WELL = "as in the paper", "trained well"
DATASETS = {  # title and number of training samples of the whole data set
    "pendigits": ("pendigits", 7494), "digits": ("digits", 1437), "mnist": ("MNIST", 60000),
    "cifar10": ("CIFAR-10", 50000), "hand_posture": ("hand postures", 62476),
}
EQUAL_SIZE = [(100, "ss_1_dim"), (200, "ss_3_dim")]  # the largest SSS nets no larger than dense ones of half the width


def write_documents(study, nb_samples, numbers_folder, docs_folder):
    """results.json, and results.md with its figures, of results dicts of complete sweeps, each of one data set.

    :param nb_samples: {data set: number of training samples that are there, of which a sweep takes its share}
    """
    study = sorted(study, key=get_protocol)
    numbers = make_numbers(study, nb_samples)
    draw_figures(study, docs_folder)
    (docs_folder / "results.md").write_text(make_page(numbers), encoding="utf-8")
    lines = json.dumps(numbers).replace("}, {", "},\n{")  # a net a line
    (numbers_folder / "results.json").write_text(lines + "\n", encoding="utf-8")


def get_protocol(results):
    return PAPER if results["softmax_twice"] else WELL


def make_numbers(study, nb_samples):
    """All that the page shows, as plain data: "nets" are the rows of summary_table and compare_with_dense together."""
    nets, differences, runs = (
        pd.concat([make_table(results).assign(protocol=get_protocol(results)) for results in study])
        for make_table in (summary_table, compare_with_dense, results_to_dataframe))
    nets = nets.merge(differences, how="left")
    return {"nets": [{key: value for key, value in row.items() if pd.notna(value)}  # the dense net has no difference
                     for row in nets.to_dict("records")],
            "equal_size": compare_at_equal_size(runs[(runs["dataset"] == "pendigits") & (runs["share"] == 0.1)]),
            "nb_samples": nb_samples, "nb_runs": len(runs), "hours": runs["training_time"].sum() / 3600}


def compare_at_equal_size(runs):
    """Accuracy of the SSS nets in EQUAL_SIZE minus that of dense nets of half their neurons, in pairs of iterations."""
    accuracies = runs.pivot(index="iteration", columns=["protocol", "nb_neurons", "model_name"], values="test_accuracy")
    rows = []
    for protocol, (nb_neurons, model_name) in product((PAPER, WELL), EQUAL_SIZE):
        differences = accuracies[protocol, nb_neurons, model_name] - accuracies[protocol, nb_neurons // 2, DENSE]
        low, high = ttest_1samp(differences.dropna(), 0).confidence_interval(0.95)
        rows.append({"protocol": protocol, "nb_neurons": nb_neurons, "model_name": model_name,
                     "difference_mean": differences.mean(), "interval_low": low, "interval_high": high})
    return rows


def make_page(numbers):
    """docs/results.md (str)"""
    nets = pd.DataFrame(numbers["nets"])
    nets["cell"] = [format_cell(row) for row in numbers["nets"]]
    nets["column"] = [format_column(row, numbers["nb_samples"]) for row in numbers["nets"]]
    others, widths = nets[nets["dataset"] != "pendigits"], nets[nets["dataset"] == "pendigits"]
    pendigits = widths[widths["nb_neurons"] == 50]
    paper, well = (pendigits[pendigits["protocol"] == protocol] for protocol in (PAPER, WELL))
    accuracies = [", ".join(rows["test_accuracy_mean"][rows["model_name"] == DENSE].map("{:.3f}".format))
                  for rows in (paper, well)]
    ss_2 = well[well["model_name"] == "ss_2_dim"]
    sizes = dict(zip(zip(widths["nb_neurons"], widths["model_name"]), widths["nb_model_parameters"]))
    equal_size = {PAPER: [], WELL: []}
    for row in numbers["equal_size"]:
        sss, dense = (row["nb_neurons"], row["model_name"]), (row["nb_neurons"] // 2, DENSE)
        equal_size[row["protocol"]].append(
            f"{format_difference(row)} ({format_family(sss[1])} of {sss[0]} neurons, {sizes[sss]:,} parameters; "
            f"dense of {dense[0]}, {sizes[dense]:,})")
    return (Path(__file__).parent / "results_template.md").read_text(encoding="utf-8").format(
        shares=", ".join(f"{share:g}" for share in ss_2["share"]), ratio=ss_2["parameter_ratio"].iloc[0],
        ss_2=", ".join(map(format_difference, ss_2.to_dict("records"))),
        verdicts_paper=count_verdicts(paper), verdicts_well=count_verdicts(well),
        dense_paper=accuracies[0], dense_well=accuracies[1],
        equal_size="\n".join(f"- {protocol}: {text}" for protocol, texts in equal_size.items() for text in texts),
        equal_size_well="\nand ".join(equal_size[WELL]),
        pendigits=format_tables(pendigits), others=format_tables(others),
        nb_runs=numbers["nb_runs"], hours=numbers["hours"])


def count_verdicts(nets):
    sss = nets[nets["model_name"].str.startswith("ss_")]
    counts = []
    for verdict in ("better", "worse"):
        found = sss["difference_mean"][sss["verdict"] == verdict].abs()
        counts.append(f"{verdict} in {len(found)}" + (f" (by up to {found.max():.3f})" if len(found) else ""))
    return f"{' and '.join(counts)} of {len(sss)} comparisons with the dense net"


def format_tables(nets):
    """One for each protocol, a row per family; of one data set with numbers of parameters."""
    tables = []
    for protocol in (PAPER, WELL):
        of_protocol = nets[nets["protocol"] == protocol]
        with_parameters = of_protocol["dataset"].nunique() == 1
        lines = [[protocol, *["parameters"] * with_parameters, *of_protocol["column"].unique()]]
        lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
        for model_name, rows in of_protocol.groupby("model_name", sort=False):
            sizes = [f"{rows['nb_model_parameters'].iloc[0]:,}"] * with_parameters
            lines.append([format_family(model_name), *sizes, *rows["cell"]])
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def format_column(row, nb_samples):
    title, nb_official = DATASETS[row["dataset"]]
    if title == "pendigits":
        return f"share {row['share']:g}, n = {row['nb_runs']}"
    nb_used = int(row["share"] * nb_samples[row["dataset"]])
    samples = f"{nb_used:,} of {nb_official:,} samples" if nb_used < nb_official else "all samples"
    return f"{title}, {samples}, n = {row['nb_runs']}"


def format_cell(row):
    mark = "**" if row.get("verdict") in ("better", "worse") else ""
    difference = "" if row["model_name"] == DENSE else f" ({mark}{format_difference(row)}{mark})"
    return f"{row['test_accuracy_mean']:.3f} ± {row['test_accuracy_sd']:.3f}{difference}"


def format_difference(row):
    half_width = (row["interval_high"] - row["interval_low"]) / 2
    return f"{row['difference_mean']:+.3f} ± {half_width:.3f}".replace("-", "−")


def draw_figures(study, folder):
    pendigits = [results for results in study if results["dataset_names"] == ["pendigits"]]
    for name, sweeps in (("differences", [results for results in pendigits if results["nb_neurons_list"] == [50]]),
                         ("others", [results for results in study if results["dataset_names"] != ["pendigits"]])):
        results = combine(sweeps)
        figure, shown = plot_differences(results), compare_with_dense(results).query("model_name != 'rank_1'")
        for ax in figure.axes:  # rank 1 lies so far below that the others would be one line
            ax.set_ylim(shown["interval_low"].min(), shown["interval_high"].max())
        save_figure(figure, folder / f"study_{name}.png")
    for protocol in (PAPER, WELL):
        widths = combine([results for results in pendigits if results["training_set_shares"] == [0.1]
                          and get_protocol(results) == protocol])
        families = [name for name in widths["model_names"] if name != "rank_1"]
        save_figure(plot_accuracy(widths, families), folder / f"study_widths_{protocol.replace(' ', '_')}.png")


def combine(study):
    """One results dict of sweeps of the same families, for the figures; its data sets are named after protocols too."""
    combined = {**study[0], "dataset_names": []}
    for results in study:
        dataset, = results["dataset_names"]
        label = f"{DATASETS[dataset][0]} ({get_protocol(results)})"
        combined["dataset_names"] = list(dict.fromkeys([*combined["dataset_names"], label]))
        for key in ("training_set_shares", "nb_neurons_list"):
            combined[key] = sorted({*combined[key], *results[key]})
        for share, by_family in results[dataset].items():
            for model_name, by_width in by_family.items():
                combined.setdefault(label, {}).setdefault(share, {}).setdefault(model_name, {}).update(by_width)
    return combined
