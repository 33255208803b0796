"""Look at the results of a sweep: the figures.

    python plot_results.py [benchmark_result.p]

prints the table of result_tables.py and writes the figures beside the pickle, each as .png and as .pdf.
The functions take the results dict that `benchmark_results.load_results` returns and show what its lists name, in
their order: plot_accuracy({**results, "training_set_shares": [0.1]}) has one share. A run without a finite test
accuracy counts as failed and enters no figure. All plot functions return a matplotlib Figure, and raise ValueError if
the dict is no result of a sweep.
"""
import math
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from benchmark_results import load_results
from console import prints_without_failing
# ResultFigure and summary_table are here for those who import them from this file.
from figure_parts import (ResultFigure, add_legend, get_family_style, get_rows, label_axes, new_figure, new_panels,
                          save_figure, set_parameter_axis, set_y_range)
from result_tables import (DENSE, MIN_PAIRS, compare_with_dense, format_summary_table, get_families_with_runs,
                           get_mean_interval, get_nb_parameters, get_runs, shorten, summary_table)

FAR = 6  # times as far from the dense net as usual is too far for the scale of plot_differences

# ---- accuracy and parameters ------------------------------------------------------------------------------

class Point(NamedTuple):
    """A family with one number of neurons, in a panel."""
    model_name: str
    x: float
    mean: float
    low: float  # ends of the interval of the mean
    high: float
    label: str = ""
    is_filled: bool = True

    @property
    def reach(self):
        """The largest distance of mean and interval from 0."""
        return max(abs(value) for value in (self.mean, self.low, self.high) if not math.isnan(value))


def plot_accuracy(results, model_names=None):
    """Test accuracy against number of parameters, one panel per dataset and share.

    A marker is the mean over a family's runs with its 95 % t interval, the pale dashes are the single runs. The line of
    the dense net is what a family has to beat: its mean, or with several numbers of neurons its means connected, so
    that a family above the line is more accurate than a dense net of as many parameters, that is a narrower one. With
    several numbers of neurons each is written at its marker. The parameter axis is logarithmic where it spans more than
    a factor of four. The accuracy axis has room for all runs; intervals of few runs may leave it.

    :param model_names: the families to show; None: all
    """
    by_identity, _ = get_runs(results)
    by_identity = {key: runs for key, runs in by_identity.items() if model_names is None or key[3] in model_names}
    figure, panels = new_panels(results)
    points, accuracies = {ax: [] for ax in figure.axes}, {ax: [] for ax in figure.axes}
    for (dataset, share, nb_neurons, model_name), runs in by_identity.items():
        if runs:
            ax, size = panels[dataset, share], get_nb_parameters(runs)
            values = [run["test_accuracy"] for run in runs.values()]
            points[ax].append(Point(model_name, size, *get_mean_interval(values), _get_label(nb_neurons, results)))
            accuracies[ax] += values
            # The dashes are wider than the marker of the mean, so that no run hides behind one.
            ax.plot([size] * len(values), values, color=get_family_style(model_name)["color"], linestyle="none",
                    marker="_", markersize=12, markeredgewidth=1.2, alpha=min(0.35, 0.05 + 3 / len(values)))
    for axes in get_rows(figure):
        set_y_range(axes, [accuracy for ax in axes for accuracy in accuracies[ax]])
        for ax in axes:
            dense_means = [point.mean for point in points[ax] if point.model_name == DENSE]
            if len(dense_means) == 1:
                ax.axhline(dense_means[0], color=get_family_style(DENSE)["color"], linewidth=1.4, zorder=1)
            _plot_points(ax, points[ax])
            set_parameter_axis(ax, [point.x for point in points[ax]], EngFormatter(sep=""))
    label_axes(figure, "Model parameters (count)", "Test accuracy\n(fraction of samples)")
    _add_family_legend(figure, results, get_families_with_runs(by_identity),
                       "markers: means with 95 % intervals, dashes: single runs")
    return figure


