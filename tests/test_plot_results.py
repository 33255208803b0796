"""plot_results.py: figures of results as sweeps leave them, complete or not."""
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
from scipy import stats

import plot_results
from figure_parts import ResultFigure, set_parameter_axis
from plot_results import (compare_with_dense, draw_figures, format_summary_table, get_family_style, plot_accuracy,
                          plot_differences, plot_learning_curves, plot_validation_curves, remove_figures, save_figure)
from sweep_results import NAN, SIZES, make_results, make_run, set_accuracies

PROJECT = Path(plot_results.__file__).resolve().parent


def get_points(ax, model_name):
    """[[x, mean], ...] in the order in which a line joins them, their bars {x: (low, high)}, dashes [[x, y], ...]."""
    color = get_family_style(model_name)["color"]
    line, = [line for line in ax.lines if line.get_label() == model_name]
    assert to_hex(line.get_color()) == color and line.get_linestyle() == "-"
    bars = [segment.tolist() for container in ax.containers for segment in container[2][0].get_segments()
            if to_hex(container[2][0].get_color()[0]) == color]
    dashes = [xy for line in ax.lines if line.get_marker() == "_" and line.get_color() == color
              and line.get_linestyle() == "None" and line.get_alpha() for xy in line.get_xydata().tolist()]
    return line.get_xydata().tolist(), {ends[0][0]: (ends[0][1], ends[1][1]) for ends in bars if ends}, dashes


def get_markers(ax, model_name):
    """{(x, y): is it filled?} of the markers of a family."""
    style = get_family_style(model_name)
    return {tuple(xy): to_hex(line.get_markerfacecolor()) == style["color"] for line in ax.lines
            if line.get_marker() == style["marker"] and line.get_color() == style["color"]
            for xy in line.get_xydata().tolist()}


def get_texts(parent):
    return [text.get_text() for text in parent.texts]


def get_label_positions(ax):
    """{(text, colour): xy} of what is written at markers."""
    return {(text.get_text(), to_hex(text.get_color())): tuple(text.xy) for text in ax.texts}


def test_foreign_data_is_named_as_such():
    for function in (plot_accuracy, plot_differences, plot_learning_curves, lambda foreign: plot_validation_curves(
            {"good": make_results(nb_iterations=1), "bad": foreign})):
        for foreign in ({"dataset_names": []}, None):
            with pytest.raises(ValueError, match="not the result of a sweep"):
                function(foreign)


def test_accuracy_panel_shows_runs_means_and_their_intervals_joined_in_order_of_size_with_the_number_of_neurons():
    models = [*SIZES, "my_own"]
    results = make_results(neurons=[500, 10, 50], models=models)
    figure = plot_accuracy(results)
    (ax,), (legend,) = figure.axes, figure.legends
    assert ax.get_xlabel() == "Model parameters (count)" and ax.get_xscale() == "log"
    assert ax.get_ylabel() == "Test accuracy\n(fraction of samples)"
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert get_texts(legend) == models and legend.get_title().get_text().endswith("; numbers: neurons")
    for model_name, handle in zip(models, legend.legend_handles):
        runs = {h: [(run["nb_model_parameters"], run["test_accuracy"]) for run in by_iteration.values()]
                for h, by_iteration in results["digits"][0.1][model_name].items()}
        line, bars, dashes = get_points(ax, model_name)
        assert [tuple(xy) for xy in dashes] == [xy for h in (500, 10, 50) for xy in runs[h]]
        assert np.ravel(line) == pytest.approx(np.ravel([np.mean(runs[h], axis=0) for h in (10, 50, 500)]))
        for (size, _), accuracies in ((runs[h][0], [accuracy for _, accuracy in runs[h]]) for h in runs):
            assert bars[size] == pytest.approx(
                stats.t.interval(0.95, 2, np.mean(accuracies), stats.sem(accuracies)))
        style = get_family_style(model_name)
        assert get_markers(ax, model_name) == {tuple(xy): True for xy in line}
        assert to_hex(handle.get_color()) == style["color"] and handle.get_marker() == style["marker"]
        labels = get_label_positions(ax)
        assert [labels[str(h), style["color"]] for h in (10, 50, 500)] == [tuple(xy) for xy in line]
        assert all(left < size < right and bottom < accuracy < top for size, accuracy in dashes)


