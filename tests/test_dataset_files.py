"""Facts about datasets.py: which files it takes, and what it says of others."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from dataset_files import (DAMAGES, EVERY_DATASET, FILES, LOADERS, POSTURE_HEADER, REPOSITORY, assert_same,
                           contents, contents_of, files_in, idx_bytes, no_network, posture_record,  # noqa: F401
                           posture_records, posture_text, server, write_files)  # fixtures among them


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
    lambda text: text.replace(b"\n", b"\r\n"), lambda text: text.replace(b"\n", b"\r"),
    lambda text: text.replace(b"\n" + b"0," * 37 + b"0\n", b"\n"),
    lambda text: b"\xef\xbb\xbf" + text, lambda text: text.decode().encode("utf-16"),  # with byte order marks
    lambda text: b"\n".join(b",".join(b'"%s"' % field for field in line.split(b",")) for line in text.splitlines()),
    lambda text: text.replace(b",", b", "),
    lambda text: b'"' + text.replace(b",", b'" , "').replace(b"\n", b'"\n"')[:-1],
    lambda text: text.replace(b"?", b""), lambda text: text.replace(b"?", b"NA"),
    lambda text: text.replace(b"?", b"NaN"),
    lambda text: text.replace(b"\n", b"\n\n") + b"," * 37 + b"\n  \n", lambda text: text.rstrip(),
    lambda text: text.replace(b"Class,User", b"class,user")])
def test_files_as_programs_write_them_change_nothing(change, tmp_path):
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
    ("101" + ",1" * 16, "line 3 holds 101, expected 0 to 100"),
    ("-1" + ",1" * 16, "line 3 holds -1, expected 0 to 100"),
    ("?" + ",1" * 16, "line 3 holds nan, expected 0 to 100"),
    ("1," * 16 + "10", "line 3 is of class 10, expected 0 to 9"),
    ("1," * 16 + "1.5", "line 3 is of class 1.5, expected 0 to 9"),
    ("1," * 15 + "1", "line 3 has 16 columns, expected 17: '1,1,"),
    ("1," * 16 + "1,", "line 3 has 18 columns, expected 17: '1,1,"),
    ("x" + ",1" * 16, "line 3: could not convert string to float: 'x', expected numbers, or ? for missing ones"),
    ('"1,5"' + ",1" * 16, "line 3: could not convert string to float: '1,5', expected numbers"),
    ("1;" * 16 + "1", "line 3 has 1 columns, expected 17: '1;1;"),
    (None, "7493 rows, expected 7494")])
def test_a_wrong_pendigits_row_is_named(row, problem, tmp_path):
    contents = contents_of("pendigits")
    lines = contents[FILES["pendigits"][0]].decode().splitlines()
    lines[2:3] = [] if row is None else [row]
    write_files(tmp_path, {**contents, FILES["pendigits"][0]: "\n".join(lines).encode()})
    with pytest.raises(ValueError, match=re.escape(problem)):
        datasets.load_pendigits_data(tmp_path)


@pytest.mark.parametrize("text, problem", [
    (posture_text(posture_records(3) + ["", record], dummy), problem.format(line=7 if dummy else 6))
    for dummy in (",".join(["0"] * 38), "") for record, problem in [
        (posture_record(6, 1, 2, 3), "line {line} is of class 6, expected 1 to 5"),
        (posture_record("?", 1, 2, 3), "line {line} is of class nan, expected 1 to 5"),
        (",".join(["0"] * 38), "line {line} is of class 0, expected 1 to 5"),  # only the first may be a dummy
        (posture_record(1, 1, -2e6, 3), "line {line} holds -2e"),
        (posture_record(1, 1, 2e39, 3), "line {line} holds inf"),
        (posture_record(1, 1, 2, 3) + ",4", "line {line} has 39 columns, expected 38"),
        (posture_record(1, 1, "4#5"), "line {line}: could not convert string to float: '4#5'"),
        (posture_record(1, 1, "3?4"), "line {line}: could not convert string to float: '3?4'"),
        ('"' + "1" * 200_000, "line {line}: field larger than")]] + [
    (POSTURE_HEADER.encode() + b"\n", "no records"), (b"", "line 1 is '', expected the header Class,User,X0,Y0,Z0,..."),
    (posture_text(posture_records(1)), "1 records, too few to split"),
    (posture_text(posture_records(5)).split(b"\n", 1)[1], "line 1 is '0,0,0"),
    (posture_text(posture_records(5)).replace(b"X0,Y0", b"Y0,X0"), "line 1 is 'Class,User,Y0,X0")])
def test_a_wrong_posture_record_is_named(text, problem, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{FILES['hand_posture'][0]}: {problem}")):
        load_posture_text(tmp_path, text)


@pytest.mark.parametrize("number, shape, values, problem", [
    (1, [19], [0] * 19, "19 labels for 20 images"),
    (3, [10], range(1, 11), "label 10 is of class 10, expected 0 to 9"),
    (0, [20, 28, 29], [0] * 20 * 28 * 29, "IDX file of 28x28 images"),
    (0, [0, 28, 28], [], "for 0 entries"),
    (1, [20, 28, 28], [0] * 20 * 784, "IDX file of labels")])
def test_mnist_files_that_do_not_fit_together_are_named(number, shape, values, problem, tmp_path):
    file = FILES["mnist"][number]
    write_files(tmp_path, {**contents_of("mnist"), file: idx_bytes(shape, values)})
    with pytest.raises(ValueError, match=problem) as error:
        datasets.load_mnist_data(tmp_path)
    assert str(error.value).startswith(str(tmp_path / file) + ": ")


def test_old_files_of_torchvision_beside_the_mnist_files_are_not_read(tmp_path):
    write_files(tmp_path, contents_of("mnist"))
    expected = datasets.load_mnist_data(tmp_path)
    for content in (b"", b"old"):
        write_files(tmp_path, {f"MNIST/processed/{part}.pt": content for part in ("training", "test")})
        assert_same(datasets.load_mnist_data(tmp_path), expected)
    for part in ("training", "test"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
                   tmp_path / f"MNIST/processed/{part}.pt")
    assert_same(datasets.load_mnist_data(tmp_path), expected)


def test_each_mnist_file_is_read_once_so_that_what_was_checked_is_what_is_used(tmp_path, monkeypatch):
    write_files(tmp_path, contents_of("mnist"))
    opened = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or open(path, "rb").read())
    datasets.load_mnist_data(tmp_path)
    assert opened == [tmp_path / file for file in FILES["mnist"]]


@pytest.mark.parametrize("place", [
    lambda path, content: {path / path.name: content},  # as unzip programs do
    lambda path, content: {path.with_name(path.name.replace("-idx", ".idx")): content},  # as in a popular copy
    lambda path, content: {path.with_name(path.name + ".gz"): gzip.compress(content)},
    lambda path, content: {path: gzip.compress(content)}])
def test_mnist_files_are_found_as_programs_unpack_them_and_packed(place, tmp_path):
    contents = contents_of("mnist")
    write_files(tmp_path, contents)
    expected = datasets.load_mnist_data(tmp_path)
    for file in (FILES["mnist"][0], FILES["mnist"][3]):  # some may lie as they should
        (tmp_path / file).unlink()
        write_files(tmp_path, place(Path(file), contents[file]))
    before = files_in(tmp_path)
    assert_same(datasets.load_mnist_data(tmp_path), expected)
    assert files_in(tmp_path) == before


def test_a_damaged_packed_mnist_file_is_named(tmp_path):
    packed = FILES["mnist"][0] + ".gz"
    contents = contents_of("mnist")
    content = gzip.compress(contents.pop(FILES["mnist"][0]))
    for damaged in (content[:-20], content[:10] + b"\xff" + content[11:], content[:-8] + bytes(8)):
        write_files(tmp_path, {**contents, packed: damaged})
        with pytest.raises(ValueError, match="damaged gzip file") as error:
            datasets.load_mnist_data(tmp_path)
        assert str(error.value).startswith(str(tmp_path / packed) + ": ")


@EVERY_DATASET
def test_a_folder_in_place_of_a_file_is_named(name, contents, tmp_path):
    file = FILES[name][0]
    del contents[file]
    write_files(tmp_path, {**contents, file + "/readme.txt": b"not the file"})
    with pytest.raises(ValueError, match="is a folder, but has to be a file of ") as error:
        LOADERS[name](tmp_path)
    assert str(error.value).startswith(str(tmp_path / file) + " is")
