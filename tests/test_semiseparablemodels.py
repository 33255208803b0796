"""Facts about the SSS matrix that a layer applies. References: the dense matrix of its definition (sss_reference.py),
and the layer's own recursion, which is held against that matrix first."""

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import semiseparablemodels
from model_training import get_nb_model_parameters
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, TwoHiddenLayeredSSNet, _merge_stages, _stage_matrices
from sss_reference import (STATE_MATRICES, assert_equal, assert_outputs_and_gradients_equal, by_definition,
                           dense_matrix, make_layer, outputs_and_gradients, padding_of, random_batch, stages_of,
                           true_shapes)
from standardmodels import StandardTHLFFNN

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:SemiseparableLayer")]

# (input_size, statespace_dim, inputoutput_dim): K = 1, 2, 3 and more stages, states larger than the layer
SIZES = [(1, 1, 1), (1, 3, 1), (2, 1, 1), (3, 2, 1), (6, 4, 6), (6, 2, 3), (9, 2, 3), (5, 9, 1), (12, 20, 2),
         (13, 3, 1), (24, 5, 2), (30, 4, 10), (50, 5, 1)]
# above LARGEST_DENSE_SIZE, several chunks as they come, full and not full
LARGE_SIZES = [(129, 1, 1), (150, 5, 1), (200, 3, 8), (260, 2, 130), (150, 20, 50), (131, 9, 131), (300, 2, 1)]
# (input_size, output_size, statespace_dim, inputoutput_dim): more inputs or outputs, even and uneven splits, K = 1, 2
RECTANGULAR_SIZES = [(6, 1, 2, 1), (1, 6, 2, 1), (7, 2, 3, 1), (2, 7, 9, 1), (12, 6, 2, 1), (12, 6, 3, 2),
                     (22, 13, 3, 1),
                     (13, 22, 3, 1), (30, 20, 4, 10), (11, 29, 2, 1)]
LARGE_RECTANGULAR_SIZES = [(290, 70, 3, 1), (80, 270, 2, 2), (300, 150, 2, 1), (784, 256, 4, 1)]
# Most tests take 22 inputs: asked for chunks of 3 they get chunks of 4 stages, the last one with two empty ones.
EVERY_CHUNKING = pytest.mark.parametrize("chunk_size", [None, 3], ids=["one chunk", "several chunks"])


# ---- the layer is the matrix of its definition ----

@pytest.mark.parametrize("n, d, m", [*SIZES, (150, 5, 1)])
def test_recursion_and_every_gradient_equal_the_dense_matrix_of_the_definition(n, d, m):
    layer = make_layer(n, d, m)
    assert_outputs_and_gradients_equal(layer, layer.recursion, by_definition(layer))


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 16])
@pytest.mark.parametrize("n, d, m", SIZES)
def test_forward_and_every_gradient_equal_the_dense_matrix_of_the_definition(n, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m)
    assert_outputs_and_gradients_equal(layer, layer, by_definition(layer))


@pytest.mark.parametrize("n, d, m", [*LARGE_SIZES, (1000, 3, 1), (1030, 2, 5)])
def test_forward_and_every_gradient_of_large_layers_equal_the_recursion(n, d, m):
    layer = make_layer(n, d, m)
    assert (layer._chunk_length < layer.nb_states) == (m < n)  # else this tests less than it says
    assert_outputs_and_gradients_equal(layer, layer, layer.recursion)


@pytest.mark.parametrize("chunk_size", [None, 3, 16])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("n, outputs, d, m", RECTANGULAR_SIZES)
def test_rectangular_layers_equal_the_dense_matrix_of_the_definition(n, outputs, d, m, bias, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m, output_size=outputs, bias=bias)
    for function in (layer, layer.recursion):
        assert_outputs_and_gradients_equal(layer, function, by_definition(layer))
    assert_equal(layer.to_matrix(), dense_matrix(layer))