def test_the_dense_net_of_one_width_is_a_line_across_the_panel_and_the_width_is_in_the_legend():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    set_accuracies(results, standard_nn=[0.5, 0.75], ss_1_dim=[0.5])
    figure = plot_accuracy(results)
    across = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 1]]
    assert [list(line.get_ydata()) for line in across] == [[0.625, 0.625]]
    assert get_texts(figure.axes[0]) == [] and "; 50 neurons" in figure.legends[0].get_title().get_text()
    results = make_results(models=["standard_nn", "ss_1_dim"], neurons=[50, 100])
    assert not [line for line in plot_accuracy(results).axes[0].lines if list(line.get_xdata()) == [0, 1]]


@pytest.mark.parametrize("span", [1.001, 1.5, 3.9, 4.1, 6.2, 9.9, 10.1, 30, 99, 101, 1e5])
def test_the_parameter_axis_has_at_least_two_ticks_and_is_logarithmic_from_a_factor_of_four_on(span):
    for smallest in (100, 130, 190, 270, 430, 610, 890):
        ax = ResultFigure().subplots()
        sizes = [smallest, smallest * span]
        ax.plot(sizes, [1, 1])
        set_parameter_axis(ax, sizes, "{x:g}")
        assert ax.get_xscale() == ("log" if span > 4 else "linear")
        left, right = ax.get_xlim()
        assert 2 <= sum(left <= tick <= right for tick in ax.get_xticks()) <= 7


