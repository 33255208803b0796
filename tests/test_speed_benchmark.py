"""speed_benchmark.py: what it writes, prints and draws, on layers too small to take time."""
import itertools
import math
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

import speed_benchmark
from plot_results import get_family_style
from semiseparablemodels import SemiseparableLayer
from speed_benchmark import (format_further_measurements, format_table, forward, forward_backward, get_growth,
                             make_layer, measure, measure_interleaved, measure_layers, measure_memory, plot_speed)

LAYERS = ["standard_nn", "ss_1_dim", "ss_2_dim", "rank_1"]
TINY = dict(nb_neurons_list=[8, 16], batch_sizes=[4, 3], statespace_dims=[1, 2], largest_dense_n=8, repetitions=2,
            min_measuring_time=0, growth_from=8, memory_case=None, epoch_nb_neurons=6, initialisation_sizes=[6],
            initialisation_statespace_dim=2)


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"the pickle needs {module}.{name}")


@pytest.fixture
def set_hyperparameters(monkeypatch, tmp_path):
    def set_all(**values):
        for name, value in values.items():
            assert name in speed_benchmark.HYPERPARAMETERS
            monkeypatch.setattr(speed_benchmark, name, value)

    set_all(**TINY, result_file=str(tmp_path / "speed_result.p"))
    return set_all


def make_rows(ns=(1024, 8192), batch_sizes=(637,), layers=("standard_nn", "ss_5_dim"), ms=1.0):
    return [{"n": n, "batch_size": batch_size, "layer": layer, "forward_ms": ms, "forward_ratio": 1.0,
             "forward_backward_ms": ms * n, "forward_backward_ratio": math.nan, "multiply_adds": n * n,
             "parameters": n * n + n, "repetitions": 7}
            for n in ns for batch_size in batch_sizes for layer in layers]


# ---- what is written ----

