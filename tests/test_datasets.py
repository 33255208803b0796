"""Facts about datasets.py. No test uses the network; those on the real sample files skip without them."""

import functools
import gzip
import hashlib
import pickle
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import datasets

SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "datasets"
LOADERS = {"pendigits": datasets.load_pendigits_data, "hand_posture": datasets.load_hand_posture_data,
           "mnist": datasets.load_mnist_data, "cifar10": datasets.load_cifar10_data,
           "cifar10_part": functools.partial(datasets.load_cifar10_data, check_sums=False)}
DUMMY_RECORD = ",".join(["0"] * 38)


def make_dataset(name):
    """Small files in the official format {path: bytes}, and the (X_train, y_train), (X_test, y_test) that they hold."""
    rng = np.random.default_rng(0)
    if name == "pendigits":
        parts = [(rng.integers(101, size=(n, 16)), np.arange(n) % 10) for n in (7494, 3498)]
        lines = [[",".join(map("{:3}".format, [*x, y])) for x, y in zip(X.tolist(), y.tolist())] for X, y in parts]
        return {"pendigits/pendigits.tra": "\n".join(lines[0]).encode(),
                "pendigits/pendigits.tes": "\n".join(lines[1]).encode()}, parts
    if name == "hand_posture":
        X, y = rng.normal(0, 100, (50, 36)), np.arange(50) % 5
        missing = np.arange(36) >= 3 + np.arange(50)[:, np.newaxis] % 34  # the last ones of each record, or none
        records = [f"{label + 1},9," + ",".join(row) for label, row in zip(y, np.where(missing, "?", X.astype(str)))]
        X = np.where(missing, 0, X).astype(np.float32)
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
        header = "Class,User," + ",".join(f"{axis}{marker}" for marker in range(12) for axis in "XYZ")
        text = "\n".join([header, DUMMY_RECORD, *records, ""])
        return {"HandPostures/Postures.csv": text.encode()}, [(X_train, y_train), (X_test, y_test)]
    if name == "mnist":
        parts = [(rng.integers(256, size=(n, 1, 28, 28)), np.arange(n) % 10) for n in (20, 10)]
        return {f"MNIST/raw/{part}-{file}": idx_bytes(values) for part, (X, y) in zip(("train", "t10k"), parts)
                for file, values in (("images-idx3-ubyte", X[:, 0]), ("labels-idx1-ubyte", y))}, parts
    # The bytes of a CIFAR-10 image are a red, a green and a blue plane, row by row.
    batches = [(rng.integers(256, size=(n, 3, 32, 32)), np.arange(n) % 10) for n in (2, 2, 2, 2, 2, 10)]
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    contents = [*(batch_bytes(X.reshape(-1, 3072), y.tolist()) for X, y in batches), pickle.dumps({"label_names": []})]
    return ({f"cifar-10-batches-py/{file}": content for file, content in zip(files, contents)},
            [tuple(map(np.concatenate, zip(*batches[:5]))), batches[5]])


def idx_bytes(values):
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def batch_bytes(data, labels):
    return pickle.dumps({"data": data.astype(np.uint8), "labels": labels})


def write_files(folder, contents):
    for file, content in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


FILES = {name: list(make_dataset(name)[0]) for name in LOADERS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", Mock(side_effect=urllib.error.URLError("no network in tests")))


@pytest.fixture
def contents(name, monkeypatch):
    contents = make_dataset(name)[0]
    if name == "cifar10":  # torchvision has the check sums of the official files only
        sums = [[Path(file).name, hashlib.md5(content).hexdigest()] for file, content in contents.items()]
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", sums[:5])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", sums[5:6])
        monkeypatch.setitem(torchvision.datasets.CIFAR10.meta, "md5", sums[6][1])
    return contents


