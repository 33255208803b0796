"""A trained net as one C header without dependencies, for microcontrollers.

    export_to_c(net, "net.h", sample_inputs=X_test[:3])

Weights are constants, which lie in flash; what is computed lies on the stack. Every layer becomes a C function made of
products with matrices:

    dense layers    y = W u + bias; of more than about 24 inputs eight rows at a time
    rank-1 layers   s = u v1, y = s v2 + bias
    SSS layers      the recursion of semiseparablemodels.py over stages of several inputs
    convolutions    with the ReLU and the pooling behind them, a pooled output at a time

Stages of an SSS layer are merged, exactly, into those that have the fewest entries together: a stage with m inputs, m
outputs and states of d entries has (m + 2 d)² - 2 d², which is least per input at m = sqrt(2) d, for d = 5 half of what
it is at m = 1. For few neurons or large states a single stage is best, the dense matrix.
"""

import copy
import re
from collections import namedtuple
from functools import reduce
from itertools import accumulate, groupby, pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.weight_norm import WeightNorm

from benchmark_results import written_beside
from checks import check_finite
from microcontroller.c_code import CFunction, join, write_copy, write_header, write_loop, write_product, write_test
from model_training import get_nb_model_parameters
from monarchmodels import MonarchLayer
from rank1models import Rank1Layer
from semiseparablemodels import SemiseparableLayer
from standardmodels import ConvFeatureExtractorBase, ConvNet, FeedForwardNet


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

    :param module: a net of the benchmark, or an nn.Linear or the layer of a family; its weights, of any
        floating-point dtype, are rounded to float32
    :param path: of the header, which appears complete or not at all and replaces an older one
    :param name: C identifier with which all names begin, not ending in _test or _vector_net, as "net" has such
    :param sample_inputs: (batch, inputs) or (batch, channels, height, width); None: there is no net_test. PyTorch's
        scores are computed in float64, from the weights rounded to float32.
    :raises ValueError: another module, or a forward hook on one, a name that is no C identifier, samples of another
        shape, weights, samples or scores that are complex, NaN, infinite or beyond float32
    :raises OSError: the file cannot be written
    """
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*(?<!_test)(?<!_vector_net)", name):
        raise ValueError(f"name must be a C identifier that begins with a letter and does not end in _test or "
                         f"_vector_net, got {name!r}")
    _recompute_weights(module)
    functions = _write_functions(module, name)
    test = ""
    if sample_inputs is not None:
        shape = module.feature_extractor.image_shape if isinstance(module, ConvNet) else (functions[0].nb_inputs,)
        X = torch.as_tensor(sample_inputs).detach().cpu()
        if tuple(X.shape[1:]) != shape or len(X) == 0:
            raise ValueError(f"sample_inputs must have shape (batch, {', '.join(map(str, shape))}), "
                             f"got {tuple(X.shape)}")
        check_finite(sample_inputs=X)
        X, exact = X.float().double(), copy.deepcopy(module).cpu().float().double()
        with torch.no_grad():
            test = write_test(name, X.flatten(1).numpy(), getattr(exact, "scores", exact)(X).numpy())
    text = write_header(name, type(module).__name__, get_nb_model_parameters(module),
                        f"PyTorch {torch.__version__} and NumPy {np.__version__}", functions, test)
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


# ---- nets ----

@torch.no_grad()  # a tensor with a history cannot be copied
def _recompute_weights(module):
    """Weights that prune or weight_norm derive from parameters are those of the last forward pass: make them those of
    the next one. Other hooks may compute anything."""
    for where, submodule in module.named_modules():
        for hook in (*submodule._forward_pre_hooks.values(), *submodule._forward_hooks.values()):
            if not isinstance(hook, (prune.BasePruningMethod, WeightNorm)):
                raise ValueError(f"export_to_c cannot write the forward hook {getattr(hook, '__qualname__', hook)} of "
                                 f"{where or type(module).__name__}; remove it, or put what it does into the weights")
            hook(submodule, ())


def _write_functions(module, name):
    """[CFunction] of a net or a layer, in the order in which they are called."""
    functions, net, where = [], module, ""
    kind = _get_kind(module, where, [*_WRITERS, FeedForwardNet, ConvNet])
    check_finite(**dict(module.named_parameters()))
    if kind is ConvNet:
        functions = _write_feature_extractor(module.feature_extractor, name)
        net, where = module.vector_net, "vector_net"
    layers = {where: net}
    if _get_kind(net, where, [*_WRITERS, FeedForwardNet]) is FeedForwardNet:
        names = ["input_layer", *(f"hidden_layers.{i}" for i in range(len(net.hidden_layers))), "output_layer"]
        layers = {f"{where}.{layer}".lstrip("."): net.get_submodule(layer) for layer in names}
    for where, layer in layers.items():
        write = _WRITERS[_get_kind(layer, where, _WRITERS)]
        c_name = f"{name}_{where.replace('.', '_') or 'single_layer'}"
        finish = "{}" if where == [*layers][-1] else f"{name}_relu({{}})"
        functions.append(CFunction(where, c_name, *write(layer, c_name, finish)))
    for function, following in pairwise(functions):
        if function.nb_outputs != following.nb_inputs:
            raise ValueError(f"{function.where} has {function.nb_outputs} outputs, but {following.where} takes "
                             f"{following.nb_inputs} inputs")
    return functions


def _get_kind(module, where, kinds):
    """Of which of the classes a module is. One with a forward of its own is of none: that may compute anything."""
    for kind in kinds:
        methods = [name for name in ("forward", "scores") if hasattr(kind, name)]
        if isinstance(module, kind) and all(getattr(getattr(module, name), "__func__", None) is getattr(kind, name)
                                            for name in methods):
            return kind
    raise ValueError(f"export_to_c cannot write {type(module).__name__}{f' ({where})' if where else ''}, only "
                     f"{', '.join(kind.__name__ for kind in kinds)}, and no subclass with another forward")


def _get_arrays(layer, *names):
    """The named parameters in float64, None for a bias that is not there."""
    parameters = [getattr(layer, name) for name in names]
    return [parameter if parameter is None else parameter.detach().cpu().double().numpy() for parameter in parameters]


# ---- layers: (description, inputs, outputs, multiply-adds, arrays, lines, scratch) as in CFunction ----

def _write_linear(layer, name, finish):
    W, bias = _get_arrays(layer, "weight", "bias")
    nb_outputs, nb_inputs = W.shape
    weights, lines = write_product("y = W u", "y", W, {"u": nb_inputs}, bias, finish=finish)
    return "Linear", nb_inputs, nb_outputs, W.size, {f"{name}_weights": weights}, [f"w = {name}_weights;", *lines]


def _write_rank1(layer, name, finish):
    v1, v2, bias = _get_arrays(layer, "v1", "v2", "bias")
    (nb_inputs, rank), nb_outputs = v1.shape, v2.shape[1]
    weights, lines = join(write_product("s = u v1", "s", v1.T, {"u": nb_inputs}),
                          write_product("y = s v2", "y", v2.T, {"s": rank}, bias, finish=finish))
    return ("Rank1Layer", nb_inputs, nb_outputs, v1.size + v2.size, {f"{name}_weights": weights},
            [f"float s[{rank}];", f"w = {name}_weights;", *lines], rank)


def _write_monarch(layer, name, finish):
    R, L, bias = _get_arrays(layer, "R", "L", "bias")
    b, q, p = R.shape
    biases = [None] * q if bias is None else bias.reshape(q, b)
    first = [write_product("t = R_k u_k", "t", R_k, {"u": p}) for R_k in R]
    second = [write_product("y_k = L_k s_k", "y", L_k, {"s": b}, bias_k, finish=finish)
              for L_k, bias_k in zip(L, biases)]

    def write_first(k, _):  # and the transposition of the grid
        return [*first[0][1], *write_loop("i", q, 1, lambda i, _: [f"v[{b} * {i} + {k}] = t[{i}];"]), f"u += {p};"]

    lines = [f"float t[{q}], v[{b * q}];", "const float *s = v;", f"w = {name}_weights;",
             *write_loop("k", b, 1, write_first),
             *write_loop("k", q, 1, lambda k, _: [*second[0][1], f"s += {b};", f"y += {b};"])]
    return ("MonarchLayer", b * p, b * q, R.size + L.size, {f"{name}_weights": join(*first, *second)[0]}, lines,
            q + b * q)


def _write_semiseparable(layer, name, finish):
    stages = _get_merged_stages(layer)
    d = max(len(matrix) for stage in stages for matrix in (stage.A, stage.E))
    bias, = _get_arrays(layer, "bias")
    causal, anticausal = [], []  # (weights, lines) of each stage
    for A, B, C, D, E, F, G in stages:
        (p, m), x, z = D.shape, {"x": A.shape[1]}, {"z": E.shape[1]}
        bias_k, bias = (None, None) if bias is None else np.split(bias, [p])
        causal.append(join(
            write_product("y_k = C_k x_k + D_k u_k", "y", np.hstack((C, D)), {**x, "u": m}, bias_k,
                          finish="{}" if G.size else finish),
            write_product("x_{k+1} = A_k x_k + B_k u_k", "next", np.hstack((A, B)), {**x, "u": m}),
            ([], [*write_copy("next", "x", len(A)), f"u += {m};", f"y += {p};"])))
        anticausal.append(join(
            ([], [f"u -= {m};", f"y -= {p};"]),
            write_product("y_k += G_k z_k", "y", G, z, add=True, finish=finish),
            write_product("z_{k-1} = E_k z_k + F_k u_k", "next", np.hstack((E, F)), {**z, "u": m}),
            ([], write_copy("next", "z", len(E)))))
    arrays, lines = {}, [f"float x[{d}], z[{d}], next[{d}];"] * (d > 0)
    directions = {"causal": causal, "anticausal": anticausal[::-1]} if d else {"causal": causal}
    for direction, pieces in directions.items():
        arrays[f"{name}_{direction}"] = join(*pieces)[0]
        lines.append(f"w = {name}_{direction};")
        for stage_lines, run in groupby(piece[1] for piece in pieces):  # stages of the same sizes share a loop
            lines += write_loop("k", len([*run]), 1, lambda k, nb: stage_lines)
    return (f"SemiseparableLayer, states of up to {layer.statespace_dim}, {layer.nb_states} stages merged into "
            f"{len(stages)} of up to {stages[0].D.shape[1]} inputs", layer.input_size, layer.output_size,
            sum(matrix.size for stage in stages for matrix in stage), arrays, lines, 3 * d)


_Stage = namedtuple("_Stage", "A B C D E F G")  # the matrices of a stage, without padding


def _get_merged_stages(layer):
    """[_Stage] of which so many neighbours are merged that they have the fewest entries."""
    K, d, e = layer.nb_states, layer.state_dims, layer.anticausal_state_dims
    inputs, outputs = ([0, *accumulate(dims)] for dims in (layer.input_dims, layer.output_dims))  # before stage k

    def get_bounds(nb_merged):
        """Pairs i, j of the merged stages i .. j - 1; the first ones, which no state enters, may be some more."""
        return pairwise([0, *range(nb_merged + K % nb_merged, K, nb_merged), K])

    def get_nb_entries(nb_merged):
        return sum((p + d[j]) * (m + d[i]) + (p + e[i]) * (m + e[j]) - p * m for i, j, m, p in (
            (i, j, inputs[j] - inputs[i], outputs[j] - outputs[i]) for i, j in get_bounds(nb_merged)))

    nb_merged = min(range(K, 0, -1), key=get_nb_entries)
    parameters, shapes = dict(zip(_Stage._fields, _get_arrays(layer, *_Stage._fields))), layer.stage_shapes

    def get_matrix(name, k):
        rows, columns = shapes[name][k]
        return parameters[name][k, :rows, :columns]

    stages = [_Stage(*(get_matrix(name, k) for name in _Stage._fields)) for k in range(K)]
    return [reduce(_merge, stages[i:j]) for i, j in get_bounds(nb_merged)]


def _merge(first, second):
    """Two neighbouring stages as one, with the inputs and outputs of both."""
    A1, B1, C1, D1, E1, F1, G1 = first
    A2, B2, C2, D2, E2, F2, G2 = second
    return _Stage(A=A2 @ A1, B=np.hstack((A2 @ B1, B2)), C=np.vstack((C1, C2 @ A1)),
                  D=np.block([[D1, G1 @ F2], [C2 @ B1, D2]]),
                  E=E1 @ E2, F=np.hstack((F1, E1 @ F2)), G=np.vstack((G1 @ E2, G2)))


_WRITERS = {nn.Linear: _write_linear, SemiseparableLayer: _write_semiseparable, Rank1Layer: _write_rank1,
            MonarchLayer: _write_monarch}


def _write_feature_extractor(extractor, name):
    """[CFunction] of the two times Conv2d, ReLU and AvgPool2d."""
    where = "feature_extractor"
    _get_kind(extractor, where, [ConvFeatureExtractorBase])
    channels, height, width = shape = extractor.image_shape
    expected = ConvFeatureExtractorBase(torch.empty(shape, device="meta"), device="meta")
    if repr(extractor.layers) != repr(expected.layers):
        raise ValueError(f"export_to_c cannot write a {where} whose layers have been replaced")
    functions = []
    for i in (0, 3):
        W, bias = _get_arrays(extractor.layers[i], "weight", "bias")
        nb_outputs, _, size, _ = W.shape
        stride, c_name = extractor.layers[i].stride[0], f"{name}_{where}_{i}"
        nb_rows, nb_columns = (((side - size) // stride + 1) // 2 for side in (height, width))
        sums = "\n                    ".join(" + ".join([f"s{r} = s{r}", *(
            f"w[{b}] * row[{stride * (width * (r // 2) + r % 2) + b}]" for b in range(size))]) + ";" for r in range(4))
        lines = f"""\
