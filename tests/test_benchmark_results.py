"""The file of results: safe to read, complete at any moment, never lost."""

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmark_results
from benchmark_results import ResultsFile, Run, get_environment, load_results, save_results

PROJECT = Path(__file__).resolve().parents[1]
HYPERPARAMETERS = dict(dataset_names=["digits"], training_set_shares=[0.1], model_names=["rank_1"], nb_neurons_list=[5],
                       nb_iterations=3, seed=0, nb_jobs=2)
RUN = Run("digits", 0.1, "rank_1", 5, 0)


class CallsOsSystem:
    def __reduce__(self):
        return os.system, ("touch executed",)


def open_file(path, environment=None, **changes):
    return ResultsFile(path, {**HYPERPARAMETERS, **changes}, environment or {"source_digest": "1"})


def finished_file(path, **changes):
    file = open_file(path, **changes)
    for run in file.missing_runs:
        file.add(run, {"test_accuracy": run.iteration / 10})
    file.close()
    return file


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "benchmark_result.p"


def kept_files(path):
    return [file for file in path.parent.glob("benchmark_result_*.p")]


def test_what_is_saved_is_loaded(path):
    file = finished_file(path)
    assert load_results(path) == file.results
    with path.open("rb") as opened:
        assert pickle.load(opened) == file.results
    assert [each.name for each in path.parent.iterdir()] == ["benchmark_result.p"]


def test_loading_results_imports_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, benchmark_results; sys.exit('torch' in sys.modules)"],
                   check=True, cwd=PROJECT)


def test_a_pickle_that_wants_code_is_refused_by_name_and_not_executed(path):
    path.write_bytes(pickle.dumps({"dataset_names": CallsOsSystem()}))
    with pytest.raises(ValueError, match=r"benchmark_result\.p is refused.*(posix|nt)\.system"):
        load_results(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps([1, 2]), pickle.dumps({"a": 1}),
                                     pickle.dumps({name: None for name in HYPERPARAMETERS} | {"failures": []}),
                                     pickle.dumps({"dataset_names": CallsOsSystem()}), "truncated"])
def test_a_file_that_is_no_results_file_is_kept_and_the_sweep_starts_afresh(content, path):
    if content == "truncated":
        finished_file(path)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    file = open_file(path)
    file.close()
    assert "starting afresh" in file.message and len(file.missing_runs) == 3
    kept, = kept_files(path)
    assert kept.read_bytes() == content and kept.name in file.message
    assert not Path("executed").exists()


def test_a_missing_file_is_a_file_not_found_error(path):
    with pytest.raises(FileNotFoundError, match="benchmark_result.p does not exist"):
        load_results(path)


