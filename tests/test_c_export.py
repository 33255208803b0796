"""c_export.py: the C code of every net and layer computes what PyTorch does, compiles without a warning, and is refused
by name for everything else."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import c_export
from c_export import export_to_c
from emulated_core import EmulatedCore, build
from rank1models import Rank1Layer, Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from sss_reference import dense_matrix, make_layer
from standardmodels import StandardFFNN, StandardSLFFNN, StandardTHLConvNet, StandardTHLFFNN

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:SemiseparableLayer.* has")]

IMAGE = (2, 27, 34)  # 27 x 34 -> stride 2: 12 x 15 -> pool: 6 x 7 -> kernel 5: 2 x 3 -> pool: 1 x 1
sss = partial(make_layer, dtype=torch.float32)
# name in C: (function that makes a net or layer, shape of one sample)
MODULES = {
    "ffnn_1": (lambda: StandardSLFFNN(6, 4, 9), (6,)),
    "ffnn_2": (lambda: StandardTHLFFNN(6, 4, 9), (6,)),
    "ffnn_4": (lambda: StandardFFNN(30, 3, 37, 4), (30,)),
    "ffnn_float64": (lambda: StandardTHLFFNN(6, 4, 9, dtype=torch.float64), (6,)),
    "ss": (lambda: TwoHiddenLayeredSSNet(6, 4, 30), (6,)),
    "ss_3": (lambda: TwoHiddenLayeredSSNet(6, 4, 30, 3, 2, nb_hidden_layers=3), (6,)),
    "rank_1_net": (lambda: Rank1THLFFNN(6, 4, 9, nb_hidden_layers=3), (6,)),
    "conv": (lambda: StandardTHLConvNet(IMAGE, 4, 9), IMAGE),
    "ss_conv": (lambda: SSSTHLConvNet((1, 37, 45), 4, 30, 2), (1, 37, 45)),
    "rank_1_conv": (lambda: Rank1THLConvNet((3, 28, 28), 4, 9), (3, 28, 28)),
    # Rows that are written out all, one by one in a loop, and in blocks of eight with rows and columns left over.
    "linear_1": (lambda: nn.Linear(1, 1), (1,)),
    "linear_small": (lambda: nn.Linear(7, 2), (7,)),
    "linear_short_rows": (lambda: nn.Linear(20, 5), (20,)),
    "linear_long_rows": (lambda: nn.Linear(31, 21), (31,)),
    "linear_few_long_rows": (lambda: nn.Linear(50, 3, bias=False), (50,)),
    "linear_no_bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "linear_float16": (lambda: nn.Linear(7, 5, dtype=torch.float16), (7,)),
    "sss_1": (lambda: sss(40, 1), (40,)),
    "sss_2": (lambda: sss(41, 2), (41,)),
    "sss_5": (lambda: sss(50, 5), (50,)),
    "sss_float64": (lambda: make_layer(40, 2), (40,)),
    "sss_no_bias": (lambda: sss(40, 2, bias=False), (40,)),
    "sss_wide_stages": (lambda: sss(40, 1, 8), (40,)),
    "sss_one_stage": (lambda: sss(6, 3, 6), (6,)),
    "sss_dense": (lambda: sss(7, 20), (7,)),
    "sss_large_states": (lambda: sss(100, 10), (100,)),
    "sss_more_inputs": (lambda: sss(53, 2, output_size=15), (53,)),
    "sss_more_outputs": (lambda: sss(15, 2, output_size=53), (15,)),
    "sss_column": (lambda: sss(9, 2, output_size=1), (9,)),
    "sss_padding": (lambda: with_padding(sss(40, 3)), (40,)),
    "rank_1": (lambda: Rank1Layer(40), (40,)),
    "rank_1_wide": (lambda: Rank1Layer(7, 11, bias=False), (7,)),
}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)
FLAGS = "-Wall -Wextra -Wconversion -Wdouble-promotion -Werror".split()
TOLERANCE = 2e-5  # relative to the largest score
needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None or importlib.util.find_spec("unicorn") is None,
    reason="ziglang and unicorn are not installed: requirements-microcontroller.txt")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no GCC on this machine")


@torch.no_grad()
def with_padding(layer):
    """What stands in the padding of an SSS layer is no part of it."""
    for matrix in (layer.A, layer.C, layer.E, layer.G):
        matrix[0], matrix[-1] = (values.where(values != 0, torch.tensor(7.0)) for values in (matrix[0], matrix[-1]))
    return layer


@torch.no_grad()
def get_scores(module, X):
    """What softmax is applied to, by the modules of a net one after the other; the output of a layer."""
    if hasattr(module, "vector_net"):
        return get_scores(module.vector_net, module.feature_extractor(X))
    if not hasattr(module, "output_layer"):
        return module(X)
    for layer in (module.input_layer, *module.hidden_layers):
        X = torch.relu(layer(X))
    return module.output_layer(X)


class Exported:
    """All modules as headers in a folder, and a program that prints their scores, classes and net_test."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder, self.inputs, self.scores = folder, {}, {}
        for name, (make, shape) in MODULES.items():
            module, X = make(), 3 * torch.randn(2, *shape)
            export_to_c(module, folder / f"{name}.h", name, sample_inputs=X)
            dtype = torch.float64 if next(module.parameters()).dtype == torch.float64 else torch.float32
            self.inputs[name] = X.flatten(1).numpy()
            self.scores[name] = get_scores(module.to(dtype), X.to(dtype)).numpy()
        includes = [f'#define {name.upper()}_TEST\n#include "{name}.h"' for name in MODULES]
        self.source = "\n".join(["#include <stdio.h>", *includes, "int main(void) {", *(
            PRINT.replace("<name>", name).replace("<NAME>", name.upper()).replace(
                "<inputs>", "".join(f"{float(x)}f,\n" for x in self.inputs[name].flat)) for name in MODULES),
            "return 0; }"])

    def get_results(self, compiler, suffix, *options):
        """{name: (scores, classes, net_test)}"""
        program = self.folder / "main"
        compile_c(self.folder, compiler, self.source, suffix, *options, "-o", str(program))
        done = subprocess.run([str(program)], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
        rows = {}
        for line in done.stdout.splitlines():
            name, *values = line.split()
            rows.setdefault(name, []).append([float(value) for value in values])
        return {name: (np.array(values[:-1])[:, 1:], np.array(values[:-1])[:, 0], values[-1][0])
                for name, values in rows.items()}


PRINT = """{
static const float inputs[] = {
<inputs>};
float scores[<NAME>_OUTPUT_SIZE];
for (int i = 0; i < 2; i++) {
    <name>_scores(inputs + i * <NAME>_INPUT_SIZE, scores);
    printf("<name> %d", <name>_classify(inputs + i * <NAME>_INPUT_SIZE));
    for (int j = 0; j < <NAME>_OUTPUT_SIZE; j++) printf(" %.9g", (double)scores[j]);
    printf("\\n");
}
printf("<name> %.9g\\n", (double)<name>_test());
}"""


def compile_c(folder, compiler, source, suffix, *options):
    """Compile with the flags of embedded engineers; what the compiler says is an error."""
    path, cache = folder / f"source{suffix}", str(folder / "zig-cache")
    path.write_text(source)
    done = subprocess.run([*compiler, *FLAGS, *options, str(path)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache})
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="module", params=["C", "C++"])
def results(request, exported):
    """Of the host's compiler: as C with sanitizers, which end the program at undefined behaviour, and as C++."""
    compiler = shutil.which({"C": "gcc", "C++": "g++"}[request.param])
    if compiler is None:
        pytest.skip(f"no {request.param} compiler of GCC on this machine")
    if request.param == "C++":
        return exported.get_results([compiler], ".cpp", "-std=c++11", "-O1")
    return exported.get_results([compiler], ".c", "-std=c99", "-O0", "-fsanitize=address,undefined",
                                "-fno-sanitize-recover=all")


