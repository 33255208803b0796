"""The sweep: what a run depends on, in parallel, after interruptions, with faults."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

import benchmark
from benchmark_results import Run, load_results
from datasets import (load_cifar10_data, load_digits_data, load_hand_posture_data, load_mnist_data,
                      load_pendigits_data)

PROJECT = Path(__file__).resolve().parents[1]
SHARED_DATASETS = PROJECT.parent / "shared" / "datasets"
TINY_SWEEP = dict(
    dataset_loading_functions=[load_digits_data], model_names=["standard_nn", "ss_2_dim", "rank_1"], nb_iterations=2,
    nb_neurons_list=[6], training_set_shares=[0.05], min_number_training_epochs=0, max_number_training_epochs=3,
    nb_jobs=1)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A function that runs benchmark.main() on a tiny sweep in tmp_path, with the hyperparameters that it is given."""
    def run(**hyperparameters):
        for name, value in {**TINY_SWEEP, "result_file": tmp_path / "benchmark_result.p", **hyperparameters}.items():
            assert hasattr(benchmark, name)
            monkeypatch.setattr(benchmark, name, value)
        return benchmark.main()
    return run


def without_times(results):
    """The part of a results dict that must repeat: no times, nothing about how and when it was run."""
    if isinstance(results, dict):
        return {key: without_times(value) for key, value in results.items()
                if key not in ("training_time", "environment", "nb_jobs", "joblib_backend", "dask_scheduler_address")}
    return results


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Results of the tiny sweep, run in this process without interruption."""
    path = tmp_path_factory.mktemp("reference") / "benchmark_result.p"
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in {**TINY_SWEEP, "result_file": path}.items():
            monkeypatch.setattr(benchmark, name, value)
        assert benchmark.main() == 0
    return without_times(load_results(path))


def start_sweep(folder, **hyperparameters):
    """The tiny sweep as a process of its own, in a process group of its own."""
    settings = {**TINY_SWEEP, **hyperparameters}
    settings["dataset_loading_functions"] = [f.__name__ for f in settings["dataset_loading_functions"]]
    script = (f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
              f"import benchmark, datasets\n"
              f"vars(benchmark).update({settings!r}, result_file={str(folder / 'benchmark_result.p')!r})\n"
              "benchmark.dataset_loading_functions = [getattr(datasets, f) for f in benchmark.dataset_loading_functions]\n"
              "sys.exit(benchmark.main())")
    return subprocess.Popen([sys.executable, "-c", script], start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def nb_finished_runs(path):
    """Number of runs in the file, 0 while there is none."""
    if not path.exists():
        return 0
    results = load_results(path)
    return sum(len(iterations) for dataset in results["dataset_names"] for models in results[dataset].values()
               for widths in models.values() for iterations in widths.values())


def wait_until(condition, process=None):
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


# ---- what a run depends on ----

def test_results_do_not_depend_on_the_number_of_jobs(sweep, reference, tmp_path):
    assert sweep(nb_jobs=2) == 0
    assert without_times(load_results(tmp_path / "benchmark_result.p")) == reference


def test_a_run_alone_equals_the_same_run_in_a_sweep(sweep, reference, tmp_path):
    assert sweep(model_names=["ss_2_dim"]) == 0
    assert (without_times(load_results(tmp_path / "benchmark_result.p"))["digits"][0.05]["ss_2_dim"]
            == reference["digits"][0.05]["ss_2_dim"])


def test_shares_1_and_1_0_are_the_same(sweep, tmp_path):
    results = []
    for share in (1, 1.0):
        path = tmp_path / f"{share!r}.p"
        assert sweep(training_set_shares=[share], model_names=["rank_1"], nb_iterations=1, result_file=path) == 0
        results.append(without_times(load_results(path)))
    assert repr(results[0]) == repr(results[1])


def test_another_seed_gives_other_results(sweep, reference, tmp_path):
    assert sweep(seed=1) == 0
    assert without_times(load_results(tmp_path / "benchmark_result.p"))["digits"] != reference["digits"]


def test_families_and_widths_share_splits_and_shuffles_but_not_initial_weights(monkeypatch):
    seeds = []

    def train_model(model, X, y, seed, **arguments):
        seeds.append((seed, torch.initial_seed()))
        return [1.], [1.], [1.]

    monkeypatch.setattr(benchmark, "train_model", train_model)
    data = np.zeros((20, 3), np.float32), np.arange(20) % 2, np.zeros((4, 3), np.float32), np.arange(4) % 2
    hyperparameters = benchmark.check_hyperparameters()
    for run in (Run("digits", 0.5, "standard_nn", 5, 0), Run("digits", 0.5, "rank_1", 7, 0),
                Run("digits", 0.5, "rank_1", 7, 1)):
        benchmark.train_run(run, data, hyperparameters)
    (split, weights), (same_split, other_weights), (other_split, _) = seeds
    assert split == same_split != other_split
    assert weights != other_weights


def test_smaller_shares_are_the_beginning_of_larger_ones(monkeypatch):
    sizes = {}
    monkeypatch.setattr(benchmark, "train_model",
                        lambda model, X, y, **arguments: sizes.setdefault(len(X), X) is None or ([1.], [1.], [1.]))
    data = benchmark.load_shuffled_data(load_digits_data)
    for share in (0.1, 0.5, 1.0):
        benchmark.train_run(Run("digits", share, "rank_1", 5, 0), data, benchmark.check_hyperparameters())
    assert list(sizes) == [143, 718, 1437]
    assert all(np.array_equal(X, data[0][:size]) for size, X in sizes.items())
    # It is a permutation of the training data, in another order.
    unshuffled = load_digits_data()[0][0]
    assert not np.array_equal(data[0], unshuffled)
    assert np.array_equal(np.sort(data[0].sum(1)), np.sort(unshuffled.sum(1)))


def test_results_are_plain_data_with_all_documented_keys(reference, sweep, tmp_path):
    sweep()
    with open(tmp_path / "benchmark_result.p", "rb") as file:
        results = pickle.load(file)

    def check(value):
        assert type(value) in (dict, list, str, int, float, bool, type(None)), value
        for part in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part)

    check(results)
    assert {"dataset_names", "nb_iterations", "nb_neurons_list", "training_set_shares", "batch_size", "patience",
            "min_accuracy_improvement", "model_names", "learning_rate", "min_number_training_epochs", "seed",
            "environment", "failures", "digits"} <= set(results)
    run = results["digits"][0.05]["ss_2_dim"][6][1]
    assert set(run) == {"training_loss_history", "accuracy_history", "val_accuracy_history", "test_loss",
                        "test_accuracy", "nb_model_parameters", "training_time", "seed"}
    assert len(run["training_loss_history"]) == len(run["accuracy_history"]) == len(run["val_accuracy_history"]) == 3


def test_hyperparameters_have_the_papers_values():
    assert (benchmark.nb_iterations, benchmark.nb_neurons_list, benchmark.training_set_shares, benchmark.patience,
            benchmark.min_accuracy_improvement, benchmark.batch_size, benchmark.learning_rate,
            benchmark.min_number_training_epochs, benchmark.max_number_training_epochs, benchmark.initialisation) == (
        5, [50], [0.1], 20, 5e-4, 100000, 1e-3, 200, None, "realisation")
    assert list(benchmark.MODEL_FAMILIES) == benchmark.model_names


@pytest.mark.skipif(not SHARED_DATASETS.is_dir(), reason="the sample files of the four datasets are not here")
@pytest.mark.parametrize("load_data", [load_pendigits_data, load_hand_posture_data, load_mnist_data, load_cifar10_data])
def test_every_family_trains_an_epoch_on_each_of_the_papers_datasets(load_data, sweep, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # the sample has other checksums
    assert sweep(dataset_loading_functions=[load_data], datasets_folder=SHARED_DATASETS, nb_iterations=1,
                 model_names=list(benchmark.MODEL_FAMILIES), max_number_training_epochs=1) == 0
    results = load_results(tmp_path / "benchmark_result.p")
    assert nb_finished_runs(tmp_path / "benchmark_result.p") == 7
    assert results["dataset_names"] == [benchmark.get_dataset_name_for_loading_function(load_data)]


# ---- interruptions ----

def test_a_sweep_killed_five_times_and_resumed_equals_an_uninterrupted_one(tmp_path, reference):
    random = np.random.default_rng(0)
    path = tmp_path / "benchmark_result.p"
    nb_runs = len(reference["model_names"]) * reference["nb_iterations"]
    for nb_before in range(5):
        process = start_sweep(tmp_path)
        # From the first writing of the file to the middle of a run, or beyond.
        wait_until(lambda: nb_finished_runs(path) >= min(nb_before, nb_runs - 1) and path.exists(), process)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
    process = start_sweep(tmp_path, nb_jobs=2)
    output, _ = process.communicate()
    assert process.returncode == 0 and ("resuming" in output or "complete" in output)
    assert without_times(load_results(path)) == reference


@pytest.mark.parametrize("signal_number, exit_status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_save_what_is_finished_and_leave_no_process(signal_number, exit_status, tmp_path):
    # So many epochs that there is always a run in hand.
    process = start_sweep(tmp_path, nb_jobs=2, nb_iterations=200, max_number_training_epochs=100,
                          min_number_training_epochs=100)
    path = tmp_path / "benchmark_result.p"
    wait_until(lambda: nb_finished_runs(path) >= 3, process)
    time.sleep(np.random.default_rng(signal_number).uniform(0, 0.3))
    # As a terminal does it, Ctrl-C reaches the workers as well.
    os.killpg(process.pid, signal_number) if signal_number == signal.SIGINT else process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_status
    assert "continues the sweep" in errors and "Traceback" not in errors
    assert nb_finished_runs(path) >= 3

    def group_is_gone():
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(group_is_gone)


def test_more_iterations_widths_shares_and_models_extend_the_file(sweep, tmp_path, reference, capsys):
    larger = dict(nb_iterations=3, nb_neurons_list=[4, 6], training_set_shares=[0.1, 0.05],
                  model_names=["ss_1_dim", "standard_nn", "ss_2_dim", "rank_1"])
    sweep()
    assert sweep(**larger) == 0
    assert "6 of 48 runs are there, 42 to do" in capsys.readouterr().out
    extended = without_times(load_results(tmp_path / "benchmark_result.p"))
    assert sweep(**larger, result_file=tmp_path / "fresh.p") == 0
    assert extended == without_times(load_results(tmp_path / "fresh.p"))
    assert extended["digits"][0.05]["rank_1"][6][0] == reference["digits"][0.05]["rank_1"][6][0]


def test_another_dataset_extends_the_file(sweep, tmp_path, monkeypatch, reference):
    sweep()

    def load_other_data(datasets_folder):
        (X, y), test = load_digits_data()
        return (X + 1, y), test

    names = {load_digits_data: "digits", load_other_data: "other"}
    monkeypatch.setattr(benchmark, "get_dataset_name_for_loading_function", names.__getitem__)
    assert sweep(dataset_loading_functions=[load_other_data, load_digits_data]) == 0
    results = without_times(load_results(tmp_path / "benchmark_result.p"))
    assert results["digits"] == reference["digits"] and results["other"] != reference["digits"]


def test_a_complete_sweep_trains_nothing_and_shows_the_table(sweep, monkeypatch, capsys):
    sweep()
    monkeypatch.setattr(benchmark, "load_shuffled_data", None)  # would fail if called
    capsys.readouterr()
    assert sweep() == 0
    output = capsys.readouterr().out
    assert "complete" in output and "standard_nn" in output


def test_a_second_benchmark_ends_at_once_and_leaves_the_first_alone(sweep, tmp_path, capsys):
    sweep()
    before = (tmp_path / "benchmark_result.p").read_bytes()
    with FileLock(tmp_path / "benchmark_result.p.lock"):
        assert sweep(seed=1) == 2
    assert "another benchmark.py" in capsys.readouterr().err
    assert (tmp_path / "benchmark_result.p").read_bytes() == before


# ---- faults ----

def test_a_dataset_that_cannot_be_loaded_is_recorded_and_the_rest_goes_on(sweep, tmp_path, capsys):
    (tmp_path / "pendigits").mkdir()
    for file in ("pendigits.tra", "pendigits.tes"):
        (tmp_path / "pendigits" / file).write_text("<html>not found</html>")
    assert sweep(dataset_loading_functions=[load_pendigits_data, load_digits_data], datasets_folder=tmp_path) == 1
    results = load_results(tmp_path / "benchmark_result.p")
    failure, = results["failures"]
    assert failure["dataset"] == "pendigits" and failure["share"] is None and "pendigits.tra" in failure["reason"]
    assert len(results["digits"][0.05]["rank_1"][6]) == 2
    assert "pendigits.tra" in capsys.readouterr().out


def test_a_run_that_raises_is_recorded_and_tried_again(sweep, tmp_path, monkeypatch, capsys, reference):
    train_run = benchmark.train_run

    def fail_once(run, data, hyperparameters):
        if run.model_name == "ss_2_dim":
            raise RuntimeError("cosmic ray")
        return train_run(run, data, hyperparameters)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "train_run", fail_once)
        assert sweep() == 1
    failures = load_results(tmp_path / "benchmark_result.p")["failures"]
    assert [(f["model_name"], f["nb_neurons"], f["iteration"]) for f in failures] == [("ss_2_dim", 6, 0), ("ss_2_dim", 6, 1)]
    assert all("cosmic ray" in failure["reason"] for failure in failures)
    assert sweep() == 0
    assert "2 recorded failures are tried again" in capsys.readouterr().out
    assert without_times(load_results(tmp_path / "benchmark_result.p")) == reference


def test_a_run_that_diverges_is_recorded(sweep, tmp_path):
    assert sweep(learning_rate=1e30) == 1
    failures = load_results(tmp_path / "benchmark_result.p")["failures"]
    assert failures and all("loss is nan" in failure["reason"] for failure in failures)


def test_a_share_without_samples_is_recorded_by_name(sweep, tmp_path):
    assert sweep(training_set_shares=[0.05, 0.0001]) == 1
    results = load_results(tmp_path / "benchmark_result.p")
    failure, = results["failures"]
    assert failure["share"] == 0.0001 and "0 of 1437 samples" in failure["reason"]
    assert len(results["digits"][0.05]["rank_1"][6]) == 2


def test_a_killed_worker_costs_nothing_but_time(sweep, tmp_path, reference, monkeypatch):
    train_run = benchmark.train_run
    mark = tmp_path / "killed"

    # A closure is sent to the workers by value, so that it works there although they import the original module.
    def kill_worker_once(run, data, hyperparameters, main_process):
        if run[2] == "ss_2_dim" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run, train_run(Run(*run), data, hyperparameters)

    monkeypatch.setattr(benchmark, "train_run_in_worker", kill_worker_once)
    assert sweep(nb_jobs=2) == 0
    assert mark.exists()
    assert without_times(load_results(tmp_path / "benchmark_result.p")) == reference


def test_a_run_that_kills_its_worker_twice_is_recorded_and_the_rest_goes_on(sweep, tmp_path, monkeypatch):
    train_run = benchmark.train_run

    def kill_worker(run, data, hyperparameters, main_process):
        if run[2] == "ss_2_dim" and run[4] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return run, train_run(Run(*run), data, hyperparameters)

    monkeypatch.setattr(benchmark, "train_run_in_worker", kill_worker)
    assert sweep(nb_jobs=2) == 1
    failure, = load_results(tmp_path / "benchmark_result.p")["failures"]
    assert (failure["model_name"], failure["iteration"]) == ("ss_2_dim", 0) and "died twice" in failure["reason"]
    assert nb_finished_runs(tmp_path / "benchmark_result.p") == 5


@pytest.mark.parametrize("hyperparameters, message", [
    (dict(dataset_loading_functions=[np.load]), "unknown data set loading function load"),
    (dict(dataset_loading_functions=[]), "dataset_loading_functions must be a list"),
    (dict(dataset_loading_functions=load_digits_data), "dataset_loading_functions must be a list"),
    (dict(nb_neurons_list=50), "nb_neurons_list must be a list of one entry or more without repetitions, got 50"),
    (dict(training_set_shares=["0.1"]), "got '0.1'"),
    (dict(training_set_shares=[1, 1.0]), "without repetitions"),
    (dict(model_names="rank_1"), "model_names must be a list"),
    (dict(learning_rate="1e-3"), "learning_rate must be a finite number, got '1e-3'"),
    (dict(min_number_training_epochs=None), "min_number_training_epochs must be a finite number, got None"),
    (dict(use_Adam="no"), "use_Adam must be one of True, False, got 'no'"),
    (dict(device="gpu"), "got 'gpu'"),
    (dict(model_names=["standard_nn", "ss1_dim"]), "unknown model name 'ss1_dim'"),
    (dict(model_names=["rank_1", "rank_1"]), "without repetitions"),
    (dict(training_set_shares=[1.5]), "got 1.5"),
    (dict(nb_neurons_list=[50, 0]), "got 0"),
    (dict(nb_iterations=0), "nb_iterations must be a positive integer, got 0"),
    (dict(learning_rate=-1), "learning_rate must be positive, got -1"),
    (dict(patience=0), "patience must be a positive integer, got 0"),
    (dict(nb_jobs=0), "nb_jobs must be a positive integer, got 0"),
    (dict(joblib_backend="slurm"), "got 'slurm'"),
    (dict(initialisation="zeros"), "got 'zeros'"),
    pytest.param(dict(device="cuda"), "finds 0 GPUs", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
])
def test_hyperparameters_that_cannot_work_are_named_before_anything_runs(hyperparameters, message, sweep, tmp_path, capsys):
    assert sweep(**hyperparameters) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "benchmark_result.p").exists()


def test_a_folder_that_cannot_be_written_is_reported_before_the_first_training(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run_sweep", None)  # would fail if called
    (tmp_path / "file").touch()
    assert sweep(result_file=tmp_path / "file" / "benchmark_result.p") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_costs_no_result(sweep, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(benchmark, "plot_accuracy", lambda results: 1 / 0)
    assert sweep() == 0
    captured = capsys.readouterr()
    assert "no figure: ZeroDivisionError" in captured.err and "standard_nn" in captured.out
    assert nb_finished_runs(tmp_path / "benchmark_result.p") == 6


def test_importing_the_benchmark_runs_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", "import benchmark"], check=True, cwd=tmp_path,
                   env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert not list(tmp_path.iterdir())


# ---- progress ----

def test_progress_prints_at_most_a_line_per_minute_when_redirected(monkeypatch, capsys):
    runs = [Run("digits", 0.1, "rank_1", 5, i) for i in range(5)]
    now = [0.]
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: now[0])

    def results():
        for run in runs:
            now[0] += 25
            yield run, {}

    passed_on = list(benchmark.progress(results(), runs))
    assert passed_on == [(run, {}) for run in runs]
    assert [line.split(" runs")[0] for line in capsys.readouterr().out.splitlines()] == ["3 of 5", "5 of 5"]


# ---- a Dask cluster ----

@pytest.fixture
def dask_cluster():
    distributed = pytest.importorskip("dask.distributed", reason="Dask is not installed")
    with distributed.LocalCluster(2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster


def test_results_on_a_dask_cluster_are_the_same(sweep, tmp_path, reference, dask_cluster):
    assert sweep(joblib_backend="dask", nb_jobs=-1, dask_scheduler_address=dask_cluster.scheduler_address) == 0
    assert without_times(load_results(tmp_path / "benchmark_result.p")) == reference


def test_a_killed_dask_worker_costs_no_result(sweep, tmp_path, dask_cluster):
    from dask.distributed import Client
    path = tmp_path / "benchmark_result.p"
    nb_runs_when_killed = []

    def kill_one_worker():
        with Client(dask_cluster) as client:
            pid = next(iter(client.run(os.getpid).values()))
        wait_until(lambda: nb_finished_runs(path) >= 2)
        os.kill(pid, signal.SIGKILL)
        nb_runs_when_killed.append(nb_finished_runs(path))

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    status = sweep(joblib_backend="dask", nb_jobs=-1, dask_scheduler_address=dask_cluster.scheduler_address,
                   nb_iterations=20, min_number_training_epochs=30, max_number_training_epochs=30)
    killer.join()
    assert status == 0
    assert nb_runs_when_killed[0] < 60 == nb_finished_runs(path)


def test_the_dask_backend_without_dask_says_what_to_install(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    assert sweep(joblib_backend="dask") == 2
    assert 'pip install "dask[distributed]"' in capsys.readouterr().err


def test_a_dask_cluster_that_is_not_there_is_named(sweep, capsys):
    pytest.importorskip("dask.distributed", reason="Dask is not installed")
    import dask
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert sweep(joblib_backend="dask", dask_scheduler_address="tcp://127.0.0.1:9") == 2
    assert "tcp://127.0.0.1:9" in capsys.readouterr().err
