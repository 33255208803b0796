"""A trained net as one C header without dependencies, for microcontrollers.

    export_to_c(net, "net.h", sample_inputs=X_test[:3])

Weights are constants, which lie in flash, and what is computed lies on the stack. Every layer is a C function made of
products with matrices:

    dense layers    y = W u + bias, eight rows at a time
    rank-1 layers   s = u v1, y = v2 s + bias
    SSS layers      the recursion of semiseparablemodels.py. Neighbouring stages are merged, exactly, into those with
                    the fewest entries: a stage of m inputs and outputs has (m + 2 d)² - 2 d², so that per input
                    m = sqrt(2) d is best, half of what m = 1 takes if d = 5. Of few neurons or with large states the
                    best is a single stage, the dense matrix.
    convolutions    together with the ReLU and the pooling behind them, a pooled output at a time

Weights are in the order in which they are read, so that one pointer passes over them: row by row, the bias of a row
before it; of rows that are computed together, column by column.
"""

import copy
import os
import re
import textwrap
from collections import namedtuple
from functools import reduce
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from checks import check_finite, check_positive_integers, check_writable
from model_training import get_nb_model_parameters
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer
from standardmodels import ConvFeatureExtractorBase, ConvNet, FeedForwardNet

LONGEST_ROW = 24  # entries of a matrix's row that is written out as a sum; with those, its inputs fit into 32 registers
LARGEST_MATRIX = 24  # entries of a matrix of which all rows are written out
ROWS_AT_A_TIME, COLUMNS_AT_A_TIME = 8, 2  # of larger matrices: an input that is read serves all these rows
RESERVED_WORDS = set("""
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class compl
    concept const const_cast consteval constexpr constinit continue co_await co_return co_yield decltype default delete
    do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable
    namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast
    requires restrict return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile
    wchar_t while xor xor_eq""".split())


def export_to_c(module, path, name="net", sample_inputs=None):
    """Write a net as a C99 header, which is C++ as well. Softmax is left out: the largest score stays the largest.

    The header of the name "net" defines

        NET_INPUT_SIZE, NET_OUTPUT_SIZE
        void net_scores(const float *x, float *scores)    what softmax is applied to, of a single layer its output
        int net_classify(const float *x)                  the most probable class
        float net_test(void)                              the largest absolute difference from PyTorch's scores of the
                                                          sample inputs; only if NET_TEST is defined

    Images are channels-first. Headers for the same file need names that differ in more than upper and lower case. The
    same net gives the same file.

    :param module: a net of the benchmark, or an nn.Linear, SemiseparableLayer or Rank1Layer; its weights, of any
        floating-point dtype, are rounded to float32
    :param path: of the header, which appears complete or not at all and replaces an older one
    :param name: C identifier with which all names begin
    :param sample_inputs: (batch, inputs) or (batch, channels, height, width); None: there is no net_test. PyTorch's
        scores are computed in float64, from the weights rounded to float32.
    :raises ValueError: another module, a name that is no C identifier, weights, samples or scores that are NaN, infinite
        or beyond float32, samples of another shape
    :raises OSError: the file cannot be written
    """
    path = Path(path)
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or name in RESERVED_WORDS:
        raise ValueError(f"name must be a C identifier that begins with a letter and is no keyword, got {name!r}")
    check_writable(path)
    functions = _write_functions(module, name)
    text = "\n".join([*_write_header(module, name, functions),
                      *([] if sample_inputs is None else _write_test(module, name, functions, sample_inputs)),
                      f"#undef {name.upper()}_RESTRICT", "#endif", ""])
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# ---- from modules to C functions ----

class _Function(NamedTuple):
    """A C function void name(const float *u, float *y) that computes a layer."""
    where: str  # the submodule
    name: str
    title: str
    nb_inputs: int
    nb_outputs: int
    nb_multiply_adds: int
    weights: dict  # {name in C: floats}
    lines: list  # what stands in the braces
    nb_scratch: int = 0  # floats on the stack