def test_main_measures_everything_writes_plain_data_and_a_figure_and_prints_it(set_hyperparameters, tmp_path, capsys):
    assert speed_benchmark.main() == 0
    with (tmp_path / "speed_result.p").open("rb") as file:
        result = PlainUnpickler(file).load()
    assert result["hyperparameters"].items() >= TINY.items()
    block = Path(speed_benchmark.__file__).read_text(encoding="utf-8").split("\n# ====")[1]
    assert set(result["hyperparameters"]) == {line.split(" = ")[0] for line in block.splitlines() if " = " in line}
    assert result["environment"].keys() >= {"python", "torch", "numpy", "platform", "nb_cores", "nb_threads", "device",
                                            "start_time"}
    # No dense layer beyond largest_dense_n.
    assert [(row["n"], row["batch_size"], row["layer"]) for row in result["rows"]] == [
        *itertools.product([8], [4, 3], LAYERS), *itertools.product([16], [4, 3], LAYERS[1:])]
    assert [(row["layer"], row["n"]) for row in result["epochs"]] == [(name, 6) for name in LAYERS]
    assert [(row["layer"], row["n"]) for row in result["initialisation"]] == [("ss_2_dim", 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed_result.p", "speed_result.png"]
    assert (tmp_path / "speed_result.png").read_bytes().startswith(b"\x89PNG")
    printed, further = capsys.readouterr().out, format_further_measurements(result)
    assert format_table(result["rows"]) in printed and further in printed
    assert "nan" not in printed and max(map(len, printed.splitlines())) <= 100
    assert all(heading in further for heading in ("growth", "training epoch", "the paper's initialisation"))


def test_measurements_that_are_switched_off_are_absent(set_hyperparameters):
    set_hyperparameters(growth_from=None, memory_case=None, memory_layers=None, epoch_nb_neurons=None,
                        initialisation_sizes=[], nb_neurons_list=[2])
    result = measure()
    assert [result[key] for key in ("growth", "memory", "epochs", "initialisation")] == [[]] * 4
    assert format_further_measurements(result) == ""


@pytest.mark.parametrize("name, value", [
    ("repetitions", 0), ("repetitions", None), ("warm_up", -1), ("nb_neurons_list", []), ("batch_sizes", ["4"]),
    ("min_measuring_time", math.nan), ("nb_threads", 0), ("memory_case", [8]), ("memory_layers", ["dense"]),
    ("device", "gpu")])
def test_hyperparameters_that_are_out_of_range_are_named_before_anything_runs(
        set_hyperparameters, monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setattr(speed_benchmark, "make_layer", None)
    set_hyperparameters(**{name: value})
    assert speed_benchmark.main() == 2
    error = capsys.readouterr().err
    assert name in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- what is measured ----

def test_each_repetition_after_the_warm_up_runs_all_once_until_the_minimal_time_is_over(
        set_hyperparameters, monkeypatch):
    calls, clock, durations = [], iter(range(100)), iter([9.0, 90.0, 1.0, 10.0, 2.0, 70.0, 6.0, 20.0])
    monkeypatch.setattr(speed_benchmark, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(speed_benchmark, "time_call", lambda call: (call(), next(durations))[1])
    set_hyperparameters(warm_up=1, repetitions=2, min_measuring_time=3)  # readings 0 at the start, then 1, 2, 3
    medians, nb_repetitions = measure_interleaved({name: partial(calls.append, name) for name in "AB"})
    assert "".join(calls) == "AB" + "AB" * 4
    assert medians == {"A": 4.0, "B": 45.0} and nb_repetitions == 4


def test_rows_hold_times_their_ratios_to_the_dense_layer_parameters_and_multiply_adds(set_hyperparameters, monkeypatch):
    layers = {name: make_layer(name, 8) for name in LAYERS}
    times = dict(zip(itertools.product((forward, forward_backward), LAYERS), (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))

    def measure_interleaved(calls):
        assert list(calls) == [(run, name) for run in (forward, forward_backward) for name in layers]
        assert all(call.func is run and call.args[0] is layers[name] for (run, name), call in calls.items())
        return {key: times[key] for key in calls}, 7

    monkeypatch.setattr(speed_benchmark, "measure_interleaved", measure_interleaved)
    # One dimension: 8 D, 7 each of B, C, F, G, 6 each of A, E. Two: states of 1, 2, 2, 2, 2, 2, 1 entries.
    multiply_adds = dict(zip(LAYERS, (64, 8 + 4 * 7 + 2 * 6, 8 + 4 * 12 + 2 * 20, 16)))
    assert measure_layers(layers, 8, 4) == [{
        "n": 8, "batch_size": 4, "layer": name, "forward_ms": times[forward, name],
        "forward_ratio": 2.0 / times[forward, name], "forward_backward_ms": times[forward_backward, name],
        "forward_backward_ratio": 6.0 / times[forward_backward, name], "multiply_adds": multiply_adds[name],
        "parameters": multiply_adds[name] + 8, "repetitions": 7} for name in LAYERS]
    del layers["standard_nn"]
    assert all(math.isnan(row["forward_ratio"]) for row in measure_layers(layers, 8, 4))


def test_forward_needs_no_gradients_and_backward_yields_those_of_input_and_parameters_without_keeping_them():
    layer, (u, grad_y) = nn.Linear(3, 3), speed_benchmark.make_samples(2, 3)
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


def test_growth_relates_the_largest_n_to_the_first(set_hyperparameters):
    set_hyperparameters(growth_from=1024)
    rows = make_rows(ns=(512, 1024, 8192, 4096)) + make_rows(ns=(1024,), layers=["rank_1"])
    assert get_growth(rows) == [
        {"layer": name, "batch_size": 637, "from_n": 1024, "to_n": 8192, "ratio_of_n": 8, "ratio_of_times": 8}
        for name in ("standard_nn", "ss_5_dim")]


def test_epochs_run_on_one_thread_and_leave_the_number_of_threads(set_hyperparameters, monkeypatch):
    nb_threads, train_epoch = [], speed_benchmark.train_epoch

    def recording_train_epoch(net, X, y, optimizer, batch_size, shuffles):
        nb_threads.append(torch.get_num_threads())
        assert X.shape == (637, 16) and batch_size == 637
        train_epoch(net, X, y, optimizer, batch_size, shuffles)

    monkeypatch.setattr(speed_benchmark, "train_epoch", recording_train_epoch)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speed_benchmark.measure_epochs(6)
        assert set(nb_threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_a_dense_layer_is_output_and_gradient_of_the_input(set_hyperparameters):
    set_hyperparameters(nb_threads=1)
    memory = measure_memory("standard_nn", 512, 20000, speed_benchmark.check_hyperparameters())
    assert 1.8 < memory["relative_to_input"] < 3  # and the library's own buffers
    assert memory["relative_to_input"] == memory["extra_bytes"] / (512 * 20000 * 4)
    text = format_further_measurements({"growth": [], "epochs": [], "memory": [memory], "initialisation": []})
    assert text.splitlines()[1].startswith("  standard_nn n 512, batch 20000: ") and text.endswith(" times the input")


def test_memory_that_runs_out_is_reported_and_ends_nothing(set_hyperparameters, capsys):
    memory = measure_memory("standard_nn", 2, 2 ** 60, speed_benchmark.check_hyperparameters())
    assert math.isnan(memory["extra_bytes"]) and math.isnan(memory["relative_to_input"])
    assert "no peak memory of standard_nn" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_time_and_memory_on_a_gpu_are_those_of_the_gpu(set_hyperparameters):
    set_hyperparameters(device="cuda", memory_case=[512, 2000], memory_layers=["standard_nn"])
    result = measure()
    assert result["environment"]["gpu"] and all(row["forward_backward_ms"] > 0 for row in result["rows"])
    assert result["memory"][0]["relative_to_input"] > 1


# ---- table and figure ----

def test_the_table_is_aligned_and_at_most_100_columns_wide():
    rows = make_rows(ns=(65536,), batch_sizes=(100000,), layers=("standard_nn", "ss_100_dim"), ms=54321.0)
    for row in rows:
        row.update(forward_backward_ms=123456.789, forward_ratio=12345.67)
    assert max(map(len, format_table(rows).splitlines())) <= 100
    header, units, *lines = format_table(make_rows()).splitlines()
    assert {len(line) for line in lines if line} == {len(header)} and len(units) <= len(header)
    assert lines[1].split() == [
        "1024", "637", "standard_nn", "1.000", "1.00", "1024.000", "-", "1,048,576", "1,049,600"]
    assert [bool(line) for line in lines] == [False, True, True] * 2  # a gap before each n


def test_figure_has_a_panel_per_batch_size_and_two_lines_per_layer():
    rows = make_rows(ns=(8192, 1024), batch_sizes=(637, 6370), layers=LAYERS)
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
    assert [text.get_text() for text in legend.get_texts()] == [*LAYERS, "forward+backward", "forward"]
    assert legend.get_title().get_text() == "cpu, 3 threads"
