"""The study: do nets with a structured matrix test better, in the paper's protocol and when they are trained well?

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


def load_cifar10_data(datasets_folder):
    """As load_cifar10_data of datasets.py; also a part of the data, whose checksums are not the official ones."""
    return datasets.load_cifar10_data(datasets_folder, check_sums=False)


def make_sweep(load_data, protocol, share, nb_neurons_list, nb_iterations):
    """Hyperparameters that are not as at the top of benchmark.py (dict)."""
    name = datasets.get_dataset_name_for_loading_function(load_data)
    parts = name, protocol, f"{share:g}", *map(str, nb_neurons_list)
    return {"dataset_loading_functions": [load_data], "training_set_shares": [share], **PROTOCOLS[protocol],
            "nb_neurons_list": nb_neurons_list, "nb_iterations": nb_iterations,
            "result_file": str(FOLDER / f"{'_'.join(parts).replace(' ', '_')}.p")}


# ======================================================================================================================
# Settings; all other hyperparameters, such as nb_jobs, are those at the top of benchmark.py

PROTOCOLS = {
    "as in the paper": {"standardise_inputs": False, "softmax_twice": True},
    "trained well": {"standardise_inputs": True, "softmax_twice": False},
}
SWEEPS = [  # data, protocol, share, numbers of neurons, iterations; the quick ones first
    *(make_sweep(load_data, protocol, *settings) for load_data, *settings in (
        (datasets.load_digits_data, 1.0, [50], 10),
        (datasets.load_mnist_data, 0.2, [50], 5),
        (load_cifar10_data, 1.0, [50], 5),
        (datasets.load_hand_posture_data, 1.0, [50], 10),
        (datasets.load_pendigits_data, 0.1, [25, 100, 200], 10),
    ) for protocol in PROTOCOLS),
    # so many that the 95 % intervals of differences to the dense net are about +-0.01 trained well, +-0.03 as in the paper
    make_sweep(datasets.load_pendigits_data, "trained well", 0.1, [50], 40),
    make_sweep(datasets.load_pendigits_data, "trained well", 0.3, [50], 50),
    make_sweep(datasets.load_pendigits_data, "trained well", 1.0, [50], 30),
    make_sweep(datasets.load_pendigits_data, "as in the paper", 0.1, [50], 220),
    make_sweep(datasets.load_pendigits_data, "as in the paper", 0.3, [50], 100),
    make_sweep(datasets.load_pendigits_data, "as in the paper", 1.0, [50], 60),
]
# ======================================================================================================================


def main():
    """Run what the sweeps miss, then write the documents; the exit status: 0, 130 if interrupted, 2 if a sweep is not
    complete, in which case nothing is written."""
    incomplete = []
    for i, sweep in enumerate(SWEEPS, start=1):
        print(f"sweep {i} of {len(SWEEPS)}", flush=True)
        exit_status = benchmark.main({**benchmark.get_hyperparameters(), **sweep})
        if exit_status == 130:
            return exit_status
        if exit_status:
            incomplete.append(Path(sweep["result_file"]).name)
    if incomplete:
        print(f"study: nothing is written; not complete, see above: {', '.join(incomplete)}", file=sys.stderr)
        return 2
    datasets_folder = Path(benchmark.__file__).parent / benchmark.datasets_folder
    nb_samples = {datasets.get_dataset_name_for_loading_function(load_data): len(load_data(datasets_folder)[0][0])
                  for sweep in SWEEPS for load_data in sweep["dataset_loading_functions"]}
    write_documents([load_results(sweep["result_file"]) for sweep in SWEEPS], nb_samples, FOLDER, DOCS_FOLDER)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
