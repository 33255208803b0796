"""study.py from end to end on small sweeps: interrupted, resumed, and what it writes."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import benchmark
import study
from benchmark_results import load_results
from datasets import load_digits_data
from result_tables import compare_with_dense, summary_table
from test_benchmark import nb_finished_runs, without_times

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = dict(model_names=["standard_nn", "ss_2_dim", "rank_1"], min_number_training_epochs=0,
                max_number_training_epochs=3, nb_jobs=1)
NAMES = ["digits_as_in_the_paper_0.2_6", "digits_trained_well_0.2_6"]


def load_mnist_data(datasets_folder):
    raise FileNotFoundError("no such data here")


def prepare(folder, set_value=setattr):
    """Two sweeps of nets of 6 neurons on the digits in place of those of the study, and documents in a folder."""
    for name, value in SETTINGS.items():
        set_value(benchmark, name, value)
    set_value(study, "SWEEPS", [study.Sweep(load_digits_data, protocol, 0.2, (6,), 6) for protocol in study.PROTOCOLS])
    set_value(study, "RESULTS_FOLDER", folder / "results")
    set_value(study, "FIGURES_FOLDER", folder)
    set_value(study, "DOCUMENTS", [folder / "results.md"])
    marks = "\n".join(f"Words.\n<!-- study: {name} -->\nold\n<!-- end -->" for name in ("others", "answer", "runs"))
    (folder / "results.md").write_text(marks + "\nMore words.\n", encoding="utf-8")


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch.setattr)
    return tmp_path


def test_a_study_that_is_interrupted_and_resumed_equals_an_uninterrupted_one(small_study, monkeypatch, capsys):
    assert study.main() == 0
    document = (small_study / "results.md").read_text(encoding="utf-8")
    uninterrupted = [without_times(load_results(small_study / "results" / f"{name}.p")) for name in NAMES]

    folder = small_study / "interrupted"
    folder.mkdir()
    (small_study / "script.py").write_text(f"""
import sys, time
from pathlib import Path
sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
import test_study
from test_study import benchmark, study
test_study.prepare(Path({str(folder)!r}))
add = benchmark.ResultsFile.add
def add_slowly(*arguments):  # so that the first sweep is not finished before it is interrupted
    add(*arguments)
    time.sleep(0.1)
