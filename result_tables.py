"""Look at the results of a sweep as numbers: the table, and the comparison with the dense net.

The functions take the results dict that `benchmark_results.load_results` returns and show what its lists name, in
their order. A run without a finite test accuracy counts as failed and enters no mean and no comparison.
All functions that take results raise ValueError if the dict is no result of a sweep.
"""
import math
import textwrap
from itertools import groupby, product

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats has it too, but takes a second to import

DENSE = "standard_nn"  # the family that the others are compared with
TABLE_WIDTH = 100  # columns of the terminal
MAX_FAILURE_REASONS = 10  # listed beneath the table, the most frequent first
MIN_PAIRS = 5  # of runs, below which no difference is called one
SIGNIFICANCE = 0.05  # share of cases without a difference in which one may be found; intervals are at 1 - SIGNIFICANCE
IDENTITY = ("dataset", "share", "nb_neurons", "model_name")  # what the runs of one row of a table share


def get_runs(results):
    """The runs, {(dataset, share, nb_neurons, model_name): {iteration: run}} in the order of the sweep, and failures.

    Each family in results["model_names"] has an entry, and others that have runs. A run whose test accuracy is not
    finite is one of the failures, beside the recorded ones.
    """
    for key in ("dataset_names", "training_set_shares", "nb_neurons_list", "model_names", "nb_iterations"):
        if not isinstance(results, dict) or key not in results:
            raise ValueError(f"this is not the result of a sweep: it has no entry {key!r}")
    runs, failures = {}, list(results.get("failures", []))
    for dataset, share, nb_neurons in dict.fromkeys(product(
            results["dataset_names"], results["training_set_shares"], results["nb_neurons_list"])):
        by_model = results.get(dataset, {}).get(share, {})
        with_runs = [name for name in by_model if by_model[name].get(nb_neurons)]
        for model_name in dict.fromkeys([*results["model_names"], *with_runs]):
            identity = dataset, share, nb_neurons, model_name
            runs[identity] = {}
            for iteration, run in sorted(by_model.get(model_name, {}).get(nb_neurons, {}).items()):
                if math.isfinite(run["test_accuracy"]):
                    runs[identity][iteration] = run
                else:
                    failures.append({**dict(zip(IDENTITY, identity)), "iteration": iteration,
                                     "reason": "test accuracy is not finite"})
    return runs, failures


def get_families_with_runs(by_identity):
    """In the order of the sweep, even if the first dataset lacks one that others have."""
    names = {identity[3] for identity, runs in by_identity.items() if runs}
    return [name for name in dict.fromkeys(identity[3] for identity in by_identity) if name in names]


def get_nb_parameters(runs):
    return next((run["nb_model_parameters"] for run in runs.values()), math.nan)


# ---- the table --------------------------------------------------------------------------------------------

def summary_table(results):
    """One row (a dict) per dataset, share, number of neurons and family; `pandas.DataFrame(rows)` works.

    - dataset, share, nb_neurons, model_name
    - nb_model_parameters, nb_runs, epochs_mean, test_accuracy_mean
    - nb_failures: iterations that failed; the failure of a whole dataset or family stands for all iterations it lacks
    - test_accuracy_sd: sample standard deviation (ddof = 1), NaN for fewer than two runs
    - best: True for the highest mean of its dataset, share and number of neurons

    Without a run the parameters, epochs and accuracies are NaN.
    """
    by_identity, failures = get_runs(results)
    failed_iterations = {}  # where -> set; None in a failure: whatever is there
    for failure in failures:
        failed_iterations.setdefault(tuple(failure[key] for key in IDENTITY), set()).update(
            range(results["nb_iterations"]) if failure["iteration"] is None else [failure["iteration"]])
    rows = []
    for identity, runs in by_identity.items():
        failed = set().union(*(failed_iterations.get(where, ())
                               for where in product(*((None, part) for part in identity))))
        accuracies = [run["test_accuracy"] for run in runs.values()]
        epochs = [len(run["accuracy_history"]) for run in runs.values()]
        rows.append({
            **dict(zip(IDENTITY, identity)),
            "nb_model_parameters": get_nb_parameters(runs),
            "nb_runs": len(runs),
            "nb_failures": len(failed - set(runs)),
            "epochs_mean": float(np.mean(epochs)) if runs else math.nan,
            "test_accuracy_mean": float(np.mean(accuracies)) if runs else math.nan,
            "test_accuracy_sd": float(np.std(accuracies, ddof=1)) if len(runs) > 1 else math.nan,
        })
    for _, block in get_blocks(rows):
        highest_mean = max((row["test_accuracy_mean"] for row in block if row["nb_runs"]), default=math.nan)
        for row in block:
            row["best"] = row["test_accuracy_mean"] == highest_mean
    return rows


def get_blocks(rows):
    """[((dataset, share, nb_neurons), rows), ...]"""
    return [(key, list(block)) for key, block in groupby(rows, lambda row: tuple(row[part] for part in IDENTITY[:3]))]


