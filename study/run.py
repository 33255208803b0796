"""The study: do nets with a structured hidden matrix test better than dense ones, why, and than which?

    python -m study.run

from the top folder runs the sweeps below with benchmark.py, each into a file of its own in this folder. When all are
complete, documents.py writes docs/results.md, its figures, and results.json. Started again it continues.
"""

import signal
import sys
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


# Parts of three data sets, so that all nets take an hour; the same parts whether the whole files are there or only these.

def load_mnist_data(datasets_folder):
    return take_first(datasets.load_mnist_data(datasets_folder), 500, 2000)


def load_cifar10_data(datasets_folder):
    return take_first(datasets.load_cifar10_data(datasets_folder, check_sums=False), 500, 400)


def load_hand_posture_data(datasets_folder):
    return take_first(datasets.load_hand_posture_data(datasets_folder), 2204, 552)


def take_first(data, nb_training, nb_test):
    (X_train, y_train), (X_test, y_test) = data
    return (X_train[:nb_training], y_train[:nb_training]), (X_test[:nb_test], y_test[:nb_test])


def make_sweep(group, protocol, learning_rate):
    """Hyperparameters that are not as at the top of benchmark.py (dict)."""
    load_data, shares, nb_neurons_list, model_names, nb_iterations = GROUPS[group]
    return {**PROTOCOLS[protocol], "learning_rate": learning_rate, "dataset_loading_functions": [load_data],
            "training_set_shares": shares, "nb_neurons_list": nb_neurons_list, "model_names": model_names,
            "nb_iterations": nb_iterations[protocol],
            "result_file": str(FOLDER / f"{group}_{protocol}_{learning_rate:g}.p".replace(" ", "_"))}


# ======================================================================================================================
# Settings; all other hyperparameters, such as nb_jobs, are those at the top of benchmark.py

LEARNING_RATES = {"as in the paper": [1e-3], "tuned": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}
PROTOCOLS = {
    "as in the paper": {"standardise_inputs": False, "softmax_twice": True, "restore_best_weights": False},
    "tuned": {"standardise_inputs": True, "softmax_twice": False, "restore_best_weights": True},
}
FAMILIES = ["standard_nn", *(f"ss_{d}_dim" for d in (1, 2, 3, 4, 5)), *(f"rank_{r}" for r in (1, 3, 5, 8))]
CONTROLS = [*(f"standard_as_ss_{d}" for d in (1, 2, 5)), *(f"standard_scaled_{p}" for p in (58, 25, 10, 0))]
# of the widest dense nets with no more parameters than one of the SSS nets
DENSE_WIDTHS = [18, 21, 29, 30, 33, 35, 41, 46, 47, 54, 63, 70, 73, 81, 84, 95, 109, 125]
MANY, FEW, CONTROL = {"as in the paper": 24, "tuned": 10}, dict.fromkeys(PROTOCOLS, 5), {"as in the paper": 24}
GROUPS = {  # data, shares, numbers of neurons, families, iterations in each protocol
    "digits": (datasets.load_digits_data, [0.1, 1.0], [50], [*FAMILIES, "monarch_5"], MANY),
    "hand_posture": (load_hand_posture_data, [1.0], [50], [*FAMILIES, "monarch_5"], FEW),
    "pendigits_dense": (datasets.load_pendigits_data, [0.1], DENSE_WIDTHS, FAMILIES[:1], MANY),
    "pendigits_controls": (datasets.load_pendigits_data, [0.1], [50, 100, 200], CONTROLS, CONTROL),
    "pendigits_25": (datasets.load_pendigits_data, [0.1], [25], [*FAMILIES, "monarch_5"], MANY),
    "pendigits_50": (datasets.load_pendigits_data, [0.1, 0.3, 1.0], [50], [*FAMILIES, "monarch_5"], MANY),
    "pendigits_wide": (datasets.load_pendigits_data, [0.1], [100, 200], [*FAMILIES, "monarch_10"], MANY),
    "mnist": (load_mnist_data, [1.0], [50], [*FAMILIES, "monarch_5"], FEW),
    "cifar10": (load_cifar10_data, [1.0], [50], [*FAMILIES, "monarch_5"], FEW),
}
SWEEPS = [make_sweep(group, protocol, learning_rate) for group, (*_, nb_iterations) in GROUPS.items()
          for protocol in nb_iterations for learning_rate in LEARNING_RATES[protocol]]
# ======================================================================================================================


def main():
    """Run what the sweeps miss, then write the documents; the exit status: 0, 130 if interrupted, 2 if a sweep is not
    complete, in which case nothing is written."""
    study, incomplete = [], []
    for i, sweep in enumerate(SWEEPS, start=1):
        print(f"sweep {i} of {len(SWEEPS)}", flush=True)
        exit_status = benchmark.main({**benchmark.get_hyperparameters(), **sweep})
        if exit_status == 130:
            return exit_status
        study += [load_results(sweep["result_file"])] if exit_status < 2 else []
        # A loss that becomes NaN is a result of a high learning rate, and counted as one.
        if exit_status and not (exit_status == 1 and all(
                failure["reason"].startswith("FloatingPointError") for failure in study[-1]["failures"])):
            incomplete.append(Path(sweep["result_file"]).name)
    if incomplete:
        print(f"study: nothing is written; not complete, see above: {', '.join(incomplete)}", file=sys.stderr)
        return 2
    datasets_folder = Path(benchmark.__file__).parent / benchmark.datasets_folder
    write_documents(study, {
        datasets.get_dataset_name_for_loading_function(load_data): load_data(datasets_folder)
        for sweep in SWEEPS for load_data in sweep["dataset_loading_functions"]}, FOLDER, DOCS_FOLDER)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
