"""The study: do nets with a structured hidden matrix test better than dense ones, if so why, and better than which?

`python -m study.run` from the top folder runs the sweeps below with benchmark.py, each into a file of its own in this
folder. When all are complete it writes docs/results.md, its figures, and results.json. Started again it continues.
"""

import signal
import sys
from functools import wraps
from pathlib import Path

from parallel_runs import start_fork_server
if __name__ == "__main__":  # as in benchmark.py
    start_fork_server(["torch._dynamo", "sklearn.datasets", "sklearn.model_selection"])
import benchmark
import datasets
from benchmark_results import load_results
from study.documents import write_documents

FOLDER = Path(__file__).resolve().parent
DOCS_FOLDER = FOLDER.parent / "docs"


def part_of(load_data, nb_training, nb_test, **arguments):
    """A loading function of the same name for the first samples, the same whether there are more of them or not."""
    @wraps(load_data)
    def load(datasets_folder):
        (X_train, y_train), (X_test, y_test) = load_data(datasets_folder, **arguments)
        return (X_train[:nb_training], y_train[:nb_training]), (X_test[:nb_test], y_test[:nb_test])
    return load


# Settings; all other hyperparameters, such as nb_jobs, are those at the top of benchmark.py

PROTOCOLS = {
    "as in the paper": {"standardise_inputs": False, "softmax_twice": True, "restore_best_weights": False},
    "tuned": {"standardise_inputs": True, "softmax_twice": False, "restore_best_weights": True},
}
LEARNING_RATES = {"as in the paper": [1e-3], "tuned": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}
FAMILIES = ["standard_nn", *(f"ss_{d}_dim" for d in (1, 2, 3, 4, 5)), *(f"rank_{r}" for r in (1, 3, 5, 8)), "monarch_5"]
CONTROLS = [*(f"standard_as_ss_{d}" for d in (1, 2, 5)), *(f"standard_scaled_{p}" for p in (58, 25, 10, 0))]
# of the widest dense nets with no more parameters than one of the SSS nets
DENSE_WIDTHS = [18, 21, 29, 30, 33, 35, 41, 46, 47, 54, 63, 70, 73, 81, 84, 95, 109, 125]
MANY, FEW = {"as in the paper": 20, "tuned": 10}, {"as in the paper": 5, "tuned": 5}
GROUPS = {  # data, shares, numbers of neurons, families, iterations in each protocol
    "pendigits_25": (datasets.load_pendigits_data, [0.1], [25], FAMILIES, MANY),
    "pendigits_50": (datasets.load_pendigits_data, [0.1, 0.3, 1.0], [50], FAMILIES, MANY),
    "pendigits_wide": (datasets.load_pendigits_data, [0.1], [100, 200], [*FAMILIES[:-1], "monarch_10"], MANY),
    "pendigits_dense": (datasets.load_pendigits_data, [0.1], DENSE_WIDTHS, ["standard_nn"], MANY),
    "pendigits_controls": (datasets.load_pendigits_data, [0.1], [50, 100, 200], CONTROLS, {"as in the paper": 20}),
    "digits": (datasets.load_digits_data, [0.1, 1.0], [50], FAMILIES, MANY),
    "mnist": (part_of(datasets.load_mnist_data, 400, 2000), [1.0], [50], FAMILIES, FEW),
    "cifar10": (part_of(datasets.load_cifar10_data, 400, 400, check_sums=False), [1.0], [50], FAMILIES, FEW),
    "hand_posture": (part_of(datasets.load_hand_posture_data, 2204, 552), [1.0], [50], FAMILIES, FEW),
}


def make_sweeps():
    """Hyperparameters that are not as at the top of benchmark.py, of each sweep: list of dicts"""
    return [{**PROTOCOLS[protocol], "learning_rate": rate, "dataset_loading_functions": [load_data],
             "training_set_shares": shares, "nb_neurons_list": widths, "model_names": model_names,
             "nb_iterations": nb_iterations[protocol],
             "result_file": str(FOLDER / f"{group}_{protocol}_{rate:g}.p".replace(" ", "_"))}
            for group, (load_data, shares, widths, model_names, nb_iterations) in GROUPS.items()
            for protocol in nb_iterations for rate in LEARNING_RATES[protocol]]


def main():
    """Run what the sweeps miss, then write the documents; the exit status: 0, 130 if interrupted, 2 if a sweep is not
    complete, in which case nothing is written."""
    sweeps, study, incomplete = make_sweeps(), [], []
    for i, sweep in enumerate(sweeps, start=1):
        print(f"sweep {i} of {len(sweeps)}", flush=True)
        if (exit_status := benchmark.main({**benchmark.get_hyperparameters(), **sweep})) == 130:
            return exit_status
        results = load_results(sweep["result_file"]) if exit_status < 2 else None
        # A loss that becomes NaN is a result of a high learning rate, and counted as one.
        if results and all(failure["reason"].startswith("FloatingPointError") for failure in results["failures"]):
            study.append(results)
        else:
            incomplete.append(Path(sweep["result_file"]).name)
    if incomplete:
        print(f"study: nothing is written; not complete, see above: {', '.join(incomplete)}", file=sys.stderr)
        return 2
    write_documents(study, FOLDER, DOCS_FOLDER)
    print(f"study: complete, {len(sweeps)} sweeps; {DOCS_FOLDER / 'results.md'} is written")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
