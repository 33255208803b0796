"""The file of results: plain data in a pickle, saved while the sweep runs, read back without executing anything.

Notebooks need `load_results` only; it imports nothing but the standard library.
"""

import errno
import importlib.metadata
import os
import pickle
import platform
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

# Hyperparameters that only choose which runs there are: a sweep with more of them contains all runs of one with less.
SWEEP_LISTS = ("dataset_names", "training_set_shares", "model_names", "nb_neurons_list")
# Hyperparameters that change neither the runs nor their results; the data themselves are compared.
EXECUTION_HYPERPARAMETERS = ("datasets_folder", "nb_jobs", "joblib_backend", "dask_scheduler_address")
BYTES_PER_RUN = 10_000  # of about 300 epochs, rounded up; to see in advance whether the disk has room
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems say that have none, e.g. of clusters


class Run(NamedTuple):
    """Identity of one training."""
    dataset: str
    share: float
    model_name: str
    nb_neurons: int
    iteration: int

    def __str__(self):
        return (f"{self.dataset} {self.share:g}, {self.model_name}, {self.nb_neurons} neurons, "
                f"iteration {self.iteration}")


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
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; python benchmark.py writes one")
    try:
        with path.open("rb") as file:
            results = _PlainUnpickler(file).load()
    # Malformed pickles raise exceptions of many types.
    except Exception as problem:
        raise ValueError(f"{path} is refused, it is no intact file of results: {problem}") from problem
    expected = (*SWEEP_LISTS, "nb_iterations", "failures")
    if not isinstance(results, dict) or not all(name in results for name in expected):
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
    """The path of a file to write, beside another one whose place it takes afterwards, if nothing was raised."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        replace_file(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def finish_script(script, result, path, plot):
    """Save a script's result in the end, an older file kept, and its figure beside; the exit status, 0 or 2."""
    try:
        save_in_the_end(result, path, keep_old=True)
        plot(result).savefig(path.with_suffix(".png"), dpi=100)
    except Exception as problem:  # the result is safe, whatever it is
        print(f"{script}: {problem}", file=sys.stderr)
        return 2
    return 0


def save_in_the_end(results, path, keep_old=False):
    """As save_results, but if that fails save in the folder for temporary files and raise OSError, which says where.

    :param keep_old: whether an older file stays, under another name, see get_kept_path
    """
    path = Path(path)
    try:
        if keep_old and path.exists():
            replace_file(path, get_kept_path(path))
        save_results(results, path)
    except OSError as problem:
        elsewhere = Path(tempfile.mkdtemp(prefix=f"{path.stem}_"), path.name)
        save_results(results, elsewhere)
        raise OSError(f"{path} cannot be written any more ({problem}); all results are in {elsewhere}") from problem


def replace_file(source, target):
    """os.replace, tried again for 1.5 seconds: Windows refuses it while a virus scanner or an indexer reads a file."""
    for pause in (0.05, 0.1, 0.2, 0.4, 0.8):
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


def get_kept_path(path):
    """Where to keep a file that is to be replaced: beside it, its time in its name, and no other file there."""
    stamp = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d_%H-%M-%S")
    kept = path.with_name(f"{path.stem}_{stamp}{path.suffix}")
    while kept.exists():
        kept = kept.with_name(f"{kept.stem}_{path.suffix}")
    return kept


@contextmanager
def lock_results(path):
    """While this lasts, no other sweep writes the file of results; ValueError if one does.

    Where the file system has no locks a file `.in_use` beside it takes their place. It is left behind by a process that
    is killed, and counts no more if that ran on this machine.
    """
    from filelock import FileLock, SoftFileLock, Timeout  # here, so that notebooks need none

    lock = FileLock(f"{path}.lock", timeout=0, fallback_to_soft=False)
    try:
        try:
            lock.acquire()
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
            print(f"the file system of {path} has no locks ({problem}): the file {path}.in_use takes their place",
                  file=sys.stderr, flush=True)
            lock = SoftFileLock(f"{path}.in_use", timeout=1)  # enough to see that a holder is dead
            lock.acquire()
    except Timeout:
        raise ValueError(f"another benchmark.py is writing {path}; wait for it or set another result_file. "
                         f"If there is none, delete {lock.lock_file}") from None
    try:
        yield
    finally:
        lock.release()


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


# ---- a sweep's results, kept on disk ----

