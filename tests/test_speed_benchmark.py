"""speed_benchmark.py: what it writes, prints and draws, on layers too small to take time."""
import math
import pickle
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

import speed_benchmark
from model_training import get_nb_model_parameters
from plot_results import get_family_style
from speed_benchmark import (format_further_measurements, format_table, get_growth, make_layer, measure,
                             measure_interleaved, measure_layers, measure_memory, plot_speed)

LAYERS = ["standard_nn", "ss_1_dim", "ss_2_dim", "rank_1"]
TINY = dict(nb_neurons_list=[8, 16], batch_sizes=[4], statespace_dims=[1, 2], repetitions=2,
            min_measuring_time=0, growth_from=8, memory_case=None, epoch_nb_neurons=6,
            initialisation_sizes=[6], initialisation_statespace_dim=2)


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


@pytest.fixture
def result(set_hyperparameters):
    return measure()


def make_rows(ns=(1024, 8192), batch_sizes=(637,), layers=("standard_nn", "ss_5_dim"), ms=1.0):
    return [{"n": n, "batch_size": batch_size, "layer": layer, "forward_ms": ms, "forward_ratio": 1.0,
             "forward_backward_ms": ms * n, "forward_backward_ratio": math.nan, "multiply_adds": n * n,
             "parameters": n * n + n, "repetitions": 7}
            for n in ns for batch_size in batch_sizes for layer in layers]


def get_lines(ax, linestyle):
    return [line for line in ax.lines if line.get_linestyle() == linestyle]


# ---- what is written ----

def test_main_writes_plain_data_and_a_figure_and_prints_everything(set_hyperparameters, tmp_path, capsys):
    assert speed_benchmark.main() == 0
    with (tmp_path / "speed_result.p").open("rb") as file:
        result = PlainUnpickler(file).load()
    assert result["hyperparameters"].items() >= TINY.items()
    assert set(result["hyperparameters"]) == set(speed_benchmark.HYPERPARAMETERS)
    assert result["environment"].keys() >= {"python", "torch", "numpy", "platform", "nb_cores", "nb_threads",
                                            "device", "start_time"}
    assert (tmp_path / "speed_result.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed_result.p", "speed_result.png"]
    printed = capsys.readouterr().out
    assert format_table(result["rows"]) in printed
    assert format_further_measurements(result) in printed


def test_every_global_of_the_block_of_hyperparameters_is_recorded():
    block = Path(speed_benchmark.__file__).read_text(encoding="utf-8").split("\n# ====")[1]
    names = [line.split(" = ")[0] for line in block.splitlines() if " = " in line]
    assert names and set(names) == set(speed_benchmark.HYPERPARAMETERS)


def test_importing_runs_nothing():
    code = "import torch; torch.manual_seed = torch.set_num_threads = print; import speed_benchmark"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(speed_benchmark.__file__).parent,
                         capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")


# ---- what is measured ----

def test_rows_are_every_layer_for_every_n_and_batch_size(set_hyperparameters):
    set_hyperparameters(batch_sizes=(4, 3))
    rows = measure()["rows"]
    assert [(row["n"], row["batch_size"], row["layer"]) for row in rows] == [
        (n, batch_size, name) for n in (8, 16) for batch_size in (4, 3) for name in LAYERS]
    assert all(row["forward_ms"] > 0 and row["forward_backward_ms"] > 0 for row in rows)
    assert all(row["repetitions"] == 2 for row in rows)


def test_parameters_and_multiply_adds_are_those_of_the_layer(result):
    for row in result["rows"]:
        layer = make_layer(row["layer"], row["n"])
        assert row["parameters"] == get_nb_model_parameters(layer)
        assert row["multiply_adds"] == row["parameters"] - row["n"]  # all weights but the bias
    by_layer = {row["layer"]: row["multiply_adds"] for row in result["rows"] if row["n"] == 8}
    # One dimension: 8 D, 7 each of B, C, F, G, 6 each of A, E. Two: states of 1, 2, 2, 2, 2, 2, 1 entries.
    assert by_layer == {"standard_nn": 64, "ss_1_dim": 8 + 4 * 7 + 2 * 6, "ss_2_dim": 8 + 4 * 12 + 2 * 20,
                        "rank_1": 16}


def test_ratios_are_dense_time_divided_by_the_layers_time(result):
    for run in ("forward", "forward_backward"):
        for n in (8, 16):
            rows = {row["layer"]: row for row in result["rows"] if row["n"] == n}
            dense_ms = rows["standard_nn"][f"{run}_ms"]
            assert all(row[f"{run}_ratio"] == dense_ms / row[f"{run}_ms"] for row in rows.values())


