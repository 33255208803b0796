"""What the study shows: all numbers in results.json; docs/results.md, of them and results_template.md; figures."""

import json
import re
from pathlib import Path

import pandas as pd
import torch

from plot_results import DENSE, IDENTITY, compare_in_pairs, format_family, get_half_width, results_to_dataframe
from semiseparablemodels import SemiseparableLayer
from study.figures import draw_figures

TITLES = {"hand_posture": "hand postures", "mnist": "MNIST", "cifar10": "CIFAR-10"}
NET = ["protocol", *IDENTITY]
TEMPLATE = Path(__file__).with_name("results_template.md")
COMPETITORS = {"dense": DENSE, "low rank": r"rank_\d+", "Monarch": r"monarch_\d+"}  # at equal size, by their names


def write_documents(study, numbers_folder, docs_folder):
    """results.json, and results.md with its figures, of the results of complete sweeps, of one learning rate each."""
    numbers = make_numbers(study)
    (docs_folder / "results.md").write_text(make_page(numbers), encoding="utf-8")
    draw_figures(numbers, docs_folder)
    (numbers_folder / "results.json").write_text(json.dumps(numbers).replace("}, {", "},\n{") + "\n", encoding="utf-8")


def make_numbers(study):
    """All that the page and the figures show, as plain data.

    - nets: accuracies at the chosen learning rate; by_rate: {rate: mean validation and mean test accuracy}
    - comparisons: see compare_nets; halves: the mean difference in either half of the iterations
    - initial_scales: {d: root mean square of the initial matrix of SSS-d of 200 neurons, over a Glorot-uniform one's}
    """
    runs = collect_runs(study)
    chosen = choose_rates(runs)
    nets = chosen.groupby(NET, sort=False).agg(
        nb_model_parameters=("nb_model_parameters", "first"), learning_rate=("learning_rate", "first"),
        nb_runs=("iteration", "count"), epochs_mean=("nb_epochs", "mean"), test_accuracy_mean=("test_accuracy", "mean"),
        test_accuracy_sd=("test_accuracy", "std"))
    nets["interval_half_width"] = get_half_width(nets["test_accuracy_sd"], nets["nb_runs"])
    means = runs.groupby([*NET, "learning_rate"])[["best_val_accuracy", "test_accuracy"]].mean()
    nets["by_rate"] = [{f"{rate:g}": list(accuracies) for rate, *accuracies in means.xs(net).itertuples()}
                       for net in nets.index]
    torch.manual_seed(0)
    matrices = {d: SemiseparableLayer(200, d, output_size=200).to_matrix() for d in (1, 2, 5)}
    return {"nets": nets.reset_index().to_dict("records"), "comparisons": compare_nets(chosen),
            "initial_scales": {d: (200 * matrix.square().mean()).sqrt().item() for d, matrix in matrices.items()},
            "nb_runs": len(runs), "nb_diverged": int(runs["training_time"].isna().sum()),
            "hours": runs["training_time"].sum() / 3600}


def collect_runs(study):
    """All runs at all rates; one whose loss became NaN has the accuracy of a guess."""
    rows = []
    for results in study:
        protocol = "as in the paper" if results["softmax_twice"] else "tuned"
        common = {"protocol": protocol, "learning_rate": results["learning_rate"]}
        rows += [{**common, **row} for row in results_to_dataframe(results).to_dict("records")]
        for failure in results["failures"]:
            guess = 1 / (5 if failure["dataset"] == "hand_posture" else 10)  # classes
            rows.append({**common, **failure, "best_val_accuracy": guess, "test_accuracy": guess})
    return pd.DataFrame(rows)


def choose_rates(runs):
    """The runs of each net at the rate of its highest mean validation accuracy, the lowest such rate."""
    means = runs.groupby([*NET, "learning_rate"])["best_val_accuracy"].mean().reset_index()  # rates ascend
    best = means.sort_values("best_val_accuracy", ascending=False, kind="stable").drop_duplicates(NET)
    return runs[NET].drop_duplicates().merge(best[[*NET, "learning_rate"]]).merge(runs)


def compare_nets(runs):
    """Rows {protocol, dataset, share, question, nb_neurons, model_name, baseline_neurons, baseline_name, ...}"""
    rows = []
    for setting, block in runs.groupby(NET[:3], sort=False):
        accuracies = block.pivot(index="iteration", columns=NET[3:], values="test_accuracy")
        sizes = block.groupby(NET[3:], sort=False)["nb_model_parameters"].first().to_dict()
        for question, pairs in get_pairs(sizes, setting[1:] == ("pendigits", 0.1)):
            nets, baselines = map(list, zip(*pairs))
            table = compare_in_pairs(accuracies[nets], accuracies[baselines])
            differences, half = accuracies[nets] - accuracies[baselines].to_numpy(), len(accuracies) // 2
            rows += [{**dict(zip(NET, (*setting, *net))), "question": question, **table.loc[net].to_dict(),
                      "baseline_neurons": baseline[0], "baseline_name": baseline[1],
                      "parameter_ratio": sizes[net] / sizes[baseline],
                      "halves": [differences[net][:half].mean(), differences[net][half:].mean()]}
                     for net, baseline in pairs]
    return rows