def test_accuracy_of_the_families_asked_for():
    figure = plot_accuracy(make_results(), ["standard_nn", "ss_2_dim"])
    assert get_texts(figure.legends[0]) == ["standard_nn", "ss_2_dim"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2


def test_panels_of_a_row_have_one_vertical_axis_with_room_for_all_their_runs():
    results = make_results(["a", "b"], [0.1, 1.0])
    for dataset in "ab":
        for share in (0.1, 1.0):
            results[dataset][share]["ss_1_dim"][50][0]["test_accuracy"] = {"a": 1.0, "b": 0.1}[dataset] * share
    for plot, nb_columns in ((plot_accuracy, 2), (plot_differences, 2), (plot_learning_curves, 7)):
        axes = plot(results).axes
        shared = axes[0].get_shared_y_axes()
        assert [shared.joined(axes[0], ax) for ax in axes] == [
            index < nb_columns for index in range(len(axes))]
    limits = [ax.get_ylim() for ax in plot_accuracy(results).axes]
    assert limits[0] == limits[1] and limits[2] == limits[3]
    assert limits[0][0] < 0.1 and limits[0][1] > 1.0 and limits[2][0] < 0.01 and limits[2][1] < 1.0


def test_differences_show_the_rows_of_the_comparison_each_width_against_the_dense_net_of_its_own():
    results = make_results(neurons=[100, 20], models=["standard_nn", "ss_1_dim", "ss_2_dim"], nb_iterations=6)
    for i in range(6):
        results["digits"][0.1]["ss_1_dim"][20][i] = make_run(
            results["digits"][0.1]["standard_nn"][20][i]["test_accuracy"] + 0.3 + 0.01 * i, size=900)
        results["digits"][0.1]["ss_2_dim"][20][i]["nb_model_parameters"] = 800
    figure = plot_differences(results)
    ax, = figure.axes
    assert ax.get_xlabel() == "Model parameters (ratio to the dense net)"
    assert ax.get_ylabel() == "Test accuracy minus\nthe dense net's"
    assert [0, 0] in [list(line.get_ydata()) for line in ax.lines if list(line.get_xdata()) == [0, 1]]
    assert get_markers(ax, "standard_nn") == {(1, 0): True}
    rows = compare_with_dense(results)
    assert {row["verdict"] for row in rows} == {"better", "worse", "undecided"}
    labels = get_label_positions(ax)
    for row in rows:
        xy = row["parameter_ratio"], row["difference_mean"]
        line, bars, _ = get_points(ax, row["model_name"])
        assert list(xy) in line and line == sorted(line)
        assert bars[xy[0]] == pytest.approx((row["interval_low"], row["interval_high"]))
        assert get_markers(ax, row["model_name"])[xy] == (row["verdict"] != "undecided")
        assert labels[str(row["nb_neurons"]), get_family_style(row["model_name"])["color"]] == xy
        assert ax.get_ylim()[0] < row["interval_low"] and row["interval_high"] < ax.get_ylim()[1]
    assert get_texts(figure.legends[0]) == ["standard_nn", "ss_1_dim", "ss_2_dim"]
    with pytest.raises(ValueError, match="'standard_nn'"):
        plot_differences(make_results(models=["rank_1"]))


def test_differences_of_less_than_five_pairs_have_no_bar():
    for nb_pairs, nb_bars in ((4, 0), (5, 1)):
        figure = plot_differences(make_results(models=["standard_nn", "ss_1_dim"], nb_iterations=nb_pairs))
        assert len(get_points(figure.axes[0], "ss_1_dim")[1]) == nb_bars
        assert ("no bar: less than" in figure.legends[0].get_title().get_text().replace("\n", " ")) == (nb_bars == 0)


def test_a_family_far_from_all_others_is_written_at_the_edge_and_leaves_the_scale_to_them():
    results = make_results()
    accuracies = {name: [0.8 + 0.01 * ((i * d) % 5) for i in range(6)] for d, name in enumerate(SIZES, start=1)}
    set_accuracies(results, **{**accuracies, "rank_1": [accuracy - 0.5 for accuracy in accuracies["standard_nn"]]})
    ax, = plot_differences(results).axes
    low, high = ax.get_ylim()
    assert -0.1 < low < -0.01 and 0.01 < high < 0.1
    assert get_texts(ax) == ["−0.50↓"]
    (x, y), = get_markers(ax, "rank_1")
    assert x == pytest.approx(1510 / 3910) and y == 0.05  # of the panel's height


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
    line, bars, dashes = get_points(figure.axes[0], "ss_1_dim")
    assert [line, dashes] == [[[1752, 0.5]], [[1752, 0.4], [1752, 0.6]]]
    assert {line.get_color() for line in figure.axes[0].lines} == {
        get_family_style(name)["color"] for name in ("standard_nn", "ss_1_dim", "ss_3_dim", "ss_5_dim")}
    columns = [name for name in SIZES if name != "ss_4_dim"]
    assert get_texts(figure.legends[0]) == columns

    axes = plot_learning_curves(results).axes
    titles = [(dataset, name) for dataset in results["dataset_names"] for name in columns]
    assert [ax.get_title() for ax in axes] == [f"{dataset}\nshare 0.1, {name}" for dataset, name in titles]
    empty = [("digits", "ss_2_dim"), ("digits", "rank_1"), *(("cifar10", name) for name in columns)]
    assert [title for title, ax in zip(titles, axes) if get_texts(ax) == ["no runs"]] == empty
    assert [title for title, ax in zip(titles, axes) if not ax.lines] == empty


def test_a_sweep_without_any_run_still_gives_table_and_figures():
    plot_validation_curves({}).savefig(io.BytesIO())
    for datasets, nb_panels in ((["digits", "mnist"], 2), ([], 1)):
        results = {**make_results(datasets), **dict.fromkeys(datasets, {})}
        assert format_summary_table(results).endswith("no runs")
        for figure in (plot_accuracy(results), plot_differences(results), plot_learning_curves(results),
                       plot_validation_curves({"": results})):
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


def test_validation_curves_of_two_sweeps_are_medians_with_a_marker_where_half_of_the_runs_have_stopped():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    results["digits"][0.1]["ss_1_dim"][50] = {
        0: make_run(0.5, val_history=[0.1, 0.2]), 1: make_run(0.5, val_history=[0.2, 0.3, 0.4]),
        2: make_run(0.5, val_history=[0.3, 0.4, 0.5, 0.6])}
    other = make_results(["digits", "mnist"], neurons=[20], models=["rank_1"])
    figure = plot_validation_curves({"the paper's": results, "scaled": other})
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == [f"{dataset}, share 0.1\n{label}" for dataset in ("digits", "mnist")
                                               for label in ("the paper's", "scaled")]
    assert [[line.get_label() for line in ax.lines] for ax in axes] == [
        ["standard_nn", "ss_1_dim"], ["rank_1"], [], ["rank_1"]]
    curve = axes[0].lines[1]
    assert list(curve.get_xdata()) == [1, 2, 3, 4] and curve.get_ydata() == pytest.approx([0.2, 0.3, 0.4, 0.4])
    assert curve.get_markevery() == [2] and curve.get_marker() == get_family_style("ss_1_dim")["marker"]
    assert axes[0].get_shared_y_axes().joined(*axes[:2]) and axes[0].get_shared_x_axes().joined(*axes[:2])
    assert get_texts(figure.legends[0]) == ["standard_nn", "ss_1_dim", "rank_1"]
    assert figure.legends[0].get_title().get_text().startswith("50, 20 neurons; medians")
    with pytest.raises(ValueError, match="no 30 neurons"):
        plot_validation_curves({"a": results}, nb_neurons=30)


@pytest.mark.parametrize("plot, nb_datasets", [
    (plot_accuracy, 1), (plot_accuracy, 12), (plot_differences, 6), (plot_learning_curves, 2),
    (lambda results: plot_validation_curves({"a long label" * 9: results, "$x^{": results}), 2)])
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


# ---- files and the command line ----

def test_a_figure_is_saved_as_png_and_pdf_with_text_and_the_same_bytes_every_time(tmp_path):
    for name in ("first.png", "second.png"):
        save_figure(plot_accuracy(make_results()), tmp_path / name)
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("first", "second"))
        assert first == second and first.startswith(start)
    assert b"/FontFile2" in first and b"/Type3" not in first  # TrueType
    assert not {b"CreationDate", b"Matplotlib"} & {*first.replace(b"/", b" ").split()}


