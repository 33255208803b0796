"""Checks of arguments and inputs that nets, training and scripts share. Every one raises ValueError, which names the
value and what would do instead.
"""

import math
import os
import tempfile
from numbers import Integral, Real
from pathlib import Path, PurePath

import numpy as np
import torch

RESERVED_SUFFIXES = (".png", ".pdf", ".svg", ".lock", ".py", ".ipynb")  # of figures, locks and scripts


def check_positive_integers(**sizes):
    """Each named size is an integer of 1 or more."""
    for name, size in sizes.items():
        # numbers.Integral rather than int: sizes often come from NumPy arrays.
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")


def check_integers(**values):
    """Each named value is an integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be an integer, got {value!r}")


def check_seed(seed):
    """The seed is an integer that all random generators take."""
    check_integers(seed=seed)
    if not 0 <= seed < 2 ** 32:
        raise ValueError(f"seed must be 0 or more and below 2 ** 32, got {seed!r}")


def check_finite_numbers(**values):
    """Each named value is a real number, neither NaN nor infinite."""
    for name, value in values.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_shares(name, values):
    """The values are numbers in (0, 1]."""
    for value in values:
        if not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {value!r}")


def check_choice(name, value, choices):
    """The value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_distinct(name, values):
    """The values are a list or tuple of one entry or more, none of them twice."""
    is_list = isinstance(values, (list, tuple))
    if not is_list or not values or any(values.count(value) > 1 for value in values):
        raise ValueError(f"{name} must be a list of one entry or more without repetitions, got {values!r}"
                         f"{'' if is_list else '; put it in brackets, [ ]'}")


def to_plain_data(name, value):
    """A hyperparameter as int, float, bool, str, None or lists of them; numbers of any type, arrays, tensors, tuples,
    ranges and paths work as well."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, (str, PurePath)):
        return str(value)
    if isinstance(value, (list, tuple, range)):
        return [to_plain_data(name, entry) for entry in value]
    raise ValueError(f"{name} must be made of numbers, text, None and lists of them, got {value!r}")


def check_device(device):
    """The device, a name or a torch.device, is one that PyTorch finds here; returns its name (str)."""
    nb_gpus = torch.cuda.device_count()
    available = ["cpu", *["cuda"] * (nb_gpus > 0), *(f"cuda:{i}" for i in range(nb_gpus))]
    if str(device) not in available:
        raise ValueError(f"device must be one of those that PyTorch finds here, {', '.join(map(repr, available))}; "
                         f"got {device!r}")
    return str(device)


# ---- the hyperparameters of a script ----

class _Hyperparameters(dict):
    def __missing__(self, name):
        raise ValueError(f"there is no hyperparameter {name}; is one of these misspelt: {', '.join(self)}?")


def check_script_hyperparameters(hyperparameters, folder, functions=()):
    """What all scripts check before they measure anything: their hyperparameters are plain data, device and seed are
    good, and results can be written.

    :param hyperparameters: {name: value}
    :param folder: what a relative `result_file` is relative to
    :param functions: names of hyperparameters that hold functions, which are left as they are
    :return: the same with plain values; a `~` at the start of a path is replaced; ValueError for names it lacks
    """
    if "device" in hyperparameters:
        hyperparameters = {**hyperparameters, "device": check_device(hyperparameters["device"])}
    plain = _Hyperparameters({name: value if name in functions else to_plain_data(name, value)
                              for name, value in hyperparameters.items()
                              if getattr(value, "__name__", None) != name})  # what their block imports is none
    for name in plain.keys() & {"result_file", "datasets_folder"}:
        plain[name] = _check_path(name, plain[name])
    if "seed" in plain:
        check_integers(seed=plain["seed"])
    _check_result_file(plain["result_file"], folder)
    return plain


def _check_path(name, value):
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be the name of a file or folder, got {value!r}")
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(f"{name} is {value!r}, but there is no such home folder; a folder of that name is './{value}'")
    return path


def _check_result_file(result_file, folder):
    path = Path(folder, result_file)
    if path.suffix.lower() in RESERVED_SUFFIXES:
        raise ValueError(f"result_file must not end in {path.suffix}, which other files do, got {result_file!r}")
    try:
        check_writable(path)
        check_writable(path.with_suffix(".png"))  # the figure's
    except (OSError, ValueError) as problem:
        raise ValueError(f"result_file is {result_file!r}, but it or the figure beside it cannot be written; set "
                         f"another one: {problem}") from problem


def check_writable(path):
    """Raise OSError or ValueError if a file cannot be written, or replaced if there is one; changes nothing."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    if path.exists():
        path.open("ab").close()
    with tempfile.NamedTemporaryFile(prefix=path.name, dir=path.parent):  # with a name like that of the file
        pass


# ---- arrays and tensors ----

def to_tensor(name, values, rows=None):
    """Real numbers, a tensor, an array of any form in memory or lists, as a tensor without gradient.

    An array is copied, once: torch takes no foreign byte order, no negative strides, read-only memory under protest.

    :param rows: array of int, which rows to take and in which order; None: all
    :raises ValueError: entries that are no real numbers, or a masked or sparse form
    """
    if isinstance(values, torch.Tensor):
        if values.is_complex() or values.layout != torch.strided:
            raise ValueError(f"{name} must be real numbers, not sparse, got {values.dtype} and {values.layout}")
        return values.detach() if rows is None else values.detach()[torch.from_numpy(rows).to(values.device)]
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or np.ma.is_masked(values):
        raise ValueError(f"{name} must be real numbers of at most 64 bits, not masked, got dtype {array.dtype}")
    dtype = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype, order="C") if rows is None
                            else np.asarray(array[rows], dtype, order="C"))  # which is a copy already