@pytest.fixture
def server(contents, tmp_path_factory, monkeypatch):
    """Sends `change(right bytes)` in place of torchvision's download_url, then raises `error`, if any."""
    folder = tmp_path_factory.mktemp("server")
    write_files(folder, contents)
    # As the official servers have them
    if (folder / "HandPostures").exists():
        shutil.make_archive(folder / "Postures", "zip", folder / "HandPostures")
    if (folder / "cifar-10-batches-py").exists():
        shutil.make_archive(folder / "cifar-10-python", "gztar", folder, "cifar-10-batches-py")
    for path in folder.glob("MNIST/raw/*"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    server = SimpleNamespace(urls=[], change=bytes, error=None)

    def download_url(url, root, filename=None, md5=None):
        server.urls.append(url)
        [packed] = folder.rglob(Path(url).name)
        write_files(Path(root), {packed.name: server.change(packed.read_bytes())})
        if server.error:
            raise server.error
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    return server


def assert_same(loaded, expected):
    for (X, y), (X_expected, y_expected) in zip(loaded, expected, strict=True):
        assert X.dtype == np.float32 and X.flags.c_contiguous and y.dtype == np.int64
        np.testing.assert_array_equal(X, X_expected)
        np.testing.assert_array_equal(y, y_expected)


@pytest.mark.parametrize("name", LOADERS)
def test_a_complete_folder_datasets_is_read_as_it_is_without_a_download_and_without_writing(
        name, contents, server, tmp_path, monkeypatch):
    write_files(tmp_path / "datasets", contents)
    monkeypatch.chdir(tmp_path)
    assert_same(LOADERS[name](), make_dataset(name)[1])
    assert server.urls == [] and files_in(tmp_path / "datasets") == contents


@pytest.mark.skipif(not SAMPLE_FOLDER.is_dir(), reason=f"no sample files in {SAMPLE_FOLDER}")
@pytest.mark.parametrize("name, shapes, nb_classes", [
    ("pendigits", [(7494, 16), (3498, 16)], 10), ("hand_posture", [(2204, 36), (552, 36)], 3),
    ("mnist", [(5000, 1, 28, 28), (2000, 1, 28, 28)], 10), ("cifar10_part", [(1000, 3, 32, 32), (400, 3, 32, 32)], 10)])
def test_real_files_are_read(name, shapes, nb_classes):
    for (X, y), shape in zip(LOADERS[name](SAMPLE_FOLDER), shapes, strict=True):
        assert X.shape == shape and np.isfinite(X).all() and set(y) == set(range(nb_classes))


def test_digits_need_no_folder_and_are_split_within_each_class_by_the_seed(tmp_path):
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=3, stratify=y)
    assert_same(datasets.load_digits_data(tmp_path / "nowhere", random_state=3), [(X_train, y_train), (X_test, y_test)])
    assert list(tmp_path.iterdir()) == []


def test_postures_are_split_by_the_seed(tmp_path):
    write_files(tmp_path, make_dataset("hand_posture")[0])
    (X_train, _), _ = datasets.load_hand_posture_data(tmp_path, random_state=1)
    assert not np.array_equal(X_train, datasets.load_hand_posture_data(tmp_path)[0][0])


@pytest.mark.parametrize("change", [
    lambda text: text.replace(DUMMY_RECORD.encode() + b"\n", b""), lambda text: text.replace(b"\n", b"\r\n"),
    lambda text: b"\xef\xbb\xbf" + text,  # a byte order mark
    lambda text: text.replace(b",", b", "), lambda text: text.replace(b",", b" ,"),
    lambda text: b'"' + text.replace(b",", b'" , "').replace(b"\n", b'"\n"')[:-1],
    lambda text: text.replace(b"?", b""), lambda text: text.replace(b"?", b"NA"),
    lambda text: text.replace(b"\n", b"\n\n") + b"," * 37 + b"\n  \n", lambda text: text.rstrip(),
    lambda text: text.replace(b"Class,User", b"class,user")])
def test_posture_files_as_programs_write_them_change_nothing(change, tmp_path):
    contents, expected = make_dataset("hand_posture")
    [(file, text)] = contents.items()
    assert change(text) != text
    write_files(tmp_path, {file: change(text)})
    assert_same(datasets.load_hand_posture_data(tmp_path), expected)


@pytest.mark.parametrize("place", [
    lambda path, content: {path / path.name: content},  # as unzip programs do
    lambda path, content: {path.with_name(path.name.replace("-idx", ".idx")): content},  # as in a popular copy
    lambda path, content: {path.with_name(path.name + ".gz"): gzip.compress(content)}])
def test_mnist_files_are_found_as_programs_unpack_them_and_packed(place, tmp_path):
    contents, expected = make_dataset("mnist")
    for file in (FILES["mnist"][0], FILES["mnist"][3]):  # some may lie as they should
        write_files(tmp_path, place(Path(file), contents.pop(file)))
    write_files(tmp_path, contents)
    assert_same(datasets.load_mnist_data(tmp_path), expected)


# ---- downloads ----

@pytest.mark.parametrize("name", list(LOADERS)[:4])
def test_a_download_is_moved_into_place_and_happens_once(name, contents, server, tmp_path):
    folder = tmp_path / "new" / "datasets"
    assert_same(LOADERS[name](folder), make_dataset(name)[1])
    assert files_in(folder) == contents and not list(folder.glob(".download-*"))
    urls = list(server.urls)
    LOADERS[name](folder)
    assert server.urls == urls != []