def plot_differences(results):
    """Difference to the dense net against the ratio of parameters, one panel per dataset and share.

    The rows of `compare_with_dense`: each net is compared with the dense one of as many neurons, which is at ratio 1
    and difference 0. A bar is the 95 % t interval of its difference alone, left out below five pairs. A filled marker
    is a verdict, better or worse than the dense net after correction for the number of families; an empty one is
    undecided, even if its bar misses 0. Nets that differ more than six times as much as is usual in their row of
    panels are written at its edge. ValueError if the sweep has no dense net.
    """
    rows = [row for row in compare_with_dense(results, DENSE) if row["nb_pairs"]]
    figure, panels = new_panels(results)
    points = {ax: [] for ax in figure.axes}
    for row in rows:
        # The interval of few pairs is so wide that it would hide all else.
        ends = (row["interval_low"], row["interval_high"]) if row["nb_pairs"] >= MIN_PAIRS else (math.nan, math.nan)
        points[panels[row["dataset"], row["share"]]].append(Point(
            row["model_name"], row["parameter_ratio"], row["difference_mean"], *ends,
            _get_label(row["nb_neurons"], results), row["verdict"] != "undecided"))
    for axes in get_rows(figure):
        reaches = [point.reach for ax in axes for point in points[ax]]
        if not reaches:
            continue
        limit = FAR * np.median(reaches)
        in_range = [point for ax in axes for point in points[ax] if point.reach <= limit]
        set_y_range(axes, [0, *(value for point in in_range for value in (point.mean, point.low, point.high))],
                    margin=0.08 if len(in_range) == len(reaches) else 0.18)
        for ax in axes:
            if points[ax]:
                ax.axhline(0, color=get_family_style(DENSE)["color"], linewidth=1.4, zorder=1)
                _plot_points(ax, [Point(DENSE, 1, 0, 0, 0), *(point for point in points[ax] if point.reach <= limit)])
                for point in points[ax]:
                    if point.reach > limit:
                        _plot_at_edge(ax, point)
                set_parameter_axis(ax, [1, *(point.x for point in points[ax])], "{x:g}")
    label_axes(figure, "Model parameters (ratio to the dense net)", "Test accuracy minus\nthe dense net's")
    names = dict.fromkeys(row["model_name"] for row in rows)
    title = ("bars: 95 % intervals; filled: differs from the dense net, corrected for the number of families; "
             "white: undecided")
    if any(row["nb_pairs"] < MIN_PAIRS for row in rows):
        title += "; no bar: less than five pairs"
    _add_family_legend(figure, results, [DENSE, *names] if rows else [], title)
    return figure


def _plot_points(ax, points):
    """Markers with bars and labels, those of a family connected."""
    for model_name in dict.fromkeys(point.model_name for point in points):
        family = sorted(point for point in points if point.model_name == model_name)
        style = get_family_style(model_name)
        x, means = [point.x for point in family], [point.mean for point in family]
        lengths = [[point.mean - point.low for point in family], [point.high - point.mean for point in family]]
        ax.errorbar(x, means, lengths, color=style["color"], linestyle="none", elinewidth=1, capsize=2.5)
        ax.plot(x, means, color=style["color"], linewidth=1.4 if model_name == DENSE else 0.6, label=model_name)
        for is_filled, look in ((True, dict(markersize=7.5, markeredgecolor="white", markeredgewidth=0.5)),
                                (False, dict(markersize=5.5, markerfacecolor="white", markeredgewidth=1))):
            some = [(point.x, point.mean) for point in family if point.is_filled == is_filled]
            if some:
                ax.plot(*zip(*some), **style, **look, linestyle="none")
        for point in family:
            _annotate(ax, point.label, (point.x, point.mean), (5, 4), style["color"])


def _plot_at_edge(ax, point):
    """A point outside of the panel's range, with its mean."""
    style, above, transform = get_family_style(point.model_name), point.mean > 0, ax.get_xaxis_transform()
    y = 0.95 if above else 0.05  # as a fraction of the panel's height
    ax.plot([point.x], [y], **style, markersize=7.5, markeredgecolor="white", markeredgewidth=0.5, transform=transform)
    text = f"{point.mean:+.2f}{'↑' if above else '↓'}".replace("-", "−")
    _annotate(ax, text, (point.x, y), (5, 0), style["color"], xycoords=transform, va="center")
    _annotate(ax, point.label, (point.x, y), (5, -10 if above else 6), style["color"], xycoords=transform)


