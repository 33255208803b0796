"""The data sets of the experiments as (X_train, y_train), (X_test, y_test): NumPy arrays, raw and unscaled.

X is float32 (N, features) or, for images, (N, channels, height, width); y is int64 (N,) and starts at 0.

A data set is read from `datasets_folder` if its files lie there (`_FILES` lists them). If not, it is downloaded into a
temporary folder `.download-*` in there, its content is checked, and the missing files are moved into place. So an
interrupted download leaves no half file, what is there is never replaced, and several processes can start at a time.
"""

import gzip
import hashlib
import io
import os
import pickle
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from checks import check_data
from standardmodels import ConvFeatureExtractorBase

# torchvision is imported where it is needed, for downloads and CIFAR-10: that takes seconds.

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/"
_FILES = {  # below datasets_folder
    "pendigits": ["pendigits/pendigits.tra", "pendigits/pendigits.tes"],
    "hand_posture": ["HandPostures/Postures.csv"],
    "mnist": ["MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte",
              "MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"],
    "cifar10": [*(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
                "cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"],
}
_URLS = {
    "pendigits": [_UCI + file for file in _FILES["pendigits"]],
    "hand_posture": [_UCI + "00405/Postures.zip"],
    "mnist": [f"https://ossci-datasets.s3.amazonaws.com/mnist/{Path(file).name}.gz" for file in _FILES["mnist"]],
    "cifar10": ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"],
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
    X, y = _load_files("hand_posture", datasets_folder, _read_hand_posture)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=random_state)
    return (X_train, y_train), (X_test, y_test)


def load_mnist_data(datasets_folder="datasets/"):
    """MNIST handwritten digits, grey values 0 ... 255 (http://yann.lecun.com/exdb/mnist/).

    :param datasets_folder: folder with the four files in `MNIST/raw/`, unpacked or as `.gz`, downloaded if missing
    :return: (X_train, y_train), (X_test, y_test): X float32 (N, 1, 28, 28), officially 60,000 and 10,000
        images, y int64 0 ... 9
    :raises ValueError, FileNotFoundError, PermissionError: as load_pendigits_data
    """
    return _load_files("mnist", datasets_folder, _read_mnist)


def load_cifar10_data(datasets_folder="datasets/", *, check_sums=True):
    """CIFAR-10 colour images: red, green and blue values 0 ... 255 (https://www.cs.toronto.edu/~kriz/cifar.html).

    :param datasets_folder: folder with the seven files in `cifar-10-batches-py/`, downloaded if missing
    :param check_sums: whether the files have to be the official ones; False reads a part of the images, too
    :return: (X_train, y_train), (X_test, y_test): X float32 (N, 3, 32, 32), officially 50,000 and 10,000
        images, y int64 0 ... 9
    :raises ValueError, FileNotFoundError, PermissionError: as load_pendigits_data
    """
    return _load_files("cifar10", datasets_folder, lambda folder: _read_cifar10(folder, check_sums))


def load_digits_data(datasets_folder="datasets/", *, random_state=0):
    """The 8x8 handwritten digits that ship with scikit-learn, grey values 0 ... 16. Works offline.

    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits

    :param datasets_folder: not used; every loading function can be called alike
    :param random_state: seed of the split, which puts 20 % of each class into the test data
    :return: (X_train, y_train), (X_test, y_test): X float32 (1437, 64) and (360, 64), y int64 0 ... 9
    """
    X, y = load_digits(return_X_y=True)
    X, y = X.astype(np.float32), y.astype(np.int64)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=random_state, stratify=y)
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
    if name not in (*_FILES, "digits"):
        raise ValueError(f"only the shape of what load_{name}_data returns tells whether it loads images")
    return name in ("mnist", "cifar10")


# ---- preparing what was loaded ----