@pytest.mark.parametrize("n, outputs, d, m", LARGE_RECTANGULAR_SIZES)
def test_large_rectangular_layers_equal_the_recursion(n, outputs, d, m):
    layer = make_layer(n, d, m, output_size=outputs)
    assert layer._chunk_length < layer.nb_states
    assert_outputs_and_gradients_equal(layer, layer, layer.recursion)


# The rule: sqrt(inputs outputs) of a chunk is at least 32 and at least 4 d, up to the power of two; 128 are one chunk.
@pytest.mark.parametrize("n, outputs, d, chunk_length, nb_runs", [
    (128, 128, 1, 128, 1), (129, 129, 1, 32, 2), (160, 160, 1, 32, 1), (129, 129, 20, 128, 2), (784, 256, 4, 32, 2),
    (70, 290, 3, 16, 3)])
def test_chunks_are_as_large_as_is_fast_and_equal_ones_share_a_run(n, outputs, d, chunk_length, nb_runs):
    layer = SemiseparableLayer(n, d, output_size=outputs, initialisation="zeros")
    assert (layer._chunk_length, len(layer._runs)) == (chunk_length, nb_runs)


@EVERY_CHUNKING
@pytest.mark.parametrize("nb_samples", [0, 1, 40])
def test_any_number_of_samples_equals_the_dense_matrix(nb_samples, chunk_size, set_chunks):
    set_chunks(chunk_size)
    for outputs in (22, 13):
        layer = make_layer(22, 2, output_size=outputs)
        assert_outputs_and_gradients_equal(layer, layer, by_definition(layer), nb_samples)


@pytest.mark.parametrize("n, d, m", [(1, 1, 1), (12, 20, 2), (24, 5, 2), (150, 5, 1)])
def test_to_matrix_is_the_dense_matrix_and_differentiable_and_does_not_depend_on_the_bias(n, d, m):
    layer = make_layer(n, d, m)
    cotangent = random_batch(n, n)
    state_matrices = [getattr(layer, name) for name in STATE_MATRICES]

    def gradients(T):
        return torch.autograd.grad((T * cotangent).sum(), state_matrices, materialize_grads=True)

    with torch.no_grad():
        layer.bias.fill_(1e12)  # so large that adding and subtracting it would cost all digits
    T, expected = layer.to_matrix(), dense_matrix(layer)
    assert_equal(T, expected)
    for actual_gradient, expected_gradient in zip(gradients(T), gradients(expected)):
        assert_equal(actual_gradient, expected_gradient)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("n, outputs, d, m", [(1, 1, 1, 1), (5, 5, 2, 1), (8, 8, 2, 2), (5, 3, 2, 1), (3, 7, 1, 1)])
def test_first_and_second_derivatives_pass_gradcheck(n, outputs, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m, output_size=outputs)
    names, values = zip(*layer.named_parameters())
    inputs = [value.detach().clone().requires_grad_() for value in (random_batch(2, n), *values)]

    def function(u, *values):
        return functional_call(layer, dict(zip(names, values)), (u,))

    assert torch.autograd.gradcheck(function, inputs, atol=1e-8, rtol=1e-6)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-7, rtol=1e-5)


@EVERY_CHUNKING
@pytest.mark.parametrize("name", STATE_MATRICES)
def test_gradients_reach_parameters_that_are_zero(name, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 3)
    with torch.no_grad():
        getattr(layer, name).zero_()
    assert_outputs_and_gradients_equal(layer, layer, by_definition(layer))
    layer(random_batch(5, 22)).sum().backward()
    assert getattr(layer, name).grad.abs().max() > 0


