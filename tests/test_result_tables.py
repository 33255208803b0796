"""result_tables.py: table and comparison with the dense net, on results as sweeps leave them, complete or not."""
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from result_tables import compare_with_dense, format_summary_table, get_mean_interval, summary_table
from sweep_results import NAN, make_failure, make_results, make_run, set_accuracies


# ---- the table ----

@pytest.mark.filterwarnings("error")
def test_summary_equals_hand_computed_numbers():
    results = make_results(models=["standard_nn", "ss_1_dim"])
    results["digits"][0.1] = {"ss_1_dim": {50: {1: make_run(0.3)}}, "standard_nn": {50: {
        0: make_run(0.5, 77, [0.1] * 3), 1: make_run(0.7, 77, [0.1] * 4), 2: make_run(0.9, 77, [0.1] * 8)}}}
    standard, ss_1 = summary_table(results)
    assert standard == {
        "dataset": "digits", "share": 0.1, "model_name": "standard_nn", "nb_neurons": 50, "nb_model_parameters": 77,
        "nb_runs": 3, "nb_failures": 0, "epochs_mean": 5.0, "test_accuracy_mean": pytest.approx(0.7),
        "test_accuracy_sd": pytest.approx(0.2), "best": True}
    assert math.isnan(ss_1["test_accuracy_sd"])


def test_rows_are_plain_data_in_the_order_of_the_sweep():
    axes = ["b", "a"], [0.5, 0.1], [20, 10], ["rank_1", "standard_nn"]
    rows = summary_table(make_results(*axes))
    assert [tuple(row.values())[:4] for row in rows] == list(itertools.product(*axes))
    assert {type(value) for row in rows for value in row.values()} == {str, int, float, bool}


def test_failed_iterations_are_counted_once_and_only_where_they_failed():
    results = make_results(["digits", "mnist"], [0.1, 0.5], models=["standard_nn", "ss_1_dim"])
    del results["mnist"], results["digits"][0.5], results["digits"][0.1]["ss_1_dim"][50][2]
    run = dict(dataset="digits", share=0.1, nb_neurons=50)
    results["failures"] = [
        make_failure("", dataset="mnist"), make_failure("", dataset="digits", share=0.5, model_name="ss_1_dim"),
        *[make_failure("", **run, model_name="ss_1_dim", iteration=2)] * 2,
        make_failure("", **run, model_name="standard_nn", iteration=0)]  # has succeeded since
    assert [(row["nb_runs"], row["nb_failures"]) for row in summary_table(results)] == [
        (3, 0), (2, 1), (0, 0), (0, 3), *[(0, 3)] * 4]


def test_the_table_as_text():
    results = make_results(["digits", "mnist", "cifar10"], models=["standard_nn", "ss_1_dim", "rank_1"])
    del results["cifar10"], results["mnist"][0.1]["ss_1_dim"]
    results["mnist"][0.1].update(standard_nn={50: {1: make_run(0.99)}}, no_runs={50: {}},
                                 unnamed={50: {0: make_run(0.2), 2: make_run(0.3)}})
    # A run without a finite accuracy enters no mean; equal means are both best.
    set_accuracies(results, standard_nn=[0.5, NAN, 0.75], ss_1_dim=[0.625], rank_1=[NAN, math.inf])
    results["failures"] = [make_failure("no\n network", dataset="cifar10")]
    assert format_summary_table(results) == """\
digits, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn        3910       2       1       4.0  0.625 ± 0.177 *
  ss_1_dim           1752       1       0       4.0  0.625 *
  rank_1                -       0       2         -  -

mnist, share 0.1, 50 neurons
  model        parameters    runs  failed    epochs  test accuracy
  standard_nn         100       1       0       4.0  0.990 *
  ss_1_dim              -       0       0         -  -
  rank_1             1510       3       0       4.0  0.653 ± 0.191
  unnamed             100       2       0       4.0  0.250 ± 0.071

cifar10, share 0.1, 50 neurons
  no runs, 9 failed

test accuracy: mean ± sd over runs, * highest mean of its block

failures: 4
  3 times, first in digits, share 0.1, neurons 50, standard_nn, iteration 1: test accuracy is not
    finite
  cifar10: no network"""


