"""Facts about realisation.py and SemiseparableLayer.from_matrix: from a dense matrix to stages, and initialisations."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import realisation
from realisation import get_random_glorot_uniform_matrix, get_stage_dims, hankel_singular_values, realise, to_matrix
from semiseparablemodels import SemiseparableLayer
from sss_reference import assert_equal, dense_matrix, make_layer, random_batch, stages_of

pytestmark = pytest.mark.filterwarnings("ignore:SemiseparableLayer")

ROW, COLUMN = torch.arange(12.).double()[:, None], torch.arange(12.).double()
LOW_RANK = random_batch(100, 2) @ random_batch(2, 100, seed=3)
PAIRS = torch.kron(LOW_RANK[:50, :50], torch.tensor([[0., 1], [-1, 0]]).double())  # every singular value twice


@pytest.mark.parametrize("n, outputs, d, m", [
    (13, 13, 3, 1), (24, 24, 5, 2), (30, 30, 4, 10), (23, 14, 3, 1), (10, 33, 4, 2),
    (1, 1, 1, 1), (7, 7, 3, 1), (12, 12, 50, 2), (12, 12, 1, 12), (9, 4, 4, 1)])  # enough for any matrix
def test_from_matrix_recovers_a_matrix_that_is_semiseparable(n, outputs, d, m):
    matrix = dense_matrix(make_layer(n, d, m, output_size=outputs)).detach()
    assert_equal(dense_matrix(SemiseparableLayer.from_matrix(matrix, d, m)), matrix, 1e-9)
    if 1 < d < min(n, outputs):
        worse = dense_matrix(SemiseparableLayer.from_matrix(matrix, d - 1, m))
        assert (worse - matrix).norm() > 1e-3 * matrix.norm()  # one state less is not enough


def test_realisations_are_balanced():
    """Reachability and observability Gramians of causal states are the Hankel singular values. (That the matrix is that
    of the authors' truncated realisation: see test_golden.py.)"""
    T, reachability, observability = random_batch(12, 12), torch.zeros(0, 0).double(), torch.zeros(0, 0).double()
    A, B, C, *_ = stages_of(SemiseparableLayer.from_matrix(T, 6)).values()
    causal, _ = hankel_singular_values(T)
    for k in range(11):
        reachability = A[k] @ reachability @ A[k].T + B[k] @ B[k].T
        assert_equal(reachability, causal[k][:len(A[k])].diag())
    for k in range(11, 0, -1):
        observability = A[k].T @ observability @ A[k] + C[k].T @ C[k]
        assert_equal(observability, causal[k - 1][:len(observability)].diag())


@pytest.mark.parametrize("matrix, rank", [
    (torch.zeros(12, 12), 1), (torch.ones(12, 12), 1), (ROW + COLUMN, 2), ((ROW - COLUMN).abs() <= 1, 1),
    (ROW >= COLUMN, 1), (1 / (1 + ROW + COLUMN), 6), (torch.full((12, 12), 1e-200, dtype=torch.float64), 1)])
def test_matrices_without_full_rank_are_exact_and_states_beyond_the_rank_are_zero(matrix, rank):
    """Their singular values are rounding errors, which the inverse must not blow up."""
    for d, m in ((rank, 1), (6, 1), (6, 3)):
        layer = SemiseparableLayer.from_matrix(matrix.double(), d, m)
        assert_equal(dense_matrix(layer), matrix.double(), 1e-9)
        for name, stages in stages_of(layer).items():
            assert name not in "ABEF" or not any(stage[rank:].any() for stage in stages)
            assert name not in "ACEG" or not any(stage[:, rank:].any() for stage in stages)


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_the_same_map_in_the_same_mode_with_the_same_parameters_frozen(bias):
    linear = nn.Linear(12, 8, bias=bias, dtype=torch.float64).eval()
    linear.weight.requires_grad_(False)
    layer, u = SemiseparableLayer.from_linear(linear, 8, 4), random_batch(5, 12)
    assert_equal(layer(u), linear(u))
    trained = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    assert trained == ["bias"] * bias and not layer.training
    layer.reset_parameters()  # draws anew, as that of a Linear does
    assert layer.D.abs().max() > 0 and not torch.equal(layer(u), linear(u))


@pytest.mark.parametrize("derive", [prune.identity, nn.utils.parametrizations.weight_norm])
def test_from_linear_takes_a_derived_weight_as_it_is_now_and_trains_it(derive):
    linear, u = derive(nn.Linear(12, 8, dtype=torch.float64), name="weight"), random_batch(5, 12)
    with torch.no_grad():
        linear(u)
        for parameter in linear.parameters():
            parameter.mul_(2)
        layer = SemiseparableLayer.from_linear(linear, 8, 4)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    assert_equal(layer(u), linear(u))


@pytest.mark.parametrize("make, dtype", [
    (lambda values: values.astype(int), torch.float32), (np.ndarray.tolist, torch.float32),
    (lambda values: np.broadcast_to(values, values.shape), torch.float64),
    (lambda values: np.asfortranarray(values.astype(">f4")[::-1])[::-1], torch.float32),
    (lambda values: nn.Parameter(torch.from_numpy(values).bfloat16()), torch.bfloat16)])
@pytest.mark.filterwarnings("error")
def test_matrices_and_biases_in_any_form_are_realised_in_their_dtype_and_left_alone(make, dtype):
    values = np.arange(16.).reshape(4, 4) % 7
    matrix, u = make(values), torch.ones(4, dtype=dtype)
    layer = SemiseparableLayer.from_matrix(matrix, 2, bias=matrix[0])
    assert_equal(layer(u), torch.from_numpy(values @ np.ones(4) + values[0]).to(dtype), 1e-2)
    for parameter in layer.parameters():
        assert parameter.dtype == dtype and parameter.requires_grad and parameter.is_leaf
        parameter.detach().zero_()
    assert torch.equal(to_matrix(matrix).double(), torch.from_numpy(values))


@pytest.mark.parametrize("matrix, message", [
    (torch.zeros(3), "shape (3,)"), (np.zeros((2, 3, 3)), "shape (2, 3, 3)"), (torch.zeros(0, 3), "shape (0, 3)"),
    (torch.eye(3) / torch.tensor([0., 1, 1]), "matrix has entries that are complex, NaN or infinite"),
    (torch.eye(3) * 1j, "matrix has entries that are complex"), (torch.eye(3).to_sparse(), "must be dense"),
    ([[0, 1j]], "real numbers"), ([["0", "1"]], "real numbers"), (np.ma.masked_equal(np.eye(3), 0), "neither masked")])
def test_what_is_no_matrix_of_finite_real_numbers_is_named(matrix, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_matrix(matrix)


@pytest.mark.parametrize("outputs, n", [(9, 9), (6, 15), (1, 5)])
def test_hankel_singular_values_are_those_of_the_blocks(outputs, n):
    matrix, (inputs, outs) = random_batch(outputs, n), get_stage_dims(n, outputs, 1)
    causal, anticausal = hankel_singular_values(matrix)
    assert len(causal) == len(anticausal) == min(n, outputs) - 1
    for k in range(1, len(inputs)):
        row, column = sum(outs[:k]), sum(inputs[:k])
        for values, block in ((causal[k - 1], matrix[row:, :column]), (anticausal[k - 1], matrix[:row, column:])):
            assert_equal(values[:min(block.shape)], torch.linalg.svdvals(block))
            assert not values[min(block.shape):].any()


@pytest.mark.parametrize("matrix, d, is_lost", [
    (random_batch(100, 100), 3, False), (random_batch(90, 160), 3, False), (random_batch(160, 90), 3, False),
    (dense_matrix(make_layer(100, 3)).detach(), 3, False), (PAIRS, 4, False), (LOW_RANK, 2, False),
    (LOW_RANK, 3, True), (LOW_RANK * 0, 3, True), (LOW_RANK + 1e-7 * random_batch(100, 100), 3, True),
    (random_batch(100, 100) * 1e160, 3, True), (random_batch(100, 100) * 1e-160, 3, True)])
def test_large_blocks_are_realised_by_squares_unless_singular_values_are_lost(matrix, d, is_lost, monkeypatch):
    expected, svd, decomposed = SemiseparableLayer.from_matrix(matrix, d).to_matrix(), torch.linalg.svd, []
    monkeypatch.setattr(realisation, "LARGEST_FULL_SIZE", 6 * d)
    monkeypatch.setattr(torch.linalg, "svd", lambda H, **options: decomposed.append(min(H.shape)) or svd(H, **options))
    assert_equal(SemiseparableLayer.from_matrix(matrix, d).to_matrix(), expected, 1e-8)
    assert (max(decomposed) > 6 * d) == is_lost


def test_realisation_leaves_threads_as_they_are_and_takes_no_default_device(monkeypatch):
    matrix, dims = random_batch(6, 6), get_stage_dims(6, 6, 1)
    torch.set_num_threads(3)
    with torch.device("meta"):
        realise(matrix, *dims, 1)
    monkeypatch.setattr(torch.linalg, "svd", lambda H, **options: torch.get_num_threads() / 0)
    with pytest.raises(ZeroDivisionError):
        realise(matrix, *dims, 1)
    assert torch.get_num_threads() == 3


def test_paper_initialisation_realises_a_glorot_uniform_matrix():
    torch.manual_seed(0)
    layer, large = SemiseparableLayer(60, 30), get_random_glorot_uniform_matrix((300, 200))
    for values, size, spread in ((dense_matrix(layer), 120, 0.06), (layer.bias, 60, 0.4), (large, 500, 0.03)):
        limit = (6 / size) ** 0.5
        assert 0.9 * limit < values.abs().max() <= limit * (1 + 1e-5)
        assert values.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=spread)


@pytest.mark.parametrize("initialisation", ["realisation", "direct"])
@pytest.mark.parametrize("n, outputs, d, m", [(30, 30, 4, 10), (31, 17, 3, 1)])
def test_blocks_off_the_diagonal_have_rank_statespace_dim(n, outputs, d, m, initialisation):
    T = SemiseparableLayer(n, d, m, output_size=outputs, initialisation=initialisation, dtype=torch.float64).to_matrix()
    causal, anticausal = hankel_singular_values(T, *get_stage_dims(n, outputs, m))
    ranks = [(values > 1e-10 * values[0]).sum() for values in (*causal, *anticausal)]
    assert max(ranks) == d < torch.linalg.matrix_rank(T)


@pytest.mark.parametrize("n, outputs, d", [(50, 50, 1), (50, 50, 5), (90, 40, 3)])
def test_direct_initialisation_has_the_mean_square_entry_of_the_realisation(n, outputs, d):
    torch.manual_seed(0)
    diagonal = torch.block_diag(*(torch.ones(p, m) for m, p in zip(*get_stage_dims(n, outputs, 1))))
    # One direct layer scatters by about 20 % at n = 50, d = 1: the mean over 50 of them by 3 %.
    direct, realised = (torch.stack([
        SemiseparableLayer(n, d, output_size=outputs, initialisation=name).to_matrix().detach()[diagonal == 0]
        for _ in range(50)]).square().mean().item() for name in ("direct", "realisation"))
    assert direct == pytest.approx(realised, rel=0.2)


@pytest.mark.parametrize("initialisation", ["realisation", "direct", "zeros"])
def test_a_seed_means_the_same_parameters_in_a_new_layer_another_dtype_and_after_a_reset(initialisation):
    def new_layer(seed, **options):
        torch.manual_seed(seed)
        return SemiseparableLayer(20, 2, output_size=11, initialisation=initialisation, **options)

    expected, double, reset = new_layer(3), new_layer(3, dtype=torch.float64), new_layer(4)
    assert torch.equal(expected.D, reset.D) == (initialisation == "zeros")
    torch.manual_seed(3)
    reset.reset_parameters()
    torch.set_default_dtype(torch.half)
    try:
        half = new_layer(3)
    finally:
        torch.set_default_dtype(torch.float32)
    for value, same, precise, coarse in zip(*map(nn.Module.parameters, (expected, reset, double, half))):
        assert torch.equal(same, value) and torch.equal(coarse, value.half())
        assert_equal(precise.float(), value, 1e-6)