def derive_seed(*identity):
    """A seed (int, 32 bits) that depends on the identity of what it is for, plain values, and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:4], "little")


def load_shuffled_data(load_data, datasets_folder, seed):
    """X_train, y_train, X_test, y_test, checked; the training data shuffled once, so that shares of it are nested.

    :raises ValueError: what load_data returns is none to train and test a net on; and whatever load_data raises
    """
    X_train, y_train, X_test, y_test = check_data(load_data(datasets_folder))
    if X_train.ndim == 4:
        ConvFeatureExtractorBase(np.empty(X_train.shape[1:]))  # ValueError for images that are none to the nets
    order = np.random.default_rng(seed).permutation(len(X_train))
    return X_train[order], y_train[order], X_test, y_test


def take_share(share, data, standardise_inputs):
    """Of X_train, y_train, X_test, y_test as of load_shuffled_data the first part of the training data, and the test
    data; if wanted with mean 0 and deviation 1 of each feature, or channel of images, over that part."""
    X_train, y_train, X_test, y_test = data
    nb_samples = int(share * len(X_train))
    X_train, y_train = X_train[:nb_samples], y_train[:nb_samples]
    if standardise_inputs:
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(np.moveaxis(X_train, 1, -1).reshape(-1, X_train.shape[1]))
        mean, deviation = (statistic.astype(np.float32).reshape(-1, *[1] * (X_train.ndim - 2))
                           for statistic in (scaler.mean_, scaler.scale_))
        X_train, X_test = (X_train - mean) / deviation, (X_test - mean) / deviation
    return X_train, y_train, X_test, y_test


# ---- finding and downloading files ----

def _load_files(name, datasets_folder, read):
    """What `read(folder)` returns, after downloading the files that are missing there."""
    folder = Path(datasets_folder).expanduser().absolute()
    if not all(_find_file(folder / file) for file in _FILES[name]):
        _download(name, folder, read)
    try:
        return read(folder)
    except ValueError as problem:
        raise ValueError(f"{problem}\nIf this is the data of {name}, correct it. Delete the file to have it downloaded "
                         f"again, or replace it from {', '.join(_URLS[name])}") from problem


def _find_file(path):
    """The file at a path, of MNIST also as it is packed or as programs unpack it; None if there is none."""
    name = path.name
    others = (f"{name}/{name}", name.replace("-idx", ".idx"), f"{name}.gz") if "-idx" in name else ()
    return next(filter(Path.is_file, (path, *map(path.parent.joinpath, others))), None)


def _download(name, folder, read):
    """Download into a temporary folder, check the content there, move the missing files into place."""
    by_hand = "\n  ".join(["Files to place by hand, unpacked:", *(str(folder / file) for file in _FILES[name])])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True)
    except OSError as cause:
        raise PermissionError(f"{name} is not complete in {folder}, and this folder cannot be written to ({cause}): "
                              f"make it writable or pass another datasets_folder.\n{by_hand}") from cause
    with temporary as root:
        try:
            import torchvision

            target = Path(root, _FILES[name][0]).parent
            if name == "pendigits":
                for url in _URLS[name]:
                    torchvision.datasets.utils.download_url(url, target)
            elif name == "hand_posture":
                torchvision.datasets.utils.download_and_extract_archive(*_URLS[name], target)
            else:
                getattr(torchvision.datasets, name.upper())(root, download=True)
            read(Path(root))
        # Errors of network, archives and content have no class in common, and all mean the same here.
        except Exception as cause:
            urls = "\n  ".join(_URLS[name])
            reason = f"{type(cause).__name__}: {cause}".replace(root + os.sep, "")
            raise FileNotFoundError(f"{name} is not complete in {folder} and could not be downloaded ({reason}) from"
                                    f"\n  {urls}\n{by_hand}\nload_digits_data works offline, without files.") from cause
        for file in _FILES[name]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            # What the user or another process has put there stays.
            if not _find_file(folder / file):
                os.replace(Path(root, file), folder / file)


# ---- reading and checking files: every ValueError starts with the path ----

def _read_pendigits(folder):
    parts = []
    for file, nb_rows in zip(_FILES["pendigits"], (7494, 3498)):
        path = folder / file
        table, lines = _read_table(path, nb_columns=17)
        if len(table) != nb_rows:
            raise ValueError(f"{path}: {len(table)} rows, expected {nb_rows}")
        X, y = table[:, :16].copy(), table[:, 16]
        _check(path, X, (0 <= X) & (X <= 100), "0 to 100", lines)
        _check(path, y, np.isin(y, range(10)), "a class of 0 to 9", lines)
        parts.append((X, y.astype(np.int64)))
    return tuple(parts)


def _read_hand_posture(folder):
    path = folder / _FILES["hand_posture"][0]
    header = ["Class", "User", *(f"{axis}{marker}" for marker in range(12) for axis in "XYZ")]
    table, lines = _read_table(path, len(header), ",".join(header))
    # The official file starts with a dummy record, of class 0; not every copy still has it.
    if not table[0].any():
        table, lines = table[1:], lines[1:]
    X, y = table[:, 2:], table[:, 0]
    X[np.isnan(X)] = 0
    _check(path, X, np.abs(X) <= 10_000, "at most 10,000 mm: no marker on a hand is farther away", lines)
    _check(path, y, np.isin(y, range(1, 6)), "a class of 1 to 5", lines)
    return X, y.astype(np.int64) - 1


def _read_mnist(folder):
    parts = []
    for files in (_FILES["mnist"][:2], _FILES["mnist"][2:]):
        images_path, labels_path = (_find_file(folder / file) for file in files)
        images, y = _read_idx(images_path, (28, 28)), _read_idx(labels_path, ())
        if len(images) != len(y):
            raise ValueError(f"{labels_path}: {len(y)} labels for {len(images)} images")
        _check(labels_path, y, y < 10, "a class of 0 to 9")
        parts.append((images[:, np.newaxis].astype(np.float32), y.astype(np.int64)))
    return tuple(parts)


def _read_cifar10(folder, check_sums):
    paths = [folder / file for file in _FILES["cifar10"]]
    if check_sums:
        from torchvision.datasets import CIFAR10, utils

        try:
            CIFAR10(folder, train=False)  # compares the check sums of all files
        except RuntimeError as cause:
            official = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
            wrong = [str(path) for path in paths if not utils.check_integrity(path, official[path.name])]
            raise ValueError(f"{', '.join(wrong)}: check sum differs from the official one; "
                             f"load_cifar10_data(folder, check_sums=False) reads a part of the data set") from cause
    X, y = [], []
    for path, label in zip(paths, [*(f"training batch {i} of 5" for i in range(1, 6)), "testing batch 1 of 1"]):
        try:
            batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
            if label not in str(batch.get("batch_label", label)):
                raise ValueError(f"it is the {batch['batch_label']}")
            X.append(batch["data"].astype(np.uint8, casting="safe").reshape(-1, 3, 32, 32))
            y.append(np.array(batch["labels"]).reshape(len(X[-1])))
        except Exception as problem:  # bytes that are no pickle raise nearly anything
            raise ValueError(f"{path}: not a file of CIFAR-10 ({type(problem).__name__}: {problem})") from problem
        _check(path, y[-1], np.isin(y[-1], range(10)), "a class of 0 to 9")
    return ((np.concatenate(X[:5]).astype(np.float32), np.concatenate(y[:5]).astype(np.int64)),
            (X[5].astype(np.float32), y[5].astype(np.int64)))


class _ArrayUnpickler(pickle.Unpickler):
    """Makes nothing but arrays: a pickle can run any code, and without check sums a file can come from anywhere."""

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "_reconstruct", "_frombuffer"):
            return super().find_class(module, name)
        raise ValueError(f"it wants {module}.{name}, and arrays need none of that")


def _read_table(path, nb_columns, header=None):
    """The records of a comma-separated file, float32 (records, nb_columns) with NaN for what is missing, and the number
    of each one's line in the file, from 1 (list)."""
    records = {}  # number of the line: its fields, without the spaces and quotes that programs put round them
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        fields = [field.strip(' \t"') for field in line.split(",")]
        if any(fields):  # spreadsheets add lines of empty fields
            if len(fields) != nb_columns:
                raise ValueError(f"{path}: line {number} has {len(fields)} columns, not {nb_columns}: {line[:40]!r}")
            records[number] = ",".join(fields)
    if header and (names := records.pop(1, "")).lower() != header.lower():
        raise ValueError(f"{path}: line 1 is {names[:40]!r}, expected the header {header[:20]},...")
    if not records:
        raise ValueError(f"{path}: no records")
    table = pd.read_csv(io.StringIO("\n".join(records.values())), header=None, na_values="?", low_memory=False)
    numbers = table.apply(pd.to_numeric, errors="coerce")
    _check(path, table, (numbers.notna() | table.isna()).to_numpy(), "numbers, or ? for missing ones", list(records))
    return np.array(numbers, np.float32, order="C"), list(records)


def _check(path, values, valid, expected, lines=None):
    """ValueError that names the first value that is not valid and its place: a line, or the number of the label."""
    if not np.all(valid):
        first = tuple(np.argwhere(~np.asarray(valid))[0])
        place = f"line {lines[first[0]]}" if lines else f"label {first[0] + 1}"
        raise ValueError(f"{path}: {place} holds {np.asarray(values)[first]!s:.40}, expected {expected}")


def _read_idx(path, entry_shape):
    """The values of an IDX file, uint8 (entries, *entry_shape)."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as problem:
            raise ValueError(f"{path}: damaged gzip file ({problem})") from problem
    # The header's big-endian numbers: 2049 + number of axes of an entry, number of entries, shape of an entry.
    nb_entries = int.from_bytes(content[4:8], "big")
    header = np.array([2049 + len(entry_shape), nb_entries, *entry_shape], ">u4").tobytes()
    size = len(header) + nb_entries * int(np.prod(entry_shape))
    if not content.startswith(header) or len(content) != size or not nb_entries:
        raise ValueError(f"{path}: {len(content)} bytes that are no IDX file of {nb_entries} "
                         f"{'images of 28x28' if entry_shape else 'labels'}, {size} bytes long")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(-1, *entry_shape)
