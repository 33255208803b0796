"""Look at the results of a sweep: the runs as a table, the comparison with the dense net, figures.

    python plot_results.py [benchmark_result.p]

prints a table and writes the figures beside the pickle. The functions take the results dict of `load_results` and show
what its lists name, in their order: plot_accuracy({**results, "training_set_shares": [0.1]}) has one share. A run
without a finite test accuracy counts as failed and enters no mean, comparison or figure. ValueError if the dict is no
result of a sweep.
"""

import argparse
import io
import math
import os
import re
import sys
import textwrap
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from benchmark_results import load_results

# matplotlib is imported with the first figure: workers need none, and what fails there costs no results.

DENSE = "standard_nn"  # the family that the others are compared with
MIN_PAIRS = 5  # of runs, below which no difference is called one
SIGNIFICANCE = 0.05  # share of cases without a difference in which one may be found; intervals are at 1 - SIGNIFICANCE
MAX_FAILURE_REASONS = 10  # listed beneath the table, the most frequent first

BLOCK = ["dataset", "share", "nb_neurons"]  # what families are compared within
IDENTITY = [*BLOCK, "model_name"]  # what the runs of a family have in common
RUN_COLUMNS = {"dataset": str, "share": float, "nb_neurons": int, "model_name": str, "iteration": int,
               "nb_model_parameters": int, "nb_epochs": int, "best_val_accuracy": float,
               "test_accuracy": float, "test_loss": float, "training_time": float}

FAMILY_NAMES = {DENSE: "dense", r"ss_(\d+)_dim": r"SSS-\1", r"rank_(\d+)": r"rank \1", r"monarch_(\d+)": r"Monarch \1",
                r"standard_as_ss_(\d+)": r"dense as SSS-\1", r"standard_scaled_(\d+)": r"dense at \1 %"}
# All pairs stay apart under simulated protanopia, deuteranopia and tritanopia; the markers serve greyscale.
FAMILY_STYLES = {
    "standard_nn": {"color": "#000000", "marker": "o"},
    "ss_1_dim": {"color": "#9dae5a", "marker": "^"},
    "ss_2_dim": {"color": "#12b0a8", "marker": "s"},
    "ss_3_dim": {"color": "#0a6b5a", "marker": "D"},
    "ss_4_dim": {"color": "#3a63d8", "marker": "v"},
    "ss_5_dim": {"color": "#5c1278", "marker": "P"},
    "rank_1": {"color": "#d55e00", "marker": "X"},
}
# The first of the larger ones, its colour, and the lighter one that the others approach.
SHADES = {"ss_#_dim": (6, "#a3189c", "#ffc9ec"), "rank_#": (2, "#8a3b00", "#e39a63")}
OTHER_COLORS = ("#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9")
OTHER_MARKERS = ("<", ">", "*", "p", "d", "8", "h")


def _get_runs(results):
    """The runs, {(dataset, share, nb_neurons, model_name): {iteration: run}} in the order of the sweep, and failures.

    Each family in results["model_names"] has an entry, and others that have runs. A run whose test accuracy is not
    finite is one of the failures, beside the recorded ones.
    """
    for key in ("dataset_names", "training_set_shares", "nb_neurons_list", "model_names", "nb_iterations"):
        if not isinstance(results, dict) or key not in results:
            raise ValueError(f"this is not the result of a sweep: it has no entry {key!r}")
    runs, failures = {}, list(results.get("failures", []))
    for dataset, share, nb_neurons in product(
            results["dataset_names"], results["training_set_shares"], results["nb_neurons_list"]):
        by_model = results.get(dataset, {}).get(share, {})
        with_runs = [name for name in by_model if by_model[name].get(nb_neurons)]
        for model_name in dict.fromkeys([*results["model_names"], *with_runs]):
            identity = dataset, share, nb_neurons, model_name
            runs[identity] = {}
            for iteration, run in sorted(by_model.get(model_name, {}).get(nb_neurons, {}).items()):
                if math.isfinite(run["test_accuracy"]):
                    runs[identity][iteration] = run
                else:
                    failures.append({**dict(zip(IDENTITY, identity)), "iteration": iteration,
                                     "reason": "test accuracy is not finite"})
    return runs, failures