# ---- what the C code computes ----

@EVERY_MODULE
def test_c_code_computes_the_scores_and_classes_of_pytorch(exported, results, name):
    expected = exported.scores[name]
    scores, classes, test = results[name]
    largest = np.abs(expected).max()
    assert np.abs(scores - expected).max() <= TOLERANCE * largest
    assert (classes == scores.argmax(1)).all()
    assert test <= TOLERANCE * largest




def build_calls(folder, names):
    """The emulated Cortex-M4F with a function call_name for each header name.h."""
    return EmulatedCore(build(write_calls(names), [f"call_{name}" for name in names], "cortex-m4f", "-O2", folder))


def write_calls(names):
    return "".join(f'#include "{name}.h"\n' for name in names) + "".join(
        f"void call_{name}(const float *x, float *scores);\n"
        f"void call_{name}(const float *x, float *scores) {{ {name}_scores(x, scores); }}\n" for name in names)


@needs_zig
def test_emulated_microcontroller_computes_the_scores_of_pytorch(exported):
    core = build_calls(exported.folder, MODULES)
    for name, expected in exported.scores.items():
        scores = np.zeros(expected.shape, np.float32)
        for x, y in zip(exported.inputs[name], scores):
            core.call(f"call_{name}", x, y)
        assert np.abs(scores - expected).max() <= TOLERANCE * np.abs(expected).max(), name


