"""Look at the results of a sweep: a table, two figures, and the comparison with the dense net.

    python plot_results.py [benchmark_result.p]

prints the table and writes benchmark_result.png and benchmark_result_learning_curves.png beside the pickle.
The functions take the results dict that `benchmark_results.load_results` returns and show what its lists name, in
their order. A run without a finite test accuracy counts as failed and enters no mean, no figure and no comparison.
All functions raise ValueError if the dict is no result of a sweep.
"""
import io
import math
import re
import sys
import textwrap
from itertools import groupby, product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmark_results import load_results
from console import prints_without_failing

TABLE_WIDTH = 100  # columns of the terminal
MAX_FAILURE_REASONS = 10  # listed beneath the table, the most frequent first
IDENTITY = ("dataset", "share", "nb_neurons", "model_name")  # what the runs of one row of the table share

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


def _get_runs(results):
    """The runs, {(dataset, share, nb_neurons, model_name): {iteration: run}} in the order of the sweep, and failures.

    Each family in results["model_names"] has an entry, and others that have runs. A run whose test accuracy is not
    finite is one of the failures, beside the recorded ones.
    """
    for key in ("dataset_names", "training_set_shares", "nb_neurons_list", "model_names", "nb_iterations"):
        if not isinstance(results, dict) or key not in results:
            raise ValueError(f"this is not the result of a sweep: it has no entry {key!r}")
    runs, failures = {}, list(results.get("failures", []))
    for dataset, share, nb_neurons in dict.fromkeys(product(
            results["dataset_names"], results["training_set_shares"], results["nb_neurons_list"])):
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


def _get_families_with_runs(by_identity):
    """In the order of the sweep, even if the first dataset lacks one that others have."""
    names = {identity[3] for identity, runs in by_identity.items() if runs}
    return [name for name in dict.fromkeys(identity[3] for identity in by_identity) if name in names]


def _get_nb_parameters(runs):
    return next((run["nb_model_parameters"] for run in runs.values()), math.nan)


# ---- the table --------------------------------------------------------------------------------------------

def summary_table(results):
    """One row (a dict) per dataset, share, number of neurons and family; `pandas.DataFrame(rows)` works.

    - dataset, share, nb_neurons, model_name
    - nb_model_parameters, nb_runs, epochs_mean, test_accuracy_mean
    - nb_failures: iterations that failed; the failure of a whole dataset or family stands for all iterations it lacks
    - test_accuracy_sd: sample standard deviation (ddof = 1), NaN for fewer than two runs
    - best: True for the highest mean of its dataset, share and number of neurons

    Without a run the parameters, epochs and accuracies are NaN.
    """
    by_identity, failures = _get_runs(results)
    failed_iterations = {}  # where -> set; None in a failure: whatever is there
    for failure in failures:
        failed_iterations.setdefault(tuple(failure[key] for key in IDENTITY), set()).update(
            range(results["nb_iterations"]) if failure["iteration"] is None else [failure["iteration"]])
    rows = []
    for identity, runs in by_identity.items():
        failed = set().union(*(failed_iterations.get(where, ())
                               for where in product(*((None, part) for part in identity))))
        accuracies = [run["test_accuracy"] for run in runs.values()]
        epochs = [len(run["accuracy_history"]) for run in runs.values()]
        rows.append({
            **dict(zip(IDENTITY, identity)),
            "nb_model_parameters": _get_nb_parameters(runs),
            "nb_runs": len(runs),
            "nb_failures": len(failed - set(runs)),
            "epochs_mean": float(np.mean(epochs)) if runs else math.nan,
            "test_accuracy_mean": float(np.mean(accuracies)) if runs else math.nan,
            "test_accuracy_sd": float(np.std(accuracies, ddof=1)) if len(runs) > 1 else math.nan,
        })
    for _, block in _get_blocks(rows):
        highest_mean = max((row["test_accuracy_mean"] for row in block if row["nb_runs"]), default=math.nan)
        for row in block:
            row["best"] = row["test_accuracy_mean"] == highest_mean
    return rows


def _get_blocks(rows):
    """[((dataset, share, nb_neurons), rows), ...]"""
    return [(key, list(block)) for key, block in groupby(rows, lambda row: tuple(row[part] for part in IDENTITY[:3]))]


