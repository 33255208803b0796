"""Checks of arguments that nets, training and scripts share. Every one raises ValueError, which names the value and
what would do instead.
"""

import math
import os
from numbers import Integral, Real

import numpy as np
import torch


def check_integers(minimum=1, **values):
    """Each named value is an integer of at least that."""
    for name, value in values.items():
        # numbers.Integral rather than int: sizes often come from NumPy arrays.
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(f"{name} must be an integer of {minimum} or more, got {value!r}")


def check_finite_numbers(**values):
    """Each named value is a real number, neither NaN nor infinite."""
    for name, value in values.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_choice(name, value, choices):
    """The value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_distinct(name, values):
    """The values are a list of one entry or more, none of them twice."""
    if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
        raise ValueError(f"{name} must be a list in brackets, [ ], of one entry or more without repetitions, "
                         f"got {values!r}")


def check_finite(**tensors):
    """Each named tensor has real and finite entries only."""
    for name, values in tensors.items():
        if values.is_complex() or not torch.isfinite(values).all():
            raise ValueError(f"{name} has entries that are complex, NaN or infinite")


# ---- the hyperparameters of a script ----

class _Hyperparameters(dict):
    def __missing__(self, name):
        raise ValueError(f"there is no hyperparameter {name}; is one of these misspelt: {', '.join(self)}?")


def check_script_hyperparameters(values, functions=()):
    """What all scripts check before anything runs: their hyperparameters are plain data, paths and a device.

    :param values: {name: value}
    :param functions: names of those that hold functions, which are left as they are
    :return: the same with plain values; asked for a name that it lacks, it raises ValueError
    """
    plain = _Hyperparameters({name: value if name in functions else _to_plain_data(name, value)
                              for name, value in values.items()})
    for name in {"result_file", "datasets_folder"} & plain.keys():
        if not isinstance(plain[name], str) or not plain[name]:
            raise ValueError(f"{name} must be the name of a file or folder, got {plain[name]!r}")
        plain[name] = os.path.expanduser(plain[name])
    if not plain["result_file"].endswith(".p"):  # figures and locks have the same name with another ending
        raise ValueError(f"result_file must end in .p, got {plain['result_file']!r}")
    if "device" in plain:
        check_choice("device", plain["device"], ["cpu", "cuda"][:1 + torch.cuda.is_available()] + [
            f"cuda:{i}" for i in range(torch.cuda.device_count())])
    return plain


def _to_plain_data(name, value):
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [_to_plain_data(name, entry) for entry in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{name} must be made of numbers, text, None and lists of them, got {value!r}")


# ---- the arrays of a data set ----

def check_data(loaded):
    """X_train, y_train, X_test, y_test of what a loading function returns, as nets take them: X float32, y int64.

    :raises ValueError: there is nothing to train and test a net on; the message says why, and what would be
    """
    try:
        (X_train, y_train), (X_test, y_test) = loaded
    except (TypeError, ValueError) as problem:
        raise ValueError("a loading function must return (X_train, y_train), (X_test, y_test)") from problem
    X_train, y_train = _check_part("X_train", X_train, "y_train", y_train)
    X_test, y_test = _check_part("X_test", X_test, "y_test", y_test)
    if X_train.shape[1:] != X_test.shape[1:]:
        raise ValueError(f"a sample of X_train has shape {X_train.shape[1:]}, but one of X_test {X_test.shape[1:]}")
    classes = np.unique(y_train)
    if len(classes) < 2 or not np.array_equal(classes, np.arange(len(classes))) or y_test.max() >= len(classes):
        raise ValueError(f"labels must be 0, 1, ..., two or more of them and all in y_train, which holds "
                         f"{', '.join(map(str, classes[:10]))}, with {y_test.max()} the largest in y_test; "
                         f"numpy.unique(labels, return_inverse=True)[1] numbers any, of y_train and y_test together")
    return X_train, y_train, X_test, y_test


def _check_part(X_name, X, y_name, y):
    from sklearn.utils import check_array, check_consistent_length, column_or_1d  # here, for layers need no such thing

    for name, values in ((X_name, X), (y_name, y)):  # scikit-learn would take masked arrays, and text for numbers
        if np.ma.is_masked(values):
            raise ValueError(f"{name} has masked values; remove or replace them")
        if np.asarray(values).dtype.kind not in ("iu" if name == y_name else "biuf"):
            remedy = ".toarray()" if hasattr(values, "toarray") else f".astype({'...' if name == y_name else 'float'})"
            raise ValueError(f"{name} must hold {'integers' if name == y_name else 'real numbers'}, got dtype "
                             f"{np.asarray(values).dtype}; {remedy} converts")
    try:
        X = check_array(X, dtype=np.float32, order="C", ensure_2d=False, allow_nd=True, input_name=X_name)
        y = np.ascontiguousarray(column_or_1d(y), dtype=np.int64)
        check_consistent_length(X, y)
    except ValueError as problem:
        raise ValueError(f"{X_name}, {y_name}: {problem}") from problem
    if X.ndim not in (2, 4):
        raise ValueError(f"{X_name} must have shape (samples, features) or, for images, (samples, channels, height, "
                         f"width), got {X.shape}; X[:, numpy.newaxis] adds an axis")
    if y.min() < 0:
        raise ValueError(f"{y_name} must hold labels from 0 on, got {y.min()}; y - y.min() starts at 0")
    return X, y
