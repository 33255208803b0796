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

import datasets

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_FOLDER = REPOSITORY.parent / "shared" / "datasets"
needs_samples = pytest.mark.skipif(not SAMPLE_FOLDER.is_dir(), reason=f"no sample files in {SAMPLE_FOLDER}")

LOADERS = {
    "pendigits": datasets.load_pendigits_data,
    "hand_posture": datasets.load_hand_posture_data,
    "mnist": datasets.load_mnist_data,
    "cifar10": datasets.load_cifar10_data,
}
FILES = {
    "pendigits": ["pendigits/pendigits.tra", "pendigits/pendigits.tes"],
    "hand_posture": ["HandPostures/Postures.csv"],
    "mnist": [f"MNIST/raw/{part}-{content}-ubyte"
              for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")],
    "cifar10": [f"cifar-10-batches-py/{file}"
                for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]],
}
EVERY_DATASET = pytest.mark.parametrize("name", list(LOADERS))
EVERY_FILE = pytest.mark.parametrize("name, file", [(name, file) for name in FILES for file in FILES[name]])
HTML = b"<!DOCTYPE html>\n<html><head><title>503, please try again</title></head></html>\n"
POSTURE_HEADER = "Class,User," + ",".join(f"{axis}{i}" for i in range(12) for axis in "XYZ")


# ---- small files in the official formats ----

def posture_record(label, user, markers):
    return ",".join([str(label), str(user), *(repr(float(v)) for v in markers), *["?"] * (36 - len(markers))])


def posture_text(records, dummy=True, line_end="\n"):
    lines = [POSTURE_HEADER, *([",".join(["0"] * 38)] if dummy else []), *records]
    return "".join(line + line_end for line in lines).encode()


def posture_records(nb_records=50):
    rng = np.random.default_rng(0)
    return [posture_record(i % 5 + 1, i % 3, rng.uniform(-200, 200, 3 * rng.integers(3, 13)).round(6))
            for i in range(nb_records)]


def pendigits_text(nb_rows, seed):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.integers(0, 101, (nb_rows, 16)), np.arange(nb_rows) % 10])
    file = io.StringIO()
    np.savetxt(file, rows, fmt="%3d", delimiter=",")
    return file.getvalue().encode()


def idx_bytes(array):
    header = np.array([2048 + array.ndim, *array.shape], dtype=">u4")
    return header.tobytes() + array.astype(np.uint8).tobytes()


