"""What the study shows: all numbers in results.json; docs/results.md, of them and results_template.md; figures."""

import json
import re
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import t

from plot_results import BLOCK, DENSE, IDENTITY, compare_in_pairs, format_family, results_to_dataframe
from semiseparablemodels import SemiseparableLayer
from study.figures import draw_figures

PAPER, TUNED = "as in the paper", "tuned"
DATASETS = {"pendigits": "pendigits", "digits": "digits", "hand_posture": "hand postures", "mnist": "MNIST",
            "cifar10": "CIFAR-10"}
NB_OFFICIAL = {"hand_posture": (62476, 5), "mnist": (60000, 10), "cifar10": (50000, 10)}  # training samples, classes
NET = ["protocol", *IDENTITY]
COMPETITORS = {"dense": DENSE, "low rank": r"rank_\d+", "Monarch": r"monarch_\d+"}  # at equal size, names' patterns


def write_documents(study, data, numbers_folder, docs_folder):
    """results.json, and results.md with its figures.

    :param study: results dicts of complete sweeps, of one learning rate each
    :param data: {data set: (X_train, y_train), (X_test, y_test)}
    """
    numbers = make_numbers(study, {name: (len(y), len(set(y))) for name, ((_, y), _) in data.items()})
    draw_figures(numbers, docs_folder)
    (docs_folder / "results.md").write_text(make_page(numbers), encoding="utf-8")
    lines = json.dumps(numbers).replace("}, {", "},\n{")  # a net or a comparison a line
    (numbers_folder / "results.json").write_text(lines + "\n", encoding="utf-8")


# ---- numbers ----

def make_numbers(study, data_sizes):
    """All that the page and the figures show, as plain data.

    - nets: each with the learning rate of the best mean validation accuracy, and what its runs at that rate say;
      by_rate: {learning rate: mean validation accuracy, mean test accuracy}
    - comparisons: see compare_nets
    - initial_scales: {d: root mean square of the initial matrix of SSS-d of 200 neurons, over that of the dense net}

    :param data_sizes: {data set: (training samples that are there, classes)}
    """
    runs = collect_runs(study, {name: nb_classes for name, (_, nb_classes) in data_sizes.items()})
    rates = runs.groupby([*NET, "learning_rate"], sort=False)[["best_val_accuracy", "test_accuracy"]].mean()
    chosen = choose_rates(runs)
    nets = chosen.groupby(NET, sort=False).agg(
        nb_model_parameters=("nb_model_parameters", "first"), learning_rate=("learning_rate", "first"),
        nb_runs=("iteration", "count"), epochs_mean=("nb_epochs", "mean"), test_accuracy_mean=("test_accuracy", "mean"),
        test_accuracy_sd=("test_accuracy", "std")).reset_index()
    nets["interval_half_width"] = (t.ppf(0.975, nets["nb_runs"] - 1) * nets["test_accuracy_sd"]
                                   / nets["nb_runs"] ** 0.5)
    nets["by_rate"] = [{f"{rate:g}": list(means) for rate, *means in rates.loc[tuple(net)].itertuples()}
                       for net in nets[NET].itertuples(index=False)]
    return {"nets": nets.to_dict("records"), "comparisons": compare_nets(chosen),
            "initial_scales": {str(d): get_initial_scale(d, 200) for d in (1, 2, 3, 4, 5)}, "data_sizes": data_sizes,
            "nb_runs": len(runs), "nb_diverged": int(runs["training_time"].isna().sum()),
            "hours": runs["training_time"].sum() / 3600}


def collect_runs(study, nb_classes):
    """All runs of all rates; one whose loss became NaN has the accuracy of a guess, 1 / classes."""
    rows = []
    for results in study:
        diverged = [{**{name: failure[name] for name in [*IDENTITY, "iteration"]},
                     "best_val_accuracy": 1 / nb_classes[failure["dataset"]],
                     "test_accuracy": 1 / nb_classes[failure["dataset"]]} for failure in results["failures"]]
        protocol = {"protocol": PAPER if results["softmax_twice"] else TUNED, "learning_rate": results["learning_rate"]}
        rows += [{**protocol, **row} for row in results_to_dataframe(results).to_dict("records") + diverged]
    return pd.DataFrame(rows).sort_values("protocol", kind="stable")


def choose_rates(runs):
    """The runs of each net at the learning rate of its highest mean validation accuracy, the lowest of equal ones."""
    means = runs.groupby([*NET, "learning_rate"])["best_val_accuracy"].mean().reset_index()  # rates ascend
    best = means.sort_values("best_val_accuracy", ascending=False, kind="stable").drop_duplicates(NET)
    return runs[NET].drop_duplicates().merge(best[[*NET, "learning_rate"]]).merge(runs)


