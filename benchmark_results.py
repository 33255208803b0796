"""The file of results: plain data in a pickle, saved while the sweep runs, read back without executing anything; and
what decides which of its runs a sweep can take over.

Notebooks need `load_results` only; it imports nothing but the standard library.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Hyperparameters that only choose which runs there are.
SWEEP_LISTS = ("dataset_names", "training_set_shares", "model_names", "nb_neurons_list", "nb_iterations")
# Hyperparameters that change neither the runs nor their results; the data themselves are compared.
EXECUTION_HYPERPARAMETERS = ("datasets_folder", "nb_jobs", "dask_scheduler_address")
SHARE_OF_TIME = 0.02  # that saving may take


class Run(NamedTuple):
    """Identity of one training."""
    dataset: str
    share: float
    model_name: str
    nb_neurons: int
    iteration: int

    def __str__(self):
        return "{} {:g}, {}, {} neurons, iteration {}".format(*self)


# ---- reading and writing ----

class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        raise ValueError(f"it wants {module}.{name}, and plain Python data needs none of that")


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj):  # is not called for plain data
        raise TypeError(f"results must be plain Python data, got {type(obj)}: {obj!r}")


def load_results(path="benchmark_result.p"):
    """The results dict in a file, which is read as data: nothing in it is executed.

    :raises FileNotFoundError: there is no such file
    :raises ValueError: the file is truncated, no results dict, or holds anything but plain Python data
    """
    if not (path := Path(path).expanduser()).is_file():
        raise FileNotFoundError(f"{path} does not exist; python benchmark.py writes one")
    try:
        with path.open("rb") as file:
            results = _PlainUnpickler(file).load()
    except Exception as problem:  # of many types, for malformed pickles
        raise ValueError(f"{path} is refused, it is no intact file of results: {problem}") from problem
    if not isinstance(results, dict) or not all(name in results for name in (*SWEEP_LISTS, "failures")):
        raise ValueError(f"{path} is refused, it holds no results of benchmark.py")
    return results


def save_results(results, path):
    """Write plain Python data to a file that is complete at any moment: beside it, then moved into place.

    :raises OSError: the file cannot be written; the old one is untouched
    :raises TypeError: results hold anything but plain Python data
    """
    with written_beside(path) as beside, beside.open("wb") as file:
        _PlainPickler(file, protocol=4).dump(results)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def written_beside(path):
    """The path of a file to write, beside another one whose place and mode it takes afterwards, unless that fails."""
    path = Path(os.path.realpath(path))  # a link stays one
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        if path.exists():
            beside.chmod(path.stat().st_mode)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def keep_file(path):
    """Copy a file that is to be replaced, under a name with its time; that path, None if there is no file."""
    if not (path := Path(os.path.realpath(path))).exists():
        return None
    kept = path.with_stem(f"{path.stem}_{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d_%H-%M-%S}")
    while kept.exists():
        kept = kept.with_stem(f"{kept.stem}_")
    return shutil.copy2(path, kept)


@contextmanager
def lock_results(path):
    """While this lasts, no other sweep writes the file of results; ValueError if one does."""
    from filelock import FileLock, Timeout  # here, so that notebooks need none
    try:
        with FileLock(f"{os.path.realpath(path)}.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another benchmark.py is writing {path}; wait for it or set another result_file") from None


# ---- what results depend on ----

def get_environment(device):
    """{name: str or int} of what the results may depend on beside the hyperparameters."""
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "numpy", "scikit-learn")},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "nb_cores": os.cpu_count(),
        "device": str(device),
        "start_time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def digest_arrays(*arrays):
    """Digest (str) of NumPy arrays: of the dtype, shape and values of each, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(array.ravel())
    return digest.hexdigest()


