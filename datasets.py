"""The data sets of the experiments as (X_train, y_train), (X_test, y_test): NumPy arrays, raw and unscaled.

X is float32 (N, features) or, for images, (N, channels, height, width); y is int64 (N,) and starts at 0.

A data set is read from `datasets_folder` if its files lie there (`_SOURCES` lists them). If not, it is
downloaded into a temporary folder `.download-*` in there, its content is checked, and the missing files are
moved into place. So an interrupted download leaves no half file behind, a file that is already there is never
replaced, and several processes can start in one folder.
"""

import codecs
import csv
import gzip
import os
import re
import tempfile
import zlib
from array import array
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# torchvision is imported in the two functions that need it: it costs seconds and hundreds of megabytes, and of the
# files that are already there only CIFAR-10's need it.

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
    :raises ValueError: a file is there, but truncated or something else; the message names the line, if there are lines
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

    :param datasets_folder: folder with the four files in `MNIST/raw/`, unpacked, each in a folder of its name, or as
        `.gz`; downloaded if missing
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


# ---- names, also of data sets of your own ----

def get_dataset_name_for_loading_function(loading_function):
    """Name (str) of the data set that a function loads: NAME for load_NAME_data; ValueError for anything else."""
    name = re.fullmatch(r"load_(\w+)_data", str(getattr(loading_function, "__name__", "")))
    if not name or not callable(loading_function):
        raise ValueError(f"a data set needs a function named like load_digits_data, with the data set's name in the "
                         f"middle, got {loading_function!r:.200}; write def load_NAME_data(datasets_folder): ...")
    return name[1]


def get_loading_functions_by_name(loading_functions):
    """{name of the data set: its loading function}; ValueError for two with the same name."""
    names = [get_dataset_name_for_loading_function(function) for function in loading_functions]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"there are two functions load_{name}_data; rename one, the name is the data set's")
    return dict(zip(names, loading_functions))


def is_image_dataset(loading_function):
    """Whether (bool) one of the functions above loads images, (N, channels, height, width); ValueError for others."""
    name = get_dataset_name_for_loading_function(loading_function)
    if name not in (*_SOURCES, "digits"):
        raise ValueError(f"only the shape of what load_{name}_data returns tells whether it loads images")
    return name in ("mnist", "cifar10")


def is_available(loading_function, datasets_folder="datasets/"):
    """Whether (bool) the function finds all it needs in the folder and downloads nothing; ValueError as above."""
    source = _SOURCES.get(get_dataset_name_for_loading_function(loading_function))
    return source is None or all(_find_file(Path(datasets_folder, file)) for file in source.files)


# ---- finding and downloading files ----

def _load_files(name, datasets_folder, read):
    """What `read(folder)` returns, after downloading the files that are missing there."""
    source, folder = _SOURCES[name], Path(datasets_folder).expanduser().absolute()
    missing = [folder / file for file in source.files if not _find_file(folder / file)]
    for path in filter(Path.is_dir, missing):
        raise ValueError(f"{path} is a folder, but has to be a file of {source.title}; remove it to have the file "
                         f"downloaded, or put the file in its place")
    if missing:
        _download(source, folder, read)
    try:
        return read(folder)
    except ValueError as problem:
        raise ValueError(f"{problem}\nIf this is the data of {source.title}, correct it. Delete the file to have it "
                         f"downloaded again, or replace it from {', '.join(source.urls)}") from problem


def _find_file(path):
    """The file at a path, of MNIST also as it is packed or as programs unpack it; None if there is none."""
    name = path.name
    others = (f"{name}/{name}", name.replace("-idx", ".idx"), f"{name}.gz") if "-idx" in name else ()
    return next(filter(Path.is_file, (path, *map(path.parent.joinpath, others))), None)


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
                if not _find_file(folder / file):
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
        table, lines = _read_table(path, nb_columns=17)
        if len(table) != nb_rows:
            raise ValueError(f"{path}: {len(table)} rows, expected {nb_rows}")
        X, y = table[:, :16].copy(), table[:, 16]
        _check_range(path, lines, X, 0, 100)
        parts.append((X, _checked_labels(path, lines, y, 0, 9)))
    return tuple(parts)


