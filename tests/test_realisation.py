"""Facts about realisation.py and SemiseparableLayer.from_matrix: from a dense matrix to stages, and initialisations."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import realisation
from checks import to_matrix
from realisation import (get_hankel_svds, get_random_glorot_uniform_matrix, get_stage_dims, hankel_singular_values,
                         realise)
from semiseparablemodels import SemiseparableLayer
from sss_reference import STATE_MATRICES, assert_equal, dense_matrix, make_layer, random_batch, stages_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:SemiseparableLayer")]


# ---- realisation of a given matrix ----

@pytest.mark.parametrize("n, outputs, m", [(1, 1, 1), (7, 7, 1), (12, 12, 2), (12, 12, 12), (30, 30, 1), (9, 4, 1),
                                           (5, 13, 1), (8, 30, 4)])
@pytest.mark.parametrize("extra_dims", [0, 50])
def test_from_matrix_is_exact_when_states_are_large_enough(n, outputs, m, extra_dims):
    matrix = random_batch(outputs, n)
    largest_rank = n // 2 if n == outputs else min(n, outputs)
    layer = SemiseparableLayer.from_matrix(matrix, max(1, largest_rank) + extra_dims, m)
    assert_equal(dense_matrix(layer), matrix)
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("n, outputs, d, m", [(13, 13, 3, 1), (24, 24, 5, 2), (30, 30, 4, 10), (23, 14, 3, 1),
                                              (10, 33, 4, 2)])
def test_from_matrix_recovers_a_matrix_that_is_semiseparable(n, outputs, d, m):
    matrix = dense_matrix(make_layer(n, d, m, output_size=outputs)).detach()
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix, d, m)), matrix, 1e-9)
    worse = dense_matrix(SemiseparableLayer.from_matrix(matrix, d - 1, m))
    assert (worse - matrix).norm() > 1e-3 * matrix.norm()  # one state less is not enough


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
    # The anticausal part is the causal one of the transpose.
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(T.T, d, m)).T, actual)


ROW, COLUMN = torch.arange(12.).double()[:, None], torch.arange(12.).double()
SPECIAL_MATRICES = {name: matrix.double() for name, matrix in {
    "zero": torch.zeros(12, 12),
    "identity": ROW == COLUMN,
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
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix, 6, m)), matrix, 1e-9)


@pytest.mark.parametrize("name, d", [("ones", 1), ("rank 2", 2), ("tridiagonal", 1), ("lower triangular", 1)])
def test_from_matrix_needs_no_larger_states_than_the_rank(name, d):
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(SPECIAL_MATRICES[name], d)), SPECIAL_MATRICES[name], 1e-9)


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
    (lambda: [[float(i * j) for j in range(6)] for i in range(6)], torch.float32),
    (lambda: np.random.default_rng(0).normal(size=(6, 6)), torch.float64),
    (lambda: nn.Linear(6, 6, dtype=torch.float64).weight, torch.float64),
    (lambda: nn.Linear(6, 6).weight.T, torch.float32),
    (lambda: np.random.default_rng(0).normal(size=(6, 6)).astype(">f4")[::-1], torch.float32),
], ids=["integers", "list", "float64 array", "parameter", "transposed", "reversed big-endian array"])
def test_from_matrix_takes_arrays_tensors_and_lists(make_matrix, dtype):
    torch.manual_seed(0)
    matrix = make_matrix()
    layer = SemiseparableLayer.from_matrix(matrix, 3)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in layer.parameters())
    assert_equal(layer.to_matrix(), to_matrix(matrix).to(dtype), 1e-5)


@pytest.mark.parametrize("bias", [
    np.arange(6), np.arange(5, -1, -1, ">i2")[::-1], torch.arange(6.), [0, 1, 2, 3, 4, 5]],
    ids=["array", "reversed big-endian array", "tensor", "list"])
def test_from_matrix_with_bias_is_the_affine_map_and_leaves_its_arguments_alone(bias):
    matrix = random_batch(6, 6)
    unchanged = matrix.clone()
    layer = SemiseparableLayer.from_matrix(matrix, 3, bias=bias)
    u = random_batch(4, 6)
    assert_equal(layer(u), u @ matrix.T + torch.arange(6.).double())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    assert torch.equal(matrix, unchanged) and list(bias) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("arguments, message", [
    (dict(matrix=torch.zeros(3)), "(3,)"),
    (dict(matrix=torch.zeros(2, 3, 3)), "(2, 3, 3)"),
    (dict(matrix=torch.eye(3) / torch.tensor([0., 1, 1])), "matrix has entries that are complex, NaN"),
    (dict(matrix=torch.eye(3), bias=torch.zeros(4)), "(4,)"),
    (dict(matrix=torch.eye(3), bias=1.0), "()"),
    (dict(matrix=torch.eye(3), bias=[0, 1, 1j]), "bias must be real numbers"),
    (dict(matrix=torch.eye(3), bias=[0, 1, np.nan]), "bias has entries that are complex, NaN"),
    (dict(matrix=torch.eye(3), inputoutput_dim=2), "2"),
    (dict(matrix=torch.eye(3), statespace_dim=0), "0"),
    (dict(matrix=torch.zeros(0, 0)), "0"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_from_matrix_names_what_it_cannot_take(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiseparableLayer.from_matrix(**{"statespace_dim": 1, **arguments})


@pytest.mark.parametrize("outputs, n", [(9, 9), (6, 15)])
def test_hankel_singular_values_are_those_that_a_realisation_drops(outputs, n):
    matrix = random_batch(outputs, n)
    causal, anticausal = hankel_singular_values(matrix)
    inputs, outs = get_stage_dims(n, outputs, 1)
    assert causal.shape == anticausal.shape and len(causal) == min(n, outputs) - 1
    for k in range(1, len(inputs)):
        row, column = sum(outs[:k]), sum(inputs[:k])
        for values, block in ((causal, matrix[row:, :column]), (anticausal, matrix[:row, column:])):
            expected = torch.linalg.svdvals(block)
            assert_equal(values[k - 1, :len(expected)], expected)
            assert (values[k - 1, len(expected):] == 0).all()
    # Where a single block has more than d of them, they are its distance to the represented matrix.
    with_one_block = torch.zeros(8, 8, dtype=torch.float64)
    with_one_block[4:, :4] = random_batch(4, 4)
    dropped = hankel_singular_values(with_one_block, [4, 4], [4, 4])[0][0, 2:]
    layer = SemiseparableLayer.from_matrix(with_one_block, 2, 4)
    assert (dense_matrix(layer) - with_one_block).norm().item() == pytest.approx(dropped.norm().item(), rel=1e-9)


def test_realisation_and_singular_values_take_arrays_too():
    matrix = random_batch(6, 9)
    array = np.asfortranarray(matrix.numpy().astype(">f8")[::-1])[::-1]
    for result, same in zip(hankel_singular_values(matrix), hankel_singular_values(array)):
        assert torch.equal(result, same)
    stages, same = (realise(form, *get_stage_dims(9, 6, 1), 2) for form in (matrix, array))
    assert all(torch.equal(stages[name], same[name]) for name in STATE_MATRICES)
    for function in (hankel_singular_values, partial(realise, input_dims=[3], output_dims=[3], statespace_dim=1)):
        with pytest.raises(ValueError, match="matrix has entries that are complex, NaN or infinite"):
            function(np.full((3, 3), np.nan))


def test_a_single_stage_has_no_hankel_blocks():
    assert [values.shape for values in hankel_singular_values(random_batch(1, 5))] == [(0, 1), (0, 1)]


# ---- the singular vectors of many blocks at a time ----

def low_rank_matrix(n, rank):
    return random_batch(n, rank) @ random_batch(rank, n, seed=3)


# Also what becomes of the blocks: their vectors are found together, or each gets a decomposition of its own.
LARGE_MATRICES = {
    "random": (get_random_glorot_uniform_matrix((150, 150), dtype=torch.float64), "together"),
    "uneven": (random_batch(150, 260), "together"),
    "semiseparable": (dense_matrix(make_layer(150, 3)).detach(), "together"),
    "smooth": (1 / (1 + (torch.arange(150.).double()[:, None] - torch.arange(150.).double()).abs()), "together"),
    "of rank 3": (low_rank_matrix(150, 3), "together"),
    "of rank 2": (low_rank_matrix(150, 2), "each"),
    "zero": (torch.zeros(150, 150).double(), "each"),
    "equal pairs": (torch.kron(low_rank_matrix(75, 3), torch.tensor([[0., 1], [-1, 0]]).double()), "either"),
}


@pytest.mark.parametrize("matrix, how", LARGE_MATRICES.values(), ids=LARGE_MATRICES.keys())
def test_vectors_found_together_realise_what_full_decompositions_realise(matrix, how, monkeypatch):
    decomposed, svd = [], realisation._hankel_svd
    monkeypatch.setattr(realisation, "_hankel_svd",
                        lambda T, row, column, d: decomposed.append((row, column)) or svd(T, row, column, d))
    dims, d = get_stage_dims(matrix.shape[1], matrix.shape[0], 1), 4 if how == "either" else 3

    def realised_matrix(largest_full_size):
        layer = SemiseparableLayer(matrix.shape[1], d, output_size=len(matrix), initialisation="zeros",
                                   dtype=torch.float64)
        layer.load_state_dict(realise(matrix, *dims, d, hankel_svds=partial(
            get_hankel_svds, largest_full_size=largest_full_size, nb_blocks=20)), strict=False)
        return layer.to_matrix()

    actual = realised_matrix(largest_full_size=1)
    # Blocks with a side of up to 6 (d + 5) = 48 are always decomposed.
    nb_large = 2 * sum(48 < min(len(matrix) - row, column) for row, column in zip(range(150), range(150)))
    if how != "either":
        is_square = matrix.shape[0] == matrix.shape[1]
        assert not is_square or len(decomposed) == 2 * 149 - (nb_large if how == "together" else 0)
    assert_equal(actual, realised_matrix(largest_full_size=1000), 1e-8)


def test_realisation_repeats_and_takes_no_global_state():
    T, dims = random_batch(100, 100), get_stage_dims(100, 100, 1)

    def realised():
        return realise(T, *dims, 2, hankel_svds=partial(get_hankel_svds, largest_full_size=1))

    first = realised()
    torch.rand(7)
    second = realised()
    assert all(torch.equal(first[name], second[name]) for name in STATE_MATRICES)


def test_realisation_works_under_another_default_device():
    matrix = random_batch(90, 90)
    expected = realise(matrix, *get_stage_dims(90, 90, 1), 2)
    with torch.device("meta"):
        actual = realise(matrix, *get_stage_dims(90, 90, 1), 2, hankel_svds=partial(
            get_hankel_svds, largest_full_size=1))
    assert_equal(actual["D"], expected["D"])


def test_blocks_that_do_not_converge_get_a_full_decomposition(monkeypatch):
    lanczos = realisation._svds_by_lanczos
    monkeypatch.setattr(realisation, "_svds_by_lanczos", partial(lanczos, max_restarts=2))
    T, dims = random_batch(100, 100), get_stage_dims(100, 100, 1)
    actual = realise(T, *dims, 2, hankel_svds=partial(get_hankel_svds, largest_full_size=1))
    expected = realise(T, *dims, 2, hankel_svds=partial(get_hankel_svds, largest_full_size=1000))
    assert_equal(actual["A"].abs(), expected["A"].abs(), 1e-6)


def test_realisation_restores_the_number_of_threads_even_if_it_fails():
    def fail(*arguments):
        assert torch.get_num_threads() == 1
        raise ArithmeticError

    torch.set_num_threads(3)
    realise(random_batch(6, 6), *get_stage_dims(6, 6, 1), 1)
    assert torch.get_num_threads() == 3
    with pytest.raises(ArithmeticError):
        realise(random_batch(6, 6), *get_stage_dims(6, 6, 1), 1, hankel_svds=fail)
    assert torch.get_num_threads() == 3


# ---- initialisations ----

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
    for values, size, spread in ((dense_matrix(layer), 120, 0.06), (layer.bias, 60, 0.4)):
        limit = (6 / size) ** 0.5
        assert 0.9 * limit < values.abs().max() <= limit * (1 + 1e-5)
        assert values.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=spread)


@pytest.mark.parametrize("initialisation", ["realisation", "direct"])
@pytest.mark.parametrize("n, outputs, d, m", [(13, 13, 3, 1), (24, 24, 5, 2), (30, 30, 4, 10), (31, 17, 3, 1)])
def test_blocks_off_the_diagonal_have_rank_statespace_dim(n, outputs, d, m, initialisation):
    torch.manual_seed(0)
    T = dense_matrix(SemiseparableLayer(n, d, m, output_size=outputs, initialisation=initialisation,
                                        dtype=torch.float64)).detach()
    inputs, outs = get_stage_dims(n, outputs, m)
    ranks = []
    for k in range(1, len(inputs)):
        row, column = sum(outs[:k]), sum(inputs[:k])
        for block in (T[row:, :column], T[:row, column:]):
            ranks.append(torch.linalg.matrix_rank(block, rtol=1e-10).item())
            assert ranks[-1] <= d
    assert max(ranks) == d  # not because the matrix is zero
    assert torch.linalg.matrix_rank(T) > d


@pytest.mark.parametrize("n, outputs, d, nb_realisations", [(50, 50, 1, 30), (50, 50, 5, 30), (150, 150, 5, 6),
                                                            (90, 40, 3, 20)])
def test_direct_initialisation_has_the_mean_square_entry_of_the_realisation(n, outputs, d, nb_realisations):
    torch.manual_seed(0)
    inputs, outs = get_stage_dims(n, outputs, 1)
    off_diagonal = 1 - torch.block_diag(*(torch.ones(rows, columns) for rows, columns in zip(outs, inputs)))

    def mean_square_entry(initialisation, nb_layers):
        total = 0
        for _ in range(nb_layers):
            T = SemiseparableLayer(n, d, output_size=outputs, initialisation=initialisation).to_matrix().detach()
            total += ((T * off_diagonal).square().sum() / off_diagonal.sum()).item() / nb_layers
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
        assert_equal(b.float(), a, 1e-6)


@pytest.mark.parametrize("initialisation", ["realisation", "direct", "zeros"])
@pytest.mark.parametrize("bias", [True, False])
def test_reset_parameters_draws_what_a_new_layer_has(initialisation, bias):
    def new_layer(seed):
        torch.manual_seed(seed)
        return SemiseparableLayer(20, 2, output_size=11, bias=bias, initialisation=initialisation)

    expected, layer = new_layer(3), new_layer(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert list(layer.state_dict()) == [*STATE_MATRICES] + ["bias"] * bias
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in layer.state_dict().items())


# ---- from_linear ----

@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_the_same_map_when_states_are_large_enough(bias):
    linear = nn.Linear(12, 7, bias=bias, dtype=torch.float64)
    layer = SemiseparableLayer.from_linear(linear, 6)
    u = random_batch(5, 12)
    assert_equal(layer(u), linear(u))
    assert (layer.bias is None) == (not bias) and layer.training
    layer.reset_parameters()  # draws anew, as that of a Linear does
    assert layer.D.abs().max() > 0 and not torch.equal(layer(u), linear(u))
    assert all(parameter.requires_grad for parameter in layer.parameters())
    assert SemiseparableLayer.from_linear(nn.Linear(12, 8), 2, 4).inputoutput_dim == 4


def test_from_linear_keeps_dtype_mode_and_what_is_frozen():
    linear = nn.Linear(6, 6, dtype=torch.bfloat16).eval()
    linear.weight.requires_grad_(False)
    layer = SemiseparableLayer.from_linear(linear, 2)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16} and not layer.training
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["bias"]
