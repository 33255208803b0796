"""speed_benchmark.py: what it writes, prints and draws, on layers too small to take time."""
import itertools
import math
import pickle

import pytest
import torch
from torch.utils.benchmark import Measurement, TaskSpec

import speed_benchmark

LAYERS = ["standard_nn", "ss_1_dim", "rank_1"]
TINY = dict(layer_names=LAYERS, nb_neurons_list=[16, 8], rectangular_sizes=[[9, 5]], batch_sizes=[4, 3],
            largest_dense_n=9, rounds=2, min_measuring_time=0, epoch_cases=[["digits", 20, [4], 3, 2]],
            epoch_layers=["ss_2_dim"], epoch_nb_neurons=6, memory_layers=["rank_1"], memory_case=[5, 7],
            initialisation_sizes=[50])


@pytest.fixture
def path(monkeypatch, tmp_path):
    for name, value in {**TINY, "result_file": str(tmp_path / "speed_result.p")}.items():
        monkeypatch.setattr(speed_benchmark, name, value)
    return tmp_path / "speed_result.p"


def test_main_measures_all_layers_writes_data_and_a_figure_prints_tables_and_keeps_an_older_file(path, capsys):
    path.write_bytes(b"old")
    assert speed_benchmark.main() == 0
    result = pickle.loads(path.read_bytes())
    assert result["hyperparameters"].items() >= TINY.items()
    assert result["environment"].keys() >= {"torch", "platform", "nb_cores", "nb_threads", "device", "start_time"}
    assert [(row["n"], row["nb_outputs"], row["batch_size"], row["run"], row["layer"]) for row in result["layers"]] == [
        (n, nb_outputs, batch_size, run, name) for n, nb_outputs in ([16, 16], [8, 8], [9, 5]) for batch_size in [4, 3]
        for run in ("forward", "forward+backward") for name in LAYERS[n > TINY["largest_dense_n"]:]]
    assert [(row["layer"], row["n"]) for part in ("epochs", "memory", "initialisation") for row in result[part]] == [
        ("ss_2_dim", 6), ("rank_1", 5), ("ss_5_dim", 50)]
    kept, = path.parent.glob("speed_result_20*.p")
    assert kept.read_bytes() == b"old"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    headings = [line for line in capsys.readouterr().out.splitlines() if line.endswith(":")]
    assert headings == ["layers, ms:", "layers, ratio:", "epochs, ms:", "memory, extra_megabytes:",
                        "initialisation, ms:"]


def test_layers_take_turns_and_a_ratio_is_the_median_of_the_dense_layer_divided_by_that_of_the_layer(path, monkeypatch):
    turns, seconds = [], {"standard_nn": itertools.cycle([0.006, 0.007, 0.008]), "rank_1": itertools.repeat(0.002)}

    class Timer:
        def __init__(self, statement, sub_label, **arguments):
            self.spec = TaskSpec(statement, "", sub_label=sub_label)

        def blocked_autorange(self, min_run_time):
            turns.append(self.spec.sub_label)
            return Measurement(10, [10 * next(seconds[self.spec.sub_label])], self.spec)

    for name, value in (("Timer", Timer), ("layer_names", ["standard_nn", "rank_1"]), ("rounds", 3)):
        monkeypatch.setattr(speed_benchmark, name, value)
    dense, rank_1, *_ = speed_benchmark.measure_layers(9, 5, 4)
    assert turns == ["standard_nn", "rank_1"] * 6  # three rounds, forward, then forward+backward
    assert dense["times_ms"] == pytest.approx([6, 7, 8]) and rank_1["times_ms"] == pytest.approx([2, 2, 2])
    for row, expected in ((dense, (7, 1, 1, True)), (rank_1, (2, 0, 3.5, False))):
        assert [row[key] for key in ("ms", "iqr_ms", "ratio", "is_unsteady")] == pytest.approx(expected)
    assert math.isnan(speed_benchmark.measure_layers(9, 10, 4)[0]["ratio"])  # without a dense layer


def test_an_epoch_is_the_difference_between_trainings_of_the_benchmarks_nets(path, monkeypatch):
    trainings = []
    monkeypatch.setattr(speed_benchmark, "train_model", lambda net, X, y, *, max_number_training_epochs, **arguments: (
        trainings.append((X.shape, arguments["batch_size"], max_number_training_epochs, torch.get_num_threads()))))
    # A training of k epochs takes 100 + 7 k seconds.
    monkeypatch.setattr(speed_benchmark, "timeit", lambda call, number: (call(), 100 + 7 * trainings[-1][2])[1])
    (row,) = speed_benchmark.measure_epochs("case", 20, [1, 28, 28], 3, 4)
    assert row["times_ms"] == [7000, 7000]
    assert trainings == [((20, 1, 28, 28), 20, nb_epochs, 1) for nb_epochs in (1, 5, 1, 5, 1)]


def test_memory_of_a_dense_layer_is_output_and_gradients_of_input_and_parameters():
    (row,) = speed_benchmark.measure_memory("standard_nn", 64, 1000)
    assert row["extra_megabytes"] == pytest.approx(4e-6 * (2 * 1000 * 64 + 64 * 64 + 64))


@pytest.mark.parametrize("name, value", [("rounds", 0), ("device", "gpu"), ("memory_layers", ["dense"]),
                                         ("result_file", "speed_result.png")])
def test_what_cannot_work_is_named_before_anything_runs(path, monkeypatch, capsys, name, value):
    monkeypatch.setattr(speed_benchmark, name, value)
    monkeypatch.setattr(speed_benchmark, "keep_file", None)
    assert speed_benchmark.main() == 2
    assert str(value).strip("[]") in capsys.readouterr().err
