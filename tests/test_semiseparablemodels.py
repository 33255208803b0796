"""Facts about the SSS matrix that a layer applies. References: the dense matrix of its definition (sss_reference.py),
and the layer's own recursion, which is held against that matrix first."""

import copy
import re

import numpy as np
import pytest
import torch
from torch.func import functional_call

import semiseparablemodels
from model_training import get_nb_model_parameters
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, TwoHiddenLayeredSSNet, _merge_stages, _stage_matrices
from sss_reference import (STATE_MATRICES, assert_equal, assert_outputs_and_gradients_equal, by_definition,
                           dense_matrix, make_layer, outputs_and_gradients, padding_of, random_batch, stages_of,
                           true_shapes)
from standardmodels import StandardTHLFFNN

pytestmark = pytest.mark.filterwarnings("ignore:SemiseparableLayer")

# inputs, outputs, statespace_dim, inputoutput_dim: one stage and more, states larger than the layer, uneven splits
EVERY_SIZE = pytest.mark.parametrize("n, outputs, d, m", [
    (1, 1, 3, 1), (2, 2, 1, 1), (3, 3, 2, 1), (6, 6, 4, 6), (6, 6, 2, 3), (9, 9, 2, 3), (12, 12, 20, 2), (24, 24, 5, 2),
    (30, 30, 4, 10), (50, 50, 5, 1), (6, 1, 2, 1), (2, 7, 9, 1), (12, 6, 3, 2), (22, 13, 3, 1), (13, 22, 3, 1)])
# Most tests take 22 inputs: asked for chunks of 3 they get chunks of 4 stages, the last one with two empty ones.
EVERY_CHUNKING = pytest.mark.parametrize("chunk_size", [None, 3], indirect=True)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 16], indirect=True)
@EVERY_SIZE
def test_forward_recursion_and_every_gradient_equal_those_of_the_definition(n, outputs, d, m, chunk_size):
    layer = make_layer(n, d, m, output_size=outputs)
    for function in (layer, layer.recursion):
        assert_outputs_and_gradients_equal(layer, function, by_definition(layer))


# Above LARGEST_DENSE_SIZE: several chunks as they come, full and not full, and of one stage
@pytest.mark.parametrize("n, outputs, d, m", [
    (129, 129, 1, 1), (200, 200, 3, 8), (260, 260, 2, 130), (150, 150, 20, 50), (131, 131, 9, 131), (300, 300, 2, 1),
    (1030, 1030, 2, 5), (290, 70, 3, 1), (80, 270, 2, 2), (784, 256, 4, 1)])
def test_forward_and_every_gradient_of_large_layers_equal_the_recursion(n, outputs, d, m):
    layer = make_layer(n, d, m, output_size=outputs)
    assert (layer._chunk_length < layer.nb_states) == (m < n)  # else this tests less than it says
    assert_outputs_and_gradients_equal(layer, layer, layer.recursion)


@pytest.mark.parametrize("n, outputs, d, m", [(1, 1, 1, 1), (144, 144, 5, 12), (22, 13, 3, 1)])
def test_to_matrix_is_the_dense_matrix_and_differentiable(n, outputs, d, m):
    layer = make_layer(n, d, m, output_size=outputs)
    assert_equal(layer.to_matrix(), dense_matrix(layer))
    assert_outputs_and_gradients_equal(layer, lambda u: u @ layer.to_matrix().mT + layer.bias, by_definition(layer))


@pytest.mark.parametrize("n, outputs, d, m, chunk_size", [
    (2, 2, 1, 1, None), (4, 4, 1, 2, None), (4, 4, 2, 1, 1), (4, 3, 1, 1, 1), (3, 5, 1, 1, 2)], indirect=["chunk_size"])
def test_first_and_second_derivatives_pass_gradcheck(n, outputs, d, m, chunk_size):
    layer = make_layer(n, d, m, output_size=outputs)
    names, values = zip(*layer.named_parameters())
    inputs = [value.detach().clone().requires_grad_() for value in (random_batch(2, n), *values)]

    def function(u, *values):
        return functional_call(layer, dict(zip(names, values)), (u,))

    assert torch.autograd.gradcheck(function, inputs, atol=1e-8, rtol=1e-6)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-7, rtol=1e-5)


