"""A trained net as one C header without dependencies, for microcontrollers.

    export_to_c(net, "net.h", sample_inputs=X_test[:3])

Weights become constants, in flash; what is computed lies on the stack. Every layer becomes a function made of products
with matrices:

    dense layers    y = W x + b
    rank-1 layers   s = v1ᵀ x, y = v2 s + b
    SSS layers      the recursion of semiseparablemodels.py, after neighbouring stages have been merged, exactly, into
                    those that take the fewest multiply-adds
    convolutions    together with the ReLU and the average pooling behind them, a pooled output at a time

Weights lie in the order in which they are read, the bias of an output before its row, so that one pointer passes them.
"""

import copy
import os
import re
import textwrap
from functools import partial, reduce
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from checks import check_finite, check_writable
from model_training import get_nb_model_parameters
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer
from standardmodels import ConvFeatureExtractorBase, ConvNet, FeedForwardNet

LONGEST_ROW = 20  # products in a row that is written out as one sum; registers hold the factors
LARGEST_MATRIX = 24  # products with a matrix of which all rows are written out
ROWS_AT_A_TIME = 4  # of longer rows, so that an input that is read serves several
COLUMNS_AT_A_TIME = 2
STAGE_COST = 8  # multiply-adds in the time that a stage takes beside its own
RESERVED_WORDS = set("""
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const const_cast consteval constexpr constinit continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires restrict return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile
    wchar_t while xor xor_eq""".split())


def export_to_c(module, path, name="net", sample_inputs=None):
    """Write a net as a C99 header, which is C++ as well. The softmax is left out: the largest score stays the largest.

    With the name "net" the header defines

        NET_INPUT_SIZE, NET_OUTPUT_SIZE
        void net_scores(const float *x, float *scores)    what the softmax is applied to; of a single layer, its output
        int net_classify(const float *x)                  the most probable class
        float net_test(void)                              if NET_TEST is defined: the largest absolute difference from
                                                          PyTorch's scores of the sample inputs

    Images are channels-first. Headers for one file need names that differ in more than upper and lower case. The same
    net gives the same file.

    :param module: a net of the benchmark, or an nn.Linear, SemiseparableLayer or Rank1Layer; weights of any dtype are
        written as float32
    :param path: of the file, which appears complete or not at all and replaces an older one
    :param name: C identifier that all names begin with
    :param sample_inputs: (batch, inputs) or (batch, channels, height, width); None: without net_test. PyTorch's scores
        are those of the weights as written, computed in float64.
    :raises ValueError: another module, a name that is no C identifier, weights or samples that are NaN or infinite or
        beyond float32, samples of another shape
    :raises OSError: the file cannot be written
    """
    path = Path(path)
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or name in RESERVED_WORDS:
        raise ValueError(f"name must be a C identifier that begins with a letter and is no keyword, got {name!r}")
    check_writable(path)
    functions = _write_functions(module, name)
    for function, next_function in pairwise(functions):
        if function.nb_outputs != next_function.nb_inputs:
            raise ValueError(f"{function.where} has {function.nb_outputs} outputs, but {next_function.where} takes "
                             f"{next_function.nb_inputs} inputs")
    tests = "" if sample_inputs is None else _write_tests(module, name, functions, sample_inputs)
    text = _write_header(module, name, functions, tests)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# ---- from modules to C functions ----

class _Function(NamedTuple):
    """A C function void name(const float *u, float *y) that computes one layer."""
    where: str  # the submodule
    module: nn.Module
    name: str
    title: str  # comment
    nb_inputs: int
    nb_outputs: int
    weights: dict  # {name of the array in C: floats in the order in which they are read}
    lines: list
    nb_scratch: int = 0  # floats on the stack