def contents_of(name):
    """path below datasets_folder -> bytes of a valid small file"""
    rng = np.random.default_rng(1)
    if name == "pendigits":
        return dict(zip(FILES[name], (pendigits_text(7494, 0), pendigits_text(3498, 1))))
    if name == "hand_posture":
        return {FILES[name][0]: posture_text(posture_records())}
    if name == "mnist":
        arrays = [array for n in (20, 10) for array in (rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10)]
        return dict(zip(FILES[name], map(idx_bytes, arrays)))
    batches = [{"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
               for _ in range(6)]
    return dict(zip(FILES[name], map(pickle.dumps, [*batches, {"label_names": list("abcdefghij")}])))


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
        self.served = served
        self.urls, self.folders = [], []
        self.before = lambda: None
        self.change = lambda content: content
        self.error = None

    def __call__(self, url, root, filename=None, md5=None, max_redirect_hops=3):
        self.before()
        self.urls.append(url)
        self.folders.append(Path(root))
        path = Path(root, filename or Path(url).name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.change(self.served[Path(url).name]))
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


def files_in(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def temporary_folders_in(folder):
    return list(folder.rglob(".download-*"))


def assert_same(loaded, expected):
    for (X, y), (X_expected, y_expected) in zip(loaded, expected, strict=True):
        np.testing.assert_array_equal(X, X_expected)
        np.testing.assert_array_equal(y, y_expected)


def assert_types(loaded, nb_classes):
    assert len(loaded) == 2
    for X, y in loaded:
        assert X.dtype == np.float32 and X.flags.c_contiguous and np.isfinite(X).all()
        assert y.dtype == np.int64 and y.shape == (len(X),)
        assert set(y) == set(range(nb_classes))


# ---- what the loaders return ----

@needs_samples
def test_pendigits_sample_has_the_official_split_and_values():
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_pendigits_data(SAMPLE_FOLDER)
    assert X_train.shape == (7494, 16) and X_test.shape == (3498, 16)
    assert_types(loaded, 10)
    for X, y, file in ((X_train, y_train, "pendigits.tra"), (X_test, y_test, "pendigits.tes")):
        lines = (SAMPLE_FOLDER / "pendigits" / file).read_text().splitlines()
        for i in (0, 1234, -1):
            assert [*X[i].tolist(), int(y[i])] == [float(v) for v in lines[i].split(",")]


@needs_samples
def test_hand_posture_sample_keeps_every_record_but_the_dummy():
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_hand_posture_data(SAMPLE_FOLDER)
    assert X_train.shape == (2204, 36) and X_test.shape == (552, 36)
    assert_types(loaded, 3)
    assert np.bincount(np.concatenate([y_train, y_test])).tolist() == [1095, 777, 884]
    first = (SAMPLE_FOLDER / "HandPostures" / "Postures.csv").read_text().splitlines()[2].split(",")
    values = np.array([0 if v == "?" else float(v) for v in first[2:]], dtype=np.float32)
    assert (np.concatenate([X_train, X_test]) == values).all(axis=1).any()


@needs_samples
def test_mnist_sample_is_channels_first_and_unscaled():
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_mnist_data(SAMPLE_FOLDER)
    assert X_train.shape == (5000, 1, 28, 28) and X_test.shape == (2000, 1, 28, 28)
    assert_types(loaded, 10)
    assert X_train.min() == 0 and X_train.max() == 255
    assert np.bincount(y_train).tolist() == [500] * 10
    raw = (SAMPLE_FOLDER / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    np.testing.assert_array_equal(X_test[7].ravel(), np.frombuffer(raw, np.uint8)[16 + 7 * 784:][:784])


@needs_samples
def test_cifar10_sample_is_channels_first_and_unscaled(monkeypatch):
    # The sample's batches are not the official ones and have other checksums.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_cifar10_data(SAMPLE_FOLDER)
    assert X_train.shape == (1000, 3, 32, 32) and X_test.shape == (400, 3, 32, 32)
    assert_types(loaded, 10)
    assert np.bincount(y_train).tolist() == [100] * 10 and np.bincount(y_test).tolist() == [40] * 10
    with open(SAMPLE_FOLDER / "cifar-10-batches-py/test_batch", "rb") as file:
        batch = pickle.load(file, encoding="latin1")
    np.testing.assert_array_equal(X_test.reshape(400, 3072), batch["data"])
    np.testing.assert_array_equal(y_test, batch["labels"])


def test_digits_need_no_folder_and_are_split_within_each_class(tmp_path):
    (X_train, y_train), (X_test, y_test) = loaded = datasets.load_digits_data(tmp_path / "nowhere")
    assert X_train.shape == (1437, 64) and X_test.shape == (360, 64)
    assert_types(loaded, 10)
    assert X_train.min() == 0 and X_train.max() == 16
    counts = np.bincount(y_train) + np.bincount(y_test)
    assert np.abs(np.bincount(y_test) - 0.2 * counts).max() <= 1
    assert list(tmp_path.iterdir()) == []


def test_digits_split_depends_on_the_seed_alone():
    assert_same(datasets.load_digits_data(), datasets.load_digits_data("elsewhere", random_state=0))
    (X_train, _), _ = datasets.load_digits_data()
    (X_other, _), _ = datasets.load_digits_data(random_state=1)
    assert not np.array_equal(X_train, X_other)


@EVERY_DATASET
def test_files_that_are_there_are_loaded_without_a_download(name, contents, server, tmp_path):
    write_files(tmp_path, contents)
    for folder in (tmp_path, str(tmp_path) + "/"):
        assert_types(LOADERS[name](folder), 5 if name == "hand_posture" else 10)
    assert server.urls == []
    assert files_in(tmp_path) == contents


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_images_keep_the_order_of_the_pixels_in_the_files(name, contents, tmp_path):
    write_files(tmp_path, contents)
    _, (X_test, y_test) = LOADERS[name](tmp_path)
    if name == "mnist":
        pixels = np.frombuffer(contents[FILES[name][2]], np.uint8)[16:]
        assert X_test.shape == (10, 1, 28, 28)
    else:
        pixels = pickle.loads(contents["cifar-10-batches-py/test_batch"])["data"]
        assert X_test.shape == (10, 3, 32, 32)
    np.testing.assert_array_equal(X_test.ravel(), pixels.ravel())
    assert y_test.tolist() == list(range(10))


def test_the_folder_is_datasets_in_the_working_directory_by_default(tmp_path, monkeypatch):
    write_files(tmp_path / "datasets", contents_of("pendigits"))
    monkeypatch.chdir(tmp_path)
    (X_train, _), _ = datasets.load_pendigits_data()
    assert X_train.shape == (7494, 16)


# ---- hand postures ----

def load_posture_text(folder, text, **arguments):
    write_files(folder, {FILES["hand_posture"][0]: text})
    return datasets.load_hand_posture_data(folder, **arguments)


def test_a_posture_file_without_the_dummy_record_loses_nothing(tmp_path):
    records = posture_records(50)
    with_dummy = load_posture_text(tmp_path / "with", posture_text(records))
    without_dummy = load_posture_text(tmp_path / "without", posture_text(records, dummy=False))
    assert sum(len(X) for X, _ in without_dummy) == 50
    assert_same(with_dummy, without_dummy)


def test_only_the_first_all_zero_posture_record_is_skipped(tmp_path):
    records = posture_records(10)
    records.insert(4, ",".join(["0"] * 38))
    with pytest.raises(ValueError, match="record 5 is of class 0, expected 1 to 5"):
        load_posture_text(tmp_path, posture_text(records))


def test_column_names_may_be_quoted(tmp_path):
    text = posture_text(posture_records())
    quoted_header = ",".join(f'"{column}"' for column in POSTURE_HEADER.split(","))
    quoted = text.replace(POSTURE_HEADER.encode(), quoted_header.encode())
    assert_same(load_posture_text(tmp_path / "quoted", quoted), load_posture_text(tmp_path / "plain", text))


def test_crlf_and_lf_posture_files_give_the_same_arrays(tmp_path):
    records = posture_records()
    crlf = load_posture_text(tmp_path / "crlf", posture_text(records, line_end="\r\n"))
    assert_same(crlf, load_posture_text(tmp_path / "lf", posture_text(records, line_end="\n")))


def test_posture_inputs_have_zeros_for_question_marks_and_neither_class_nor_user(tmp_path):
    records = [posture_record(5, 9, [1.5, -2.25, 3]), posture_record(2, 9, range(1, 37))]
    (X_train, y_train), (X_test, y_test) = load_posture_text(tmp_path, posture_text(records))
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    order = np.argsort(y)
    assert y[order].tolist() == [1, 4]
    assert X[order].tolist() == [list(range(1, 37)), [1.5, -2.25, 3] + [0] * 33]


def test_posture_split_takes_a_fifth_and_depends_on_the_seed_alone(tmp_path):
    text = posture_text(posture_records())
    first = load_posture_text(tmp_path, text)
    assert [len(X) for X, _ in first] == [40, 10]
    assert_same(first, load_posture_text(tmp_path, text, random_state=0))
    other = load_posture_text(tmp_path, text, random_state=1)
    assert not np.array_equal(first[0][0], other[0][0])


def test_the_full_size_posture_file_loads_within_5_seconds_and_500_megabytes_and_without_torch(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    rng = np.random.default_rng(0)
    records = [posture_record(i % 5 + 1, i % 12, rng.uniform(-200, 200, 36)) for i in range(500)]
    write_files(tmp_path, {FILES["hand_posture"][0]: posture_text((records * 157)[:78095])})
    script = """
import sys, time
import datasets

def peak_megabytes():
    return [int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]

before, start = peak_megabytes(), time.process_time()
(X_train, _), (X_test, _) = datasets.load_hand_posture_data(sys.argv[1])
seconds, megabytes = time.process_time() - start, peak_megabytes() - before
print(len(X_train), len(X_test), "torch" in sys.modules, seconds, megabytes)
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], check=True, stdout=subprocess.PIPE,
                         text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    *facts, seconds, megabytes = run.stdout.split()
    assert facts == ["62476", "15619", "False"]
    assert float(seconds) < 5
    assert 10 < float(megabytes) < 500  # the arrays alone are more than 10


# ---- damaged files ----

DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:len(content) // 2],
    "html": lambda content: HTML,
    "compressed": lambda content: gzip.compress(content),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
@EVERY_FILE
def test_a_damaged_file_is_named_and_kept(name, file, damage, contents, server, tmp_path):
    write_files(tmp_path, {**contents, file: DAMAGES[damage](contents[file])})
    before = files_in(tmp_path)
    with pytest.raises(ValueError) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / file) + ": ")
    assert "Delete the file" in message and server.urls == []
    assert not any(str(tmp_path / other) in message for other in FILES[name] if other != file)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("name", ["pendigits"])
@pytest.mark.parametrize("file", FILES["pendigits"])
def test_pendigits_cut_between_two_rows_is_rejected(name, file, contents, tmp_path):
    rows = contents[file].splitlines(keepends=True)
    write_files(tmp_path, {**contents, file: b"".join(rows[:-1])})
    with pytest.raises(ValueError, match=f"{len(rows) - 1} rows, expected {len(rows)}"):
        datasets.load_pendigits_data(tmp_path)


@pytest.mark.parametrize("row, problem", [
    ("101" + ",1" * 16, "record 3 holds 101, expected 0 to 100"),
    ("-1" + ",1" * 16, "record 3 holds -1, expected 0 to 100"),
    ("nan" + ",1" * 16, "record 3 holds nan, expected 0 to 100"),
    ("1," * 16 + "10", "record 3 is of class 10, expected 0 to 9"),
    ("1," * 16 + "1.5", "record 3 is of class 1.5, expected 0 to 9"),
    ("1," * 15 + "1", "line 3 of 7494 has 16 columns, expected 17"),
    ("x" + ",1" * 16, "could not convert string 'x'"),
])
def test_a_pendigits_row_out_of_range_is_named(row, problem, tmp_path):
    contents = contents_of("pendigits")
    lines = contents[FILES["pendigits"][0]].decode().splitlines()
    lines[2] = row
    contents[FILES["pendigits"][0]] = "\n".join(lines).encode()
    write_files(tmp_path, contents)
    with pytest.raises(ValueError, match=problem):
        datasets.load_pendigits_data(tmp_path)


@pytest.mark.parametrize("record, problem", [
    (posture_record(6, 0, [1, 2, 3]), "record 4 is of class 6, expected 1 to 5"),
    (posture_record("?", 0, [1, 2, 3]), "record 4 is of class nan, expected 1 to 5"),
    (posture_record(1, 0, [1, float("inf"), 3]), "record 4 holds inf"),
    (posture_record(1, 0, [1, 2e6, 3]), "record 4 holds 2e"),
    (posture_record(1, 0, [1, 2, 3]) + ",4", "line 6 of 7 has 39 columns, expected 38"),
    ("", "line 6 of 7 has 1 columns, expected 38"),
    (posture_record(1, 0, [1, 2, 3]).replace("?", "4#5"), "could not convert string '4#5'"),
    (posture_record(1, 0, [1, 2, 3]).replace("?", "3?4"), "could not convert string '3nan4'"),
])
def test_a_posture_record_out_of_range_is_named(record, problem, tmp_path):
    good = posture_records(4)
    with pytest.raises(ValueError, match=problem):
        load_posture_text(tmp_path, posture_text([*good[:3], record, good[3]]))


@pytest.mark.parametrize("text, problem", [
    (POSTURE_HEADER.encode() + b"\n", "no records"),
    (posture_text([]), "0 records, too few to split"),
    (posture_text(posture_records(1)), "1 records, too few to split"),
    (posture_text(posture_records(5)).split(b"\n", 1)[1], "expected the header Class,User"),
])
def test_a_posture_file_without_header_or_records_is_rejected(text, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        load_posture_text(tmp_path, text)


@pytest.mark.parametrize("file, array, problem", [
    (FILES["mnist"][1], np.zeros(19), "19 labels for 20 images"),
    (FILES["mnist"][3], np.arange(10) + 1, "record 10 is of class 10, expected 0 to 9"),
    (FILES["mnist"][0], np.zeros((20, 28, 29)), "IDX file of 28x28 images"),
    (FILES["mnist"][0], np.zeros((0, 28, 28)), "for 0 entries"),
    (FILES["mnist"][1], np.zeros((20, 28, 28)), "IDX file of labels"),
])
def test_mnist_files_that_do_not_fit_together_are_named(file, array, problem, tmp_path):
    write_files(tmp_path, {**contents_of("mnist"), file: idx_bytes(array)})
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
    assert temporary_folders_in(folder) == []
    urls = list(server.urls)
    assert {Path(url).name for url in urls} == set(server.served)
    assert_same(LOADERS[name](folder), downloaded)
    assert server.urls == urls


def test_uci_files_come_from_the_official_addresses(tmp_path, monkeypatch):
    urls = []
    for name in ("pendigits", "hand_posture"):
        server = Server(served_by_url(name, contents_of(name)))
        monkeypatch.setattr(torchvision.datasets.utils, "download_url", server)
        LOADERS[name](tmp_path)
        urls += server.urls
    assert urls == [
        "https://archive.ics.uci.edu/ml/machine-learning-databases/pendigits/pendigits.tra",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/pendigits/pendigits.tes",
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00405/Postures.zip",
    ]


@EVERY_DATASET
def test_without_network_the_error_says_what_to_do(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert f"({name})" in message and "there is no network in the tests" in message
    assert all(str(tmp_path / file) + "\n" in message for file in FILES[name])
    assert "\n  https://" in message
    assert all(f"/{file}\n" in message for file in served_by_url(name, contents_of(name)))
    assert "load_digits_data works offline" in message
    assert error.value.__cause__ is not None
    assert files_in(tmp_path) == {} and temporary_folders_in(tmp_path) == []


INTERRUPTIONS = {
    "half the file, then an error": (DAMAGES["truncated"], ConnectionResetError("reset")),
    "half the file": (DAMAGES["truncated"], None),
    "nothing": (DAMAGES["empty"], None),
    "an error page": (DAMAGES["html"], None),
    "all of it, then Ctrl-C": (lambda content: content, KeyboardInterrupt()),
}


@pytest.mark.parametrize("interruption", list(INTERRUPTIONS))
@EVERY_DATASET
def test_an_interrupted_download_leaves_nothing_and_the_next_run_succeeds(
        name, interruption, contents, server, tmp_path):
    server.change, server.error = INTERRUPTIONS[interruption]
    with pytest.raises((FileNotFoundError, KeyboardInterrupt)) as error:
        LOADERS[name](tmp_path)
    assert isinstance(error.value, type(server.error) if "Ctrl" in interruption else FileNotFoundError)
    assert ".download-" not in str(error.value)
    assert files_in(tmp_path) == {} and temporary_folders_in(tmp_path) == []

    server.change, server.error = (lambda content: content), None
    LOADERS[name](tmp_path)
    assert files_in(tmp_path) == contents


def test_a_download_with_the_wrong_content_is_reported_as_such(tmp_path, monkeypatch):
    served = {Path(file).name: pendigits_text(100, 0) for file in FILES["pendigits"]}
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", Server(served))
    with pytest.raises(FileNotFoundError, match="pendigits.tra: 100 rows, expected 7494"):
        datasets.load_pendigits_data(tmp_path)


@EVERY_FILE
def test_a_download_of_missing_files_replaces_none_that_is_there(name, file, contents, server, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True)
    mine = {other: b"the user's" for other in FILES[name] if other != file}
    write_files(tmp_path, mine)
    if mine:  # the bad files are reported, and not healed behind the user's back
        with pytest.raises(ValueError):
            LOADERS[name](tmp_path)
    else:
        LOADERS[name](tmp_path)
    assert files_in(tmp_path) == {**mine, file: contents[file]}


@EVERY_DATASET
def test_two_processes_may_download_at_the_same_time(name, contents, server, tmp_path):
    server.before = lambda: write_files(tmp_path, contents)  # the other one has just finished
    assert_types(LOADERS[name](tmp_path), 5 if name == "hand_posture" else 10)
    assert server.urls != []
    assert files_in(tmp_path) == contents


@EVERY_DATASET
def test_what_a_killed_process_left_behind_is_harmless(name, contents, server, tmp_path):
    leftover = {f".download-killed/{file}": content[:10] for file, content in contents.items()}
    write_files(tmp_path, leftover)
    LOADERS[name](tmp_path)
    assert files_in(tmp_path) == {**contents, **leftover}


# ---- folders that cannot be written to ----

def make_file_system_read_only(monkeypatch):
    # Permission bits would not do: they do not bind the administrator, who runs tests in containers.
    def fail(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))
    for function in ("mkdir", "replace", "rename", "remove", "unlink"):
        monkeypatch.setattr(os, function, fail)


@EVERY_DATASET
def test_a_read_only_folder_with_all_files_just_works(name, contents, tmp_path, monkeypatch):
    write_files(tmp_path, contents)
    make_file_system_read_only(monkeypatch)
    assert_types(LOADERS[name](tmp_path), 5 if name == "hand_posture" else 10)


@EVERY_FILE
def test_a_read_only_folder_without_a_file_is_named_before_any_download(
        name, file, contents, server, tmp_path, monkeypatch):
    write_files(tmp_path, {other: content for other, content in contents.items() if other != file})
    make_file_system_read_only(monkeypatch)
    with pytest.raises(PermissionError) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert f"({name})" in message and f"{tmp_path}, and this folder cannot be written to" in message
    assert "Read-only file system" in message and str(tmp_path / file) in message
    assert server.urls == []


@EVERY_DATASET
def test_a_file_in_place_of_the_folder_is_named_before_any_download(name, contents, server, tmp_path):
    folder = tmp_path / "datasets"
    folder.write_text("not a folder")
    with pytest.raises(PermissionError, match="cannot be written to") as error:
        LOADERS[name](folder)
    assert str(folder) in str(error.value)
    assert server.urls == [] and folder.read_text() == "not a folder"


@EVERY_DATASET
def test_a_file_in_place_of_the_folder_of_one_dataset_is_kept(name, contents, server, tmp_path):
    blocked = tmp_path / Path(FILES[name][0]).parts[0]
    blocked.write_text("not a folder")
    with pytest.raises(PermissionError, match="cannot be written to"):
        LOADERS[name](tmp_path)
    assert files_in(tmp_path) == {blocked.name: b"not a folder"} and temporary_folders_in(tmp_path) == []


# ---- names ----

def test_every_loading_function_has_its_name():
    names = {name: datasets.get_dataset_name_for_loading_function(load) for name, load in LOADERS.items()}
    assert names == {name: name for name in LOADERS}
    assert datasets.get_dataset_name_for_loading_function(datasets.load_digits_data) == "digits"


def test_only_mnist_and_cifar10_are_image_datasets():
    assert {name: datasets.is_image_dataset(load) for name, load in LOADERS.items()} == {
        "pendigits": False, "hand_posture": False, "mnist": True, "cifar10": True}
    assert datasets.is_image_dataset(datasets.load_digits_data) is False


def load_iris_data(datasets_folder="datasets/"):
    raise NotImplementedError


@pytest.mark.parametrize("unknown, shown", [
    (load_iris_data, "load_iris_data"), ("mnist", "'mnist'"), (None, "None"), ([], r"\[\]")])
@pytest.mark.parametrize("function",
                         [datasets.get_dataset_name_for_loading_function, datasets.is_image_dataset])
def test_an_unknown_loading_function_is_named_beside_the_known_ones(function, unknown, shown):
    with pytest.raises(ValueError, match=f"unknown data set loading function {shown}, known are ") as error:
        function(unknown)
    assert all(load.__name__ in str(error.value) for load in [*LOADERS.values(), datasets.load_digits_data])


def test_further_arguments_are_keyword_only():
    for load in (datasets.load_hand_posture_data, datasets.load_digits_data):
        with pytest.raises(TypeError):
            load("datasets/", 0)