def compare_nets(runs):
    """The differences that the three questions ask for, as rows of compare_in_pairs, {protocol, dataset, share,
    question, nb_neurons, model_name, baseline_neurons, baseline, ..., halves: mean difference in the first and in the
    second half of the iterations}; corrected within what get_pairs gives as one list."""
    rows = []
    for (protocol, dataset, share), block in runs.groupby(NET[:3], sort=False):
        accuracies = block.pivot(index="iteration", columns=BLOCK[2:] + IDENTITY[3:], values="test_accuracy")
        sizes = block.groupby(BLOCK[2:] + IDENTITY[3:], sort=False)["nb_model_parameters"].first()
        for question, pairs in get_pairs(sizes.to_dict(), (dataset, share) == ("pendigits", 0.1)):
            nets, baselines = map(list, zip(*pairs))
            table = compare_in_pairs(accuracies[nets], accuracies[baselines])
            differences = accuracies[nets] - accuracies[baselines].to_numpy()
            halves = [differences[:len(differences) // 2].mean(), differences[len(differences) // 2:].mean()]
            rows += [{"protocol": protocol, "dataset": dataset, "share": share, "question": question,
                      "nb_neurons": net[0], "model_name": net[1], "baseline_neurons": baseline[0],
                      "baseline": baseline[1], **table.loc[net].to_dict(), "halves": [half[net] for half in halves]}
                     for net, baseline in pairs]
    return rows


def get_pairs(sizes, at_equal_size):
    """(question, pairs of a net and its baseline) of nets {(neurons, model name): parameters}, a list for each column
    of a table."""
    for nb_neurons in dict.fromkeys(nb_neurons for nb_neurons, _ in sizes):
        names = [name for number, name in sizes if number == nb_neurons and name != DENSE]
        for question, pairs in (
            ("structure", [(name, DENSE) for name in names if not name.startswith("standard")]),
            ("initial matrix", [(name, DENSE) for name in names if name.startswith("standard")]),
            ("structure or initial matrix", [(f"ss_{d}_dim", f"standard_as_ss_{d}") for d in (1, 2, 5)
                                             if f"standard_as_ss_{d}" in names]),
        ):
            if pairs:
                yield question, [((nb_neurons, net), (nb_neurons, baseline)) for net, baseline in pairs]
    for pattern in COMPETITORS.values() if at_equal_size else ():
        competitors = [net for net in sizes if re.fullmatch(pattern, net[1])]
        yield "equal size", [(net, max(smaller, key=sizes.get)) for net in sizes if re.fullmatch(r"ss_\d+_dim", net[1])
                             and (smaller := [other for other in competitors if sizes[other] <= sizes[net]])]


def get_initial_scale(statespace_dim, nb_neurons):
    """Root mean square of the entries of an SSS layer's initial matrix, over that of the Glorot-uniform one, n^-½."""
    torch.manual_seed(0)
    matrix = SemiseparableLayer(nb_neurons, statespace_dim, output_size=nb_neurons).to_matrix()
    return (nb_neurons * matrix.square().mean()).sqrt().item()


# ---- the page ----

def make_page(numbers):
    """docs/results.md (str)"""
    nets = {name_net(row): row for row in numbers["nets"]}
    comparisons = numbers["comparisons"]
    differences = {f"{name_net(row)} - {row['baseline_neurons']} {row['baseline']}": format_difference(row)
                   for row in comparisons}
    decided = [row for row in comparisons if row["verdict"] != "undecided"]
    nb_same = sum(row["halves"][0] * row["halves"][1] > 0 for row in decided)
    return (Path(__file__).parent / "results_template.md").read_text(encoding="utf-8").format(
        accuracy={name: format_accuracy(row) for name, row in nets.items()}, difference=differences,
        size={name: f"{row['nb_model_parameters']:,.0f}" for name, row in nets.items()},
        rate={name: f"{row['learning_rate']:g}" for name, row in nets.items()},
        scale={f"SSS-{d}": f"{scale:.0%}" for d, scale in numbers["initial_scales"].items()},
        verdicts=count_verdicts(comparisons), nb_decided=len(decided), nb_same=nb_same,
        structure_paper=tabulate_structures(numbers, PAPER, ("pendigits", "digits")),
        structure_tuned=tabulate_structures(numbers, TUNED, ("pendigits", "digits")),
        rates=tabulate_rates(numbers), initial_matrix=tabulate_initial_matrices(numbers),
        equal_size=tabulate_equal_sizes(numbers),
        others_paper=tabulate_structures(numbers, PAPER, NB_OFFICIAL),
        others_tuned=tabulate_structures(numbers, TUNED, NB_OFFICIAL),
        parts="; ".join(f"{DATASETS[name]}: {numbers['data_sizes'][name][0]:,} of {nb_samples:,} training samples, "
                        f"{numbers['data_sizes'][name][1]} of {nb_classes} classes"
                        for name, (nb_samples, nb_classes) in NB_OFFICIAL.items()),
        nb_runs=numbers["nb_runs"], nb_diverged=numbers["nb_diverged"], hours=numbers["hours"])


def name_net(row):
    """As the template has it: "tuned 200 ss_1_dim" on pendigits at share 0.1, "tuned digits 1 50 ss_1_dim" elsewhere."""
    where = "" if (row["dataset"], row["share"]) == ("pendigits", 0.1) else f"{row['dataset']} {row['share']:g} "
    return f"{row['protocol']} {where}{row['nb_neurons']} {row['model_name']}"


def count_verdicts(comparisons):
    """{protocol and baseline: how many SSS nets are better or worse, pendigits and digits only}"""
    counts = {}
    for row in comparisons:
        if row["model_name"].startswith("ss_") and row["dataset"] not in NB_OFFICIAL:
            competitor = next((name for name, pattern in COMPETITORS.items() if row["question"] == "equal size"
                               and re.fullmatch(pattern, row["baseline"])), row["question"])
            counts.setdefault(f"{row['protocol']} {competitor}", []).append(row["verdict"])
    return {name: f"better in {verdicts.count('better')} and worse in {verdicts.count('worse')} of {len(verdicts)}"
            for name, verdicts in counts.items()}


def tabulate_structures(numbers, protocol, names):
    """Differences to the dense net of as many neurons, on some data sets; a row for each structure."""
    differences = {name_net(row): row for row in numbers["comparisons"] if row["question"] == "structure"}
    cells = {}
    for row in numbers["nets"]:
        is_dense = name_net({**row, "model_name": "ss_1_dim"}) in differences and row["model_name"] == DENSE
        if row["protocol"] == protocol and row["dataset"] in names and (is_dense or name_net(row) in differences):
            cell = format_accuracy(row) if is_dense else format_difference(differences[name_net(row)])
            if protocol == TUNED:
                cell += f", {row['learning_rate']:g}" + "†" * (row["learning_rate"] in (1e-3, 1e-1))
            column = f"{DATASETS[row['dataset']]}, share {row['share']:g}, {row['nb_neurons']} neurons"
            cells[re.sub(r"Monarch.*", "Monarch", format_family(row["model_name"])), column] = cell
            nb_runs = row["nb_runs"]
    return format_table(f"{protocol}, n = {nb_runs}", cells)


def tabulate_rates(numbers):
    """Mean test accuracies at all learning rates, pendigits, share 0.1, 50 neurons, tuned."""
    return format_table("learning rate", {
        (format_family(row["model_name"]), rate):
            f"**{accuracy:.3f}**" if float(rate) == row["learning_rate"] else f"{accuracy:.3f}"
        for row in numbers["nets"] if name_net(row).startswith(f"{TUNED} 50 ")
        for rate, (_, accuracy) in row["by_rate"].items()})


def tabulate_initial_matrices(numbers):
    """Accuracies of nets by their initial matrix, and SSS nets minus dense ones that start alike, as in the paper."""
    names = [DENSE, *dict.fromkeys(row["model_name"] for row in numbers["comparisons"]
                                   if row["question"] == "initial matrix")]
    cells = {(format_family(row["model_name"]), f"{row['nb_neurons']} neurons"): format_accuracy(row)
             for name in names for row in numbers["nets"]
             if name_net(row) in [f"{PAPER} {nb_neurons} {name}" for nb_neurons in (50, 100, 200)]}
    for row in numbers["comparisons"]:
        if row["question"] == "initial matrix":
            cells[format_family(row["model_name"]), f"{row['nb_neurons']} neurons"] += f" ({format_difference(row)})"
    cells |= {(f"{format_family(row['model_name'])} minus {format_family(row['baseline'])}",
               f"{row['nb_neurons']} neurons"): format_difference(row)
              for row in numbers["comparisons"] if row["question"] == "structure or initial matrix"}
    return format_table(PAPER, cells)


def tabulate_equal_sizes(numbers):
    """SSS nets minus the nets of other structures with the closest number of parameters not above their own."""
    sizes, cells = {name_net(row): row["nb_model_parameters"] for row in numbers["nets"]}, {}
    for row in numbers["comparisons"]:
        if row["question"] == "equal size":
            competitor = next(name for name, pattern in COMPETITORS.items() if re.fullmatch(pattern, row["baseline"]))
            baseline = {**row, "nb_neurons": row["baseline_neurons"], "model_name": row["baseline"]}
            net, other = (f"{format_family(net['model_name'])} of {net['nb_neurons']} ({sizes[name_net(net)]:,.0f})"
                          for net in (row, baseline))
            cells[net, f"{competitor} net"] = other
            cells[net, f"{row['protocol']}, minus {competitor}"] = format_difference(row)
    return format_table("SSS net", cells)


def format_table(title, cells):
    """Markdown of cells {(row, column): text}."""
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    lines = [[title, *columns], ["---", *["---:"] * len(columns)],
             *([row, *(cells.get((row, column), "–") for column in columns)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_accuracy(row):
    return f"{row['test_accuracy_mean']:.3f} ± {row['test_accuracy_sd']:.3f}"


def format_difference(row):
    """Mean ± half of the 95 % interval, bold with a verdict."""
    half_width = (row["interval_high"] - row["interval_low"]) / 2
    text = f"{row['difference_mean']:+.3f} ± {half_width:.3f}".replace("-", "−")
    return text if row["verdict"] == "undecided" else f"**{text}**"
