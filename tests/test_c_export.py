"""microcontroller/c_export.py: the C code of all nets and layers computes what PyTorch does and compiles without a
warning; everything else is refused by name."""

import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from microcontroller.c_export import _get_merged_stages, export_to_c
from monarchmodels import MonarchLayer
from rank1models import Rank1Layer, Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from sss_reference import STATE_MATRICES, assert_equal, dense_matrix, make_layer
from standardmodels import StandardFFNN, StandardSLFFNN, StandardTHLConvNet, StandardTHLFFNN

pytestmark = pytest.mark.filterwarnings("ignore:SemiseparableLayer.* has")

IMAGE = (2, 27, 34)  # 27 x 34 -> stride 2: 12 x 15 -> pool: 6 x 7 -> kernel 5: 2 x 3 -> pool: 1 x 1
sss = partial(make_layer, dtype=torch.float32)
# name in C, where a keyword is as good as another: (function that makes a net or layer, shape of one sample)
MODULES = {
    "ffnn_1": (lambda: StandardSLFFNN(6, 4, 9), (6,)),
    "ffnn_4": (lambda: StandardFFNN(30, 3, 37, 4), (30,)),
    "ffnn_float64": (lambda: StandardTHLFFNN(6, 4, 9, dtype=torch.float64), (6,)),
    "ss_3": (lambda: TwoHiddenLayeredSSNet(6, 4, 30, 3, 2, nb_hidden_layers=3), (6,)),
    "rank_1_net": (lambda: Rank1THLFFNN(6, 4, 9, nb_hidden_layers=3), (6,)),
    "conv": (lambda: StandardTHLConvNet(IMAGE, 4, 9), IMAGE),
    "ss_conv": (lambda: SSSTHLConvNet((1, 37, 45), 4, 30, 2), (1, 37, 45)),
    "rank_1_conv": (lambda: Rank1THLConvNet((3, 28, 28), 4, 9), (3, 28, 28)),
    # Rows that are written out all, one by one in a loop, and in blocks of eight with rows and columns left over.
    "int": (lambda: nn.Linear(1, 1), (1,)),
    "class": (lambda: nn.Linear(7, 2), (7,)),
    "linear_short_rows": (lambda: nn.Linear(20, 5), (20,)),
    "linear_long_rows": (lambda: nn.Linear(31, 21), (31,)),
    "linear_few_long_rows": (lambda: nn.Linear(50, 3, bias=False), (50,)),
    "sss_1": (lambda: sss(40, 1), (40,)),
    "sss_2": (lambda: sss(41, 2), (41,)),
    "sss_no_bias": (lambda: sss(40, 2, bias=False), (40,)),
    "sss_wide_stages": (lambda: sss(40, 1, 8), (40,)),
    "sss_dense": (lambda: sss(7, 20), (7,)),
    "sss_large_states": (lambda: sss(100, 10), (100,)),
    "sss_more_inputs": (lambda: sss(53, 2, output_size=15), (53,)),
    "sss_more_outputs": (lambda: sss(15, 2, output_size=53), (15,)),
    "sss_column": (lambda: sss(9, 2, output_size=1), (9,)),
    "sss_padding": (lambda: with_padding(sss(40, 3)), (40,)),
    "rank_1": (lambda: Rank1Layer(40), (40,)),
    "rank_3_wide": (lambda: Rank1Layer(7, 11, bias=False, rank=3), (7,)),
    "monarch": (lambda: MonarchLayer(60, 5), (60,)),
    "monarch_narrow": (lambda: MonarchLayer(60, 2, output_size=4, bias=False), (60,))}
TOLERANCE = 2e-5  # relative to the largest score
needs_gcc = pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("g++"), reason="no GCC on this machine")
RUN = r"""
#define RUN(name, NAME) { float scores[NAME##_OUTPUT_SIZE]; \
    for (int i = 0; i < 2; i++) { \
        name##_scores(name##_test_inputs + i * NAME##_INPUT_SIZE, scores); \
        for (int j = 0; j < NAME##_OUTPUT_SIZE; j++) printf("%.9g ", (double)scores[j]); \
        printf("%d ", name##_classify(name##_test_inputs + i * NAME##_INPUT_SIZE)); \
    } \
    printf("%.9g\n", (double)name##_test()); }
"""


