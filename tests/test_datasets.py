"""Facts about datasets.py. No test uses the network; those on the real sample files skip without them."""

import errno
import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits

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


# ---- small files in the official formats, written by hand ----

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


# ---- what the loaders return ----

@pytest.mark.skipif(not SAMPLE_FOLDER.is_dir(), reason=f"no sample files in {SAMPLE_FOLDER}")
@pytest.mark.parametrize("name, shapes, nb_classes", [
    ("pendigits", [(7494, 16), (3498, 16)], 10), ("hand_posture", [(2204, 36), (552, 36)], 3),
    ("mnist", [(5000, 1, 28, 28), (2000, 1, 28, 28)], 10), ("cifar10", [(1000, 3, 32, 32), (400, 3, 32, 32)], 10)])
def test_real_files_are_read(name, shapes, nb_classes, monkeypatch):
    # The sample's batches are not the official ones and have other checksums.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    assert_types(LOADERS[name](SAMPLE_FOLDER), shapes, nb_classes)


@pytest.mark.parametrize("name, shapes, nb_classes", [
    ("pendigits", [(7494, 16), (3498, 16)], 10), ("hand_posture", [(40, 36), (10, 36)], 5),
    ("mnist", [(20, 1, 28, 28), (10, 1, 28, 28)], 10), ("cifar10", [(10, 3, 32, 32), (10, 3, 32, 32)], 10)])
def test_a_complete_folder_is_read_without_a_download_and_without_writing(
        name, shapes, nb_classes, contents, server, tmp_path, monkeypatch):
    write_files(tmp_path, contents)
    make_file_system_read_only(monkeypatch)
    for folder in (tmp_path, str(tmp_path) + "/"):
        assert_types(LOADERS[name](folder), shapes, nb_classes)
    assert server.urls == [] and files_in(tmp_path) == contents


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_each_pixel_of_training_and_test_images_lies_where_its_byte_does_in_red_green_blue_planes(
        name, contents, tmp_path):
    write_files(tmp_path, contents)
    for (X, y), brightness in zip(LOADERS[name](tmp_path), (30, 130)):
        for i, image in enumerate(X):
            pixels = [[c, 3 + i, 20 + c] for c in range(len(image))]  # channel, row, column
            assert np.argwhere(image).tolist() == pixels
            assert [image[tuple(pixel)] for pixel in pixels] == [brightness + 20 * c + i for c in range(len(image))]
        assert y.tolist() == [i % 10 for i in range(len(X))]


def test_pendigits_columns_keep_their_order_and_the_folder_is_datasets_by_default(tmp_path, monkeypatch):
    write_files(tmp_path / "datasets", contents_of("pendigits"))
    monkeypatch.chdir(tmp_path)
    (X_train, y_train), (X_test, y_test) = datasets.load_pendigits_data()
    assert X_train[0].tolist() == [47, 100, 27, 81, 57, 37, 26, 0, 0, 23, 56, 53, 100, 90, 40, 98] and y_train[0] == 8
    assert X_test[0].tolist() == [88, 92, 2, 99, 16, 66, 94, 37, 70, 0, 0, 24, 42, 65, 100, 100] and y_test[0] == 4


@ONE_DATASET
def test_a_tilde_is_the_home_folder(name, contents, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):  # on Windows
        monkeypatch.setenv(variable, str(tmp_path))
    write_files(tmp_path / "data", contents)
    assert_same(LOADERS[name]("~/data"), LOADERS[name](tmp_path / "data"))


def test_digits_need_no_folder_and_are_split_within_each_class_by_the_seed_alone(tmp_path):
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_digits_data(tmp_path / "nowhere")
    assert_types(loaded, [(1437, 64), (360, 64)], 10)
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    images, labels = load_digits(return_X_y=True)
    assert sorted(zip(X.tolist(), y)) == sorted(zip(images.tolist(), labels))
    assert np.abs(np.bincount(y_test) - 0.2 * np.bincount(y)).max() <= 1
    assert list(tmp_path.iterdir()) == []
    assert_same(loaded, datasets.load_digits_data(random_state=0))
    assert not np.array_equal(X_train, datasets.load_digits_data(random_state=1)[0][0])