def _annotate(ax, text, xy, offset, color, **arguments):
    """Small text beside a marker, readable on lines."""
    if text:
        ax.annotate(text, xy, xytext=offset, textcoords="offset points", color=color, fontsize=6.5,
                    path_effects=[withStroke(linewidth=1.5, foreground="white")], **arguments)


def _get_label(nb_neurons, results):
    return str(nb_neurons) if len(set(results["nb_neurons_list"])) > 1 else ""


def _add_family_legend(figure, results, names, title):
    widths = sorted(set(results["nb_neurons_list"]))
    title += "; numbers: neurons" if len(widths) > 1 else f"; {widths[0]} neurons" if widths else ""
    add_legend(figure, title, [
        Line2D([], [], **get_family_style(name), linestyle="-" if name == DENSE else "none", linewidth=1.4,
               markersize=7.5, label=shorten(name, 20)) for name in names])


# ---- learning curves --------------------------------------------------------------------------------------

def plot_learning_curves(results, nb_neurons=None):
    """Training (solid) and validation (dashed) accuracy over epochs.

    One row of panels per dataset and share, one column per family that has runs, for one number of neurons: the first
    of the sweep if None, ValueError if the sweep has no such. Lines are medians over the runs, shades their ranges
    (minimum to maximum). Runs stop at different epochs; one that has stopped keeps its last accuracy, as it keeps its
    weights, which are the ones tested. So every epoch's median is over the same runs and does not jump when one ends;
    a dotted line marks where the first run stops. Accuracies that are not finite are left out of their epoch.
    """
    by_identity, nb_neurons = _get_runs_with_histories(results, nb_neurons)
    rows = list(dict.fromkeys(key[:2] for key in by_identity))
    columns = get_families_with_runs(by_identity) or ["all families"]

    width = min(6.4, max(1.8, 12.6 / len(columns)))
    height = 3.2 if len(rows) < 2 else 2.4
    figure = new_figure(max(1, len(rows)) * len(columns), len(columns), (width, height), sharex="row")
    for ax, ((dataset, share), model_name) in zip(figure.axes, product(rows, columns)):
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
    label_axes(figure, "Epoch", "Accuracy\n(fraction of samples)")
    add_legend(figure, f"{nb_neurons} neurons; a run that has stopped keeps its last accuracy", [
        Line2D([], [], color="#555555", label="training, median"),
        Patch(color="#555555", alpha=0.3, linewidth=0, label="training, range"),
        Line2D([], [], color="#555555", linestyle="--", label="validation, median"),
        Patch(color="#555555", alpha=0.12, linewidth=0, label="validation, range"),
        Line2D([], [], color="#555555", linestyle=":", label="first run stops")])
    return figure


