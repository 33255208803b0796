"""The study on small sweeps: interrupted, resumed, repeated, without data; its choices; its numbers in README, docs."""

import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import benchmark
from datasets import load_digits_data
from plot_results import format_family
from study import documents, run
from sweep_results import make_failure, make_results, make_run, set_accuracies

PROJECT = Path(__file__).resolve().parents[1]
NUMBERS = PROJECT / "study" / "results.json"
FAMILIES = ["standard_nn", "ss_1_dim", "ss_2_dim", "ss_5_dim"]
QUICK = dict(initialisation="direct", patience=1, min_number_training_epochs=0, max_number_training_epochs=1, nb_jobs=1)
needs_numbers = pytest.mark.skipif(not NUMBERS.exists(), reason="python -m study.run has not written results.json")


def load_pendigits_data(datasets_folder):
    return load_digits_data()


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    """Folder with the files and documents of quick sweeps, which replace those of the study from then on."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "FOLDER", folder)
        monkeypatch.setattr(run, "DOCS_FOLDER", folder)
        monkeypatch.setattr(run, "LEARNING_RATES", {"as in the paper": [0.001], "tuned": [0.001, 0.01]})
        monkeypatch.setattr(run, "PROTOCOLS", {name: {**protocol, **QUICK} for name, protocol in run.PROTOCOLS.items()})
        monkeypatch.setattr(run, "GROUPS", {
            "families": (load_pendigits_data, [0.1], [50, 200], FAMILIES, {"as in the paper": 2, "tuned": 2}),
            "controls": (load_pendigits_data, [0.1], [50, 200], run.CONTROLS, {"as in the paper": 2})})
        monkeypatch.setattr(documents, "TEMPLATE", folder / "template")
        (folder / "template").write_text("{tables[structure, tuned, n = 2]}")
        monkeypatch.setattr(benchmark, "draw_figures", lambda *_: None)  # of each sweep, which nobody looks at here
        assert run.main() == 0
        yield folder


def read_documents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".json", ".png")}


def test_an_interrupted_study_writes_nothing_and_resumed_the_same_as_another(finished_study, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "DOCS_FOLDER", tmp_path)
    add = benchmark.ResultsFile.add
    with monkeypatch.context() as patched:
        patched.setattr(benchmark.ResultsFile, "add", lambda *new: add(*new) or signal.raise_signal(signal.SIGINT))
        assert run.main() == 130 and not read_documents(tmp_path)
    assert run.main() == 0
    here, there = (json.loads((folder / "results.json").read_text("utf-8")) for folder in (tmp_path, finished_study))
    assert {**here, "hours": 0} == {**there, "hours": 0}


def test_a_second_start_says_complete_and_writes_the_same_bytes(finished_study, capsys):
    before = read_documents(finished_study)
    assert len(before) == 5  # the page, the numbers, three figures
    assert run.main() == 0 and capsys.readouterr().out.count("complete: all") == len(run.make_sweeps())
    assert read_documents(finished_study) == before


def test_without_a_data_set_its_sweep_is_named_and_nothing_is_overwritten(finished_study, monkeypatch, capsys):
    def load_mnist_data(datasets_folder):
        raise FileNotFoundError("there are no files here")

    monkeypatch.setitem(run.GROUPS, "images", (load_mnist_data, [0.1], [50], FAMILIES, {"as in the paper": 2}))
    before = read_documents(finished_study)
    assert run.main() == 2 and "not complete, see above: images_as_in_the_paper_0.001.p\n" in capsys.readouterr().err
    assert read_documents(finished_study) == before


def test_validation_chooses_the_rate_the_lowest_of_equal_ones_and_a_diverged_run_counts_as_a_guess():
    accuracies = {  # at rates 0.001 and 0.01, in two iterations: of validation and of test; None: the loss became NaN
        "standard_nn": (((0.5, 0.9), (0.6, 0.9)), ((0.7, 0.1), (0.6, 0.1))),
        "ss_1_dim": (((0.8, 0.1), (0.4, 0.1)), ((0.6, 0.9), (0.6, 0.9))),
        "rank_3": (((0.6, 0.5), (0.4, 0.5)), ((0.85, 0.9), None)),
        "rank_5": (((0.4, 0.5), (0.4, 0.5)), ((0.85, 0.9), None))}
    study = []
    for i, rate in enumerate((0.001, 0.01)):
        results = {**make_results(["pendigits"], [0.1], [50], [], 2), "softmax_twice": False, "learning_rate": rate}
        for name, by_rate in accuracies.items():
            results["pendigits"][0.1][name] = {50: {
                iteration: make_run(run[1], val_history=(0.1, run[0], 0.2)) for iteration, run in enumerate(by_rate[i])
                if run}}
            if None in by_rate[i]:
                results["failures"].append(make_failure("FloatingPointError", dataset="pendigits", share=0.1,
                                                        model_name=name, nb_neurons=50, iteration=1))
        study.append(results)
    chosen = documents.choose_rates(documents.collect_runs(study))
    assert list(chosen["model_name"]) == [name for name in accuracies for _ in range(2)]
    assert list(chosen["learning_rate"]) == [0.01, 0.01, 0.001, 0.001, 0.001, 0.001, 0.01, 0.01]
    assert list(chosen["test_accuracy"]) == [0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.9, 0.1]


def test_nets_are_compared_with_the_largest_of_each_structure_that_is_no_larger():
    sizes = {(25, "standard_nn"): 10, (50, "standard_nn"): 30, (30, "standard_nn"): 19, (25, "ss_1_dim"): 9,
             (50, "ss_1_dim"): 20, (50, "ss_2_dim"): 30, (50, "rank_1"): 15, (25, "rank_8"): 16, (50, "monarch_5"): 21}
    pairs = dict(documents.get_pairs(sizes, at_equal_size=True))
    assert pairs["equal size: dense"] == [((50, f"ss_{d}_dim"), (n, "standard_nn")) for d, n in ((1, 30), (2, 50))]
    assert pairs["equal size: low rank"] == [((50, name), (25, "rank_8")) for name in ("ss_1_dim", "ss_2_dim")]
    assert pairs["equal size: Monarch"] == [((50, "ss_2_dim"), (50, "monarch_5"))]


def test_the_page_says_what_made_up_results_say(monkeypatch, tmp_path):
    noise, study = np.array([-0.01, 0.01] * 5), []
    names = ["standard_nn", "ss_1_dim", "rank_3", "standard_as_ss_1"]
    for softmax_twice in True, False:
        study.append({**make_results(["pendigits"], [0.1], [50], names), "softmax_twice": softmax_twice,
                      "learning_rate": 0.001})
        set_accuracies(study[-1], standard_nn=[0.6] * 10, ss_1_dim=0.7 + noise, rank_3=0.6 + noise,
                       standard_as_ss_1=[0.7] * 5 + [0.71] * 5)
    monkeypatch.setattr(documents, "TEMPLATE", tmp_path / "template")
    for template, text in (
        ("{accuracy[tuned 50 ss_1_dim]}", "0.700 ± 0.011"),
        ("{rates}", "|  | 0.001 |\n| --- | ---: |\n| dense | 0.600 |\n| SSS-1 | 0.700 |\n| rank 3 | 0.600 |\n"
         "| dense as SSS-1 | 0.705 |"),
        ("{difference[structure, tuned 50 ss_1_dim]}", "**+0.100 ± 0.008**"),
        ("{difference[structure, tuned 50 rank_3]}", "+0.000 ± 0.008"),
        ("{difference[same initial matrix, as in the paper 50 ss_1_dim]}", "−0.005 ± 0.008"),
        ("{verdicts[structure, tuned, n = 10]}", "better in 1 and worse in 0 of 1"),
        ("{halves[initial matrix, tuned 50 standard_as_ss_1]}", "+0.100 and +0.110"),
        ("{tables[equal size]}", "|  | low rank | minus low rank, as in the paper | minus low rank, tuned |\n"
         "| --- | ---: | ---: | ---: |\n"
         "| SSS-1 of 50, 1,752 | rank 3 of 50, 1,000 | **+0.100 ± 0.000** | **+0.100 ± 0.000** |"),
    ):
        (tmp_path / "template").write_text(template, encoding="utf-8")
        assert documents.make_page(documents.make_numbers(study)) == text


@needs_numbers
def test_the_page_and_the_readme_have_the_numbers_of_the_study(monkeypatch):
    monkeypatch.setattr(documents, "TEMPLATE", PROJECT / "study" / "results_template.md")
    page = (PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == documents.make_page(json.loads(NUMBERS.read_text(encoding="utf-8")))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Does it generalise better?\n")[1].split("\n## ")[0]
    section, page = (" ".join(text.split()) for text in (section, page.split("\n## a. ")[0]))
    shown = re.findall(r"[+−]?0\.\d{3}(?: ± 0\.\d{3})?|better in \d+ and worse in \d+ of \d+", section)
    assert shown and all(number in page for number in shown)


@needs_numbers
def test_the_reference_table_has_the_numbers_of_the_study():
    text = (PROJECT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (.+) \| (0\.\d\d) ± (0\.\d\d) \| (.+) \| (.+) \|", text)
    nets = pd.DataFrame(json.loads(NUMBERS.read_text(encoding="utf-8"))["nets"]).query(
        "protocol == 'as in the paper' and dataset == 'pendigits' and share == 0.1 and nb_neurons == 50")
    nets.index = nets["model_name"].map(format_family)
    for family, mean, sd, *here in rows:
        own_mean, own_sd, nb_runs = nets.loc[family, ["test_accuracy_mean", "test_accuracy_sd", "nb_runs"]]
        distance = abs(own_mean - float(mean)) / math.hypot(float(sd) / 24 ** 0.5, own_sd / nb_runs ** 0.5)
        assert here == [f"{own_mean:.2f} ± {own_sd:.2f}", f"{distance:.1f}"], family
        assert f"here, n = {nb_runs:g} " in text
    epochs = nets.loc[[row[0] for row in rows], "epochs_mean"]
    assert len(rows) == 7 and f"largest difference is {max(row[4] for row in rows)} standard errors" in text
    assert f"these for {epochs.min():.0f} to {epochs.max():.0f}." in " ".join(text.split())
