"""microcontroller/benchmark.py: what it writes, prints and draws, and that no figure counts without its output."""

import math
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("unicorn", reason="pip install -r microcontroller/requirements.txt")
import benchmark
import microcontroller.benchmark as script
from benchmark_results import Run
from datasets import load_digits_data, load_shuffled_data, take_share
from microcontroller.c_export import export_to_c
from microcontroller.emulated_core import CORES
from standardmodels import StandardTHLFFNN

TINY = dict(model_names=["standard_nn", "ss_1_dim"], nb_neurons_list=[8, 16], net_cases=[["vectors", [4], 3]],
            net_nb_neurons_list=[8], cores=["cortex-m4f"], optimisations=["-O2", "-Os"], nb_neurons=8,
            nb_test_samples=7)


@pytest.fixture
def result_file(monkeypatch, tmp_path):
    for name, value in {**TINY, "dataset_loading_functions": [load_digits_data],
                        "result_file": str(tmp_path / "micro.p")}.items():
        assert name in script.HYPERPARAMETERS
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(benchmark, "max_number_training_epochs", 3)
    return tmp_path / "micro.p"


def test_main_measures_everything_writes_data_and_a_figure_prints_tables_and_keeps_an_older_file(result_file, capsys):
    result_file.write_bytes(b"old")
    assert script.main() == 0
    result = pickle.loads(result_file.read_bytes())
    assert result["hyperparameters"].items() >= {**TINY, "dataset_loading_functions": ["digits"], "seed": 0}.items()
    assert result["environment"].keys() >= {"torch", "ziglang", "unicorn", "platform"}
    *rows, _, trained = result["rows"]
    # The stages of an SSS layer are merged in pairs: 4 or 8 of them, with states of 1 entry.
    sizes = [("hidden layer", 8, "standard_nn", 64), ("hidden layer", 8, "ss_1_dim", 4 * 4 + 6 * 2 * 2 + 2 * 2),
             ("hidden layer", 16, "standard_nn", 256), ("hidden layer", 16, "ss_1_dim", 8 * 4 + 14 * 2 * 2 + 2 * 6),
             ("net for vectors", 8, "standard_nn", 32 + 64 + 24), ("net for vectors", 8, "ss_1_dim", 32 + 44 + 24)]
    assert [(row["kind"], row["n"], row["layer"], row["multiply_adds"], row["optimisation"]) for row in rows] == [
        (*size, optimisation) for size in sizes for optimisation in ("-O2", "-Os")]
    for row in result["rows"]:
        assert row["difference"] < 2e-5 and row["cycles"] > row["instructions"] > row["multiply_adds"]
        assert row["code_bytes"] > 0 and 0 <= row["stack_bytes"] < 2000
    assert [row["ratio"] for row in rows[:4]] == [
        1, 1, *(rows[i]["instructions"] / rows[i + 2]["instructions"] for i in (0, 1))]
    assert rows[4]["constant_bytes"] == 4 * rows[4]["parameters"]  # a dense layer's weights lie in flash, each once
    assert (trained["kind"], trained["layer"], trained["nb_test_samples"], trained["nb_ties"]) == (
        "net trained on digits", "ss_1_dim", 7, 0)

    kept, = result_file.parent.glob("micro_20*.p")
    assert kept.read_bytes() == b"old" and result_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    blocks = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    assert [block[0] for block in blocks] == [f"{kind}, cortex-m4f, {optimisation}" for kind, optimisation in product(
        ("hidden layer", "net for vectors"), ("-O2", "-Os"))] + ["net trained on digits, cortex-m4f, -O2"]
    assert blocks[0][4].split()[:5] == ["16", "standard_nn", "256", str(int(rows[4]["instructions"])), "1.00"]
    assert blocks[-1][-1].split()[-1] == f"{trained['accuracy']:.3f}"


def test_trained_nets_are_those_of_the_first_iteration_of_the_benchmark_and_take_raw_inputs(result_file):
    hyperparameters = script.check_hyperparameters()
    data = load_shuffled_data(load_digits_data, "", benchmark.derive_seed(0, "digits"))
    X_train, y_train, X_test, y_test = take_share(0.1, data, standardise_inputs=True)
    for row, net, X, labels in [*script.make_cases(hyperparameters)][-2:]:
        run = Run("digits", 0.1, row["layer"], 8, 0)
        expected, _ = benchmark.train_net(run, X_train, y_train, 10, hyperparameters)
        with torch.no_grad():
            torch.testing.assert_close(net(torch.from_numpy(data[2])), expected(torch.from_numpy(X_test)))
        assert row["test_accuracy"] == benchmark.train_run(run, data, hyperparameters)["test_accuracy"]
        tested = [0, 59, 119, 179, 239, 299, 359]
        assert X.equal(torch.from_numpy(data[2][tested])) and labels.tolist() == y_test[tested].tolist()


@pytest.mark.parametrize("name, value, message", [
    ("cores", ["cortex-m99"], "each of cores must be one of 'cortex-m4f'"), ("nb_neurons", 0, "nb_neurons")])
def test_what_cannot_work_is_named_before_anything_runs(result_file, monkeypatch, capsys, name, value, message):
    monkeypatch.setattr(script, "measure", None)
    monkeypatch.setattr(script, name, value)
    assert script.main() == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [1.2e-4, math.nan])
def test_output_that_is_not_that_of_pytorch_ends_the_measurement_and_is_named(result_file, monkeypatch, capsys, error):
    row = {"kind": "digits", "n": 8, "layer": "rank_1", "core": "cortex-m3", "optimisation": "-Os"}
    scores, outputs = np.array([[3, 2, 1], [0, 0, 5.]]), np.array([[3, 2, 1], [error, 0, 5]])
    monkeypatch.setattr(script, "measure", lambda _: script.make_row(row, scores, None, None, [], outputs))
    assert script.main() == 1
    assert "digits, n 8, rank_1 on cortex-m3, -Os: a score differs from PyTorch's by" in capsys.readouterr().err


@pytest.mark.parametrize("core, options", [("cortex-m4f", []), ("cortex-m3", ["-DBOARD_PUTCHAR=send"])])
def test_main_board_compiles_without_a_warning(tmp_path, core, options):
    export_to_c(StandardTHLFFNN(4, 3, 8), tmp_path / "net.h", sample_inputs=torch.randn(2, 4))
    target, cpu, _, _ = CORES[core]
    cache = {f"ZIG_{kind}_CACHE_DIR": str(tmp_path / "cache") for kind in ("GLOBAL", "LOCAL")}
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-target", target, f"-mcpu={cpu}", "-std=c99",
                    "-ffreestanding", "-Wall", "-Wextra", "-Wconversion", "-Wdouble-promotion", "-Werror",
                    f"-I{tmp_path}", *options, "-c", Path(script.__file__).with_name("main_board.c"),
                    "-o", tmp_path / "main_board.o"], check=True, env={"PATH": "", **cache})