@torch.no_grad()
def with_padding(layer):
    """What stands in the padding of an SSS layer is no part of it."""
    for matrix in (layer.A, layer.C, layer.E, layer.G):
        matrix[0], matrix[-1] = (values.where(values != 0, torch.tensor(7.0)) for values in (matrix[0], matrix[-1]))
    return layer


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder with all modules as headers; {name: scores of PyTorch})"""
    torch.manual_seed(0)
    folder, expected = tmp_path_factory.mktemp("c"), {}
    for name, (make, shape) in MODULES.items():
        module, X = make(), 3 * torch.randn(2, *shape)
        export_to_c(module, folder / f"{name}.h", name, sample_inputs=X)
        with torch.no_grad():
            X = X.to(next(module.parameters()).dtype)
            expected[name] = getattr(module, "scores", module)(X).numpy()
    return folder, expected


def run_c(folder, source, *options):
    """What a program prints that is compiled with the flags of embedded engineers; a warning is an error."""
    (folder / "source.c").write_text(source)
    flags = "-Wall -Wextra -Wconversion -Wdouble-promotion -Werror".split()
    for command in (["g++", "-x", "c++", "-std=c++11", "-fsyntax-only", *flags, "source.c"],
                    ["gcc", "-std=c99", *flags, *options, "source.c", "-o", "main"], ["./main"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return done.stdout.splitlines()


@needs_gcc
def test_c_code_computes_the_scores_and_classes_of_pytorch_and_compiles_as_c_and_cpp_without_a_warning(exported):
    """With sanitizers, which end the program at undefined behaviour."""
    folder, expected = exported
    lines = run_c(folder, "\n".join([
        "#include <stdio.h>", *(f'#define {name.upper()}_TEST\n#include "{name}.h"' for name in expected), RUN,
        "int main(void) {", *(f"RUN({name}, {name.upper()})" for name in expected), "return 0; }"]),
                  "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for (name, scores), line in zip(expected.items(), lines, strict=True):
        *results, largest_difference = map(float, line.split())
        results, largest = np.array(results).reshape(2, -1), np.abs(scores).max()
        assert np.abs(results[:, :-1] - scores).max() <= TOLERANCE * largest, name
        assert (results[:, -1] == results[:, :-1].argmax(1)).all() and largest_difference <= TOLERANCE * largest, name


@needs_gcc
def test_net_test_returns_the_largest_difference_and_nan_if_there_is_one(tmp_path):
    layer, source = nn.Linear(1, 2, bias=False), "#include <math.h>\n#include <stdio.h>\n"
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[2.0], [3.0]])
    for name, weights in (("same", "2.0f, 3.0f"), ("other", "2.5f, 2.75f"), ("nothing", "NAN, 3.0f")):
        export_to_c(layer, tmp_path / "layer.h", name, sample_inputs=[[4.0], [-8.0], [1.0]])
        text = (tmp_path / "layer.h").read_text()
        assert "{\n    2.0f, 3.0f,\n}" in text  # the weights; PyTorch's scores of them stay in the file
        source += f"#define {name.upper()}_TEST\n" + text.replace("{\n    2.0f, 3.0f,\n}", f"{{ {weights} }}")
    lines = run_c(tmp_path, source + r"""int main(void) {
        printf("%g\n%g\n%g\n", (double)same_test(), (double)other_test(), (double)nothing_test()); return 0; }""",
                  "-Wno-unused-function")
    assert lines[:2] == ["0", "4"] and "nan" in lines[2]


def test_sss_layer_takes_a_fraction_of_the_instructions_of_a_good_dense_layer(tmp_path):
    """On the Cortex-M4F. CMSIS-DSP's loop, four rows at a time, would take 15 instructions for 4 multiply-adds here:
    this compiler does not fuse products and sums."""
    pytest.importorskip("unicorn", reason="pip install -r microcontroller/requirements.txt")
    from microcontroller.emulated_core import measure_calls

    def count_instructions(module):
        export_to_c(module, tmp_path / "net.h")
        source = '#include "net.h"\nint run(const float *x, float *y) { net_scores(x, y); return 0; }'
        return measure_calls(source, np.zeros((1, n), np.float32), n, "cortex-m4f", "-O2", tmp_path)[1][0].instructions

    for n, fraction in (50, 1 / 5), (200, 1 / 15):
        dense = count_instructions(nn.Linear(n, n))
        assert dense < 15 / 4 * n ** 2
        assert count_instructions(SemiseparableLayer(n, 1, initialisation="direct")) < fraction * dense


def test_weights_of_any_size_stand_in_the_file_exactly(tmp_path):
    """Each of the C literals, rounded to float32 as a compiler does, is the weight."""
    weights = [1e-45, -3e-39, 1.2e-38, 3.4028235e38, 16777215, 1 / 3, -0.0, 100, 0.1, *np.logspace(-40, 38, 300)]
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight[0] = torch.tensor(weights)
    (tmp_path / "net.h").symlink_to("elsewhere.h")
    export_to_c(layer, tmp_path / "net.h")
    assert (tmp_path / "net.h").is_symlink()
    (array,) = re.findall(r"net_single_layer_weights\[\d+\] = {([^}]*)}", (tmp_path / "net.h").read_text())
    literals = re.findall(r"(-?\d+(?:\.\d+|(?:\.\d+)?e[-+]\d+))f,", array)
    values = np.array([np.float32(literal) for literal in literals])
    assert (values.view(np.int32) == layer.weight[0].detach().numpy().view(np.int32)).all()


def test_code_has_no_variables_outside_of_functions_and_needs_no_library(exported):
    for name in MODULES:
        text = re.sub(r"/\*.*?\*/", "", (exported[0] / f"{name}.h").read_text(), flags=re.S)
        assert "#include" not in text and "double" not in text
        for line in text.splitlines():
            if line and line[0] not in " {}#":
                assert re.match(r"static (const float \w+\[\d+\] = {|inline (void|int|float) \w+\()", line), line
        assert all(call.startswith(name) for call in {*re.findall(r"(\w+)\(", text)} - {"for", "if"})


@pytest.mark.parametrize("sizes", [(40, 1), (50, 5), (48, 4, 2), (16, 3), (12, 30), (6, 2, 6)])
def test_merged_stages_represent_the_same_matrix_with_no_more_entries_than_it_or_the_layer(sizes):
    for output_size in (sizes[0], 2 * sizes[0] + 3):
        layer = make_layer(*sizes, output_size=output_size)
        merged, T = _get_merged_stages(layer), dense_matrix(layer)
        stages = {name: [torch.from_numpy(getattr(stage, name)) for stage in merged] for name in STATE_MATRICES}
        assert_equal(dense_matrix(layer, stages), T)
        nb_parameters = sum(rows * columns for shapes in layer.stage_shapes.values() for rows, columns in shapes)
        assert sum(matrix.size for stage in merged for matrix in stage) <= min(T.numel(), nb_parameters)


def test_pruned_weights_are_written_as_they_would_be_used_now(tmp_path):
    X, texts, net = torch.randn(5, 6), [], TwoHiddenLayeredSSNet(6, 4, 9, 2)
    for layer, name in ((net.hidden_layers[0], "D"), (net.output_layer, "weight")):
        prune.l1_unstructured(layer, name, amount=0.3)
    torch.optim.SGD(net.parameters(), 1.).step(lambda: net.scores(X).square().sum().backward())
    for _ in range(2):
        export_to_c(net, tmp_path / "net.h", sample_inputs=X)
        texts.append((tmp_path / "net.h").read_text())
        net(X)
    assert texts[0] == texts[1]


def replace(module, where, other):
    setattr(module.get_submodule(where.rpartition(".")[0]), where.rpartition(".")[2], other)
    return module


def set_weight(module, value):
    nn.init.constant_(next(module.parameters()), value)
    return module


ffnn, conv = partial(StandardTHLFFNN, 6, 4, 9), partial(StandardTHLConvNet, IMAGE, 4, 9)


@pytest.mark.parametrize("make, arguments, message", [
    (lambda: nn.Sequential(nn.Linear(6, 4)), {},
     "cannot write Sequential, only Linear, SemiseparableLayer, Rank1Layer, MonarchLayer, FeedForwardNet"),
    (lambda: type("OtherForward", (StandardTHLFFNN,), {"forward": print})(6, 4, 9), {}, "cannot write OtherForward"),
    (lambda: replace(ffnn(), "hidden_layers.0", nn.LayerNorm(9)), {}, "cannot write LayerNorm (hidden_layers.0)"),
    (lambda: replace(ffnn(), "output_layer", nn.Linear(8, 4)), {}, "hidden_layers.0 has 9 outputs, but output_layer"),
    (lambda: replace(conv(), "feature_extractor", nn.Flatten()), {}, "cannot write Flatten (feature_extractor)"),
    (lambda: replace(conv(), "feature_extractor.layers.2", nn.MaxPool2d(2)), {}, "feature_extractor whose layers"),
    (lambda: replace(conv(), "vector_net", conv()), {}, "cannot write StandardTHLConvNet (vector_net)"),
    (lambda: (net := ffnn(), net.input_layer.register_forward_pre_hook(print))[0], {}, "hook print of input_layer;"),
    (lambda: (net := conv(), net.register_forward_hook(print))[0], {}, "print of StandardTHLConvNet; remove it"),
    (lambda: set_weight(conv(), float("nan")), {}, "feature_extractor.layers.0.weight has entries that are complex"),
    (lambda: set_weight(nn.Linear(2, 2, dtype=torch.float64), 1e39), {}, "net_single_layer_weights has entries that"),
    *((ffnn, {"name": name}, f"got {name!r}") for name in (
        "", "2net", "net-2", "nét", "_net", "net_test", "net_vector_net")),  # the last ones name parts of "net"
    (ffnn, {"sample_inputs": torch.zeros(3, 7)}, "sample_inputs must have shape (batch, 6), got (3, 7)"),
    (ffnn, {"sample_inputs": torch.zeros(0, 6)}, "(batch, 6), got (0, 6)"),
    (conv, {"sample_inputs": torch.zeros(3, 27, 34, 2)}, "(batch, 2, 27, 34), got (3, 27, 34, 2)"),
    (ffnn, {"sample_inputs": torch.full((1, 6), torch.nan)}, "sample_inputs has entries that are complex, NaN"),
    (lambda: set_weight(nn.Linear(2, 2), 3e38), {"sample_inputs": [[2.0, 2.0]]}, "net_test_scores has entries")])
def test_what_cannot_be_written_is_named_before_there_is_a_file(make, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        export_to_c(make(), tmp_path / "net.h", **arguments)
    assert not any(tmp_path.iterdir())