def digest_code(*parts):
    """Digest (str) of code as syntax trees, to which comments, docstrings and layout do not belong.

    :param parts: files (pathlib.Path), functions, or texts that are taken as they are
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if not isinstance(part, str):
            part = _dump_tree(part.read_text(encoding="utf-8") if isinstance(part, Path) else inspect.getsource(part))
        digest.update(part.encode())
    return digest.hexdigest()


@cache  # for families have most of their files in common
def _dump_tree(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


# ---- a sweep's results, kept on disk ----

class ResultsFile:
    """Results of a sweep, saved with every run while that is cheap, else so rarely that it takes about 2 % of the time.

    Opening it takes over the runs of the file that is there, also those that the sweep's lists do not name. It starts
    afresh where other hyperparameters or versions differ, and with the runs of a family whose code, or a data set whose
    arrays have changed; then the old file is kept under another name.

    :param hyperparameters: {name: plain value}, with the SWEEP_LISTS
    :param code_digests: {model name: digest (str) of the code that its runs depend on}
    :param get_data_digest: function from the name of a data set to the digest (str) of its arrays; may raise anything
    :raises ValueError: a data set is named like another entry of the results
    :raises OSError: the folder cannot be written
    """

    def __init__(self, path, hyperparameters, environment, code_digests, get_data_digest):
        self.path = Path(path)
        self.results = {**hyperparameters, "environment": {**environment, "code_digests": code_digests,
                                                           "data_digests": {}}, "failures": []}
        if names := set(hyperparameters["dataset_names"]) & set(self.results):
            raise ValueError(f"a data set cannot be named {names.pop()}, the name of another entry of the results")
        self.runs = [Run(dataset, share, model_name, nb_neurons, iteration)
                     for dataset in hyperparameters["dataset_names"]
                     for share in hyperparameters["training_set_shares"]
                     for nb_neurons in hyperparameters["nb_neurons_list"]
                     for model_name in hyperparameters["model_names"]
                     for iteration in range(hyperparameters["nb_iterations"])]
        for run in self.runs:  # so that the order in the file is that of the sweep, whatever ends first
            self._iterations(run)
        self.message = self._take_over(get_data_digest) if self.path.exists() else f"{len(self.runs)} runs to do"
        self._next_save = 0.0  # time.monotonic() from which a finished run is saved at once
        save_results(self.results, self.path)  # an unwritable folder is reported now, not after the first training

    @property
    def missing_runs(self):
        """Runs without a result, in the order of the sweep."""
        return [run for run in self.runs if run.iteration not in self._iterations(run)]

    def add(self, run, result):
        """Record the result (a plain dict) of a finished run."""
        self._iterations(run)[run.iteration] = result
        self._save_now_and_then()

    def add_failure(self, reason, dataset, share=None, model_name=None, nb_neurons=None, iteration=None):
        """Record what could not be run; None stands for all shares, models, widths or iterations."""
        where = Run(dataset, share, model_name, nb_neurons, iteration)
        self.results["failures"].append({**where._asdict(), "reason": reason})
        self._save_now_and_then()

    def record_data_digest(self, dataset, digest):
        """Record the digest of the arrays of a data set; ValueError if runs in the file were made with others."""
        if self.results["environment"]["data_digests"].setdefault(dataset, digest) != digest:
            raise ValueError("the data are others than those of the runs that are there, which start afresh next time")

    def close(self):
        """Save; if that fails, in the folder for temporary files, and raise OSError, which says where."""
        try:
            save_results(self.results, self.path)
        except OSError as problem:
            elsewhere = Path(tempfile.mkdtemp(prefix=f"{self.path.stem}_"), self.path.name)
            save_results(self.results, elsewhere)
            raise OSError(f"{self.path} cannot be written ({problem}); all results are in {elsewhere}") from problem

    def _save_now_and_then(self):
        start = time.monotonic()
        if start >= self._next_save:
            try:
                save_results(self.results, self.path)
            except OSError as problem:
                print(f"{self.path} cannot be saved now, the next run tries again: {problem}", file=sys.stderr)
            self._next_save = time.monotonic() + (time.monotonic() - start) / SHARE_OF_TIME

    def _iterations(self, run):
        results = self.results
        for key in run[:-1]:
            results = results.setdefault(key, {})
        return results

    def _take_over(self, get_data_digest):
        """Take over runs of the file that is there, and keep it unless that is all; a sentence (str) about it."""
        try:
            old = load_results(self.path)
            runs, reasons, unknown = self._choose_runs(old, get_data_digest)
        # Plain data can still be of another shape than results.
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            runs, reasons, unknown = {}, [str(problem)], []
        kept = f"the old file is kept as {keep_file(self.path).name}" if reasons else ""
        if not runs and reasons:
            return f"starting afresh with {len(self.runs)} runs, {kept}: {', '.join(reasons)}"
        for run, result in runs.items():
            self._iterations(run)[run.iteration] = result
        new, environment, nb_missing = self.results["environment"], old["environment"], len(self.missing_runs)
        environment["code_digests"].update(new["code_digests"])
        for dataset in environment["data_digests"].keys() - {run.dataset for run in runs}:
            del environment["data_digests"][dataset]
        self.results["environment"] = environment
        message = f"complete: all {len(self.runs)} runs are there"
        if nb_missing:
            message = f"resuming: {len(self.runs) - nb_missing} of {len(self.runs)} runs are there, {nb_missing} to do"
            environment.setdefault("resumed", []).append(new)  # who went on, beside who started the sweep
            if old["failures"]:
                message += f", {len(old['failures'])} recorded failures are tried again"
        return "; ".join([message, *reasons, *unknown, *[kept] * bool(kept)])

    def _choose_runs(self, old, get_data_digest):
        """({run: result} of an old file that this sweep can take over, why it cannot take others, what is unknown)"""
        new, environment = self.results, old["environment"]
        datasets = dict.fromkeys([*old["dataset_names"], *environment["data_digests"]])
        ignored = {*SWEEP_LISTS, *EXECUTION_HYPERPARAMETERS, "environment", "failures"}
        for name in {**new, **old}.keys() - {*ignored, *datasets, *new["dataset_names"]}:
            if old.get(name) != new.get(name):
                return {}, [f"{name} was {old.get(name)!r}, is {new.get(name)!r}"], []
        for name in ("torch", "numpy", "scikit-learn"):
            if environment[name] != new["environment"][name]:
                return {}, [f"another version of {name}"], []
        runs = {Run(dataset, share, model_name, nb_neurons, iteration): result for dataset in datasets
                for share, models in old[dataset].items() for model_name, widths in models.items()
                for nb_neurons, iterations in widths.items() for iteration, result in iterations.items()}
        changed, unknown = {}, []
        for name in dict.fromkeys(run.model_name for run in runs):
            old_digest = environment["code_digests"].get(name)
            if new["environment"]["code_digests"].get(name, old_digest) != old_digest:
                changed[name] = f"the code of {name} has changed"
        for dataset in [name for name in new["dataset_names"] if name in {run.dataset for run in runs}]:
            try:
                if get_data_digest(dataset) != environment["data_digests"].get(dataset):
                    changed[dataset] = f"the data of {dataset} have changed"
            except Exception as problem:  # of any loading function; no reason to give up what is there
                unknown.append(f"whether the data of {dataset} are still the same is unknown ({problem})")
        runs = {run: result for run, result in runs.items() if not {run.dataset, run.model_name} & changed.keys()}
        return runs, list(changed.values()), unknown