# ---- hand postures ----

def load_posture_text(folder, text, **arguments):
    write_files(folder, {FILES["hand_posture"][0]: text})
    return datasets.load_hand_posture_data(folder, **arguments)


def test_posture_inputs_have_zeros_for_question_marks_and_neither_class_nor_user(tmp_path):
    lines = ["5,9,1.5,-2.25,3" + ",?" * 33, "2,8," + ",".join(map(str, range(1, 37)))]
    loaded = load_posture_text(tmp_path, posture_text(lines))
    by_label = {y.item(): X.tolist() for X, y in loaded}
    assert by_label == {4: [[1.5, -2.25, 3] + [0] * 33], 1: [list(range(1, 37))]}


@pytest.mark.parametrize("change", [
    lambda text: text.replace(POSTURE_HEADER.encode(), ",".join(f'"{n}"' for n in POSTURE_HEADER.split(",")).encode()),
    lambda text: text.replace(b"\n", b"\r\n"),
    lambda text: text.replace(b"\n" + b"0," * 37 + b"0\n", b"\n")])
def test_quoted_column_names_crlf_and_a_missing_dummy_record_change_nothing(change, tmp_path):
    text = posture_text(posture_records())
    assert change(text) != text
    assert_same(load_posture_text(tmp_path / "changed", change(text)), load_posture_text(tmp_path, text))


def test_posture_split_depends_on_the_seed_alone(tmp_path):
    text = posture_text(posture_records())
    first = load_posture_text(tmp_path, text)
    assert_same(first, load_posture_text(tmp_path, text, random_state=0))
    assert not np.array_equal(first[0][0], load_posture_text(tmp_path, text, random_state=1)[0][0])