@needs_gcc
def test_net_test_returns_the_largest_difference_and_nan_if_there_is_one(tmp_path):
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[2.0], [3.0]])
    for name, weights in (("same", "2.0f, 3.0f"), ("other", "2.5f, 2.75f"), ("nan", "NAN, 3.0f")):
        export_to_c(layer, tmp_path / "layer.h", name, sample_inputs=[[4.0], [-8.0], [1.0]])
        text = (tmp_path / "layer.h").read_text()
        assert "{\n    2.0f, 3.0f,\n}" in text  # the weights; PyTorch's scores of them stay in the file
        (tmp_path / f"{name}.h").write_text(text.replace("{\n    2.0f, 3.0f,\n}", f"{{ {weights} }}"))
    results = {}
    for name in ("same", "other", "nan"):
        compile_c(tmp_path, ["gcc"], f"""#include <math.h>\n#include <stdio.h>\n#define {name.upper()}_TEST\n
            #include "{name}.h"\nint main(void) {{ printf("%g", (double){name}_test()); return 0; }}""",
                  ".c", "-std=c99", "-o", "main")
        results[name] = float(subprocess.run([tmp_path / "main"], capture_output=True, text=True).stdout)
    assert results["same"] == 0 and results["other"] == 4 and np.isnan(results["nan"])


def test_weights_of_any_size_stand_in_the_file_exactly(tmp_path):
    """Each of the C literals, rounded to float32 as a compiler does, is the weight."""
    weights = [1e-45, -3e-39, 1.2e-38, 3.4028235e38, 16777215, 1 / 3, -0.0, 100, 0.1, *np.logspace(-40, 38, 300)]
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight[0] = torch.tensor(weights)
    export_to_c(layer, tmp_path / "net.h")
    (literals,) = re.findall(r"net_single_layer_weights\[\d+\] = {([^}]*)}", (tmp_path / "net.h").read_text())
    literals = [literal.strip() for literal in literals.split(",") if literal.strip()]
    assert all(re.fullmatch(r"-?\d+(\.\d+|(\.\d+)?e[-+]\d+)f", literal) for literal in literals)
    values = np.array([np.float32(literal[:-1]) for literal in literals])
    assert (values.view(np.int32) == layer.weight[0].detach().numpy().view(np.int32)).all()


# ---- the code ----

@needs_zig
@pytest.mark.parametrize("compiler, suffix, standard", [("cc", ".c", "-std=c99"), ("c++", ".cpp", "-std=c++11")])
def test_clang_finds_nothing_either(exported, compiler, suffix, standard):
    compile_c(exported.folder, [sys.executable, "-m", "ziglang", compiler, "-target", "thumb-freestanding-eabihf",
                                "-mcpu=cortex_m4+vfp4d16sp"],
              write_calls(MODULES), suffix, standard, "-Os", "-c", "-o", "source.o")


@EVERY_MODULE
def test_code_has_no_variables_outside_of_functions_and_needs_no_library(exported, name):
    text = re.sub(r"/\*.*?\*/", "", (exported.folder / f"{name}.h").read_text(), flags=re.S)
    assert "#include" not in text and "double" not in text
    for line in text.splitlines():
        if line and line[0] not in " {}#":
            assert re.match(r"static (const float \w+\[\d+\] = {|inline (void|int|float) \w+\()", line), line
    calls = {*re.findall(r"(\w+)\(", text)} - {"for", "if"}
    assert all(call.startswith(name) for call in calls)


def test_comment_tells_what_the_net_takes(tmp_path):
    export_to_c(TwoHiddenLayeredSSNet(16, 10, 50), tmp_path / "net.h")
    text = (tmp_path / "net.h").read_text()
    comment = text[:text.index("*/")]
    nb_weights = sum(map(int, re.findall(r"static const float \w+\[(\d+)\]", text)))
    in_function = re.findall(r"^    float (.*\[.*);", text, flags=re.M)  # of the hidden layer, net_scores, net_classify
    sizes = [sum(map(int, re.findall(r"\[(\d+)\]", line))) for line in in_function]
    assert sizes == [3, 50, 50, 10]
    for line in ("net: TwoHiddenLayeredSSNet", "1752 parameters", f"{4 * nb_weights} bytes of weights",
                 f"{4 * (3 + 50 + 50)} bytes of arrays", f"PyTorch {torch.__version__}",
                 f"{nb_weights - 50 - 50 - 10} multiply-adds"):  # without the biases
        assert line in comment


