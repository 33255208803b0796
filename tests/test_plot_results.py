"""plot_results.py: table, figures and comparison on results as sweeps leave them, complete or not."""
import io
import itertools
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

import plot_results
from plot_results import (FAMILY_STYLES, compare_with_dense, format_summary_table, get_family_style,
                          plot_accuracy, plot_learning_curves, summary_table)

PROJECT = Path(plot_results.__file__).resolve().parent
SIZES = {"standard_nn": 3910, "ss_1_dim": 1752, "ss_2_dim": 2220, "ss_3_dim": 2848, "ss_4_dim": 3620,
         "ss_5_dim": 4520, "rank_1": 1510}
NAN = math.nan


def make_run(test_accuracy, nb_epochs=4, size=100, history=None, val_history=None):
    history = history or [0.1 + 0.8 * epoch / nb_epochs for epoch in range(nb_epochs)]
    return {"training_loss_history": [2.0] * len(history), "accuracy_history": history,
            "val_accuracy_history": val_history or [0.9 * accuracy for accuracy in history], "test_loss": 1.5,
            "test_accuracy": test_accuracy, "nb_model_parameters": size, "training_time": 0.1, "seed": 0}


def make_results(datasets=("digits",), shares=(0.1,), neurons=(50,), models=tuple(SIZES), nb_iterations=3):
    """A complete sweep; every run has another accuracy."""
    results = {"dataset_names": list(datasets), "training_set_shares": list(shares),
               "nb_neurons_list": list(neurons), "model_names": list(models), "nb_iterations": nb_iterations,
               "failures": []}
    accuracies = (0.4 + 0.5 * (0.618 * i % 1) for i in itertools.count(1))
    for dataset in datasets:
        results[dataset] = {share: {model: {h: {
            iteration: make_run(next(accuracies), size=SIZES.get(model, 1000) * h // 50)
            for iteration in range(nb_iterations)} for h in neurons} for model in models} for share in shares}
    return results


def make_failure(reason="out of memory", **identity):
    keys = ("dataset", "share", "model_name", "nb_neurons", "iteration")
    return {**dict.fromkeys(keys), **identity, "reason": reason}


def set_accuracies(results, **accuracies):
    """Give families of the first block these test accuracies, one run each."""
    block = results[results["dataset_names"][0]][results["training_set_shares"][0]]
    for model, values in accuracies.items():
        block[model] = {results["nb_neurons_list"][0]: {
            i: make_run(value, size=SIZES.get(model, 1000)) for i, value in enumerate(values)}}


def get_row(rows, model_name, **identity):
    found = [row for row in rows if {**identity, "model_name": model_name}.items() <= row.items()]
    assert len(found) == 1
    return found[0]


# ---- the table --------------------------------------------------------------------------------------------

def test_summary_equals_hand_computed_numbers():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    results["digits"][0.1]["standard_nn"][50] = {
        0: make_run(0.5, nb_epochs=3, size=77), 1: make_run(0.7, nb_epochs=4, size=77),
        2: make_run(0.9, nb_epochs=8, size=77)}
    results["digits"][0.1]["ss_1_dim"][50] = {1: make_run(0.6, size=33), 2: make_run(0.7, size=33)}
    standard, ss_1 = summary_table(results)
    assert standard == {
        "dataset": "digits", "share": 0.1, "model_name": "standard_nn", "nb_neurons": 50,
        "nb_model_parameters": 77, "nb_runs": 3, "nb_failures": 0, "epochs_mean": 5.0,
        "test_accuracy_mean": pytest.approx(0.7), "test_accuracy_sd": pytest.approx(0.2), "best": True}
    assert ss_1["test_accuracy_mean"] == pytest.approx(0.65)
    assert ss_1["test_accuracy_sd"] == pytest.approx(math.sqrt(0.005))
    assert ss_1["nb_runs"] == 2 and ss_1["best"] is False


def test_rows_come_in_the_order_of_the_sweep_and_make_a_data_frame():
    results = make_results(["b", "a"], [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"])
    rows = summary_table(results)
    identities = [(row["dataset"], row["share"], row["nb_neurons"], row["model_name"]) for row in rows]
    assert identities == list(itertools.product(["b", "a"], [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"]))
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert {type(value) for row in rows for value in row.values()} == {str, int, float, bool}


def test_one_run_has_no_standard_deviation():
    results = make_results(nb_iterations=1)
    assert all(math.isnan(row["test_accuracy_sd"]) and not math.isnan(row["test_accuracy_mean"])
               for row in summary_table(results))
    assert " ± 0" not in format_summary_table(results) and "nan" not in format_summary_table(results)


def test_failed_iterations_are_counted_once_and_only_where_they_failed():
    results = make_results(["digits", "mnist"], [0.1, 0.5], models=["standard_nn", "ss_1_dim"])
    del results["mnist"], results["digits"][0.5], results["digits"][0.1]["ss_1_dim"][50][2]
    results["failures"] = [
        make_failure(dataset="mnist"),
        make_failure(dataset="digits", share=0.5, model_name="ss_1_dim"),
        make_failure(dataset="digits", share=0.1, model_name="ss_1_dim", nb_neurons=50, iteration=2),
        make_failure(dataset="digits", share=0.1, model_name="ss_1_dim", nb_neurons=50, iteration=2),
        # A run that has succeeded since:
        make_failure(dataset="digits", share=0.1, model_name="standard_nn", nb_neurons=50, iteration=0)]
    counts = {(row["dataset"], row["share"], row["model_name"]): (row["nb_runs"], row["nb_failures"])
              for row in summary_table(results)}
    assert counts == {
        ("digits", 0.1, "standard_nn"): (3, 0), ("digits", 0.1, "ss_1_dim"): (2, 1),
        ("digits", 0.5, "standard_nn"): (0, 0), ("digits", 0.5, "ss_1_dim"): (0, 3),
        ("mnist", 0.1, "standard_nn"): (0, 3), ("mnist", 0.1, "ss_1_dim"): (0, 3),
        ("mnist", 0.5, "standard_nn"): (0, 3), ("mnist", 0.5, "ss_1_dim"): (0, 3)}


def test_families_without_runs_have_a_row_of_nans_only_if_the_sweep_names_them():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    del results["digits"][0.1]["ss_1_dim"]
    results["digits"][0.1]["unnamed"] = {50: {}}
    results["digits"][0.1]["found"] = {50: {0: make_run(0.3)}}
    rows = summary_table(results)
    assert [row["model_name"] for row in rows] == ["standard_nn", "ss_1_dim", "found"]
    assert rows[1]["nb_runs"] == 0 and rows[1]["best"] is False
    assert all(math.isnan(rows[1][key]) for key in (
        "nb_model_parameters", "epochs_mean", "test_accuracy_mean", "test_accuracy_sd"))


def test_runs_without_a_finite_accuracy_count_as_failed_and_are_listed():
    results = make_results(models=["standard_nn", "ss_1_dim", "rank_1"])
    set_accuracies(results, standard_nn=[0.4, NAN, 0.6], ss_1_dim=[NAN, NAN, math.inf], rank_1=[0.1] * 3)
    standard, ss_1, rank_1 = summary_table(results)
    assert standard["test_accuracy_mean"] == pytest.approx(0.5)
    assert (standard["nb_runs"], standard["nb_failures"], standard["best"]) == (2, 1, True)
    assert (ss_1["nb_runs"], ss_1["nb_failures"], ss_1["best"]) == (0, 3, False)
    assert rank_1["best"] is False
    assert ("4 times, first in digits, share 0.1, neurons 50, standard_nn, iteration 1: test accuracy is not "
            "finite" in " ".join(format_summary_table(results).split()))


def test_the_best_family_of_each_block_is_marked():
    results = make_results(["a", "b"], models=["standard_nn", "ss_1_dim", "rank_1"])
    set_accuracies(results, standard_nn=[0.5, 0.5], ss_1_dim=[0.625, 0.375], rank_1=[0.9, NAN])
    results["b"][0.1]["ss_1_dim"][50] = {0: make_run(0.99)}
    marked = [line.split()[0] for line in format_summary_table(results).splitlines() if line.endswith(" *")]
    assert marked == ["rank_1", "ss_1_dim"]
    set_accuracies(results, rank_1=[0.1])
    assert [row["model_name"] for row in summary_table(results) if row["best"]] == [
        "standard_nn", "ss_1_dim", "ss_1_dim"]  # equal means are both best


def test_the_table_shows_the_numbers_of_each_row_aligned():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    set_accuracies(results, standard_nn=[0.5, 0.7], ss_1_dim=[0.8123])
    results["digits"][0.1]["ss_1_dim"][50][0]["nb_model_parameters"] = 12
    lines = format_summary_table(results).splitlines()
    assert lines[0] == "digits, share 0.1, 50 neurons"
    assert lines[1].split() == ["model", "parameters", "runs", "failed", "epochs", "test", "accuracy"]
    assert lines[2].split() == ["standard_nn", "3910", "2", "0", "4.0", "0.600", "±", "0.141"]
    assert lines[3].split() == ["ss_1_dim", "12", "1", "0", "4.0", "0.812", "*"]
    for cells in (("parameters", "3910", "  12"), ("epochs", "4.0", "4.0")):  # right-aligned
        assert len({line.index(cell) + len(cell) for line, cell in zip(lines[1:], cells)}) == 1
    assert {line.index("0.") for line in lines[2:4]} == {lines[1].index("test accuracy")}


def test_the_table_is_at_most_100_columns_wide_whatever_the_values():
    results = make_results(["data" * 50, "x"], [1e-300 / 3], [123456789012], ["family" * 30, "standard_nn"])
    for by_neurons in results["x"][1e-300 / 3].values():
        by_neurons[123456789012] = {i: make_run(1e100 * (i + 1), size=10**18) for i in range(3)}
    results["failures"] = [
        make_failure("word" * 500, dataset="data" * 50, share=1e-300 / 3, model_name="family" * 30,
                     nb_neurons=123456789012, iteration=10**20),
        make_failure("several\nlines\tof words " * 200)]
    lines = format_summary_table(results).splitlines()
    assert max(map(len, lines)) <= 100
    assert max(map(len, lines)) > 80  # the long values have come this far
    assert any("± 1.0e+100 *" in line for line in lines)
    assert len(lines) <= 30  # reasons of 2,000 characters are cut short
    assert any("wordword" in line for line in lines) and any("several lines of" in line for line in lines)


def test_long_names_that_differ_at_their_end_stay_apart():
    names = ["a_very_long_common_beginning_of_a_name_" * 2 + end for end in ("one", "two")]
    lines = format_summary_table(make_results(names)).splitlines()
    assert len({line for line in lines if "neurons" in line}) == 2
    assert len({ax.get_title() for ax in plot_accuracy(make_results(names)).axes}) == 2


def test_failures_are_counted_by_reason_and_many_reasons_cut_short():
    results = make_results()
    results["failures"] = [make_failure("no network", dataset="mnist")]
    results["failures"] += [make_failure("killed", dataset="digits", share=0.1, model_name="ss_1_dim",
                                         nb_neurons=50, iteration=i) for i in range(500)]
    text = format_summary_table(results)
    assert "failures: 501" in text
    assert "  mnist: no network" in text.splitlines()
    assert "  500 times, first in digits, share 0.1, neurons 50, ss_1_dim, iteration 0: killed" in text
    results["failures"] += [make_failure(f"reason {i}") for i in range(30)]
    lines = format_summary_table(results).splitlines()
    assert lines[-1] == "  22 more for 22 other reasons"
    assert "500 times" in lines[lines.index("failures: 531") + 1]
    assert len(lines) < 30
    assert "failures" not in format_summary_table(make_results())


def test_blocks_without_runs_take_one_line():
    results = make_results(["digits", "mnist"])
    del results["mnist"]
    results["failures"] = [make_failure("no network", dataset="mnist")]
    lines = format_summary_table(results).splitlines()
    assert lines[lines.index("mnist, share 0.1, 50 neurons") + 1] == "  no runs, 21 failed"
    assert "no runs" in format_summary_table(make_results(datasets=[]))


@pytest.mark.parametrize("function", [
    summary_table, format_summary_table, plot_accuracy, plot_learning_curves, compare_with_dense])
@pytest.mark.parametrize("foreign", [{}, {"dataset_names": []}, [1, 2], None])
def test_foreign_data_is_named_as_such(function, foreign):
    with pytest.raises(ValueError, match="not the result of a sweep"):
        function(foreign)


# ---- the figures ------------------------------------------------------------------------------------------

def get_lines(ax, model_name):
    """The dashes of the single runs and the line of the means of one family."""
    runs, means = [line for line in ax.lines if line.get_label() == model_name]
    assert runs.get_linestyle() == "None" and runs.get_marker() == "_"
    return runs, means


def get_legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def get_texts(ax):
    return [text.get_text() for text in ax.texts]


def test_accuracy_panel_shows_every_run_and_every_mean():
    results = make_results()
    (ax,) = plot_accuracy(results).axes
    assert ax.get_xlabel() == "Model parameters (count)"
    assert ax.get_ylabel() == "Test accuracy\n(fraction of samples)"
    assert ax.get_title() == "digits\ntraining share 0.1"
    assert len(ax.lines) == 2 * len(SIZES)
    for model_name, size in SIZES.items():
        accuracies = [run["test_accuracy"] for run in results["digits"][0.1][model_name][50].values()]
        runs, means = get_lines(ax, model_name)
        assert list(runs.get_xdata()) == [size] * 3 and list(runs.get_ydata()) == accuracies
        assert list(means.get_xdata()) == [size] and means.get_ydata() == pytest.approx([np.mean(accuracies)])
        assert means.get_marker() == FAMILY_STYLES[model_name]["marker"]
        assert runs.get_markersize() > means.get_markersize()  # so that no run hides behind a mean
        left, right = ax.get_xlim()
        bottom, top = ax.get_ylim()
        assert left < size < right and bottom < min(accuracies) and max(accuracies) < top


@pytest.mark.parametrize("nb_datasets, shares, nb_panels", [
    (1, [0.1], 1), (1, [0.1, 0.5], 2), (4, [0.1, 0.5, 1.0], 12), (20, [0.1], 20),
    (3, [0.1 * i for i in range(1, 8)], 21)])
def test_accuracy_has_one_panel_per_dataset_and_share(nb_datasets, shares, nb_panels):
    datasets = [f"set_{i}" for i in range(nb_datasets)]
    figure = plot_accuracy(make_results(datasets, shares, nb_iterations=1))
    assert [ax.get_title() for ax in figure.axes] == [
        f"{dataset}\ntraining share {share:g}" for dataset in datasets for share in shares]
    assert len(figure.axes) == nb_panels
    assert get_legend_texts(figure) == list(SIZES)
    grid = figure.axes[0].get_gridspec()
    assert sum(bool(ax.get_ylabel()) for ax in figure.axes) == grid.nrows
    assert sum(bool(ax.get_xlabel()) for ax in figure.axes) == grid.ncols  # the lowest of each column
    assert figure.dpi == 100 and figure.get_figwidth() / grid.ncols >= 3  # readable


def test_means_of_several_widths_are_connected_in_order_of_size():
    results = make_results(neurons=[500, 10, 50])
    (ax,) = plot_accuracy(results).axes
    runs, means = get_lines(ax, "ss_1_dim")
    assert list(means.get_xdata()) == [1752 // 5, 1752, 17520]
    expected = [np.mean([run["test_accuracy"] for run in results["digits"][0.1]["ss_1_dim"][h].values()])
                for h in (10, 50, 500)]
    assert means.get_ydata() == pytest.approx(expected)
    assert means.get_linestyle() == "-" and 0 < means.get_linewidth() <= 1
    assert len(runs.get_xdata()) == 9
    assert ax.get_xscale() == "log"
    assert plot_accuracy(make_results(neurons=[50, 60])).axes[0].get_xscale() == "linear"


def test_missing_families_and_nans_are_left_out_of_the_figures():
    results = make_results(["digits", "mnist", "cifar10"])
    del results["cifar10"], results["digits"][0.1]["rank_1"]
    for dataset in ("digits", "mnist"):
        del results[dataset][0.1]["ss_4_dim"]
    set_accuracies(results, ss_1_dim=[0.4, NAN, 0.6], ss_2_dim=[NAN, NAN, NAN])
    figure = plot_accuracy(results)
    digits, mnist, cifar10 = figure.axes
    assert list(get_lines(digits, "ss_1_dim")[0].get_ydata()) == [0.4, 0.6]
    assert get_lines(digits, "ss_1_dim")[1].get_ydata() == pytest.approx([0.5])
    shown = list(dict.fromkeys(line.get_label() for line in digits.lines))
    assert shown == ["standard_nn", "ss_1_dim", "ss_3_dim", "ss_5_dim"]
    assert not any(np.isnan(line.get_ydata()).any() for ax in figure.axes for line in ax.lines)
    assert get_legend_texts(figure) == [name for name in SIZES if name != "ss_4_dim"]
    assert get_texts(cifar10) == ["no runs"] and get_texts(digits) == get_texts(mnist) == []

    axes = plot_learning_curves(results).axes
    columns = [name for name in SIZES if name != "ss_4_dim"]
    assert [ax.get_title() for ax in axes] == [
        f"{dataset}\nshare 0.1, {name}" for dataset in results["dataset_names"] for name in columns]
    empty = [ax.get_title().split() for ax in axes if get_texts(ax) == ["no runs"]]
    assert [(words[0], words[-1]) for words in empty] == [("digits", "ss_2_dim"), ("digits", "rank_1")] + [
        ("cifar10", name) for name in columns]
    assert all(bool(ax.lines) != bool(ax.texts) for ax in axes)


@pytest.mark.parametrize("plot", [plot_accuracy, plot_learning_curves])
def test_a_sweep_without_any_run_still_gives_a_figure(plot):
    results = make_results(["digits", "mnist"])
    del results["digits"], results["mnist"]
    for empty, nb_panels in ((results, 2), (make_results(datasets=[]), 1)):
        figure = plot(empty)
        assert [get_texts(ax) for ax in figure.axes] == [["no runs"]] * nb_panels
        figure.savefig(io.BytesIO())


def get_curve(ax, linestyle):
    (line,) = [line for line in ax.lines if line.get_linestyle() == linestyle]
    return list(line.get_xdata()), list(line.get_ydata())


def get_range(polygon):
    """epoch -> (lowest, highest) of a shaded range."""
    bounds = {}
    for epoch, accuracy in polygon.get_paths()[0].vertices:
        bounds.setdefault(epoch, []).append(accuracy)
    return {epoch: (min(values), max(values)) for epoch, values in bounds.items()}


def test_learning_curves_are_medians_and_ranges_with_stopped_runs_held_at_their_last_value():
    results = make_results(models=["ss_1_dim"])
    results["digits"][0.1]["ss_1_dim"][50] = {
        0: make_run(0.5, history=[0.1, 0.2], val_history=[0.0, 0.3]),
        1: make_run(0.5, history=[0.2, 0.4, 0.6, 0.5], val_history=[0.1, 0.2, 0.3, 0.4]),
        2: make_run(0.5, history=[0.3, 0.5, 0.7], val_history=[0.2, 0.4, 0.6])}
    figure = plot_learning_curves(results)
    (ax,) = figure.axes
    assert get_curve(ax, "-") == ([1, 2, 3, 4], pytest.approx([0.2, 0.4, 0.6, 0.5]))
    assert get_curve(ax, "--") == ([1, 2, 3, 4], pytest.approx([0.1, 0.3, 0.3, 0.4]))
    validation, training = ax.collections
    assert get_range(training) == {1: (0.1, 0.3), 2: (0.2, 0.5), 3: (0.2, 0.7), 4: (0.2, 0.7)}
    assert get_range(validation) == {1: (0.0, 0.2), 2: (0.2, 0.4), 3: (0.3, 0.6), 4: (0.3, 0.6)}
    assert get_curve(ax, ":")[0] == [2, 2]  # where the first run stops
    assert ax.get_xlabel() == "Epoch" and ax.get_ylabel() == "Accuracy\n(fraction of samples)"
    assert get_legend_texts(figure) == ["training, median", "training, range", "validation, median",
                                        "validation, range", "first run stops"]
    assert figure.legends[0].get_title().get_text() == (
        "50 neurons; a run that has stopped keeps its last accuracy")


def test_learning_curves_of_runs_of_one_length_have_no_stop_line():
    (ax,) = plot_learning_curves(make_results(models=["ss_1_dim"], nb_iterations=1)).axes
    assert [line.get_linestyle() for line in ax.lines] == ["--", "-"]


def test_learning_curves_leave_out_what_is_not_finite():
    results = make_results(models=["ss_1_dim"])
    results["digits"][0.1]["ss_1_dim"][50] = {
        0: make_run(0.5, history=[0.1, NAN, NAN]), 1: make_run(0.5, history=[0.3, 0.4, NAN]),
        2: make_run(NAN, history=[0.9, 0.9, 0.9]), 3: make_run(0.5, history=[0.2, math.inf, NAN])}
    results["digits"][0.1]["ss_1_dim"][50][4] = {
        **make_run(0.5), "accuracy_history": [], "val_accuracy_history": []}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (ax,) = plot_learning_curves(results).axes
    epochs, medians = get_curve(ax, "-")
    assert epochs == [1, 2, 3] and medians == pytest.approx([0.2, 0.4, NAN], nan_ok=True)


def test_learning_curves_show_the_width_asked_for_or_the_first_of_the_sweep():
    results = make_results(neurons=[100, 20], models=["ss_1_dim"])
    for nb_neurons, level in ((100, 0.7), (20, 0.2)):
        results["digits"][0.1]["ss_1_dim"][nb_neurons] = {0: make_run(0.5, history=[level] * 3)}
    for figure, nb_neurons, level in ((plot_learning_curves(results), 100, 0.7),
                                      (plot_learning_curves(results, nb_neurons=20), 20, 0.2)):
        assert get_curve(figure.axes[0], "-")[1] == [level] * 3
        assert figure.legends[0].get_title().get_text().startswith(f"{nb_neurons} neurons")
    with pytest.raises(ValueError, match=r"no 30 neurons.*\[100, 20\]"):
        plot_learning_curves(results, nb_neurons=30)


def test_a_family_has_the_same_colour_everywhere():
    results = make_results(["digits", "mnist"], models=[*SIZES, "ss_6_dim", "my_own"])
    colors = {}
    for ax in plot_accuracy(results).axes:
        for line in ax.lines:
            colors.setdefault(line.get_label(), set()).add(to_hex(line.get_color()))
    for ax in plot_learning_curves(results).axes:
        name = ax.get_title().split()[-1]
        colors[name] |= {to_hex(artist.get_color()) for artist in ax.lines}
        colors[name] |= {to_hex(artist.get_facecolor()[0]) for artist in ax.collections}
    assert colors == {name: {get_family_style(name)["color"]} for name in results["model_names"]}
    figure = plot_accuracy(results)
    assert {text.get_text(): to_hex(handle.get_color()) for text, handle in zip(
        figure.legends[0].get_texts(), figure.legends[0].legend_handles)} == {
            name: get_family_style(name)["color"] for name in results["model_names"]}


def test_styles_are_distinct_and_do_not_depend_on_the_process():
    styles = {name: get_family_style(name) for name in [*SIZES, *(f"ss_{d}_dim" for d in range(6, 13))]}
    assert len({tuple(style.values()) for style in styles.values()}) == 14
    for key in ("color", "marker"):
        assert len({styles[name][key] for name in SIZES}) == 7
    assert get_family_style("ss_6_dim") == {"color": "#e69f00", "marker": "h"}  # by hash() it would vary


@pytest.mark.parametrize("plot, nb_datasets", [
    (plot_accuracy, 1), (plot_accuracy, 12), (plot_accuracy, 20), (plot_learning_curves, 1),
    (plot_learning_curves, 3)])
def test_legend_and_titles_overlap_nothing_and_nothing_is_cut_off(plot, nb_datasets):
    models = [*SIZES, "a_family_with_a_name_much_longer_than_all_others"]
    datasets = [f"a_dataset_with_a_rather_long_name_{i}" for i in range(nb_datasets)]
    figure = plot(make_results(datasets, models=models))
    figure.savefig(io.BytesIO())  # lays the figure out
    (legend,) = figure.legends
    legend_box = legend.get_window_extent()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(legend_box.overlaps(box) for box in boxes)
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))
    for box in [legend_box, *boxes]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for ax in figure.axes:
        labels = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        inside = sorted((box.x0, box.x1) for box in labels if ax.bbox.x0 <= box.x1 and box.x0 <= ax.bbox.x1)
        assert len(inside) >= 2 and all(a[1] < b[0] for a, b in zip(inside, inside[1:]))


def test_names_with_dollar_signs_are_not_taken_for_formulas():
    results = make_results(["$x^{$"], models=["standard_nn"])
    for plot in (plot_accuracy, plot_learning_curves):
        plot(results).savefig(io.BytesIO())


def test_figures_are_displayed_by_notebooks_and_touch_no_global_state(tmp_path):
    (tmp_path / "benchmark_result.p").write_bytes(pickle.dumps(make_results()))
    script = f"""
import sys
sys.path[:] = {[str(PROJECT), *sys.path]!r}
import matplotlib
settings = dict(dict.items(matplotlib.rcParams))  # rcParams.items() would choose a backend
import plot_results
results = plot_results.load_results("benchmark_result.p")
for plot in (plot_results.plot_accuracy, plot_results.plot_learning_curves):
    assert plot(results)._repr_png_().startswith(b"\\x89PNG")
assert dict(dict.items(matplotlib.rcParams)) == settings
assert not {{"torch", "benchmark", "matplotlib.pyplot"}} & set(sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr


# ---- the paper's question ---------------------------------------------------------------------------------

def test_differences_are_paired_over_the_common_iterations():
    results = make_results(models=["standard_nn", "ss_1_dim", "rank_1"])
    set_accuracies(results, standard_nn=[0.5, 0.6, NAN, 0.9], ss_1_dim=[0.7, 0.65, 0.1], rank_1=[0.1])
    del results["digits"][0.1]["standard_nn"][50][3]
    rows = compare_with_dense(results)
    assert [row["model_name"] for row in rows] == ["ss_1_dim", "rank_1"]
    # Two pairs, 0.2 and 0.05: a resample has mean 0.05, 0.125 or 0.2 with probability 1/4, 1/2 and 1/4.
    assert rows[0] == {
        "dataset": "digits", "share": 0.1, "nb_neurons": 50, "model_name": "ss_1_dim", "nb_pairs": 2,
        "difference_mean": pytest.approx(0.125), "interval_low": pytest.approx(0.05),
        "interval_high": pytest.approx(0.2), "nb_model_parameters": 1752,
        "parameter_ratio": pytest.approx(1752 / 3910), "verdict": "better"}
    assert rows[1]["nb_pairs"] == 1 and rows[1]["difference_mean"] == pytest.approx(-0.4)
    assert math.isnan(rows[1]["interval_low"]) and math.isnan(rows[1]["interval_high"])
    assert rows[1]["verdict"] == "undecided"


def test_the_interval_is_that_of_all_resamples():
    differences = [0.11, -0.02, 0.05, -0.07, 0.01]
    results = make_results(models=["standard_nn", "ss_1_dim"])
    set_accuracies(results, standard_nn=[0.5] * 5, ss_1_dim=[0.5 + difference for difference in differences])
    (row,) = compare_with_dense(results)
    means = [np.mean(resample) for resample in itertools.product(differences, repeat=5)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert row["interval_low"] == pytest.approx(low, abs=0.004)
    assert row["interval_high"] == pytest.approx(high, abs=0.004)
    assert row["verdict"] == "undecided"


def test_verdicts():
    results = make_results(models=["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim"])
    accuracies = [0.5, 0.65, 0.55, 0.6]
    set_accuracies(results, standard_nn=accuracies, ss_1_dim=accuracies, ss_4_dim=[NAN] * 4,
                   ss_2_dim=[a + 0.01 for a in accuracies], ss_3_dim=[a - 0.01 for a in accuracies])
    rows = compare_with_dense(results)
    assert [row["verdict"] for row in rows] == ["undecided", "better", "worse", "undecided"]
    assert (rows[0]["difference_mean"], rows[0]["interval_low"], rows[0]["interval_high"]) == (0, 0, 0)
    assert rows[3]["nb_pairs"] == 0
    assert all(math.isnan(rows[3][key]) for key in ("difference_mean", "interval_low", "parameter_ratio"))
    swapped = get_row(compare_with_dense(results, baseline="ss_2_dim"), "standard_nn")
    assert swapped["verdict"] == "worse" and swapped["difference_mean"] == pytest.approx(-0.01)


def test_intervals_are_reproducible_and_independent_of_the_rest_of_the_sweep():
    results = make_results(["a", "b"], nb_iterations=6)
    rows = compare_with_dense(results)
    assert rows == compare_with_dense(results) and len(rows) == 12
    assert rows != compare_with_dense(results, seed=1)
    results["dataset_names"], results["model_names"] = ["b"], ["standard_nn", "rank_1"]
    for name in ("ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim"):
        del results["b"][0.1][name]
    assert compare_with_dense(results) == [get_row(rows, "rank_1", dataset="b")]


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(ValueError, match="'dense'.*standard_nn"):
        compare_with_dense(make_results(), baseline="dense")


# ---- the command line -------------------------------------------------------------------------------------

def test_command_line_prints_the_table_and_writes_both_figures_beside_the_pickle(tmp_path):
    results = make_results()
    (tmp_path / "sweep.p").write_bytes(pickle.dumps(results))
    finished = subprocess.run([sys.executable, PROJECT / "plot_results.py", tmp_path / "sweep.p"],
                              capture_output=True, text=True, encoding="utf-8", cwd=PROJECT)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert format_summary_table(results) in finished.stdout
    for name in ("sweep.png", "sweep_learning_curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"wrote {tmp_path / name}" in finished.stdout.splitlines()
    assert len(list(tmp_path.iterdir())) == 3


def test_command_line_reads_benchmark_result_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmark_result.p").write_bytes(pickle.dumps(make_results(nb_iterations=1)))
    assert plot_results.main([]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "benchmark_result.png", "benchmark_result_learning_curves.png"}


@pytest.mark.parametrize("content", [
    None, b"", b"<html>", pickle.dumps([1, 2]), pickle.dumps({"weights": [1.0]}), pickle.dumps(Path("x"))])
def test_a_missing_or_foreign_file_is_one_line_and_exit_status_2(content, tmp_path, capsys):
    path = tmp_path / "benchmark_result.p"
    if content is not None:
        path.write_bytes(content)
    assert plot_results.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("plot_results.py: ")
    assert captured.out == "" and not list(tmp_path.glob("*.png"))


def test_command_line_explains_its_use(capsys):
    assert plot_results.main(["a.p", "b.p"]) == 2
    assert "usage: python plot_results.py [benchmark_result.p]" in capsys.readouterr().err
