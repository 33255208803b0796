"""Facts about checks.py: what fits passes, what does not is named in the error."""

import re
from enum import IntEnum
from fractions import Fraction
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from torch import inf, nan

from checks import (check_choice, check_data, check_device, check_features, check_finite, check_finite_numbers,
                    check_positive_integers, check_script_hyperparameters, check_seed, check_writable, to_matrix,
                    to_plain_data, to_tensor)


@pytest.mark.parametrize("check, values, message", [
    (lambda value: check_positive_integers(width=2, size=value), (0, -3, 2.5, "7", None, True), "size must be"),
    (lambda value: check_finite_numbers(low=0, rate=value), (nan, -inf, "1", None, 1j), "rate must be"),
    (check_seed, (0.0, None, True, "0", -1, 2 ** 32, torch.Generator()), "seed must be"),
    (lambda value: check_choice("kind", value, ("a", "b")), ("c",), "kind must be one of 'a', 'b'")])
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


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


ARRAY_FORMS = {
    "negative strides": lambda X: X[::-1, ::-1], "big-endian": lambda X: X.astype(">f8"), "read-only": read_only,
    "Fortran": np.asfortranarray, "slices": lambda X: X[::2, 1::2], "float16": lambda X: X.astype(np.float16),
    "int8": lambda X: X.astype(np.int8), "uint16": lambda X: X.astype(">u2"), "bool": lambda X: X > 3,
    "lists": lambda X: X.tolist(), "matrix": lambda X: np.asmatrix(X), "tensor": torch.from_numpy,
    "parameter": lambda X: torch.nn.Parameter(torch.from_numpy(X)), "transposed": lambda X: torch.from_numpy(X).T}


@pytest.mark.filterwarnings("error", "ignore:the matrix subclass")
@pytest.mark.parametrize("form", ARRAY_FORMS.values(), ids=ARRAY_FORMS)
def test_arrays_of_any_form_become_tensors_and_stay_as_they_are(form):
    values = form(np.arange(24.0).reshape(4, 6))
    expected = [list(map(float, row)) for row in (values if isinstance(values, list) else values.tolist())]
    for tensor, rows in ((to_tensor("X", values), expected), (to_matrix(values), expected),
                         (to_tensor("X", values, np.array([1, 0])), [expected[1], expected[0]])):
        assert tensor.double().tolist() == rows and not tensor.requires_grad
        if not isinstance(values, torch.Tensor):
            assert tensor.is_contiguous()
            tensor.zero_()
    assert (values if isinstance(values, list) else values.tolist()) == expected


def test_images_with_channels_last_become_contiguous_too():
    images = np.arange(24.0).reshape(3, 2, 2, 2).transpose(0, 3, 1, 2)
    for rows in (None, np.arange(3)):
        tensor = to_tensor("X", images, rows)
        assert tensor.is_contiguous() and np.array_equal(tensor.numpy(), images)


@pytest.mark.parametrize("values", [
    np.array([["1"]]), np.array([[None]]), np.array([[1j]]), torch.ones(1, 1) * 1j, torch.eye(2).to_sparse(),
    np.ones((1, 1), np.clongdouble), np.ma.masked_equal([[1.0, 0.0]], 0), None, [["a"]]])
def test_what_holds_no_real_numbers_is_named(values):
    with pytest.raises(ValueError, match="^X must be real numbers"):
        to_tensor("X", values)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (), (0, 3)])
def test_a_matrix_has_two_dimensions_and_entries(shape):
    with pytest.raises(ValueError, match=re.escape(f"matrix must have two dimensions and entries, got shape {shape}")):
        to_matrix(np.zeros(shape))


# ---- hyperparameters of a script ----

@pytest.mark.parametrize("value, plain", [
    (np.int8(3), 3), (np.uint64(3), 3), (IntEnum("Number", "ONE")(1), 1), (torch.tensor(3), 3), (np.array(3), 3),
    (np.float32(0.5), 0.5), (np.longdouble(0.5), 0.5), (Fraction(1, 2), 0.5), (np.bool_(True), True),
    (np.str_("a"), "a"), (Path("a"), "a"), (PureWindowsPath("a"), "a"), (None, None),
    (list(2 ** np.arange(4, 6)), [16, 32]), (np.array([[1, 2]]), [[1, 2]]), (np.array([0.5], np.longdouble), [0.5]),
    (range(2), [0, 1]), ((("a", np.int64(1)), [None]), [["a", 1], [None]]), (torch.ones(2), [1.0, 1.0])])