def test_the_table_is_at_most_100_columns_wide_whatever_the_values():
    datasets, share, nb_neurons = ["data" * 50, "data" * 50 + "x"], 1e-300 / 3, 123456789012
    results = make_results(datasets, [share], [nb_neurons], ["family" * 30, "standard_nn"])
    for by_neurons in results[datasets[1]][share].values():
        by_neurons[nb_neurons] = {i: make_run(1e100 * (i + 1), size=10**18) for i in range(3)}
    results["failures"] = [
        make_failure("word" * 500, dataset=datasets[0], share=share, model_name="family" * 30, nb_neurons=nb_neurons,
                     iteration=10**20), make_failure("several\nlines\tof words " * 200)]
    lines = format_summary_table(results).splitlines()
    assert 80 < max(map(len, lines)) <= 100
    assert len(lines) <= 30  # reasons of 2,000 characters are cut short
    for part in ("± 1.0e+100 *", "wordword", "several lines of"):
        assert any(part in line for line in lines)
    assert len({line for line in lines if line.endswith("neurons")}) == 2  # names that differ at their end stay apart


def test_failures_are_counted_by_reason_the_most_frequent_first_and_many_reasons_cut_short():
    results = make_results()
    assert "failures" not in format_summary_table(results)
    results["failures"] = [make_failure("no network", dataset="mnist")]
    results["failures"] += [make_failure("killed", dataset="digits", model_name="ss_1_dim", iteration=i)
                            for i in range(500)]
    results["failures"] += [make_failure(f"reason {i}") for i in range(30)]
    lines = format_summary_table(results).splitlines()
    assert lines[lines.index("failures: 531") + 1:] == [
        "  500 times, first in digits, ss_1_dim, iteration 0: killed", "  mnist: no network",
        *(f"  the whole sweep: reason {i}" for i in range(8)), "  22 more for 22 other reasons"]


def test_foreign_data_is_named_as_such():
    for function in (summary_table, format_summary_table, compare_with_dense):
        for foreign in ({"dataset_names": []}, None):
            with pytest.raises(ValueError, match="not the result of a sweep"):
                function(foreign)


# ---- the paper's question ----

def test_differences_are_paired_over_the_common_iterations():
    results = make_results(models=["standard_nn", "ss_1_dim", "ss_2_dim", "ss_3_dim"])
    set_accuracies(results, standard_nn=[0.5, 0.6, NAN], ss_1_dim=[0.7, 0.65, 0.1, 0.2], ss_2_dim=[0.1], ss_3_dim=[NAN])
    rows = compare_with_dense(results)
    assert [(row["model_name"], row["nb_pairs"]) for row in rows] == [("ss_1_dim", 2), ("ss_2_dim", 1), ("ss_3_dim", 0)]
    # Two pairs, 0.2 and 0.05: Student's distribution of one degree of freedom has the quantile tan(0.475 pi).
    half_width = 0.075 * math.tan(0.475 * math.pi)
    assert rows[0] == {
        "dataset": "digits", "share": 0.1, "nb_neurons": 50, "model_name": "ss_1_dim", "nb_pairs": 2,
        "difference_mean": pytest.approx(0.125), "interval_low": pytest.approx(0.125 - half_width),
        "interval_high": pytest.approx(0.125 + half_width), "nb_model_parameters": 1752,
        "parameter_ratio": pytest.approx(1752 / 3910), "p_value": pytest.approx(NAN, nan_ok=True),
        "verdict": "undecided"}
    assert [row["difference_mean"] for row in rows[1:]] == pytest.approx([-0.4, NAN], nan_ok=True)
    assert all(math.isnan(row[end]) for row in rows[1:] for end in ("interval_low", "interval_high"))
    assert {type(value) for row in rows for value in row.values()} == {str, int, float}
    assert [row["difference_mean"] for row in compare_with_dense(results, baseline="ss_1_dim")[:1]] == [
        pytest.approx(-0.125)]
    with pytest.raises(ValueError, match="'dense'.*standard_nn"):
        compare_with_dense(results, baseline="dense")


def test_mean_intervals_are_scipys():
    for n in (2, 3, 10, 100):
        values = np.random.default_rng(n).normal(0.7, 0.1, n)
        expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        assert get_mean_interval(values) == pytest.approx((values.mean(), *expected), rel=1e-12)
    assert get_mean_interval([0.5]) == pytest.approx((0.5, NAN, NAN), nan_ok=True)
    assert get_mean_interval([]) == pytest.approx((NAN, NAN, NAN), nan_ok=True)


