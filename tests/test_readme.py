"""What README.md and docs/running.md show runs: the layer in a folder with the files named, own data and nets."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def get_section(file, title):
    return (PROJECT / file).read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def get_code(section):
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_the_layer_runs_in_a_folder_with_exactly_the_files_that_the_readme_names(tmp_path):
    section = get_section("README.md", "The layer in your own net")
    files = re.findall(r"`(\w+\.py)`", re.search(r"Copy .* into your project", section, re.DOTALL)[0])
    for file in files:
        shutil.copy(PROJECT / file, tmp_path)
    code = "\n".join(get_code(section)) + """
import sys
from pathlib import Path
assert y.shape == (32, 10) and layer.to_matrix().shape == (128, 128)
print(*sorted({Path(module.__file__).name for module in sys.modules.values()
               if str(Path.cwd()) in str(getattr(module, "__file__", ""))}))
"""
    (tmp_path / "example.py").write_text("import os, sys\nsys.path.insert(0, os.getcwd())\n" + code, encoding="utf-8")
    output = subprocess.run([sys.executable, "-I", "example.py"], cwd=tmp_path, check=True, text=True,
                            stdout=subprocess.PIPE).stdout.splitlines()
    dropped, error = (float(re.search(r"[\d.]+", line)[0]) for line in output[:2])
    assert 0.3 < dropped < error < 1  # a matrix drawn at random does not compress
    assert output[2].split() == sorted([*files, "example.py"])  # none is missing, none is superfluous


def test_nets_of_ones_own_are_trained_on_data_of_ones_own_in_processes_as_the_docs_say(tmp_path):
    for file in PROJECT.glob("*.py"):
        shutil.copy(file, tmp_path)
    script = (PROJECT / "benchmark.py").read_text(encoding="utf-8")
    for name, value in dict(model_names=["standard_nn", "circulant"], nb_iterations=1, nb_neurons_list=[4],
                            max_number_training_epochs=1, nb_jobs=2).items():
        script = re.sub(rf"^{name} = .*", f"{name} = {value}", script, flags=re.MULTILINE)
    script = script.replace("functions = [load_digits_data]", "functions = [load_digits_data, load_wine_data]")
    for title in ("Data of your own", "A family of your own"):
        section = get_section("docs/running.md", title)
        file, = re.findall(r"in a file `(\w+\.py)`", section)
        code, *entry = get_code(section)
        (tmp_path / file).write_text(code, encoding="utf-8")
        line = re.search(r"`(from .* import .*)`", section)[1]
        script = script.replace("import torch\n", f"import torch\n{line}\n", 1)
        script = script.replace("MODEL_FAMILIES = {\n", "MODEL_FAMILIES = {\n" + "".join(entry), 1)
    (tmp_path / "benchmark.py").write_text(script, encoding="utf-8")
    printed = subprocess.run([sys.executable, "benchmark.py"], cwd=tmp_path, check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    # 64 inputs, 10 classes, 4 neurons: 310 parameters beside the hidden matrix; 13 inputs, 3 classes: 71
    parameters = re.findall(r"^  (standard_nn|circulant) +(\d+) +1 ", printed, re.MULTILINE)
    assert parameters == [("standard_nn", "330"), ("circulant", "314"), ("standard_nn", "91"), ("circulant", "75")]