def test_hyperparameters_of_any_type_become_plain_data(value, plain):
    assert repr(to_plain_data("name", value)) == repr(plain)


@pytest.mark.parametrize("value", [
    np.load, object, {1}, {"a": 1}, 1j, b"a", torch.float32, torch.Generator(), iter([1]), [1, [map]],
    np.array([None, int]), np.datetime64("2020-01-01")])
def test_hyperparameters_that_are_no_plain_data_are_named(value):
    with pytest.raises(ValueError, match="^name must be made of numbers, text, None and lists of them, got "):
        to_plain_data("name", value)


@pytest.mark.parametrize("nb_gpus, here, not_here", [
    (0, ("cpu", torch.device("cpu")), ("cuda", torch.device("cuda"), "cuda:0", "mps", "xpu", "gpu", "", None, 0)),
    (1, ("cpu", "cuda", torch.device("cuda"), "cuda:0", torch.device("cuda", 0)),
     ("cuda:1", "cuda:7", torch.device("cuda:7"), "cuda:-1", "mps", torch.device("meta"), 0, ["cuda"]))])
def test_a_device_is_one_that_is_here(nb_gpus, here, not_here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: nb_gpus)
    for device in here:
        assert check_device(device) == str(device)
    available = "'cpu', 'cuda', 'cuda:0'" if nb_gpus else "'cpu'"
    for device in not_here:
        with pytest.raises(ValueError, match=re.escape(f"finds here, {available}; got {device!r}")):
            check_device(device)


@pytest.mark.parametrize("seed", [0.0, None, True, np.bool_(False), "0", torch.Generator(), [0], np.arange(1)])
def test_a_seed_is_an_integer(seed, tmp_path):
    with pytest.raises(ValueError, match="^seed must be "):
        check_script_hyperparameters({"seed": seed, "result_file": tmp_path / "r.p"}, tmp_path)


def test_a_tilde_is_the_home_folder_and_other_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    paths = {"result_file": "~/r.p", "datasets_folder": Path("~/data")}
    assert check_script_hyperparameters(paths, "elsewhere") == {
        "result_file": f"{tmp_path}/r.p", "datasets_folder": str(tmp_path / "data")}
    paths = {"result_file": "r~.p", "datasets_folder": "./~/"}
    assert check_script_hyperparameters(paths, tmp_path) == paths
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, value", [
    ("result_file", None), ("result_file", ""), ("result_file", ["r.p"]), ("datasets_folder", "~no_such_user"),
    ("result_file", "r.PNG"), ("result_file", "benchmark.py"), ("result_file", "."), ("result_file", "folder"),
    ("result_file", "no_folder/r.p"), ("result_file", "file/r.p"), ("result_file", "r\0.p"), ("result_file", "r" * 300),
    ("result_file", "pictures.p"), ("datasets_folder", None), ("datasets_folder", "")])