def test_dense_layers_beyond_the_bound_are_left_out(set_hyperparameters):
    set_hyperparameters(largest_dense_n=8)
    result = measure()
    assert [row["layer"] for row in result["rows"] if row["n"] == 16] == LAYERS[1:]
    assert all(math.isnan(row["forward_backward_ratio"]) for row in result["rows"] if row["n"] == 16)
    assert "nan" not in format_table(result["rows"])
    set_hyperparameters(largest_dense_n=None)
    assert [row["layer"] for row in measure()["rows"] if row["n"] == 16] == LAYERS


def test_each_repetition_runs_all_layers_once_after_the_warm_up(set_hyperparameters):
    set_hyperparameters(warm_up=1, repetitions=3)
    calls = []
    times, nb_repetitions = measure_interleaved({name: partial(calls.append, name) for name in "ABC"})
    assert "".join(calls) == "ABC" + "ABC" * 3
    assert set(times) == set("ABC") and nb_repetitions == 3


def test_times_are_medians(set_hyperparameters, monkeypatch):
    set_hyperparameters(warm_up=0, repetitions=3)
    durations = iter([1.0, 10.0, 5.0, 70.0, 2.0, 20.0])
    monkeypatch.setattr(speed_benchmark, "time_call", lambda call: next(durations))
    assert measure_interleaved({"A": None, "B": None})[0] == {"A": 2.0, "B": 20.0}


def test_on_a_gpu_times_are_those_between_two_events(set_hyperparameters, monkeypatch):
    log = []

    class FakeEvent:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, end):
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    set_hyperparameters(device="cuda")
    assert speed_benchmark.time_call(lambda: log.append("call")) == 12.5
    assert log == ["record", "call", "record", "synchronize"]


def test_short_calls_are_repeated_for_the_minimal_time(set_hyperparameters):
    set_hyperparameters(min_measuring_time=0.05)
    assert measure_interleaved({"A": int})[1] > 2