def test_only_plain_data_can_be_saved_and_a_failed_save_keeps_the_old_file(path):
    save_results({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="Path"):
        save_results({"a": Path()}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["benchmark_result.p"]


def test_a_finished_run_is_on_disk_at_once(path):
    file = open_file(path)
    for nb_runs, run in enumerate(file.missing_runs, start=1):
        file.add(run, {"test_accuracy": 0.5})
        deadline = time.monotonic() + 30
        while len(load_results(path)["digits"][0.1]["rank_1"][5]) < nb_runs:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    file.close()


def test_slow_saves_become_rare(path, monkeypatch):
    saves = []

    def save_slowly(results, path):
        saves.append(time.monotonic())
        time.sleep(0.05)

    monkeypatch.setattr(benchmark_results, "save_results", save_slowly)
    file = open_file(path, nb_iterations=100)
    del saves[:]
    start = time.monotonic()
    for run in file.missing_runs:
        file.add(run, {})
        time.sleep(0.02)
    end = time.monotonic()
    file.close()
    # A save of 0.05 s may take 2 % of the time, that is one in 2.5 s, and there is the one at the end.
    assert 2 <= len(saves) <= (end - start) / 2.5 + 2


def test_the_same_sweep_again_resumes_and_knows_how_much_is_left(path):
    file = open_file(path)
    file.add(RUN, {"test_accuracy": 0.5})
    file.add_failure("out of luck", *RUN[:4], 1)
    file.close()
    again = open_file(path)
    again.close()
    assert "1 of 3 runs are there, 2 to do, 1 recorded failures are tried again" in again.message
    assert [run.iteration for run in again.missing_runs] == [1, 2]
    assert again.results["failures"] == [] and again.results["digits"][0.1]["rank_1"][5] == {0: {"test_accuracy": 0.5}}


@pytest.mark.parametrize("change", [dict(nb_iterations=4), dict(nb_neurons_list=[3, 5]), dict(dataset_names=["digits", "b"]),
                                    dict(training_set_shares=[0.1, 1.0]), dict(model_names=["standard_nn", "rank_1"]),
                                    dict(nb_jobs=1)])
def test_a_larger_sweep_extends_the_file(change, path):
    finished_file(path)
    extended = finished_file(path, **change)
    assert "starting afresh" not in extended.message and not kept_files(path)
    results, fresh = load_results(path), finished_file(path.with_name("fresh.p"), **change).results
    resumed = results["environment"].pop("resumed", [])
    assert results == fresh and resumed == ([] if "nb_jobs" in change else [fresh["environment"]])


@pytest.mark.parametrize("change, reason", [
    (dict(seed=1), "seed was 0, is 1"), (dict(nb_iterations=2), "nb_iterations was 3"),
    (dict(nb_neurons_list=[6]), "nb_neurons_list lacks 5"), (dict(dataset_names=["b"]), "dataset_names lacks digits"),
    (dict(new_hyperparameter=1), "new_hyperparameter was None, is 1"),
    (dict(environment={"source_digest": "2"}), "the source files have changed"),
    (dict(environment={"source_digest": "1", "torch": "9"}), "another version of torch")])
def test_another_sweep_keeps_the_old_file_and_starts_afresh(change, reason, path):
    old = finished_file(path)
    new = open_file(path, **change)
    new.close()
    assert reason in new.message and len(new.missing_runs) == len(new.runs)
    kept, = kept_files(path)
    assert load_results(kept) == old.results


def test_kept_files_do_not_replace_each_other(path):
    for seed in range(4):
        finished_file(path, seed=seed)
    assert sorted(load_results(file)["seed"] for file in kept_files(path)) == [0, 1, 2]


def test_a_full_disk_is_reported_before_the_first_training(path, monkeypatch):
    monkeypatch.setattr(benchmark_results.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="0.0 MB left"):
        open_file(path)
    assert not path.exists()


def test_a_full_disk_leaves_a_file_of_another_sweep_where_it_is(path, monkeypatch):
    old = finished_file(path)
    monkeypatch.setattr(benchmark_results.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="0.0 MB left"):
        open_file(path, seed=1)
    assert load_results(path) == old.results and not kept_files(path)


def test_a_complete_file_needs_no_room_on_the_disk(path, monkeypatch):
    finished_file(path)
    monkeypatch.setattr(benchmark_results.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "complete" in finished_file(path).message


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the file that is written in Linux's /proc")
def test_a_disk_that_fills_up_loses_nothing(path, monkeypatch):
    file = open_file(path)
    fsync = os.fsync

    def fail(descriptor):
        if str(path.parent) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "no space left on device")
        fsync(descriptor)

    monkeypatch.setattr(benchmark_results.os, "fsync", fail)
    monkeypatch.setenv("TMPDIR", str(path.parent.parent))
    monkeypatch.setattr(benchmark_results.tempfile, "tempdir", None)
    file.add(RUN, {"test_accuracy": 0.5})
    with pytest.raises(OSError, match="no space left on device.*all results are in (.*)") as caught:
        file.close()
    elsewhere = str(caught.value).split("all results are in ")[1]
    assert load_results(elsewhere) == file.results
    assert load_results(path)["digits"][0.1]["rank_1"][5] == {}


def test_the_digest_of_the_source_leaves_out_the_hyperparameters(tmp_path):
    script = tmp_path / "script.py"

    def digest(hyperparameters, code):
        script.write_text(f"import this\n\n# ====\n{hyperparameters}\n# ====\n{code}\n")
        return get_environment("cpu", [script])["source_digest"]

    assert digest("seed = 0", "run()") == digest("seed = 1", "run()") != digest("seed = 0", "run(2)")


def test_the_benchmark_has_its_hyperparameters_in_such_a_block():
    _, block, code = (PROJECT / "benchmark.py").read_text().split("\n# ====", 2)
    assert "\nseed = 0" in block and "MODEL_FAMILIES" in code