def results_to_dataframe(results):
    """One row per run with a finite test accuracy, in the order of the sweep; the columns are RUN_COLUMNS."""
    rows = [(*identity, iteration, run["nb_model_parameters"], len(run["accuracy_history"]),
             max(run["val_accuracy_history"]), run["test_accuracy"], run["test_loss"], run["training_time"])
            for identity, runs in _get_runs(results)[0].items() for iteration, run in runs.items()]
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype(RUN_COLUMNS)


def summary_table(results):
    """One row per dataset, share, number of neurons and family.

    - dataset, share, nb_neurons, model_name
    - nb_runs; nb_model_parameters, epochs_mean, test_accuracy_mean, NaN without a run
    - nb_failures: iterations that failed; the failure of a whole dataset or family stands for all iterations it lacks
    - test_accuracy_sd: sample standard deviation (ddof = 1), NaN for fewer than two runs
    - best: True for the highest mean of its dataset, share and number of neurons
    """
    runs, failures = _get_runs(results)
    table = results_to_dataframe(results).groupby(IDENTITY).agg(
        nb_model_parameters=("nb_model_parameters", "first"), nb_runs=("iteration", "count"),
        epochs_mean=("nb_epochs", "mean"), test_accuracy_mean=("test_accuracy", "mean"),
        test_accuracy_sd=("test_accuracy", "std"))
    table = table.reindex(pd.MultiIndex.from_frame(pd.DataFrame(list(runs), columns=IDENTITY)))
    table["nb_runs"] = table["nb_runs"].fillna(0).astype(int)
    failed = {identity: set() for identity in runs}
    for failure, identity in product(failures, runs):
        if all(failure[key] in (None, part) for key, part in zip(IDENTITY, identity)):  # None: all there are
            iteration = failure["iteration"]
            failed[identity].update(range(results["nb_iterations"]) if iteration is None else [iteration])
    table.insert(2, "nb_failures", [len(failed[identity] - set(runs[identity])) for identity in runs])
    table["best"] = table["test_accuracy_mean"] == table.groupby(BLOCK)["test_accuracy_mean"].transform("max")
    return table.reset_index()


def format_summary_table(results):
    """The summary table as text: a block per dataset, share and number of neurons; then the failures by reason."""
    table, (_, failures) = summary_table(results), _get_runs(results)
    lines, width = [], max([len("model"), *map(len, table["model_name"])])
    for (dataset, share, nb_neurons), block in table.groupby(BLOCK, sort=False):
        lines += [f"{dataset}, share {share:g}, {nb_neurons} neurons",
                  f"  {'model':<{width}}  parameters    runs  failed    epochs  test accuracy"]
        for row in block.itertuples():
            size, epochs, accuracy = ("-", "-", "-") if not row.nb_runs else (
                f"{row.nb_model_parameters:.0f}", f"{row.epochs_mean:.1f}", f"{row.test_accuracy_mean:.3f}")
            lines.append(f"  {row.model_name:<{width}}  {size:>10}  {row.nb_runs:6}  {row.nb_failures:6}  {epochs:>8}"
                         f"  {accuracy}" + (f" ± {row.test_accuracy_sd:.3f}" if row.nb_runs > 1 else "")
                         + (" *" if row.best else ""))
        lines.append("")
    lines.append("test accuracy: mean ± sd over runs, * highest mean of its block")
    lines += ["", f"failures: {len(failures)}"] if failures else []
    reasons = Counter(failure["reason"] for failure in failures)
    prefixes = {"dataset": "", "share": "share ", "nb_neurons": "neurons ", "model_name": "", "iteration": "iteration "}
    for reason, count in reasons.most_common(MAX_FAILURE_REASONS):
        first = next(failure for failure in failures if failure["reason"] == reason)
        where = ", ".join(f"{prefix}{first[key]}" for key, prefix in prefixes.items() if first[key] is not None)
        text = (f"{count} times, first in " if count > 1 else "") + f"{where or 'the whole sweep'}: {reason}"
        lines += textwrap.wrap(" ".join(text.split()), 100, initial_indent="  ", subsequent_indent="    ", max_lines=4)
    if len(reasons) > MAX_FAILURE_REASONS:
        lines.append(f"  and {len(reasons) - MAX_FAILURE_REASONS} other reasons")
    return "\n".join(lines)


