"""speed_benchmark.py: what it writes, prints and draws, on layers too small to take time."""
import itertools
import math
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

import speed_benchmark
from plot_results import get_family_style
from semiseparablemodels import SemiseparableLayer
from speed_benchmark import (check_hyperparameters, format_further_measurements, format_table, forward,
                             forward_backward, make_layer, measure, measure_interleaved, measure_layers, plot_speed,
                             prepare_epochs)

LAYERS = ["standard_nn", "ss_1_dim", "ss_2_dim", "rank_1"]
TINY = dict(nb_neurons_list=[8, 16], rectangular_sizes=[[9, 5], [4, 30]], batch_sizes=[4, 3], statespace_dims=[1, 2],
            largest_dense_n=9, repetitions=2, min_measuring_time=0, epoch_cases=[["digits", 20, [4], 3, 2]],
            epoch_layers=["ss_2_dim"], epoch_nb_neurons=6, epoch_repetitions=2, memory_case=None,
            initialisation_sizes=[6], initialisation_statespace_dim=2)


@pytest.fixture
def set_hyperparameters(monkeypatch, tmp_path):
    for name in speed_benchmark.HYPERPARAMETERS:  # the check sets them, which is to be undone
        monkeypatch.setattr(speed_benchmark, name, getattr(speed_benchmark, name))

    def set_all(**values):
        for name, value in values.items():
            assert name in speed_benchmark.HYPERPARAMETERS
            setattr(speed_benchmark, name, value)

    set_all(**TINY, result_file=tmp_path / "speed_result.p")
    return set_all


def make_times(name, *times):
    return {f"{name}_ms": sorted(times)[len(times) // 2], f"{name}_quartiles_ms": [min(times), max(times)],
            f"{name}_times_ms": list(times)}


def make_rows(ns=(1024, 8192), batch_sizes=(637,), layers=("standard_nn", "ss_5_dim"), ms=1.0):
    return [{"n": n, "nb_outputs": n, "batch_size": batch_size, "layer": layer, "forward_ratio": 1.0,
             **make_times("forward", ms), **make_times("forward_backward", ms * n), "forward_backward_ratio": math.nan,
             "multiply_adds": n * n, "parameters": n * n + n, "foreign_load": 0.1}
            for n in ns for batch_size in batch_sizes for layer in layers]


# ---- what is written ----

def test_main_measures_everything_writes_data_and_a_figure_prints_them_and_keeps_an_older_file(
        set_hyperparameters, tmp_path, capsys):
    (tmp_path / "speed_result.p").write_bytes(b"old")
    assert speed_benchmark.main() == 0
    result = pickle.loads((tmp_path / "speed_result.p").read_bytes())
    assert result["hyperparameters"].items() >= {**TINY, "memory_case": []}.items()
    block = Path(speed_benchmark.__file__).read_text(encoding="utf-8").split("\n# ====")[1]
    assert set(result["hyperparameters"]) == {line.split(" = ")[0] for line in block.splitlines() if " = " in line}
    assert result["environment"].keys() >= {"torch", "platform", "nb_cores", "nb_threads", "device", "start_time"}
    # No dense layer beyond largest_dense_n.
    assert [(row["n"], row["nb_outputs"], row["batch_size"], row["layer"]) for row in result["rows"]] == [
        *itertools.product([8], [8], [4, 3], LAYERS), *itertools.product([16], [16], [4, 3], LAYERS[1:]),
        *itertools.product([9], [5], [4, 3], LAYERS), *itertools.product([4], [30], [4, 3], LAYERS[1:])]
    assert all(len(row[f"{run}_times_ms"]) == 2 for run in ("forward", "forward_backward") for row in result["rows"])
    assert [(row["case"], row["nb_samples"], row["layer"], row["n"], len(row["epoch_times_ms"]))
            for row in result["epochs"]] == [("digits", 20, "ss_2_dim", 6, 2)]
    assert [(row["layer"], row["n"]) for row in result["initialisation"]] == [("ss_2_dim", 6)]
    kept, *others = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    assert kept.match("speed_result_20*.p") and kept.read_bytes() == b"old"
    assert [path.name for path in others] == ["speed_result.p", "speed_result.png"]
    assert (tmp_path / "speed_result.png").read_bytes().startswith(b"\x89PNG")
    printed, further = capsys.readouterr().out, format_further_measurements(result)
    assert format_table(result["rows"]) in printed and further in printed
    assert "nan" not in printed and max(map(len, printed.splitlines())) <= 120
    assert all(fact in further for fact in ("training epoch", "made-up", "digits", "the paper's initialisation"))


def test_measurements_that_are_switched_off_are_absent(set_hyperparameters):
    set_hyperparameters(rectangular_sizes=None, memory_layers=None, epoch_cases=None, initialisation_sizes=[])
    result = measure(check_hyperparameters())
    assert [result[key] for key in ("memory", "epochs", "initialisation")] == [[]] * 3
    assert format_further_measurements(result) == "" and {row["n"] for row in result["rows"]} == {8, 16}


def test_numpy_numbers_ranges_tuples_and_paths_become_plain_values(set_hyperparameters, tmp_path):
    set_hyperparameters(nb_neurons_list=list(2 ** np.arange(4, 6)), batch_sizes=np.arange(2, 4), seed=np.int64(1),
                        statespace_dims=range(1, 3), rectangular_sizes=((np.int64(3), 4),), device=torch.device("cpu"),
                        min_measuring_time=np.float32(0.5), result_file=tmp_path / "s.p")
    expected = dict(nb_neurons_list=[16, 32], batch_sizes=[2, 3], seed=1, statespace_dims=[1, 2],
                    rectangular_sizes=[[3, 4]], device="cpu", min_measuring_time=0.5, result_file=str(tmp_path / "s.p"))
    hyperparameters = check_hyperparameters()
    assert repr({name: hyperparameters[name] for name in expected}) == repr(expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, value", [
    ("repetitions", 0), ("repetitions", None), ("warm_up", -1), ("warm_up", 0.5), ("nb_neurons_list", []),
    ("nb_neurons_list", 50), ("batch_sizes", ["4"]), ("min_measuring_time", math.nan), ("nb_threads", 0),
    ("memory_case", [8]), ("memory_layers", ["dense"]), ("epoch_layers", [1]), ("device", "gpu"), ("seed", "0"),
    ("seed", -1), ("rectangular_sizes", [[8]]), ("rectangular_sizes", [[8, 0]]), ("rectangular_sizes", [8, 8]),
    ("epoch_cases", [["mnist", 60000, [28, 28], 10, 1]]), ("epoch_cases", [["digits", 20, [4], 3]]),
    ("epoch_cases", [["digits", 20, 4, 3, 1]]), ("epoch_cases", [["digits", 20, [4], 3, 0]]),
    ("epoch_cases", [["digits", 1, [4], 3, 1]]), ("result_file", None), ("result_file", "speed_result.png"),
    ("result_file", "no_such_folder/speed_result.p"), ("result_file", "tests")])
