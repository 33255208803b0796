"""The file of results: safe to read, complete at any moment, never lost; which of its runs a sweep takes over."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmark_results
from benchmark_results import (ResultsFile, Run, digest_arrays, digest_code, keep_file, load_results, lock_results,
                               save_results)

HYPERPARAMETERS = dict(dataset_names=["digits"], training_set_shares=[0.1], model_names=["rank_1"], nb_neurons_list=[5],
                       nb_iterations=3, seed=0, nb_jobs=2)
RUN = Run("digits", 0.1, "rank_1", 5, 0)
ENVIRONMENT = {"torch": "2", "numpy": "2", "scikit-learn": "1"}


def open_file(path, environment=ENVIRONMENT, code="1", data="1", **changes):
    """code and data: digests, one for all or {family or data set: digest}"""
    hyperparameters = {**HYPERPARAMETERS, **changes}
    code_digests = {name: code if isinstance(code, str) else code[name] for name in hyperparameters["model_names"]}
    return ResultsFile(path, hyperparameters, environment, code_digests,
                       lambda dataset: data if isinstance(data, str) else data[dataset])


def finished_file(path, data="1", **changes):
    file = open_file(path, data=data, **changes)
    for run in file.missing_runs:
        file.record_data_digest(run.dataset, data if isinstance(data, str) else data[run.dataset])
        file.add(run, {"test_accuracy": run.iteration / 10})
    file.close()
    return file


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "benchmark_result.p"


def kept_files(path):
    return list(path.parent.glob("benchmark_result_*.p"))


# ---- reading and writing ----

def test_what_is_saved_is_loaded(path):
    file = finished_file(path)
    assert load_results(path) == pickle.loads(path.read_bytes()) == file.results
    assert [each.name for each in path.parent.iterdir()] == ["benchmark_result.p"]


def test_loading_results_imports_no_library():
    subprocess.run([sys.executable, "-c", "import sys, benchmark_results; sys.exit('numpy' in sys.modules)"],
                   check=True, cwd=Path(benchmark_results.__file__).parent)


@pytest.mark.parametrize("content, reason", [
    ("truncated", "benchmark_result.p is refused, it is no intact file of results"),
    (pickle.dumps({"a": 1}), "benchmark_result.p is refused, it holds no results"),
    (pickle.dumps({name: None for name in HYPERPARAMETERS} | {"failures": []}), "'environment'"),
    # os.system("touch executed")
    (b"cposix\nsystem\n(S'touch executed'\ntR.", "it wants posix.system, and plain Python data needs none")])
def test_a_file_that_is_no_results_file_is_kept_and_nothing_in_it_executed(content, reason, path):
    if content == "truncated":
        finished_file(path)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    file = open_file(path)
    assert "starting afresh" in file.message and reason in file.message and len(file.missing_runs) == 3
    kept, = kept_files(path)
    assert kept.read_bytes() == content and kept.name in file.message
    assert not Path("executed").exists()


def test_only_plain_data_can_be_saved_and_a_failed_save_keeps_the_old_file(path):
    save_results({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="Path"):
        save_results({"a": Path()}, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["benchmark_result.p"]


def test_kept_files_do_not_replace_each_other(path):
    assert keep_file(path) is None
    for content in (b"1", b"2", b"3"):
        path.write_bytes(content)
        os.utime(path, (0, 0))
        assert keep_file(path).read_bytes() == content
    assert sorted(file.read_bytes() for file in kept_files(path)) == [b"1", b"2", b"3"]


def test_a_link_stays_one_and_what_it_names_is_written_kept_and_locked_and_keeps_its_mode(path):
    target = path.parent / "scratch" / "target.p"
    target.parent.mkdir()
    path.symlink_to(target)
    old = finished_file(path)
    path.with_suffix(".new").touch()
    assert load_results(target) == old.results
    assert target.stat().st_mode == path.with_suffix(".new").stat().st_mode  # that of the umask
    target.chmod(0o664)
    save_results(old.results, path)
    assert path.is_symlink() and target.stat().st_mode & 0o777 == 0o664
    open_file(path, seed=1)
    kept, = target.parent.glob("target_*.p")
    assert load_results(kept) == old.results and load_results(target)["seed"] == 1 and path.is_symlink()
    assert {file.stat().st_mode & 0o777 for file in (kept, target)} == {0o664}
    for _ in range(2):  # one sweep after the other has the lock
        with lock_results(path), pytest.raises(ValueError, match="another benchmark.py"), lock_results(target):
            pass


# ---- saving while the sweep runs ----

def test_a_finished_run_is_on_disk_at_once(path, monkeypatch):
    monkeypatch.setattr(benchmark_results, "SHARE_OF_TIME", 1e9)  # no pause follows a save
    file = open_file(path)
    for nb_runs, run in enumerate(file.missing_runs, start=1):
        file.add(run, {"test_accuracy": 0.5})
        assert len(load_results(path)["digits"][0.1]["rank_1"][5]) == nb_runs


def test_saves_that_are_slow_become_rare(path, monkeypatch):
    saves = []
    monkeypatch.setattr(benchmark_results, "save_results", lambda results, path: saves.append(path))
    monkeypatch.setattr(benchmark_results, "SHARE_OF_TIME", 1e-9)  # of which any save takes more
    file = open_file(path, nb_iterations=100)
    for run in file.missing_runs:
        file.add(run, {})
    file.close()
    assert len(saves) == 3  # when it was opened, after the first run, and in the end


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the file that is written in Linux's /proc")
def test_a_disk_that_fills_up_loses_nothing(path, monkeypatch, capsys):
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
    assert "cannot be saved now" in capsys.readouterr().err
    with pytest.raises(OSError, match="no space left on device.*all results are in (.*)") as caught:
        file.close()
    assert load_results(str(caught.value).split("all results are in ")[1]) == file.results
    assert load_results(path)["digits"][0.1]["rank_1"][5] == {}


# ---- which runs are taken over ----

def test_the_same_sweep_or_a_larger_one_resumes_and_knows_how_much_is_left(path):
    file = open_file(path)
    file.record_data_digest("digits", "1")
    file.add(RUN, {"test_accuracy": 0.5})
    file.add_failure("out of luck", *RUN[:4], 1)
    file.close()
    assert load_results(path)["failures"][0] == {**RUN._asdict(), "iteration": 1, "reason": "out of luck"}
    again = open_file(path, nb_jobs=1, nb_iterations=4)
    assert again.message == "resuming: 1 of 4 runs are there, 3 to do, 1 recorded failures are tried again"
    assert again.missing_runs == [RUN._replace(iteration=i) for i in (1, 2, 3)]
    assert again.results == load_results(path) == {
        **HYPERPARAMETERS, "nb_jobs": 1, "nb_iterations": 4, "failures": [],
        "digits": {0.1: {"rank_1": {5: {0: {"test_accuracy": 0.5}}}}},
        "environment": {**ENVIRONMENT, "code_digests": {"rank_1": "1"}, "data_digests": {"digits": "1"},
                        "resumed": [{**ENVIRONMENT, "code_digests": {"rank_1": "1"}, "data_digests": {}}]}}


@pytest.mark.parametrize("change, reason", [
    (dict(seed=1), "seed was 0, is 1"), (dict(new_hyperparameter=1), "new_hyperparameter was None, is 1"),
    (dict(environment={**ENVIRONMENT, "torch": "9"}), "another version of torch")])
def test_another_sweep_keeps_the_old_file_and_starts_afresh(change, reason, path):
    old = finished_file(path)
    new = open_file(path, **change)
    assert reason in new.message and len(new.missing_runs) == len(new.runs)
    kept, = kept_files(path)
    assert load_results(kept) == old.results


TWO_OF_EACH = dict(dataset_names=["digits", "own"], model_names=["rank_1", "ss_1_dim"], nb_iterations=1)


@pytest.mark.parametrize("change", [
    dict(dataset_names=["own"]), dict(training_set_shares=[0.2]), dict(model_names=["ss_1_dim"]),
    dict(nb_neurons_list=[6]), dict(nb_iterations=0)])
def test_what_is_taken_out_of_the_lists_stays_in_the_file_and_is_there_when_it_is_put_back(change, path):
    old = finished_file(path, **TWO_OF_EACH)
    smaller = finished_file(path, **{**TWO_OF_EACH, **change})
    again = open_file(path, **TWO_OF_EACH)
    assert again.message == "complete: all 4 runs are there" and not kept_files(path)
    assert {**again.results, "environment": {}} == {**old.results, "environment": {}} | {
        name: again.results[name] for name in again.results["dataset_names"]}
    assert all(again.results[run.dataset][run.share][run.model_name][5][0] == {"test_accuracy": 0.0}
               for run in old.runs)
    assert all(smaller.results[name] == value for name, value in change.items())


@pytest.mark.parametrize("change, reason, lost", [
    (dict(data={"digits": "1", "own": "2"}), "the data of own have changed", ("own", None)),
    (dict(code={"rank_1": "2", "ss_1_dim": "1"}), "the code of rank_1 has changed", (None, "rank_1"))])
def test_changed_data_or_code_of_a_family_cost_only_the_runs_made_with_them(change, reason, lost, path):
    old = finished_file(path, **TWO_OF_EACH)
    new = open_file(path, **TWO_OF_EACH, **change)
    assert new.message.startswith("resuming: 2 of 4 runs are there, 2 to do; " + reason)
    assert new.missing_runs == [run for run in new.runs if run.dataset == lost[0] or run.model_name == lost[1]]
    kept, = kept_files(path)
    assert kept.name in new.message and load_results(kept) == old.results
    assert finished_file(path, **TWO_OF_EACH, **change).missing_runs == []
    assert open_file(path, **TWO_OF_EACH, **change).message == "complete: all 4 runs are there"


def test_the_code_of_a_family_that_was_out_of_the_lists_is_compared_when_it_is_put_back(path):
    finished_file(path, **TWO_OF_EACH)
    finished_file(path, **{**TWO_OF_EACH, "model_names": ["ss_1_dim"]})
    again = open_file(path, **TWO_OF_EACH, code={"rank_1": "2", "ss_1_dim": "1"})
    assert "2 of 4 runs are there, 2 to do; the code of rank_1 has changed" in again.message


def test_runs_whose_data_cannot_be_loaded_any_more_are_kept_and_others_are_refused(path):
    finished_file(path)
    file = open_file(path, data={}, nb_iterations=4)
    assert "3 of 4 runs are there" in file.message and not kept_files(path)
    assert file.message.endswith("whether the data of digits are still the same is unknown ('digits')")
    file.record_data_digest("digits", "1")
    with pytest.raises(ValueError, match="the data are others than those of the runs that are there"):
        file.record_data_digest("digits", "2")


def test_a_data_set_that_is_named_like_another_entry_of_the_results_is_refused(path):
    with pytest.raises(ValueError, match="a data set cannot be named seed"):
        open_file(path, dataset_names=["seed"])
    assert not path.exists()


def test_the_digest_of_arrays_is_of_their_dtypes_shapes_values_and_order():
    X, y = np.arange(6.0).reshape(2, 3), np.arange(3)
    assert digest_arrays(X, y) == digest_arrays(np.asfortranarray(X), y.copy())
    different = [(y, X), (X.reshape(3, 2), y), (X.astype(np.float32), y), (X + [0, 0, 1e-9], y), (X,)]
    assert len({digest_arrays(X, y), *(digest_arrays(*arrays) for arrays in different)}) == 6


def test_the_digest_of_code_is_without_comments_docstrings_and_layout(tmp_path):
    def digest(code, *others):
        file = tmp_path / "file.py"
        file.write_text(code, encoding="utf-8")
        return digest_code(file, *others)

    code = "def f(x):\n    return x + 1\n"
    assert digest(code) == digest('"""About é."""\n\n# why\ndef f( x ):\n    """What."""\n    return (x +\n        1)')
    others = [digest("def f(x):\n    return x + 2\n"), digest(code + "f = None"), digest(code, finished_file),
              digest(code, open_file), digest(code, "{'statespace_dim': 1}")]
    assert len({digest(code), *others}) == 6