def get_pairs(sizes, at_equal_size):
    """[(question, [(net, baseline)])] of nets {(neurons, model name): parameters}; p values are corrected in a list."""
    lists = []
    for n in dict.fromkeys(nb_neurons for nb_neurons, _ in sizes):
        names = [name for nb_neurons, name in sizes if nb_neurons == n and name != DENSE]
        controls = [name for name in names if name.startswith("standard")]
        alike = [(re.sub(r"standard_as_(ss_\d+)", r"\1_dim", name), name) for name in controls if "_as_" in name]
        for question, pairs in (("structure", [(name, DENSE) for name in names if name not in controls]),
                                ("initial matrix", [(name, DENSE) for name in controls]),
                                ("same initial matrix", alike)):
            lists.append((question, [((n, name), (n, baseline)) for name, baseline in pairs]))
    for competitor, pattern in COMPETITORS.items() if at_equal_size else ():
        lists.append((f"equal size: {competitor}", [
            (net, max(smaller, key=sizes.get)) for net in sizes if net[1].startswith("ss_") and (smaller := [
                other for other in sizes if re.fullmatch(pattern, other[1]) and sizes[other] <= sizes[net]])]))
    return [(question, pairs) for question, pairs in lists if pairs]


def make_page(numbers):
    """docs/results.md (str). The template names a net "tuned 200 ss_1_dim", on other data "tuned digits 1 50 ss_1_dim",
    a difference by question and net, and verdicts on SSS nets and tables by question, protocol and number of runs."""
    nets, comparisons = {name_net(row): row for row in numbers["nets"]}, numbers["comparisons"]
    accuracies = {name: "{test_accuracy_mean:.3f} ± {test_accuracy_sd:.3f}".format(**row) for name, row in nets.items()}
    by_net = {f"{row['question']}, {name_net(row)}": row for row in comparisons}
    verdicts, tables = {}, {}
    for row in comparisons:
        question = f"{row['question']}, {row['protocol']}, n = {row['nb_pairs']}"
        if row["model_name"].startswith("ss_"):
            verdicts.setdefault(question, []).append(row["verdict"])
        tables.setdefault(question.split(":")[0], []).extend(make_cells(nets, accuracies, row))
    tables["equal size"].sort(key=lambda cell: cell[1].removeprefix("minus ").lower())  # columns by structure
    return TEMPLATE.read_text(encoding="utf-8").format(
        accuracy=accuracies,
        difference={name: format_difference(row) for name, row in by_net.items()},
        verdicts={question: f"better in {found.count('better')} and worse in {found.count('worse')} of {len(found)}"
                  for question, found in verdicts.items()},
        halves={name: "{:+.3f} and {:+.3f}".format(*row["halves"]).replace("-", "−") for name, row in by_net.items()},
        tables={table: format_table(cells) for table, cells in tables.items()},
        rates=format_table([(format_family(row["model_name"]), rate, f"{accuracy:.3f}") for name, row in nets.items()
                            if name.startswith("tuned 50 ") for rate, (_, accuracy) in row["by_rate"].items()]),
        **{key: numbers[key] for key in ("nb_runs", "nb_diverged", "hours")})


def name_net(row):
    where = "" if (row["dataset"], row["share"]) == ("pendigits", 0.1) else f"{row['dataset']} {row['share']:g} "
    return f"{row['protocol']} {where}{row['nb_neurons']} {row['model_name']}"


def make_cells(nets, accuracies, row):
    """(row, column, text) of table cells with a comparison: the difference, and the net that it is taken from."""
    net, baseline = nets[name_net(row)], nets[name_net(
        {**row, "nb_neurons": row["baseline_neurons"], "model_name": row["baseline_name"]})]
    name, baseline_name = (format_family(net["model_name"]) for net in (net, baseline))
    text, name = format_difference(row), re.sub(r"Monarch \d+", "Monarch", name)
    if row["question"].startswith("equal size"):
        sss, other = (f"{format_family(net['model_name'])} of {net['nb_neurons']}, {net['nb_model_parameters']:,.0f}"
                      for net in (net, baseline))
        competitor = row["question"].split(": ")[1]
        return [(sss, competitor, other), (sss, f"minus {competitor}, {row['protocol']}", text)]
    column = f"{TITLES.get(row['dataset'], row['dataset'])}, share {row['share']:g}, {row['nb_neurons']} neurons"
    if row["baseline_name"] != DENSE:
        return [(f"{name} minus {baseline_name}", column, text)]
    return [("dense", column, accuracies[name_net(baseline)] + format_rate(baseline)),
            (name, column, text + format_rate(net))]


def format_table(cells):
    """Markdown of cells (row, column, text)."""
    texts = {cell[:2]: cell[2] for cell in cells}
    rows, columns = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
    lines = [["", *columns], ["---", *["---:"] * len(columns)],
             *([row, *(texts.get((row, column), "–") for column in columns)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_difference(row):
    """Mean ± half of the 95 % interval, bold with a verdict."""
    half_width = (row["interval_high"] - row["interval_low"]) / 2
    text = f"{row['difference_mean']:+.3f} ± {half_width:.3f}".replace("-", "−")
    return text if row["verdict"] == "undecided" else f"**{text}**"


def format_rate(row):  # † at an end of the grid
    rates = [float(rate) for rate in row["by_rate"]]
    return f", {row['learning_rate']:g}{'†' * (row['learning_rate'] in (rates[0], rates[-1]))}" if rates[1:] else ""
