"""What counts as another code and as other data."""

import importlib
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from digests import digest_arrays, digest_code, list_imported_files

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = '''"""A script."""
import os
from helpers import scale, unused

# ======
# Hyperparameters
seed = 0
# ======
FACTOR: float = 2
FAMILIES = {"net": unused}


def run(x):
    """One run."""
    from package import SIZE
    from package.layers import Layer
    # in the middle
    return Layer(x * FACTOR, scale(x), seed, SIZE)


def show():
    print(FAMILIES)


if __name__ == "__main__":
    show()
'''
FILES = {
    "script.py": SCRIPT,
    "helpers.py": '"""Helpers."""\nprint("set")\ndef scale(x):\n    return 2 * x\ndef unused():\n    return 1\n',
    "package/__init__.py": "SIZE = 3\n",
    "package/layers.py": "from . import base\n\n\nclass Layer(base.Base):\n    pass\n\n\nclass Other:\n    pass\n",
    "package/base.py": "class Base:\n    size = 3\n"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes the files, one of them changed, and returns the digest of the script's run()."""
    def write_files(file=None, old="", new=""):
        for name, text in FILES.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            assert name != file or old in text
            (tmp_path / name).write_text(text.replace(old, new) if name == file else text, encoding="utf-8")
        return digest_code(sys.modules["script"].run, ignored={"FAMILIES"})

    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("script", "helpers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("script")
    yield write_files
    for name in ("script", "helpers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file, old, new", [
    ("script.py", "    # in the middle\n", "\n"), ("script.py", '    """One run."""\n', ""),
    ("script.py", "Layer(x * FACTOR, scale(x), seed", "Layer(\n        x*FACTOR,\n        scale(x), seed"),
    ("script.py", "seed = 0", "seed = 1"), ("script.py", "import os", "import os, sys"),
    ("script.py", "scale, unused", "scale"), ("script.py", "print(FAMILIES)", "print()"),
    ("script.py", '{"net": unused}', '{"net": unused, "more": os}'), ("script.py", "    show()\n", "    run(1)\n"),
    ("helpers.py", "return 1", "return 2"), ("helpers.py", '"""Helpers."""', '"""Some helpers."""'),
    ("package/layers.py", "class Other:\n    pass", "class Another:\n    pass")])
def test_what_a_run_cannot_reach_does_not_count(file, old, new, write):
    assert write(file, old, new) == write()


@pytest.mark.parametrize("file, old, new", [
    ("script.py", "FACTOR: float = 2", "FACTOR: float = 3"), ("script.py", "x * FACTOR", "x + FACTOR"),
    ("script.py", "run(x)", "run(x=None)"), ("script.py", "seed,", "None,"),
    ("script.py", "import scale, unused", "import unused as scale, unused"),
    ("helpers.py", "2 * x", "2.0 * x"), ("helpers.py", 'print("set")', 'print("off")'),
    ("helpers.py", "def scale", "@print\ndef scale"), ("helpers.py", "def scale", "def scale(): pass\n\n\ndef scale"),
    ("helpers.py", "return 2 * x", 'return """2 * x"""'),
    ("package/layers.py", "pass\n\n\nclass Other", "size = 4\n\n\nclass Other"), ("package/base.py", "3", "4"),
    ("package/__init__.py", "3", "4")])
def test_what_a_run_can_reach_counts_in_all_files(file, old, new, write):
    assert write(file, old, new) != write()


def test_code_that_is_in_no_script_counts_as_changed_each_time(write, tmp_path):
    namespaces = [{"__name__": "a_notebook"}, {"__name__": "a_notebook"}]
    for file, namespace in zip((tmp_path / "script.py", "<cell 1>"), namespaces):
        exec(compile(SCRIPT, file, "exec"), namespace)
    assert digest_code(namespaces[0]["run"], ignored={"FAMILIES"}) == write()
    for definition in (len, namespaces[1]["run"], partial(print)):
        assert digest_code(definition) != digest_code(definition)
    assert digest_code(digest_code) == digest_code(digest_code, None)


def test_all_of_a_script_is_its_code_without_comments_and_hyperparameters(tmp_path):
    def digest(text):
        (tmp_path / "script.py").write_bytes(text if isinstance(text, bytes) else text.encode())
        return digest_code(tmp_path / "script.py")

    assert digest(SCRIPT) == digest(SCRIPT.replace("seed = 0", "seed = 1 # !")) != digest(SCRIPT + "show()")
    assert digest(SCRIPT) == digest(SCRIPT.encode("utf-8-sig"))
    assert digest(SCRIPT) == digest(b"# coding: latin-1\n#\xe9\n" + SCRIPT.encode())
    assert digest(SCRIPT) != digest(SCRIPT.replace("# Hyperparameters", "# what others rule off"))


def test_files_come_after_those_that_they_need_when_they_are_imported(write, tmp_path):
    def list_names():
        return [file.relative_to(tmp_path).as_posix() for file in list_imported_files(tmp_path / "script.py")]

    assert list_names() == ["helpers.py", "script.py", "package/__init__.py", "package/base.py", "package/layers.py"]
    write("helpers.py", "    return 1", "    import package.layers")  # which needs the helpers
    (tmp_path / "package/base.py").write_text("import helpers\n" + FILES["package/base.py"])
    assert list_names() == ["helpers.py", "package/base.py", "package/layers.py", "script.py", "package/__init__.py"]
    write("helpers.py", '"""Helpers."""', "import script")  # which import each other
    assert sorted(list_names()[:2]) == ["helpers.py", "script.py"]


PROJECT_EDITS = [  # file, old, new, families whose code changes
    ("model_training.py", "VALIDATION_SHARE = 0.15", "VALIDATION_SHARE = 0.15  # of the samples", []),
    ("model_training.py", "VALIDATION_SHARE = 0.15", "VALIDATION_SHARE = 0.2", ["standard_nn", "ss_2_dim", "rank_1"]),
    ("rank1models.py", "u @ self.v1 @ self.v2", "u @ (self.v1 @ self.v2)", ["rank_1"]),
    ("realisation.py", "VARIANCE_EXPONENT = 11", "VARIANCE_EXPONENT = 12", ["ss_2_dim"]),
    ("standardmodels.py", "class StandardSLFFNN", "class Mine(StandardFFNN):\n    pass\n\n\nclass StandardSLFFNN", []),
    ("standardmodels.py", "h = torch.relu(", "h = torch.tanh(", ["standard_nn", "ss_2_dim", "rank_1"]),
    ("datasets.py", "import numpy as np", "import numpy as np\nimport csv", []),
    ("benchmark.py", "MODEL_FAMILIES = {", 'MODEL_FAMILIES = {\n    "mine": (StandardTHLFFNN, None),', []),
    ("benchmark.py", "dataset_loading_functions = [load_digits_data]", "dataset_loading_functions = [print]", []),
    ("benchmark.py", "import numpy as np", "import numpy as np\nfrom my_data import load_my_data", []),
    ("benchmark.py", "int(run.share", "1 + int(run.share", ["standard_nn", "ss_2_dim", "rank_1"])]


def test_an_edit_changes_the_code_of_those_families_whose_runs_it_can_change(tmp_path):
    for file in PROJECT.glob("*.py"):
        shutil.copy(file, tmp_path)
    script = f"""
import sys
from pathlib import Path
import benchmark
def get_digests():
    return {{name: benchmark.digest_code(benchmark.train_run, *benchmark.find_family(name)[1],
                                         ignored={{"MODEL_FAMILIES"}})
             for name in ("standard_nn", "ss_2_dim", "rank_1")}}
before = get_digests()
for file, old, new, changed in {PROJECT_EDITS!r}:
    path = Path(file)
    text = path.read_text(encoding="utf-8")
    assert old in text, (file, old)
    path.write_text(text.replace(old, new), encoding="utf-8")
    after = get_digests()
    path.write_text(text, encoding="utf-8")
    assert [name for name in before if before[name] != after[name]] == changed, (file, old)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_arrays_differ_in_values_shape_and_type():
    X = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest_arrays(X, X[0]) == digest_arrays(X.copy(), X[0].copy())
    others = [X + [0, 0, 1], X.reshape(3, 2), X.astype(np.float64), X.view(np.int32), X[:1], X[:0], -X]
    assert len({digest_arrays(other) for other in [X, *others]}) == 8
    assert digest_arrays(X, X[0]) != digest_arrays(X[0], X)
