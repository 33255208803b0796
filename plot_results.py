"""Look at the results of a sweep: the figures.

    python plot_results.py [benchmark_result.p]

prints the table and the failures, and writes benchmark_result.png and benchmark_result_learning_curves.png beside the
pickle.
their order. A run without a finite test accuracy counts as failed and enters no figure.
All functions raise ValueError if the dict is no result of a sweep.
"""
import io
import math
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmark_results import load_results
from result_tables import (compare_with_dense, format_summary_table, get_families_with_runs, get_nb_parameters,
                           get_runs, shorten, summary_table)

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
# Of more state dimensions, from 6 on to the lighter; the steps shrink, as the difference that a dimension makes does.
FIRST_LARGE_COLOR, LAST_LARGE_COLOR = (163, 24, 156), (255, 201, 236)  # red, green, blue
OTHER_COLORS = ("#e69f00", "#cc79a7", "#7f7f7f", "#56b4e9")
OTHER_MARKERS = ("p", "h", "<", ">", "*")


class ResultFigure(Figure):
    """A matplotlib Figure that a notebook displays when it ends a cell.

    pyplot's figures live until somebody closes them, and a notebook may show them twice. A figure made without pyplot,
    like this one, touches no global state and no backend, but of a plain Figure a notebook only prints the name.
    """

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def get_family_style(model_name):
    """{"color": ..., "marker": ...} of a family: fixed for the paper's seven, else derived from the name."""
    if model_name in FAMILY_STYLES:
        return dict(FAMILY_STYLES[model_name])
    if parsed := re.fullmatch(r"ss_([1-9]\d*)_dim", model_name):
        d = int(parsed[1])
        color = [round(last + (first - last) * 6 / d) for first, last in zip(FIRST_LARGE_COLOR, LAST_LARGE_COLOR)]
        return {"color": "#{:02x}{:02x}{:02x}".format(*color), "marker": OTHER_MARKERS[d % len(OTHER_MARKERS)]}
    n = sum(model_name.encode()) + len(model_name)  # unlike hash(), the same in every process
    return {"color": OTHER_COLORS[n % len(OTHER_COLORS)], "marker": OTHER_MARKERS[n % len(OTHER_MARKERS)]}


# ---- the figures ------------------------------------------------------------------------------------------

def plot_accuracy(results):
    """Test accuracy against number of parameters, one panel per dataset and share; a matplotlib Figure.

    A marker is the mean over a family's runs, the dashes of its colour are the single runs. With several numbers of
    neurons a thin line connects the means. The parameter axis is logarithmic where it spans more than a factor of ten.
    """
    panels = {}  # (dataset, share) -> model_name -> [(nb_model_parameters, [test_accuracy, ...]), ...]
    by_identity, _ = get_runs(results)
    for (dataset, share, _, model_name), runs in by_identity.items():
        families = panels.setdefault((dataset, share), {})
        if runs:
            accuracies = [run["test_accuracy"] for run in runs.values()]
            families.setdefault(model_name, []).append((get_nb_parameters(runs), accuracies))

    nb_shares = len(set(results["training_set_shares"]))
    # One row per dataset, unless that is too wide or there is one share only.
    nb_columns = nb_shares if 1 < nb_shares <= 5 else max(1, min(4, len(panels)))
    panel_size = {1: (6.4, 4.2), 2: (4.8, 3.4)}.get(nb_columns, (3.2, 2.7))
    figure, axes = _new_figure(max(1, len(panels)), nb_columns, panel_size)
    for ax, ((dataset, share), families) in zip(axes, panels.items()):
        ax.set_title(f"{shorten(dataset, 32)}\ntraining share {share:g}", parse_math=False)
        for model_name, points in families.items():
            style = get_family_style(model_name)
            runs = [(size, accuracy) for size, accuracies in points for accuracy in accuracies]
            means = sorted((size, float(np.mean(accuracies))) for size, accuracies in points)
            # The dashes are wider than the marker of the mean, so that no run hides behind one.
            ax.plot(*zip(*runs), color=style["color"], linestyle="none", marker="_", markersize=12,
                    markeredgewidth=1.2, label=model_name)
            ax.plot(*zip(*means), **style, linewidth=0.8, markersize=7.5, markeredgecolor="white",
                    markeredgewidth=0.6, label=model_name)
        if families:
            _set_parameter_axis(ax, [size for points in families.values() for size, _ in points])
    _label_axes(axes, nb_columns, "Model parameters (count)", "Test accuracy\n(fraction of samples)")
    _add_legend(figure, "markers: means, dashes: single runs", [
        Line2D([], [], **get_family_style(name), linestyle="none", markersize=7.5, label=shorten(name, 20))
        for name in get_families_with_runs(by_identity)])
    return figure


