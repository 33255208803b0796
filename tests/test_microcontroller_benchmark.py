"""microcontroller_benchmark.py: what it writes, prints and draws, and that no figure counts without its output."""

import importlib.util
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import benchmark
import microcontroller_benchmark
from benchmark_results import Run
from c_export import export_to_c
from datasets import is_available, load_digits_data, load_mnist_data, load_pendigits_data
from emulated_core import Call, Program
from microcontroller_benchmark import (Case, WrongOutput, check_hyperparameters, count_multiply_adds, format_table,
                                       format_trained, get_scores, make_row, measure, plot_microcontroller)
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet
from standardmodels import StandardTHLFFNN

PROJECT = Path(microcontroller_benchmark.__file__).parent
installed = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("ziglang", "unicorn")),
                               reason="ziglang and unicorn are not installed: requirements-microcontroller.txt")
TINY = dict(model_names=["standard_nn", "ss_1_dim"], nb_neurons_list=[8, 16], net_cases=[["vectors", [4], 3]],
            net_nb_neurons_list=[8], cores=["cortex-m4f"], optimisations=["-O2", "-Os"],
            trained_model_names=["ss_2_dim"], nb_neurons=8, nb_test_samples=7, min_number_training_epochs=0,
            max_number_training_epochs=3, nb_jobs=1)


@pytest.fixture
def set_hyperparameters(monkeypatch, tmp_path, one_thread):
    def set_all(**values):
        for name, value in values.items():
            assert name in microcontroller_benchmark.HYPERPARAMETERS
            monkeypatch.setattr(microcontroller_benchmark, name, value)

    set_all(**TINY, dataset_loading_functions=[load_digits_data], result_file=tmp_path / "micro.p")
    return set_all


def make_measured_row(kind="hidden layer", n=16, layer="standard_nn", core="cortex-m4f", optimisation="-O2", **entries):
    return {"kind": kind, "n": n, "layer": layer, "core": core, "optimisation": optimisation, "parameters": n * n,
            "multiply_adds": n * n, "instructions": 3.0 * n * n, "largest_instructions": 3 * n * n, "cycles": 4.0 * n,
            "code_bytes": 100, "constant_bytes": 4 * n * n, "stack_bytes": 8, "ratio": 1.0, **entries}


# ---- the whole ----

