"""The slow, obviously correct SSS matrix: reference for SemiseparableLayer, none of whose methods is called. Padded
parameters are cut to the true sizes of their stages, written down here once more, and handled one stage at a time."""

import numpy as np
import torch

from semiseparablemodels import SemiseparableLayer

STATE_MATRICES = "ABCDEFG"


def true_shapes(layer):
    """{name: [(rows, columns) of stage k, for k = 0 .. K-1]} without padding."""
    K, limit = min(layer.input_size, layer.output_size) // layer.inputoutput_dim, layer.statespace_dim
    inputs, outputs = ([len(part) for part in np.array_split(np.zeros(size), K)]
                       for size in (layer.input_size, layer.output_size))
    # Entries of the causal state that enters stage k, and of the anticausal one that leaves it
    d = [min(limit, sum(inputs[:k]), sum(outputs[k:])) for k in range(K + 1)]
    e = [min(limit, sum(outputs[:k]), sum(inputs[k:])) for k in range(K + 1)]
    return {"A": list(zip(d[1:], d)), "B": list(zip(d[1:], inputs)), "C": list(zip(outputs, d)),
            "D": list(zip(outputs, inputs)), "E": list(zip(e, e[1:])), "F": list(zip(e, inputs)),
            "G": list(zip(outputs, e[1:]))}


def stages_of(layer, stacked=None):
    """{name: [matrix of stage k]}: true entries, views of the parameters or of other `stacked` tensors."""
    stacked = stacked or {name: getattr(layer, name) for name in STATE_MATRICES}
    return {name: [stacked[name][k, :rows, :columns] for k, (rows, columns) in enumerate(shapes)]
            for name, shapes in true_shapes(layer).items()}


def padding_of(layer):
    """{name: bool tensor like the parameter, True in the padding}."""
    padding = {name: torch.ones_like(getattr(layer, name), dtype=torch.bool) for name in STATE_MATRICES}
    for matrix in sum(stages_of(layer, padding).values(), []):
        matrix[:] = False
    return padding


def dense_matrix(layer, stages=None):
    """T (outputs, inputs) of a layer, or of other stages, block by block, differentiable:
    T_ij = C_i A_{i-1} .. A_{j+1} B_j for i > j, D_i for i = j, G_i E_{i+1} .. E_{j-1} F_j for i < j."""
    A, B, C, D, E, F, G = (stages or stages_of(layer)).values()
    T = [[None] * len(D) for _ in D]
    for j in range(len(D)):
        T[j][j] = D[j]
        x, z = B[j], F[j]
        for i in range(j + 1, len(D)):
            T[i][j] = C[i] @ x  # x = A_{i-1} .. A_{j+1} B_j
            x = A[i] @ x
        for i in range(j - 1, -1, -1):
            T[i][j] = G[i] @ z  # z = E_{i+1} .. E_{j-1} F_j
            z = E[i] @ z
    return torch.cat([torch.cat(row, 1) for row in T])


def by_definition(layer):
    """u -> T u + bias with the T of the definition"""
    return lambda u: u @ dense_matrix(layer).mT + (0 if layer.bias is None else layer.bias)


@torch.no_grad()
def make_layer(n, d=1, m=1, *, dtype=torch.float64, **kwargs):
    """A layer with random true entries and zero padding. A_k and E_k are (parts of) orthogonal matrices: products of
    many neither explode nor vanish, which would hide errors far from the diagonal."""
    layer = SemiseparableLayer(n, d, m, initialisation="zeros", dtype=dtype, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for name, matrices in stages_of(layer).items():
        for matrix in matrices:
            values = torch.randn(2 * [max(matrix.shape)], generator=generator, dtype=torch.float64)
            values = torch.linalg.qr(values).Q if name in "AE" else values
            matrix.copy_(values[:matrix.shape[0], :matrix.shape[1]])
    if layer.bias is not None:
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return layer


@torch.no_grad()
def load_stages(layer, arrays, pattern):
    """Copy the authors' arrays, one per stage, into the layer; their names are like "init/hidden_layer.{name}.{k}"."""
    for name, matrices in stages_of(layer).items():
        for k, matrix in enumerate(matrices):
            array = torch.as_tensor(arrays[pattern.format(name=name, k=k)])
            assert array.shape == matrix.shape, (name, k, array.shape, matrix.shape)
            matrix.copy_(array)


def random_batch(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_equal(actual, expected, tolerance=1e-10):
    """Equal up to rounding: the largest difference, relative to the largest entry; zero is exactly zero."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.numel():
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def outputs_and_gradients(layer, function, u, cotangent):
    """{name: tensor}: y = function(u) and the gradients of sum(y cotangent)."""
    u = u.detach().clone().requires_grad_()
    y = function(u)
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad((y * cotangent).sum(), [u, *parameters.values()], materialize_grads=True)
    return dict(zip(["output", "input", *parameters], [y, *gradients]))


def assert_outputs_and_gradients_equal(layer, function, expected_function, nb_samples=5, tolerance=1e-10):
    u = random_batch(nb_samples, layer.input_size, dtype=layer.D.dtype)
    cotangent = random_batch(nb_samples, layer.output_size, dtype=layer.D.dtype, seed=2)
    actual, expected = (outputs_and_gradients(layer, f, u, cotangent) for f in (function, expected_function))
    assert list(actual) == ["output", "input", *STATE_MATRICES] + ["bias"] * (layer.bias is not None)
    for name in actual:
        assert_equal(actual[name], expected[name], tolerance)