def test_the_full_size_posture_file_loads_within_500_megabytes_and_without_torch(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    records = [posture_record(i % 5 + 1, *(f"{i}.12345678901{marker}" for marker in range(36))) for i in range(500)]
    write_files(tmp_path, {FILES["hand_posture"][0]: posture_text((records * 157)[:78095])})
    script = """
import datasets, re, sys
peak_megabytes = lambda: int(re.search("VmHWM:(.*)kB", open("/proc/self/status").read())[1]) / 1000
before = peak_megabytes()
(X_train, _), (X_test, _) = datasets.load_hand_posture_data(sys.argv[1])
print(len(X_train), len(X_test), "torch" in sys.modules, peak_megabytes() - before)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], check=True, stdout=subprocess.PIPE, text=True,
                         env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    *facts, megabytes = run.stdout.split()
    assert facts == ["62476", "15619", "False"]
    assert 10 < float(megabytes) < 500  # the arrays alone are more than 10


# ---- damaged files ----

DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:len(content) // 2],
    "html": lambda content: b"<!DOCTYPE html>\n<html><head><title>503, please try again</title></head></html>\n",
    "compressed": gzip.compress,
}


@pytest.mark.parametrize("name, number, damage", [
    ("pendigits", 1, "truncated"), ("pendigits", 0, "empty"), ("hand_posture", 0, "compressed"),
    ("mnist", 0, "truncated"), ("mnist", 3, "empty"), ("mnist", 2, "html"),
    ("cifar10", 2, "truncated"), ("cifar10", 5, "html"), ("cifar10", 6, "empty")])
def test_a_damaged_file_is_named_and_kept(name, number, damage, contents, server, tmp_path):
    file = FILES[name][number]
    contents[file] = DAMAGES[damage](contents[file])
    write_files(tmp_path, contents)
    with pytest.raises(ValueError) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / file) + ": ") and "Delete the file" in message
    assert not any(str(tmp_path / other) in message for other in FILES[name] if other != file)
    assert server.urls == [] and files_in(tmp_path) == contents


@pytest.mark.parametrize("row, problem", [
    ("101" + ",1" * 16, "record 3 holds 101, expected 0 to 100"),
    ("-1" + ",1" * 16, "record 3 holds -1, expected 0 to 100"),
    ("?" + ",1" * 16, "record 3 holds nan, expected 0 to 100"),
    ("1," * 16 + "10", "record 3 is of class 10, expected 0 to 9"),
    ("1," * 16 + "1.5", "record 3 is of class 1.5, expected 0 to 9"),
    ("1," * 15 + "1", "line 3 of 7494 has 16 columns, expected 17"),
    ("x" + ",1" * 16, "could not convert string 'x'"),
    (None, "7493 rows, expected 7494")])
def test_a_wrong_pendigits_row_is_named(row, problem, tmp_path):
    contents = contents_of("pendigits")
    lines = contents[FILES["pendigits"][0]].decode().splitlines()
    lines[2:3] = [] if row is None else [row]
    write_files(tmp_path, {**contents, FILES["pendigits"][0]: "\n".join(lines).encode()})
    with pytest.raises(ValueError, match=problem):
        datasets.load_pendigits_data(tmp_path)


@pytest.mark.parametrize("text, problem", [
    (posture_text(posture_records(3) + [record]), problem) for record, problem in [
        (posture_record(6, 1, 2, 3), "record 4 is of class 6, expected 1 to 5"),
        (posture_record("?", 1, 2, 3), "record 4 is of class nan, expected 1 to 5"),
        (",".join(["0"] * 38), "record 4 is of class 0, expected 1 to 5"),  # only the first may be a dummy
        (posture_record(1, 1, -2e6, 3), "record 4 holds -2e"),
        (posture_record(1, 1, 2e6, 3), "record 4 holds 2e"),
        (posture_record(1, 1, 2, 3) + ",4", "line 6 of 6 has 39 columns, expected 38"),
        (posture_record(1, 1, "4#5"), "could not convert string '4#5'"),
        (posture_record(1, 1, "3?4"), "could not convert string '3nan4'")]] + [
    (POSTURE_HEADER.encode() + b"\n", "no records"),
    (posture_text(posture_records(1)), "1 records, too few to split"),
    (posture_text(posture_records(5)).split(b"\n", 1)[1], "expected the header Class,User")])
def test_a_wrong_posture_record_is_named(text, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        load_posture_text(tmp_path, text)


@pytest.mark.parametrize("number, shape, values, problem", [
    (1, [19], [0] * 19, "19 labels for 20 images"),
    (3, [10], range(1, 11), "record 10 is of class 10, expected 0 to 9"),
    (0, [20, 28, 29], [0] * 20 * 28 * 29, "IDX file of 28x28 images"),
    (0, [0, 28, 28], [], "for 0 entries"),
    (1, [20, 28, 28], [0] * 20 * 784, "IDX file of labels")])
def test_mnist_files_that_do_not_fit_together_are_named(number, shape, values, problem, tmp_path):
    file = FILES["mnist"][number]
    write_files(tmp_path, {**contents_of("mnist"), file: idx_bytes(shape, values)})
    with pytest.raises(ValueError, match=problem) as error:
        datasets.load_mnist_data(tmp_path)
    assert str(error.value).startswith(str(tmp_path / file) + ": ")


# ---- downloads ----

@EVERY_DATASET
def test_a_download_is_moved_into_place_and_happens_once(name, contents, server, tmp_path):
    folder = tmp_path / "new" / "datasets"
    downloaded = LOADERS[name](folder)
    assert files_in(folder) == contents
    # Moving is atomic within one file system only, so the temporary folder has to be near.
    assert all(folder in used.parents for used in server.folders)
    assert list(folder.glob(".download-*")) == []
    urls = list(server.urls)
    assert {Path(url).name for url in urls} == set(server.served)
    uci = {"pendigits": FILES["pendigits"], "hand_posture": ["00405/Postures.zip"]}
    if name in uci:  # torchvision has the other addresses
        assert urls == [f"https://archive.ics.uci.edu/ml/machine-learning-databases/{file}" for file in uci[name]]
    assert_same(LOADERS[name](folder), downloaded)
    assert server.urls == urls


@EVERY_DATASET
def test_without_network_the_error_says_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert f"({name})" in message and "there is no network in the tests" in message
    assert all(str(tmp_path / file) + "\n" in message for file in FILES[name])
    assert "\n  https://" in message
    assert all(f"/{file}\n" in message for file in served_by_url(name, contents_of(name)))
    assert "load_digits_data works offline" in message and error.value.__cause__ is not None


@pytest.mark.parametrize("name, damage, sent_error, raised", [
    ("pendigits", "truncated", None, FileNotFoundError),
    ("pendigits", "truncated", ConnectionResetError("reset"), FileNotFoundError),
    ("hand_posture", "empty", None, FileNotFoundError),
    ("mnist", "html", None, FileNotFoundError),
    ("cifar10", "truncated", KeyboardInterrupt(), KeyboardInterrupt)])
def test_an_interrupted_download_leaves_nothing_and_the_next_run_succeeds(
        name, damage, sent_error, raised, contents, server, tmp_path):
    server.change, server.error = DAMAGES[damage], sent_error
    with pytest.raises(raised) as error:
        LOADERS[name](tmp_path)
    assert ".download-" not in str(error.value)
    assert list(tmp_path.glob("**/*")) == []
    server.change, server.error = (lambda content: content), None
    LOADERS[name](tmp_path)
    assert files_in(tmp_path) == contents


@ONE_DATASET
def test_a_download_of_missing_files_replaces_none_that_is_there(name, contents, server, tmp_path):
    missing = FILES[name][2]
    mine = {file: b"the user's" for file in FILES[name] if file != missing}
    write_files(tmp_path, mine)
    with pytest.raises(ValueError):  # the bad files are reported, and not healed behind the user's back
        LOADERS[name](tmp_path)
    assert files_in(tmp_path) == {**mine, missing: contents[missing]}


@ONE_DATASET
def test_two_processes_may_download_at_the_same_time(name, contents, server, tmp_path):
    theirs = {FILES[name][1]: idx_bytes([20], [7] * 20)}
    server.before = lambda: write_files(tmp_path, {**contents, **theirs})  # the other one has just finished
    (_, y_train), _ = LOADERS[name](tmp_path)
    assert y_train.tolist() == [7] * 20
    assert server.urls != [] and files_in(tmp_path) == {**contents, **theirs}


@ONE_DATASET
def test_what_a_killed_process_left_behind_is_harmless(name, contents, server, tmp_path):
    leftover = {f".download-killed/{file}": content[:10] for file, content in contents.items()}
    write_files(tmp_path, leftover)
    LOADERS[name](tmp_path)
    assert files_in(tmp_path) == {**contents, **leftover}


# ---- folders that cannot be written to ----

@ONE_DATASET
@pytest.mark.parametrize("blocked, downloads", [("datasets", False), ("datasets/MNIST", True)])
def test_a_folder_that_cannot_be_written_to_is_named_before_any_download_if_possible(
        name, blocked, downloads, server, tmp_path):
    write_files(tmp_path, {blocked: b"a file in place of a folder"})
    folder = tmp_path / "datasets"
    with pytest.raises(PermissionError) as error:
        LOADERS[name](folder)
    for part in (f"({name})", f"{folder}, and this folder cannot be written to", str(error.value.__cause__),
                 *(f"\n  {folder / file}" for file in FILES[name])):
        assert part in str(error.value)
    assert bool(server.urls) == downloads
    assert files_in(tmp_path) == {blocked: b"a file in place of a folder"} and not list(tmp_path.rglob(".download-*"))


# ---- names ----

def test_every_loading_function_has_its_name_and_only_mnist_and_cifar10_are_image_datasets():
    for name, load in {**LOADERS, "digits": datasets.load_digits_data}.items():
        assert datasets.get_dataset_name_for_loading_function(load) == name
        assert datasets.is_image_dataset(load) is (name in ("mnist", "cifar10"))


def test_an_unknown_loading_function_is_named_beside_the_known_ones():
    for function in (datasets.get_dataset_name_for_loading_function, datasets.is_image_dataset):
        for unknown, shown in ((load_digits, "load_digits"), ("mnist", "'mnist'"), ([], r"\[\]")):
            with pytest.raises(ValueError, match=f"data set loading function {shown}, known are .*load_mnist_data, "):
                function(unknown)


def test_further_arguments_are_keyword_only():
    for load in (datasets.load_hand_posture_data, datasets.load_digits_data):
        with pytest.raises(TypeError):
            load("datasets/", 0)