def format_summary_table(results):
    """The summary table as text, at most 100 columns wide.

    One block per dataset, share and number of neurons, its best family marked with *; beneath failures by reason.
    """
    rows = summary_table(results)
    width = min(30, max([len(row["model_name"]) for row in rows] + [len("model")]))
    lines = []
    for (dataset, share, nb_neurons), block in _get_blocks(rows):
        lines.append(f"{_shorten(dataset, 60)}, share {share:g}, {_number(nb_neurons)} neurons")
        if any(row["nb_runs"] for row in block):
            lines.append(f"  {'model':<{width}}  parameters    runs  failed    epochs  test accuracy")
        else:
            lines.append(f"  no runs, {sum(row['nb_failures'] for row in block)} failed")
            block = []
        for row in block:
            lines.append(
                f"  {_shorten(row['model_name'], width):<{width}}  {_number(row['nb_model_parameters']):>10}"
                f"  {_number(row['nb_runs']):>6}  {_number(row['nb_failures']):>6}"
                f"  {_number(row['epochs_mean'], '.1f'):>8}  {_number(row['test_accuracy_mean'], '.3f')}"
                + (f" ± {_number(row['test_accuracy_sd'], '.3f')}" if row["nb_runs"] > 1 else "")
                + (" *" if row["best"] else ""))
        lines.append("")
    lines.append("test accuracy: mean ± sd over runs, * highest mean of its block"
                 if any(row["nb_runs"] for row in rows) else "no runs")
    return "\n".join(lines + _format_failures(_get_runs(results)[1]))


def _format_failures(failures):
    by_reason = {}
    for failure in failures:
        by_reason.setdefault(" ".join(str(failure["reason"]).split()), []).append(failure)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    lines = ["", f"failures: {len(failures)}"] if failures else []
    prefixes = {"dataset": "", "share": "share ", "nb_neurons": "neurons ", "model_name": "", "iteration": "iteration "}
    for reason, group in reasons[:MAX_FAILURE_REASONS]:
        where = ", ".join(prefix + _shorten(str(group[0][key]), 40) for key, prefix in prefixes.items()
                          if group[0][key] is not None) or "the whole sweep"
        times = f"{len(group)} times, first in " if len(group) > 1 else ""
        lines += textwrap.wrap(f"{times}{where}: {reason}", TABLE_WIDTH, initial_indent="  ",
                               subsequent_indent="    ", max_lines=4, placeholder=" ...")
    if len(reasons) > MAX_FAILURE_REASONS:
        nb_more = sum(len(group) for _, group in reasons[MAX_FAILURE_REASONS:])
        lines.append(f"  {nb_more} more for {len(reasons) - MAX_FAILURE_REASONS} other reasons")
    return lines


def _shorten(text, width):
    """Cut out the middle: names that differ at either end stay apart."""
    if len(text) <= width:
        return text
    return f"{text[:(width - 2) // 2]}...{text[len(text) - (width - 3) // 2:]}"


def _number(value, specification="d"):
    text = "-" if math.isnan(value) else f"{value:{specification}}"
    return text if len(text) <= 8 else f"{value:.1e}"


# ---- the figures ------------------------------------------------------------------------------------------

def plot_accuracy(results):
    """Test accuracy against number of parameters, one panel per dataset and share; a matplotlib Figure.

    A marker is the mean over a family's runs, the dashes of its colour are the single runs. With several numbers of
    neurons a thin line connects the means. The parameter axis is logarithmic where it spans more than a factor of ten.
    """
    panels = {}  # (dataset, share) -> model_name -> [(nb_model_parameters, [test_accuracy, ...]), ...]
    by_identity, _ = _get_runs(results)
    for (dataset, share, _, model_name), runs in by_identity.items():
        families = panels.setdefault((dataset, share), {})
        if runs:
            accuracies = [run["test_accuracy"] for run in runs.values()]
            families.setdefault(model_name, []).append((_get_nb_parameters(runs), accuracies))

    nb_shares = len(set(results["training_set_shares"]))
    # One row per dataset, unless that is too wide or there is one share only.
    nb_columns = nb_shares if 1 < nb_shares <= 5 else max(1, min(4, len(panels)))
    panel_size = {1: (6.4, 4.2), 2: (4.8, 3.4)}.get(nb_columns, (3.2, 2.7))
    figure, axes = _new_figure(max(1, len(panels)), nb_columns, panel_size)
    for ax, ((dataset, share), families) in zip(axes, panels.items()):
        ax.set_title(f"{_shorten(dataset, 32)}\ntraining share {share:g}", parse_math=False)
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
        Line2D([], [], **get_family_style(name), linestyle="none", markersize=7.5, label=_shorten(name, 20))
        for name in _get_families_with_runs(by_identity)])
    return figure