def _write_functions(module, name, where="", finish="{}"):
    """[_Function] of a net or a layer, in the order of their calls.

    :param finish: C expression of what is made of each output
    """
    kind = _get_kind(module, where, [FeedForwardNet, ConvNet, *_LAYER_WRITERS])
    inside, relu = where and f"{where}.", name + "_relu({})"
    if kind is FeedForwardNet:
        layers = [("input_layer", module.input_layer, relu), *(
            (f"hidden_layers.{i}", layer, relu) for i, layer in enumerate(module.hidden_layers)),
            ("output_layer", module.output_layer, "{}")]
    elif kind is ConvNet:
        _get_kind(module.feature_extractor, f"{inside}feature_extractor", [ConvFeatureExtractorBase])
        layers = [("vector_net", module.vector_net, "{}")]
    else:
        c_name = f"{name}_{where.replace('.', '_') or 'layer'}"
        for parameter_name, parameter in module.named_parameters():
            check_finite(**{inside + parameter_name: parameter})
        return [_Function(where, module, c_name, *_LAYER_WRITERS[kind](module, c_name, finish))]
    functions = _write_convolutions(module.feature_extractor, name, f"{inside}feature_extractor") if kind is ConvNet else []
    for layer_name, layer, layer_finish in layers:
        functions += _write_functions(layer, name, inside + layer_name, layer_finish)
    return functions


def _get_kind(module, where, kinds):
    """Which of the given classes a module is of. One with a forward of its own is of none, for it may compute anything."""
    for kind in kinds:
        if isinstance(module, kind) and getattr(module.forward, "__func__", None) is kind.forward:
            return kind
    raise ValueError(f"export_to_c cannot write {type(module).__name__}{where and ' (' + where + ')'}, only "
                     f"{', '.join(kind.__name__ for kind in kinds)}")


def _write_linear(layer, name, finish):
    W, bias = _to_array(layer.weight), _to_array(layer.bias)
    return (f"Linear: y = W u{'' if bias is None else ' + bias'}", *W.shape[::-1],
            {f"{name}_weights": _pack(_add_bias(W, bias))},
            [f"const float *w = {name}_weights;",
             *_write_product("y", len(W), [("u", W.shape[1])], bias is not None, finish=finish)])


def _write_rank1(layer, name, finish):
    v1, v2, bias = _to_array(layer.v1), _to_array(layer.v2), _to_array(layer.bias)
    return (f"Rank1Layer: y = v2 (v1 u){'' if bias is None else ' + bias'}", len(v1), v2.size,
            {f"{name}_weights": np.concatenate((_pack(v1.T), _pack(_add_bias(v2.T, bias))))},
            [f"const float *w = {name}_weights;", "float s[1];",
             *_write_product("s", 1, [("u", len(v1))]),
             *_write_product("y", v2.size, [("s", 1)], bias is not None, finish=finish)], 1)


def _write_semiseparable(layer, name, finish):
    stages, nb_merged = _merge_stages(layer)
    bias = _to_array(layer.bias)
    biases = [None] * len(stages) if bias is None else np.split(bias, np.cumsum([len(stage["D"]) for stage in stages])[:-1])
    causal = [np.concatenate([_pack(_add_bias(np.hstack((s["C"], s["D"])), b)), _pack(np.hstack((s["A"], s["B"])))])
              for s, b in zip(stages, biases)]
    anticausal = [np.concatenate([_pack(s["G"]), _pack(np.hstack((s["E"], s["F"])))]) for s in stages]
    d = max(max(s["A"].shape[0], s["E"].shape[0]) for s in stages)
    # Equal stages, which follow each other, share a loop.
    runs = [(len(list(run)), *shape) for shape, run in groupby(
        (s["D"].shape[1], len(s["D"]), s["A"].shape[::-1], s["E"].shape[::-1]) for s in stages)]
    lines = [f"const float *w = {name}_causal;"] + [f"float x[{d}], z[{d}], next[{d}];"] * (d > 0)
    k = 0
    for nb, m, p, (d_in, d_out), (e_in, _) in runs:
        lines += _write_loop(nb, [
            f"/* y_k = C_k x_k + D_k u_k + bias_k */" if d_in else "/* y_k = D_k u_k */",
            *_write_product("y", p, [("x", d_in), ("u", m)], bias is not None, finish="{}" if e_in else finish),
            *(["/* x_{k+1} = A_k x_k + B_k u_k */"] if d_out else []),
            *_write_state("x", d_out, [("x", d_in), ("u", m)]), f"u += {m};", f"y += {p};"])
    if d:
        lines.append(f"w = {name}_anticausal;")
        for nb, m, p, _, (e_in, e_out) in reversed(runs):
            lines += _write_loop(nb, [
                f"u -= {m};", f"y -= {p};",
                *(["/* y_k += G_k z_k */", *_write_product("y", p, [("z", e_in)], add=True, finish=finish)] if e_in else []),
                *(["/* z_{k-1} = E_k z_k + F_k u_k */"] if e_out else []),
                *_write_state("z", e_out, [("z", e_in), ("u", m)])])
    weights = {f"{name}_causal": np.concatenate(causal)}
    if d:
        weights[f"{name}_anticausal"] = np.concatenate(anticausal[::-1])
    return (f"SemiseparableLayer, statespace_dim {layer.statespace_dim}: {len(stages)} stages of up to "
            f"{stages[0]['D'].shape[1]} inputs, merged from {layer.nb_states}",
            layer.input_size, layer.output_size, weights, lines, 3 * d)


