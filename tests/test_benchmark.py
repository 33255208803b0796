"""The sweep: what a run depends on, interruptions, faults. Many runs at a time: see test_parallel_runs.py."""

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmark
import plot_results
from benchmark_results import Run, load_results
from datasets import load_digits_data, load_pendigits_data, load_shuffled_data
from model_training import get_loss_and_accuracy, train_model
from plot_results import draw_figures

PROJECT = Path(__file__).resolve().parents[1]
TINY_SWEEP = dict(
    dataset_loading_functions=[load_digits_data], model_names=["standard_nn", "ss_2_dim", "rank_1"], nb_iterations=2,
    nb_neurons_list=[6], training_set_shares=[0.05], min_number_training_epochs=0, max_number_training_epochs=3,
    nb_jobs=1)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A function that runs benchmark.main() on a tiny sweep in tmp_path, with the hyperparameters that it is given.

    It draws no figures, which would take longer than the sweep.
    """
    monkeypatch.setattr(benchmark, "draw_figures", lambda *arguments: None)

    def run(**hyperparameters):
        return benchmark.main({**benchmark.get_hyperparameters(), **TINY_SWEEP,
                               "result_file": str(tmp_path / "benchmark_result.p"), **hyperparameters})
    return run


@pytest.fixture
def results(tmp_path):
    """A function that returns what the sweep has left in its file, or another one beside it."""
    return lambda file="benchmark_result.p": without_times(load_results(tmp_path / file))


@pytest.fixture
def reference(sweep, tmp_path):
    """Results of the tiny sweep, run in this process without interruption."""
    assert sweep(result_file=str(tmp_path / "reference.p")) == 0
    return without_times(load_results(tmp_path / "reference.p"))


def without_times(results):
    """The part of a results dict that must repeat: no times, nothing about how and when it was run."""
    if isinstance(results, dict):
        return {key: without_times(value) for key, value in results.items()
                if key not in ("training_time", "environment", "nb_jobs", "dask_scheduler_address")}
    return results


def nb_finished_runs(path):
    """Number of runs in the file, -1 while there is none."""
    if not path.exists():
        return -1
    results = load_results(path)
    return sum(len(iterations) for dataset in results["dataset_names"] for models in results[dataset].values()
               for widths in models.values() for iterations in widths.values())


# ---- what a run depends on ----

def test_results_do_not_depend_on_the_number_of_jobs(sweep, results, reference):
    assert sweep(nb_jobs=2) == 0
    assert results() == reference


def test_seeds_and_data_depend_on_seed_and_identity_alone(monkeypatch):
    seeds, samples = [], {}

    def train_model(model, X, y, seed, **arguments):
        seeds.append((seed, torch.initial_seed()))
        samples[len(X)] = X
        return [1.], [1.], [1.]

    monkeypatch.setattr(benchmark, "train_model", train_model)
    hyperparameters = benchmark.check_hyperparameters(benchmark.get_hyperparameters())
    data = load_shuffled_data(load_digits_data, None, benchmark.derive_seed(0, "digits"))
    for run in (Run("digits", 0.1, "standard_nn", 5, 0), Run("digits", 0.5, "rank_1", 7, 0),
                Run("digits", 0.5, "ss_1_dim", 7, 0), Run("digits", 1., "rank_1", 7, 1)):
        benchmark.train_run(run, data, hyperparameters)
    # Files of earlier sweeps have these seeds; families and widths share splits and shuffles, not initial weights.
    assert seeds == [(1465242307, 3374323601), (643742055, 1441930735), (643742055, 2958521169), (21586393, 2611219258)]
    # Smaller shares are the beginning of larger ones.
    assert list(samples) == [143, 718, 1437]
    assert all(np.array_equal(X, data[0][:size]) for size, X in samples.items())


def test_a_run_with_other_switches_is_trained_and_tested_with_them():
    switches = dict(standardise_inputs=True, softmax_twice=False)
    hyperparameters = benchmark.check_hyperparameters({**benchmark.get_hyperparameters(), **TINY_SWEEP, **switches})
    X_train, y_train, X_test, y_test = data = load_shuffled_data(load_digits_data, None, 0)
    run = Run("digits", 0.1, "ss_2_dim", 6, 0)
    mean, deviation = X_train[:143].mean(0), X_train[:143].std(0)
    deviation[deviation == 0] = 1
    net = benchmark.make_net(run, (64,), 10, hyperparameters)
    losses, *_ = train_model(net, (X_train[:143] - mean) / deviation, y_train[:143], 1e-3, 100000,
                             min_number_training_epochs=0, max_number_training_epochs=3, softmax_twice=False,
                             seed=benchmark.derive_seed(0, "digits", 0.1, 0))
    test_loss, _ = get_loss_and_accuracy(net, (X_test - mean) / deviation, y_test, softmax_twice=False)
    result = benchmark.train_run(run, data, hyperparameters)
    assert result["training_loss_history"] == pytest.approx(losses, rel=1e-5)
    assert result["test_loss"] == pytest.approx(test_loss, rel=1e-4)


def test_results_have_all_documented_keys(sweep, tmp_path):
    sweep()
    results = load_results(tmp_path / "benchmark_result.p")  # which loads nothing but plain data
    assert set(results) == {*benchmark.get_hyperparameters(), "dataset_names", "environment", "failures", "digits"} - {
        "dataset_loading_functions", "result_file"}
    run = results["digits"][0.05]["ss_2_dim"][6][1]
    assert set(run) == {"training_loss_history", "accuracy_history", "val_accuracy_history", "test_loss",
                        "test_accuracy", "nb_model_parameters", "training_time", "seed"}
    assert len(run["training_loss_history"]) == len(run["accuracy_history"]) == len(run["val_accuracy_history"]) == 3


def test_hyperparameters_are_those_of_the_block_and_have_the_papers_values():
    block = (PROJECT / "benchmark.py").read_text(encoding="utf-8").split("\n# ====")[1]
    hyperparameters = importlib.reload(benchmark).get_hyperparameters()
    assert set(hyperparameters) == set(re.findall(r"^(\w+) = ", block, re.MULTILINE))
    assert hyperparameters.items() >= dict(
        nb_iterations=5, nb_neurons_list=[50], training_set_shares=[0.1], patience=20, min_accuracy_improvement=5e-4,
        batch_size=100000, learning_rate=1e-3, min_number_training_epochs=200, max_number_training_epochs=None,
        standardise_inputs=False, softmax_twice=True, nb_hidden_layers=2, inputoutput_dim=1,
        initialisation="realisation",
        model_names=["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim", "ss_4_dim", "ss_5_dim", "rank_1"]).items()


@pytest.mark.parametrize("name, expected", [
    ("standard_nn", dict(in_features=12)), ("ss_3_dim", dict(statespace_dim=3, inputoutput_dim=2)),
    ("ss_16_dim", dict(statespace_dim=16)), ("rank_1", dict(rank=1)), ("rank_10", dict(rank=10)),
    ("monarch_4", dict(nb_blocks=4)), ("standard_as_ss_3", dict(in_features=12)),
    ("standard_scaled_0", dict(in_features=12))])
def test_the_name_of_a_family_says_what_its_hidden_layers_are(name, expected):
    hyperparameters = dict(benchmark.get_hyperparameters(), nb_hidden_layers=3, inputoutput_dim=2)
    for shape in ((16,), (1, 28, 28)):
        net = benchmark.make_net(Run("digits", 1.0, name, 12, 0), shape, 10, hyperparameters)
        layers = getattr(net, "vector_net", net).hidden_layers
        assert len(layers) == 2 and all({key: getattr(layer, key) for key in expected} == expected for layer in layers)
        weights = [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]
        assert all(weight.any() != (name == "standard_scaled_0") for weight in weights)


def load_own_data(datasets_folder):
    (X, y), test = load_digits_data()
    return (X + 1, y), test


# ---- interruptions ----

def start(script, folder):
    """A script as a process of its own, in a process group of its own."""
    return subprocess.Popen([sys.executable, script], cwd=folder, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_sweep_killed_and_resumed_equals_an_uninterrupted_one(sweep, results, tmp_path, reference, capsys):
    (tmp_path / "script.py").write_text(f"""
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
files = os.listdir()
from test_benchmark import TINY_SWEEP, benchmark, nb_finished_runs
import torch._dynamo  # which each child would import
assert os.listdir() == files  # importing the benchmark runs nothing
assert "matplotlib" not in sys.modules  # whatever its settings are
path = Path("benchmark_result.p").absolute()
vars(benchmark).update(TINY_SWEEP, result_file=str(path))
for nb_before in (0, 1, 4):
    child = os.fork()
    if not child:
        os._exit(benchmark.main())
    while nb_finished_runs(path) < nb_before:  # from the first writing of the file to the middle of a run, or beyond
        time.sleep(0.001)
    time.sleep(0.013 * nb_before)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
