"""Small made-up files in the official formats of the data sets, and what they hold."""

import gzip
import pickle
import shutil

import numpy as np
from sklearn.model_selection import train_test_split

DUMMY_RECORD = ",".join(["0"] * 38)


def make_dataset(name):
    """{path below datasets_folder: bytes}, and the (X_train, y_train), (X_test, y_test) that is in there."""
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


def write_packed_files(folder, contents):
    """The files as the official servers send them, somewhere in a folder."""
    write_files(folder, contents)
    if (folder / "HandPostures").exists():
        shutil.make_archive(folder / "Postures", "zip", folder / "HandPostures")
    if (folder / "cifar-10-batches-py").exists():
        shutil.make_archive(folder / "cifar-10-python", "gztar", folder, "cifar-10-batches-py")
    for path in folder.glob("MNIST/raw/*"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
