"""benchmark_result.ipynb runs from top to bottom and is committed without outputs."""
import base64
import copy
import os
import pickle
import re
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from sweep_results import make_results, set_accuracies

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOK = nbformat.read(PROJECT / "benchmark_result.ipynb", as_version=4)


def test_notebook_is_committed_without_outputs():
    nbformat.validate(NOTEBOOK)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in NOTEBOOK.cells
               if cell.cell_type == "code")
    assert NOTEBOOK.metadata.kernelspec.name == "python3"


def test_notebook_shows_table_figures_and_answer(tmp_path, monkeypatch):
    notebook = copy.deepcopy(NOTEBOOK)
    results = make_results(models=["standard_nn", "ss_1_dim", "ss_2_dim", "rank_1"], nb_iterations=5)
    set_accuracies(results, standard_nn=[0.5] * 5, ss_1_dim=[0.4] * 5, ss_2_dim=[0.75] * 5, rank_1=[0.1] * 5)
    (tmp_path / "benchmark_result.p").write_bytes(pickle.dumps(results))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT), prepend=os.pathsep)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of the user
    # Without directories of kernels to search, "python3" is the interpreter that runs this test.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(cleanup_kc=True)  # ends the kernel, though the client has not made it

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    table, = [output.text for output in outputs if output.output_type == "stream"]
    assert table.startswith("digits, share 0.1, 50 neurons\n  model ")

    shown = [output.data for output in outputs if "data" in output]
    pictures = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    widths = [int.from_bytes(picture[16:20], "big") for picture in pictures if picture[:4] == b"\x89PNG"]
    assert len(widths) == 3 and min(widths) > 600  # each figure once, at its full size

    runs, answer = [[re.findall("<td>(.*?)</td>", row) for row in data["text/html"].split("<tr>")[1:]]
                    for data in shown if "text/html" in data]
    assert len([row for row in runs if row]) == 20
    verdicts = [(row[3], *{"better", "worse", "undecided"} & {*row}) for row in answer if row]
    assert verdicts == [("ss_1_dim", "worse"), ("ss_2_dim", "better")]
