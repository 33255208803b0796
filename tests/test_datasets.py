"""Facts about datasets.py: what it loads and downloads. No test uses the network; those on the real sample files skip
without them. What its files may look like: see test_dataset_files.py.
"""

import functools
from pathlib import Path

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits

import datasets
from dataset_files import (DAMAGES, EVERY_DATASET, FILES, LOADERS, ONE_DATASET, SAMPLE_FOLDER, assert_same,
                           assert_types, contents, contents_of, files_in, idx_bytes,  # noqa: F401
                           make_file_system_read_only, no_network, served_by_url, server, write_files)  # and fixtures


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


def load_my_own_data(datasets_folder):
    raise NotImplementedError


def test_the_name_of_any_other_function_is_in_the_middle_of_its_own_and_nothing_says_whether_it_loads_images():
    assert datasets.get_dataset_name_for_loading_function(load_my_own_data) == "my_own"
    with pytest.raises(ValueError, match="only the shape of what load_my_own_data returns tells"):
        datasets.is_image_dataset(load_my_own_data)


def test_what_is_no_function_with_such_a_name_is_shown_with_the_remedy():
    for function in (datasets.get_dataset_name_for_loading_function, datasets.is_image_dataset):
        for unknown in (load_digits, "mnist", [], lambda folder: None, functools.partial(load_my_own_data)):
            with pytest.raises(ValueError, match="got .*; write def load_NAME_data") as error:
                function(unknown)
            assert repr(unknown) in str(error.value)


def test_two_functions_of_one_name_are_named():
    def load_digits_data(datasets_folder):
        raise NotImplementedError

    two = [datasets.load_mnist_data, datasets.load_digits_data]
    assert datasets.get_loading_functions_by_name(two) == dict(zip(["mnist", "digits"], two))
    with pytest.raises(ValueError, match="two functions load_digits_data"):
        datasets.get_loading_functions_by_name([*two, load_digits_data])


def test_further_arguments_are_keyword_only():
    for load in (datasets.load_hand_posture_data, datasets.load_digits_data):
        with pytest.raises(TypeError):
            load("datasets/", 0)