def to_matrix(matrix):
    """A matrix, in any form that to_tensor takes, as a tensor with finite entries."""
    matrix = to_tensor("matrix", matrix)
    if matrix.dim() != 2 or not matrix.numel():
        raise ValueError(f"matrix must have two dimensions and entries, got shape {tuple(matrix.shape)}")
    check_finite(matrix=matrix)
    return matrix


def check_finite(**tensors):
    """Each named tensor has real and finite entries only."""
    for name, values in tensors.items():
        if values.is_complex() or not torch.isfinite(values).all():
            raise ValueError(f"{name} has entries that are complex, NaN or infinite")


def get_weight_dtype(layer):
    """The dtype of a layer's weight; None if it has none that is a tensor, as containers and quantised layers."""
    weight = getattr(layer, "weight", None)
    return weight.dtype if isinstance(weight, torch.Tensor) else None


def is_autocast_enabled(X):
    """Whether autocast is at work on a tensor's device; on the meta device, which torch would refuse to tell, never."""
    return not X.is_meta and torch.is_autocast_enabled(X.device.type)


def check_dtype(X, dtype):
    """A tensor has the dtype of the parameters, unless that is None, or a floating-point one under autocast."""
    under_autocast = is_autocast_enabled(X) and X.is_floating_point()
    if dtype is not None and X.dtype != dtype and not under_autocast:
        or_module = f", or the module, module.to({X.dtype})" if X.is_floating_point() else ""
        raise ValueError(f"expected an input of dtype {dtype}, the dtype of the parameters, got {X.dtype}; "
                         f"convert the input, X.to({dtype}){or_module}")


def check_features(X, nb_features, dtype):
    """A tensor is (..., nb_features) and has the right dtype, see check_dtype."""
    if X.dim() == 0 or X.shape[-1] != nb_features:
        raise ValueError(f"expected an input of shape (..., {nb_features}), got {tuple(X.shape)}")
    check_dtype(X, dtype)


# ---- the arrays of a data set ----

NUMBERED = "numpy.unique(labels, return_inverse=True)[1] numbers any, those of y_train and y_test together"


def check_data(loaded):
    """X_train, y_train, X_test, y_test of what a loading function returns, as nets take them: X float32, y int64.

    :raises ValueError: there is nothing to train and test a net on; the message says why, and what would be
    """
    try:
        (X_train, y_train), (X_test, y_test) = loaded
    except (TypeError, ValueError) as problem:
        raise ValueError("a loading function must return (X_train, y_train), (X_test, y_test)") from problem
    X_train, X_test = _check_samples("X_train", X_train), _check_samples("X_test", X_test)
    if X_train.shape[1:] != X_test.shape[1:]:
        raise ValueError(f"a sample of X_train has shape {X_train.shape[1:]}, but one of X_test {X_test.shape[1:]}")
    y_train, y_test = _check_labels("y_train", y_train, len(X_train)), _check_labels("y_test", y_test, len(X_test))
    classes = np.unique(y_train)
    if len(classes) < 2 or classes[0] != 0 or classes[-1] != len(classes) - 1:
        is_shifted = np.ptp(classes) == len(classes) - 1 > 0
        raise ValueError(f"y_train must hold two classes or more, 0, 1, ... and none left out, but holds "
                         f"{_list_labels(classes)}; {'y - y_train.min() starts at 0' if is_shifted else NUMBERED}")
    if not np.isin(y_test, classes).all():
        raise ValueError(f"y_test holds classes that y_train lacks: {_list_labels(np.setdiff1d(y_test, classes))}")
    return X_train, y_train, X_test, y_test


def _check_samples(name, X):
    X = _to_array(name, X)
    if X.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got dtype {X.dtype}")
    if X.ndim not in (2, 4) or X.size == 0:
        raise ValueError(f"{name} must have shape (samples, features) or, for images, (samples, channels, height, "
                         f"width), got {X.shape}" + ("; X[:, numpy.newaxis] adds an axis" if X.ndim in (1, 3) else ""))
    if X.ndim == 4:
        from standardmodels import ConvFeatureExtractorBase  # which imports this file

        try:
            ConvFeatureExtractorBase(torch.empty(X.shape[1:], device="meta"))
        except ValueError as problem:
            raise ValueError(f"{name}: {problem}; X.transpose(0, 3, 1, 2) puts channels first that are last, "
                             f"X.reshape(len(X), -1) makes vectors of images") from problem
    with np.errstate(over="ignore"):  # which the next check finds
        X = np.ascontiguousarray(X, dtype=np.float32)
    invalid = np.flatnonzero(~np.isfinite(X).all(axis=tuple(range(1, X.ndim))))
    if len(invalid):
        raise ValueError(f"{name}[{invalid[0]}] has NaN or infinite values, as {len(invalid)} of {len(X)} samples; "
                         f"remove or replace them")
    return X


def _check_labels(name, y, nb_samples):
    y = _to_array(name, y)
    if y.shape != (nb_samples,):
        raise ValueError(f"{name} must have shape ({nb_samples},), a label for each sample, got {y.shape}" + (
            "; y.ravel() has it" if y.size == nb_samples else "; y.argmax(1) has it, if y is one-hot" * (y.ndim == 2)))
    if y.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, got {y[:1].tolist()[0]!r} of dtype {y.dtype}; y.astype(int) "
                         f"converts whole numbers, {NUMBERED}")
    return np.ascontiguousarray(y, dtype=np.int64)


def _to_array(name, values):
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; remove or replace them")
    try:
        return np.asarray(values)
    except ValueError as problem:  # lists of unequal lengths
        raise ValueError(f"{name} is no array: {problem}") from problem


def _list_labels(labels):
    return ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
