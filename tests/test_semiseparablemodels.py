"""Facts about semiseparablemodels.py, checked against the definitions in sss_reference.py."""

import copy
import gc
import io
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import semiseparablemodels
from model_training import get_nb_model_parameters
from rank1models import Rank1THLFFNN
from semiseparablemodels import (SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet, _MergeStages,
                                 get_random_glorot_uniform_matrix, hankel_svds, hankel_svds_of_random_matrix,
                                 realise)
from sss_reference import (STATE_MATRICES, dense_matrix, load_stages, padding_of, randomise, recursion,
                           stages_of, to_stages, true_shapes)
from standardmodels import StandardTHLFFNN

pytestmark = pytest.mark.usefixtures("one_thread")

# (input_size, statespace_dim, inputoutput_dim): K = 1, 2, 3 and more stages, states larger than the layer
SIZES = [(1, 1, 1), (1, 3, 1), (2, 1, 1), (3, 2, 1), (6, 4, 6), (6, 2, 3), (9, 2, 3), (5, 9, 1), (12, 20, 2),
         (13, 3, 1), (24, 5, 2), (30, 4, 10), (47, 1, 1), (50, 5, 1)]
# above LARGEST_DENSE_SIZE: several chunks as they come
LARGE_SIZES = [(129, 1, 1), (150, 5, 1), (200, 3, 8), (260, 2, 130), (150, 40, 50), (131, 9, 131)]
INITIALISATIONS = ["realisation", "direct", "zeros"]
SMALL_CHUNKS = [1, 3, 7, 16]  # chunk sizes that make several chunks of small layers
SEVERAL_CHUNKS = [(20, 2, 1), (23, 3, 1), (24, 2, 2)]  # sizes that chunks of 3 inputs always cut
# Most tests below take 22 inputs: with states of 2 or 3 entries, the last of several chunks has empty stages.
EVERY_CHUNKING = pytest.mark.parametrize("chunk_size", [None, 3], ids=["one chunk", "several chunks"])


@pytest.fixture
def set_chunks(monkeypatch):
    """Function that makes the layers built after it use chunks of so many inputs, or as they come if None."""
    def set_chunk_size(chunk_size):
        if chunk_size is not None:
            monkeypatch.setattr(semiseparablemodels, "LARGEST_DENSE_SIZE", 0)
            monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE", chunk_size)
    return set_chunk_size


@pytest.fixture
def three_threads(one_thread):
    torch.set_num_threads(3)


def make_layer(n, d=1, m=1, *, dtype=torch.float64, seed=0):
    return randomise(SemiseparableLayer(n, d, m, initialisation="zeros", dtype=dtype), seed)


