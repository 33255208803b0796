"""The file of results: safe to read, complete at any moment, never lost."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmark_results
from benchmark_results import ResultsFile, Run, load_results, lock_results, save_in_the_end, save_results

PROJECT = Path(__file__).resolve().parents[1]
HYPERPARAMETERS = dict(dataset_names=["digits"], training_set_shares=[0.1], model_names=["rank_1"], nb_neurons_list=[5],
                       nb_iterations=3, seed=0, nb_jobs=2)
RUN = Run("digits", 0.1, "rank_1", 5, 0)


class CallsOsSystem:
    def __reduce__(self):
        return os.system, ("touch executed",)


def open_file(path, environment={"torch": "2"}, code="1", data="1", **changes):
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


def test_what_is_saved_is_loaded(path):
    file = finished_file(path)
    assert load_results(path) == file.results
    with path.open("rb") as opened:
        assert pickle.load(opened) == file.results
    assert [each.name for each in path.parent.iterdir()] == ["benchmark_result.p"]


def test_loading_results_imports_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, benchmark_results; sys.exit('torch' in sys.modules)"],
                   check=True, cwd=PROJECT)


@pytest.mark.parametrize("content, reason", [
    (b"<html>", "benchmark_result.p is refused, it is no intact file of results"),
    ("truncated", "benchmark_result.p is refused, it is no intact file of results"),
    (pickle.dumps({"a": 1}), "benchmark_result.p is refused, it holds no results"),
    (pickle.dumps({name: None for name in HYPERPARAMETERS} | {"failures": []}), "not iterable"),
    (pickle.dumps({"dataset_names": CallsOsSystem()}), f"it wants {os.name}.system, and plain Python data needs none")])
def test_a_file_that_is_no_results_file_is_kept_and_nothing_in_it_executed(content, reason, path):
    if content == "truncated":
        finished_file(path)
        content = path.read_bytes()[:-10]
    path.write_bytes(content)
    file = open_file(path)
    file.close()
    assert "starting afresh" in file.message and reason in file.message and len(file.missing_runs) == 3
    kept, = kept_files(path)
    assert kept.read_bytes() == content and kept.name in file.message
    assert not Path("executed").exists()


def test_a_missing_file_is_a_file_not_found_error(path):
    with pytest.raises(FileNotFoundError, match="benchmark_result.p does not exist"):
        load_results(path)


def test_a_tilde_is_the_home_folder(path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):  # on Windows
        monkeypatch.setenv(variable, str(path.parent))
    finished_file(path)
    assert load_results("~/benchmark_result.p") == load_results(path)


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


def test_saves_that_are_slow_become_rare(path, monkeypatch):
    saves = []
    monkeypatch.setattr(benchmark_results, "save_results", lambda results, path: saves.append(path))
    monkeypatch.setattr(ResultsFile, "LARGEST_SHARE_OF_TIME", 1e-9)  # of which any save takes more
    file = open_file(path, nb_iterations=100)
    file.add(RUN, {})
    while len(saves) < 2:
        time.sleep(0.001)
    for run in file.missing_runs:
        file.add(run, {})
        time.sleep(0.001)
    file.close()
    assert len(saves) == 3  # when it was opened, after the first run, and in the end


def test_the_same_sweep_or_a_larger_one_resumes_and_knows_how_much_is_left(path):
    file = open_file(path)
    file.record_data_digest("digits", "1")
    file.add(RUN, {"test_accuracy": 0.5})
    file.add_failure("out of luck", *RUN[:4], 1)
    file.close()
    assert load_results(path)["failures"][0] == {**RUN._asdict(), "iteration": 1, "reason": "out of luck"}
    again = open_file(path, nb_jobs=1, nb_iterations=4)
    again.close()
    assert "1 of 4 runs are there, 3 to do, 1 recorded failures are tried again" in again.message
    assert again.missing_runs == [RUN._replace(iteration=i) for i in (1, 2, 3)]
    assert again.results == load_results(path) == {
        **HYPERPARAMETERS, "nb_jobs": 1, "nb_iterations": 4, "failures": [],
        "digits": {0.1: {"rank_1": {5: {0: {"test_accuracy": 0.5}}}}},
        "environment": {"torch": "2", "code_digests": {"rank_1": "1"}, "data_digests": {"digits": "1"},
                        "resumed": [{"torch": "2"}]}}


@pytest.mark.parametrize("change, reason", [
    (dict(seed=1), "seed was 0, is 1"), (dict(nb_iterations=2), "nb_iterations was 3"),
    (dict(nb_neurons_list=[6]), "nb_neurons_list lacks 5"), (dict(dataset_names=["b"]), "dataset_names lacks digits"),
    (dict(new_hyperparameter=1), "new_hyperparameter was None, is 1"),
    (dict(environment={"torch": "9"}), "another version of torch"),
    (dict(code="2"), "the code has changed"), (dict(data="2"), "the data of digits have changed")])
def test_another_sweep_keeps_the_old_file_and_starts_afresh(change, reason, path):
    old = finished_file(path)
    new = open_file(path, **change)
    new.close()
    assert reason in new.message and len(new.missing_runs) == len(new.runs)
    kept, = kept_files(path)
    assert load_results(kept) == old.results


TWO_DATASETS = dict(dataset_names=["digits", "own"], model_names=["rank_1", "ss_1_dim"], nb_iterations=1)


@pytest.mark.parametrize("change, reason, lost", [
    (dict(data={"digits": "1", "own": "2"}), "the data of own have changed", ("own", None)),
    (dict(code={"rank_1": "2", "ss_1_dim": "1"}), "the code of rank_1 has changed", (None, "rank_1"))])
def test_changed_data_or_code_of_a_family_cost_only_the_runs_made_with_them(change, reason, lost, path):
    old = finished_file(path, **TWO_DATASETS)
    new = open_file(path, **TWO_DATASETS, **change)
    new.close()
    assert new.message.startswith("resuming: 2 of 4 runs are there, 2 to do; " + reason)
    assert new.missing_runs == [run for run in new.runs if run.dataset == lost[0] or run.model_name == lost[1]]
    kept, = kept_files(path)
    assert kept.name in new.message and load_results(kept) == old.results
    assert finished_file(path, **TWO_DATASETS, **change).missing_runs == []
    again = open_file(path, **TWO_DATASETS, **change)
    again.close()
    assert again.message == "complete: all 4 runs are there" and kept_files(path) == [kept]


def test_added_families_and_data_sets_need_no_digests_in_the_old_file(path):
    finished_file(path, nb_iterations=1)
    larger = open_file(path, **TWO_DATASETS)
    larger.close()
    assert "1 of 4 runs are there" in larger.message and not kept_files(path)
    assert larger.results["environment"]["code_digests"] == {"rank_1": "1", "ss_1_dim": "1"}


def test_runs_whose_data_cannot_be_loaded_any_more_are_kept_and_others_are_refused(path):
    finished_file(path)
    file = open_file(path, data={}, nb_iterations=4)
    assert "3 of 4 runs are there" in file.message and not kept_files(path)
    assert file.message.endswith("whether the data of digits are still the same is unknown (KeyError: 'digits')")
    file.record_data_digest("digits", "1")
    with pytest.raises(ValueError, match="the data are others than those of the runs that are there"):
        file.record_data_digest("digits", "2")
    file.close()


def test_a_file_of_an_earlier_version_without_digests_is_kept(path):
    results = finished_file(path).results
    old = {**results, "environment": {"torch": "2", "source_digest": "1"}}
    save_results(old, path)
    new = open_file(path)
    new.close()
    assert "starting afresh" in new.message and "an earlier version wrote it" in new.message
    assert load_results(*kept_files(path)) == old and len(new.missing_runs) == 3


def test_kept_files_do_not_replace_each_other(path):
    for seed in range(4):
        finished_file(path, seed=seed)
    assert sorted(load_results(file)["seed"] for file in kept_files(path)) == [0, 1, 2]


def test_a_full_disk_is_reported_before_the_first_training_unless_the_file_is_complete(path, monkeypatch):
    old = finished_file(path)
    monkeypatch.setattr(benchmark_results.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    for other_path in (path, path.with_name("new.p")):
        with pytest.raises(OSError, match="1 kB left, but the results of 3 runs may need 6[01] kB"):
            open_file(other_path, seed=1)
    monkeypatch.setattr(benchmark_results, "BYTES_PER_RUN", 0)
    monkeypatch.setattr(benchmark_results.shutil, "disk_usage", lambda folder: type(
        "Usage", (), {"free": path.stat().st_size - 1}))
    with pytest.raises(OSError, match="0 kB left, but the results of 3 runs may need 1 kB"):  # for the copy
        open_file(path, seed=1)
    assert load_results(path) == old.results and len(list(path.parent.iterdir())) == 1
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


def test_a_file_that_cannot_be_replaced_for_a_moment_is_replaced_then(path, monkeypatch):
    refused, replace = set(), os.replace

    def refuse_once(source, target):
        if len(refused) < 3:
            refused.add(len(refused))
            raise PermissionError(errno.EACCES, "a virus scanner reads it")
        replace(source, target)

    finished_file(path, seed=1)
    for name in ("first save", "last save"):
        refused.clear()
        with monkeypatch.context() as patch:
            if name == "first save":
                patch.setattr(benchmark_results.os, "replace", refuse_once)
            file = open_file(path)  # keeps the old one
            patch.setattr(benchmark_results.os, "replace", refuse_once)
            file.add(RUN, {"test_accuracy": 0.5})
            file.close()
        assert len(refused) == 3 and load_results(path) == file.results


def test_results_that_cannot_take_their_place_in_the_end_are_elsewhere_and_an_older_file_stays(path, monkeypatch):
    path.write_bytes(b"old")
    replace = os.replace

    def refuse_there(source, target):
        if path.parent in Path(target).parents:
            raise PermissionError(errno.EACCES, "somebody has it open")
        replace(source, target)

    monkeypatch.setattr(benchmark_results.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(benchmark_results.os, "replace", refuse_there)
    with pytest.raises(OSError, match="somebody has it open.*all results are in ") as caught:
        save_in_the_end({"a": 1}, path, keep_old=True)
    assert pickle.loads(Path(str(caught.value).split("all results are in ")[1]).read_bytes()) == {"a": 1}
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def file_system_without_locks(request, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="no such file systems on Windows")

    def flock(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_named_and_two_sweeps_still_exclude_each_other(
        file_system_without_locks, path, capsys):
    with lock_results(path):
        assert f"{path} has no locks" in capsys.readouterr().err
        with pytest.raises(ValueError, match="another benchmark.py is writing .*, delete .*in_use"), lock_results(path):
            pass
    with lock_results(path):  # again
        pass


@pytest.mark.parametrize("file_system_without_locks", [errno.ENOLCK], indirect=True)
def test_a_killed_process_holds_no_lock_even_where_there_are_none(file_system_without_locks, path):
    child = os.fork()
    if not child:
        with lock_results(path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert Path(f"{path}.in_use").exists()
    with lock_results(path):
        pass


def test_one_sweep_after_the_other_has_the_lock_and_other_problems_with_it_are_not_taken_for_another(path, monkeypatch):
    for _ in range(2):
        with lock_results(path):
            with pytest.raises(ValueError, match="another benchmark.py is writing"), lock_results(path):
                pass
    monkeypatch.setattr("fcntl.flock", lambda *arguments: os.stat("no_such_file"))
    with pytest.raises(FileNotFoundError, match="no_such_file"), lock_results(path):
        pass