""")
    process = start("script.py", tmp_path)
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
    assert sweep() == 0
    assert "starting afresh" not in capsys.readouterr().out and results() == reference


def test_a_request_to_terminate_saves_what_is_finished_and_ends_all_trainings(tmp_path):
    for file in PROJECT.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    code = (tmp_path / "benchmark.py").read_text(encoding="utf-8")
    # So many epochs that there is always a run in hand. They are edited as a user does it.
    for name, value in {**TINY_SWEEP, "nb_jobs": 2, "nb_iterations": 200, "max_number_training_epochs": 100,
                        "min_number_training_epochs": 100, "dataset_loading_functions": "[load_digits_data]"}.items():
        code = re.sub(rf"^{name} = .*", f"{name} = {value}", code, flags=re.MULTILINE)
    (tmp_path / "benchmark.py").write_text(code, encoding="utf-8")
    process = start("benchmark.py", tmp_path)
    path = tmp_path / "benchmark_result.p"
    while nb_finished_runs(path) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()  # what Ctrl-C does, which reaches the workers as well, is in test_parallel_runs.py
    _, errors = process.communicate()  # returns when all who could write there have ended
    assert process.returncode == 130
    assert "continues the sweep" in errors and "Traceback" not in errors
    assert nb_finished_runs(path) >= 3


def test_more_datasets_iterations_widths_shares_and_models_extend_the_file(sweep, results, tmp_path, reference, capsys):
    larger = dict(dataset_loading_functions=[load_own_data, load_digits_data], nb_iterations=3,
                  nb_neurons_list=[4, 6], training_set_shares=[0.1, 0.05],
                  model_names=["ss_1_dim", "standard_nn", "ss_2_dim", "rank_1"])
    sweep()
    assert sweep(**larger) == 0
    assert "6 of 96 runs are there, 90 to do" in capsys.readouterr().out
    extended = results()
    assert sweep(**larger, result_file=str(tmp_path / "fresh.p")) == 0
    assert extended == results("fresh.p")
    # A run is the same whatever else is in the sweep.
    assert extended["digits"][0.05]["rank_1"][6][0] == reference["digits"][0.05]["rank_1"][6][0]
    assert extended["own"][0.05]["rank_1"][6][0] != reference["digits"][0.05]["rank_1"][6][0]


def test_changed_data_and_code_are_noticed_even_if_all_runs_are_there(sweep, results, monkeypatch, capsys):
    sweep()
    before = results()
    monkeypatch.setattr(load_own_data, "__name__", "load_digits_data")
    sweep(dataset_loading_functions=[load_own_data])
    assert "the data of digits have changed" in capsys.readouterr().out and results() != before
    monkeypatch.setitem(benchmark.MODEL_FAMILIES, r"rank_([1-9]\d*)", benchmark.MODEL_FAMILIES["standard_nn"])
    sweep(dataset_loading_functions=[load_own_data])
    out = capsys.readouterr().out
    assert "4 of 6 runs are there, 2 to do; the code of rank_1 has changed; the old file is kept as" in out


def test_a_complete_sweep_trains_nothing_and_deletes_nothing_even_if_its_figure_fails(
        sweep, results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "draw_figures", draw_figures)
    sweep()
    before = results()
    figure = (tmp_path / "benchmark_result.png").read_bytes()
    monkeypatch.setattr(benchmark, "make_runs", None)  # would fail if called
    monkeypatch.setattr(plot_results, "save_figure", lambda *arguments: 1 / 0)
    capsys.readouterr()
    assert sweep() == 0
    captured = capsys.readouterr()
    assert "complete" in captured.out and "standard_nn" in captured.out and results() == before
    assert "no benchmark_result.png: ZeroDivisionError" in captured.err
    assert (tmp_path / "benchmark_result.png").read_bytes() == figure


# ---- faults ----

def test_what_cannot_be_loaded_or_run_is_recorded_and_tried_again_and_the_rest_goes_on(
        sweep, results, reference, tmp_path, monkeypatch, capsys):
    def fail(net, *arguments, **keywords):
        if type(net).__name__ == "TwoHiddenLayeredSSNet":
            raise RuntimeError("cosmic ray")
        return train_model(net, *arguments, **keywords)

    (tmp_path / "pendigits").mkdir()
    for file in ("pendigits.tra", "pendigits.tes"):
        (tmp_path / "pendigits" / file).write_text("<html>not found</html>")
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "train_model", fail)
        assert sweep(dataset_loading_functions=[load_pendigits_data, load_digits_data], datasets_folder=str(tmp_path),
                     training_set_shares=[0.05, 0.0001]) == 1
    dataset, *runs = results()["failures"]
    assert dataset["dataset"] == "pendigits" and dataset["share"] is None and "pendigits.tra" in dataset["reason"]
    assert [run["share"] for run in runs] == [0.05] * 2 + [0.0001] * 6  # of which no sample is left
    assert runs[:2] == [dict(dataset="digits", share=0.05, model_name="ss_2_dim", nb_neurons=6, iteration=i,
                             reason="RuntimeError: cosmic ray") for i in range(2)]
    assert "pendigits.tra" in capsys.readouterr().out
    assert sweep() == 0
    assert "4 of 6 runs are there, 2 to do" in capsys.readouterr().out
    assert results()["digits"][0.05] == reference["digits"][0.05]


@pytest.mark.parametrize("hyperparameters, message", [
    (dict(dataset_loading_functions=[np.load]), "a data set needs a function named like load_digits_data"),
    (dict(training_set_shares=[0.1, np.float32(0.1)]), "training_set_shares must be a list in brackets"),
    (dict(training_set_shares=[1.5]), "training_set_shares must be in (0, 1], got 1.5"),
    (dict(model_names=["standard_nn", "ss1_dim"]), "unknown name in model_names: 'ss1_dim'"),
    (dict(nb_neurons_list=[50, 0]), "nb_neurons_list must be an integer of 1 or more, got 0"),
    (dict(inputoutput_dim=4), "inputoutput_dim 4 does not divide 6 neurons"),
    (dict(training_set_shares=["0.1"]), "training_set_shares must be in (0, 1], got '0.1'"),
    (dict(nb_jobs=0), "nb_jobs must be an integer of 1 or more, got 0"),
    (dict(learning_rate="1e-3"), "learning_rate must be a finite number, got '1e-3'"),
    (dict(seed=0.5), "seed must be an integer of 0 or more, got 0.5"),
    (dict(standardise_inputs="no"), "standardise_inputs must be one of True, False, got 'no'")])
def test_hyperparameters_that_cannot_work_are_named_before_anything_runs(
        hyperparameters, message, sweep, tmp_path, capsys):
    assert sweep(**hyperparameters) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "benchmark_result.p").exists()


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_training(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run_missing", None)  # would fail if called
    (tmp_path / "file").touch()
    assert sweep(result_file=str(tmp_path / "file" / "benchmark_result.p")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


# ---- a Dask cluster ----

@pytest.fixture
def scheduler_address(tmp_path):
    """A Dask cluster whose scheduler and worker do not know this folder."""
    pytest.importorskip("dask.distributed", reason="Dask is not installed")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    arguments = ["--scheduler-file", "scheduler.json", "--no-dashboard", "--host", "127.0.0.1"]
    processes = [subprocess.Popen([sys.executable, "-m", "dask", *command, *arguments], cwd=folder,
                                  stderr=subprocess.DEVNULL)
                 for command in (["scheduler", "--port", "0"], ["worker", "--nthreads", "1"])]
    path = folder / "scheduler.json"
    try:
        while not (path.exists() and path.read_text().endswith("}")):  # it is there before it is written
            assert processes[0].poll() is None
            time.sleep(0.01)
        yield json.loads(path.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def test_results_on_a_dask_cluster_elsewhere_are_the_same(sweep, results, reference, scheduler_address):
    assert sweep(nb_jobs=-1, dask_scheduler_address=scheduler_address) == 0
    assert results() == reference


def test_a_scheduler_address_without_dask_says_what_to_install(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    assert sweep(dask_scheduler_address="tcp://127.0.0.1:9") == 2
    assert 'pip install "dask[distributed]"' in capsys.readouterr().err