benchmark.ResultsFile.add = add_slowly
sys.exit(study.main())
""")
    process = subprocess.Popen([sys.executable, small_study / "script.py"], start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while nb_finished_runs(folder / "results" / f"{NAMES[0]}.p") < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130 and "python study.py continues" in errors and "Traceback" not in errors
    assert not (folder / "results" / f"{NAMES[1]}.p").exists()
    assert "old" in (folder / "results.md").read_text(encoding="utf-8")  # nothing is written from half the runs

    prepare(folder, monkeypatch.setattr)
    for messages in (("resuming", "18 runs to do"), ("complete", "complete")):
        capsys.readouterr()
        assert study.main() == 0
        output = capsys.readouterr().out
        assert all(f"{name}.p: {message}" in output for name, message in zip(NAMES, messages))
    assert [without_times(load_results(folder / "results" / f"{name}.p")) for name in NAMES] == uninterrupted
    # All but the time that it took is the same.
    without_hours = [re.sub(r"[\d.]+ hours", "", text) for text in (
        document, (folder / "results.md").read_text(encoding="utf-8"))]
    assert without_hours[0] == without_hours[1]


def test_tables_have_the_numbers_of_the_files(small_study):
    assert study.main() == 0
    document = (small_study / "results.md").read_text(encoding="utf-8")
    assert document.count("Words.") == 3 and document.endswith("<!-- end -->\nMore words.\n") and "old" not in document
    assert "36 runs" in document and "No data set is missing" in document
    assert "<!-- study: answer -->\nNo results." in document  # it is about pendigits
    lines = [line for line in document.splitlines() if line.startswith("|")]
    for protocol, name in zip(study.PROTOCOLS, NAMES):
        header, _, *rows = lines[:5]
        del lines[:5]
        assert header == f"| {protocol} | digits, 287 of 1,437 samples, n = 6 |"
        results = load_results(small_study / "results" / f"{name}.p")
        assert results.items() >= study.PROTOCOLS[protocol].items()
        differences = {row["model_name"]: row for row in compare_with_dense(results)}
        for row, family, line in zip(summary_table(results), ("dense", "SSS-2", "rank-1"), rows, strict=True):
            expected = f"{row['test_accuracy_mean']:.3f} ± {row['test_accuracy_sd']:.3f}"
            if difference := differences.get(row["model_name"]):
                low, high = difference["interval_low"], difference["interval_high"]
                shown = f"{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}".replace("-", "−")
                expected += f" (**{shown}**)" if difference["verdict"] != "undecided" else f" ({shown})"
            assert line == f"| {family} | {expected} |"
    assert not lines
    assert (small_study / "study_others.png").stat().st_size > 1000


def test_a_data_set_that_is_missing_is_named_and_left_out(small_study, monkeypatch):
    monkeypatch.setattr(study, "SWEEPS", [*study.SWEEPS, *(
        study.Sweep(load_mnist_data, protocol, 1.0, (6,), 6) for protocol in study.PROTOCOLS)])
    assert study.main() == 1
    document = (small_study / "results.md").read_text(encoding="utf-8")
    assert "Missing: MNIST." in document and "36 runs" in document
    assert "| trained well | digits, 287 of 1,437 samples, n = 6 |" in document


def test_the_answer_is_that_of_the_differences_between_runs(tmp_path):
    """Of results that are made up: accuracies are chosen, a net of 50 neurons has 3910, 1752, ... parameters."""
    sizes = {("standard_nn", 50): 3910, ("ss_1_dim", 50): 1752, ("ss_2_dim", 50): 2220, ("standard_nn", 100): 12810,
             ("ss_1_dim", 100): 3502, ("ss_2_dim", 100): 4470}
    gains = {("as in the paper", "ss_1_dim"): 0.1, ("as in the paper", "ss_2_dim"): 0.0,
             ("trained well", "ss_1_dim"): -0.1, ("trained well", "ss_2_dim"): -0.01}
    noise = np.linspace(-0.01, 0.01, 10)

    def make_runs(sweep):
        accuracy = 0.9 if sweep.protocol == "trained well" else 0.6
        return {("pendigits", sweep.share, nb_neurons, name): {i: {
            "test_accuracy": accuracy + gains.get((sweep.protocol, name), 0) + noise[i] * (name != "standard_nn"),
            "nb_model_parameters": size, "accuracy_history": [0.5] * 201, "val_accuracy_history": [0.5] * 201,
            "training_time": 360.0} for i in range(10)}
            for (name, nb_neurons), size in sizes.items() if nb_neurons in sweep.nb_neurons_list}

    sweeps = [study.Sweep(study.load_pendigits_data, protocol, share, widths, 10) for protocol in study.PROTOCOLS
              for share, widths in ((0.1, (50,)), (1.0, (50,)), (0.1, (100,)))]
    blocks = study.make_blocks({sweep: make_runs(sweep) for sweep in sweeps}, {}, tmp_path)
    answer = " ".join(blocks["answer"].split())
    assert "shares 0.1, 1 of" in answer
    assert "in the paper, test better in 2 (by up to 0.100) and worse in 0 of 4 comparisons with the dense" in answer
    assert "accuracy of 0.600, 0.600." in answer and "(dense: 0.900, 0.900)" in answer
    assert "they test better in 0 and worse in 4 (by up to 0.100) of 4 comparisons" in answer
    assert "SSS-2 with 57% of the parameters differs by −0.010 ± 0.005, −0.010 ± 0.005 at these shares" in answer
    assert answer.endswith("−0.100 ± 0.005 (SSS-1 of 100 neurons, 3,502 parameters; dense of 50, 3,910).")
    assert blocks["widths"].count("\n") == 1
    # (0.70 - 0.70) and (0.60 - 0.66) in standard errors of the authors' 24 and these 10 runs
    assert "| SSS-1 | 0.70 ± 0.08 | 0.70 ± 0.01 | 0.0 |" in blocks["authors"]
    assert "| dense | 0.66 ± 0.12 | 0.60 ± 0.00 | 2.4 |" in blocks["authors"]
    assert "The largest difference is 3.5 standard errors" in blocks["authors"]
    assert blocks["runs"].startswith("180 runs, 18.0 hours")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"study_{name}.{ending}" for name in ("differences", "widths_as_in_the_paper", "widths_trained_well", "curves")
        for ending in ("png", "pdf")}


def test_a_part_of_cifar10_is_read_and_what_is_no_array_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i, 9]}, protocol=4))
    (X_train, y_train), (X_test, y_test) = study.load_cifar10_data(tmp_path)
    assert y_train.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and y_test.tolist() == [5, 9]
    assert X_train.shape == (10, 3, 32, 32) and X_train.dtype == X_test.dtype == np.float32
    assert X_test[1, 2, 3, 4] == data[1, 2 * 1024 + 3 * 32 + 4]
    (folder / "test_batch").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(ValueError, match="pathlib"):
        study.load_cifar10_data(tmp_path)


def test_the_documents_name_blocks_that_there_are():
    names = {name for path in study.DOCUMENTS for name in re.findall(r"<!-- study: (\w+) -->", path.read_text("utf-8"))}
    assert names == {"answer", "pendigits", "widths", "others", "runs", "authors"}
    for path in study.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- study: ") == text.count("<!-- end -->")