def plot_validation_curves(results_by_label, nb_neurons=None):
    """Median validation accuracy over epochs of sweeps beside each other, e.g. of two protocols of training.

    One row of panels per dataset and share, one column per sweep, a line per family; the panels of a row share their
    axes. A marker is at the median of the epochs after which runs stop, see plot_learning_curves.

    :param results_by_label: {label (str): results dict}
    :param nb_neurons: the first of each sweep if None, ValueError if one has no such
    """
    sweeps = {label: _get_runs_with_histories(results, nb_neurons) for label, results in results_by_label.items()}
    rows = list(dict.fromkeys(key[:2] for by_identity, _ in sweeps.values() for key in by_identity))
    nb_columns = max(1, len(sweeps))
    figure = new_figure(max(1, len(rows)) * nb_columns, nb_columns, (min(4.8, max(2.4, 12.6 / nb_columns)), 3.0),
                        sharex="row")
    for ax, ((dataset, share), (label, (by_identity, _))) in zip(figure.axes, product(rows, sweeps.items())):
        ax.set_title(f"{shorten(dataset, 32)}, share {share:g}\n{shorten(label, 40)}", parse_math=False)
        for key, runs in by_identity.items():
            if runs and key[:2] == (dataset, share):
                histories = [run["val_accuracy_history"] for run in runs]
                median, _, _ = _median_and_range(histories)
                median_end = int(np.median([len(history) for history in histories]))
                ax.plot(np.arange(1, len(median) + 1), median, **get_family_style(key[3]), linewidth=1.1,
                        markevery=[median_end - 1], markersize=7.5, markeredgecolor="white", markeredgewidth=0.6,
                        label=key[3])
    label_axes(figure, "Epoch", "Validation accuracy\n(fraction of samples)")
    names = [name for by_identity, _ in sweeps.values() for name in get_families_with_runs(by_identity)]
    widths = ", ".join(map(str, dict.fromkeys(nb_neurons for _, nb_neurons in sweeps.values())))
    add_legend(figure, f"{widths} neurons; medians over the runs, markers where half of them have stopped", [
        Line2D([], [], **get_family_style(name), linewidth=1.1, markersize=7.5, label=shorten(name, 20))
        for name in dict.fromkeys(names)])
    return figure


def _get_runs_with_histories(results, nb_neurons):
    """{(dataset, share, nb_neurons, model_name): [run, ...]} for one number of neurons, and that number."""
    by_identity, _ = get_runs(results)
    if nb_neurons is None:
        nb_neurons = next(iter(results["nb_neurons_list"]), None)
    elif nb_neurons not in results["nb_neurons_list"]:
        raise ValueError(f"the sweep has no {nb_neurons} neurons, but {results['nb_neurons_list']}")
    return {key: [run for run in runs.values() if run["accuracy_history"] and run["val_accuracy_history"]]
            for key, runs in by_identity.items() if key[2] == nb_neurons}, nb_neurons


def _median_and_range(histories):
    """Median, minimum and maximum per epoch, each (nb_epochs,); shorter histories keep their last value."""
    nb_epochs = max(len(history) for history in histories)
    held = [[*history, *[history[-1]] * (nb_epochs - len(history))] for history in histories]
    held = np.ma.masked_invalid(np.array(held, dtype=float))  # (nb_runs, nb_epochs)
    statistics = (np.ma.median(held, axis=0), held.min(axis=0), held.max(axis=0))
    return [np.ma.filled(statistic, math.nan) for statistic in statistics]


# ---- files ------------------------------------------------------------------------------------------------

# What is added to the name of a file of results -> which figure of it that is.
FIGURES = {"": plot_accuracy, "_differences": plot_differences, "_learning_curves": plot_learning_curves}


def draw_figures(results, path):
    """Write the figures of results beside their file; the paths of the .png files, a .pdf beside each.

    Without a dense net there are no differences to it.
    """
    pictures = []
    for suffix, plot in FIGURES.items():
        if plot is not plot_differences or DENSE in results["model_names"]:
            pictures.append(_get_picture_path(path, suffix))
            save_figure(plot(results), pictures[-1])
    return pictures


def remove_figures(path):
    """Remove what draw_figures has written for a file of results, as it is about to change."""
    for suffix in FIGURES:
        for ending in (".png", ".pdf"):
            _get_picture_path(path, suffix).with_suffix(ending).unlink(missing_ok=True)


def _get_picture_path(path, suffix):
    return Path(path).with_name(f"{Path(path).stem}{suffix}.png")


@prints_without_failing
def main(arguments=None):
    """Print the table and write the figures beside the pickle; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: python plot_results.py [benchmark_result.p]", file=sys.stderr)
        return 2
    path = Path(arguments[0] if arguments else "benchmark_result.p").expanduser()
    try:
        results = load_results(path)
        print(format_summary_table(results))
        for picture in draw_figures(results, path):
            print(f"wrote {picture} and .pdf")
    except Exception as error:  # matplotlib raises any, e.g. without the LaTeX that a user's settings ask for
        print(f"plot_results.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