def compare_with_dense(results):
    """Does a family test better than the dense net? One row per dataset, share, number of neurons and family.

    Runs are paired by iteration, for those of one iteration share the validation split and the order of samples.

    - dataset, share, nb_neurons, model_name, nb_pairs
    - difference_mean: mean over the pairs of the test accuracy minus the dense net's
    - interval_low, interval_high: 95 % t interval of that mean, of this family alone, NaN for fewer than two pairs
    - p_value: of the paired t test, raised as Holm does it for the number of families with the same dataset, share and
      number of neurons; NaN for fewer than five pairs, which are not tested
    - verdict: "better" or "worse" if p_value < 0.05, else "undecided"
    - nb_model_parameters, parameter_ratio: of the net, and to the dense net's

    So where no family differs from the dense net, at most 5 % of the blocks have a verdict; of the intervals of many
    families one misses 0 by chance. Verdicts are about this training and test set. ValueError without a dense net.
    """
    runs, blocks = results_to_dataframe(results), []
    for key, families in summary_table(results).groupby(BLOCK, sort=False):
        if DENSE not in list(families["model_name"]):
            raise ValueError(f"the sweep has no family {DENSE!r}, but {', '.join(results['model_names'])}")
        # A column per family, a row per iteration, NaN where one lacks the other.
        accuracies = runs[(runs[BLOCK] == list(key)).all(axis=1)].pivot(
            index="iteration", columns="model_name", values="test_accuracy").reindex(columns=families["model_name"])
        others, sizes = accuracies.drop(columns=DENSE), families.set_index("model_name")["nb_model_parameters"]
        block = compare_in_pairs(others, accuracies[[DENSE] * others.shape[1]]).assign(
            nb_model_parameters=sizes, parameter_ratio=sizes / sizes[DENSE])
        blocks.append(families[IDENTITY].merge(block, on="model_name"))
    return pd.concat(blocks, ignore_index=True)


def compare_in_pairs(accuracies, baselines):
    """What compare_with_dense says of differences, one row per column: those of accuracies minus those of baselines.

    :param accuracies, baselines: frames with a row per iteration, of as many columns; of NaN no pair is made
    """
    with warnings.catch_warnings():  # scipy's, about few pairs and about differences that are all the same
        warnings.simplefilter("ignore")
        test = scipy.stats.ttest_rel(accuracies, baselines.to_numpy(), nan_policy="omit")
        low, high = test.confidence_interval(1 - SIGNIFICANCE)
    differences = accuracies - baselines.to_numpy()
    table = pd.DataFrame({
        "nb_pairs": differences.count(), "difference_mean": differences.mean(), "interval_low": low,
        "interval_high": high,  # where all differences are 0, t is 0 / 0
        "p_value": pd.Series(test.pvalue, differences.columns).fillna(1.0)})
    # Holm: the smallest is multiplied by the number of tests, the next by one less, and none gets below another.
    p_values = table["p_value"][table["nb_pairs"] >= MIN_PAIRS].sort_values()
    table["p_value"] = (p_values * np.arange(len(p_values), 0, -1)).clip(upper=1).cummax()
    table["verdict"] = np.where(table["difference_mean"] > 0, "better", "worse")
    table["verdict"] = table["verdict"].where(table["p_value"] < SIGNIFICANCE, "undecided")
    return table


def get_half_width(sd, nb_runs):
    """Half of the 95 % t interval of a mean over runs, of their sample standard deviation; numbers or columns."""
    return scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, nb_runs - 1) * sd / np.sqrt(nb_runs)


def make_figure(width, height):
    """A matplotlib Figure that a notebook displays when it ends a cell, without pyplot and its global state."""
    if not {"matplotlib", "IPython"} & sys.modules.keys():  # it needs no backend, and an unknown one fails the import
        os.environ.pop("MPLBACKEND", None)
    from matplotlib.figure import Figure

    class ResultFigure(Figure):
        def _repr_png_(self):
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()
    return ResultFigure((width, height), dpi=100, layout="constrained")


