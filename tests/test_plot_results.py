"""plot_results.py: tables, the comparison with the dense net and figures, of sweeps complete or not."""
import itertools
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from scipy import stats

import plot_results
from plot_results import (compare_with_dense, draw_figures, format_family, format_summary_table, get_family_style,
                          plot_accuracy, plot_differences, plot_learning_curves, results_to_dataframe)
from sweep_results import NAN, SIZES, make_failure, make_results, make_run, set_accuracies



@pytest.mark.parametrize("function", [
    results_to_dataframe, format_summary_table, compare_with_dense, plot_accuracy, plot_differences,
    plot_learning_curves])
def test_foreign_data_is_named_as_such(function):
    with pytest.raises(ValueError, match="not the result of a sweep"):
        function({"dataset_names": []})


def test_a_run_with_a_finite_accuracy_is_a_row_of_the_frame_in_the_order_of_the_sweep():
    results = make_results(["b", "a"], [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"], nb_iterations=2)
    results["a"][0.5]["unnamed"] = {20: {1: make_run(0.25, 77, [0.1] * 8), 0: make_run(NAN)}}
    frame = results_to_dataframe(results)
    order = list(itertools.product("ba", [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"], [0, 1]))
    order.insert(20, ("a", 0.5, 20, "unnamed", 1))  # after the families that the sweep names, in its block
    assert list(frame.iloc[:, :5].itertuples(index=False, name=None)) == order
    assert frame.iloc[20].to_dict() == {
        "dataset": "a", "share": 0.5, "nb_neurons": 20, "model_name": "unnamed", "iteration": 1,
        "nb_model_parameters": 77, "nb_epochs": 8, "best_val_accuracy": 0.4, "test_accuracy": 0.25, "test_loss": 2.0,
            "training_time": 0.5}


def test_the_table_as_text_equal_means_are_both_best_and_runs_without_a_finite_accuracy_have_failed():
    results = make_results(["digits", "mnist"], models=["standard_nn", "ss_1_dim", "rank_1"])
    results["mnist"][0.1] = {"rank_1": {50: {0: make_run(0.7, 77, [0.1] * 3), 4: make_run(0.9, 77, [0.1] * 6)}},
                             "unnamed": {50: {1: make_run(0.99)}}, "no_runs": {50: {}}}
    set_accuracies(results, standard_nn=[0.5, NAN, 0.75], ss_1_dim=[0.625], rank_1=[NAN, math.inf])
    run = dict(dataset="mnist", share=0.1, nb_neurons=50, model_name="rank_1")
    results["failures"] = [
        *[make_failure("killed", **run, iteration=1)] * 2, make_failure("reason 0", **run, iteration=0),  # is there now
        make_failure("no\n network", dataset="mnist", model_name="ss_1_dim"),  # counts for all iterations
        *(make_failure(f"reason {i}", dataset="cifar10") for i in range(1, 30))]
    assert format_summary_table(results) == """\
digits, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn        3910       2       1       4.0  0.625 ± 0.177 *
  ss_1_dim           1752       1       0       4.0  0.625 *
  rank_1                -       0       2         -  -

mnist, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn           -       0       0         -  -
  ss_1_dim              -       0       3         -  -
  rank_1               77       2       1       4.5  0.800 ± 0.141
  unnamed             100       1       0       4.0  0.990 *

test accuracy: mean ± sd over runs, * highest mean of its block

failures: 36
  3 times, first in digits, share 0.1, neurons 50, standard_nn, iteration 1: test accuracy is not
    finite
  2 times, first in mnist, share 0.1, neurons 50, rank_1, iteration 1: killed
  mnist, share 0.1, neurons 50, rank_1, iteration 0: reason 0
  mnist, ss_1_dim: no network
""" + "".join(f"  cifar10: reason {i}\n" for i in range(1, 7)) + "  and 23 other reasons"


def test_differences_are_paired_over_the_common_iterations():
    results = make_results(models=["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim"])
    set_accuracies(results, standard_nn=[0.5, 0.6, NAN], ss_1_dim=[0.7, 0.65, 0.1, 0.2], ss_2_dim=[0.1], ss_3_dim=[NAN])
    rows = compare_with_dense(results)
    # Two pairs, 0.2 and 0.05: Student's distribution of one degree of freedom has the quantile tan(0.475 pi).
    half_width = 0.075 * math.tan(0.475 * math.pi)
    assert rows.iloc[0].to_dict() == {
        "dataset": "digits", "share": 0.1, "nb_neurons": 50, "model_name": "ss_1_dim", "nb_pairs": 2,
        "difference_mean": pytest.approx(0.125), "interval_low": pytest.approx(0.125 - half_width),
        "interval_high": pytest.approx(0.125 + half_width), "nb_model_parameters": 1752,
        "parameter_ratio": pytest.approx(1752 / 3910), "p_value": pytest.approx(NAN, nan_ok=True),
        "verdict": "undecided"}
    assert list(rows["nb_pairs"]) == [2, 1, 0] and rows["difference_mean"][1] == pytest.approx(-0.4)
    with pytest.raises(ValueError, match="'standard_nn'.*ss_1_dim"):
        compare_with_dense(make_results(models=["ss_1_dim"]))


def test_p_values_are_multiplied_as_holm_does_it_by_the_number_of_families_of_the_block():
    differences = np.random.default_rng(0).normal([[0.0], [0.15], [0.2], [-0.3], [0.2]], 0.1, (5, 6))
    results = make_results(["digits", "a"], models=["standard_nn", *(f"ss_{d}_dim" for d in range(1, 6)), "few_pairs"])
    set_accuracies(results, standard_nn=[0.5] * 6, few_pairs=[0.1, 0.1001, 0.1, 0.1],
                   **{f"ss_{d + 1}_dim": 0.5 + differences[d] for d in range(5)})
    rows = compare_with_dense(results)
    t = differences.mean(axis=1) / differences.std(axis=1, ddof=1) * math.sqrt(6)
    order = np.argsort(-abs(t))
    raised = 2 * stats.t.sf(abs(t[order]), 5) * [5, 4, 3, 2, 1]
    assert list(rows["p_value"][order]) == pytest.approx(list(np.maximum.accumulate(raised)), rel=1e-9)  # two are tied
    assert list(rows["verdict"][:5]) == ["undecided"] * 3 + ["worse", "better"] and rows["interval_low"][2] > 0
    assert math.isnan(rows["p_value"][5])  # four pairs are not tested, and do not count as a test


@pytest.mark.filterwarnings("error")
def test_differences_without_spread_and_too_few_pairs():
    results = make_results()
    set_accuracies(results, standard_nn=[0.5] * 5, ss_1_dim=[0.75] * 5, ss_2_dim=[0.25] * 5, ss_3_dim=[0.5] * 5,
                   ss_4_dim=[0.75] * 4, ss_5_dim=[0.75, NAN, 0.75, 0.75, 0.75], rank_1=[])
    rows = compare_with_dense(results)
    assert list(rows["verdict"]) == ["better", "worse", *["undecided"] * 4]
    assert list(rows["p_value"]) == pytest.approx([0, 0, 1, NAN, NAN, NAN], nan_ok=True)
    assert list(rows["interval_low"][:5]) == list(rows["interval_high"][:5]) == [0.25, -0.25, 0, 0.25, 0.25]


def get_shown(ax, model_name):
    """Of a family: its line [(x, y), ...], markers {(x, y): filled?}, bars [(x, low, high), ...], dashes and labels."""
    color = get_family_style(model_name)["color"]
    line, = [line for line in ax.lines if line.get_label() == model_name]
    filled = {tuple(xy): to_hex(face) == color for found in ax.collections if isinstance(found, PathCollection)
              and to_hex(found.get_edgecolors()[0]) == color
              for xy, face in zip(found.get_offsets().tolist(), found.get_facecolors())}
    bars = [(*ends[0], ends[1][1]) for container in ax.containers for ends in container[2][0].get_segments()
            if len(ends) and to_hex(container[2][0].get_color()[0]) == color]
    dashes = [tuple(xy) for dash in ax.lines if dash.get_alpha() and dash.get_color() == color
              for xy in dash.get_xydata().tolist()]
    return [tuple(xy) for xy in line.get_xydata().tolist()], filled, bars, dashes, {
        tuple(text.xy): text.get_text() for text in ax.texts if text.get_color() == color}


def test_accuracy_shows_runs_means_and_intervals_joined_in_order_of_size_with_the_number_of_neurons():
    results = make_results(neurons=[500, 10, 50], models=["standard_nn", "ss_1_dim", "my_own"])
    figure = plot_accuracy(results)
    ax, = figure.axes
    assert ax.get_xlabel() == "Model parameters (count)" and "Test accuracy" in figure.get_supylabel()
    for name, handle in zip(results["model_names"], figure.legends[0].legend_handles, strict=True):
        assert [handle.get_label(), handle.get_color(), handle.get_marker()] == [
            format_family(name), *get_family_style(name).values()]
        line, filled, bars, dashes, labels = get_shown(ax, name)
        runs = {found[0]["nb_model_parameters"]: [run["test_accuracy"] for run in found.values()]
                for _, found in sorted(results["digits"][0.1][name].items())}
        assert line == [(size, pytest.approx(np.mean(runs[size]))) for size in runs]
        assert filled == dict.fromkeys(line, True) and labels == dict(zip(line, ("10", "50", "500")))
        assert sorted(dashes) == sorted((size, accuracy) for size in runs for accuracy in runs[size])
        ends = [stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)) for values in runs.values()]
        assert all(ax.viewLim.contains(*xy) for xy in dashes) and not ax.viewLim.containsy(np.max(ends))
        assert np.array(bars) == pytest.approx(np.column_stack([list(runs), ends]))


def test_differences_show_the_rows_of_the_comparison_with_bars_from_five_pairs_on():
    results = make_results(neurons=[100, 20], models=["standard_nn", "ss_1_dim", "ss_2_dim"], nb_iterations=6)
    for i, run in results["digits"][0.1]["standard_nn"][20].items():
        results["digits"][0.1]["ss_1_dim"][20][i] = make_run(run["test_accuracy"] + 0.3 + 0.01 * i, size=900)
    del results["digits"][0.1]["ss_2_dim"][100][0], results["digits"][0.1]["ss_2_dim"][100][1]
    ax, = plot_differences(results).axes
    assert ax.get_xlabel() == "Model parameters (ratio to the dense net)"
    assert get_shown(ax, "standard_nn")[:2] == ([(1, 0)], {(1, 0): True})
    for row in compare_with_dense(results).itertuples():
        xy = row.parameter_ratio, row.difference_mean
        line, filled, bars, _, labels = get_shown(ax, row.model_name)
        assert xy in line and line[0][0] <= line[1][0] and labels[xy] == str(row.nb_neurons)
        assert filled[xy] == (row.verdict != "undecided")
        bar = xy[0], pytest.approx(row.interval_low), pytest.approx(row.interval_high)
        assert (bar in bars) == (row.nb_pairs >= 5)


def test_learning_curves_are_medians_and_ranges_with_stopped_runs_held_at_their_last_value():
    results = make_results(neurons=[20, 50], models=["rank_1", "ss_1_dim"])
    results["digits"][0.1] = {"ss_1_dim": {50: {
        0: make_run(0.5, history=[0.1, 0.2], val_history=[0.0, 0.3]),
        1: make_run(0.5, history=[0.2, 0.4, 0.6, 0.5], val_history=[0.1, 0.2, 0.3, 0.4]),
        2: make_run(0.5, history=[0.3, 0.5, 0.7], val_history=[0.2, 0.4, 0.6])}}}
    ax, = plot_learning_curves(results, nb_neurons=50).axes
    curves = {line.get_linestyle(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert curves["-"] == ([1, 2, 3, 4], pytest.approx([0.2, 0.4, 0.6, 0.5]))
    assert curves["--"] == ([1, 2, 3, 4], pytest.approx([0.1, 0.3, 0.3, 0.4]))
    assert curves[":"][0] == [2, 2]  # where the first run stops
    shade = {tuple(point) for point in ax.collections[1].get_paths()[0].vertices.tolist()}
    assert shade == {(1, 0.1), (1, 0.3), (2, 0.2), (2, 0.5), (3, 0.2), (3, 0.7), (4, 0.2), (4, 0.7)}
    assert [ax.get_title() for ax in plot_learning_curves(results).axes] == ["no runs"]  # of the first width
    with pytest.raises(ValueError, match=r"no 30 neurons.*\[20, 50\]"):
        plot_learning_curves(results, nb_neurons=30)


def test_there_is_a_panel_per_dataset_and_share_with_runs_and_those_of_a_row_share_the_vertical_axis():
    results = {**make_results(["a", "b"], [0.1, 1.0]), "dataset_names": ["a", "b", "c", "d"]}
    results["c"] = {1.0: results["b"].pop(0.1)}
    for plot in (plot_accuracy, plot_differences):
        axes = plot(results).axes
        assert [ax.get_title().replace("\ntraining share", "") for ax in axes] == ["a 0.1", "a 1", "b 1", "c 1"]
        assert all(axes[0].get_shared_y_axes().joined(axes[0], ax) for ax in axes)
    assert len(plot_learning_curves(results).axes) == 4 * len(SIZES)


def test_figures_are_the_same_bytes_every_time_and_without_a_dense_net_there_are_no_differences(tmp_path):
    draw_figures(make_results(), tmp_path / "a.p")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a_differences.png", "a_learning_curves.png"}
    assert draw_figures(make_results(), tmp_path / "b.p", [plot_accuracy]) == [tmp_path / "b.png"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(draw_figures(make_results(models=["rank_1"]), tmp_path / "a.p")) == 2


def test_the_script_prints_the_table_and_writes_the_figures_without_torch_pyplot_or_a_backend(tmp_path, capsys):
    results = make_results(models=["standard_nn", "rank_1"])
    (tmp_path / "sweep.p").write_bytes(pickle.dumps(results))
    script = ("import runpy, sys\nsys.argv[1:] = ['sweep.p']\n"
              f"runpy.run_path({plot_results.__file__!r}, run_name='__main__')\n"
              "assert not {'torch', 'benchmark', 'matplotlib.pyplot'} & set(sys.modules)")
    finished = subprocess.run([sys.executable, "-X", "utf8", "-c", script], capture_output=True, encoding="utf-8",
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.path.dirname(plot_results.__file__),
                                                 "MPLBACKEND": "qt4agg"})  # which is no longer one
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == (f"{format_summary_table(results)}\nwrote sweep.png\nwrote sweep_differences.png\n"
                               "wrote sweep_learning_curves.png\n")
    with pytest.raises(SystemExit, match="2"):
        plot_results.main([str(tmp_path / "other.p")])
    assert "other.p does not exist" in capsys.readouterr().err