@pytest.mark.parametrize("name", list(LOADERS)[:4])
def test_without_network_the_error_lists_addresses_and_files_to_place_by_hand(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="no network in tests") as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert message.startswith(name) and "\n  https://" in message and "load_digits_data works offline" in message
    assert all(f"\n  {tmp_path / file}\n" in message for file in FILES[name])


@pytest.mark.parametrize("name, change, sent_error, raised", [
    ("pendigits", lambda content: content[:999], None, FileNotFoundError),
    ("hand_posture", lambda content: content[:999], ConnectionResetError("reset"), FileNotFoundError),
    ("mnist", lambda content: b"<html>", None, FileNotFoundError),
    ("cifar10", lambda content: content[:999], KeyboardInterrupt(), KeyboardInterrupt)])
def test_an_interrupted_download_leaves_nothing_and_the_next_run_succeeds(
        name, change, sent_error, raised, contents, server, tmp_path):
    server.change, server.error = change, sent_error
    with pytest.raises(raised) as error:
        LOADERS[name](tmp_path)
    assert ".download-" not in str(error.value) and list(tmp_path.rglob("*")) == []
    server.change, server.error = bytes, None
    LOADERS[name](tmp_path)
    assert files_in(tmp_path) == contents


@pytest.mark.parametrize("name", ["mnist"])
def test_a_file_that_is_there_is_never_replaced_not_even_one_that_appears_during_the_download(
        name, contents, server, tmp_path):
    mine, theirs = ({FILES[name][i]: idx_bytes(np.full(20, digit))} for i, digit in ((1, 7), (3, 8)))
    write_files(tmp_path, mine)
    server.change = lambda content: write_files(tmp_path, theirs) or content
    with pytest.raises(ValueError, match="20 labels for 10 images"):
        LOADERS[name](tmp_path)
    assert server.urls != [] and files_in(tmp_path) == {**contents, **mine, **theirs}


def test_a_folder_that_cannot_be_written_to_is_named_before_any_download(tmp_path):
    # Permission bits would not do: they do not bind the administrator, who runs tests in containers.
    (tmp_path / "datasets").write_bytes(b"a file in place of a folder")
    with pytest.raises(PermissionError, match="this folder cannot be written to") as error:
        datasets.load_mnist_data(tmp_path / "datasets")
    assert all(f"\n  {tmp_path / 'datasets' / file}" in str(error.value) for file in FILES["mnist"])


# ---- wrong files ----

def with_line(number, line):
    return lambda text: b"\n".join([*text.split(b"\n")[:number - 1], line.encode(), *text.split(b"\n")[number:]])


@pytest.mark.parametrize("name, number, change, problem", [
    ("pendigits", 0, lambda content: b"", "no records"),
    ("pendigits", 0, with_line(3, ""), "7493 rows, expected 7494"),
    ("pendigits", 1, with_line(3, "101" + ",1" * 16), "line 3 holds 101.0, expected 0 to 100"),
    ("pendigits", 1, with_line(3, "?" + ",1" * 16), "line 3 holds nan, expected 0 to 100"),
    ("pendigits", 1, with_line(3, "1," * 16 + "1.5"), "line 3 holds 1.5, expected a class of 0 to 9"),
    ("pendigits", 1, with_line(3, "5_4" + ",1" * 16), "line 3 holds 5_4, expected numbers, or ? for missing ones"),
    ("hand_posture", 0, lambda content: content[:-200], "line 52 has "),
    ("hand_posture", 0, gzip.compress, "line "),
    ("hand_posture", 0, lambda content: content.replace(b"X0,Y0", b"Y0,X0"), "line 1 is 'Class,User,Y0,X0"),
    ("hand_posture", 0, with_line(4, DUMMY_RECORD), "line 4 holds 0.0, expected a class of 1 to 5"),  # a second one
    ("hand_posture", 0, with_line(4, "1,9,-20000" + ",?" * 35), "line 4 holds -20000.0, expected at most 10,000 mm"),
    ("mnist", 0, lambda content: content[:-1], "15695 bytes that are no IDX file of 20 images of 28x28, 15696 bytes"),
    ("mnist", 0, lambda content: idx_bytes(np.zeros((20, 28, 29))), "16256 bytes that are no IDX file of 20 images of"),
    ("mnist", 0, lambda content: gzip.compress(content)[:-20], "damaged gzip file"),
    ("mnist", 1, lambda content: idx_bytes(np.zeros(19)), "19 labels for 20 images"),
    ("mnist", 3, lambda content: idx_bytes(np.arange(1, 11)), "label 10 holds 10, expected a class of 0 to 9"),
    ("cifar10", 2, lambda content: content[:-1], "check sum differs from the official one"),
    ("cifar10", 6, lambda content: b"", "check sum differs from the official one"),
    ("cifar10_part", 3, lambda content: pickle.dumps(Path()), "not a file of CIFAR-10 (ValueError: it wants pathlib"),
    ("cifar10_part", 2, lambda content: pickle.dumps({**pickle.loads(content), "batch_label": "testing batch 1 of 1"}),
     "not a file of CIFAR-10 (ValueError: it is the testing batch 1 of 1)"),
    ("cifar10_part", 3, lambda content: content[:-1], "not a file of CIFAR-10 ("),
    ("cifar10_part", 3, lambda content: batch_bytes(np.zeros((2, 3072)), [0]), "not a file of CIFAR-10 ("),
    ("cifar10_part", 3, lambda content: batch_bytes(np.zeros((2, 3072)), [0, 10]), "label 2 holds 10, expected a ")])
