"""benchmark_result.ipynb runs from top to bottom and is committed without outputs."""
import base64
import copy
import os
import pickle
import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

PROJECT = Path(__file__).resolve().parent.parent
MODEL_NAMES = ["standard_nn", *(f"ss_{d}_dim" for d in range(1, 6)), "rank_1"]


NOTEBOOK = nbformat.read(PROJECT / "benchmark_result.ipynb", as_version=4)


def make_results():
    """On digits SSS dimension 2, and nothing else, is better than the dense net in every iteration."""
    results = {"dataset_names": ["digits", "mnist"], "nb_iterations": 5, "nb_neurons_list": [50],
               "training_set_shares": [0.1], "model_names": MODEL_NAMES, "failures": []}
    gains = {"digits": [0, -0.1, 0.125, -0.1, -0.1, -0.1, -0.1], "mnist": [0, *[-0.1] * 6]}
    for dataset in results["dataset_names"]:
        results[dataset] = {0.1: {name: {50: {i: {
            "accuracy_history": [0.3, 0.5 + i / 100], "val_accuracy_history": [0.2, 0.4],
            "test_accuracy": 0.5 + i / 100 + gains[dataset][number], "nb_model_parameters": 1000 + 250 * number}
            for i in range(5)}} for number, name in enumerate(MODEL_NAMES)}}
    return results


def test_notebook_is_committed_without_outputs():
    nbformat.validate(NOTEBOOK)
    code_cells = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert len(code_cells) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells)
    assert NOTEBOOK.metadata.kernelspec.name == "python3"


def test_notebook_shows_table_figures_and_answer(tmp_path, monkeypatch):
    notebook = copy.deepcopy(NOTEBOOK)
    (tmp_path / "benchmark_result.p").write_bytes(pickle.dumps(make_results()))
    path = [str(PROJECT), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of the user
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nprint(sys.prefix)"))
    # Without directories of kernels to search, "python3" is the interpreter that runs this test.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(cleanup_kc=True)  # ends the kernel, though the client has not made it

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs
                if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [output.text for output in outputs if output.output_type == "stream"]
    assert len(texts) == 3 and texts[0].startswith("digits, share 0.1, 50 neurons\n  model ")

    pictures = [base64.b64decode(output.data["image/png"]) for output in outputs
                if "image/png" in output.get("data", {})]
    widths = [int.from_bytes(picture[16:20], "big") for picture in pictures if picture[:4] == b"\x89PNG"]
    assert len(widths) == 3 and min(widths) > 600  # each figure once, at its full size

    answers = texts[1].splitlines()
    assert answers[0] == "digits, share 0.1, 50 neurons: better than the dense net: ss_2_dim"
    assert answers[2].split() == [
        "ss_2_dim", "+0.125", "[+0.125,", "+0.125]", "better", "(p", "=", "0.000)", "over", "5", "pairs,", "1500",
        "parameters,", "1.50", "times", "the", "dense", "net's"]
    assert answers[6] == "mnist, share 0.1, 50 neurons: better than the dense net: no SSS dimension"
    assert len(answers) == 12 and "rank_1" not in texts[1]
    assert texts[2] == f"{sys.prefix}\n"