def save_figure(figure, path, dpi=100):
    """Write a figure to a .png file; the same figure gives the same bytes."""
    figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})


def write_labels(ax, x, points):
    """Write the names of points (name, x, y, colour) in a column at x, near their heights, with a thin line to each."""
    points = sorted(points, key=lambda point: point[2])
    heights, gap = np.array([y for _, _, y, _ in points]), 0.05 * np.ptp(ax.get_ylim())
    for _ in range(1000):  # neighbours that are too near push each other apart
        overlaps = np.clip(gap - np.diff(heights), 0, None) / 2
        heights += np.append(0, overlaps) - np.append(overlaps, 0)
    for (name, *xy, color), height in zip(points, heights):
        ax.annotate(name, xy, (x, height), fontsize=8, color=color, va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                    arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 3})


def format_family(model_name):
    """A name for readers, "dense", "SSS-2", "rank 1", "Monarch 5", "dense as SSS-2", "dense at 10 %"; others as they
    are."""
    for pattern, name in FAMILY_NAMES.items():
        model_name = re.sub(f"^{pattern}$", name, model_name)
    return model_name


def get_family_style(model_name):
    """{"color": ..., "marker": ...} of a family: fixed for the paper's seven, else derived from the name."""
    if model_name in FAMILY_STYLES:
        return dict(FAMILY_STYLES[model_name])
    kind, number = re.sub(r"\d+", "#", model_name), int("0" + re.sub(r"\D", "", model_name))
    color = OTHER_COLORS[(ord(kind[0]) + len(kind)) % len(OTHER_COLORS)]  # unlike hash(), the same in every process
    if kind in SHADES:
        first, *colors = SHADES[kind]  # the steps shrink, as the difference that one dimension or rank more makes does
        ends = [list(bytes.fromhex(end[1:])) for end in colors]  # red, green and blue
        color = "#" + bytes(np.average(ends, axis=0, weights=[first, number - first]).round().astype(np.uint8)).hex()
    return {"color": color, "marker": OTHER_MARKERS[number % len(OTHER_MARKERS)]}