def test_p_values_are_scipys_multiplied_as_holm_does_it_by_the_number_of_families_of_the_block():
    generator = np.random.default_rng(0)
    differences = generator.normal([[0.0], [0.15], [0.2], [0.3], [0.2]], 0.1, (5, 6))
    results = make_results(["a", "digits"], models=["standard_nn", *(f"ss_{d}_dim" for d in range(1, 6)), "few_pairs"])
    results["dataset_names"] = ["digits", "a"]
    set_accuracies(results, standard_nn=[0.5] * 6, few_pairs=[0.1, 0.1001, 0.1, 0.1],
                   **{f"ss_{d + 1}_dim": 0.5 + differences[d] for d in range(5)})
    p_values = np.array([row["p_value"] for row in compare_with_dense(results)[:6]])
    single = stats.ttest_1samp(differences, 0, axis=1).pvalue
    order = np.argsort(single)
    expected = np.minimum(1, np.maximum.accumulate(single[order] * [5, 4, 3, 2, 1]))
    assert (np.diff(single[order] * [5, 4, 3, 2, 1]) < 0).any()  # so that the maximum matters
    assert p_values[order] == pytest.approx(expected, rel=1e-9)
    assert math.isnan(p_values[5])  # four pairs are not tested, and do not count as a test


@pytest.mark.parametrize("nb_pairs", [5, 10])
def test_without_any_difference_at_most_5_percent_of_the_blocks_have_a_verdict_and_a_large_one_is_found(nb_pairs):
    nb_blocks, families = 2000, [f"ss_{d}_dim" for d in range(1, 7)]
    accuracies = np.random.default_rng(nb_pairs).normal(0.7, 0.1, (nb_blocks, 7, nb_pairs))
    results = {"dataset_names": ["digits"], "training_set_shares": list(range(nb_blocks)), "nb_neurons_list": [50],
               "model_names": ["standard_nn", *families], "nb_iterations": nb_pairs}

    def get_verdicts():
        results["digits"] = {block: {name: {50: {
            i: {"test_accuracy": float(accuracy), "nb_model_parameters": 1} for i, accuracy in enumerate(row)}}
            for name, row in zip(results["model_names"], rows)} for block, rows in enumerate(accuracies)}
        return np.array([row["verdict"] for row in compare_with_dense(results)]).reshape(nb_blocks, 6)

    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / nb_blocks)  # Holm's, and chance
    assert 0.02 < np.mean((get_verdicts() != "undecided").any(axis=1)) < limit
    accuracies[:, 2] -= 1.0
    accuracies[:, 3] += 1.0
    verdicts = get_verdicts()
    assert (verdicts[:, 1] == "worse").mean() > 0.99 and (verdicts[:, 2] == "better").mean() > 0.99
    assert np.mean((verdicts[:, [0, 3, 4, 5]] != "undecided").any(axis=1)) < limit


@pytest.mark.filterwarnings("error")
def test_differences_without_spread_and_too_few_pairs():
    families = dict(ss_1_dim=[0.75] * 5, ss_2_dim=[0.25] * 5, ss_3_dim=[0.5] * 5, ss_4_dim=[0.75] * 4,
                    ss_5_dim=[0.75, NAN, 0.75, 0.75, 0.75], rank_1=[])
    results = make_results(models=["standard_nn", *families])
    set_accuracies(results, standard_nn=[0.5] * 5, **families)
    assert [(row["interval_low"], row["interval_high"], row["verdict"]) for row in compare_with_dense(results)] == [
        (0.25, 0.25, "better"), (-0.25, -0.25, "worse"), (0, 0, "undecided"), (0.25, 0.25, "undecided"),
        (0.25, 0.25, "undecided"), (pytest.approx(NAN, nan_ok=True), pytest.approx(NAN, nan_ok=True), "undecided")]


def test_a_verdict_has_an_interval_without_0_and_depends_on_the_other_families_of_its_block_alone():
    results = make_results(["a", "b"], shares=[0.1, 1.0], nb_iterations=6)
    rows = compare_with_dense(results)
    results["dataset_names"], results["training_set_shares"] = ["b"], [1.0]
    assert compare_with_dense(results) == rows[-6:]
    results["model_names"] = ["standard_nn", "ss_1_dim"]
    results["b"][1.0] = {name: results["b"][1.0][name] for name in results["model_names"]}
    set_accuracies(results, standard_nn=[0.5] * 6, ss_1_dim=[0.51, 0.50, 0.53, 0.52, 0.53, 0.51])
    alone, = compare_with_dense(results)
    assert alone["verdict"] == "better" and alone["interval_low"] > 0
    results["model_names"] += [f"ss_{d}_dim" for d in range(2, 7)]
    for d in range(2, 7):
        set_accuracies(results, **{f"ss_{d}_dim": [0.5 + 0.01 * (-1) ** i for i in range(6)]})
    among_six = compare_with_dense(results)[0]
    assert among_six["verdict"] == "undecided" and among_six["p_value"] == pytest.approx(6 * alone["p_value"])
    assert among_six["interval_low"] == alone["interval_low"]