@installed
def test_main_measures_everything_writes_data_and_a_figure_prints_tables_and_keeps_an_older_file(
        set_hyperparameters, tmp_path, capsys):
    (tmp_path / "micro.p").write_bytes(b"old")
    assert microcontroller_benchmark.main() == 0
    result = pickle.loads((tmp_path / "micro.p").read_bytes())
    assert result["hyperparameters"].items() >= {**TINY, "dataset_loading_functions": ["digits"]}.items()
    block = Path(microcontroller_benchmark.__file__).read_text(encoding="utf-8").split("\n# ====")[1]
    assert set(result["hyperparameters"]) == {line.split(" = ")[0] for line in block.splitlines() if " = " in line}
    assert result["environment"].keys() >= {"torch", "ziglang", "unicorn", "platform", "source_digest"}
    rows = result["rows"]
    sizes = [("hidden layer", 8, "standard_nn", 64), ("hidden layer", 8, "ss_1_dim", 8 + 4 * 7 + 2 * 6),
             ("hidden layer", 16, "standard_nn", 256), ("hidden layer", 16, "ss_1_dim", 16 + 4 * 15 + 2 * 14),
             ("vectors", 8, "standard_nn", 32 + 64 + 24), ("vectors", 8, "ss_1_dim", 32 + 8 + 4 * 7 + 2 * 6 + 24)]
    assert [(row["kind"], row["n"], row["layer"], row["multiply_adds"], row["optimisation"]) for row in rows] == [
        (*size, optimisation) for size in sizes for optimisation in ("-O2", "-Os")]
    for row in rows:
        assert row["difference"] < 2e-5 and row["instructions"] == row["largest_instructions"] > row["multiply_adds"]
        assert row["cycles"] > row["instructions"] and row["code_bytes"] > 0 and 0 <= row["stack_bytes"] < 2000
    for i in range(0, len(rows), 4):  # dense and SSS, in turn at both optimisations
        assert [row["ratio"] for row in rows[i:i + 4]] == [
            1, 1, *(rows[i + j]["instructions"] / rows[i + j + 2]["instructions"] for j in (0, 1))]
    assert rows[4]["constant_bytes"] == 4 * rows[4]["parameters"]  # a dense layer's weights lie in flash, each once
    (trained,) = result["trained"]
    assert (trained["kind"], trained["layer"], trained["nb_test_samples"], trained["nb_ties"]) == (
        "digits", "ss_2_dim", 7, 0)
    kept, *others = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
    assert kept.match("micro_20*.p") and kept.read_bytes() == b"old"
    assert [path.name for path in others] == ["micro.p", "micro.png"]
    assert (tmp_path / "micro.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert format_table(rows) in printed and format_trained(result["trained"]) in printed
    assert max(map(len, printed.splitlines())) <= 100


@installed
def test_the_same_hyperparameters_give_the_same_counts_on_any_number_of_jobs(set_hyperparameters):
    set_hyperparameters(net_cases=None)
    first = measure(*check_hyperparameters())
    set_hyperparameters(nb_jobs=2)
    second = measure(*check_hyperparameters())
    assert repr((first["rows"], first["trained"])) == repr((second["rows"], second["trained"]))  # NaN equals NaN here


@installed
def test_trained_nets_are_those_of_the_first_iteration_of_the_benchmark(set_hyperparameters):
    set_hyperparameters(net_cases=[], model_names=["rank_1"], trained_model_names=["rank_1", "ss_1_dim"])
    hyperparameters, sweep = check_hyperparameters()
    data = benchmark.load_shuffled_data("digits", load_digits_data, sweep)
    for row in measure(hyperparameters, sweep)["trained"]:
        expected = benchmark.train_run(Run("digits", 0.1, row["layer"], 8, 0), data, sweep)
        assert row["test_accuracy"] == expected["test_accuracy"]
        assert row["parameters"] == expected["nb_model_parameters"]


@installed
def test_output_that_is_not_that_of_pytorch_ends_the_measurement_and_is_named(
        set_hyperparameters, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(microcontroller_benchmark, "get_scores", lambda module, X: get_scores(module, X) * (1 + 3e-5))
    assert microcontroller_benchmark.main() == 1
    assert "hidden layer, n 8, standard_nn on cortex-m4f, -O2: a score differs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_saved_though_the_figure_fails(set_hyperparameters, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(microcontroller_benchmark, "check_packages", lambda: None)
    monkeypatch.setattr(microcontroller_benchmark, "measure", lambda *_: {"rows": [make_measured_row()], "trained": []})
    monkeypatch.setattr(microcontroller_benchmark, "plot_microcontroller", lambda result: 1 / 0)
    assert microcontroller_benchmark.main() == 2
    assert "division by zero" in capsys.readouterr().err
    assert len(pickle.loads((tmp_path / "micro.p").read_bytes())["rows"]) == 1


@pytest.mark.parametrize("name, value", [
    ("cores", ["cortex-m99"]), ("cores", []), ("cores", "cortex-m4f"), ("optimisations", ["-O9"]),
    ("model_names", ["dense"]), ("model_names", []), ("trained_model_names", ["ss_0_dim"]), ("nb_neurons_list", [0]),
    ("trained_model_names", "rank_1"), ("nb_neurons_list", []), ("net_nb_neurons_list", ["8"]),
    ("net_cases", [["mnist", [28, 28], 10]]), ("net_cases", [["digits", [64]]]), ("net_cases", 3),
    ("training_set_share", 0), ("nb_test_samples", 0), ("nb_hidden_layers", 1), ("nb_hidden_layers", "2"),
    ("inputoutput_dim", 3), ("patience", 0), ("learning_rate", math.nan), ("nb_jobs", 0), ("seed", "0"),
    ("dataset_loading_functions", []), ("dataset_loading_functions", [load_mnist_data]), ("datasets_folder", 1),
    ("result_file", None), ("result_file", "micro.png"), ("result_file", "no_such_folder/micro.p")])
def test_what_cannot_work_is_named_before_anything_runs(
        set_hyperparameters, monkeypatch, capsys, tmp_path, name, value):
    monkeypatch.setattr(microcontroller_benchmark, "measure", None)
    monkeypatch.setattr(microcontroller_benchmark, "check_packages", lambda: None)
    set_hyperparameters(datasets_folder=str(tmp_path))
    set_hyperparameters(**{name: value})
    assert microcontroller_benchmark.main() == 2
    error, known_as = capsys.readouterr().err, {
        "trained_model_names": "model", "model_names": "model", "net_nb_neurons_list": "nb_neurons_list"}
    assert known_as.get(name, name) in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_anything_runs(set_hyperparameters, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(microcontroller_benchmark, "measure", None)
    assert microcontroller_benchmark.main() == 2
    assert "pip install -r requirements-microcontroller.txt" in capsys.readouterr().err


def test_the_first_data_set_that_needs_no_download_is_taken(set_hyperparameters, monkeypatch, tmp_path):
    monkeypatch.setattr(microcontroller_benchmark, "check_packages", lambda: None)
    set_hyperparameters(dataset_loading_functions=[load_pendigits_data, load_digits_data], datasets_folder=tmp_path)
    assert check_hyperparameters()[0]["dataset_loading_functions"] == ["digits"]
    (tmp_path / "pendigits").mkdir()
    for file, is_complete in (("pendigits.tra", False), ("pendigits.tes", True)):
        (tmp_path / "pendigits" / file).touch()
        assert is_available(load_pendigits_data, tmp_path) == is_complete
    hyperparameters, sweep = check_hyperparameters()
    assert hyperparameters["dataset_loading_functions"] == ["pendigits"]
    assert sweep["dataset_loading_functions"] == {"pendigits": load_pendigits_data}


# ---- what is measured ----

def test_multiply_adds_are_products_with_a_weight():
    u = torch.zeros(1, 8)
    assert count_multiply_adds(nn.Linear(8, 5), u) == 40
    assert count_multiply_adds(Rank1Layer(8), u) == 16
    assert count_multiply_adds(SemiseparableLayer(8, 2), u) == 8 + 4 * 12 + 2 * 20  # states of 1, 2, 2, 2, 2, 2, 1
    # Convolutions of 5 channels at 12 x 12 and of 10 at 2 x 2 places, 10 features, 6 neurons, 3 classes.
    convolutions = 144 * 5 * 25 + 4 * 10 * 5 * 25
    assert count_multiply_adds(SSSTHLConvNet((1, 28, 28), 3, 6), torch.zeros(1, 1, 28, 28)) == (
        convolutions + 60 + 6 + 4 * 5 + 2 * 4 + 18)


def test_scores_are_what_the_softmax_is_applied_to():
    torch.manual_seed(0)
    for net, X in ((StandardTHLFFNN(4, 3, 8), torch.randn(5, 4)), (SSSTHLConvNet((1, 28, 28), 3, 8),
                                                                    torch.randn(5, 1, 28, 28))):
        scores = get_scores(net, X)
        torch.testing.assert_close(torch.softmax(scores, 1), net(X).detach())
        assert not torch.allclose(scores, torch.softmax(scores, 1))
    layer = nn.Linear(4, 3)
    torch.testing.assert_close(get_scores(layer, X[:, 0, 0, :4]), layer(X[:, 0, 0, :4]).detach())


CALLS = [Call(value, instructions, 2.0 * instructions, stack) for value, instructions, stack in (
    (0, 10, 4), (2, 30, 12), (1, 20, 8))]
SCORES = np.array([[3, 2, 1], [0, 0, 5], [1, 7, 7 + 1e-5]], np.float32)


def test_a_row_has_means_and_largest_values_over_the_samples_and_counts_ties():
    case = Case({"kind": "digits", "n": 8, "layer": "rank_1"}, "", None, SCORES, np.array([0, 1, 1]))
    row = make_row(case, "cortex-m3", "-Os", Program("cortex-m3", b"", {}, 11, 22), CALLS, None)
    assert row == {"kind": "digits", "n": 8, "layer": "rank_1", "core": "cortex-m3", "optimisation": "-Os",
                   "nb_test_samples": 3, "accuracy": 2 / 3, "nb_ties": 1, "instructions": 20,
                   "largest_instructions": 30, "cycles": 40, "code_bytes": 11, "constant_bytes": 22, "stack_bytes": 12}


def test_a_sample_classified_unlike_by_pytorch_is_an_error_unless_the_scores_tie():
    scores = SCORES + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1e-3]], np.float32)
    case = Case({"kind": "digits", "n": 8, "layer": "rank_1"}, "", None, scores, np.array([0, 1, 1]))
    with pytest.raises(WrongOutput, match="^digits, n 8, rank_1 on cortex-m3, -Os: 1 of 3 .* first is number 2$"):
        make_row(case, "cortex-m3", "-Os", None, CALLS, None)