def random_batch(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_equal(actual, expected, tolerance=1e-10):
    """Equal up to rounding: the largest difference, relative to the largest entry; zero is exactly zero."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.numel():
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def relative_difference(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def outputs_and_gradients(layer, function, u, cotangent):
    """{name: tensor}: y = function(u) and the gradients of sum(y cotangent)."""
    u = u.detach().clone().requires_grad_()
    y = function(u)
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad((y * cotangent).sum(), [u, *parameters.values()], materialize_grads=True)
    return dict(zip(["output", "input", *parameters], [y.detach(), *gradients]))


def assert_equals_dense_definition(layer, nb_samples=5, tolerance=1e-10):
    u = random_batch(nb_samples, layer.input_size, dtype=layer.bias.dtype)
    cotangent = random_batch(nb_samples, layer.input_size, dtype=layer.bias.dtype, seed=2)
    actual = outputs_and_gradients(layer, layer, u, cotangent)
    expected = outputs_and_gradients(layer, lambda u: u @ dense_matrix(layer).mT + layer.bias, u, cotangent)
    assert list(actual) == ["output", "input", *STATE_MATRICES, "bias"]
    for name in actual:
        assert_equal(actual[name], expected[name], tolerance)


# ---- the layer is the matrix of its definition ----

@pytest.mark.parametrize("chunk_size", [None, *SMALL_CHUNKS])
@pytest.mark.parametrize("n, d, m", SIZES)
def test_forward_and_every_gradient_equal_the_dense_matrix_built_from_its_definition(n, d, m, chunk_size,
                                                                                     set_chunks):
    set_chunks(chunk_size)
    assert_equals_dense_definition(make_layer(n, d, m))


@pytest.mark.parametrize("n, d, m", LARGE_SIZES)
def test_large_layers_equal_the_dense_matrix_built_from_its_definition(n, d, m):
    layer = make_layer(n, d, m)
    assert (layer._nb_chunks > 1) == (m < n)  # else this tests less than it says
    assert_equals_dense_definition(layer)


@pytest.mark.parametrize("n, d, m", SEVERAL_CHUNKS)
@pytest.mark.parametrize("nb_samples", [0, 1, 40])
def test_any_number_of_samples_equals_the_dense_matrix(n, d, m, nb_samples, set_chunks):
    for chunk_size in (None, 3):
        set_chunks(chunk_size)
        layer = make_layer(n, d, m)
        assert (layer._nb_chunks > 1) == (chunk_size is not None)
        assert_equals_dense_definition(layer, nb_samples)


def assert_equals_plain_recursion(layer):
    u, cotangent = random_batch(4, layer.input_size), random_batch(4, layer.input_size, seed=2)
    actual = outputs_and_gradients(layer, layer, u, cotangent)
    expected = outputs_and_gradients(layer, lambda u: recursion(layer, u), u, cotangent)
    for name in actual:
        assert_equal(actual[name], expected[name])


@pytest.mark.parametrize("chunk_size", [None, *SMALL_CHUNKS])
@pytest.mark.parametrize("n, d, m", SIZES)
def test_forward_and_every_gradient_equal_the_plain_recursion(n, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    assert_equals_plain_recursion(make_layer(n, d, m))


@pytest.mark.parametrize("n, d, m", [(1000, 3, 1), (1030, 2, 5)])
def test_many_chunks_of_the_default_size_equal_the_plain_recursion(n, d, m):
    assert_equals_plain_recursion(make_layer(n, d, m))


@pytest.mark.parametrize("n, d, m", [*SIZES, (150, 5, 1)])
def test_to_matrix_is_the_dense_matrix_and_differentiable(n, d, m):
    layer = make_layer(n, d, m)
    cotangent = random_batch(n, n)
    state_matrices = [getattr(layer, name) for name in STATE_MATRICES]

    def gradients(T):
        return torch.autograd.grad((T * cotangent).sum(), state_matrices, materialize_grads=True)

    T, expected = layer.to_matrix(), dense_matrix(layer)
    assert_equal(T.detach(), expected.detach())
    for actual_gradient, expected_gradient in zip(gradients(T), gradients(expected)):
        assert_equal(actual_gradient, expected_gradient)


def test_to_matrix_does_not_depend_on_the_bias():
    layer = make_layer(8, 2, dtype=torch.float32)
    expected = layer.to_matrix().detach()
    with torch.no_grad():
        layer.bias.fill_(1e6)  # so large that adding and subtracting it would cost all digits
    assert_equal(layer.to_matrix().detach(), expected, 1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("n, d, m", [(1, 1, 1), (2, 3, 2), (5, 2, 1), (8, 2, 2), (9, 1, 1)])
def test_gradcheck_passes(n, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m)
    names, values = zip(*layer.named_parameters())
    inputs = [value.detach().clone().requires_grad_() for value in (random_batch(3, n), *values)]

    def function(u, *values):
        return functional_call(layer, dict(zip(names, values)), (u,))

    assert torch.autograd.gradcheck(function, inputs, atol=1e-8, rtol=1e-6)


@EVERY_CHUNKING
@pytest.mark.parametrize("name", STATE_MATRICES)
def test_gradients_reach_parameters_that_are_zero(name, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 3)
    with torch.no_grad():
        getattr(layer, name).zero_()
    assert_equals_dense_definition(layer)
    layer(random_batch(5, 22)).sum().backward()
    assert getattr(layer, name).grad.abs().max() > 0


@EVERY_CHUNKING
def test_gradients_are_right_when_only_some_of_them_are_wanted(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 3)
    u, cotangent = random_batch(5, 22), random_batch(5, 22, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    for name in [*STATE_MATRICES, "bias"]:
        layer.requires_grad_(False)
        layer.zero_grad()
        getattr(layer, name).requires_grad_()
        (layer(u) * cotangent).sum().backward()
        assert_equal(getattr(layer, name).grad, expected[name])
        assert [other for other, value in layer.named_parameters() if value.grad is not None] == [name]
    layer.requires_grad_(False)
    u.requires_grad_()
    (layer(u) * cotangent).sum().backward()
    assert_equal(u.grad, expected["input"])


# ---- padding ----

@EVERY_CHUNKING
@pytest.mark.parametrize("n, d, m", [(22, 3, 1), (24, 5, 2)])
def test_padding_has_zero_gradients_and_stays_zero_under_adam(n, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m)
    start = copy.deepcopy(layer)
    padding = padding_of(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        target = random_batch(6, n, seed=100 + step)
        (layer(random_batch(6, n, seed=step)) - target).square().mean().backward()
        for name, is_padding in padding.items():
            assert (getattr(layer, name).grad[is_padding] == 0).all()
        optimizer.step()
    assert {name: is_padding.any().item() for name, is_padding in padding.items()} \
        == {name: name != "D" for name in STATE_MATRICES}
    for name, is_padding in padding.items():
        value = getattr(layer, name)
        assert (value[is_padding] == 0).all()
        assert (value != getattr(start, name))[~is_padding].all()  # all the others learn


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("n, d, m", [(13, 3, 1), (24, 5, 2), (6, 2, 6), (150, 4, 1)])
def test_padding_of_a_fresh_layer_is_zero(n, d, m, initialisation):
    layer = SemiseparableLayer(n, d, m, initialisation=initialisation)
    for name, is_padding in padding_of(layer).items():
        assert (getattr(layer, name)[is_padding] == 0).all()
        assert layer.padding_sizes.get(name, 0) == is_padding.sum()


# ---- structure and number of parameters ----

@pytest.mark.parametrize("initialisation", ["realisation", "direct"])
@pytest.mark.parametrize("n, d, m", [(13, 3, 1), (24, 5, 2), (30, 4, 10), (140, 2, 1)])
def test_blocks_off_the_diagonal_have_rank_statespace_dim(n, d, m, initialisation):
    torch.manual_seed(0)
    layer = SemiseparableLayer(n, d, m, initialisation=initialisation, dtype=torch.float64)
    T = dense_matrix(layer).detach()
    ranks = []
    for k in range(1, layer.nb_states, 1 if n < 100 else 7):
        for block in (T[k * m:, :k * m], T[:k * m, k * m:]):
            ranks.append(torch.linalg.matrix_rank(block, rtol=1e-10).item())
            assert ranks[-1] <= d
    assert max(ranks) == d  # not because the matrix is zero
    assert torch.linalg.matrix_rank(T) > d


@pytest.mark.parametrize("n, d, m, expected", [
    (1, 1, 1, [0, 0]), (6, 4, 6, [0, 0]), (6, 2, 3, [0, 2, 0]), (6, 2, 1, [0, 1, 2, 2, 2, 1, 0]),
    (5, 9, 1, [0, 1, 2, 2, 1, 0]), (12, 3, 2, [0, 2, 3, 3, 3, 2, 0])])
def test_states_at_the_border_are_smaller(n, d, m, expected):
    layer = SemiseparableLayer(n, d, m, initialisation="zeros")
    assert layer.state_dims == expected
    assert layer.nb_states == n // m


@pytest.mark.parametrize("n, d, m", [*SIZES, *LARGE_SIZES])
def test_number_of_parameters_follows_the_formula(n, d, m):
    layer = SemiseparableLayer(n, d, m, initialisation="zeros")
    K = n // m
    dims = [min(d, k * m, (K - k) * m) for k in range(K + 1)]
    formula = (K * m ** 2 + 4 * m * sum(dims[k] for k in range(1, K))
               + 2 * sum(dims[k] * dims[k + 1] for k in range(1, K - 1)) + n)
    assert get_nb_model_parameters(layer) == formula
    true_entries = sum(rows * columns for shapes in true_shapes(layer).values() for rows, columns in shapes)
    assert true_entries + n == formula


def test_nets_have_the_published_numbers_of_parameters():
    sizes = (16, 10, 50)
    nets = [StandardTHLFFNN(*sizes), Rank1THLFFNN(*sizes),
            *(TwoHiddenLayeredSSNet(*sizes, statespace_dim=d) for d in range(1, 6))]
    assert [get_nb_model_parameters(net) for net in nets] == [3910, 1510, 1752, 2220, 2848, 3620, 4520]


def test_extra_repr_names_the_sizes():
    assert repr(SemiseparableLayer(12, 3, 2)) == (
        "SemiseparableLayer(input_size=12, statespace_dim=3, inputoutput_dim=2, nb_states=6)")


def test_default_sizes_are_ten_states_and_one_input():
    layer = SemiseparableLayer(30)
    assert (layer.statespace_dim, layer.inputoutput_dim) == (10, 1)


# ---- from_matrix: realisation of a given matrix ----

@pytest.mark.parametrize("n, m", [(1, 1), (2, 1), (7, 1), (12, 2), (12, 12), (12, 6), (30, 1)])
@pytest.mark.parametrize("extra_dims", [0, 50])
def test_from_matrix_is_exact_when_states_are_large_enough(n, m, extra_dims):
    matrix = random_batch(n, n)
    layer = SemiseparableLayer.from_matrix(matrix, max(1, n // 2) + extra_dims, m)
    assert_equal(layer.to_matrix().detach(), matrix)
    assert_equal(dense_matrix(layer).detach(), matrix)
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("n, d, m", [(13, 3, 1), (24, 5, 2), (30, 4, 10)])
def test_from_matrix_recovers_a_matrix_that_is_semiseparable(n, d, m):
    matrix = dense_matrix(make_layer(n, d, m)).detach()
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix, d, m)).detach(), matrix, 1e-9)
    worse = dense_matrix(SemiseparableLayer.from_matrix(matrix, d - 1, m)).detach()
    assert relative_difference(worse, matrix) > 1e-3  # one state less is not enough


@pytest.mark.parametrize("n, d, m", [(13, 3, 1), (24, 5, 2)])
def test_from_matrix_is_the_truncated_balanced_realisation(n, d, m):
    """Written down once more as in the book, with pseudo-inverses, for the causal part."""
    T = random_batch(n, n)
    d_k = [min(d, k * m, n - k * m) for k in range(n // m + 1)]

    def hankel_factors(k):  # T[km:, :km] ~ O R, columns of R with the nearest stage first
        H = T[k * m:, :k * m].unflatten(1, (k, m)).flip(1).flatten(1)
        U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
        return U[:, :d_k[k]] * sigma[:d_k[k]].sqrt(), sigma[:d_k[k], None].sqrt() * Vh[:d_k[k]]

    actual = dense_matrix(SemiseparableLayer.from_matrix(T, d, m)).detach()
    factors = {k: hankel_factors(k) for k in range(1, n // m)}
    for j in range(n // m):
        assert_equal(actual[j * m:(j + 1) * m, j * m:(j + 1) * m], T[j * m:(j + 1) * m, j * m:(j + 1) * m])
        for i in range(j + 1, n // m):
            block = factors[j + 1][1][:, :m]  # B_j
            for k in range(j + 1, i):
                block = torch.linalg.pinv(factors[k + 1][0]) @ factors[k][0][m:] @ block  # A_k
            assert_equal(actual[i * m:(i + 1) * m, j * m:(j + 1) * m], factors[i][0][:m] @ block)  # C_i


def test_from_matrix_treats_a_matrix_and_its_transpose_alike():
    matrix = random_batch(14, 14)
    actual = dense_matrix(SemiseparableLayer.from_matrix(matrix, 3)).detach()
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix.T, 3)).detach().T, actual)


def test_the_matrix_of_a_layer_is_realised_by_the_same_matrix():
    matrix = dense_matrix(SemiseparableLayer.from_matrix(random_batch(20, 20), 4)).detach()
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix, 4)).detach(), matrix, 1e-9)


ROW, COLUMN = torch.arange(12.).double()[:, None], torch.arange(12.).double()
SPECIAL_MATRICES = {name: matrix.double() for name, matrix in {
    "zero": torch.zeros(12, 12),
    "identity": ROW == COLUMN,
    "diagonal": COLUMN.diag(),
    "ones": torch.ones(12, 12),
    "rank 2": ROW + COLUMN,
    "tridiagonal": (ROW - COLUMN).abs() <= 1,
    "lower triangular": ROW >= COLUMN,
    "one entry": (ROW == 9) & (COLUMN == 2),
    "decaying singular values": 1 / (1 + ROW + COLUMN),
    "tiny": torch.full((12, 12), 1e-200, dtype=torch.float64),
}.items()}


@pytest.mark.parametrize("matrix", SPECIAL_MATRICES.values(), ids=SPECIAL_MATRICES.keys())
@pytest.mark.parametrize("m", [1, 3])
def test_from_matrix_is_exact_for_matrices_without_full_rank(matrix, m):
    layer = SemiseparableLayer.from_matrix(matrix, 6, m)
    assert_equal(layer.to_matrix().detach(), matrix, 1e-9)
    assert_equal(dense_matrix(layer).detach(), matrix, 1e-9)


@pytest.mark.parametrize("name, d", [("ones", 1), ("rank 2", 2), ("tridiagonal", 1), ("lower triangular", 1)])
def test_from_matrix_needs_no_larger_states_than_the_rank(name, d):
    layer = SemiseparableLayer.from_matrix(SPECIAL_MATRICES[name], d)
    assert_equal(dense_matrix(layer).detach(), SPECIAL_MATRICES[name], 1e-9)


def test_states_beyond_the_rank_are_zero():
    """Their singular values are rounding errors, which the inverse must not blow up."""
    layer = SemiseparableLayer.from_matrix(SPECIAL_MATRICES["rank 2"], 6)
    assert layer.A.shape == (12, 6, 6)
    for name in "ABCEFG":
        for matrix in stages_of(layer)[name]:
            if name in "ABEF":
                assert (matrix[2:] == 0).all()
            if name in "ACEG":
                assert (matrix[:, 2:] == 0).all()


@pytest.mark.parametrize("make_matrix, dtype", [
    (lambda: np.arange(36).reshape(6, 6), torch.float32),
    (lambda: torch.arange(36).reshape(6, 6), torch.float32),
    (lambda: [[float(i * j) for j in range(6)] for i in range(6)], torch.float32),
    (lambda: np.random.default_rng(0).normal(size=(6, 6)), torch.float64),
    (lambda: np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32), torch.float32),
    (lambda: nn.Linear(6, 6, dtype=torch.float64).weight, torch.float64),
    (lambda: nn.Linear(6, 6).weight.T, torch.float32),
], ids=["numpy integers", "integers", "list", "numpy float64", "numpy float32", "parameter", "transposed"])
def test_from_matrix_takes_arrays_tensors_and_lists(make_matrix, dtype):
    torch.manual_seed(0)
    matrix = make_matrix()
    layer = SemiseparableLayer.from_matrix(matrix, 3)
    expected = torch.as_tensor(matrix).detach().to(dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in layer.parameters())
    assert_equal(layer.to_matrix().detach(), expected, 1e-5)


@pytest.mark.parametrize("bias", [np.arange(6), torch.arange(6.), [0, 1, 2, 3, 4, 5]],
                         ids=["array", "tensor", "list"])
def test_from_matrix_with_bias_is_the_affine_map(bias):
    matrix = random_batch(6, 6)
    layer = SemiseparableLayer.from_matrix(matrix, 3, bias=bias)
    u = random_batch(4, 6)
    assert_equal(layer(u).detach(), u @ matrix.T + torch.arange(6.).double())


def test_from_matrix_leaves_its_arguments_alone():
    matrix, bias = random_batch(6, 6), random_batch(6)
    copies = matrix.clone(), bias.clone()
    layer = SemiseparableLayer.from_matrix(matrix, 3, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert torch.equal(matrix, copies[0]) and torch.equal(bias, copies[1])


@pytest.mark.parametrize("arguments, message", [
    (dict(matrix=torch.zeros(3, 4)), "(3, 4)"),
    (dict(matrix=torch.zeros(3)), "(3,)"),
    (dict(matrix=torch.zeros(2, 3, 3)), "(2, 3, 3)"),
    (dict(matrix=torch.eye(3) / torch.tensor([0., 1, 1])), "NaN"),
    (dict(matrix=np.full((3, 3), np.inf)), "infinite"),
    (dict(matrix=torch.eye(3), bias=torch.zeros(4)), "(4,)"),
    (dict(matrix=torch.eye(3), bias=1.0), "()"),
    (dict(matrix=torch.eye(3), inputoutput_dim=2), "2"),
    (dict(matrix=torch.eye(3), statespace_dim=0), "0"),
    (dict(matrix=torch.zeros(0, 0)), "0"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_from_matrix_names_what_it_cannot_take(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiseparableLayer.from_matrix(**{"statespace_dim": 1, **arguments})


# ---- initialisation ----

def test_glorot_uniform_matrix_is_uniform_within_its_limit():
    for shape in ((300, 200), (40000,)):
        values = get_random_glorot_uniform_matrix(shape)
        limit = (6 / sum(shape)) ** 0.5
        assert values.shape == torch.Size(shape) and values.dtype == torch.float32
        assert 0.999 * limit < values.max() <= limit and -limit <= values.min() < -0.999 * limit
        assert abs(values.mean()) < 0.02 * limit
        assert values.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.03)


def test_paper_initialisation_realises_a_glorot_uniform_matrix():
    """With states large enough the drawn matrix itself comes back."""
    torch.manual_seed(0)
    layer = SemiseparableLayer(60, 30)
    limit = (6 / 120) ** 0.5
    for values, size in ((dense_matrix(layer), 60 * 60), (layer.bias, 60)):
        limit = (6 / (120 if size > 60 else 60)) ** 0.5
        assert 0.9 * limit < values.abs().max() <= limit * (1 + 1e-5)
        assert values.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.06 if size > 60 else 0.4)


@pytest.mark.parametrize("n, d, m", [(150, 1, 1), (150, 5, 1), (150, 2, 3), (150, 5, 2)])
def test_lanczos_realises_the_matrix_that_full_svds_realise(n, d, m, monkeypatch):
    by_lanczos, by_svd = [], []
    lanczos, svd = semiseparablemodels._hankel_svds_by_lanczos, semiseparablemodels._hankel_svd
    monkeypatch.setattr(semiseparablemodels, "_hankel_svds_by_lanczos",
                        lambda T, positions, d: by_lanczos.extend(positions) or lanczos(T, positions, d))
    monkeypatch.setattr(semiseparablemodels, "_hankel_svd",
                        lambda T, position, d: by_svd.append(position) or svd(T, position, d))
    torch.manual_seed(0)
    T = get_random_glorot_uniform_matrix((n, n), dtype=torch.float64)
    layer = SemiseparableLayer(n, d, m, initialisation="zeros", dtype=torch.float64)

    def realised_matrix(function):
        with torch.no_grad():
            for name, values in realise(T, m, layer.state_dims, function).items():
                getattr(layer, name).copy_(values)
        return layer.to_matrix().detach()

    actual = realised_matrix(partial(hankel_svds_of_random_matrix, smallest_size=1, nb_blocks=10))
    # Both parts used the iteration, in more than one group of blocks, and it never gave up on a block.
    assert len(by_lanczos) >= 2 * 11 and not set(by_lanczos) & set(by_svd)
    assert sorted(by_lanczos + by_svd) == sorted(2 * list(range(m, n, m)))
    assert (actual - realised_matrix(hankel_svds)).abs().max() < 1e-6


@pytest.mark.parametrize("d", [1, 5])
@pytest.mark.parametrize("n, nb_realisations", [(50, 30), (200, 4)])
def test_direct_initialisation_has_the_mean_square_entry_of_the_realisation(n, nb_realisations, d):
    torch.manual_seed(0)

    def mean_square_entry(initialisation, nb_layers):
        total = 0
        for _ in range(nb_layers):
            T = SemiseparableLayer(n, d, initialisation=initialisation).to_matrix().detach()
            total += (T.square().sum() - T.diag().square().sum()).item() / (n * (n - 1)) / nb_layers
        return total

    # One direct layer scatters by about 20 % at n = 50, d = 1: the mean over 200 of them by 1.5 %.
    realised = mean_square_entry("realisation", nb_realisations)
    assert mean_square_entry("direct", 200) == pytest.approx(realised, rel=0.2)


@pytest.mark.parametrize("initialisation", ["realisation", "direct"])
def test_same_seed_gives_the_same_parameters_and_another_seed_others(initialisation):
    def parameters(seed, **kwargs):
        torch.manual_seed(seed)
        return list(SemiseparableLayer(140, 2, initialisation=initialisation, **kwargs).parameters())

    assert all(torch.equal(a, b) for a, b in zip(parameters(0), parameters(0)))
    assert not any(torch.equal(a, b) for a, b in zip(parameters(0), parameters(1)))
    # A seed means the same layer in any dtype.
    for a, b in zip(parameters(0), parameters(0, dtype=torch.float64)):
        assert_equal(b.float(), a.detach(), 1e-6)


def test_realisation_with_lanczos_repeats_with_the_seed():
    torch.manual_seed(0)
    T = get_random_glorot_uniform_matrix((100, 100), dtype=torch.float64)
    dims = SemiseparableLayer(100, 2, initialisation="zeros").state_dims
    function = partial(hankel_svds_of_random_matrix, smallest_size=1)
    first = realise(T, 1, dims, function)
    torch.rand(7)  # the iteration must not take its start from the global generator
    second = realise(T, 1, dims, function)
    assert all(torch.equal(first[name], second[name]) for name in STATE_MATRICES)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_initialisation_restores_the_number_of_threads(initialisation, three_threads):
    SemiseparableLayer(20, 2, initialisation=initialisation)
    assert torch.get_num_threads() == 3
    SemiseparableLayer.from_matrix(random_batch(20, 20), 2)
    assert torch.get_num_threads() == 3


def test_a_failed_initialisation_restores_the_number_of_threads(three_threads):
    def fail(T, m, state_dims):
        assert torch.get_num_threads() == 1
        raise ArithmeticError
    with pytest.raises(ArithmeticError):
        realise(random_batch(6, 6), 1, [0, 1, 1, 1, 1, 1, 0], fail)
    assert torch.get_num_threads() == 3


# ---- number formats and devices ----

@pytest.mark.parametrize("d", [1, 5])
def test_float32_agrees_with_float64_at_4096_inputs(d):
    torch.manual_seed(0)
    layer = SemiseparableLayer(4096, d, initialisation="direct")
    u, cotangent = (random_batch(8, 4096, dtype=torch.float32, seed=seed) for seed in (1, 2))
    actual = outputs_and_gradients(layer, layer, u, cotangent)
    layer = copy.deepcopy(layer).double()
    expected = outputs_and_gradients(layer, layer, u.double(), cotangent.double())
    assert actual["output"].dtype == torch.float32 and expected["output"].dtype == torch.float64
    for name in actual:
        assert relative_difference(actual[name], expected[name]) < 1e-4, name


@pytest.mark.parametrize("n", [50, 300], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_close_to_float32(n, input_dtype):
    torch.manual_seed(0)
    layer = SemiseparableLayer(n, 3, initialisation="direct")
    u, cotangent = (random_batch(16, n, dtype=torch.float32, seed=seed) for seed in (1, 2))
    expected = outputs_and_gradients(layer, layer, u, cotangent)

    u = u.to(input_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(u)
    assert y.dtype == torch.bfloat16
    y.backward(cotangent.bfloat16())
    assert u.grad.dtype == input_dtype
    assert relative_difference(y.detach(), expected["output"]) < 0.02
    assert relative_difference(u.grad, expected["input"]) < 0.02
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert relative_difference(parameter.grad, expected[name]) < 0.03, name


@pytest.mark.parametrize("n", [50, 300], ids=["one chunk", "several chunks"])
def test_to_matrix_works_under_autocast(n):
    layer = make_layer(n, 2, dtype=torch.float32)
    expected = layer.to_matrix().detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_difference(layer.to_matrix().detach(), expected) < 0.02


@pytest.mark.parametrize("n", [50, 300], ids=["one chunk", "several chunks"])
def test_module_converted_to_float64_computes_in_float64(n):
    layer = make_layer(n, 3, dtype=torch.float32)
    for converted in (copy.deepcopy(layer).to(torch.float64), copy.deepcopy(layer).double()):
        assert {parameter.dtype for parameter in converted.parameters()} == {torch.float64}
        u = random_batch(4, n)
        assert_equal(converted(u).detach(), recursion(converted, u).detach())


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("make", [SemiseparableLayer, lambda n, *args, **kwargs: TwoHiddenLayeredSSNet(
    4, 3, n, *args, **kwargs), lambda n, *args, **kwargs: SSSTHLConvNet((1, 28, 28), 3, n, *args, **kwargs)])
def test_device_meta_gives_a_module_without_storage(make, initialisation):
    module = make(20, 2, initialisation=initialisation, device="meta", dtype=torch.float64)
    assert {(str(parameter.device), parameter.dtype) for parameter in module.parameters()} \
        == {("meta", torch.float64)}
    expected = make(20, 2)
    assert [p.shape for p in module.parameters()] == [p.shape for p in expected.parameters()]


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_layer_can_be_built_under_another_default_device(initialisation):
    with torch.device("meta"):
        layer = SemiseparableLayer(20, 2, initialisation=initialisation)
    assert {str(parameter.device) for parameter in layer.parameters()} == {"meta"}


def test_lanczos_works_under_another_default_device():
    T = random_batch(90, 90)
    with torch.device("meta"):
        triplets = list(hankel_svds_of_random_matrix(T, 1, [0, *[1] * 89, 0], smallest_size=1))
    assert len(triplets) == 89


def test_float64_as_default_dtype_gives_a_float64_layer():
    torch.set_default_dtype(torch.float64)
    try:
        layers = [SemiseparableLayer(20, 2, initialisation=name) for name in INITIALISATIONS]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {torch.float64}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n, d, m", [(50, 5, 1), (300, 3, 1), (300, 2, 2)])
def test_cuda_gives_what_the_cpu_gives(n, d, m):
    layer = make_layer(n, d, m)
    u, cotangent = random_batch(6, n), random_batch(6, n, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    layer = copy.deepcopy(layer).cuda()
    actual = outputs_and_gradients(layer, layer, u.cuda(), cotangent.cuda())
    for name in expected:
        assert actual[name].is_cuda
        assert_equal(actual[name].cpu(), expected[name])


# ---- shapes of the input ----

@EVERY_CHUNKING
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3), (1, 1, 1, 2)])
def test_any_leading_batch_shape_works(shape, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(*shape, 22).requires_grad_()
    y = layer(u)
    assert y.shape == (*shape, 22)
    y.sum().backward()  # its gradient is expanded, not contiguous
    T = dense_matrix(layer).detach()
    assert_equal(y.detach(), (u @ T.mT + layer.bias).detach())
    assert_equal(u.grad, T.sum(0).expand(*shape, 22).contiguous())


@EVERY_CHUNKING
def test_input_need_not_be_contiguous(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    batch = random_batch(44, 6)
    for u in (batch[:22].T, batch.T[:, 5:27], batch[:22, :1].T.expand(3, 22), batch.T[::2, ::2]):
        expected = recursion(layer, u.contiguous()).detach()
        assert_equal(layer(u).detach(), expected)
        assert_equal(layer(u.unsqueeze(1).expand(-1, 4, -1)).detach()[:, 2].contiguous(), expected)
    u = batch[:22].clone().requires_grad_()  # the gradient of a view
    layer(u.T).square().sum().backward()
    expected = outputs_and_gradients(layer, layer, u.T, 2 * layer(u.T).detach())["input"]
    assert_equal(u.grad, expected.T.contiguous())


@EVERY_CHUNKING
def test_output_is_contiguous_and_shares_no_memory_with_the_input(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)
    unchanged = u.clone()
    y = layer(u)
    assert y.is_contiguous()
    with torch.no_grad():
        y.add_(1)
    assert torch.equal(u, unchanged)


# ---- the layer as a PyTorch module ----

@EVERY_CHUNKING
def test_copies_compute_the_same(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)
    expected = layer(u).detach()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = SemiseparableLayer(22, 2, dtype=torch.float64)
    assert not torch.equal(loaded(u), expected)
    loaded.load_state_dict(layer.state_dict())
    copies = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
              torch.load(file, weights_only=False)]
    for other in copies:
        assert torch.equal(other(u), expected)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    for other in copies:  # and share no memory with the original
        assert torch.equal(other(u), expected)


def test_state_dict_has_the_eight_parameters():
    shapes = {name: tuple(value.shape) for name, value in SemiseparableLayer(12, 3, 2).state_dict().items()}
    assert shapes == dict(A=(6, 3, 3), B=(6, 3, 2), C=(6, 2, 3), D=(6, 2, 2), E=(6, 3, 3), F=(6, 3, 2),
                          G=(6, 2, 3), bias=(12,))


@EVERY_CHUNKING
def test_functional_call_uses_the_values_given(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer, other = make_layer(22, 2, seed=0), make_layer(22, 2, seed=5)
    u = random_batch(5, 22)
    expected, unchanged = other(u), layer(u)
    values = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
    y = functional_call(layer, values, (u,))
    assert torch.equal(y, expected) and not torch.equal(y, unchanged) and torch.equal(layer(u), unchanged)
    y.sum().backward()
    expected.sum().backward()
    for name, parameter in other.named_parameters():
        assert_equal(values[name].grad, parameter.grad)
    assert all(parameter.grad is None for parameter in layer.parameters())


@EVERY_CHUNKING
def test_changed_parameters_change_the_output(chunk_size, set_chunks):
    """Nothing that is derived from the parameters is kept from one forward to the next."""
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
        assert_equal(layer(u).detach(), recursion(layer, u).detach())


@EVERY_CHUNKING
def test_two_forwards_before_the_backwards_do_not_disturb_each_other(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u, v = random_batch(5, 22), random_batch(3, 22, seed=2)
    expected = [torch.autograd.grad(layer(inputs).square().sum(), list(layer.parameters()))
                for inputs in (u, v)]
    (layer(u).square().sum() + layer(v).square().sum()).backward()
    for parameter, *gradients in zip(layer.parameters(), *expected):
        assert_equal(parameter.grad, sum(gradients))


@EVERY_CHUNKING
def test_backward_can_run_twice_with_retain_graph(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    loss = layer(random_batch(5, 22)).square().sum()
    gradients = [torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@EVERY_CHUNKING
def test_double_backward_raises_a_clear_error(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    loss = layer(random_batch(5, 22)).square().sum()
    gradients = torch.autograd.grad(loss, [layer.A, layer.C], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(gradient.square().sum() for gradient in gradients).backward()


@EVERY_CHUNKING
def test_nothing_stays_alive_after_a_forward_without_gradients(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)

    def nb_tensors():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with torch.no_grad():
        layer(u)
        before = nb_tensors()
        for _ in range(3):
            y = layer(u)
        assert y.grad_fn is None
        del y
        assert nb_tensors() == before
    assert set(vars(layer)) == set(vars(make_layer(22, 2)))  # nothing was put aside in the layer either


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc/self/statm here")
@pytest.mark.parametrize("n", [100, 300], ids=["one chunk", "several chunks"])
def test_memory_does_not_grow_over_a_thousand_forwards(n):
    layer = make_layer(n, 2, dtype=torch.float32)
    u = random_batch(64, n, dtype=torch.float32)

    def resident_megabytes():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    with torch.no_grad():
        for _ in range(200):
            layer(u)
        before = resident_megabytes()
        for _ in range(800):  # keeping only the outputs would take 20 MB or more
            layer(u)
    assert resident_megabytes() - before < 5


# The first call of torch.compile warns about its own internals.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))),
                    reason="no C++ compiler for torch.compile")
def test_compiled_net_gives_the_same_outputs_and_gradients(set_chunks):
    set_chunks(2)  # three chunks: all steps are compiled
    torch.manual_seed(0)
    net = TwoHiddenLayeredSSNet(4, 3, 6, statespace_dim=1)
    assert net.hidden_layers[0]._nb_chunks == 3
    X = random_batch(6, 4, dtype=torch.float32)
    cotangent = random_batch(6, 3, dtype=torch.float32, seed=2)
    expected = outputs_and_gradients(net, net, X, cotangent)
    torch._dynamo.reset()
    actual = outputs_and_gradients(net, torch.compile(net), X, cotangent)
    torch._dynamo.reset()
    for name in expected:
        assert_equal(actual[name], expected[name], 1e-5)


# ---- products of many small A_k ----

def layer_with_small_A(n, dtype, size):
    layer = make_layer(n, 1, dtype=dtype)
    with torch.no_grad():
        for name in "AE":
            for matrix in stages_of(layer)[name]:
                matrix.fill_(size)
    return layer


def nb_denormals(tensors):
    return sum(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).sum().item()
               for tensor in tensors)


@pytest.mark.parametrize("n, dtype, size", [
    (128, torch.float32, 0.05), (300, torch.float32, 0.05), (300, torch.float32, 0.2),
    (128, torch.float64, 0.001), (300, torch.float64, 1e-7)])
def test_no_denormal_number_gets_into_the_large_products(n, dtype, size, monkeypatch):
    layer = layer_with_small_A(n, dtype, size)

    def chunk_matrices():
        return [matrices for matrices in _MergeStages.apply(
            *(getattr(layer, name) for name in STATE_MATRICES), layer._nb_chunks, layer._merge_factors)
            if matrices is not None]

    assert nb_denormals(chunk_matrices()) == 0
    monkeypatch.setattr(semiseparablemodels, "_flush_denormals", lambda matrices: matrices)
    assert nb_denormals(chunk_matrices()) > 0  # there are some to remove


@pytest.mark.parametrize("n, size", [(128, 0.001), (150, 1e-7)], ids=["one chunk", "several chunks"])
def test_layers_whose_products_underflow_still_equal_the_dense_matrix(n, size):
    assert_equals_dense_definition(layer_with_small_A(n, torch.float64, size))


@EVERY_CHUNKING
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_show_in_the_output(value, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    for name in STATE_MATRICES:
        broken = copy.deepcopy(layer)
        with torch.no_grad():
            stages_of(broken)[name][9][0, 0] = value
        assert not torch.isfinite(broken(random_batch(5, 22))).all(), name


# ---- arguments and inputs that do not fit ----

@pytest.mark.parametrize("arguments, message", [
    ((10, 1, 3), "must divide input_size, got 3 and 10"),
    ((3, 1, 10), "must divide input_size, got 10 and 3"),
    ((0,), "input_size must be a positive integer, got 0"),
    ((-4,), "input_size must be a positive integer, got -4"),
    ((2.0,), "input_size must be a positive integer, got 2.0"),
    (("8",), "input_size must be a positive integer, got '8'"),
    ((True,), "input_size must be a positive integer, got True"),
    ((8, 0), "statespace_dim must be a positive integer, got 0"),
    ((8, 1.5), "statespace_dim must be a positive integer, got 1.5"),
    ((8, None), "statespace_dim must be a positive integer, got None"),
    ((8, 1, -2), "inputoutput_dim must be a positive integer, got -2"),
    ((8, 1, 0), "inputoutput_dim must be a positive integer, got 0"),
])
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiseparableLayer(*arguments)


def test_unknown_initialisation_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="realisation, direct.*'glorot'"):
        SemiseparableLayer(8, initialisation="glorot")


def test_sizes_may_be_numpy_integers():
    layer = SemiseparableLayer(np.int64(8), np.int32(2), np.int64(2))
    assert layer(torch.zeros(3, 8)).shape == (3, 8)


@pytest.mark.parametrize("n", [8, 300], ids=["one chunk", "several chunks"])
def test_inputs_that_do_not_fit_are_named(n):
    layer = SemiseparableLayer(n, 2, initialisation="direct")
    for u, message in ((torch.zeros(5, n - 1), f"(5, {n - 1})"), (torch.zeros(n, 1), f"({n}, 1)"),
                       (torch.tensor(1.), "()"), (torch.zeros(5, n, dtype=torch.int64), "torch.int64"),
                       (torch.zeros(5, n, dtype=torch.float64), "torch.float64"),
                       (torch.zeros(5, n, dtype=torch.bool), "torch.bool")):
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="torch.int64"):
        layer(torch.zeros(5, n, dtype=torch.int64))


# ---- the helpers of these tests ----

def test_stages_survive_a_round_trip_through_the_authors_arrays():
    layer = make_layer(12, 3, 2)
    other = SemiseparableLayer(12, 3, 2, initialisation="zeros", dtype=torch.float64)
    pattern = "init/hidden_layer.{name}.{k}"
    arrays = to_stages(layer, {name: getattr(layer, name) for name in STATE_MATRICES}, pattern)
    assert len(arrays) == 7 * 6 and arrays["init/hidden_layer.A.1"].shape == (3, 2)
    load_stages(other, arrays, pattern)
    assert all(torch.equal(getattr(layer, name), getattr(other, name)) for name in STATE_MATRICES)