def _read_hand_posture(folder):
    path = folder / _SOURCES["hand_posture"].files[0]
    header = ["Class", "User", *(f"{axis}{marker}" for marker in range(12) for axis in "XYZ")]
    table, lines = _read_table(path, len(header), header)
    # The official file starts with a dummy record, of class 0; not every copy still has it.
    if not table[0].any():
        table, lines = table[1:], lines[1:]
    if len(table) < 2:
        raise ValueError(f"{path}: {len(table)} records, too few to split")
    X, y = table[:, 2:], table[:, 0]
    X[np.isnan(X)] = 0
    _check_range(path, lines, X, -10_000, 10_000)  # millimetres: no marker on a hand is 10 m away
    return X, _checked_labels(path, lines, y, 1, 5) - 1


def _read_mnist(folder):
    parts = []
    for images_file, labels_file in (_MNIST_FILES[:2], _MNIST_FILES[2:]):
        images, _ = _read_idx(folder / "MNIST/raw" / images_file, entry_shape=(28, 28))
        y, path = _read_idx(folder / "MNIST/raw" / labels_file, entry_shape=())
        if len(images) != len(y):
            raise ValueError(f"{path}: {len(y)} labels for {len(images)} images")
        parts.append((images[:, np.newaxis].astype(np.float32), _checked_labels(path, None, y, 0, 9)))
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


_MISSING = {"", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"}  # as people's programs write missing values


def _read_table(path, nb_columns, header=()):
    """The records of a comma-separated file, float32 (records, nb_columns) with NaN for what is missing, and the number
    of each one's line in the file, from 1 (list)."""
    lines = _read_lines(path, nb_columns)
    if header:
        number, names = next(lines, (1, []))
        if [name.lower() for name in names] != [name.lower() for name in header]:
            raise ValueError(f"{path}: line {number} is {','.join(names)[:40]!r}, expected the header "
                             f"{','.join(header[:5])},...")
    values, line_numbers = array("f"), []
    for number, fields in lines:
        try:
            values.extend([np.nan if field in _MISSING else float(field) for field in fields])
        except ValueError as problem:
            raise ValueError(f"{path}: line {number}: {problem}, expected numbers, or ? for missing ones") from problem
        line_numbers.append(number)
    if not line_numbers:
        raise ValueError(f"{path}: no records")
    return np.frombuffer(values, np.float32).reshape(-1, nb_columns), line_numbers


def _read_lines(path, nb_columns):
    """(number of the line, its fields without quotes and surrounding spaces) for all lines that are not empty."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    for number, line in enumerate(content.decode(encoding, errors="replace").splitlines(), start=1):
        try:
            fields = next(csv.reader([line], skipinitialspace=True)) if '"' in line else line.split(",")
        except csv.Error as problem:
            raise ValueError(f"{path}: line {number}: {problem}") from problem
        fields = [field.strip() for field in fields]
        if any(fields):  # spreadsheets add lines of empty fields
            if len(fields) != nb_columns:
                raise ValueError(f"{path}: line {number} has {len(fields)} columns, expected {nb_columns}: "
                                 f"{line[:40]!r}")
            yield number, fields


def _check_range(path, line_numbers, values, low, high):
    valid = (low <= values) & (values <= high)
    if not valid.all():
        raise ValueError(f"{path}: line {line_numbers[np.argwhere(~valid)[0][0]]} holds {values[~valid][0]:g}, "
                         f"expected {low} to {high}")


def _checked_labels(path, line_numbers, y, lowest, highest):
    valid = np.isin(y, range(lowest, highest + 1))
    if not valid.all():
        first = np.argmin(valid)
        place = f"line {line_numbers[first]}" if line_numbers else f"label {first + 1}"
        raise ValueError(f"{path}: {place} is of class {y[first]:g}, expected {lowest} to {highest}")
    return y.astype(np.int64)


def _read_idx(path, entry_shape):
    """The values of an IDX file, uint8 (entries, *entry_shape), and the path where they were.

    Such a file is a big-endian header (2048 + number of axes, the length of each axis), then one byte per value.
    """
    path = _find_file(path) or path
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as problem:
            raise ValueError(f"{path}: damaged gzip file ({problem})") from problem
    header = [int.from_bytes(content[i:i + 4], "big") for i in range(0, 8 + 4 * len(entry_shape), 4)]
    if [header[0], *header[2:]] != [2049 + len(entry_shape), *entry_shape]:
        raise ValueError(f"{path}: {len(content)} bytes that do not start like an IDX file of "
                         f"{'28x28 images' if entry_shape else 'labels'}")
    expected_size = 4 * len(header) + header[1] * int(np.prod(entry_shape))
    if len(content) != expected_size or header[1] == 0:
        raise ValueError(f"{path}: {len(content)} bytes, expected {expected_size} for {header[1]} entries")
    return np.frombuffer(content, np.uint8, offset=4 * len(header)).reshape(-1, *entry_shape), path
