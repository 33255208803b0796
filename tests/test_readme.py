"""What README.md and docs/running.md show runs: the layer in a folder with exactly the files named, own data."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def test_the_layer_runs_in_a_folder_with_exactly_the_files_that_the_readme_names(tmp_path):
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## The layer in your own net\n")[1].split("\n## ")[0]
    files = re.findall(r"`(\w+\.py)`", re.search(r"Copy .* into your project", section, re.DOTALL)[0])
    for file in files:
        shutil.copy(PROJECT / file, tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL)) + """
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


def test_nets_are_trained_on_data_of_ones_own_in_processes_as_the_docs_say(tmp_path):
    text = (PROJECT / "docs" / "running.md").read_text(encoding="utf-8")
    section = text.split("\n## Data of your own\n")[1].split("\n## ")[0]
    for file in PROJECT.glob("*.py"):
        shutil.copy(file, tmp_path)
    script = (PROJECT / "benchmark.py").read_text(encoding="utf-8")
    for name, value in dict(model_names=["standard_nn", "ss_1_dim"], nb_iterations=1, nb_neurons_list=[4],
                            max_number_training_epochs=1, nb_jobs=2).items():
        script = re.sub(rf"^{name} = .*", f"{name} = {value}", script, flags=re.MULTILINE)

    file, = re.findall(r"in a file `(\w+\.py)`", section)
    (tmp_path / file).write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], encoding="utf-8")
    line = re.search(r"`(from .* import .*)`", section)[1]
    (tmp_path / "benchmark.py").write_text(script.replace("import numpy", f"{line}\nimport numpy", 1).replace(
        "functions = [load_digits_data]", "functions = [load_digits_data, load_wine_data]"), encoding="utf-8")
    printed = subprocess.run([sys.executable, "benchmark.py"], cwd=tmp_path, check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    assert "digits: 2 runs" in printed and "wine: 2 runs" in printed
