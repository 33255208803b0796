"""Small files in the official formats of the data sets, written by hand, and what stands in for their servers."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision

import datasets

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_FOLDER = REPOSITORY.parent / "shared" / "datasets"

LOADERS = {"pendigits": datasets.load_pendigits_data, "hand_posture": datasets.load_hand_posture_data,
           "mnist": datasets.load_mnist_data, "cifar10": datasets.load_cifar10_data}
FILES = {
    "pendigits": ["pendigits/pendigits.tra", "pendigits/pendigits.tes"],
    "hand_posture": ["HandPostures/Postures.csv"],
    "mnist": ["MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte",
              "MNIST/raw/t10k-images-idx3-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"],
    "cifar10": [*(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
                "cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"],
}
EVERY_DATASET = pytest.mark.parametrize("name", list(LOADERS))
ONE_DATASET = pytest.mark.parametrize("name", ["mnist"])  # for what does not depend on the data set
POSTURE_HEADER = "Class,User," + ",".join(f"{axis}{i}" for i in range(12) for axis in "XYZ")


def posture_record(label, *markers):
    return f"{label},0," + ",".join([*map(str, markers), *["?"] * (36 - len(markers))])


def posture_text(records, dummy=",".join(["0"] * 38), line_end="\n"):
    return "".join(line + line_end for line in [POSTURE_HEADER, *([dummy] if dummy else []), *records]).encode()


def posture_records(nb_records=50):
    return [posture_record(i % 5 + 1, *(f"{i}.{marker}" for marker in range(3 + i % 34))) for i in range(nb_records)]


def pendigits_text(nb_rows, first_row):
    rows = [",".join(f"{(7 * i + column) % 101:3}" for column in range(16)) + f", {i % 10}" for i in range(1, nb_rows)]
    return "\n".join([first_row, *rows, ""]).encode()


def idx_bytes(shape, values):
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + bytes(values)


def image_bytes(i, nb_channels, width, brightness):
    """Black, but for one pixel of each channel c: [3 + i, 20 + c] has the value brightness + 20 c + i."""
    values = bytearray(nb_channels * width * width)
    for c in range(nb_channels):
        values[c * width * width + (3 + i) * width + 20 + c] = brightness + 20 * c + i
    return bytes(values)


def contents_of(name):
    """path below datasets_folder -> bytes of a valid small file"""
    if name == "pendigits":
        texts = (pendigits_text(7494, " 47,100, 27, 81, 57, 37, 26,  0,  0, 23, 56, 53,100, 90, 40, 98, 8"),
                 pendigits_text(3498, " 88, 92,  2, 99, 16, 66, 94, 37, 70,  0,  0, 24, 42, 65,100,100, 4"))
        return dict(zip(FILES[name], texts))
    if name == "hand_posture":
        return {FILES[name][0]: posture_text(posture_records())}
    if name == "mnist":
        return dict(zip(FILES[name], [content for n, brightness in ((20, 30), (10, 130)) for content in (
            idx_bytes([n, 28, 28], b"".join(image_bytes(i, 1, 28, brightness) for i in range(n))),
            idx_bytes([n], [i % 10 for i in range(n)]))]))
    batches = [([2 * batch, 2 * batch + 1], 30) for batch in range(5)] + [(list(range(10)), 130)]
    contents = [{"data": np.array([list(image_bytes(i, 3, 32, brightness)) for i in numbers], np.uint8),
                 "labels": numbers} for numbers, brightness in batches]
    return dict(zip(FILES[name], map(pickle.dumps, [*contents, {"label_names": list("abcdefghij")}])))


def write_files(folder, contents):
    for file, content in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def served_by_url(name, contents):
    """last part of the URL -> bytes, packed as the official servers pack them"""
    packed = io.BytesIO()
    if name == "hand_posture":
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("Postures.csv", contents[FILES[name][0]])
        return {"Postures.zip": packed.getvalue()}
    if name == "cifar10":
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for file, content in contents.items():
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return {"cifar-10-python.tar.gz": packed.getvalue()}
    if name == "mnist":
        return {Path(file).name + ".gz": gzip.compress(content) for file, content in contents.items()}
    return {Path(file).name: content for file, content in contents.items()}


class Server:
    """Stands in for torchvision's download_url: sends `change(right bytes)`, then raises `error`, if any."""

    def __init__(self, served):
        self.served, self.urls, self.folders = served, [], []
        self.before, self.change, self.error = (lambda: None), (lambda content: content), None

    def __call__(self, url, root, filename=None, md5=None, max_redirect_hops=3):
        self.before()
        self.urls.append(url)
        self.folders.append(Path(root))
        write_files(Path(root), {filename or Path(url).name: self.change(self.served[Path(url).name])})
        if self.error:
            raise self.error


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("there is no network in the tests")
    monkeypatch.setattr(urllib.request, "urlopen", fail)


@pytest.fixture
def contents(name, monkeypatch):
    contents = contents_of(name)
    if name == "cifar10":  # has checksums of the official files only
        md5 = {Path(file).name: hashlib.md5(content).hexdigest() for file, content in contents.items()}
        CIFAR10 = torchvision.datasets.CIFAR10
        monkeypatch.setattr(CIFAR10, "train_list", [[file, md5[file]] for file, _ in CIFAR10.train_list])
        monkeypatch.setattr(CIFAR10, "test_list", [[file, md5[file]] for file, _ in CIFAR10.test_list])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return contents


@pytest.fixture
def server(name, contents, monkeypatch):
    server = Server(served_by_url(name, contents))
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", server)
    return server


def make_file_system_read_only(monkeypatch):
    # Permission bits would not do: they do not bind the administrator, who runs tests in containers.
    def fail(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))
    for function in ("mkdir", "replace", "rename", "remove", "unlink"):
        monkeypatch.setattr(os, function, fail)


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_same(loaded, expected):
    for (X, y), (X_expected, y_expected) in zip(loaded, expected, strict=True):
        np.testing.assert_array_equal(X, X_expected)
        np.testing.assert_array_equal(y, y_expected)


def assert_types(loaded, shapes, nb_classes):
    assert [X.shape for X, _ in loaded] == shapes
    for X, y in loaded:
        assert X.dtype == np.float32 and X.flags.c_contiguous and np.isfinite(X).all()
        assert y.dtype == np.int64 and y.shape == (len(X),)
        assert set(y) == set(range(nb_classes))


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:len(content) // 2],
    "html": lambda content: b"<!DOCTYPE html>\n<html><head><title>503, please try again</title></head></html>\n",
    "compressed": gzip.compress,
}