def _write_functions(module, name):
    """[_Function] of a net or a layer, in the order in which they are called."""
    functions, net, where = [], module, ""
    if _get_kind(module, where, [*_WRITERS, FeedForwardNet, ConvNet]) is ConvNet:
        functions, net, where = _write_feature_extractor(module.feature_extractor, name), module.vector_net, "vector_net"
    layers = {where: net}
    if _get_kind(net, where, [*_WRITERS, FeedForwardNet]) is FeedForwardNet:
        names = ["input_layer", *(f"hidden_layers.{i}" for i in range(len(net.hidden_layers))), "output_layer"]
        layers = {f"{where}.{layer}".lstrip("."): net.get_submodule(layer) for layer in names}
    for where, layer in layers.items():
        kind = _get_kind(layer, where, _WRITERS)
        _check_parameters(layer, where)
        c_name = f"{name}_{where.replace('.', '_') or 'single_layer'}"
        finish = "{}" if where == [*layers][-1] else f"{name}_relu({{}})"
        functions.append(_Function(where, c_name, *_WRITERS[kind](layer, c_name, finish)))
    for function, following in pairwise(functions):
        if function.nb_outputs != following.nb_inputs:
            raise ValueError(f"{function.where} has {function.nb_outputs} outputs, but {following.where} takes "
                             f"{following.nb_inputs} inputs")
    return functions


def _get_kind(module, where, kinds):
    """Of which of the classes a module is. One with a forward of its own is of none: that may compute anything."""
    for kind in kinds:
        if isinstance(module, kind) and getattr(module.forward, "__func__", None) is kind.forward:
            return kind
    raise ValueError(f"export_to_c cannot write {type(module).__name__}{f' ({where})' if where else ''}, only "
                     f"{', '.join(kind.__name__ for kind in kinds)} with their own forward")


def _check_parameters(module, where):
    for parameter_name, parameter in module.named_parameters():
        check_finite(**{f"{where}.{parameter_name}".lstrip("."): parameter})


def _to_array(tensor):
    return None if tensor is None else tensor.detach().cpu().double().numpy()


def _write_linear(layer, name, finish):
    W, bias = _to_array(layer.weight), _to_array(layer.bias)
    nb_outputs, nb_inputs = W.shape
    check_positive_integers(in_features=nb_inputs, out_features=nb_outputs)
    product = _Product("y", W, {"u": nb_inputs}, bias, finish=finish, comment="y = W u + bias")
    return ("Linear", nb_inputs, nb_outputs, W.size, {f"{name}_weights": product.get_weights()},
            [f"const float *w = {name}_weights;", *product.get_lines()])


def _write_rank1(layer, name, finish):
    v1, v2, bias = _to_array(layer.v1), _to_array(layer.v2), _to_array(layer.bias)
    products = (_Product("s", v1.T, {"u": v1.size}, comment="s = u v1"),
                _Product("y", v2.T, {"s": 1}, bias, finish=finish, comment="y = s v2 + bias"))
    return ("Rank1Layer", v1.size, v2.size, v1.size + v2.size,
            {f"{name}_weights": np.concatenate([product.get_weights() for product in products])},
            [f"const float *w = {name}_weights;", "float s[1];",
             *(line for product in products for line in product.get_lines())], 1)


# ---- SSS layers ----

_Stage = namedtuple("_Stage", "A B C D E F G")  # the matrices of a stage, without padding