@EVERY_CHUNKING
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_are_right_when_only_some_of_them_are_wanted(create_graph, chunk_size):
    layer, u, cotangent = make_layer(22, 3), random_batch(5, 22), random_batch(5, 22, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    for name, wanted in [("input", u), *layer.named_parameters()]:
        layer.requires_grad_(False)
        wanted.requires_grad_()
        gradient, = torch.autograd.grad((layer(u) * cotangent).sum(), wanted, create_graph=create_graph)
        assert_equal(gradient, expected[name])
        u = u.detach()


@EVERY_CHUNKING
@pytest.mark.parametrize("name", STATE_MATRICES)
def test_parameters_that_are_zero_have_gradients_and_nan_shows_in_the_output(name, chunk_size):
    layer, u = make_layer(22, 3), random_batch(5, 22)
    with torch.no_grad():
        getattr(layer, name).zero_()
    assert_outputs_and_gradients_equal(layer, layer, by_definition(layer))
    layer(u).sum().backward()
    assert getattr(layer, name).grad.abs().max() > 0
    with torch.no_grad():
        stages_of(layer)[name][9][0, 0] = torch.nan
    assert layer(u).isnan().any()


@pytest.mark.parametrize("n, dtype, size", [(128, torch.float32, 0.05), (150, torch.float64, 1e-10)])
def test_products_of_small_A_k_underflow_to_zero_and_the_layer_stays_exact(n, dtype, size, monkeypatch):
    layer = make_layer(n, 1, dtype=dtype)
    with torch.no_grad():
        for matrix in stages_of(layer)["A"] + stages_of(layer)["E"]:
            matrix.fill_(size)
    assert_outputs_and_gradients_equal(layer, layer, layer.recursion, tolerance=1e-10 if n == 150 else 1e-4)

    def nb_denormals():
        M = _stage_matrices(layer._chunk_length, *(getattr(layer, name) for name in STATE_MATRICES))
        return sum(((chunks != 0) & (chunks.abs() < torch.finfo(dtype).tiny)).sum().item()
                   for chunks in _merge_stages(M, layer._chunk_length, *layer.D.shape[1:]))

    assert nb_denormals() == 0
    monkeypatch.setattr(semiseparablemodels, "_flush_denormals", lambda matrices: matrices)
    assert nb_denormals() > 0  # there are some to remove


@EVERY_CHUNKING
@pytest.mark.parametrize("initialisation", ["realisation", "direct"])
def test_padding_is_zero_has_zero_gradients_and_stays_zero_under_adam(initialisation, chunk_size):
    layer = SemiseparableLayer(24, 5, 2, initialisation=initialisation)
    start, padding = copy.deepcopy(layer), padding_of(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for seed in range(3):
        (layer(random_batch(6, 24, dtype=torch.float32, seed=seed)) - 1).square().mean().backward()
        optimizer.step()
    for name, is_padding in padding.items():
        value = getattr(layer, name)
        assert not value[is_padding].any() and not value.grad[is_padding].any()
        assert (value != getattr(start, name))[~is_padding].all()  # all the others learn


@EVERY_CHUNKING
@pytest.mark.parametrize("n, outputs, d, m", [(22, 22, 3, 1), (24, 24, 5, 2), (22, 13, 3, 1), (5, 17, 2, 1)])
def test_what_stands_in_the_padding_changes_nothing(n, outputs, d, m, chunk_size):
    layer = make_layer(n, d, m, output_size=outputs)
    disturbed = copy.deepcopy(layer)
    with torch.no_grad():  # as in-place initialisations and noise do
        for name, is_padding in padding_of(layer).items():
            getattr(disturbed, name)[is_padding] = torch.nan
    for function in (disturbed, disturbed.recursion):
        assert_outputs_and_gradients_equal(disturbed, function, by_definition(disturbed))


@EVERY_SIZE
def test_number_of_parameters_is_that_of_the_true_entries(n, outputs, d, m):
    layer = SemiseparableLayer(n, d, m, output_size=outputs, initialisation="zeros")
    assert layer.stage_shapes == true_shapes(layer)
    nb_parameters = sum(rows * columns for shapes in true_shapes(layer).values() for rows, columns in shapes) + outputs
    assert get_nb_model_parameters(layer) == nb_parameters
    if n == outputs:
        K, dims = n // m, [min(d, k, n - k) for k in range(0, n + 1, m)]
        assert layer.state_dims == layer.anticausal_state_dims == dims
        assert nb_parameters == K * m ** 2 + 4 * m * sum(dims) + 2 * np.dot(dims[1:], dims[:-1]) + n


def test_nets_have_the_published_numbers_of_parameters():
    nets = [make(16, 10, 50) for make in (StandardTHLFFNN, Rank1THLFFNN)]
    nets += [TwoHiddenLayeredSSNet(16, 10, 50, d, initialisation="zeros") for d in range(1, 6)]
    assert [get_nb_model_parameters(net) for net in nets] == [3910, 1510, 1752, 2220, 2848, 3620, 4520]


@pytest.mark.parametrize("arguments, message", [
    (dict(inputoutput_dim=3), "inputoutput_dim must divide input_size, or output_size if that is smaller, got 3 and 8"),
    (dict(statespace_dim=1.5), "statespace_dim must be an integer of 1 or more, got 1.5"),
    (dict(initialisation="glorot"), "initialisation must be one of 'realisation', 'direct', 'zeros', got 'glorot'")])
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SemiseparableLayer(8, **arguments)


@pytest.mark.parametrize("u, message", [
    (torch.zeros(5, 7), "(5, 7)"), (torch.zeros(8, 1), "(8, 1)"), (torch.tensor(1.), "()"),
    (torch.zeros(5, 8).long(), "torch.int64"), (torch.zeros(5, 8).double(), ".to(torch.float32) converts")])
def test_inputs_that_reshape_or_a_cast_would_take_are_named(u, message):
    layer = SemiseparableLayer(np.int64(8), np.int32(2))
    for call in (layer, layer.recursion):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(u)


def test_a_layer_with_more_parameters_than_two_dense_ones_warns_once_unless_the_outputs_are_named():
    with pytest.warns(UserWarning, match="more than twice.*keyword output_size") as caught:
        TwoHiddenLayeredSSNet(16, 10, 50, 8, initialisation="zeros")
        SemiseparableLayer(78, 25, initialisation="zeros")
    assert [warning.filename for warning in caught] == [__file__]