def format_summary_table(results):
    """The summary table as text, at most 100 columns wide.

    One block per dataset, share and number of neurons, its best family marked with *; beneath failures by reason.
    """
    rows = summary_table(results)
    width = min(30, max([len(row["model_name"]) for row in rows] + [len("model")]))
    lines = []
    for (dataset, share, nb_neurons), block in get_blocks(rows):
        lines.append(f"{shorten(dataset, 60)}, share {share:g}, {_number(nb_neurons)} neurons")
        if any(row["nb_runs"] for row in block):
            lines.append(f"  {'model':<{width}}  parameters    runs  failed    epochs  test accuracy")
        else:
            lines.append(f"  no runs, {sum(row['nb_failures'] for row in block)} failed")
            block = []
        for row in block:
            lines.append(
                f"  {shorten(row['model_name'], width):<{width}}  {_number(row['nb_model_parameters']):>10}"
                f"  {_number(row['nb_runs']):>6}  {_number(row['nb_failures']):>6}"
                f"  {_number(row['epochs_mean'], '.1f'):>8}  {_number(row['test_accuracy_mean'], '.3f')}"
                + (f" ± {_number(row['test_accuracy_sd'], '.3f')}" if row["nb_runs"] > 1 else "")
                + (" *" if row["best"] else ""))
        lines.append("")
    lines.append("test accuracy: mean ± sd over runs, * highest mean of its block"
                 if any(row["nb_runs"] for row in rows) else "no runs")
    return "\n".join(lines + _format_failures(get_runs(results)[1]))


def _format_failures(failures):
    by_reason = {}
    for failure in failures:
        by_reason.setdefault(" ".join(str(failure["reason"]).split()), []).append(failure)
    reasons = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    lines = ["", f"failures: {len(failures)}"] if failures else []
    prefixes = {"dataset": "", "share": "share ", "nb_neurons": "neurons ", "model_name": "", "iteration": "iteration "}
    for reason, group in reasons[:MAX_FAILURE_REASONS]:
        where = ", ".join(prefix + shorten(str(group[0][key]), 40) for key, prefix in prefixes.items()
                          if group[0][key] is not None) or "the whole sweep"
        times = f"{len(group)} times, first in " if len(group) > 1 else ""
        lines += textwrap.wrap(f"{times}{where}: {reason}", TABLE_WIDTH, initial_indent="  ",
                               subsequent_indent="    ", max_lines=4, placeholder=" ...")
    if len(reasons) > MAX_FAILURE_REASONS:
        nb_more = sum(len(group) for _, group in reasons[MAX_FAILURE_REASONS:])
        lines.append(f"  {nb_more} more for {len(reasons) - MAX_FAILURE_REASONS} other reasons")
    return lines


def shorten(text, width):
    """Cut out the middle: names that differ at either end stay apart."""
    if len(text) <= width:
        return text
    return f"{text[:(width - 2) // 2]}...{text[len(text) - (width - 3) // 2:]}"


def _number(value, specification="d"):
    text = "-" if math.isnan(value) else f"{value:{specification}}"
    return text if len(text) <= 8 else f"{value:.1e}"


# ---- the paper's question ---------------------------------------------------------------------------------

def get_mean_interval(values):
    """Mean (float) of the values, low and high end of its 95 % t interval; NaN for what there are too few values for.

    The values count as independent and normally distributed, which matters little for the mean of more than a few.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    mean = float(values.mean()) if n else math.nan
    half_width = stdtrit(n - 1, 1 - SIGNIFICANCE / 2) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return mean, float(mean - half_width), float(mean + half_width)


def compare_with_dense(results, baseline=DENSE):
    """Does a family test better than the dense net? One row (a dict) per dataset, share, neurons and family.

    Runs are paired by iteration, for those of one iteration share the validation split and the order of samples.

    - dataset, share, nb_neurons, model_name, nb_pairs, nb_model_parameters
    - difference_mean: mean over the pairs of the test accuracy minus the baseline's
    - interval_low, interval_high: 95 % t interval of that mean, of this family alone, NaN for fewer than two pairs
    - parameter_ratio: to the baseline's
    - p_value: of the paired t test, raised as Holm does it for the number of families with the same dataset, share and
      number of neurons; NaN for fewer than five pairs, which are not tested
    - verdict: "better" or "worse" if p_value < 0.05, else "undecided"

    So where no family differs from the dense net, at most 5 % of the blocks have a verdict. A family that is better or
    worse has an interval without 0. The reverse does not hold: of many families one has such an interval by chance.
    Verdicts are about the nets on this training and test set: other samples were not drawn.
    ValueError if the sweep has no such baseline.
    """
    by_identity, _ = get_runs(results)
    rows = []
    for identity, runs in by_identity.items():
        if identity[:3] + (baseline,) not in by_identity:
            raise ValueError(f"the sweep has no family {baseline!r}, but {', '.join(results['model_names'])}")
        if identity[3] == baseline:
            continue
        dense_runs = by_identity[identity[:3] + (baseline,)]
        differences = [run["test_accuracy"] - dense_runs[iteration]["test_accuracy"]
                       for iteration, run in runs.items() if iteration in dense_runs]
        mean, low, high = get_mean_interval(differences)
        rows.append({
            **dict(zip(IDENTITY, identity)),
            "nb_pairs": len(differences),
            "difference_mean": mean,
            "interval_low": low,
            "interval_high": high,
            "nb_model_parameters": get_nb_parameters(runs),
            "parameter_ratio": get_nb_parameters(runs) / get_nb_parameters(dense_runs),
            "p_value": _get_p_value(differences),
        })
    for _, block in get_blocks(rows):
        tested = sorted((row for row in block if row["nb_pairs"] >= MIN_PAIRS), key=lambda row: row["p_value"])
        p_value = 0.0
        for nb_smaller, row in enumerate(tested):  # in ascending order, which raising keeps
            p_value = row["p_value"] = max(p_value, min(1.0, (len(tested) - nb_smaller) * row["p_value"]))
        for row in block:
            row["verdict"] = ("undecided" if not row["p_value"] < SIGNIFICANCE
                              else "better" if row["difference_mean"] > 0 else "worse")
    return rows


def _get_p_value(differences):
    """Of the two-sided t test of mean 0 (float)."""
    n = len(differences)
    if n < MIN_PAIRS:
        return math.nan
    mean, deviation = np.mean(differences), np.std(differences, ddof=1)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(n - 1, -abs(mean) / deviation * math.sqrt(n)))