def _write_state(state, size, operands):
    if not size:
        return []
    return [*_write_product("next", size, operands),
            *([f"{state}[{i}] = next[{i}];" for i in range(size)] if size <= 3 else
              [f"for (int i = 0; i < {size}; i++)", f"    {state}[i] = next[i];"])]


def _merge_stages(layer):
    """[{name: matrix}] of the stages of an SSS layer, of which as many are merged as is best, and how many."""
    shapes = layer.stage_shapes
    parameters = {name: _to_array(getattr(layer, name)) for name in shapes}
    stages = [{name: parameters[name][k, :shapes[name][k][0], :shapes[name][k][1]] for name in shapes}
              for k in range(layer.nb_states)]
    inputs, outputs = ([0, *accumulate(dims)] for dims in (layer.input_dims, layer.output_dims))
    d, e = layer.state_dims, layer.anticausal_state_dims

    def get_cost(nb_merged):
        K = layer.nb_states
        ends = pairwise([*range(0, K, nb_merged), K])
        return sum((outputs[j] - outputs[i] + d[j]) * (inputs[j] - inputs[i] + d[i])
                   + e[j] * (outputs[j] - outputs[i] + e[i]) + e[i] * (inputs[j] - inputs[i]) + STAGE_COST for i, j in ends)

    best = FORCE or min(range(layer.nb_states, 0, -1), key=get_cost)
    return [reduce(_merge, stages[k:k + best]) for k in range(0, layer.nb_states, best)], best

FORCE = None
def _merge(first, second):
    """Two neighbouring stages as one: the state between them is no longer one that is computed."""
    A1, B1, C1, D1, E1, F1, G1 = (first[name] for name in "ABCDEFG")
    A2, B2, C2, D2, E2, F2, G2 = (second[name] for name in "ABCDEFG")
    return {"A": A2 @ A1, "B": np.hstack((A2 @ B1, B2)), "C": np.vstack((C1, C2 @ A1)),
            "D": np.block([[D1, G1 @ F2], [C2 @ B1, D2]]),
            "E": E1 @ E2, "F": np.hstack((F1, E1 @ F2)), "G": np.vstack((G1 @ E2, G2))}


def _write_convolutions(extractor, name, where):
    """Conv2d, ReLU, AvgPool2d, twice, and Flatten."""
    functions, (channels, height, width) = [], extractor.image_shape
    layers = extractor.layers
    for module, kind in zip(layers, [*[nn.Conv2d, nn.ReLU, nn.AvgPool2d] * 2, nn.Flatten], strict=True):
        _get_kind(module, where, [kind])
    for i in (0, 3):
        conv, pool = layers[i], layers[i + 2]
        W, bias = _to_array(conv.weight), _to_array(conv.bias)
        nb_out, _, kh, kw = W.shape
        S = conv.stride[0]
        rows, cols = (height - kh) // S + 1, (width - kw) // S + 1
        rows, cols = rows // 2, cols // 2
        c_name = f"{name}_features_{i // 3}"
        sums = [[f"s{r} = s{r} + " + " + ".join(f"w[{b}] * row[{(r // 2) * S * width + (r % 2) * S + b}]" for b in range(kw)) + ";"] for r in range(4)]
        lines = [f"for (int channel = 0; channel < {nb_out}; channel++) {{",
                 f"    for (int i = 0; i < {rows}; i++) {{",
                 f"        for (int j = 0; j < {cols}; j++) {{",
                 f"            const float *w = {c_name}_weights + {1 + W[0].size} * channel;",
                 f"            const float *row = u + {2 * S * width} * i + {2 * S} * j;",
                 f"            float s0 = w[0], s1 = w[0], s2 = w[0], s3 = w[0];",
                 f"            w++;",
                 f"            for (int c = 0; c < {channels}; c++) {{",
                 f"                for (int a = 0; a < {kh}; a++) {{",
                 *("                    " + line for s in sums for line in s),
                 f"                    w += {kw};",
                 f"                    row += {width};",
                 f"                }}",
                 f"                row += {(height - kh) * width};",
                 f"            }}",
                 f"            *y++ = 0.25f * ({name}_relu(s0) + {name}_relu(s1) + {name}_relu(s2) + {name}_relu(s3));",
                 f"        }}", "    }", "}"]
        functions.append(_Function(f"{where}.{i}", conv, c_name, "Conv2d, ReLU, AvgPool2d", channels * height * width, nb_out * rows * cols,
                                   {f"{c_name}_weights": _add_bias(W.reshape(nb_out, -1), bias).ravel()}, lines))
        channels, height, width = nb_out, rows, cols
    return functions