def plot_learning_curves(results, nb_neurons=None):
    """Training (solid) and validation (dashed) accuracy over epochs; a matplotlib Figure.

    One row of panels per dataset and share, one column per family that has runs, for one number of neurons: the first
    of the sweep if None, ValueError if the sweep has no such. Lines are medians over the runs, shades their ranges
    (minimum to maximum). Runs stop at different epochs; one that has stopped keeps its last accuracy, as it keeps its
    weights, which are the ones tested. So every epoch's median is over the same runs and does not jump when one ends;
    a dotted line marks where the first run stops. Accuracies that are not finite are left out of their epoch.
    """
    by_identity, _ = _get_runs(results)
    if nb_neurons is None:
        nb_neurons = next(iter(results["nb_neurons_list"]), None)
    elif nb_neurons not in results["nb_neurons_list"]:
        raise ValueError(f"the sweep has no {nb_neurons} neurons, but {results['nb_neurons_list']}")
    by_identity = {
        key: [run for run in runs.values() if run["accuracy_history"] and run["val_accuracy_history"]]
        for key, runs in by_identity.items() if key[2] == nb_neurons}
    rows = list(dict.fromkeys(key[:2] for key in by_identity))
    columns = _get_families_with_runs(by_identity) or ["all families"]

    width = min(6.4, max(1.8, 12.6 / len(columns)))
    height = 3.2 if len(rows) < 2 else 2.4
    figure, axes = _new_figure(max(1, len(rows)) * len(columns), len(columns), (width, height),
                               sharex="row", sharey="row")
    for ax, ((dataset, share), model_name) in zip(axes, product(rows, columns)):
        titles = dataset, f"share {share:g}, {model_name}"
        ax.set_title("\n".join(_shorten(title, int(13.5 * width)) for title in titles), parse_math=False)
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


# ---- the paper's question ---------------------------------------------------------------------------------

def compare_with_dense(results, baseline="standard_nn", nb_resamples=10000, seed=0):
    """Does a family test better than the dense net? One row (a dict) per dataset, share, neurons and family.

    Runs are paired by iteration, for those of one iteration share the validation split and the order of samples.

    - dataset, share, nb_neurons, model_name, nb_pairs, nb_model_parameters
    - difference_mean: mean over the pairs of the test accuracy minus the baseline's
    - interval_low, interval_high: 95 % percentile bootstrap interval of that mean, NaN for fewer than two pairs
    - parameter_ratio: to the baseline's
    - verdict: "better" if the interval is above 0, "worse" if below, else "undecided", as without an interval

    Each row draws from a fresh generator: it depends on its own runs and `seed` only. Mind that with few pairs the
    interval is too narrow, and that among many verdicts some err. ValueError if the sweep has no such baseline.
    """
    by_identity, _ = _get_runs(results)
    rows = []
    for identity, runs in by_identity.items():
        if identity[:3] + (baseline,) not in by_identity:
            raise ValueError(f"the sweep has no family {baseline!r}, but {', '.join(results['model_names'])}")
        if identity[3] == baseline:
            continue
        dense_runs = by_identity[identity[:3] + (baseline,)]
        differences = np.array([run["test_accuracy"] - dense_runs[iteration]["test_accuracy"]
                                for iteration, run in runs.items() if iteration in dense_runs])
        low = high = math.nan
        if len(differences) > 1:
            generator = np.random.default_rng(seed)
            resamples = generator.choice(differences, size=(nb_resamples, len(differences)))
            low, high = np.percentile(resamples.mean(axis=1), [2.5, 97.5])
        rows.append({
            **dict(zip(IDENTITY, identity)),
            "nb_pairs": len(differences),
            "difference_mean": float(differences.mean()) if len(differences) else math.nan,
            "interval_low": float(low),
            "interval_high": float(high),
            "nb_model_parameters": _get_nb_parameters(runs),
            "parameter_ratio": _get_nb_parameters(runs) / _get_nb_parameters(dense_runs),
            "verdict": "better" if low > 0 else "worse" if high < 0 else "undecided",
        })
    return rows


@prints_without_failing
def main(arguments=None):
    """Print the table and write both figures beside the pickle; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: python plot_results.py [benchmark_result.p]", file=sys.stderr)
        return 2
    path = Path(arguments[0] if arguments else "benchmark_result.p").expanduser()
    try:
        results = load_results(path)
        print(format_summary_table(results))
        for suffix, plot in (("", plot_accuracy), ("_learning_curves", plot_learning_curves)):
            plot(results).savefig(picture := path.with_name(f"{path.stem}{suffix}.png"), dpi=100)
            print(f"wrote {picture}")
    except Exception as error:  # matplotlib raises any, e.g. without the LaTeX that a user's settings ask for
        print(f"plot_results.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