def _write_semiseparable(layer, name, finish):
    stages = _get_merged_stages(layer)
    d = max(len(matrix) for stage in stages for matrix in (stage.A, stage.E))
    biases = [None] * len(stages)
    if layer.bias is not None:
        biases = np.split(_to_array(layer.bias), np.cumsum([len(stage.D) for stage in stages])[:-1])
    causal, anticausal = [], []  # of each stage: (lines, weights)
    for (A, B, C, D, E, F, G), bias in zip(stages, biases):
        (p, m), x, z = D.shape, {"x": A.shape[1]}, {"z": E.shape[1]}
        y = _Product("y", np.hstack((C, D)), {**x, "u": m}, bias, finish="{}" if z["z"] else finish,
                     comment="y_k = C_k x_k + D_k u_k + bias_k")
        x_next = _Product("next", np.hstack((A, B)), {**x, "u": m}, comment="x_{k+1} = A_k x_k + B_k u_k")
        causal.append(([*y.get_lines(), *x_next.get_lines(), *_copy("next", "x", len(A)), f"u += {m};", f"y += {p};"],
                       [y.get_weights(), x_next.get_weights()]))
        y = _Product("y", G, z, add=True, finish=finish, comment="y_k += G_k z_k")
        z_next = _Product("next", np.hstack((E, F)), {**z, "u": m}, comment="z_{k-1} = E_k z_k + F_k u_k")
        anticausal.append(([f"u -= {m};", f"y -= {p};", *y.get_lines(), *z_next.get_lines(), *_copy("next", "z", len(E))],
                           [y.get_weights(), z_next.get_weights()]))
    lines, weights = [f"float x[{d}], z[{d}], next[{d}];"] * (d > 0), {}
    for direction, parts in (("causal", causal), ("anticausal", anticausal[::-1])):
        if direction == "causal" or d:
            array = f"{name}_{direction}"
            weights[array] = np.concatenate([values for _, stage_weights in parts for values in stage_weights])
            lines.append(f"{'const float *' if direction == 'causal' else ''}w = {array};")
            for stage_lines, run in groupby(stage_lines for stage_lines, _ in parts):  # equal ones share a loop
                nb_stages = len([*run])
                lines += stage_lines if nb_stages == 1 else _loop("k", nb_stages, stage_lines)
    nb_multiply_adds = sum(matrix.size for stage in stages for matrix in stage)
    title = (f"SemiseparableLayer with states of up to {layer.statespace_dim} entries; {len(stages)} stages of up to "
             f"{stages[0].D.shape[1]} inputs, merged from {layer.nb_states}")
    return title, layer.input_size, layer.output_size, nb_multiply_adds, weights, lines, 3 * d


def _get_merged_stages(layer):
    """[_Stage] in which so many neighbours are merged that they have the fewest entries."""
    K, d, e = layer.nb_states, layer.state_dims, layer.anticausal_state_dims
    inputs, outputs = ([0, *accumulate(dims)] for dims in (layer.input_dims, layer.output_dims))  # before stage k

    def get_nb_entries(nb_merged):
        bounds = pairwise([*range(0, K, nb_merged), K])  # the merged stages i .. j - 1
        return sum((p + d[j]) * (m + d[i]) + (p + e[i]) * (m + e[j]) - p * m
                   for i, j, m, p in ((i, j, inputs[j] - inputs[i], outputs[j] - outputs[i]) for i, j in bounds))

    nb_merged = min(range(K, 0, -1), key=get_nb_entries)
    parameters = [(_to_array(getattr(layer, name)), layer.stage_shapes[name]) for name in _Stage._fields]
    stages = [_Stage(*(values[k, :shapes[k][0], :shapes[k][1]] for values, shapes in parameters)) for k in range(K)]
    return [reduce(_merge, stages[k:k + nb_merged]) for k in range(0, K, nb_merged)]


def _merge(first, second):
    """Two neighbouring stages as one with the inputs and outputs of both."""
    A1, B1, C1, D1, E1, F1, G1 = first
    A2, B2, C2, D2, E2, F2, G2 = second
    return _Stage(A=A2 @ A1, B=np.hstack((A2 @ B1, B2)), C=np.vstack((C1, C2 @ A1)),
                  D=np.block([[D1, G1 @ F2], [C2 @ B1, D2]]),
                  E=E1 @ E2, F=np.hstack((F1, E1 @ F2)), G=np.vstack((G1 @ E2, G2)))


def _copy(source, target, size):
    if size > 4:
        return _loop("i", size, [f"{target}[i] = {source}[i];"])
    return [f"{target}[{i}] = {source}[{i}];" for i in range(size)]  # of constant places, which registers can hold


_WRITERS = {nn.Linear: _write_linear, SemiseparableLayer: _write_semiseparable, Rank1Layer: _write_rank1}