def test_same_net_gives_the_same_file(tmp_path):
    net, X = TwoHiddenLayeredSSNet(6, 4, 9, 2), torch.randn(2, 6)
    for path in ("a.h", "b.h"):
        export_to_c(net, tmp_path / path, sample_inputs=X)
    other = TwoHiddenLayeredSSNet(6, 4, 9, 2)
    export_to_c(other, tmp_path / "other.h", sample_inputs=X)
    other.load_state_dict(net.state_dict())
    export_to_c(other, tmp_path / "copy.h", sample_inputs=X)
    files = {path: (tmp_path / path).read_bytes() for path in ("a.h", "b.h", "other.h", "copy.h")}
    assert files["a.h"] == files["b.h"] == files["copy.h"] != files["other.h"]


# ---- how many instructions it takes ----

@pytest.mark.parametrize("sizes", [(40, 1), (50, 5), (48, 4, 2), (16, 3), (12, 30), (6, 2, 6)])
def test_merged_stages_represent_the_same_matrix_with_no_more_entries_than_it_or_the_layer(sizes):
    for output_size in (sizes[0], 2 * sizes[0] + 3):
        layer = make_layer(*sizes, output_size=output_size)
        stages = c_export._get_merged_stages(layer)
        T = dense_matrix(layer).detach().numpy()
        rows = np.cumsum([0, *(len(stage.D) for stage in stages)])
        columns = np.cumsum([0, *(stage.D.shape[1] for stage in stages)])
        for j, stage in enumerate(stages):
            x, z, blocks = stage.B, stage.F, {j: stage.D}
            for i in range(j + 1, len(stages)):
                blocks[i], x = stages[i].C @ x, stages[i].A @ x
            for i in range(j - 1, -1, -1):
                blocks[i], z = stages[i].G @ z, stages[i].E @ z
            expected = T[:, columns[j]:columns[j + 1]]
            np.testing.assert_allclose(np.vstack([blocks[i] for i in range(len(stages))]), expected, atol=1e-12)
        nb_entries = sum(matrix.size for stage in stages for matrix in stage)
        nb_parameters = sum(rows * columns for shapes in layer.stage_shapes.values() for rows, columns in shapes)
        assert nb_entries <= min(T.size, nb_parameters) and rows[-1] == output_size


@needs_zig
def test_sss_layer_takes_a_fraction_of_the_instructions_of_a_good_dense_layer(exported):
    """On the Cortex-M4F. CMSIS-DSP's loop, four rows at a time, would take 15 instructions for 4 multiply-adds here:
    this compiler does not fuse products and sums."""
    sizes = (50, 200)
    for n in sizes:
        export_to_c(nn.Linear(n, n), exported.folder / f"dense_{n}.h", f"dense_{n}")
        export_to_c(SemiseparableLayer(n, 1, initialisation="direct"), exported.folder / f"ss_{n}.h", f"ss_{n}")
    core = build_calls(exported.folder, [f"{kind}_{n}" for n in sizes for kind in ("dense", "ss")])
    for n, fraction in zip(sizes, (1 / 5, 1 / 15)):
        dense, ss = (core.call(f"call_{kind}_{n}", np.zeros(n, np.float32), np.zeros(n, np.float32)).instructions
                     for kind in ("dense", "ss"))
        assert dense < 15 / 4 * n ** 2 and ss < fraction * dense


# ---- what is refused ----

class OtherForward(StandardTHLFFNN):
    def forward(self, X):
        return super().forward(2 * X)


class OtherScores(StandardTHLFFNN):
    def scores(self, X):
        return super().scores(2 * X)


def replace(module, where, other):
    setattr(module.get_submodule(where.rpartition(".")[0]), where.rpartition(".")[2], other)
    return module


def set_weight(module, value):
    with torch.no_grad():
        next(module.parameters()).view(-1)[-1] = value
    return module


ffnn, conv = partial(StandardTHLFFNN, 6, 4, 9), partial(StandardTHLConvNet, IMAGE, 4, 9)