_LAYER_WRITERS = {nn.Linear: _write_linear, SemiseparableLayer: _write_semiseparable, Rank1Layer: _write_rank1}


# ---- products ----

def _write_product(target, nb_rows, operands, bias=False, add=False, finish="{}"):
    operands = [(vector, size) for vector, size in operands if size]
    nb_columns = bias + sum(size for _, size in operands)
    if nb_columns <= LONGEST_ROW:
        def row(i, offset):
            factors = [f"{vector}[{j}]" for vector, size in operands for j in range(size)]
            products = [f"w[{offset + bias + j}] * {factor}" for j, factor in enumerate(factors)]
            terms = [f"{target}[{i}]"] * add + [f"w[{offset}]"] * bias + products
            return f"{target}[{i}] = {finish.format(' + '.join(terms))};"
        if nb_rows * nb_columns <= LARGEST_MATRIX:
            return [*(row(i, i * nb_columns) for i in range(nb_rows)), f"w += {nb_rows * nb_columns};"]
        return _write_loop(nb_rows, [row("i", 0), f"w += {nb_columns};"], "i")
    lines, height = [], ROWS_AT_A_TIME
    if nb_rows >= height:
        block = _write_rows(target, "i + {}", height, operands, bias, add, finish)
        lines += [f"for (int i = 0; i < {nb_rows // height * height}; i += {height}) {{", *_indent(block), "}"]
    if nb_rows % height:
        lines += ["{", *_indent(_write_rows(target, f"{nb_rows // height * height} + {{}}", nb_rows % height, operands, bias, add, finish)), "}"]
    return lines


def _write_rows(target, index, height, operands, bias, add, finish):
    starts = [f"{target}[{index.format(r)}]" if add else f"w[{r}]" if bias else "0.0f" for r in range(height)]
    lines = ["float " + ", ".join(f"s{r} = {start}" for r, start in enumerate(starts)) + ";"]
    lines += [f"w += {height};"] * bias
    for vector, size in operands:
        def columns(j, nb):
            return [f"s{r} = s{r} + " + " + ".join(f"w[{c * height + r}] * {vector}[{j}{c}]" for c in range(nb)) + ";"
                    for r in range(height)] + [f"w += {nb * height};"]
        nb = COLUMNS_AT_A_TIME
        if size >= nb:
            lines += [f"for (int j = 0; j < {size // nb * nb}; j += {nb}) {{", *_indent(columns("j + ", nb)), "}"]
        if size % nb:
            lines += columns(f"{size // nb * nb} + ", size % nb)
    return lines + [f"{target}[{index.format(r)}] = {finish.format(f's{r}')};" for r in range(height)]


def _pack(matrix):
    """The entries of a matrix in the order in which the product with it reads them."""
    if matrix.shape[1] <= LONGEST_ROW:
        return matrix.ravel()
    return np.concatenate([matrix[i:i + ROWS_AT_A_TIME].T.ravel() for i in range(0, len(matrix), ROWS_AT_A_TIME)])


def _add_bias(matrix, bias):
    return matrix if bias is None else np.hstack((bias[:, None], matrix))


def _to_array(tensor):
    return None if tensor is None else tensor.detach().double().cpu().numpy()


# ---- C ----

def _write_loop(nb, lines, index="k"):
    if nb == 1:
        return lines
    return [f"for (int {index} = 0; {index} < {nb}; {index}++) {{", *_indent(lines), "}"]


