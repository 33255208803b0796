"""The study on small sweeps: interrupted, resumed, repeated, without data; its page; the numbers in README and docs."""

import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pytest

import benchmark
from datasets import load_digits_data
from plot_results import format_family
from study import documents, run
from sweep_results import make_results, set_accuracies

PROJECT = Path(__file__).resolve().parents[1]
NUMBERS = PROJECT / "study" / "results.json"
FAMILIES = ["standard_nn", "ss_1_dim", "ss_2_dim"]
QUICK = dict(model_names=FAMILIES, initialisation="direct", patience=1, min_number_training_epochs=0, nb_jobs=1)
needs_numbers = pytest.mark.skipif(not NUMBERS.exists(), reason="python -m study.run has not written results.json")


def load_pendigits_data(datasets_folder):
    return load_digits_data()


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    """Folder with the files and documents of six quick sweeps, which replace those of the study from then on."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "FOLDER", folder)
        monkeypatch.setattr(run, "DOCS_FOLDER", folder)
        monkeypatch.setattr(run, "SWEEPS", [
            {**run.make_sweep(load_data, protocol, 0.1, [nb_neurons], 2), **QUICK} for protocol in run.PROTOCOLS for
            load_data, nb_neurons in ((load_pendigits_data, 100), (load_pendigits_data, 50), (load_digits_data, 50))])
        monkeypatch.setattr(documents, "EQUAL_SIZE", [(100, "ss_1_dim")])
        monkeypatch.setattr(benchmark, "draw_figures", lambda *_: None)  # of each sweep, which nobody looks at here
        assert run.main() == 0
        yield folder


def read_documents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".json", ".png")}


def test_an_interrupted_study_writes_nothing_and_resumed_the_same_as_another(finished_study, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "DOCS_FOLDER", tmp_path)
    monkeypatch.setattr(run, "SWEEPS", [{**sweep, "result_file": str(tmp_path / Path(sweep["result_file"]).name)}
                                        for sweep in run.SWEEPS])
    add = benchmark.ResultsFile.add
    with monkeypatch.context() as patched:
        patched.setattr(benchmark.ResultsFile, "add", lambda *new: add(*new) or signal.raise_signal(signal.SIGINT))
        assert run.main() == 130 and not read_documents(tmp_path)
    assert run.main() == 0
    here, there = (json.loads((folder / "results.json").read_text("utf-8")) for folder in (tmp_path, finished_study))
    assert {**here, "hours": 0} == {**there, "hours": 0}


def test_a_second_start_says_complete_and_writes_the_same_bytes(finished_study, capsys):
    before = read_documents(finished_study)
    figures = re.findall(r"\((\w+\.png)\)", before["results.md"].decode())
    assert len(figures) == 4 and before.keys() == {*figures, "results.md", "results.json"}
    assert run.main() == 0 and capsys.readouterr().out.count("complete") == len(run.SWEEPS)
    assert read_documents(finished_study) == before


def test_without_a_data_set_its_sweep_is_named_and_nothing_is_overwritten(finished_study, monkeypatch, capsys):
    def load_mnist_data(datasets_folder):
        raise FileNotFoundError("there are no files here")

    monkeypatch.setattr(run, "SWEEPS", [run.SWEEPS[0], run.make_sweep(load_mnist_data, "trained well", 0.1, [50], 2)])
    before = read_documents(finished_study)
    assert run.main() == 2 and "not complete, see above: mnist_trained_well_0.1_50.p\n" in capsys.readouterr().err
    assert read_documents(finished_study) == before


def test_the_page_says_what_made_up_results_say(monkeypatch):
    study, noise = [], np.linspace(-0.01, 0.01, 10)
    for softmax_twice, dense, ss_1, ss_2 in (True, 0.6, 0.7, 0.6), (False, 0.9, 0.8, 0.89):
        for where in ("pendigits", 0.1, 50), ("pendigits", 1, 50), ("pendigits", 0.1, 100), ("mnist", 0.2, 50):
            study.append({**make_results(*([part] for part in where), FAMILIES), "softmax_twice": softmax_twice})
            set_accuracies(study[-1], standard_nn=[dense] * 10, ss_1_dim=ss_1 + noise, ss_2_dim=ss_2 + noise)
    monkeypatch.setattr(documents, "EQUAL_SIZE", [(100, "ss_1_dim")])
    page = documents.make_page(documents.make_numbers(study, {"pendigits": 7494, "mnist": 5000}))
    for text in (
        "shares 0.1, 1 of", "(dense: 0.900, 0.900)", "which has an accuracy of 0.600, 0.600.",
        "in the paper, test better in 2 (by up to 0.100) and worse in 0 of 4 comparisons with the dense net, which",
        "they test better in 0 and worse in 4 (by up to 0.100) of 4 comparisons with the dense net, and",
        "SSS-2 with 57% of the parameters differs by −0.010 ± 0.005, −0.010 ± 0.005 at these shares",
        "SSS nets differ by −0.100 ± 0.005 (SSS-1 of 100 neurons, 1,752 parameters; dense of 50, 3,910).", "240 runs",
        "| trained well | parameters | share 0.1, n = 10 | share 1, n = 10 |", "MNIST, 1,000 of 60,000 samples, n = 10",
        "| SSS-2 | 2,220 | 0.890 ± 0.007 (**−0.010 ± 0.005**) |", "| 0.600 ± 0.007 (+0.000 ± 0.005) |",
    ):
        assert text in " ".join(page.split())


@needs_numbers
def test_the_page_and_the_readme_have_the_numbers_of_the_study():
    page = (PROJECT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == documents.make_page(json.loads(NUMBERS.read_text(encoding="utf-8")))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Does it generalise better?\n")[1].split("\n## ")[0]
    shown, known = (re.findall(r"[+−]?0\.\d{3}(?: ± 0\.\d{3})?|(?:better|worse) in \d+", " ".join(text.split()))
                    for text in (section, page))
    assert shown and not {*shown} - {*known}


@needs_numbers
def test_the_reference_table_has_the_numbers_of_the_study():
    text = (PROJECT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    nets = [net for net in json.loads(NUMBERS.read_text(encoding="utf-8"))["nets"] if net["protocol"] == documents.PAPER
            and (net["dataset"], net["share"], net["nb_neurons"]) == ("pendigits", 0.1, 50)]
    rows = re.findall(r"\| (.+) \| (0\.\d\d) ± (0\.\d\d) \| (.+) \| (.+) \|", text)
    for net, (family, mean, sd, *here) in zip(nets, rows, strict=True):
        own_mean, own_sd = net["test_accuracy_mean"], net["test_accuracy_sd"]
        distance = abs(own_mean - float(mean)) / math.hypot(float(sd) / 24 ** 0.5, own_sd / net["nb_runs"] ** 0.5)
        assert family == format_family(net["model_name"]) and f"here, n = {net['nb_runs']} " in text
        assert here == [f"{own_mean:.2f} ± {own_sd:.2f}", f"{distance:.1f}"], family
    epochs = [net["epochs_mean"] for net in nets]
    assert f"largest difference is {max(row[4] for row in rows)} standard errors" in text
    assert f"these for {min(epochs):.0f} to {max(epochs):.0f}." in " ".join(text.split())
