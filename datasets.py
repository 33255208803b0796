"""The data sets of the experiments as (X_train, y_train), (X_test, y_test): NumPy arrays, raw and unscaled.

X is float32 (N, features) or, for images, (N, channels, height, width); y is int64 (N,) and starts at 0.

A data set is read from `datasets_folder` if its files lie there (`_SOURCES` lists them). If not, it is
downloaded into a temporary folder `.download-*` in there, its content is checked, and the missing files are
moved into place. So an interrupted download leaves no half file behind, a file that is already there is never
replaced, and several processes can start in one folder.
"""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# torchvision is imported in the three functions that need it: it costs seconds and hundreds of megabytes, and
# neither the digits nor UCI files that are already there need it.

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
_MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
                "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")


class _Source(NamedTuple):
    title: str
    urls: tuple
    files: tuple  # below datasets_folder, all in one folder
    torchvision_class: str = ""  # the class of torchvision.datasets that downloads it; the UCI sets have none


_SOURCES = {
    "pendigits": _Source(
        "Pen-Based Recognition of Handwritten Digits (pendigits)",
        (_UCI + "pendigits/pendigits.tra", _UCI + "pendigits/pendigits.tes"),
        ("pendigits/pendigits.tra", "pendigits/pendigits.tes"),
    ),
    "hand_posture": _Source(
        "Motion Capture Hand Postures (hand_posture)",
        (_UCI + "00405/Postures.zip",),
        ("HandPostures/Postures.csv",),
    ),
    "mnist": _Source(
        "MNIST (mnist)",
        tuple(f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz" for file in _MNIST_FILES),
        tuple(f"MNIST/raw/{file}" for file in _MNIST_FILES),
        "MNIST",
    ),
    "cifar10": _Source(
        "CIFAR-10 (cifar10)",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        tuple(f"cifar-10-batches-py/{file}" for file in _CIFAR10_FILES),
        "CIFAR10",
    ),
}


def load_pendigits_data(datasets_folder="datasets/"):
    """UCI Pen-Based Recognition of Handwritten Digits: 8 pen points (x, y), each 0 ... 100, and the digit.

    https://archive.ics.uci.edu/dataset/81/pen+based+recognition+of+handwritten+digits

    :param datasets_folder: folder with `pendigits/pendigits.tra` and `.tes`, downloaded if missing
    :return: (X_train, y_train), (X_test, y_test), the official split by writer: X float32 (7494, 16) and
        (3498, 16), y int64 0 ... 9
    :raises ValueError: a file is there, but truncated or something else
    :raises FileNotFoundError: a file is missing and could not be downloaded
    :raises PermissionError: a file is missing and the folder cannot be written to
    """
    return _load_files("pendigits", datasets_folder, _read_pendigits)


def load_hand_posture_data(datasets_folder="datasets/", *, random_state=0):
    """UCI Motion Capture Hand Postures: positions (x, y, z) of up to 12 markers on a glove, and the posture.

    Missing markers are 0; the user is not among the inputs. There is no official split: 20 % of the records,
    drawn at random, are the test data. Records of one user are alike, so scores say little about new users.

    https://archive.ics.uci.edu/dataset/405/motion+capture+hand+postures

    :param datasets_folder: folder with `HandPostures/Postures.csv`, downloaded if missing
    :param random_state: seed of the split
    :return: (X_train, y_train), (X_test, y_test): X float32 (N, 36), officially 62,476 and 15,619
        records, y int64 0 ... 4
    :raises ValueError, FileNotFoundError, PermissionError: as load_pendigits_data
    """
    from sklearn.model_selection import train_test_split

    X, y = _load_files("hand_posture", datasets_folder, _read_hand_posture)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=random_state)
    return (X_train, y_train), (X_test, y_test)


def load_mnist_data(datasets_folder="datasets/"):
    """MNIST handwritten digits, grey values 0 ... 255.

    http://yann.lecun.com/exdb/mnist/

    :param datasets_folder: folder with the four files, unpacked, in `MNIST/raw/`, downloaded if missing
    :return: (X_train, y_train), (X_test, y_test): X float32 (N, 1, 28, 28), officially 60,000 and 10,000
        images, y int64 0 ... 9
    :raises ValueError, FileNotFoundError, PermissionError: as load_pendigits_data
    """
    return _load_files("mnist", datasets_folder, _read_mnist)