def test_a_wrong_file_is_named_with_line_or_size_and_kept(name, number, change, problem, contents, server, tmp_path):
    file = FILES[name][number]
    contents[file] = change(contents[file])
    write_files(tmp_path, contents)
    with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / file}: {problem}")):
        LOADERS[name](tmp_path)
    assert server.urls == [] and files_in(tmp_path) == contents


# ---- preparing what was loaded ----

def load_images_data(datasets_folder):
    X = np.random.default_rng(0).integers(256, size=(40, 3, 27, 28)) * np.array([1, 10, 0])[:, None, None] + 5
    return (X[:30], np.arange(30) % 3), (X[30:], np.arange(10) % 3)


def test_the_training_data_is_permuted_with_its_labels_depending_on_the_seed():
    (X, y), (X_test, y_test) = load_images_data(None)
    X_train, y_train, *test = datasets.load_shuffled_data(load_images_data, None, 0)
    order = [next(i for i in range(30) if np.array_equal(X[i], x)) for x in X_train]
    assert sorted(order) == list(range(30)) != order and y_train.tolist() == y[order].tolist()
    assert np.array_equal(test[0], X_test) and np.array_equal(test[1], y_test)
    assert not np.array_equal(X_train, datasets.load_shuffled_data(load_images_data, None, 1)[0])


def test_images_that_are_none_to_the_nets_are_named():
    def load_channels_last(datasets_folder):
        return [(X.transpose(0, 2, 3, 1), y) for X, y in load_images_data(datasets_folder)]

    with pytest.raises(ValueError, match=r"got \(27, 28, 3\); X.transpose\(0, 3, 1, 2\) puts channels first"):
        datasets.load_shuffled_data(load_channels_last, None, 0)


def test_each_channel_is_standardised_over_the_share_and_constant_ones_become_zero():
    data = datasets.load_shuffled_data(load_images_data, None, 0)
    X_train, y_train, X_test, y_test = datasets.take_share(0.5, data, standardise_inputs=True)
    X = data[0][:15].astype(float)
    mean, deviation = X.mean((0, 2, 3), keepdims=True), X.std((0, 2, 3), keepdims=True)
    deviation[deviation == 0] = 1
    np.testing.assert_allclose(X_train, (X - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(X_test, (data[2] - mean) / deviation, atol=1e-5)
    assert X_train.dtype == X_test.dtype == np.float32 and np.abs(X_train[:, 2]).max() == 0
    assert np.array_equal(y_train, data[1][:15]) and np.array_equal(y_test, data[3])


def load_my_own_data(datasets_folder):
    raise NotImplementedError


def test_every_loading_function_has_its_name_and_only_mnist_and_cifar10_are_image_datasets():
    for name in ("pendigits", "hand_posture", "mnist", "cifar10", "digits"):
        load = getattr(datasets, f"load_{name}_data")
        assert datasets.get_dataset_name_for_loading_function(load) == name
        assert datasets.is_image_dataset(load) is (name in ("mnist", "cifar10"))
    assert datasets.get_dataset_name_for_loading_function(load_my_own_data) == "my_own"
    with pytest.raises(ValueError, match="only the shape of what load_my_own_data returns tells"):
        datasets.is_image_dataset(load_my_own_data)


@pytest.mark.parametrize("unknown", [load_digits, "mnist", functools.partial(load_my_own_data)])
def test_what_is_no_function_with_such_a_name_is_shown_with_the_remedy(unknown):
    with pytest.raises(ValueError, match=re.escape(repr(unknown)) + "; write def load_NAME_data"):
        datasets.get_dataset_name_for_loading_function(unknown)