@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_scores_are_compared_relative_to_the_largest_of_their_sample(error):
    case = Case({"kind": "hidden layer", "n": 8, "layer": "rank_1"}, "", None, SCORES, None)
    outputs = SCORES.copy()
    outputs[1, 0] += 4e-5  # of 5
    row = make_row(case, "cortex-m3", "-Os", Program("cortex-m3", b"", {}, 11, 22), CALLS, outputs)
    assert row["difference"] == pytest.approx(8e-6)
    outputs[1, 0] += error
    with pytest.raises(WrongOutput, match="differs from PyTorch's by"):
        make_row(case, "cortex-m3", "-Os", None, CALLS, outputs)


# ---- tables and figure ----

def test_tables_have_a_block_per_kind_core_and_optimisation_and_align_at_most_100_columns():
    rows = [make_measured_row(kind, n, "standard_nn", core, optimisation, ratio=math.nan, cycles=math.nan)
            for kind, n, core, optimisation in itertools.product(
                ("hidden layer", "mnist"), (16, 2048), ("cortex-m4f", "cortex-m0plus"), ("-O2", "-Os"))]
    blocks = [block.splitlines() for block in format_table(rows).split("\n\n")]
    assert [block[0] for block in blocks] == [
        f"{what} on {where}" for what, where in itertools.product(("hidden layers", "whole nets, mnist"), (
            "cortex-m4f, -O2", "cortex-m4f, -Os", "cortex-m0plus, -O2", "cortex-m0plus, -Os"))]
    for block in blocks:
        assert [line.split()[0] for line in block[2:]] == ["16", "2048"]
        assert len({len(line) for line in block[1:]}) == 1 and len(block[1]) <= 100
    assert blocks[0][2].split() == ["16", "standard_nn", "256", "768", "3.00", "-", "-", "100", "1,024", "8"]
    trained = [make_measured_row("digits", 50, name, test_accuracy=0.9, accuracy=0.8, nb_test_samples=7, nb_ties=1)
               for name in ("standard_nn", "ss_100_dim")]
    lines = format_trained(trained).splitlines()
    assert "7 test samples" in lines[1] and "(2 ties)" in lines[1] and max(map(len, lines)) <= 100
    assert lines[-1].split() == "ss_100_dim 2,500 0.900 0.800 7,500 7,500 1.00 200 10,100 8".split()
    assert format_trained([]) == ""