def load_cifar10_data(datasets_folder="datasets/"):
    """CIFAR-10 colour images, channels red, green, blue, values 0 ... 255.

    https://www.cs.toronto.edu/~kriz/cifar.html

    :param datasets_folder: folder with the seven files in `cifar-10-batches-py/`, downloaded if missing
    :return: (X_train, y_train), (X_test, y_test): X float32 (50000, 3, 32, 32) and (10000, 3, 32, 32),
        y int64 0 ... 9
    :raises ValueError, FileNotFoundError, PermissionError: as load_pendigits_data
    """
    return _load_files("cifar10", datasets_folder, _read_cifar10)


def load_digits_data(datasets_folder="datasets/", *, random_state=0):
    """The 8x8 handwritten digits that ship with scikit-learn, grey values 0 ... 16. Works offline.

    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits

    :param datasets_folder: not used; every loading function can be called alike
    :param random_state: seed of the split, which puts 20 % of each class into the test data
    :return: (X_train, y_train), (X_test, y_test): X float32 (1437, 64) and (360, 64), y int64 0 ... 9
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32), y.astype(np.int64)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.2, random_state=random_state, stratify=y)
    return (X_train, y_train), (X_test, y_test)


_LOADING_FUNCTIONS = {
    load_pendigits_data: "pendigits",
    load_hand_posture_data: "hand_posture",
    load_mnist_data: "mnist",
    load_cifar10_data: "cifar10",
    load_digits_data: "digits",
}


def get_dataset_name_for_loading_function(loading_function):
    """Name (str) of the data set that one of the functions above loads; ValueError for any other function."""
    for function, name in _LOADING_FUNCTIONS.items():
        if function is loading_function:
            return name
    unknown = getattr(loading_function, "__name__", repr(loading_function))
    known = ", ".join(function.__name__ for function in _LOADING_FUNCTIONS)
    raise ValueError(f"unknown data set loading function {unknown}, known are {known}")


def is_image_dataset(loading_function):
    """Whether (bool) the function loads images, (N, channels, height, width); ValueError as above."""
    return get_dataset_name_for_loading_function(loading_function) in ("mnist", "cifar10")


# ---- finding and downloading files ----

def _load_files(name, datasets_folder, read):
    """What `read(folder)` returns, after downloading the files that are missing there."""
    source, folder = _SOURCES[name], Path(datasets_folder).expanduser().absolute()
    if not all((folder / file).is_file() for file in source.files):
        _download(source, folder, read)
    try:
        return read(folder)
    except ValueError as problem:
        raise ValueError(f"{problem}\nThis is not the data of {source.title}. Delete the file to have it "
                         f"downloaded again, or replace it from {', '.join(source.urls)}") from problem


def _download(source, folder, read):
    """Download into a temporary folder, check the content there, move the missing files into place."""
    by_hand = "Files to place by hand, unpacked:" + "".join(f"\n  {folder / file}" for file in source.files)
    with _writing_to(folder, source, by_hand):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True)
    with temporary as root:
        try:
            _fetch(source, Path(root))
            read(Path(root))
        # Errors of network, archives and content have no class in common, and all mean the same here.
        except Exception as cause:
            reason = f"{type(cause).__name__}: {cause}".replace(root + os.sep, "")
            raise FileNotFoundError(
                f"{source.title} is not complete in {folder} and could not be downloaded ({reason}) from"
                + "".join(f"\n  {url}" for url in source.urls)
                + f"\n{by_hand}\nload_digits_data works offline and without files."
            ) from cause
        with _writing_to(folder, source, by_hand):
            for file in source.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                # What the user or another process has put there stays.
                if not (folder / file).is_file():
                    os.replace(Path(root, file), folder / file)


@contextmanager
def _writing_to(folder, source, by_hand):
    try:
        yield
    except OSError as cause:
        raise PermissionError(
            f"{source.title} is not complete in {folder}, and this folder cannot be written to ({cause}): "
            f"make it writable or pass another datasets_folder.\n{by_hand}"
        ) from cause


def _fetch(source, root):
    from torchvision import datasets as torchvision_datasets

    if source.torchvision_class:
        getattr(torchvision_datasets, source.torchvision_class)(root, download=True)
        return
    target_folder = (root / source.files[0]).parent
    for url in source.urls:
        if url.endswith(".zip"):
            torchvision_datasets.utils.download_and_extract_archive(url, target_folder)
        else:
            torchvision_datasets.utils.download_url(url, target_folder)


# ---- reading and checking files: every ValueError starts with the path ----

def _read_pendigits(folder):
    parts = []
    for file, nb_rows in zip(_SOURCES["pendigits"].files, (7494, 3498)):
        path = folder / file
        table = _read_table(path, nb_columns=17)
        if len(table) != nb_rows:
            raise ValueError(f"{path}: {len(table)} rows, expected {nb_rows}")
        X, y = table[:, :16].copy(), table[:, 16]
        _check_range(path, X, 0, 100)
        parts.append((X, _checked_labels(path, y, 0, 9)))
    return tuple(parts)


def _read_hand_posture(folder):
    path = folder / _SOURCES["hand_posture"].files[0]
    table = _read_table(path, nb_columns=38, header="Class,User,")
    # The official file starts with a dummy record, of class 0; not every copy still has it.
    if not table[0].any():
        table = table[1:]
    if len(table) < 2:
        raise ValueError(f"{path}: {len(table)} records, too few to split")
    X, y = table[:, 2:], table[:, 0]
    X[np.isnan(X)] = 0
    _check_range(path, X, -10_000, 10_000)  # millimetres: no marker on a hand is 10 m away
    return X, _checked_labels(path, y, 1, 5) - 1


def _read_mnist(folder):
    from torchvision.datasets import MNIST

    # torchvision takes any files that exist, and does not name the one on which it fails.
    for file in _SOURCES["mnist"].files:
        _check_idx_file(folder / file, entry_shape=[28, 28] if "images" in file else [])
    parts = []
    for train, labels_file in ((True, _SOURCES["mnist"].files[1]), (False, _SOURCES["mnist"].files[3])):
        part = MNIST(folder, train=train, download=False)
        X, y = part.data.numpy()[:, np.newaxis].astype(np.float32), part.targets.numpy()
        if len(X) != len(y):
            raise ValueError(f"{folder / labels_file}: {len(y)} labels for {len(X)} images")
        parts.append((X, _checked_labels(folder / labels_file, y, 0, 9)))
    return tuple(parts)


def _read_cifar10(folder):
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    try:
        parts = [CIFAR10(folder, train=train, download=False) for train in (True, False)]
    # torchvision compares checksums before it unpickles anything, but does not name the wrong file.
    except Exception as cause:
        checksums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        paths = [(folder / CIFAR10.base_folder / file, md5) for file, md5 in checksums]
        wrong = ", ".join(str(path) for path, md5 in paths if not check_integrity(path, md5))
        if not wrong:
            raise
        raise ValueError(f"{wrong}: checksum differs from the official one") from cause
    # data is (N, 32, 32, 3) here.
    return tuple((np.ascontiguousarray(part.data.transpose(0, 3, 1, 2), dtype=np.float32),
                  np.array(part.targets, dtype=np.int64)) for part in parts)


def _read_table(path, nb_columns, header=""):
    """The numbers of a comma-separated file: float32 (records, nb_columns), NaN where it has a `?`."""
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    if not lines[0].replace('"', "").startswith(header):
        raise ValueError(f"{path}: starts with {lines[0][:40]!r}, expected the header {header}...")
    for number, line in enumerate(lines, start=1):
        if line.count(",") != nb_columns - 1:
            raise ValueError(f"{path}: line {number} of {len(lines)} has {line.count(',') + 1} columns, "
                             f"expected {nb_columns}: {line[:40]!r}")
    records = [line.replace("?", "nan") for line in lines[bool(header):]]
    if not records:
        raise ValueError(f"{path}: no records")
    try:
        return np.loadtxt(records, delimiter=",", comments=None, dtype=np.float32, ndmin=2)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from problem


def _check_range(path, values, low, high):
    valid = (low <= values) & (values <= high)
    if not valid.all():
        raise ValueError(f"{path}: record {np.argwhere(~valid)[0][0] + 1} holds {values[~valid][0]:g}, "
                         f"expected {low} to {high}")


def _checked_labels(path, y, lowest, highest):
    valid = np.isin(y, range(lowest, highest + 1))
    if not valid.all():
        raise ValueError(f"{path}: record {np.argmin(valid) + 1} is of class {y[~valid][0]:g}, "
                         f"expected {lowest} to {highest}")
    return y.astype(np.int64)


def _check_idx_file(path, entry_shape):
    """IDX: a big-endian header (2048 + number of axes, the length of each axis), then one byte per value."""
    header = np.fromfile(path, dtype=">u4", count=2 + len(entry_shape)).tolist()
    size = path.stat().st_size
    if len(header) < 2 or [header[0], *header[2:]] != [2049 + len(entry_shape), *entry_shape]:
        raise ValueError(f"{path}: {size} bytes that do not start like an IDX file of "
                         f"{'28x28 images' if entry_shape else 'labels'}")
    expected_size = 4 * len(header) + header[1] * int(np.prod(entry_shape))
    if size != expected_size or header[1] == 0:
        raise ValueError(f"{path}: {size} bytes, expected {expected_size} for {header[1]} entries")