class ResultsFile:
    """Results of a sweep, saved by a thread in the background: at once while that is cheap, and so rarely that it
    takes about 2 % of the time, but at least once a minute, when the file is large.

    Opening it resumes what an interrupted sweep left there, or a smaller one. Runs that depend on other code or data
    are not taken over; unless all are, the old file is kept under another name.

    :param hyperparameters: {name: plain value}, with the SWEEP_LISTS and nb_iterations
    :param code_digests: {model name: digest (str) of the code that its runs depend on}
    :param get_data_digest: function from the name of a data set to the digest (str) of its arrays; may raise anything
    :raises ValueError: a data set is named like another entry of the results
    :raises OSError: the folder cannot be written, or the disk has no room for the results
    """

    LARGEST_SHARE_OF_TIME = 0.02
    LONGEST_DELAY = 60  # seconds

    def __init__(self, path, hyperparameters, environment, code_digests, get_data_digest):
        self.path = Path(path)
        self.results = {**hyperparameters, "environment": {**environment, "code_digests": code_digests,
                                                           "data_digests": {}}, "failures": []}
        for dataset in set(hyperparameters["dataset_names"]) & set(self.results):
            raise ValueError(f"a data set cannot be named {dataset}, the name of another entry of the results")
        self.runs = [Run(dataset, share, model_name, nb_neurons, iteration)
                     for dataset in hyperparameters["dataset_names"]
                     for share in hyperparameters["training_set_shares"]
                     for nb_neurons in hyperparameters["nb_neurons_list"]
                     for model_name in hyperparameters["model_names"]
                     for iteration in range(hyperparameters["nb_iterations"])]
        for run in self.runs:  # so that the order in the file is that of the sweep, whatever ends first
            self._iterations(run)
        self.message, kept_path = self._resume(environment, get_data_digest)
        needed = 2 * BYTES_PER_RUN * len(self.missing_runs)  # in the new file, and once more in the one beside it
        needed += self.path.stat().st_size if kept_path else 0
        free = shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise OSError(f"the disk of {self.path} has {free // 1000:,} kB left, but the results of "
                          f"{len(self.missing_runs)} runs may need {-(-needed // 1000):,} kB")
        if kept_path:
            shutil.copy2(self.path, kept_path)  # a copy, so that no crash leaves a folder without the file itself
        save_results(self.results, self.path)  # an unwritable folder is reported now, not after the first training
        self._lock, self._changed, self._closing = threading.Lock(), threading.Event(), False
        self._saver = threading.Thread(target=self._save_in_background, daemon=True)
        self._saver.start()

    @property
    def missing_runs(self):
        """Runs without a result, in the order of the sweep."""
        return [run for run in self.runs if run.iteration not in self._iterations(run)]

    def add(self, run, result):
        """Record the result (a plain dict) of a finished run."""
        with self._lock:
            self._iterations(run)[run.iteration] = result
        self._changed.set()

    def add_failure(self, reason, dataset, share=None, model_name=None, nb_neurons=None, iteration=None):
        """Record what could not be run; None stands for all shares, models, widths or iterations."""
        with self._lock:
            self.results["failures"].append(dict(dataset=dataset, share=share, model_name=model_name,
                                                 nb_neurons=nb_neurons, iteration=iteration, reason=reason))
        self._changed.set()

    def record_data_digest(self, dataset, digest):
        """Record the digest of the arrays of a data set; ValueError if runs in the file were made with others."""
        with self._lock:
            recorded = self.results["environment"]["data_digests"].setdefault(dataset, digest)
        if recorded != digest:
            raise ValueError("the data are others than those of the runs that are there, which start afresh next time")

    def close(self):
        """Save what is not saved yet; if that fails, in the folder for temporary files, and raise OSError."""
        self._closing = True
        self._changed.set()
        self._saver.join()
        save_in_the_end(self.results, self.path)

    def _iterations(self, run):
        results = self.results
        for key in run[:-1]:
            results = results.setdefault(key, {})
        return results

    def _resume(self, environment, get_data_digest):
        """Take over the runs of the file that is there: a sentence about it, and the path to keep it at if not all."""
        if not self.path.exists():
            return f"{len(self.runs)} runs to do", None
        taken, unchecked = {}, []
        try:
            old = load_results(self.path)
            reasons = self._difference(old)
            if not reasons:
                taken, reasons, unchecked = self._find_runs(old, get_data_digest)
        # Plain data can still be of another shape than results.
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            reasons = [str(problem)]
        kept = get_kept_path(self.path) if reasons else None
        if reasons and not taken:
            return (f"starting afresh with {len(self.runs)} runs, the old file is kept as {kept.name}: "
                    f"{', '.join(reasons)}"), kept
        for run, result in taken.items():
            self._iterations(run)[run.iteration] = result
        nb_missing, nb_failures = len(self.missing_runs), len(old["failures"])
        message = f"complete: all {len(self.runs)} runs are there"
        with_runs = {run.dataset for run in taken}
        self.results["environment"] = {
            **old["environment"], "code_digests": self.results["environment"]["code_digests"], "data_digests": {
                name: digest for name, digest in old["environment"]["data_digests"].items() if name in with_runs}}
        if nb_missing:
            # Who started the sweep is still known, and who went on with it.
            self.results["environment"].setdefault("resumed", []).append(environment)
            message = (f"resuming: {len(taken)} of {len(self.runs)} runs are there, {nb_missing} to do"
                       + (f", {nb_failures} recorded failures are tried again" if nb_failures else ""))
        if reasons:
            message += f"; {', '.join(reasons)}: these runs start afresh, the old file is kept as {kept.name}"
        return "; ".join([message, *unchecked]), kept

    def _find_runs(self, old, get_data_digest):
        """Runs of an old file with the same code and data, {run: result}; what has changed, what is unknown (lists)."""
        runs = {run: result for run in self.runs if (result := _find(old, run))}
        changes, unchecked = [], []
        code, old_code = self.results["environment"]["code_digests"], old["environment"]["code_digests"]
        families = list(dict.fromkeys(run.model_name for run in runs))
        changed = [name for name in families if code[name] != old_code.get(name)]
        if changed:
            changes.append("the code has changed" if changed == families
                           else f"the code of {', '.join(changed)} has changed")
            runs = {run: result for run, result in runs.items() if run.model_name not in changed}
        for dataset in dict.fromkeys(run.dataset for run in runs):
            try:
                digest = get_data_digest(dataset)
            except Exception as problem:  # of any loading function; no reason to give up what is there
                first_line = f"{type(problem).__name__}: {problem}".splitlines()[0]
                unchecked.append(f"whether the data of {dataset} are still the same is unknown ({first_line})")
                continue
            if digest != old["environment"]["data_digests"].get(dataset):
                changes.append(f"the data of {dataset} have changed")
                runs = {run: result for run, result in runs.items() if run.dataset != dataset}
        return runs, changes, unchecked

    def _difference(self, old):
        """Why no run of an old file is one of this sweep, or it has others: a list of one reason or none."""
        new = self.results
        for name in SWEEP_LISTS:
            if not set(old[name]) <= set(new[name]):
                return [f"{name} lacks {', '.join(map(str, set(old[name]) - set(new[name])))}"]
        if old["nb_iterations"] > new["nb_iterations"]:
            return [f"nb_iterations was {old['nb_iterations']}"]
        others = {*SWEEP_LISTS, *EXECUTION_HYPERPARAMETERS, "nb_iterations", "environment", "failures"}
        values_old, values_new = ({name: value for name, value in results.items()
                                   if name not in others and name not in results["dataset_names"]}
                                  for results in (old, new))
        for name in {**values_new, **values_old}:
            if name not in values_old or name not in values_new or values_old[name] != values_new[name]:
                return [f"{name} was {values_old.get(name)!r}, is {values_new.get(name)!r}"]
        for name in ("torch", "numpy", "scikit-learn"):
            if old["environment"].get(name) != new["environment"].get(name):
                return [f"another version of {name}"]
        if "data_digests" not in old["environment"]:
            return ["an earlier version wrote it, which kept no digests of the data"]
        return []

    def _save_in_background(self):
        while not self._closing:
            self._changed.wait()
            self._changed.clear()
            if self._closing:
                return
            start = time.monotonic()
            try:
                with self._lock:
                    save_results(self.results, self.path)
                delay = min((time.monotonic() - start) / self.LARGEST_SHARE_OF_TIME, self.LONGEST_DELAY)
            except OSError as problem:
                print(f"{self.path} cannot be saved now, this is tried again: {problem}", file=sys.stderr, flush=True)
                self._changed.set()
                delay = self.LONGEST_DELAY
            deadline = time.monotonic() + delay
            while not self._closing and time.monotonic() < deadline:
                time.sleep(min(0.05, delay))


def _find(results, run):
    """The entry of a run in a results dict, empty if there is none."""
    for key in run:
        results = results.get(key, {})
    return results
