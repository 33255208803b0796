"""Facts about the nets: standardmodels.py, rank1models.py and the nets of semiseparablemodels.py."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from rank1models import Rank1Layer, Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import ConvFeatureExtractorBase, StandardFFNN, StandardSLFFNN, StandardTHLConvNet, StandardTHLFFNN

IMAGE = (2, 28, 28)
VECTOR_NETS = [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN]
IMAGE_NETS = [StandardTHLConvNet, SSSTHLConvNet, Rank1THLConvNet]
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
def test_the_three_nets_differ_in_the_hidden_layers_only(sizes, makers):
    nets = [make(sizes, 4, 9, nb_hidden_layers=3) for make in makers]
    vector_nets = [getattr(net, "vector_net", net) for net in nets]
    for net, kind in zip(vector_nets, (nn.Linear, SemiseparableLayer, Rank1Layer)):
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
    assert torch.equal(functional_call(other, dict(net.named_parameters()), (X,)), y)
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


@pytest.mark.parametrize("outputs, bias", [(4000, True), (4, False)])
def test_rank_1_layer_is_its_dense_matrix_with_glorot_uniform_parameters(outputs, bias):
    layer, u = Rank1Layer(4000, outputs, bias), torch.randn(2, 3, 4000)
    torch.testing.assert_close(layer(u), u @ (layer.v1 * layer.v2) + (layer.bias if bias else 0), rtol=1e-3, atol=1e-3)
    shapes = {"v1": (4000, 1), "v2": (1, outputs), **({"bias": (outputs,)} if bias else {})}
    assert {name: (*value.shape,) for name, value in layer.named_parameters()} == shapes
    limit = (6 / 4001) ** 0.5
    assert 0.99 * limit < layer.v1.abs().max() <= limit
    assert layer.v1.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.1)


@pytest.mark.parametrize("call, message", [
    (lambda: StandardTHLFFNN(0, 4, 9), "input_size must be an integer of 1 or more, got 0"),
    (lambda: StandardFFNN(6, 4, 9, 0), "nb_hidden_layers must be"), (lambda: Rank1Layer(0), "size must be"),
    (lambda: StandardTHLConvNet((28, 28), 4, 9), "(28, 28)"), (lambda: StandardTHLConvNet((0, 28, 28), 4, 9), "(0, 28"),
    (lambda: StandardTHLConvNet((28, 28, 1), 4, 9), "(28, 28, 1); X.transpose(0, 3, 1, 2) puts channels first"),
    (lambda: StandardTHLConvNet((1, 26, 28), 4, 9), "26 x 28 are too small"),
    (lambda: StandardTHLConvNet(IMAGE, 4, 9)(torch.zeros(5, 28, 28, 2)), "(5, 28, 28, 2); X.transpose(0, 3, ")])
def test_sizes_and_images_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