def test_what_cannot_work_is_named_before_anything_runs(
        set_hyperparameters, monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setattr(speed_benchmark, "measure", None)
    set_hyperparameters(**{name: value})
    assert speed_benchmark.main() == 2
    error = capsys.readouterr().err
    assert (str(value).split("/")[0] if name == "result_file" else name) in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_is_one_line_and_the_result_is_safe(
        set_hyperparameters, monkeypatch, tmp_path, capsys):
    result = {"rows": [], "epochs": [], "memory": [], "initialisation": []}
    monkeypatch.setattr(speed_benchmark, "measure", lambda hyperparameters: result)
    monkeypatch.setattr(speed_benchmark, "plot_speed", lambda result: 1 / 0)
    assert speed_benchmark.main() == 2
    assert capsys.readouterr().err == "speed_benchmark.py: division by zero\n"
    assert pickle.loads((tmp_path / "speed_result.p").read_bytes()) == result


# ---- what is measured ----

def test_each_repetition_after_the_warm_up_runs_all_once_until_the_minimal_time_is_over(
        set_hyperparameters, monkeypatch):
    calls, clock, durations = [], iter(range(100)), iter([9.0, 90.0, 1.0, 10.0, 2.0, 70.0, 6.0, 20.0])
    monkeypatch.setattr(speed_benchmark, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(speed_benchmark, "time_call", lambda call: (call(), next(durations))[1])
    set_hyperparameters(warm_up=1, repetitions=2, min_measuring_time=3)  # readings 0 at the start, then 1, 2, 3
    times = measure_interleaved({name: partial(calls.append, name) for name in "AB"})
    assert "".join(calls) == "AB" + "AB" * 4
    assert times == {"A": [9, 1, 2, 6], "B": [90, 10, 70, 20]}
    assert speed_benchmark.summarise("A", times["A"]) == {
        "A_ms": 4, "A_quartiles_ms": [1.75, 6.75], "A_times_ms": [9, 1, 2, 6]}


def test_rows_hold_times_their_ratios_to_the_dense_layer_parameters_and_multiply_adds(set_hyperparameters, monkeypatch):
    layers = {name: make_layer(name, 8) for name in LAYERS}
    times = dict(zip(itertools.product((forward, forward_backward), LAYERS), (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))

    def measure_interleaved(calls):
        assert list(calls) == [(run, name) for run in (forward, forward_backward) for name in layers]
        assert all(call.func is run and call.args[0] is layers[name] for (run, name), call in calls.items())
        return {key: [times[key] - 0.5, times[key] + 0.5, times[key]] for key in calls}

    monkeypatch.setattr(speed_benchmark, "measure_interleaved", measure_interleaved)
    # One dimension: 8 D, 7 each of B, C, F, G, 6 each of A, E. Two: states of 1, 2, 2, 2, 2, 2, 1 entries.
    multiply_adds = dict(zip(LAYERS, (64, 8 + 4 * 7 + 2 * 6, 8 + 4 * 12 + 2 * 20, 16)))
    rows = measure_layers(layers, 8, 8, 4)
    assert [row["layer"] for row in rows] == LAYERS
    for row in rows:
        name = row["layer"]
        assert (row["n"], row["nb_outputs"], row["batch_size"]) == (8, 8, 4)
        assert (row["multiply_adds"], row["parameters"]) == (multiply_adds[name], multiply_adds[name] + 8)
        for run, dense_ms in ((forward, 2.0), (forward_backward, 6.0)):
            ms = times[run, name]
            assert row[f"{run.__name__}_ratio"] == dense_ms / ms
            assert row.items() >= speed_benchmark.summarise(run.__name__, [ms - 0.5, ms + 0.5, ms]).items()
    del layers["standard_nn"]
    assert all(math.isnan(row["forward_ratio"]) for row in measure_layers(layers, 8, 8, 4))


def test_forward_needs_no_gradients_and_backward_yields_those_of_input_and_parameters_without_keeping_them():
    layer, (u, grad_y) = nn.Linear(3, 3), speed_benchmark.make_samples(2, 3, 3)
    assert not forward(layer, u, grad_y).requires_grad
    for gradient, expected in zip(forward_backward(layer, u, grad_y), (
            grad_y @ layer.weight, grad_y.T @ u, grad_y.sum(0)), strict=True):
        torch.testing.assert_close(gradient, expected)
    assert u.grad is layer.weight.grad is None


def test_large_sss_layers_are_drawn_directly(set_hyperparameters):
    set_hyperparameters(direct_initialisation_from=16)
    for n, initialisation in ((15, "realisation"), (16, "direct")):
        torch.manual_seed(0)
        expected = SemiseparableLayer(n, 2, initialisation=initialisation).state_dict()
        torch.manual_seed(0)
        torch.testing.assert_close(make_layer("ss_2_dim", n).state_dict(), expected)


def test_an_epoch_is_the_difference_between_trainings_on_one_thread(set_hyperparameters, monkeypatch, one_thread):
    trainings, train_model = [], speed_benchmark.train_model

    def recording_train_model(net, X, y, **arguments):
        histories = train_model(net, X, y, **arguments)
        assert arguments["batch_size"] == len(X) == len(y) and torch.get_num_threads() == 1
        trainings.append((X.shape, len(histories[0])))

    monkeypatch.setattr(speed_benchmark, "train_model", recording_train_model)
    # A training of k epochs takes 100 + 7 k, and the first with all samples longer.
    monkeypatch.setattr(speed_benchmark, "time_call", lambda call: (
        call(), 100 + 7 * trainings[-1][1] + 1000 * (len(trainings) == 2))[1])
    set_hyperparameters(epoch_repetitions=3)
    torch.set_num_threads(2)
    for name, shape in (("standard_nn", [4]), ("ss_2_dim", [1, 28, 28])):
        trainings.clear()
        assert prepare_epochs(name, 20, shape, 3, 4)() == [7, 7, 7]
        assert trainings == [((2, *shape), 1), *[((20, *shape), 1), ((20, *shape), 5)] * 2, ((20, *shape), 1)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_a_dense_layer_is_output_and_gradient_of_the_input(set_hyperparameters):
    set_hyperparameters(nb_threads=1, memory_case=[512, 20000], memory_layers=["standard_nn"], epoch_cases=[])
    result = measure(check_hyperparameters())
    (memory,) = result["memory"]
    assert 1.8 < memory["relative_to_input"] < 3  # and the library's own buffers
    assert memory["relative_to_input"] == memory["extra_bytes"] / (512 * 20000 * 4)
    text = format_further_measurements({**result, "initialisation": []})
    assert text.splitlines()[1].startswith("  standard_nn n 512, batch 20000: ") and text.endswith(" times the input")


def test_memory_that_runs_out_is_reported_and_ends_nothing(set_hyperparameters, capsys):
    set_hyperparameters(memory_case=[2, 2 ** 60], memory_layers=["standard_nn"],
                        epoch_cases=[["too_many", 2 ** 45, [4], 3, 1]])
    result = measure(check_hyperparameters())
    assert math.isnan(result["memory"][0]["extra_bytes"]) and math.isnan(result["epochs"][0]["epoch_ms"])
    error = capsys.readouterr().err
    assert "no measurement of ('standard_nn', 2, " in error and "no measurement of ('ss_2_dim', " in error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_time_and_memory_on_a_gpu_are_those_of_the_gpu(set_hyperparameters):
    set_hyperparameters(device="cuda", memory_case=[512, 2000], memory_layers=["standard_nn"])
    result = measure(check_hyperparameters())
    assert result["environment"]["gpu"] and all(row["forward_backward_ms"] > 0 for row in result["rows"])
    assert result["memory"][0]["relative_to_input"] > 1


# ---- table and figure ----

def test_the_table_is_aligned_and_at_most_100_columns_wide():
    rows = make_rows(ns=(65536,), batch_sizes=(100000,), layers=("standard_nn", "ss_100_dim"), ms=54321.0)
    for row in rows:
        row.update(make_times("forward_backward", 82345.6, 99999.9), forward_ratio=12345.67)
    assert max(map(len, format_table(rows).splitlines())) <= 100
    header, units, *lines = format_table(make_rows()).splitlines()
    assert {len(line) for line in lines if line} == {len(header)} and len(units) <= len(header)
    assert lines[1].split() == [
        "1024", "637", "standard_nn", "1.00", "1.00-1.00", "1.00", "1024", "1024-1024", "-", "1,048,576"]
    assert [bool(line) for line in lines] == [False, True, True] * 2  # a gap before each n
    (row,) = make_rows(ns=(784,), layers=["standard_nn"])
    assert format_table([{**row, "nb_outputs": 256}]).splitlines()[-1].split()[0] == "784x256"


@pytest.mark.parametrize("disturbed", [{"foreign_load": 0.3}, make_times("forward", 2.0, 3.01)])
def test_rows_with_quartiles_far_apart_or_beside_other_programs_are_marked_and_explained(disturbed):
    calm, busy = make_rows(ns=(8,))
    assert "*" not in format_table([calm, {**busy, "foreign_load": math.nan}])
    lines = format_table([calm, {**busy, **disturbed}]).splitlines()
    assert [line.startswith("*") for line in lines[-4:]] == [False, True, False, True] and "busy" in lines[-1]


def test_epochs_with_quartiles_far_apart_are_marked_and_explained():
    for times, nb_marks in (((2.0, 2.9), 0), ((-1.0, 2.0), 2)):
        epoch = {"case": "digits", "layer": "ss_1_dim", "n": 50, "extra_bytes": 1, **make_times("epoch", *times)}
        text = format_further_measurements({"epochs": [epoch], "memory": [], "initialisation": []})
        assert text.count("*") == nb_marks


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load is read from /proc")
def test_what_another_process_computes_is_foreign_time():
    before = speed_benchmark.get_foreign_time()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    assert speed_benchmark.get_foreign_time() - before > 0.95


def test_threads_are_told_how_long_to_spin_before_torch_is_imported():
    before, _, after = Path(speed_benchmark.__file__).read_text(encoding="utf-8").partition('("GOMP_SPINCOUNT", ')
    assert "\nimport torch\n" in after and "\nfrom benchmark_results" in after


def test_figure_has_a_panel_per_batch_size_and_two_lines_per_layer():
    rows = make_rows(ns=(8192, 1024), batch_sizes=(637, 6370), layers=LAYERS)
    rows.append({**rows[0], "n": 784, "nb_outputs": 256})  # is left out
    figure = plot_speed({"rows": rows, "environment": {"gpu": None, "device": "cpu", "nb_threads": 3}})
    assert [" 637 " in ax.get_title() for ax in figure.axes] == [True, False] and len(figure.axes) == 2
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and ax.get_xlabel().startswith("n, ")
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1024", "8192"]
        for linestyle, times in (("-", [1024, 8192]), ("--", [1, 1])):  # forward+backward, forward
            lines = [line for line in ax.lines if line.get_linestyle() == linestyle]
            assert [line.get_xydata().T.tolist() for line in lines] == [[[1024, 8192], times]] * len(LAYERS)
            assert [to_hex(line.get_color()) for line in lines] == [get_family_style(name)["color"] for name in LAYERS]
    assert figure.axes[0].get_ylabel() == "Time (ms)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == LAYERS
    assert legend.get_title().get_text() == "cpu, 3 threads\nforward+backward,\ndashed: forward"
