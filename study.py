"""The study: do nets with a structured matrix test better, in the paper's protocol and when they are trained well?

    python study.py

runs the sweeps below with benchmark.py, each into a file of its own in `study/`. From these files it draws the figures
`docs/study_*`, and writes the tables and sentences with numbers of docs/results.md, docs/fidelity.md and README.md, all
that stands there between `<!-- study: NAME -->` and `<!-- end -->`. Started again it continues. A data set that is
missing is named and left out.
"""

import io
import pickle
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Callable, NamedTuple

from parallel_runs import start_fork_server
if __name__ == "__main__":  # as in benchmark.py
    start_fork_server(["torch._dynamo", "sklearn.model_selection"])
import numpy as np
from tqdm import tqdm

import benchmark
import datasets
from benchmark_results import load_results
from console import prints_without_failing
from datasets import (get_dataset_name_for_loading_function, load_digits_data, load_hand_posture_data, load_mnist_data,
                      load_pendigits_data)
from result_tables import get_runs
from study_documents import make_blocks, write_documents


def load_cifar10_data(datasets_folder):
    """As load_cifar10_data of datasets.py; also a part of the data, whose checksums are not the official ones.

    :raises ValueError: a file holds anything but arrays
    """
    try:
        return datasets.load_cifar10_data(datasets_folder)
    except ValueError:  # of the checksums
        folder = Path(datasets_folder, "cifar-10-batches-py")
        batches = [_ArrayUnpickler((folder / name).open("rb"), encoding="latin1").load()
                   for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        X = [batch["data"].reshape(-1, 3, 32, 32).astype(np.float32) for batch in batches]
        y = [np.array(batch["labels"], dtype=np.int64) for batch in batches]
        return (np.concatenate(X[:5]), np.concatenate(y[:5])), (X[5], y[5])


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module.replace("_core", "core"), name) in (
                ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            return super().find_class(module, name)
        raise ValueError(f"a file of CIFAR-10 wants {module}.{name}, and arrays need none of that")


class Sweep(NamedTuple):
    load_data: Callable
    protocol: str
    share: float
    nb_neurons_list: tuple
    nb_iterations: int

    @property
    def dataset(self):
        return get_dataset_name_for_loading_function(self.load_data)

    @property
    def path(self):
        parts = self.dataset, self.protocol.replace(" ", "_"), f"{self.share:g}", *map(str, self.nb_neurons_list)
        return RESULTS_FOLDER / f"{'_'.join(parts)}.p"

    def count_samples(self):
        """Number of training samples that are there, of which the share is taken."""
        return len(self.load_data(benchmark.FOLDER / benchmark.datasets_folder)[0][0])


# ======================================================================================================================
# Settings; all other hyperparameters, such as nb_jobs, are those at the top of benchmark.py

PROTOCOLS = {
    "as in the paper": {"standardise_inputs": False, "softmax_twice": True},
    "trained well": {"standardise_inputs": True, "softmax_twice": False},
}
SWEEPS = [  # data, protocol, share, numbers of neurons, iterations
    *(Sweep(load_data, protocol, *settings) for load_data, *settings in (
        (load_digits_data, 1.0, (50,), 10),
        (load_mnist_data, 0.2, (50,), 5),
        (load_cifar10_data, 1.0, (50,), 5),
        (load_hand_posture_data, 1.0, (50,), 10),
        (load_pendigits_data, 0.1, (25, 100, 200), 10),
    ) for protocol in PROTOCOLS),
    # so many that the 95 % intervals of the SSS nets' differences to the dense net are about +-0.02 or less; as in the
    # paper at share 1 that would take 300 iterations and the whole study well over an hour
    Sweep(load_pendigits_data, "trained well", 0.1, (50,), 40),
    Sweep(load_pendigits_data, "trained well", 0.3, (50,), 50),
    Sweep(load_pendigits_data, "trained well", 1.0, (50,), 30),
    Sweep(load_pendigits_data, "as in the paper", 0.1, (50,), 220),
    Sweep(load_pendigits_data, "as in the paper", 0.3, (50,), 260),
    Sweep(load_pendigits_data, "as in the paper", 1.0, (50,), 150),
]
FOLDER = Path(__file__).resolve().parent
RESULTS_FOLDER = FOLDER / "study"
FIGURES_FOLDER = FOLDER / "docs"
DOCUMENTS = [FOLDER / "README.md", FOLDER / "docs" / "results.md", FOLDER / "docs" / "fidelity.md"]
# ======================================================================================================================


@prints_without_failing
def main():
    """Run what is missing of the sweeps, then write the documents; the exit status is as benchmark.py's."""
    try:
        exit_status = run_sweeps()
        if exit_status < 2:
            study = {sweep: get_runs(load_results(sweep.path))[0] for sweep in SWEEPS}
            nb_samples = {sweep.dataset: sweep.count_samples() for sweep, runs in study.items() if any(runs.values())}
            write_documents(make_blocks(study, nb_samples, FIGURES_FOLDER), DOCUMENTS)
    except KeyboardInterrupt:  # between two sweeps
        exit_status = 130
    except (OSError, ValueError) as problem:
        print(f"study.py: {problem}", file=sys.stderr)
        exit_status = 2
    if exit_status > 2:
        print("study.py: interrupted, python study.py continues", file=sys.stderr)
    return exit_status


def run_sweeps():
    """The largest exit status of benchmark.py, which ends this if it is larger than 1."""
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    settings = [{**benchmark.get_hyperparameters(), **PROTOCOLS[sweep.protocol],
                 "dataset_loading_functions": [sweep.load_data], "training_set_shares": [sweep.share],
                 "nb_neurons_list": sweep.nb_neurons_list, "nb_iterations": sweep.nb_iterations,
                 "result_file": sweep.path} for sweep in SWEEPS]
    nb_runs = [len(s["model_names"]) * len(s["nb_neurons_list"]) * s["nb_iterations"] for s in settings]
    largest_status = 0
    with tqdm(total=sum(nb_runs), unit="run", disable=None, dynamic_ncols=True) as bar:
        for sweep, hyperparameters, nb_runs_here in zip(SWEEPS, settings, nb_runs):
            bar.set_description(sweep.path.stem)
            # On a terminal the bars, this one and the sweep's, say enough.
            with nullcontext() if bar.disable else redirect_stdout(io.StringIO()):
                exit_status = benchmark.main(hyperparameters, figures=())
            bar.update(nb_runs_here)
            largest_status = max(largest_status, exit_status)
            if exit_status > 1:
                break
    return largest_status


if __name__ == "__main__":
    sys.exit(main())
