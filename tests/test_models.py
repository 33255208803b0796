"""Facts about the nets: standardmodels.py, rank1models.py, monarchmodels.py and the nets of semiseparablemodels.py."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from model_training import get_nb_model_parameters
from monarchmodels import MonarchLayer, MonarchTHLConvNet, MonarchTHLFFNN
from rank1models import Rank1Layer, Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from sss_reference import outputs_and_gradients, random_batch
from standardmodels import ConvFeatureExtractorBase, StandardFFNN, StandardSLFFNN, StandardTHLConvNet, StandardTHLFFNN

IMAGE = (2, 28, 28)
VECTOR_NETS = [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN, partial(MonarchTHLFFNN, nb_blocks=3)]
IMAGE_NETS = [StandardTHLConvNet, SSSTHLConvNet, Rank1THLConvNet, partial(MonarchTHLConvNet, nb_blocks=3)]
# Function that makes a net with 9 hidden neurons and 4 classes, shape of one sample
EVERY_NET = pytest.mark.parametrize("make, shape", [*((partial(net, 6, 4, 9), (6,)) for net in VECTOR_NETS),
                                                    *((partial(net, IMAGE, 4, 9), IMAGE) for net in IMAGE_NETS)])


@EVERY_NET
def test_nets_give_class_probabilities_of_every_sample_by_itself_for_any_leading_shape(make, shape):
    net, X = make(), 10 * torch.randn(2, 3, *shape)
    probabilities = net(X)
    assert probabilities.shape == (2, 3, 4) and (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(net(X[1, 2]), probabilities[1, 2])
    assert net(X[0, :0]).shape == (0, 4) and net(X[:, :0]).shape == (2, 0, 4)


@pytest.mark.parametrize("net, nb_hidden", [(StandardSLFFNN(6, 4, 9), 1), (StandardTHLFFNN(6, 4, 9), 2),
                                            (StandardFFNN(6, 4, 9, 3), 3)])
def test_standard_net_is_a_chain_of_dense_layers_with_relu_between(net, nb_hidden):
    X = h = torch.randn(5, 6)
    layers = [net.input_layer, *net.hidden_layers]
    for layer in layers:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    scores = h @ net.output_layer.weight.T + net.output_layer.bias
    torch.testing.assert_close(net(X), scores.exp() / scores.exp().sum(1, keepdim=True))
    assert len(layers) == nb_hidden


@pytest.mark.parametrize("sizes, makers", [(6, VECTOR_NETS), (IMAGE, IMAGE_NETS)], ids=["vectors", "images"])
def test_the_nets_differ_in_the_hidden_layers_only(sizes, makers):
    nets = [make(sizes, 4, 9, nb_hidden_layers=3) for make in makers]
    vector_nets = [getattr(net, "vector_net", net) for net in nets]
    for net, kind in zip(vector_nets, (nn.Linear, SemiseparableLayer, Rank1Layer, MonarchLayer)):
        assert [type(layer) for layer in net.hidden_layers] == [kind, kind]
    X = 10 * torch.randn(5, *np.atleast_1d(sizes))
    for net, vector_net in zip(nets, vector_nets):
        vector_net.hidden_layers = vector_nets[0].hidden_layers
        net.load_state_dict(nets[0].state_dict())
        assert torch.equal(net(X), nets[0](X))


@EVERY_NET
def test_nets_are_modules_like_any_other(make, shape):
    nets, X = [], 10 * torch.randn(200, *shape)
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        nets.append(make())
    net, same, other = nets
    y = net(X)
    assert torch.equal(same(X), y) and not torch.allclose(other(X), y)
    (y[:, 0] ** 2).sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())
    net = make(device="meta", dtype=torch.float64)
    assert {(str(value.device), value.dtype) for value in net.parameters()} == {("meta", torch.float64)}


# The last: 64 x 48 -> stride 2: 30 x 22 -> pool: 15 x 11 -> kernel 5: 11 x 7 -> pool: 5 x 3
@pytest.mark.parametrize("shape, nb_features", [((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 64, 48), 10 * 5 * 3)])
def test_features_of_images_are_those_of_the_definition(shape, nb_features):
    X = torch.randn(2, *shape)
    extractor = ConvFeatureExtractorBase(X)
    first, second = (module for module in extractor.modules() if isinstance(module, nn.Conv2d))

    def relu_and_pool(h):
        return h.clamp(min=0).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))

    h = relu_and_pool(torch.conv2d(X, first.weight, first.bias, stride=2))
    torch.testing.assert_close(extractor(X), relu_and_pool(torch.conv2d(h, second.weight, second.bias)).flatten(1))
    assert (first.weight.shape, second.weight.shape) == ((5, shape[0], 5, 5), (10, 5, 5, 5))
    assert extractor.out_dim == nb_features == ConvFeatureExtractorBase(np.zeros(shape)).out_dim


def assert_is_dense_matrix(layer, make_matrix):
    """y = W u + bias, with every gradient that autograd gives with the dense W (outputs, inputs)."""
    u, cotangent = random_batch(2, 3, make_matrix().shape[1]), random_batch(2, 3, len(make_matrix()), seed=2)
    functions = layer, lambda u: u @ make_matrix().T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(*(outputs_and_gradients(layer, function, u, cotangent) for function in functions))


@pytest.mark.parametrize("n, outputs, bias, rank", [(9, 9, True, 1), (9, 4, False, 1), (6, 11, True, 3)])
def test_low_rank_layer_is_its_dense_matrix(n, outputs, bias, rank):
    layer = Rank1Layer(n, outputs, bias, rank=rank, dtype=torch.float64)
    assert_is_dense_matrix(layer, lambda: sum(torch.outer(layer.v2[r], layer.v1[:, r]) for r in range(rank)))
    assert get_nb_model_parameters(layer) == rank * (n + outputs) + outputs * bias


@pytest.mark.parametrize("n, outputs, bias, b", [
    (12, 12, True, 3), (12, 12, True, 1), (12, 4, False, 4), (6, 9, True, 3)])
def test_monarch_layer_is_its_dense_matrix(n, outputs, bias, b):
    layer = MonarchLayer(n, b, output_size=outputs, bias=bias, dtype=torch.float64)
    p, q = n // b, outputs // b

    def make_matrix():
        P = torch.zeros(outputs, outputs, dtype=torch.float64)
        for k in range(b):
            for i in range(q):
                P[i * b + k, k * q + i] = 1  # entry i of block k of R goes to entry k of block i of L
        return torch.block_diag(*layer.L) @ P @ torch.block_diag(*layer.R)

    assert_is_dense_matrix(layer, make_matrix)
    assert get_nb_model_parameters(layer) == b * q * p + q * b * b + outputs * bias


def test_monarch_matrices_start_with_the_variance_of_glorot_uniform_ones():
    layer = MonarchLayer(600, 20, output_size=400, bias=False)
    assert layer(torch.eye(600)).square().mean().item() == pytest.approx(2 / 1000, rel=0.05)


def test_the_control_starts_as_the_semiseparable_net_of_the_same_seed_and_the_scaled_one_as_a_fraction_of_glorot():
    nets = []
    for is_dense in (False, True):
        torch.manual_seed(1)
        nets.append(TwoHiddenLayeredSSNet(6, 4, 30, 2, is_dense=is_dense))
    X = 10 * torch.randn(20, 6)
    torch.testing.assert_close(nets[1](X), nets[0](X))
    assert get_nb_model_parameters(nets[1]) == get_nb_model_parameters(StandardTHLFFNN(6, 4, 30))
    weight = StandardTHLFFNN(6, 4, 500, scale=0.25).hidden_layers[0].weight
    assert weight.std().item() == pytest.approx(0.25 * (1 / 500) ** 0.5, rel=0.02)


def test_rank_1_layer_has_glorot_uniform_parameters():
    layer, limit = Rank1Layer(4000), (6 / 4001) ** 0.5
    assert 0.99 * limit < layer.v1.abs().max() <= limit
    assert layer.v1.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.1)


@pytest.mark.parametrize("call, message", [
    (lambda: StandardTHLFFNN(0, 4, 9), "input_size must be an integer of 1 or more, got 0"),
    (lambda: StandardFFNN(6, 4, 9, 0), "nb_hidden_layers must be"), (lambda: Rank1Layer(0), "size must be"),
    (lambda: MonarchLayer(12, 5), "nb_blocks 5 must divide both sizes, got 12 and 12"),
    (lambda: StandardTHLConvNet((28, 28), 4, 9), "(28, 28)"), (lambda: StandardTHLConvNet((0, 28, 28), 4, 9), "(0, 28"),
    (lambda: StandardTHLConvNet((28, 28, 1), 4, 9), "(28, 28, 1); X.transpose(0, 3, 1, 2) puts channels first"),
    (lambda: StandardTHLConvNet((1, 26, 28), 4, 9), "26 x 28 are too small"),
    (lambda: StandardTHLConvNet(IMAGE, 4, 9)(torch.zeros(5, 28, 28, 2)), "(5, 28, 28, 2); X.transpose(0, 3, ")])
def test_sizes_and_images_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