# ---- images ----

def _write_feature_extractor(extractor, name):
    """[_Function] of twice Conv2d, ReLU and AvgPool2d, each three in one."""
    where = "feature_extractor"
    _get_kind(extractor, where, [ConvFeatureExtractorBase])
    channels, height, width = shape = extractor.image_shape
    layers = extractor.layers
    if repr(layers) != repr(ConvFeatureExtractorBase(torch.empty(shape, device="meta"), device="meta").layers):
        raise ValueError(f"export_to_c cannot write {where}, whose layers have been replaced")
    _check_parameters(extractor, where)
    functions = []
    for i in (0, 3):
        conv, c_name = layers[i], f"{name}_{where}_{i}"
        W, bias, stride = _to_array(conv.weight), _to_array(conv.bias), conv.stride[0]
        nb_outputs, _, size, _ = W.shape
        nb_rows, nb_columns = (((side - size) // stride + 1) // 2 for side in (height, width))
        sums = [" + ".join([f"s{r} = s{r}", *(f"w[{b}] * row[{stride * (width * (r // 2) + r % 2) + b}]"
                                              for b in range(size))]) + ";" for r in range(4)]
        lines = [f"for (int channel = 0; channel < {nb_outputs}; channel++) {{",
                 f"    for (int i = 0; i < {nb_rows}; i++) {{",
                 f"        for (int j = 0; j < {nb_columns}; j++) {{",
                 "            /* the four neighbours whose mean is one output */",
                 f"            const float *w = {c_name}_weights + {W[0].size + 1} * channel;",
                 f"            const float *row = u + {2 * stride * width} * i + {2 * stride} * j;",
                 "            float s0 = w[0], s1 = w[0], s2 = w[0], s3 = w[0];",
                 "            w += 1;",
                 *_indent(_loop("c", channels, [
                     *_loop("a", size, [*sums, f"w += {size};", f"row += {width};"]),
                     f"row += {(height - size) * width};"]), 3),
                 f"            *y++ = 0.25f * ({' + '.join(f'{name}_relu(s{r})' for r in range(4))});",
                 "        }", "    }", "}"]
        functions.append(_Function(
            f"{where}.layers.{i}", c_name, "Conv2d, ReLU, AvgPool2d", channels * height * width,
            nb_outputs * nb_rows * nb_columns, 4 * nb_rows * nb_columns * W.size,
            {f"{c_name}_weights": np.hstack((bias[:, None], W.reshape(nb_outputs, -1))).ravel()}, lines))
        channels, height, width = nb_outputs, nb_rows, nb_columns
    return functions


# ---- products with matrices ----

class _Product(NamedTuple):
    """C for target = finish(matrix [operands] + bias), or finish(target + matrix [operands]) with add=True.

    The C pointer w is at the weights before, and behind them afterwards.
    """
    target: str
    matrix: np.ndarray
    operands: dict  # {name of the vector in C: entries}
    bias: np.ndarray = None
    add: bool = False
    finish: str = "{}"  # C expression of what is made of an output
    comment: str = ""

    def get_weights(self):
        """Floats in the order in which the lines read them."""
        weights = self.matrix if self.bias is None else np.hstack((self.bias[:, None], self.matrix))
        if weights.shape[1] <= LONGEST_ROW or not len(weights):
            return weights.ravel()
        return np.concatenate([weights[i:i + ROWS_AT_A_TIME].T.ravel() for i in range(0, len(weights), ROWS_AT_A_TIME)])

    def get_lines(self):
        nb_rows, nb_weights = len(self.matrix), self.matrix.shape[1] + (self.bias is not None)
        if not self.matrix.size:
            return []
        comment = f"/* {self.comment} */"
        if nb_weights > LONGEST_ROW:
            nb_left = nb_rows % ROWS_AT_A_TIME
            return [comment, *_loop("i", nb_rows - nb_left, self._write_rows("i", ROWS_AT_A_TIME), ROWS_AT_A_TIME),
                    *(["{", *_indent(self._write_rows(nb_rows - nb_left, nb_left)), "}"] if nb_left else [])]
        if nb_rows == 1 or nb_rows * nb_weights <= LARGEST_MATRIX:
            rows = [self._write_row(i, i * nb_weights) for i in range(nb_rows)]
            return [comment, *rows, f"w += {nb_rows * nb_weights};"]
        return [comment, *_loop("i", nb_rows, [self._write_row("i", 0), f"w += {nb_weights};"])]

    def _write_row(self, i, offset):
        """Row i as one sum."""
        factors = [""] * (self.bias is not None) + [
            f" * {vector}[{j}]" for vector, size in self.operands.items() for j in range(size)]
        terms = [f"{self.target}[{i}]"] * self.add + [f"w[{offset + j}]{factor}" for j, factor in enumerate(factors)]
        return f"{self.target}[{i}] = {self.finish.format(' + '.join(terms))};"

    def _write_rows(self, i, nb_rows):
        """Rows i, i + 1, ... in loops over their columns."""
        places = [f"{self.target}[{_add(i, r)}]" for r in range(nb_rows)]
        starts = places if self.add else ["0.0f" if self.bias is None else f"w[{r}]" for r in range(nb_rows)]
        lines = ["float " + ", ".join(f"s{r} = {start}" for r, start in enumerate(starts)) + ";"]
        if self.bias is not None:
            lines.append(f"w += {nb_rows};")
        for vector, size in self.operands.items():
            def columns(j, nb_columns):
                return [" + ".join([f"s{r} = s{r}", *(f"w[{r + nb_rows * c}] * {vector}[{_add(j, c)}]"
                                                      for c in range(nb_columns))]) + ";"
                        for r in range(nb_rows)] + [f"w += {nb_rows * nb_columns};"]
            nb_left = size % COLUMNS_AT_A_TIME
            lines += _loop("j", size - nb_left, columns("j", COLUMNS_AT_A_TIME), COLUMNS_AT_A_TIME)
            lines += columns(size - nb_left, nb_left) if nb_left else []
        return lines + [f"{place} = {self.finish.format(f's{r}')};" for r, place in enumerate(places)]


def _add(place, offset):
    return place + offset if isinstance(place, int) else f"{place} + {offset}" if offset else place


def _loop(index, end, lines, step=1):
    """The lines for index = 0, step, 2 step, ... below end."""
    if end == 0:
        return []
    advance = f"{index}++" if step == 1 else f"{index} += {step}"
    return [f"for (int {index} = 0; {index} < {end}; {advance}) {{", *_indent(lines), "}"]


def _indent(lines, levels=1):
    return ["    " * levels + line for line in lines]


# ---- the header ----

def _write_array(name, values):
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has entries that are NaN, infinite or beyond float32")
    # Nine digits tell all float32 numbers apart.
    numbers = [f"{number}f" if set(number) & {".", "e"} else f"{number}.0f" for number in map("{:.9g}".format, values.tolist())]
    return [f"static const float {name}[{len(numbers)}] = {{",
            *_indent(", ".join(numbers[i:i + 8]) + "," for i in range(0, len(numbers), 8)), "};"]


def _write_header(module, name, functions):
    """Lines of everything but net_test and the end."""
    first, last, NAME = functions[0], functions[-1], name.upper()
    # The layers in turn write into one of two arrays and read from the other.
    sizes = [max([function.nb_outputs for function in functions[i:-1:2]], default=0) for i in (0, 1)]
    nb_weights = sum(values.size for function in functions for values in function.weights.values())
    nb_scratch = sum(sizes) + max(function.nb_scratch for function in functions)
    lines = [f"/* {name}: {type(module).__name__}", ""]
    lines += [f"     {function.where or 'layer'}: {function.title}, {function.nb_inputs} to {function.nb_outputs}, "
              f"{function.nb_multiply_adds} multiply-adds" for function in functions]
    lines += ["", f"   {get_nb_model_parameters(module)} parameters, {sum(f.nb_multiply_adds for f in functions)} multiply-adds a call, "
              f"{4 * nb_weights} bytes of weights, {4 * nb_scratch} bytes of arrays on the stack.",
              f"   {name}_scores writes what the softmax is applied to, or a single layer's output; x and scores must not overlap. {name}_classify returns the most probable class. Images are channels-first.",
              f"   Made by export_to_c with PyTorch {torch.__version__} and NumPy {np.__version__}. */", "",
              f"#ifndef {NAME}_H", f"#define {NAME}_H", "",
              f"#define {NAME}_INPUT_SIZE {first.nb_inputs}", f"#define {NAME}_OUTPUT_SIZE {last.nb_outputs}", "",
              "#ifdef __cplusplus", f"#define {NAME}_RESTRICT __restrict", "#else", f"#define {NAME}_RESTRICT restrict",
              "#endif", "",
              f"static inline float {name}_relu(float s)", "{", "    return s < 0.0f ? 0.0f : s;", "}", ""]
    for function in functions:
        for array, values in function.weights.items():
            lines += _write_array(array, values)
        lines += ["", f"/* {function.where}: {function.title} */",
                  f"static inline void {function.name}(const float *{NAME}_RESTRICT u, float *{NAME}_RESTRICT y)", "{",
                  *_indent(function.lines), "}", ""]
    targets = [*(f"h{i % 2}" for i in range(len(functions) - 1)), "scores"]
    lines += [f"static inline void {name}_scores(const float *x, float *scores)", "{",
              *(f"    float h{i}[{size}];" for i, size in enumerate(sizes) if size),
              *(f"    {function.name}({source}, {target});"
                for function, source, target in zip(functions, ["x", *targets], targets)), "}", ""]
    lines += f"""\
static inline int {name}_classify(const float *x)
{{
    float scores[{NAME}_OUTPUT_SIZE];
    int best = 0;
    {name}_scores(x, scores);
    for (int i = 1; i < {NAME}_OUTPUT_SIZE; i++)
        if (scores[i] > scores[best])
            best = i;
    return best;
}}
""".split("\n")
    return [part for line in lines for part in _wrap(line)]


def _wrap(line):
    indentation = " " * (len(line) - len(line.lstrip()) + 8)
    return textwrap.wrap(line, 116, subsequent_indent=indentation, break_long_words=False) or [""]


def _write_test(module, name, functions, sample_inputs):
    """Lines of net_test."""
    shape = module.feature_extractor.image_shape if isinstance(module, ConvNet) else (functions[0].nb_inputs,)
    X = torch.as_tensor(sample_inputs).detach().cpu()
    if X.dim() != len(shape) + 1 or tuple(X.shape[1:]) != shape or len(X) == 0:
        raise ValueError(f"sample_inputs must have shape (batch, {', '.join(map(str, shape))}), got {tuple(X.shape)}")
    check_finite(sample_inputs=X)
    X = X.float()
    exact, scores = copy.deepcopy(module).cpu().float().double(), []
    exact.get_submodule(functions[-1].where).register_forward_hook(lambda module, inputs, output: scores.append(output))
    with torch.no_grad():
        exact(X.double())
    NAME = name.upper()
    return f"""\
#ifdef {NAME}_TEST
static inline float {name}_test(void)
{{
    INPUTS
    SCORES
    float largest = 0.0f, actual[{NAME}_OUTPUT_SIZE];
    for (int i = 0; i < {len(X)}; i++) {{
        {name}_scores(inputs + i * {NAME}_INPUT_SIZE, actual);
        for (int j = 0; j < {NAME}_OUTPUT_SIZE; j++) {{
            float difference = actual[j] - scores[i * {NAME}_OUTPUT_SIZE + j];
            difference = difference < 0.0f ? -difference : difference;
            if (difference > largest || difference != difference) /* NaN stays the largest */
                largest = difference;
        }}
    }}
    return largest;
}}
#endif
""".replace("    INPUTS", "\n".join(_indent(_write_array("inputs", X.flatten().numpy())))).replace(
    "    SCORES", "\n".join(_indent(_write_array("scores", scores[0].flatten().numpy())))).split("\n")