def test_figure_has_instructions_and_flash_per_core_and_a_line_per_layer_and_optimisation():
    names = ["standard_nn", "ss_1_dim"]
    rows = [make_measured_row("hidden layer", n, name, core, optimisation) for n, name, core, optimisation in
            itertools.product((64, 16), names, ("cortex-m4f", "cortex-m3", "riscv32imc"), ("-O2", "-Os"))]
    figure = plot_microcontroller({"rows": [*rows, make_measured_row("mnist")]})
    assert [ax.get_title() for ax in figure.axes] == ["cortex-m4f", "cortex-m3", "riscv32imc"] * 2
    for i, ax in enumerate(figure.axes):
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and len(ax.lines) == 4
        for line in ax.lines:
            values = [100 + 4 * 16 ** 2, 100 + 4 * 64 ** 2] if i >= 3 else [3 * 16 ** 2, 3 * 64 ** 2]
            assert line.get_xydata().T.tolist() == [[16, 64], values]
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--"] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert legend.get_title().get_text() == "hidden layers\n-O2\ndashed: -Os"


# ---- the program for a real board ----

@installed
@pytest.mark.parametrize("options", [[], ["-DBOARD_PUTCHAR=send"]])
@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m3"])
def test_main_board_compiles_without_a_warning(tmp_path, core, options):
    from emulated_core import CORES

    torch.manual_seed(0)
    export_to_c(StandardTHLFFNN(4, 3, 8), tmp_path / "net.h", sample_inputs=torch.randn(2, 4))
    cache = {f"ZIG_{kind}_CACHE_DIR": str(tmp_path / "cache") for kind in ("GLOBAL", "LOCAL")}
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", CORES[core].target, f"-mcpu={CORES[core].cpu}",
                    "-std=c99", "-ffreestanding", "-Wall", "-Wextra", "-Wconversion", "-Wdouble-promotion", "-Werror",
                    f"-I{tmp_path}", "-c", str(PROJECT / "main_board.c"), "-o", str(tmp_path / "main_board.o"),
                    *options], check=True, env={"PATH": "", **cache})
    assert (tmp_path / "main_board.o").exists()