def test_layers_run_interleaved_and_yield_the_gradients_of_input_and_parameters(set_hyperparameters):
    set_hyperparameters(warm_up=0)
    calls = []

    class Recorder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, name):
            ctx.name = name
            calls.append(name + (" forward+" if u.requires_grad else " forward"))
            return u.clone()

        @staticmethod
        def backward(ctx, grad_y):
            calls.append(ctx.name + "backward")
            return grad_y, None

    class FakeLayer(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.bias = name, nn.Parameter(torch.zeros(3))

        def forward(self, u):
            return Recorder.apply(u, self.name) + self.bias

    layers = {name: FakeLayer(name) for name in "ABC"}
    measure_layers(layers, 3, 2)
    without_gradients = [call for call in calls if not call.endswith("backward")]
    assert [call[0] for call in without_gradients] == list("ABC") * 4  # 2 repetitions of 2 kinds of run
    assert [call[0] for call in calls if call.endswith("backward")] == list("ABC") * 2
    assert all(layer.bias.grad is None for layer in layers.values())  # nothing is accumulated
    u, grad_y = speed_benchmark.make_samples(2, 3)
    gradients = speed_benchmark.forward_backward(layers["A"], u, grad_y)
    assert torch.equal(gradients[0], grad_y) and torch.allclose(gradients[1], grad_y.sum(0))
    assert not speed_benchmark.forward(layers["A"], u, grad_y).requires_grad


def test_large_sss_layers_are_drawn_directly(set_hyperparameters, monkeypatch):
    arguments = []
    monkeypatch.setattr(speed_benchmark, "SemiseparableLayer",
                        lambda *args, **kwargs: arguments.append((args, kwargs)))
    set_hyperparameters(direct_initialisation_from=16)
    for n in (15, 16):
        make_layer("ss_2_dim", n)
    assert [(*args, kwargs["initialisation"]) for args, kwargs in arguments] == [
        (15, 2, "realisation"), (16, 2, "direct")]


def test_growth_relates_the_largest_n_to_the_first(set_hyperparameters):
    set_hyperparameters(growth_from=1024)
    rows = make_rows(ns=(512, 1024, 8192, 4096)) + make_rows(ns=(1024,), layers=["rank_1"])
    assert get_growth(rows) == [
        {"layer": name, "batch_size": 637, "from_n": 1024, "to_n": 8192, "ratio_of_n": 8, "ratio_of_times": 8}
        for name in ("standard_nn", "ss_5_dim")]
    set_hyperparameters(growth_from=None)
    assert get_growth(rows) == []


def test_epochs_run_on_one_thread_and_leave_the_number_of_threads(set_hyperparameters, monkeypatch):
    nb_threads, train_epoch = [], speed_benchmark.train_epoch

    def recording_train_epoch(net, X, y, optimizer, batch_size, shuffles):
        nb_threads.append(torch.get_num_threads())
        assert X.shape == (637, 16) and batch_size == 637
        train_epoch(net, X, y, optimizer, batch_size, shuffles)

    monkeypatch.setattr(speed_benchmark, "train_epoch", recording_train_epoch)
    before = torch.get_num_threads()
    epochs = speed_benchmark.measure_epochs(6)
    assert set(nb_threads) == {1} and torch.get_num_threads() == before
    assert [row["layer"] for row in epochs] == LAYERS and all(row["milliseconds"] > 0 for row in epochs)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_a_dense_layer_is_output_and_gradient_of_the_input(set_hyperparameters):
    set_hyperparameters(memory_case=[512, 20000], nb_threads=1)
    memory = measure_memory("standard_nn", 512, 20000, speed_benchmark.check_hyperparameters())
    assert 1.8 < memory["relative_to_input"] < 3  # and the library's own buffers
    assert memory["relative_to_input"] == memory["extra_bytes"] / (512 * 20000 * 4)


def test_memory_that_runs_out_is_reported_and_ends_nothing(set_hyperparameters, capsys):
    memory = measure_memory("standard_nn", 2, 2 ** 60, speed_benchmark.check_hyperparameters())
    assert math.isnan(memory["extra_bytes"]) and math.isnan(memory["relative_to_input"])
    assert "no peak memory of standard_nn" in capsys.readouterr().err


def test_measurements_that_are_switched_off_are_absent(set_hyperparameters):
    set_hyperparameters(growth_from=None, memory_case=None, memory_layers=None, epoch_nb_neurons=None,
                        initialisation_sizes=[])
    result = measure()
    assert [result[key] for key in ("growth", "memory", "epochs", "initialisation")] == [[]] * 4
    assert format_further_measurements(result) == ""


@pytest.mark.parametrize("name, value", [
    ("repetitions", 0), ("repetitions", 1.5), ("repetitions", None), ("warm_up", -1), ("nb_neurons_list", []),
    ("nb_neurons_list", [0]), ("batch_sizes", []), ("batch_sizes", ["4"]), ("statespace_dims", [0]),
    ("min_measuring_time", -1), ("min_measuring_time", math.nan), ("nb_threads", 0), ("growth_from", -8),
    ("memory_case", [8]), ("memory_layers", ["dense"]), ("epoch_nb_neurons", 0), ("device", "gpu"),
    ("initialisation_sizes", [0]), ("initialisation_statespace_dim", 0),
    ("device", f"cuda:{torch.cuda.device_count()}")])
def test_hyperparameters_that_are_out_of_range_are_named_before_anything_runs(
        set_hyperparameters, monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setattr(speed_benchmark, "make_layer", None)
    set_hyperparameters(**{name: value})
    assert speed_benchmark.main() == 2
    error = capsys.readouterr().err
    assert name in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- table and figure ----

def test_tables_have_at_most_100_columns(result):
    rows = make_rows(ns=(65536,), batch_sizes=(100000,), layers=("standard_nn", "ss_100_dim"), ms=54321.0)
    for row in rows:
        row.update(forward_backward_ms=123456.789, forward_ratio=12345.67)
    for text in (format_table(rows), format_table(result["rows"]), format_further_measurements(result)):
        assert max(map(len, text.splitlines())) <= 100
    header, units, *lines = format_table(result["rows"]).splitlines()
    lines = [line for line in lines if line]
    assert len(lines) == len(result["rows"])
    assert {len(line) for line in lines} == {len(header)}  # aligned
    assert len(units) <= len(header)


def test_figure_has_one_line_per_layer_and_labelled_axes(result):
    figure = plot_speed(result)
    ax, = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylabel() == "Time (ms)" and ax.get_xlabel().startswith("n, ")
    solid, dashed = get_lines(ax, "-"), get_lines(ax, "--")
    assert [line.get_label() for line in solid] == LAYERS and len(dashed) == len(LAYERS)
    for name, line, thin_line in zip(LAYERS, solid, dashed):
        rows = [row for row in result["rows"] if row["layer"] == name]
        assert list(line.get_xdata()) == [8, 16]
        assert list(line.get_ydata()) == [row["forward_backward_ms"] for row in rows]
        assert list(thin_line.get_ydata()) == [row["forward_ms"] for row in rows]
        assert to_hex(line.get_color()) == to_hex(thin_line.get_color()) == get_family_style(name)["color"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*LAYERS, "forward+backward", "forward"]


def test_figure_has_one_panel_per_batch_size_and_ascending_n(result):
    result["rows"] = make_rows(ns=(8192, 1024), batch_sizes=(637, 6370))
    figure = plot_speed(result)
    assert len(figure.axes) == 2
    for ax, batch_size in zip(figure.axes, ("637", "6370")):
        assert f" {batch_size} " in ax.get_title()
        assert all(list(line.get_xdata()) == [1024, 8192] for line in ax.lines)
        assert [text.get_text() for text in ax.get_xticklabels()] == ["1024", "8192"]