def test_figures_are_drawn_and_removed_beside_their_file_and_nothing_else_is(tmp_path):
    others = {"a.p", "a.pickle.png", "a_other.png", "b.png"}
    for name in others:
        (tmp_path / name).touch()
    drawn = draw_figures(make_results(models=["standard_nn", "ss_1_dim"]), tmp_path / "a.p")
    names = ["a.png", "a_differences.png", "a_learning_curves.png"]
    assert [path.name for path in drawn] == names
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {*others, *names, "a.pdf", "a_differences.pdf", "a_learning_curves.pdf"}
    remove_figures(tmp_path / "a.p")
    assert {path.name for path in tmp_path.iterdir()} == others
    remove_figures(tmp_path / "a.p")  # nothing is there
    drawn = draw_figures(make_results(models=["ss_1_dim"]), tmp_path / "a.p")  # without a dense net
    assert [path.name for path in drawn] == ["a.png", "a_learning_curves.png"]


def test_the_script_prints_the_table_and_writes_the_figures_beside_the_pickle_without_torch_or_pyplot(tmp_path):
    results = make_results(models=["standard_nn", "rank_1"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/sweep.p").write_bytes(pickle.dumps(results))
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
    pictures = [Path(f"folder/sweep{suffix}.png") for suffix in ("", "_differences", "_learning_curves")]
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == [
        *format_summary_table(results).splitlines(), *(f"wrote {picture} and .pdf" for picture in pictures)]
    assert all((tmp_path / picture).with_suffix(ending).exists() for picture in pictures for ending in (".png", ".pdf"))


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


def test_sweeps_taken_together_have_panels_for_their_own_shares_only():
    digits, mnist = make_results(["digits"], shares=[0.1]), make_results(["mnist"], shares=[1.0])
    together = {**digits, **mnist, "dataset_names": ["digits", "mnist"], "training_set_shares": [0.1, 1.0]}
    assert [ax.get_title() for ax in plot_differences(together).axes] == [
        "digits\ntraining share 0.1", "mnist\ntraining share 1"]
