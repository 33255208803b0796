"""Facts about checks.py: what fits passes, what does not is named in the error."""

import re

import numpy as np
import pytest
import torch
from torch import inf, nan

from checks import (check_choice, check_device, check_features, check_finite, check_finite_numbers,
                    check_positive_integers)


@pytest.mark.parametrize("check, values, message", [
    (lambda value: check_positive_integers(width=2, size=value), (0, -3, 2.5, "7", None, True), "size must be"),
    (lambda value: check_finite_numbers(low=0, rate=value), (nan, -inf, "1", None, 1j), "rate must be"),
    (lambda value: check_choice("kind", value, ("a", "b")), ("c",), "kind must be one of 'a', 'b'"),
    (check_device, ("meta", "gpu", 0, f"cuda:{torch.cuda.device_count()}"), "device (must be 'cpu', 'cuda' or|is)")])
def test_values_that_do_not_fit_are_named(check, values, message):
    for value in values:
        with pytest.raises(ValueError, match=f"^{message}.*{re.escape(repr(value))}"):
            check(value)


def test_tensors_that_do_not_fit_are_named():
    for entry in (nan, -inf, 1j):
        with pytest.raises(ValueError, match="matrix has entries that are complex, NaN or infinite"):
            check_finite(bias=torch.zeros(2), matrix=torch.tensor([0, entry]))
    for shape in ((5, 7), (6, 5), ()):
        with pytest.raises(ValueError, match=re.escape(f"(..., 6), got {shape}")):
            check_features(torch.zeros(shape), 6, torch.float32)
    with pytest.raises(ValueError, match=r"got torch.float64; .*, or the module, module.to\(torch.float64\)"):
        check_features(torch.zeros(5, 6, dtype=torch.float64), 6, torch.float32)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"got torch.uint8; .* X.to\(torch.float32\)$"):
        check_features(torch.zeros(6, dtype=torch.uint8), 6, torch.float32)


def test_values_and_tensors_that_fit_pass():
    check_positive_integers(size=1, width=np.int64(3))
    check_finite_numbers(rate=0, low=np.float32(-2))
    check_finite(matrix=torch.tensor([1, 2]), bias=torch.tensor([-1e30]))
    check_features(torch.zeros(2, 0, 6), 6, torch.float32)
    with torch.autocast("cpu"):  # mixes floating-point dtypes
        check_features(torch.zeros(6, dtype=torch.bfloat16), 6, torch.float32)
    check_choice("kind", "b", ("a", "b"))
    assert check_device("cpu") == check_device(torch.device("cpu")) == "cpu"