@pytest.mark.filterwarnings("ignore")  # torch's, of its own future
@pytest.mark.parametrize("make, message", [
    (lambda: nn.Conv2d(1, 1, 3), "cannot write Conv2d, only Linear, SemiseparableLayer, Rank1Layer, FeedForwardNet"),
    (lambda: nn.Sequential(nn.Linear(6, 4)), "cannot write Sequential"),
    (lambda: OtherForward(6, 4, 9), "cannot write OtherForward"),
    (lambda: OtherScores(6, 4, 9), "cannot write OtherScores"),
    (lambda: torch.ao.quantization.quantize_dynamic(ffnn(), {nn.Linear}), "cannot write Linear (input_layer)"),
    (lambda: replace(ffnn(), "hidden_layers.0", nn.LayerNorm(9)), "cannot write LayerNorm (hidden_layers.0)"),
    (lambda: replace(ffnn(), "output_layer", ffnn()), "cannot write StandardTHLFFNN (output_layer)"),
    (lambda: replace(ffnn(), "output_layer", nn.Linear(8, 4)), "hidden_layers.0 has 9 outputs, but output_layer"),
    (lambda: replace(conv(), "feature_extractor", nn.Flatten()), "cannot write Flatten (feature_extractor)"),
    (lambda: replace(conv(), "feature_extractor.layers.2", nn.MaxPool2d(2)), "feature_extractor whose layers"),
    (lambda: replace(conv(), "vector_net", conv()), "cannot write StandardTHLConvNet (vector_net)"),
    (lambda: replace(conv(), "vector_net", ffnn()), "feature_extractor.layers.3 has 10 outputs, but vector_net"),
    (lambda: nn.Linear(0, 4), "in_features must be a positive integer, got 0"),
    (lambda: set_weight(conv(), float("nan")), "feature_extractor.layers.0.weight has entries that are complex, NaN"),
    (lambda: set_weight(SemiseparableLayer(6), float("inf")), "A has entries that are complex, NaN or infinite"),
    (lambda: nn.Linear(2, 2, dtype=torch.complex64), "weight has entries that are complex"),
    (lambda: set_weight(nn.Linear(2, 2, dtype=torch.float64), 1e39), "net_single_layer_weights has entries that are"),
])
def test_what_cannot_be_written_is_named_before_there_is_a_file(make, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        export_to_c(make(), tmp_path / "net.h")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "2net", "net-2", "nét", "net ", "_net", "int", "class", None])
def test_names_that_are_no_c_identifiers_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"got {name!r}")):
        export_to_c(ffnn(), tmp_path / "net.h", name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("make, X, message", [
    (ffnn, torch.zeros(3, 7), "sample_inputs must have shape (batch, 6), got (3, 7)"),
    (ffnn, torch.zeros(6), "(batch, 6), got (6,)"), (ffnn, torch.zeros(0, 6), "(batch, 6), got (0, 6)"),
    (ffnn, 1.0, "(batch, 6), got ()"), (conv, torch.zeros(3, 27, 34, 2), "(batch, 2, 27, 34), got (3, 27, 34, 2)"),
    (ffnn, torch.full((1, 6), torch.nan), "sample_inputs has entries that are complex, NaN or infinite"),
    (ffnn, torch.full((1, 6), 1e300, dtype=torch.float64), "net_test_inputs has entries that are NaN, infinite"),
    (lambda: set_weight(nn.Linear(2, 2, bias=False), 3e38), torch.full((1, 2), 2.0), "net_test_scores has entries")])
def test_samples_that_do_not_fit_are_refused(make, X, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        export_to_c(make(), tmp_path / "net.h", sample_inputs=X)
    assert not any(tmp_path.iterdir())


def test_samples_of_any_type_give_the_same_file(tmp_path):
    net, X = ffnn(), torch.arange(12).reshape(2, 6)
    for name, samples in (("a", X), ("b", X.numpy().astype(np.uint8)), ("c", X.double().tolist())):
        export_to_c(net, tmp_path / name, sample_inputs=samples)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_path_that_cannot_be_written_is_an_os_error(tmp_path):
    for path in (tmp_path / "no_folder" / "net.h", tmp_path):
        with pytest.raises(OSError, match="folder"):
            export_to_c(ffnn(), path)


def test_failing_export_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "net.h"
    export_to_c(ffnn(), path)
    old = path.read_bytes()
    with pytest.raises(ValueError):
        export_to_c(set_weight(ffnn(), float("nan")), path)

    def replace_nothing(source, target):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "replace", replace_nothing)
        export_to_c(ffnn(), path)
    assert path.read_bytes() == old and [*tmp_path.iterdir()] == [path]
    export_to_c(ffnn(), str(path))
    assert path.read_bytes() != old and [*tmp_path.iterdir()] == [path]


def test_export_leaves_the_module_as_it_was(tmp_path):
    net = ffnn().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export_to_c(net, tmp_path / "net.h", sample_inputs=torch.randn(2, 6))
    assert net.training and net.input_layer.weight.dtype == torch.float32 and not net.output_layer._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