def plot_learning_curves(results, nb_neurons=None):
    """Training (solid) and validation (dashed) accuracy over epochs; a matplotlib Figure.

    One row of panels per dataset and share, one column per family that has runs, for one number of neurons: the first
    of the sweep if None, ValueError if the sweep has no such. Lines are medians over the runs, shades their ranges
    (minimum to maximum). Runs stop at different epochs; one that has stopped keeps its last accuracy, as it keeps its
    weights, which are the ones tested. So every epoch's median is over the same runs and does not jump when one ends;
    a dotted line marks where the first run stops. Accuracies that are not finite are left out of their epoch.
    """
    by_identity, _ = get_runs(results)
    if nb_neurons is None:
        nb_neurons = next(iter(results["nb_neurons_list"]), None)
    elif nb_neurons not in results["nb_neurons_list"]:
        raise ValueError(f"the sweep has no {nb_neurons} neurons, but {results['nb_neurons_list']}")
    by_identity = {
        key: [run for run in runs.values() if run["accuracy_history"] and run["val_accuracy_history"]]
        for key, runs in by_identity.items() if key[2] == nb_neurons}
    rows = list(dict.fromkeys(key[:2] for key in by_identity))
    columns = get_families_with_runs(by_identity) or ["all families"]

    width = min(6.4, max(1.8, 12.6 / len(columns)))
    height = 3.2 if len(rows) < 2 else 2.4
    figure, axes = _new_figure(max(1, len(rows)) * len(columns), len(columns), (width, height),
                               sharex="row", sharey="row")
    for ax, ((dataset, share), model_name) in zip(axes, product(rows, columns)):
        titles = dataset, f"share {share:g}, {model_name}"
        ax.set_title("\n".join(shorten(title, int(13.5 * width)) for title in titles), parse_math=False)
        runs = by_identity.get((dataset, share, nb_neurons, model_name))
        if not runs:
            continue
        color = get_family_style(model_name)["color"]
        for key, linestyle, alpha in (("val_accuracy_history", "--", 0.12), ("accuracy_history", "-", 0.3)):
            median, lowest, highest = _median_and_range([run[key] for run in runs])
            epochs = np.arange(1, len(median) + 1)
            ax.fill_between(epochs, lowest, highest, color=color, alpha=alpha, linewidth=0)
            ax.plot(epochs, median, color=color, linestyle=linestyle, linewidth=1.1)
        lengths = [len(run["accuracy_history"]) for run in runs]
        if min(lengths) < max(lengths):
            ax.axvline(min(lengths), color="#7f7f7f", linestyle=":", linewidth=1)
    _label_axes(axes, len(columns), "Epoch", "Accuracy\n(fraction of samples)")
    _add_legend(figure, f"{nb_neurons} neurons; a run that has stopped keeps its last accuracy", [
        Line2D([], [], color="#555555", label="training, median"),
        Patch(color="#555555", alpha=0.3, linewidth=0, label="training, range"),
        Line2D([], [], color="#555555", linestyle="--", label="validation, median"),
        Patch(color="#555555", alpha=0.12, linewidth=0, label="validation, range"),
        Line2D([], [], color="#555555", linestyle=":", label="first run stops")])
    return figure


def _median_and_range(histories):
    """Median, minimum and maximum per epoch, each (nb_epochs,); shorter histories keep their last value."""
    nb_epochs = max(len(history) for history in histories)
    held = [[*history, *[history[-1]] * (nb_epochs - len(history))] for history in histories]
    held = np.ma.masked_invalid(np.array(held, dtype=float))  # (nb_runs, nb_epochs)
    statistics = (np.ma.median(held, axis=0), held.min(axis=0), held.max(axis=0))
    return [np.ma.filled(statistic, math.nan) for statistic in statistics]


def _new_figure(nb_panels, nb_columns, panel_size, **subplots_arguments):
    nb_rows = math.ceil(nb_panels / nb_columns)
    figure = ResultFigure(figsize=(max(6.4, panel_size[0] * nb_columns), panel_size[1] * nb_rows + 0.8),
                          dpi=100, layout="constrained")
    axes = figure.subplots(nb_rows, nb_columns, squeeze=False, **subplots_arguments).ravel()
    for ax in axes[nb_panels:]:
        ax.remove()
    return figure, axes[:nb_panels]


def _set_parameter_axis(ax, sizes):
    span = max(sizes) / min(sizes)
    if span > 10:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 100 else (1,)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _label_axes(axes, nb_columns, x_label, y_label):
    """Name the axes along the left and lower edges, in a size for small panels; mark panels without runs."""
    for index, ax in enumerate(axes):
        if index % nb_columns == 0:
            ax.set_ylabel(y_label, fontsize=8)
        if index + nb_columns >= len(axes):
            ax.set_xlabel(x_label, fontsize=8)
        ax.title.set_fontsize(8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
        if not ax.lines:
            ax.text(0.5, 0.5, "no runs", transform=ax.transAxes, ha="center", va="center", color="#7f7f7f")
            ax.tick_params(bottom=False, labelbottom=False)


def _add_legend(figure, title, handles):
    """Beneath all panels, where it covers no data."""
    if handles:
        nb_rows = math.ceil(len(handles) / int(figure.get_figwidth() / 1.5))
        figure.legend(handles=handles, title=title, loc="outside lower center", fontsize=8, title_fontsize=8,
                      ncols=math.ceil(len(handles) / nb_rows))


def main(arguments=None):
    """Print the table and write both figures beside the pickle; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: python plot_results.py [benchmark_result.p]", file=sys.stderr)
        return 2
    path = Path(arguments[0] if arguments else "benchmark_result.p")
    try:
        results = load_results(path)
        print(format_summary_table(results))
        for suffix, plot in (("", plot_accuracy), ("_learning_curves", plot_learning_curves)):
            picture = path.with_name(f"{path.stem}{suffix}.png")
            plot(results).savefig(picture, dpi=100)
            print(f"wrote {picture}")
    except (OSError, ValueError) as error:
        print(f"plot_results.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