@EVERY_CHUNKING
def test_gradients_are_right_when_only_some_of_them_are_wanted(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 3)
    u, cotangent = random_batch(5, 22), random_batch(5, 22, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    for create_graph in (False, True):
        for name in [*STATE_MATRICES, "bias"]:
            layer.requires_grad_(False)
            wanted = getattr(layer, name).requires_grad_()
            gradient, = torch.autograd.grad((layer(u) * cotangent).sum(), wanted, create_graph=create_graph)
            assert_equal(gradient, expected[name])
    layer.requires_grad_(False)
    u.requires_grad_()
    (layer(u) * cotangent).sum().backward()
    assert_equal(u.grad, expected["input"])


# ---- padding ----

@EVERY_CHUNKING
def test_padding_has_zero_gradients_and_stays_zero_under_adam(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(24, 5, 2)
    start, padding = copy.deepcopy(layer), padding_of(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        target = random_batch(6, 24, seed=100 + step)
        (layer(random_batch(6, 24, seed=step)) - target).square().mean().backward()
        for name, is_padding in padding.items():
            assert (getattr(layer, name).grad[is_padding] == 0).all()
        optimizer.step()
    for name, is_padding in padding.items():
        value = getattr(layer, name)
        assert is_padding.any() == (name != "D") and (value[is_padding] == 0).all()
        assert (value != getattr(start, name))[~is_padding].all()  # all the others learn


@pytest.mark.parametrize("initialisation", ["realisation", "direct", "zeros"])
@pytest.mark.parametrize("n, d, m", [(24, 5, 2), (6, 2, 6), (150, 4, 1)])
def test_padding_of_a_fresh_layer_is_zero(n, d, m, initialisation):
    layer = SemiseparableLayer(n, d, m, initialisation=initialisation)
    for name, is_padding in padding_of(layer).items():
        assert (getattr(layer, name)[is_padding] == 0).all()
        assert layer.padding_sizes.get(name, 0) == is_padding.sum()


def disturb(layer):
    """Anything in the padding, as in-place initialisations and noise put there."""
    with torch.no_grad():
        for name, is_padding in padding_of(layer).items():
            getattr(layer, name)[is_padding] = float("nan")
    return layer


@EVERY_CHUNKING
@pytest.mark.parametrize("n, outputs, d, m", [(22, 22, 3, 1), (24, 24, 5, 2), (22, 13, 3, 1), (5, 17, 2, 1)])
def test_what_stands_in_the_padding_changes_nothing(n, outputs, d, m, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(n, d, m, output_size=outputs)
    disturbed = disturb(copy.deepcopy(layer))
    u, cotangent = random_batch(5, n), random_batch(5, outputs, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    for function in (disturbed, disturbed.recursion):
        actual = outputs_and_gradients(disturbed, function, u, cotangent)
        for name in expected:
            assert_equal(actual[name], expected[name])


def test_weight_norm_pruning_and_noise_leave_the_layer_what_it_is():
    layer = make_layer(22, 3)
    expected, u = layer.recursion(random_batch(5, 22)), random_batch(5, 22)
    nb_parameters = get_nb_model_parameters(layer)
    pruned = prune.l1_unstructured(copy.deepcopy(layer), "A", amount=0.)
    assert_equal(pruned(u), expected)
    assert get_nb_model_parameters(pruned) == nb_parameters
    normed = weight_norm(copy.deepcopy(layer), "A")
    assert_equal(normed(u), expected)
    assert get_nb_model_parameters(normed) == nb_parameters + len(normed.parametrizations.A.original0)
    normed(u).sum().backward()
    assert torch.isfinite(normed.parametrizations.A.original1.grad[1:-1]).all()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert_outputs_and_gradients_equal(layer, layer, by_definition(layer))


# ---- sizes and number of parameters ----

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


@pytest.mark.parametrize("n, outputs, d, m", RECTANGULAR_SIZES)
def test_number_of_parameters_is_that_of_the_true_entries(n, outputs, d, m):
    layer = SemiseparableLayer(n, d, m, output_size=outputs, bias=False, initialisation="zeros")
    assert get_nb_model_parameters(layer) == sum(
        rows * columns for shapes in true_shapes(layer).values() for rows, columns in shapes)


def test_nets_have_the_published_numbers_of_parameters():
    sizes = (16, 10, 50)
    nets = [StandardTHLFFNN(*sizes), Rank1THLFFNN(*sizes),
            *(TwoHiddenLayeredSSNet(*sizes, statespace_dim=d) for d in range(1, 6))]
    assert [get_nb_model_parameters(net) for net in nets] == [3910, 1510, 1752, 2220, 2848, 3620, 4520]


def test_repr_names_the_sizes_and_defaults_are_ten_states_and_one_input():
    assert repr(SemiseparableLayer(30)) == (
        "SemiseparableLayer(input_size=30, output_size=30, statespace_dim=10, inputoutput_dim=1, nb_states=30, "
        "bias=True)")


# ---- products of many small A_k ----

def layer_with_small_A(n, dtype, size):
    layer = make_layer(n, 1, dtype=dtype)
    with torch.no_grad():
        for name in "AE":
            for matrix in stages_of(layer)[name]:
                matrix.fill_(size)
    return layer


def nb_denormals(tensors):
    return sum(((tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)).sum().item() for tensor in tensors)


@pytest.mark.parametrize("n, dtype, size", [
    (128, torch.float32, 0.05), (300, torch.float32, 0.05), (128, torch.float64, 0.001), (300, torch.float64, 1e-10)])
def test_no_denormal_number_gets_into_the_large_products(n, dtype, size, monkeypatch):
    layer = layer_with_small_A(n, dtype, size)

    def chunk_matrices():
        M = _stage_matrices(layer._chunk_length, *(getattr(layer, name) for name in STATE_MATRICES))
        return _merge_stages(M, layer._chunk_length, *layer.D.shape[1:])

    assert nb_denormals(chunk_matrices()) == 0
    monkeypatch.setattr(semiseparablemodels, "_flush_denormals", lambda matrices: matrices)
    assert nb_denormals(chunk_matrices()) > 0  # there are some to remove


@pytest.mark.parametrize("n, size", [(128, 0.001), (150, 1e-10)], ids=["one chunk", "several chunks"])
def test_layers_whose_products_underflow_still_equal_the_dense_matrix(n, size):
    layer = layer_with_small_A(n, torch.float64, size)
    assert_outputs_and_gradients_equal(layer, layer, by_definition(layer))


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
    ((10, 1, 3), "inputoutput_dim must divide input_size, or output_size if that is smaller, got 3 and 10"),
    ((0,), "input_size must be a positive integer, got 0"),
    ((8, 1.5), "statespace_dim must be a positive integer, got 1.5"),
    ((8, 1, -2), "inputoutput_dim must be a positive integer, got -2")])
def test_sizes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiseparableLayer(*arguments)
    with pytest.raises(ValueError, match="output_size must be a positive integer, got 0"):
        SemiseparableLayer(8, output_size=0)


def test_unknown_initialisation_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'realisation', 'direct'.*'glorot'"):
        SemiseparableLayer(8, initialisation="glorot")


@pytest.mark.parametrize("n", [8, 300], ids=["one chunk", "several chunks"])
def test_inputs_that_do_not_fit_are_named(n):
    layer = SemiseparableLayer(np.int64(n), np.int32(2), initialisation="direct")
    for call in (layer, layer.recursion):
        for u, message in ((torch.zeros(5, n - 1), f"(5, {n - 1})"), (torch.zeros(n, 1), f"({n}, 1)"),
                           (torch.tensor(1.), "()"), (torch.zeros(5, n, dtype=torch.int64), "torch.int64"),
                           (torch.zeros(5, n, dtype=torch.float64), "torch.float64")):
            with pytest.raises(ValueError, match=re.escape(message)):
                call(u)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="torch.int64"):
        layer(torch.zeros(5, n, dtype=torch.int64))


def test_a_layer_with_more_parameters_than_two_dense_ones_warns_of_the_second_argument():
    with pytest.warns(UserWarning, match="more than twice.*keyword output_size"):
        SemiseparableLayer(78, 25, initialisation="zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SemiseparableLayer(78, 5, output_size=25, initialisation="zeros")
