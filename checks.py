"""Checks of arguments and inputs that nets, training and scripts share. Every one raises ValueError, which names the
value and what would do instead.
"""

import math
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch


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


def check_finite_numbers(**values):
    """Each named value is a real number, neither NaN nor infinite."""
    for name, value in values.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_finite(**tensors):
    """Each named tensor has real and finite entries only."""
    for name, values in tensors.items():
        if values.is_complex() or not torch.isfinite(values).all():
            raise ValueError(f"{name} has entries that are complex, NaN or infinite")


def check_shares(name, values):
    """The values are numbers in (0, 1]."""
    for value in values:
        if not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {value!r}")


def check_choice(name, value, choices):
    """The value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_file_name(name, value, *other_suffixes):
    """The value is the path of a file, whose name does not end like those of other files beside it."""
    if not isinstance(value, str) or not value or value.endswith(other_suffixes):
        raise ValueError(f"{name} must be the name of a file that does not end in {' or '.join(other_suffixes)}, "
                         f"got {value!r}")


def check_distinct(name, values):
    """The values are a list or tuple of one entry or more, none of them twice."""
    if not isinstance(values, (list, tuple)) or not values or any(values.count(value) > 1 for value in values):
        raise ValueError(f"{name} must be a list of one entry or more without repetitions, got {values!r}")


def to_plain_data(value):
    """A hyperparameter without the types that work as well: NumPy's numbers and arrays, pathlib's paths, and tuples."""
    if isinstance(value, (list, tuple, range, np.ndarray)):
        return [to_plain_data(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else str(value) if isinstance(value, Path) else value


def check_device(device):
    """The device, a name or a torch.device, is one that PyTorch finds here; returns its name (str)."""
    name = str(device)
    try:
        known = torch.device(name).type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got {device!r}")
    if name.startswith("cuda") and (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but PyTorch finds {torch.cuda.device_count()} GPUs that it can use; "
                         f"set it to 'cpu'")
    return name


def get_weight_dtype(layer):
    """The dtype of a layer's weight; None if it has none that is a tensor, as containers and quantised layers."""
    weight = getattr(layer, "weight", None)
    return weight.dtype if isinstance(weight, torch.Tensor) else None


def check_dtype(X, dtype):
    """A tensor has the dtype of the parameters, unless that is None, or a floating-point one under autocast."""
    under_autocast = torch.is_autocast_enabled(X.device.type) and X.is_floating_point()
    if dtype is not None and X.dtype != dtype and not under_autocast:
        or_module = f", or the module, module.to({X.dtype})" if X.is_floating_point() else ""
        raise ValueError(f"expected an input of dtype {dtype}, the dtype of the parameters, got {X.dtype}; "
                         f"convert the input, X.to({dtype}){or_module}")


def check_features(X, nb_features, dtype):
    """A tensor is (..., nb_features) and has the right dtype, see check_dtype."""
    if X.dim() == 0 or X.shape[-1] != nb_features:
        raise ValueError(f"expected an input of shape (..., {nb_features}), got {tuple(X.shape)}")
    check_dtype(X, dtype)
