"""plot_results.py: table, figures and comparison on results as sweeps leave them, complete or not."""
import io
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

import plot_results
from plot_results import (compare_with_dense, format_summary_table, get_family_style, plot_accuracy,
                          plot_learning_curves, summary_table)

PROJECT = Path(plot_results.__file__).resolve().parent
SIZES = {"standard_nn": 3910, "ss_1_dim": 1752, "ss_2_dim": 2220, "ss_3_dim": 2848, "ss_4_dim": 3620,
         "ss_5_dim": 4520, "rank_1": 1510}
NAN = math.nan


def make_run(test_accuracy, size=100, history=(0.1, 0.3, 0.5, 0.7), val_history=(0.1, 0.2, 0.3, 0.4)):
    return {"accuracy_history": list(history), "val_accuracy_history": list(val_history),
            "test_accuracy": test_accuracy, "nb_model_parameters": size}


def make_results(datasets=("digits",), shares=(0.1,), neurons=(50,), models=tuple(SIZES), nb_iterations=3):
    """A complete sweep; every run has another accuracy."""
    results = {"dataset_names": list(datasets), "training_set_shares": list(shares), "nb_neurons_list": list(neurons),
               "model_names": list(models), "nb_iterations": nb_iterations, "failures": []}
    accuracies = (0.4 + 0.5 * (0.618 * i % 1) for i in itertools.count(1))
    for dataset in datasets:
        results[dataset] = {share: {model: {h: {
            iteration: make_run(next(accuracies), size=SIZES.get(model, 1000) * h // 50)
            for iteration in range(nb_iterations)} for h in neurons} for model in models} for share in shares}
    return results


def make_failure(reason, **where):
    return {**dict.fromkeys(("dataset", "share", "model_name", "nb_neurons", "iteration")), **where, "reason": reason}


def set_accuracies(results, **accuracies):
    """Give families of the first block these test accuracies, one run each."""
    block = results[results["dataset_names"][0]][results["training_set_shares"][0]]
    for model, values in accuracies.items():
        block[model] = {results["nb_neurons_list"][0]: {
            i: make_run(value, size=SIZES.get(model, 1000)) for i, value in enumerate(values)}}


# ---- the table ----

@pytest.mark.filterwarnings("error")
def test_summary_equals_hand_computed_numbers():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    results["digits"][0.1] = {"ss_1_dim": {50: {1: make_run(0.3)}}, "standard_nn": {50: {
        0: make_run(0.5, 77, [0.1] * 3), 1: make_run(0.7, 77, [0.1] * 4), 2: make_run(0.9, 77, [0.1] * 8)}}}
    standard, ss_1 = summary_table(results)
    assert standard == {
        "dataset": "digits", "share": 0.1, "model_name": "standard_nn", "nb_neurons": 50, "nb_model_parameters": 77,
        "nb_runs": 3, "nb_failures": 0, "epochs_mean": 5.0, "test_accuracy_mean": pytest.approx(0.7),
        "test_accuracy_sd": pytest.approx(0.2), "best": True}
    assert math.isnan(ss_1["test_accuracy_sd"])


def test_rows_are_plain_data_in_the_order_of_the_sweep():
    axes = ["b", "a"], [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"]
    rows = summary_table(make_results(*axes))
    assert [tuple(row.values())[:4] for row in rows] == list(itertools.product(*axes))
    assert {type(value) for row in rows for value in row.values()} == {str, int, float, bool}


def test_failed_iterations_are_counted_once_and_only_where_they_failed():
    results = make_results(["digits", "mnist"], [0.1, 0.5], models=["standard_nn", "ss_1_dim"])
    del results["mnist"], results["digits"][0.5], results["digits"][0.1]["ss_1_dim"][50][2]
    run = dict(dataset="digits", share=0.1, nb_neurons=50)
    results["failures"] = [
        make_failure("", dataset="mnist"), make_failure("", dataset="digits", share=0.5, model_name="ss_1_dim"),
        *[make_failure("", **run, model_name="ss_1_dim", iteration=2)] * 2,
        make_failure("", **run, model_name="standard_nn", iteration=0)]  # has succeeded since
    assert [(row["nb_runs"], row["nb_failures"]) for row in summary_table(results)] == [
        (3, 0), (2, 1), (0, 0), (0, 3), *[(0, 3)] * 4]


def test_the_table_as_text():
    results = make_results(["digits", "mnist", "cifar10"], models=["standard_nn", "ss_1_dim", "rank_1"])
    del results["cifar10"], results["mnist"][0.1]["ss_1_dim"]
    results["mnist"][0.1].update(standard_nn={50: {1: make_run(0.99)}}, no_runs={50: {}},
                                 unnamed={50: {0: make_run(0.2), 2: make_run(0.3)}})
    # A run without a finite accuracy enters no mean; equal means are both best.
    set_accuracies(results, standard_nn=[0.5, NAN, 0.75], ss_1_dim=[0.625], rank_1=[NAN, math.inf])
    results["failures"] = [make_failure("no\n network", dataset="cifar10")]
    assert format_summary_table(results) == """\
digits, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn        3910       2       1       4.0  0.625 ± 0.177 *
  ss_1_dim           1752       1       0       4.0  0.625 *
  rank_1                -       0       2         -  -

mnist, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn         100       1       0       4.0  0.990 *
  ss_1_dim              -       0       0         -  -
  rank_1             1510       3       0       4.0  0.653 ± 0.191
  unnamed             100       2       0       4.0  0.250 ± 0.071

cifar10, share 0.1, 50 neurons
  no runs, 9 failed

test accuracy: mean ± sd over runs, * highest mean of its block

failures: 4
  3 times, first in digits, share 0.1, neurons 50, standard_nn, iteration 1: test accuracy is not
    finite
  cifar10: no network"""


def test_the_table_is_at_most_100_columns_wide_whatever_the_values():
    datasets, share, nb_neurons = ["data" * 50, "data" * 50 + "x"], 1e-300 / 3, 123456789012
    results = make_results(datasets, [share], [nb_neurons], ["family" * 30, "standard_nn"])
    for by_neurons in results[datasets[1]][share].values():
        by_neurons[nb_neurons] = {i: make_run(1e100 * (i + 1), size=10**18) for i in range(3)}
    results["failures"] = [
        make_failure("word" * 500, dataset=datasets[0], share=share, model_name="family" * 30, nb_neurons=nb_neurons,
                     iteration=10**20), make_failure("several\nlines\tof words " * 200)]
    lines = format_summary_table(results).splitlines()
    assert 80 < max(map(len, lines)) <= 100
    assert len(lines) <= 30  # reasons of 2,000 characters are cut short
    for part in ("± 1.0e+100 *", "wordword", "several lines of"):
        assert any(part in line for line in lines)
    assert len({line for line in lines if line.endswith("neurons")}) == 2  # names that differ at their end stay apart


def test_failures_are_counted_by_reason_the_most_frequent_first_and_many_reasons_cut_short():
    results = make_results()
    assert "failures" not in format_summary_table(results)
    results["failures"] = [make_failure("no network", dataset="mnist")]
    results["failures"] += [make_failure("killed", dataset="digits", model_name="ss_1_dim", iteration=i)
                            for i in range(500)]
    results["failures"] += [make_failure(f"reason {i}") for i in range(30)]
    lines = format_summary_table(results).splitlines()
    assert lines[lines.index("failures: 531") + 1:] == [
        "  500 times, first in digits, ss_1_dim, iteration 0: killed", "  mnist: no network",
        *(f"  the whole sweep: reason {i}" for i in range(8)), "  22 more for 22 other reasons"]


def test_foreign_data_is_named_as_such():
    for function in (summary_table, format_summary_table, plot_accuracy, plot_learning_curves, compare_with_dense):
        for foreign in ({"dataset_names": []}, None):
            with pytest.raises(ValueError, match="not the result of a sweep"):
                function(foreign)


# ---- the figures ----

def get_lines(ax, model_name):
    """The dashes of the single runs and the line of the means of one family."""
    runs, means = [line for line in ax.lines if line.get_label() == model_name]
    assert runs.get_linestyle() == "None" and runs.get_marker() == "_"
    return runs, means


def get_texts(parent):
    return [text.get_text() for text in parent.texts]


def test_accuracy_panel_shows_every_run_and_connects_the_means_in_order_of_size():
    models = [*SIZES, "my_own"]
    results = make_results(neurons=[500, 10, 50], models=models)
    figure = plot_accuracy(results)
    (ax,), (legend,) = figure.axes, figure.legends
    assert ax.get_xlabel() == "Model parameters (count)" and ax.get_xscale() == "log"
    assert ax.get_ylabel() == "Test accuracy\n(fraction of samples)"
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert get_texts(legend) == models
    for model_name, handle in zip(models, legend.legend_handles):
        points = [[run["nb_model_parameters"], run["test_accuracy"]]
                  for by_iteration in results["digits"][0.1][model_name].values() for run in by_iteration.values()]
        runs, means = get_lines(ax, model_name)
        assert runs.get_xydata().tolist() == points
        assert means.get_xydata().ravel() == pytest.approx(np.mean(  # of the widths 10, 50 and 500
            [points[3:6], points[6:9], points[0:3]], axis=1).ravel())
        assert means.get_linestyle() == "-"
        style = get_family_style(model_name)
        assert {to_hex(artist.get_color()) for artist in (runs, means, handle)} == {style["color"]}
        assert means.get_marker() == handle.get_marker() == style["marker"]
        assert runs.get_markersize() > means.get_markersize()  # so that no run hides behind a mean
        assert all(left < size < right and bottom < accuracy < top for size, accuracy in points)


@pytest.mark.parametrize("nb_datasets, shares, nb_columns", [
    (4, [0.1, 0.5, 1.0], 3), (20, [0.1], 4), (3, [0.1 * i for i in range(1, 8)], 4)])
def test_accuracy_has_one_panel_per_dataset_and_share(nb_datasets, shares, nb_columns):
    datasets = [f"set_{i}" for i in range(nb_datasets)]
    figure = plot_accuracy(make_results(datasets, shares, nb_iterations=1))
    assert [ax.get_title() for ax in figure.axes] == [
        f"{dataset}\ntraining share {share:g}" for dataset in datasets for share in shares]
    assert all(ax.get_xscale() == "linear" for ax in figure.axes)
    grid = figure.axes[0].get_gridspec()
    assert grid.ncols == nb_columns
    assert sum(bool(ax.get_ylabel()) for ax in figure.axes) == grid.nrows
    assert sum(bool(ax.get_xlabel()) for ax in figure.axes) == grid.ncols  # the lowest of each column
    assert figure.dpi == 100 and figure.get_figwidth() / grid.ncols >= 3  # readable


def test_missing_families_and_nans_are_left_out_of_the_figures():
    results = make_results(["digits", "mnist", "cifar10"])
    del results["cifar10"], results["digits"][0.1]["rank_1"]
    for dataset in ("digits", "mnist"):
        del results[dataset][0.1]["ss_4_dim"]
    set_accuracies(results, ss_1_dim=[0.4, NAN, 0.6], ss_2_dim=[NAN, NAN, NAN])
    figure = plot_accuracy(results)
    assert [list(line.get_ydata()) for line in get_lines(figure.axes[0], "ss_1_dim")] == [[0.4, 0.6], [0.5]]
    assert {line.get_label() for line in figure.axes[0].lines} == {"standard_nn", "ss_1_dim", "ss_3_dim", "ss_5_dim"}
    columns = [name for name in SIZES if name != "ss_4_dim"]
    assert get_texts(figure.legends[0]) == columns

    axes = plot_learning_curves(results).axes
    titles = [(dataset, name) for dataset in results["dataset_names"] for name in columns]
    assert [ax.get_title() for ax in axes] == [f"{dataset}\nshare 0.1, {name}" for dataset, name in titles]
    empty = [("digits", "ss_2_dim"), ("digits", "rank_1"), *(("cifar10", name) for name in columns)]
    assert [title for title, ax in zip(titles, axes) if get_texts(ax) == ["no runs"]] == empty
    assert [title for title, ax in zip(titles, axes) if not ax.lines] == empty


def test_a_sweep_without_any_run_still_gives_table_and_figures():
    for datasets, nb_panels in ((["digits", "mnist"], 2), ([], 1)):
        results = {**make_results(datasets), **dict.fromkeys(datasets, {})}
        assert format_summary_table(results).endswith("no runs")
        for figure in (plot_accuracy(results), plot_learning_curves(results)):
            assert [get_texts(ax) for ax in figure.axes] == [["no runs"]] * nb_panels
            figure.savefig(io.BytesIO())


def get_curve(ax, linestyle):
    (line,) = [line for line in ax.lines if line.get_linestyle() == linestyle]
    return list(line.get_xdata()), list(line.get_ydata())


def get_vertices(shade):
    return {tuple(point) for point in shade.get_paths()[0].vertices.tolist()}


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
    assert get_vertices(training) == {(1, 0.1), (1, 0.3), (2, 0.2), (2, 0.5), (3, 0.2), (3, 0.7), (4, 0.2), (4, 0.7)}
    assert get_vertices(validation) == {(1, 0.0), (1, 0.2), (2, 0.2), (2, 0.4), (3, 0.3), (3, 0.6), (4, 0.3), (4, 0.6)}
    assert get_curve(ax, ":")[0] == [2, 2]  # where the first run stops
    assert ax.get_xlabel() == "Epoch" and ax.get_ylabel() == "Accuracy\n(fraction of samples)"
    assert get_texts(figure.legends[0]) == [
        "training, median", "training, range", "validation, median", "validation, range", "first run stops"]
    colors = [line.get_color() for line in ax.lines[:2]] + [shade.get_facecolor()[0] for shade in ax.collections]
    assert {to_hex(color) for color in colors} == {get_family_style("ss_1_dim")["color"]}


@pytest.mark.filterwarnings("error")
def test_learning_curves_leave_out_what_is_not_finite():
    results = make_results(models=["ss_1_dim"])
    results["digits"][0.1]["ss_1_dim"][50] = {
        0: make_run(0.5, history=[0.1, NAN, NAN]), 1: make_run(0.5, history=[0.3, 0.4, NAN]),
        2: make_run(NAN, history=[0.9, 0.9, 0.9]), 3: make_run(0.5, history=[0.2, math.inf, NAN]),
        4: make_run(0.5, history=[], val_history=[])}
    (ax,) = plot_learning_curves(results).axes
    assert get_curve(ax, "-") == ([1, 2, 3], pytest.approx([0.2, 0.4, NAN], nan_ok=True))
    assert [line.get_linestyle() for line in ax.lines] == ["--", "-"]  # all stop at once


def test_learning_curves_show_the_width_asked_for_or_the_first_of_the_sweep_and_the_families_it_has():
    results = make_results(neurons=[100, 20], models=["ss_1_dim", "rank_1"])
    del results["digits"][0.1]["rank_1"][20]
    for nb_neurons, level, arguments, nb_panels in ((100, 0.7, {}, 2), (20, 0.2, {"nb_neurons": 20}, 1)):
        results["digits"][0.1]["ss_1_dim"][nb_neurons] = {0: make_run(0.5, history=[level] * 3)}
        figure = plot_learning_curves(results, **arguments)
        assert get_curve(figure.axes[0], "-")[1] == [level] * 3 and len(figure.axes) == nb_panels
        assert figure.legends[0].get_title().get_text().startswith(f"{nb_neurons} neurons; ")
    with pytest.raises(ValueError, match=r"no 30 neurons.*\[100, 20\]"):
        plot_learning_curves(results, nb_neurons=30)


def test_styles_are_distinct_and_do_not_depend_on_the_process():
    names = ["standard_nn", "rank_1", *(f"ss_{d}_dim" for d in range(1, 33))]
    assert len({get_family_style(name)["color"] for name in names}) == 34
    assert len({get_family_style(name)["marker"] for name in SIZES}) == 7
    # The more state dimensions beyond the paper's, the lighter.
    colors = {d: np.array(to_rgb(get_family_style(f"ss_{d}_dim")["color"])) for d in range(6, 33)}
    assert (np.diff([color.sum() for color in colors.values()]) > 0).all()
    for low, high in ((8, 16), (16, 32)):
        assert np.abs(colors[high] - colors[low]).max() > 0.1
    assert get_family_style("ss_6_dim") == {"color": "#a3189c", "marker": "h"}
    assert get_family_style("my_own") == {"color": "#56b4e9", "marker": "h"}  # by hash() it would vary


@pytest.mark.parametrize("plot, nb_datasets", [(plot_accuracy, 1), (plot_accuracy, 12), (plot_learning_curves, 2)])
def test_long_titles_and_the_legend_overlap_nothing_and_are_neither_formulas_nor_cut_off(plot, nb_datasets):
    datasets = [f"$x^{{$_a_dataset_with_a_rather_long_name_{i}" for i in range(nb_datasets)]
    figure = plot(make_results(datasets, models=[*SIZES, "a_family_with_a_name_much_longer_than_all_others"]))
    figure.savefig(io.BytesIO())  # lays the figure out
    legend_box = figure.legends[0].get_window_extent()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    assert not any(box.overlaps(other) for box, other in itertools.combinations([legend_box, *boxes], 2))
    for box in [legend_box, *boxes]:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for ax in figure.axes:
        labels = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        inside = sorted((box.x0, box.x1) for box in labels if ax.bbox.x0 <= box.x1 and box.x0 <= ax.bbox.x1)
        assert len(inside) >= 2 and all(a[1] < b[0] for a, b in zip(inside, inside[1:]))


# ---- the paper's question ----

def test_differences_are_paired_over_the_common_iterations():
    results = make_results(models=["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim"])
    set_accuracies(results, standard_nn=[0.5, 0.6, NAN], ss_1_dim=[0.7, 0.65, 0.1, 0.2], ss_2_dim=[0.1], ss_3_dim=[NAN],
                   ss_4_dim=[0.4, 0.5])
    ss_1, *rows = compare_with_dense(results)
    # Two pairs, 0.2 and 0.05: a resample has mean 0.05, 0.125 or 0.2 with probability 1/4, 1/2 and 1/4.
    assert ss_1 == {
        "dataset": "digits", "share": 0.1, "nb_neurons": 50, "model_name": "ss_1_dim", "nb_pairs": 2,
        "difference_mean": pytest.approx(0.125), "interval_low": pytest.approx(0.05),
        "interval_high": pytest.approx(0.2), "nb_model_parameters": 1752,
        "parameter_ratio": pytest.approx(1752 / 3910), "verdict": "better"}
    assert [(row["nb_pairs"], row["verdict"]) for row in rows] == [(1, "undecided"), (0, "undecided"), (2, "worse")]
    numbers = [[row["difference_mean"], row["interval_low"], row["interval_high"]] for row in rows]
    assert np.ravel(numbers) == pytest.approx([-0.4, NAN, NAN, NAN, NAN, NAN, -0.1, -0.1, -0.1], nan_ok=True)
    rows = compare_with_dense(results, baseline="ss_1_dim")
    assert [row["verdict"] for row in rows] == ["worse", "undecided", "undecided", "worse"]
    with pytest.raises(ValueError, match="'dense'.*standard_nn"):
        compare_with_dense(results, baseline="dense")


def test_the_interval_is_that_of_all_resamples():
    differences = [0.11, -0.02, 0.05, -0.07, 0.01]
    results = make_results(models=["standard_nn", "ss_1_dim"])
    set_accuracies(results, standard_nn=[0.5] * 5, ss_1_dim=[0.5 + difference for difference in differences])
    (row,) = compare_with_dense(results)
    means = [np.mean(resample) for resample in itertools.product(differences, repeat=5)]
    assert [row["interval_low"], row["interval_high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.004)
    assert row["verdict"] == "undecided"


def test_intervals_are_reproducible_and_independent_of_the_rest_of_the_sweep():
    results = make_results(["a", "b"], nb_iterations=6)
    rows = compare_with_dense(results)
    assert rows == compare_with_dense(results) != compare_with_dense(results, seed=1)
    results["dataset_names"], results["model_names"] = ["b"], ["standard_nn", "rank_1"]
    results["b"][0.1] = {name: results["b"][0.1][name] for name in results["model_names"]}
    assert compare_with_dense(results) == [rows[-1]]


# ---- the command line ----

def test_the_script_prints_the_table_and_writes_both_figures_beside_the_pickle_without_torch_or_pyplot(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/sweep.p").write_bytes(pickle.dumps(make_results()))
    script = f"""
import runpy, sys
sys.path.insert(0, {str(PROJECT)!r})
sys.argv[1:] = ["folder/sweep.p"]
import matplotlib
settings = dict(dict.items(matplotlib.rcParams))  # rcParams.items() would choose a backend
try:
    runpy.run_path({str(PROJECT / "plot_results.py")!r}, run_name="__main__")
finally:
    assert dict(dict.items(matplotlib.rcParams)) == settings
    assert not {{"torch", "benchmark", "matplotlib.pyplot"}} & set(sys.modules)
"""
    finished = subprocess.run([sys.executable, "-X", "utf8", "-c", script], capture_output=True, encoding="utf-8",
                              cwd=tmp_path)
    pictures = [Path("folder/sweep.png"), Path("folder/sweep_learning_curves.png")]
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == [
        *format_summary_table(make_results()).splitlines(), *(f"wrote {picture}" for picture in pictures)]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_wrong_use_and_a_missing_or_foreign_file_are_one_line_and_exit_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("foreign.p").write_bytes(pickle.dumps({"weights": [1.0]}))
    for arguments, problem in (([], "benchmark_result.p does not exist"), (["foreign.p"], "foreign.p is refused"),
                               (["a.p", "b.p"], "usage: python plot_results.py [benchmark_result.p]")):
        assert plot_results.main(arguments) == 2
        captured = capsys.readouterr()
        assert problem in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.p"]


def test_a_figure_that_cannot_be_drawn_is_one_line_after_the_table(tmp_path, capsys, monkeypatch):
    (tmp_path / "sweep.p").write_bytes(pickle.dumps(make_results()))
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")  # without LaTeX
    assert plot_results.main([str(tmp_path / "sweep.p")]) == 2
    captured = capsys.readouterr()
    assert "standard_nn" in captured.out and "latex" in captured.err and len(captured.err.splitlines()) == 1


def test_the_home_folder_is_read_from_and_written_to(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # on Windows
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "sweep.p").write_bytes(pickle.dumps(make_results()))
    assert plot_results.main(["~/sweep.p"]) == 0 and (tmp_path / "sweep.png").exists()
