"""Facts about the nets: standardmodels.py, rank1models.py and the nets of semiseparablemodels.py."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from rank1models import Rank1Layer, Rank1THLConvNet, Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import (ConvFeatureExtractorBase, StandardFFNN, StandardSLFFNN, StandardTHLConvNet,
                            StandardTHLFFNN)

pytestmark = pytest.mark.usefixtures("one_thread")

VECTOR_NETS = [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN]
IMAGE_NETS = [StandardTHLConvNet, SSSTHLConvNet, Rank1THLConvNet]
EVERY_VECTOR_NET = pytest.mark.parametrize("make", [*VECTOR_NETS, StandardSLFFNN])
EVERY_IMAGE_NET = pytest.mark.parametrize("make", IMAGE_NETS)
LEADING_SHAPES = [(), (1,), (5,), (0,), (2, 3), (2, 0), (1, 2, 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- shapes and probabilities ----

@EVERY_VECTOR_NET
@pytest.mark.parametrize("shape", LEADING_SHAPES)
def test_vector_nets_give_class_probabilities_for_any_leading_shape(make, shape):
    probabilities = make(6, 4, 9)(torch.randn(*shape, 6))
    assert probabilities.shape == (*shape, 4)
    assert (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(shape))


@EVERY_IMAGE_NET
@pytest.mark.parametrize("shape", LEADING_SHAPES)
def test_image_nets_give_class_probabilities_for_any_leading_shape(make, shape):
    probabilities = make((2, 28, 28), 4, 9)(torch.randn(*shape, 2, 28, 28))
    assert probabilities.shape == (*shape, 4)
    assert (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(shape))


@EVERY_VECTOR_NET
def test_vector_nets_treat_every_sample_by_itself(make):
    net, X = make(6, 4, 9), torch.randn(2, 3, 6)
    torch.testing.assert_close(net(X)[1, 2], net(X[1, 2]))
    assert not torch.allclose(net(X)[1, 2], net(X)[0, 0])


@EVERY_IMAGE_NET
def test_image_nets_treat_every_sample_by_itself(make):
    net, X = make((3, 32, 32), 4, 9), 10 * torch.randn(2, 3, 3, 32, 32)
    torch.testing.assert_close(net(X)[1, 2], net(X[1, 2]))
    assert not torch.allclose(net(X)[1, 2], net(X)[0, 0])


# ---- structure ----

@pytest.mark.parametrize("nb_hidden_layers", [1, 2, 3, 5])
def test_standard_net_is_a_chain_of_dense_layers_with_relu_between(nb_hidden_layers):
    net, X = StandardFFNN(6, 4, 9, nb_hidden_layers), torch.randn(5, 6)
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    # n hidden layers of neurons are joined by n + 1 matrices, input and output included.
    assert sorted(tuple(layer.weight.shape) for layer in layers) == sorted(
        [(9, 6), *[(9, 9)] * (nb_hidden_layers - 1), (4, 9)])
    h = X
    for layer in [net.input_layer, *net.hidden_layers]:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    logits = h @ net.output_layer.weight.T + net.output_layer.bias
    torch.testing.assert_close(net(X), logits.exp() / logits.exp().sum(1, keepdim=True))


def test_short_names_are_standard_nets_with_one_and_two_hidden_layers():
    for make, nb_hidden_layers in ((StandardSLFFNN, 1), (StandardTHLFFNN, 2)):
        expected = StandardFFNN(6, 4, 9, nb_hidden_layers)
        net = make(6, 4, 9)
        net.load_state_dict(expected.state_dict())
        X = torch.randn(5, 6)
        assert torch.equal(net(X), expected(X))


@pytest.mark.parametrize("makers, input_size, prefix", [(VECTOR_NETS, 6, ""),
                                                        (IMAGE_NETS, (1, 28, 28), "vector_net.")])
def test_the_three_nets_differ_in_the_hidden_layer_only(makers, input_size, prefix):
    nets = [make(input_size, 4, 9) for make in makers]

    def outer_parameters(net):
        return {name: tuple(value.shape) for name, value in net.state_dict().items()
                if "hidden_layers.0." not in name}

    def outer_modules(net):
        return [(name, repr(module)) for name, module in net.named_modules()
                if not list(module.children()) and "hidden_layers.0" not in name]

    assert len(outer_parameters(nets[0])) >= 4 and len(outer_modules(nets[0])) >= 2
    for other in nets[1:]:
        assert outer_parameters(other) == outer_parameters(nets[0])
        assert outer_modules(other) == outer_modules(nets[0])
    assert [[type(layer) for layer in net.get_submodule(prefix + "hidden_layers")] for net in nets] \
        == [[nn.Linear], [SemiseparableLayer], [Rank1Layer]]


def test_nets_with_the_same_matrices_compute_the_same():
    """A rank-1 matrix is also a dense one and a semiseparable one."""
    rank_1 = Rank1THLFFNN(6, 4, 9, dtype=torch.float64)
    hidden = rank_1.hidden_layers[0]
    matrix = (hidden.v1 @ hidden.v2).T.detach()
    standard = StandardTHLFFNN(6, 4, 9, dtype=torch.float64)
    sss = TwoHiddenLayeredSSNet(6, 4, 9, statespace_dim=1, dtype=torch.float64)
    outer = {name: value for name, value in rank_1.state_dict().items() if "hidden_layers" not in name}
    standard.load_state_dict({**outer, "hidden_layers.0.weight": matrix, "hidden_layers.0.bias": hidden.bias})
    sss_layer = SemiseparableLayer.from_matrix(matrix, 1, bias=hidden.bias.detach())
    sss.load_state_dict({**outer, **{f"hidden_layers.0.{name}": value
                                     for name, value in sss_layer.state_dict().items()}})
    X = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(standard(X), rank_1(X))
    torch.testing.assert_close(sss(X), rank_1(X))


def test_semiseparable_nets_pass_their_sizes_on():
    layer = TwoHiddenLayeredSSNet(6, 4, 12, 3, 2, initialisation="direct").hidden_layers[0]
    assert (layer.input_size, layer.statespace_dim, layer.inputoutput_dim) == (12, 3, 2)
    layer = TwoHiddenLayeredSSNet(6, 4, 12).hidden_layers[0]
    assert (layer.input_size, layer.statespace_dim, layer.inputoutput_dim) == (12, 1, 1)
    layer = SSSTHLConvNet((1, 28, 28), 4, 12, 3, initialisation="zeros").vector_net.hidden_layers[0]
    assert (layer.input_size, layer.statespace_dim) == (12, 3) and (layer.D == 0).all()
    assert SSSTHLConvNet((1, 28, 28), 4, 12).vector_net.hidden_layers[0].statespace_dim == 1


@pytest.mark.parametrize("make, arguments", [(make, (6, 4, 9)) for make in [*VECTOR_NETS, StandardSLFFNN]]
                         + [(make, ((1, 28, 28), 4, 9)) for make in IMAGE_NETS])
def test_every_parameter_learns(make, arguments):
    net = make(*arguments)
    shape = (6,) if arguments[0] == 6 else arguments[0]
    (net(10 * torch.randn(200, *shape))[:, 0] ** 2).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# ---- the feature extractor ----

@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 27, 34), (5, 3, 32, 32), (2, 4, 1, 28, 28)])
def test_feature_extractor_has_ten_features_for_small_images(shape):
    extractor = ConvFeatureExtractorBase(torch.zeros(shape))
    assert extractor.out_dim == 10
    assert extractor(torch.randn(shape)).shape == (*shape[:-3], 10)


def test_number_of_features_grows_with_the_image():
    extractor = ConvFeatureExtractorBase(torch.zeros(3, 64, 48))
    # 64 x 48 -> stride 2: 30 x 22 -> pool: 15 x 11 -> kernel 5: 11 x 7 -> pool: 5 x 3
    assert extractor.out_dim == 10 * 5 * 3
    assert extractor(torch.randn(2, 3, 64, 48)).shape == (2, 150)


def test_feature_extractor_is_the_chain_of_its_definition():
    extractor, X = ConvFeatureExtractorBase(torch.zeros(3, 32, 32)), torch.randn(2, 3, 32, 32)
    first, second = (module for module in extractor.modules() if isinstance(module, nn.Conv2d))
    assert (first.weight.shape, second.weight.shape) == ((5, 3, 5, 5), (10, 5, 5, 5))

    def relu_and_pool(h):
        return h.clamp(min=0).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))

    h = relu_and_pool(torch.conv2d(X, first.weight, first.bias, stride=2))
    h = relu_and_pool(torch.conv2d(h, second.weight, second.bias))
    torch.testing.assert_close(extractor(X), h.flatten(1))


def test_image_net_is_the_vector_net_on_the_features():
    net, X = StandardTHLConvNet((3, 32, 32), 4, 9), torch.randn(2, 3, 32, 32)
    assert torch.equal(net(X), net.vector_net(net.feature_extractor(X)))
    assert net.vector_net.input_layer.in_features == net.feature_extractor.out_dim


def test_sample_input_matters_by_its_shape_only():
    for sample_input in (torch.full((1, 28, 28), float("nan")), torch.zeros(1, 28, 28, dtype=torch.uint8),
                         torch.zeros(1, 28, 28, device="meta"), np.zeros((7, 1, 28, 28))):
        extractor = ConvFeatureExtractorBase(sample_input)
        assert extractor.out_dim == 10
        assert {parameter.dtype for parameter in extractor.parameters()} == {torch.float32}


# ---- Rank1Layer ----

@pytest.mark.parametrize("size", [1, 2, 9])
def test_rank_1_layer_equals_its_dense_matrix(size):
    layer = Rank1Layer(size, dtype=torch.float64)
    u = torch.randn(5, size, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(5, size, dtype=torch.float64)
    inputs = [u, layer.v1, layer.v2, layer.bias]
    T = torch.outer(layer.v2.flatten(), layer.v1.flatten())  # T_ij = v2_i v1_j
    y, expected = layer(u), u @ T.T + layer.bias
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for actual, gradient in zip(torch.autograd.grad((y * cotangent).sum(), inputs),
                                torch.autograd.grad((expected * cotangent).sum(), inputs)):
        torch.testing.assert_close(actual, gradient, rtol=1e-12, atol=1e-12)
    assert torch.linalg.matrix_rank(T) == 1
    assert torch.autograd.gradcheck(layer, u)


def test_rank_1_layer_has_three_glorot_uniform_parameters():
    layer = Rank1Layer(4000)
    assert {name: tuple(value.shape) for name, value in layer.named_parameters()} \
        == {"v1": (4000, 1), "v2": (1, 4000), "bias": (4000,)}
    for parameter in layer.parameters():
        limit = (6 / sum(parameter.shape)) ** 0.5
        assert 0.99 * limit < parameter.abs().max() <= limit
        assert parameter.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.1)


@pytest.mark.parametrize("shape", LEADING_SHAPES)
def test_rank_1_layer_works_on_any_leading_shape(shape):
    layer = Rank1Layer(7)
    u = torch.randn(*shape, 7)
    y = layer(u)
    assert y.shape == (*shape, 7)
    torch.testing.assert_close(y, u @ (layer.v1 @ layer.v2) + layer.bias)


def test_rank_1_layer_names_its_size():
    assert repr(Rank1Layer(7)) == "Rank1Layer(size=7, output_size=7, bias=True)"


# ---- the nets as PyTorch modules ----

@pytest.mark.parametrize("make, arguments", [(make, (6, 4, 9)) for make in [*VECTOR_NETS, StandardSLFFNN]]
                         + [(make, ((1, 28, 28), 4, 9)) for make in IMAGE_NETS]
                         + [(lambda *arguments, **kwargs: StandardFFNN(*arguments, 3, **kwargs), (6, 4, 9)),
                            (Rank1Layer, (6,))])
def test_dtype_and_device_reach_every_parameter(make, arguments):
    net = make(*arguments, dtype=torch.float64)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    X = torch.randn(3, *(arguments[0] if isinstance(arguments[0], tuple) else (6,)), dtype=torch.float64)
    assert net(X).dtype == torch.float64
    net = make(*arguments, device="meta", dtype=torch.float64)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert {str(parameter.device) for parameter in net.parameters()} == {"meta"}
    with torch.device("meta"):
        net = make(*arguments)
    assert {str(parameter.device) for parameter in net.parameters()} == {"meta"}


@pytest.mark.parametrize("make, arguments", [(make, (6, 4, 9)) for make in VECTOR_NETS]
                         + [(make, ((1, 28, 28), 4, 9)) for make in IMAGE_NETS] + [(Rank1Layer, (6,))])
def test_copies_and_functional_calls_compute_the_same(make, arguments):
    net, other = make(*arguments), make(*arguments)
    X = torch.randn(5, *(arguments[0] if isinstance(arguments[0], tuple) else (6,)))
    expected = net(X).detach()
    assert not torch.equal(other(X), expected)
    assert torch.equal(functional_call(other, dict(net.named_parameters()), (X,)), expected)
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(other(X), expected) and torch.equal(copied(X), expected)


@EVERY_VECTOR_NET
def test_nets_work_under_autocast(make):
    net, X = make(6, 4, 9), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(X)
    torch.testing.assert_close(y.float(), net(X), rtol=0.05, atol=0.02)
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_same_seed_gives_the_same_net():
    for make in VECTOR_NETS:
        nets = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            nets.append(make(6, 4, 9))
        first, same, other = (list(net.parameters()) for net in nets)
        assert all(torch.equal(a, b) for a, b in zip(first, same))
        assert not any(torch.equal(a, b) for a, b in zip(first, other))


# ---- arguments and inputs that do not fit ----

@EVERY_VECTOR_NET
@pytest.mark.parametrize("position, name", [(0, "input_size"), (1, "output_size"), (2, "hidden_layer_size")])
@pytest.mark.parametrize("value", [0, -3, 2.5, "7", None, True])
def test_vector_nets_name_a_size_that_is_no_positive_integer(make, position, name, value):
    sizes = [6, 4, 9]
    sizes[position] = value
    # The hidden layer calls its size by its own name.
    message = f"({name}|size) must be a positive integer, got {re.escape(repr(value))}"
    with pytest.raises(ValueError, match=message):
        make(*sizes)


@pytest.mark.parametrize("value", [0, -1, 1.0])
def test_standard_net_names_a_wrong_number_of_hidden_layers(value):
    with pytest.raises(ValueError, match=f"nb_hidden_layers must be a positive integer, got {value}"):
        StandardFFNN(6, 4, 9, value)


@pytest.mark.parametrize("make, arguments, value", [
    (TwoHiddenLayeredSSNet, (6, 4, 9, 0), "statespace_dim must be a positive integer, got 0"),
    (TwoHiddenLayeredSSNet, (6, 4, 9, 1, 2), "got 2 and 9"),
    (SSSTHLConvNet, ((1, 28, 28), 4, 9, -1), "statespace_dim must be a positive integer, got -1"),
    (StandardTHLConvNet, ((1, 28, 28), 0, 9), "output_size must be a positive integer, got 0"),
    (Rank1Layer, (0,), "size must be a positive integer, got 0"),
])
def test_sizes_of_the_hidden_layer_are_named(make, arguments, value):
    with pytest.raises(ValueError, match=re.escape(value)):
        make(*arguments)


@EVERY_VECTOR_NET
@pytest.mark.parametrize("X, message", [
    (torch.zeros(5, 7), "(5, 7)"), (torch.zeros(6, 5), "(6, 5)"), (torch.tensor(0.), "()"),
    (torch.zeros(5, 6, dtype=torch.float64), "torch.float64"),
    (torch.zeros(5, 6, dtype=torch.int64), "torch.int64")])
def test_vector_nets_name_an_input_that_does_not_fit(make, X, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(6, 4, 9)(X)


@pytest.mark.parametrize("X, message", [
    (torch.zeros(5, 7), "(5, 7)"), (torch.zeros(5, 6, dtype=torch.float64), "torch.float64"),
    (torch.zeros(5, 6, dtype=torch.int64), "torch.int64")])
def test_rank_1_layer_names_an_input_that_does_not_fit(X, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Rank1Layer(6)(X)


@EVERY_IMAGE_NET
@pytest.mark.parametrize("X, message", [
    (torch.zeros(5, 28, 28), "(5, 28, 28)"), (torch.zeros(5, 1, 28, 27), "(5, 1, 28, 27)"),
    (torch.zeros(5, 3, 28, 28), "(5, 3, 28, 28)"), (torch.zeros(28, 28), "(28, 28)"),
    (torch.zeros(5, 28, 28, 1), "(5, 28, 28, 1)"), (torch.zeros(5, 784), "(5, 784)"),
    (torch.zeros(5, 1, 28, 28, dtype=torch.float64), "torch.float64"),
    (torch.zeros(5, 1, 28, 28, dtype=torch.uint8), "torch.uint8")])
def test_image_nets_name_an_input_that_does_not_fit(make, X, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make((1, 28, 28), 4, 9)(X)


@EVERY_IMAGE_NET
@pytest.mark.parametrize("shape, message", [
    ((28, 28), "(28, 28)"), ((28,), "(28,)"), ((4, 28, 28), "(4, 28, 28)"), ((28, 28, 1), "(28, 28, 1)"),
    ((0, 28, 28), "(0, 28, 28)"), ((1, 26, 28), "26 x 28"), ((1, 28, 8), "28 x 8"), ((3, 0, 28), "0 x 28")])
def test_image_nets_name_a_shape_that_is_no_image(make, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(shape, 4, 9)