def test_paths_that_cannot_work_are_named_and_nothing_is_changed(name, value, tmp_path):
    for folder in ("folder", "pictures.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"^{name} .*{re.escape(repr(value))}"):
        check_script_hyperparameters({"result_file": "file", "datasets_folder": "data", name: value}, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_whether_a_file_can_be_written_is_known_in_advance_and_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "old.p"
    path.write_bytes(b"old")
    check_writable(path)
    check_writable(tmp_path / "new.p")
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # tried by writing, whatever the permissions say
        check_writable(path)



# ---- the arrays of a data set ----

X_TRAIN, Y_TRAIN, X_TEST, Y_TEST = np.arange(12.).reshape(4, 3), [0, 2, 1, 2], np.zeros((2, 3)), [0, 2]
IMAGES = np.zeros((4, 1, 28, 28))


def load_with(**changes):
    arrays = {"X_train": X_TRAIN, "y_train": np.array(Y_TRAIN), "X_test": X_TEST, "y_test": np.array(Y_TEST), **changes}
    return (arrays["X_train"], arrays["y_train"]), (arrays["X_test"], arrays["y_test"])


@pytest.mark.parametrize("loaded", [
    load_with(), load_with(X_train=X_TRAIN.tolist(), y_train=Y_TRAIN), load_with(X_train=X_TRAIN.astype(np.uint8)),
    load_with(X_train=X_TRAIN.astype(">f8"), y_test=np.array(Y_TEST, ">i2")), load_with(y_train=torch.tensor(Y_TRAIN)),
    load_with(X_train=X_TRAIN[::-1].copy()[::-1], y_train=np.array(Y_TRAIN[::-1], np.uint8)[::-1]),
    load_with(X_train=np.ma.masked_values(X_TRAIN, 99))])
def test_arrays_of_any_type_that_fit_become_float32_and_int64_in_their_order(loaded):
    arrays = check_data(loaded)
    for array, expected, dtype in zip(arrays, (X_TRAIN, Y_TRAIN, X_TEST, Y_TEST), (np.float32, np.int64) * 2):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == dtype and array.dtype.isnative and array.flags.c_contiguous


def test_images_keep_their_shape_and_the_test_data_may_lack_a_class():
    X, _, X_test, _ = check_data(load_with(X_train=IMAGES, X_test=IMAGES[:1], y_test=[1]))
    assert X.shape == (4, 1, 28, 28) and X_test.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("loaded, message", [
    ((X_TRAIN, X_TEST, Y_TRAIN, Y_TEST), "must return (X_train, y_train), (X_test, y_test)"),
    (None, "must return (X_train, y_train), (X_test, y_test)"),
    (load_with(X_train=np.where(X_TRAIN == 7, nan, X_TRAIN)), "X_train[2] has NaN or infinite values, as 1 of 4"),
    (load_with(X_test=X_TEST + 1e39), "X_test[0] has NaN or infinite values, as 2 of 2"),  # as float32
    (load_with(X_train=X_TRAIN.astype(str)), "X_train must hold real numbers, got dtype <U"),
    (load_with(X_train=X_TRAIN + 0j), "X_train must hold real numbers, got dtype complex128"),
    (load_with(X_train=[[1, 2], [3], [4], [5]]), "X_train is no array: "),
    (load_with(X_train=np.ma.masked_values(X_TRAIN, 7)), "X_train has masked values"),
    (load_with(X_train=X_TRAIN[:, 0]), "got (4,); X[:, numpy.newaxis] adds an axis"),
    (load_with(X_train=IMAGES[:, 0]), "got (4, 28, 28); X[:, numpy.newaxis] adds an axis"),
    (load_with(X_test=X_TEST[:0]), "X_test must have shape (samples, features)"),
    (load_with(X_test=X_TEST[:, :2]), "a sample of X_train has shape (3,), but one of X_test (2,)"),
    (load_with(X_train=IMAGES.reshape(4, 28, 28, 1)), "got shape (28, 28, 1); X.transpose(0, 3, 1, 2) puts channels"),
    (load_with(X_train=IMAGES.repeat(4, 1)), "with 1 to 3 channels, got shape (4, 28, 28)"),
    (load_with(X_train=IMAGES[..., :9]), "images of 28 x 9 are too small"),
    (load_with(y_train=Y_TRAIN[1:]), "y_train must have shape (4,), a label for each sample, got (3,)"),
    (load_with(y_train=np.array([Y_TRAIN]).T), "got (4, 1); y.ravel() has it"),
    (load_with(y_train=np.eye(3)[Y_TRAIN]), "got (4, 3); y.argmax(1) has it, if y is one-hot"),
    (load_with(y_train=np.array(Y_TRAIN, float)), "y_train must hold integers, got 0.0 of dtype float64;"),
    (load_with(y_test=["a", "b"]), "y_test must hold integers, got 'a' of dtype <U1; y.astype(int)"),
    (load_with(y_train=[1, 3, 2, 3]), "0, 1, ... and none left out, but holds 1, 2, 3; y - y_train.min()"),
    (load_with(y_train=[-1, 1, 0, 1]), "but holds -1, 0, 1; y - y_train.min()"),
    (load_with(y_train=[0, 3, 1, 3]), "but holds 0, 1, 3; numpy.unique(labels, return_inverse=True)[1]"),
    (load_with(y_train=[0] * 4), "two classes or more, 0, 1, ... and none left out, but holds 0;"),
    (load_with(y_test=[1, 3]), "y_test holds classes that y_train lacks: 3"),
    (load_with(y_train=range(10, 14)), "but holds 10, 11, 12, 13; y - y_train.min()")])
def test_arrays_that_do_not_fit_are_named_with_the_remedy(loaded, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_data(loaded)