for (int channel = 0; channel < {nb_outputs}; channel++) {{
    for (int i = 0; i < {nb_rows}; i++) {{
        for (int j = 0; j < {nb_columns}; j++) {{
            /* the four neighbours whose mean is one output */
            float s0, s1, s2, s3;
            w = {c_name}_weights + {1 + W[0].size} * channel;
            s0 = s1 = s2 = s3 = w[0];
            w += 1;
            for (int c = 0; c < {channels}; c++) {{
                for (int a = 0; a < {size}; a++) {{
                    const float *row = u + {height * width} * c + {width} * ({2 * stride} * i + a) + {2 * stride} * j;
                    {sums}
                    w += {size};
                }}
            }}
            *y++ = 0.25f * ({" + ".join(f"{name}_relu(s{r})" for r in range(4))});
        }}
    }}
}}""".split("\n")
        functions.append(CFunction(
            f"{where}.layers.{i}", c_name, "Conv2d, ReLU, AvgPool2d", channels * height * width,
            nb_outputs * nb_rows * nb_columns, 4 * nb_rows * nb_columns * W.size,
            {f"{c_name}_weights": np.hstack((bias[:, None], W.reshape(nb_outputs, -1))).ravel()}, lines))
        channels, height, width = nb_outputs, nb_rows, nb_columns
    return functions