def _new_figure(titles, nb_columns, x_label, y_label, legend_title, markers, panel_size=None, **arguments):
    """A figure with one panel per title; those of a row share the vertical axis. markers: arguments of each Line2D."""
    titles = titles or ["no runs"]
    nb_columns = max(1, min(nb_columns, len(titles)))
    nb_rows = math.ceil(len(titles) / nb_columns)
    width, height = panel_size or ((4.8, 3.8) if nb_columns < 3 else (3.4, 3.0))
    figure = make_figure(max(6.4, width * nb_columns), height * nb_rows + 1)
    from matplotlib.lines import Line2D

    axes = figure.subplots(nb_rows, nb_columns, squeeze=False, sharey="row", **arguments).ravel()
    for ax, title in zip(axes, titles):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(x_label, fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
    for ax in axes[len(titles):]:
        ax.remove()
    figure.supylabel(y_label, fontsize=9)
    figure.legend(handles=[Line2D([], [], **marker) for marker in markers], title=legend_title, fontsize=8,
                  title_fontsize=8, loc="outside lower center", ncols=int(figure.get_figwidth() // 1.6))
    return figure


def _plot_against_size(results, points, runs, x_format, x_label, y_label, legend_title):
    """One panel per dataset and share: points with bars, those of a family connected, and pale dashes for single runs.

    Both are frames with x and y beside what identifies them; points have the half_width of their bar, and is_filled.
    """
    names, widths = list(points["model_name"].unique()), results["nb_neurons_list"]
    blocks, nb_shares = list(points.groupby(["dataset", "share"], sort=False)), len(results["training_set_shares"])
    is_grid = 1 < nb_shares == len(blocks) / points["dataset"].nunique()  # a row per dataset, a column per share
    figure = _new_figure(
        [f"{dataset}\ntraining share {share:g}" for (dataset, share), _ in blocks], nb_shares if is_grid else 4,
        x_label, y_label, legend_title + ("; numbers: neurons" if len(widths) > 1 else f"; {widths[0]} neurons"),
        [dict(get_family_style(name), linestyle="-" if name == DENSE else "none", markersize=7,
              label=format_family(name)) for name in names])
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import EngFormatter, LogLocator

    panels = {key: ax for (key, _), ax in zip(blocks, figure.axes)}
    for (dataset, share, name), family in runs.groupby(["dataset", "share", "model_name"]):
        # The dashes are wider than the marker of the mean, so that no run hides behind one.
        panels[dataset, share].plot(family["x"], family["y"], color=get_family_style(name)["color"], alpha=0.3,
                                    linestyle="none", marker="_", markersize=12)
    if len(runs):
        for ax in figure.axes:
            ax.set_ylim(ax.get_ylim())  # has room for all runs; the bars of few runs may leave it
    for (dataset, share, name), family in points.sort_values("x").groupby(["dataset", "share", "model_name"]):
        ax, (color, marker) = panels[dataset, share], get_family_style(name).values()
        x, y = family["x"], family["y"]
        ax.errorbar(x, y, family["half_width"], color=color, linestyle="none", elinewidth=1, capsize=2.5)
        ax.plot(x, y, color=color, linewidth=1.4 if name == DENSE else 0.6, label=name)
        ax.scatter(x, y, 45, marker=marker, zorder=3, edgecolors=color,
                   facecolors=np.where(family["is_filled"], color, "white"))
        if name == DENSE and len(family) == 1:
            ax.axhline(y.iloc[0], color=color, linewidth=1.4, zorder=1)
        right, up = divmod(names.index(name) % 4, 2)  # so that numbers at neighbouring markers rarely meet
        for nb_neurons, *xy in zip(family["nb_neurons"], x, y):
            if len(widths) > 1 and nb_neurons:
                ax.annotate(str(nb_neurons), xy, (5 if right else -5, 3 if up else -3), textcoords="offset points",
                            ha="left" if right else "right", va="bottom" if up else "top", fontsize=6.5, color=color,
                            zorder=4, path_effects=[withStroke(linewidth=1.5, foreground="white")])
    for (_, block), ax in zip(blocks, figure.axes):
        span = block["x"].max() / block["x"].min()
        if span > 4:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if span < 10 else (1, 2, 5)))
            ax.xaxis.set_minor_formatter("")
        ax.xaxis.set_major_formatter(x_format or EngFormatter(sep=""))
        ax.margins(x=0.08)
    return figure


def plot_accuracy(results):
    """Test accuracy against number of parameters, one panel per dataset and share.

    A marker is the mean over a family's runs with its 95 % t interval, the pale dashes are the single runs. The line of
    the dense net is what a family has to beat: its mean, or with several numbers of neurons, each written at its
    marker, its means connected: a family above the line is more accurate than a narrower dense net of as many
    parameters. The axis is logarithmic where it spans more than a factor of four.
    """
    runs, table = results_to_dataframe(results), summary_table(results).dropna(subset=["test_accuracy_mean"])
    points = table.assign(x=table["nb_model_parameters"], y=table["test_accuracy_mean"], is_filled=True,
                          half_width=get_half_width(table["test_accuracy_sd"], table["nb_runs"]))
    return _plot_against_size(
        results, points, runs.assign(x=runs["nb_model_parameters"], y=runs["test_accuracy"]), None,
        "Model parameters (count)", "Test accuracy (fraction of samples)",
        "markers: means with 95 % intervals, dashes: single runs")


def plot_differences(results):
    """Difference to the dense net against the ratio of parameters, one panel per dataset and share.

    The rows of `compare_with_dense`: each net beside the dense one of as many neurons, which is at ratio 1 and
    difference 0. A bar is the 95 % t interval of the difference alone, left out below five pairs. A filled marker is a
    verdict; an empty one is undecided, even if its bar misses 0. ValueError if the sweep has no dense net.
    """
    rows = compare_with_dense(results)
    rows = rows[rows["nb_pairs"] > 0]
    # The interval of few pairs is so wide that it would hide all else.
    half_width = (rows["interval_high"] - rows["difference_mean"]).where(rows["nb_pairs"] >= MIN_PAIRS)
    points = rows.assign(x=rows["parameter_ratio"], y=rows["difference_mean"], half_width=half_width,
                         is_filled=rows["verdict"] != "undecided")
    dense = points.drop_duplicates(["dataset", "share"]).assign(
        model_name=DENSE, nb_neurons=0, x=1.0, y=0.0, half_width=math.nan, is_filled=True)
    return _plot_against_size(
        results, pd.concat([dense, points]), points[:0], "{x:g}", "Model parameters (ratio to the dense net)",
        "Test accuracy minus the dense net's", "bars: 95 % intervals; filled: better or worse (Holm); white: undecided")


def plot_learning_curves(results, nb_neurons=None):
    """Training (solid) and validation (dashed) accuracy over epochs.

    One row of panels per dataset and share, one column per family, for one number of neurons, the first of the sweep if
    None; ValueError if the sweep has no such. Lines are medians over the runs, shades their ranges. A run that has
    stopped keeps its last accuracy, as it keeps its weights: every epoch's median is over the same runs.
    """
    runs, _ = _get_runs(results)
    nb_neurons = nb_neurons or results["nb_neurons_list"][0]
    if nb_neurons not in results["nb_neurons_list"]:
        raise ValueError(f"the sweep has no {nb_neurons} neurons, but {results['nb_neurons_list']}")
    runs = {key: list(found.values()) for key, found in runs.items() if found and key[2] == nb_neurons}
    names = list(dict.fromkeys(key[3] for key in runs))
    panels = list(product(dict.fromkeys(key[:2] for key in runs), names))
    figure = _new_figure(
        [f"{dataset}\nshare {share:g}\n{format_family(name)}" for (dataset, share), name in panels], len(names),
        "Epoch", "Accuracy (fraction of samples)",
        f"{nb_neurons} neurons; lines: medians, shades: ranges; a run that has stopped keeps its last accuracy",
        [dict(color="#555555", linestyle=style, label=label) for label, style in (
            ("training", "-"), ("validation", "--"), ("first run stops", ":"))], (1.8, 2.8), sharex="row")
    axes = dict(zip(panels, figure.axes))
    for (*block, _, name), family in runs.items():
        ax, color = axes[tuple(block), name], get_family_style(name)["color"]
        for key, linestyle, alpha in (("val_accuracy_history", "--", 0.12), ("accuracy_history", "-", 0.3)):
            curves = pd.concat([pd.Series(run[key]) for run in family], axis=1).ffill()  # (nb_epochs, nb_runs)
            epochs = curves.index + 1
            ax.fill_between(epochs, curves.min(axis=1), curves.max(axis=1), color=color, alpha=alpha, linewidth=0)
            ax.plot(epochs, curves.median(axis=1), color=color, linestyle=linestyle, linewidth=1.1)
        ax.axvline(min(len(run["accuracy_history"]) for run in family), color="#7f7f7f", linestyle=":", linewidth=1)
    return figure


FIGURES = {plot_accuracy: "", plot_differences: "_differences", plot_learning_curves: "_learning_curves"}


def draw_figures(results, path, plots=tuple(FIGURES)):
    """Write figures beside the file of the results, no differences if there is no dense net; paths of the pictures.

    One that cannot be drawn costs a message: the results are safe and matter more.
    """
    pictures = []
    for plot in plots:
        if plot is not plot_differences or DENSE in results["model_names"]:
            picture = Path(path).with_name(f"{Path(path).stem}{FIGURES[plot]}.png")
            try:
                save_figure(plot(results), picture)
                pictures.append(picture)
            except Exception as problem:  # matplotlib raises any, e.g. without the LaTeX that a user's settings ask for
                print(f"no {picture.name}: {type(problem).__name__}: {problem}", file=sys.stderr)
    return pictures


def main(arguments=None):
    """Print the table and write the figures beside the pickle."""
    parser = argparse.ArgumentParser(description="Print the table of a sweep and write its figures beside its file.")
    parser.add_argument("path", nargs="?", default="benchmark_result.p", help="default: %(default)s")
    path = Path(parser.parse_args(arguments).path).expanduser()
    try:
        results = load_results(path)
        print(format_summary_table(results))
        print(*(f"wrote {picture}" for picture in draw_figures(results, path)), sep="\n")
    except (OSError, ValueError) as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    main()