def _indent(lines):
    return [f"    {line}" for line in lines]


def _write_array(name, values):
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has entries beyond float32")
    numbers = [f"{value:.9g}" for value in values.tolist()]
    numbers = [(number if re.search("[.e]", number) else f"{number}.0") + "f" for number in numbers]
    lines = textwrap.wrap(", ".join(numbers), 112) if len(numbers) < 100 else [
        ", ".join(numbers[i:i + 8]) + "," for i in range(0, len(numbers), 8)]
    return [f"static const float {name}[{len(values)}] = {{", *_indent(lines), "};"]


def _write_tests(module, name, functions, sample_inputs):
    shape = getattr(getattr(module, "feature_extractor", None), "image_shape", (functions[0].nb_inputs,))
    X = torch.as_tensor(sample_inputs).detach().cpu()
    if X.dim() != len(shape) + 1 or tuple(X.shape[1:]) != shape or len(X) == 0:
        raise ValueError(f"sample_inputs must have shape (batch, {', '.join(map(str, shape))}), got {tuple(X.shape)}")
    check_finite(sample_inputs=X)
    reference = copy.deepcopy(module).cpu().float().double()
    last = next(new for old, new in zip(module.modules(), reference.modules()) if old is functions[-1].module)
    outputs = []
    last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        reference(X.float().double())
    up, m, n = name.upper(), functions[0].nb_inputs, functions[-1].nb_outputs
    return "\n".join([
        f"#ifdef {up}_TEST", *_write_array(f"{name}_test_inputs", X.flatten().numpy()),
        *_write_array(f"{name}_test_scores", outputs[0].flatten().numpy()), "",
        f"static inline float {name}_test(void)", "{",
        f"    float largest = 0.0f, scores[{n}];",
        f"    for (int i = 0; i < {len(X)}; i++) {{",
        f"        {name}_scores({name}_test_inputs + {m} * i, scores);",
        f"        for (int j = 0; j < {n}; j++) {{",
        f"            float difference = scores[j] - {name}_test_scores[{n} * i + j];",
        "            if (difference < 0.0f)",
        "                difference = -difference;",
        "            if (difference > largest || difference != difference)  /* NaN stays */".replace("  /* NaN stays */", ""),
        "                largest = difference;", "        }", "    }", "    return largest;", "}", "#endif", ""])


def _write_header(module, name, functions, tests):
    up = name.upper()
    sizes = [max([f.nb_outputs for f in functions[i:-1:2]], default=0) for i in (0, 1)]
    lines = [f"/* {name}: {type(module).__name__}", "*/",
             f"#ifndef {up}_H", f"#define {up}_H", "",
             f"#define {up}_INPUT_SIZE {functions[0].nb_inputs}", f"#define {up}_OUTPUT_SIZE {functions[-1].nb_outputs}", "",
             "#ifdef __cplusplus", f"#define {up}_RESTRICT __restrict", "#else", f"#define {up}_RESTRICT restrict", "#endif", "",
             f"static inline float {name}_relu(float s)", "{", "    return s < 0.0f ? 0.0f : s;", "}", ""]
    for f in functions:
        for array, values in f.weights.items():
            lines += _write_array(array, values)
        lines += [f"/* {f.title} */", f"static inline void {f.name}(const float *{up}_RESTRICT u, float *{up}_RESTRICT y)", "{", *_indent(f.lines), "}", ""]
    buffers = [*[f"h{i % 2}" for i in range(len(functions) - 1)], "scores"]
    lines += [f"static inline void {name}_scores(const float *x, float *scores)", "{",
              *[f"    float h{i}[{size}];" for i, size in enumerate(sizes) if size],
              *[f"    {f.name}({source}, {target});" for f, source, target in zip(functions, ["x", *buffers], buffers)], "}", "",
              f"static inline int {name}_classify(const float *x)", "{", f"    float scores[{functions[-1].nb_outputs}];", "    int best = 0;",
              f"    {name}_scores(x, scores);", f"    for (int i = 1; i < {functions[-1].nb_outputs}; i++)",
              "        if (scores[i] > scores[best])", "            best = i;", "    return best;", "}", ""]
    return "\n".join(lines) + tests + f"#undef {up}_RESTRICT\n#endif\n"
