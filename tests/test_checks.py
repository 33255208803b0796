"""Facts about checks.py: what fits passes, what does not is named in the error."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch import inf, nan

from checks import (check_choice, check_data, check_distinct, check_finite, check_finite_numbers, check_integers,
                    check_script_hyperparameters)


@pytest.mark.parametrize("check, values, message", [
    (lambda value: check_integers(width=2, size=value), (0, -3, 2.5, "7", None, True), "size must be an integer of 1"),
    (lambda value: check_integers(0, seed=value), (-1, 0.0), "seed must be an integer of 0 or more"),
    (lambda value: check_finite_numbers(low=0, rate=value), (nan, -inf, "1", None, 1j), "rate must be"),
    (lambda value: check_choice("kind", value, ("a", "b")), ("c",), "kind must be one of 'a', 'b'"),
    (lambda value: check_distinct("sizes", value), (8, [], [1, 2, 1], (1, 2)), r"sizes must be a list in brackets")])
def test_values_that_do_not_fit_are_named(check, values, message):
    for value in values:
        with pytest.raises(ValueError, match=f"^{message}.*{re.escape(repr(value))}"):
            check(value)


def test_values_that_fit_pass():
    check_integers(size=1, width=np.int64(3))
    check_integers(0, seed=0)
    check_finite_numbers(rate=0, low=np.float32(-2))
    check_finite(matrix=torch.tensor([1, 2]), bias=torch.tensor([-1e30]))
    check_choice("kind", "b", ("a", "b"))


def test_hyperparameters_become_plain_data():
    checked = check_script_hyperparameters(
        dict(a=np.int8(3), b=[np.float32(0.5), None], c=np.bool_(True), d=np.str_("a"), e=((1, "x"), [2]), f=[print],
             result_file="r.p", device="cpu"), functions=("f",))
    assert repr(dict(checked)) == repr(dict(a=3, b=[0.5, None], c=True, d="a", e=[[1, "x"], [2]], f=[print],
                                            result_file="r.p", device="cpu"))
    assert check_script_hyperparameters(dict(result_file="~/r.p"))["result_file"] == str(Path.home() / "r.p")
    with pytest.raises(ValueError, match="there is no hyperparameter seed; is one of these misspelt: a, b, "):
        checked["seed"]


@pytest.mark.parametrize("name, value, message", [
    ("widths", range(3), "must be made of numbers, text, None and lists of them, got range"),
    ("widths", [1, np.array([1])], "must be made of numbers, .* got array"),
    ("seed", torch.Generator(), "must be made of numbers"), ("device", "gpu", "must be one of 'cpu'.*, got 'gpu'"),
    ("result_file", None, "must be the name of a file"), ("result_file", "r.png", "must end in .p, got 'r.png'"),
    ("datasets_folder", "", "must be the name of a file or folder, got ''")])
def test_hyperparameters_that_cannot_work_are_named(name, value, message):
    with pytest.raises(ValueError, match=f"^{name} {message}"):
        check_script_hyperparameters({"result_file": "r.p", name: value})


X_TRAIN, Y_TRAIN, X_TEST, Y_TEST = np.arange(12.).reshape(4, 3), [0, 2, 1, 2], np.zeros((2, 3)), [0, 2]


def load_with(**changes):
    arrays = {"X_train": X_TRAIN, "y_train": np.array(Y_TRAIN), "X_test": X_TEST, "y_test": np.array(Y_TEST), **changes}
    return (arrays["X_train"], arrays["y_train"]), (arrays["X_test"], arrays["y_test"])


@pytest.mark.parametrize("loaded", [
    load_with(), load_with(X_train=X_TRAIN.tolist(), y_train=Y_TRAIN),
    load_with(X_train=X_TRAIN.astype(">f8"), y_test=np.array(Y_TEST, ">i2")), load_with(y_train=torch.tensor(Y_TRAIN)),
    load_with(X_train=X_TRAIN[::-1].copy()[::-1], y_train=np.array(Y_TRAIN[::-1], np.uint8)[::-1])])
def test_arrays_of_any_type_that_fit_become_float32_and_int64_in_their_order(loaded):
    arrays = check_data(loaded)
    for array, expected, dtype in zip(arrays, (X_TRAIN, Y_TRAIN, X_TEST, Y_TEST), (np.float32, np.int64) * 2):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == dtype and array.dtype.isnative and array.flags.c_contiguous


@pytest.mark.parametrize("loaded, message", [
    ((X_TRAIN, X_TEST, Y_TRAIN, Y_TEST), "must return (X_train, y_train), (X_test, y_test)"),
    (load_with(X_train=np.where(X_TRAIN == 7, nan, X_TRAIN)), "X_train, y_train: Input X_train contains NaN"),
    (load_with(X_test=X_TEST + 1e39), "X_test, y_test: Input X_test contains infinity"),  # as float32
    (load_with(X_train=X_TRAIN.astype(str)), "X_train must hold real numbers, got dtype <U"),
    (load_with(X_test=scipy.sparse.csr_array(X_TEST)), "X_test must hold real numbers, got dtype object; .toarray()"),
    (load_with(X_train=pd.DataFrame(X_TRAIN).convert_dtypes()), "got dtype object; .astype(float) converts"),
    (load_with(X_train=X_TRAIN + 0j), "X_train must hold real numbers, got dtype complex128"),
    (load_with(X_train=np.ma.masked_values(X_TRAIN, 7)), "X_train has masked values"),
    (load_with(X_train=X_TRAIN[:, 0]), "got (4,); X[:, numpy.newaxis] adds an axis"),
    (load_with(X_test=X_TEST[:0], y_test=np.zeros(0, int)), "X_test, y_test: Found array with 0 sample(s)"),
    (load_with(X_test=X_TEST[:, :2]), "a sample of X_train has shape (3,), but one of X_test (2,)"),
    (load_with(y_train=Y_TRAIN[1:]), "inconsistent numbers of samples: [4, 3]"),
    (load_with(y_train=np.eye(3)[Y_TRAIN]), "y_train must hold integers, got dtype float64; .astype(...) converts"),
    (load_with(y_test=["a", "b"]), "y_test must hold integers, got dtype <U1"),
    (load_with(y_train=[1, 3, 2, 3]), "labels must be 0, 1, ..., two or more of them and all in y_train, which hol"),
    (load_with(y_train=[-1, 1, 0, 1]), "y_train must hold labels from 0 on, got -1; y - y.min()"),
    (load_with(y_train=[0] * 4), "which holds 0, with 2 the largest in y_test; numpy.unique(labels, return_inverse"),
    (load_with(y_test=[1, 3]), "with 3 the largest in y_test")])
def test_arrays_that_do_not_fit_are_named_with_the_remedy(loaded, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_data(loaded)
