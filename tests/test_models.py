"""Facts about the nets: standardmodels.py, rank1models.py and the nets of semiseparablemodels.py."""

import copy
import re
from functools import partial

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

IMAGE = (2, 28, 28)
VECTOR_NETS = [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN]
IMAGE_NETS = [StandardTHLConvNet, SSSTHLConvNet, Rank1THLConvNet]
# name: (function that makes a net with 9 hidden neurons and 4 classes, shape of one sample)
NETS = {"StandardFFNN": (partial(StandardFFNN, 6, 4, 9, 3), (6,)),
        **{net.__name__: (partial(net, 6, 4, 9), (6,)) for net in [*VECTOR_NETS, StandardSLFFNN]},
        **{net.__name__: (partial(net, IMAGE, 4, 9), IMAGE) for net in IMAGE_NETS}}
EVERY_NET = pytest.mark.parametrize("make, shape", NETS.values(), ids=NETS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- what the nets compute ----

@EVERY_NET
def test_nets_give_class_probabilities_of_every_sample_by_itself_for_any_leading_shape(make, shape):
    net, X = make(), 10 * torch.randn(2, 3, *shape)
    probabilities = net(X)
    assert probabilities.shape == (2, 3, 4) and (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(net(X[1, 2]), probabilities[1, 2])
    assert not torch.allclose(probabilities[1, 2], probabilities[0, 0])
    assert net(X[0, :0]).shape == (0, 4) and net(X[:, :0]).shape == (2, 0, 4)


@pytest.mark.parametrize("name, nb_hidden_layers", [("StandardSLFFNN", 1), ("StandardTHLFFNN", 2), ("StandardFFNN", 3)])
def test_standard_net_is_a_chain_of_dense_layers_with_relu_between(name, nb_hidden_layers):
    net, X = NETS[name][0](), torch.randn(5, 6)
    # n hidden layers of neurons are joined by n + 1 matrices, input and output included.
    assert len([module for module in net.modules() if isinstance(module, nn.Linear)]) == nb_hidden_layers + 1
    h = X
    for layer in (net.input_layer, *net.hidden_layers):
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    logits = h @ net.output_layer.weight.T + net.output_layer.bias
    torch.testing.assert_close(net(X), logits.exp() / logits.exp().sum(1, keepdim=True))


@pytest.mark.parametrize("makers, shape, prefix", [(VECTOR_NETS, (6,), ""), (IMAGE_NETS, IMAGE, "vector_net.")])
def test_the_three_nets_differ_in_the_hidden_layer_only(makers, shape, prefix):
    """A rank-1 matrix is also a dense one and a semiseparable one: with the same matrices the nets compute the same."""
    standard, sss, rank_1 = nets = [make(6 if len(shape) == 1 else shape, 4, 9, dtype=torch.float64) for make in makers]
    hidden = prefix + "hidden_layers.0"
    layer = rank_1.get_submodule(hidden)
    assert [type(net.get_submodule(hidden)) for net in nets] == [nn.Linear, SemiseparableLayer, Rank1Layer]
    matrix, bias = (layer.v1 @ layer.v2).T.detach(), layer.bias.detach()
    outer = {name: value for name, value in rank_1.state_dict().items() if hidden not in name}
    for net, values in ((standard, {"weight": matrix, "bias": bias}),
                        (sss, SemiseparableLayer.from_matrix(matrix, 1, bias=bias).state_dict())):
        net.load_state_dict({**outer, **{f"{hidden}.{name}": value for name, value in values.items()}})
    X = 10 * torch.randn(5, *shape, dtype=torch.float64)
    torch.testing.assert_close(standard(X), rank_1(X))
    torch.testing.assert_close(sss(X), rank_1(X))


def test_semiseparable_nets_pass_their_sizes_on():
    for net, sizes in ((TwoHiddenLayeredSSNet(6, 4, 12, 3, 2, initialisation="zeros"), (12, 3, 2)),
                       (SSSTHLConvNet(IMAGE, 4, 12, 3, initialisation="zeros").vector_net, (12, 3, 1)),
                       (TwoHiddenLayeredSSNet(6, 4, 12), (12, 1, 1)),
                       (SSSTHLConvNet(IMAGE, 4, 12).vector_net, (12, 1, 1))):
        layer = net.hidden_layers[0]
        assert (layer.input_size, layer.statespace_dim, layer.inputoutput_dim) == sizes
        assert (layer.D == 0).all() == (sizes[1] == 3)


@EVERY_NET
def test_every_parameter_learns(make, shape):
    net = make()
    (net(10 * torch.randn(200, *shape))[:, 0] ** 2).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# ---- the feature extractor ----

# The last: 64 x 48 -> stride 2: 30 x 22 -> pool: 15 x 11 -> kernel 5: 11 x 7 -> pool: 5 x 3
@pytest.mark.parametrize("shape, nb_features", [((1, 28, 28), 10), ((3, 32, 32), 10), ((2, 27, 34), 10),
                                                ((3, 64, 48), 10 * 5 * 3)])
def test_image_net_is_the_vector_net_on_the_features_of_its_definition(shape, nb_features):
    net, X = StandardTHLConvNet(shape, 4, 9), torch.randn(2, *shape)
    extractor = net.feature_extractor
    first, second = (module for module in extractor.modules() if isinstance(module, nn.Conv2d))
    assert (first.weight.shape, second.weight.shape) == ((5, shape[0], 5, 5), (10, 5, 5, 5))

    def relu_and_pool(h):
        return h.clamp(min=0).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))

    h = relu_and_pool(torch.conv2d(X, first.weight, first.bias, stride=2))
    features = relu_and_pool(torch.conv2d(h, second.weight, second.bias)).flatten(1)
    torch.testing.assert_close(extractor(X), features)
    assert extractor.out_dim == nb_features == features.shape[1]
    torch.testing.assert_close(net(X), net.vector_net(features))


def test_sample_input_of_the_feature_extractor_matters_by_its_shape_only():
    for sample_input in (torch.full(IMAGE, torch.nan), torch.zeros(3, 7, *IMAGE, dtype=torch.uint8),
                         torch.zeros(IMAGE, device="meta"), np.zeros((7, *IMAGE))):
        extractor = ConvFeatureExtractorBase(sample_input)
        assert extractor.out_dim == 10
        assert extractor(torch.zeros(5, *IMAGE)).shape == (5, 10)


# ---- Rank1Layer ----

@pytest.mark.parametrize("size, shape", [(1, (5,)), (9, ()), (9, (0,)), (9, (2, 3))])
def test_rank_1_layer_and_every_gradient_equal_the_dense_matrix(size, shape):
    layer = Rank1Layer(size, dtype=torch.float64)
    u = torch.randn(*shape, size, dtype=torch.float64, requires_grad=True)
    inputs = [u, layer.v1, layer.v2, layer.bias]
    T = torch.outer(layer.v2.flatten(), layer.v1.flatten())  # T_ij = v2_i v1_j
    y, expected, cotangent = layer(u), u @ T.T + layer.bias, torch.randn_like(u)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, cotangent),
                               torch.autograd.grad(expected, inputs, cotangent), rtol=1e-12, atol=1e-12)


def test_rank_1_layer_has_three_glorot_uniform_parameters():
    layer = Rank1Layer(4000)
    assert repr(layer) == "Rank1Layer(size=4000, output_size=4000, bias=True)"
    assert {name: (*value.shape,) for name, value in layer.named_parameters()} \
        == {"v1": (4000, 1), "v2": (1, 4000), "bias": (4000,)}
    for parameter in layer.parameters():
        limit = (6 / sum(parameter.shape)) ** 0.5
        assert 0.99 * limit < parameter.abs().max() <= limit
        assert parameter.square().mean().item() == pytest.approx(limit ** 2 / 3, rel=0.1)


# ---- the nets as PyTorch modules ----

@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@EVERY_NET
def test_dtype_and_device_reach_every_parameter(make, shape):
    net = make(dtype=torch.float64)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert net(torch.randn(3, *shape, dtype=torch.float64)).dtype == torch.float64
    net = make(device="meta", dtype=torch.float64)
    assert {(parameter.dtype, str(parameter.device)) for parameter in net.parameters()} == {(torch.float64, "meta")}
    with torch.device("meta"):
        assert {str(parameter.device) for parameter in make().parameters()} == {"meta"}


@EVERY_NET
def test_copies_and_functional_calls_compute_the_same(make, shape):
    net, other, X = make(), make(), torch.randn(5, *shape)
    expected = net(X).detach()
    assert not torch.equal(other(X), expected)
    assert torch.equal(functional_call(other, dict(net.named_parameters()), (X,)), expected)
    other.load_state_dict(net.state_dict())
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(other(X), expected) and torch.equal(copied(X), expected)


@EVERY_NET
def test_nets_work_under_autocast(make, shape):
    net, X = make(), torch.randn(5, *shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(X)
    torch.testing.assert_close(y.float(), net(X), rtol=0.05, atol=0.02)
    y.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@EVERY_NET
def test_same_seed_gives_the_same_net(make, shape):
    nets = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        nets.append(make().parameters())
    for first, same, other in zip(*nets):
        assert torch.equal(first, same) and not torch.equal(first, other)


# ---- sizes and inputs that do not fit; the checks themselves are in test_checks.py ----

@pytest.mark.parametrize("call, message", [
    *[(call, f"{name} must be a positive integer, got 0") for call, name in (
        (lambda: StandardTHLFFNN(0, 4, 9), "input_size"), (lambda: StandardTHLFFNN(6, 0, 9), "output_size"),
        (lambda: StandardTHLFFNN(6, 4, 0), "hidden_layer_size"), (lambda: StandardSLFFNN(6, 0, 9), "output_size"),
        (lambda: StandardFFNN(6, 4, 9, 0), "nb_hidden_layers"), (lambda: Rank1THLFFNN(6, 4, 0), "size"),
        (lambda: TwoHiddenLayeredSSNet(6, 4, 9, 0), "statespace_dim"),
        (lambda: StandardTHLConvNet(IMAGE, 0, 9), "output_size"), (lambda: Rank1THLConvNet(IMAGE, 4, 0), "size"),
        (lambda: SSSTHLConvNet(IMAGE, 4, 9, 0), "statespace_dim"))],
    (lambda: TwoHiddenLayeredSSNet(6, 4, 9, 1, 2), "got 2 and 9"),
    *[(partial(StandardTHLConvNet, shape, 4, 9), f"{shape}")
      for shape in ((28, 28), (), (4, 28, 28), (28, 28, 1), (0, 28, 28), (-1, 28, 28))],
    *[(partial(StandardTHLConvNet, shape, 4, 9), f"{shape[1]} x {shape[2]} are too small")
      for shape in ((1, 26, 28), (3, 28, 26), (3, 0, 28))],
    (lambda: StandardTHLFFNN(6, 4, 9)(torch.zeros(5, 7)), "(..., 6), got (5, 7)"),
    (lambda: StandardTHLFFNN(6, 4, 9)(torch.zeros(5, 6, dtype=torch.int64)), "got torch.int64"),
    (lambda: Rank1Layer(6)(torch.zeros(5, 7)), "(..., 6), got (5, 7)"),
    (lambda: Rank1Layer(6)(torch.zeros(5, 6, dtype=torch.float64)), "got torch.float64"),
    *[(lambda shape=shape: StandardTHLConvNet(IMAGE, 4, 9)(torch.zeros(shape)), f"(..., 2, 28, 28), got shape {shape}")
      for shape in ((5, 3, 28, 28), (5, 2, 28, 27), (5, 28, 28, 2), (28, 28), (5, 784))],
    (lambda: StandardTHLConvNet(IMAGE, 4, 9)(torch.zeros(IMAGE, dtype=torch.uint8)), "got torch.uint8")])
def test_sizes_and_inputs_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.filterwarnings("ignore")  # torch's, of its own future
def test_nets_work_with_quantised_and_replaced_submodules():
    for make in VECTOR_NETS:
        net, X = make(6, 4, 9), torch.randn(5, 6)
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear})
        torch.testing.assert_close(quantised(X), net(X), rtol=0.2, atol=0.1)
        net.input_layer = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9))
        assert net(X).shape == (5, 4)


@pytest.mark.parametrize("make", IMAGE_NETS + VECTOR_NETS)
def test_nets_have_as_many_hidden_layers_as_asked_for(make):
    sizes = ((1, 28, 28) if make in IMAGE_NETS else 6, 4, 12)
    for nb_hidden_layers in (1, 2, 4):
        net = make(*sizes, nb_hidden_layers=nb_hidden_layers)
        assert len(getattr(net, "vector_net", net).hidden_layers) == nb_hidden_layers - 1
    with pytest.raises(ValueError, match="nb_hidden_layers must be a positive integer, got 0"):
        make(*sizes, nb_hidden_layers=0)


def test_stages_of_the_ss_nets_take_input_output_dim_inputs():
    for net in (TwoHiddenLayeredSSNet(6, 4, 12, 3, 2), SSSTHLConvNet((1, 28, 28), 4, 12, 3, 2).vector_net):
        assert (net.hidden_layers[0].statespace_dim, net.hidden_layers[0].inputoutput_dim) == (3, 2)


@pytest.mark.parametrize("bias", [True, False])
def test_rank_1_layer_of_any_sizes_equals_its_dense_matrix_and_is_reset_to_a_new_one(bias):
    layer, u = Rank1Layer(7, 4, bias, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(u), u @ layer.v1 @ layer.v2 + (layer.bias if bias else 0))
    assert layer(u).shape == (2, 3, 4) and (layer.bias is not None) == bias
    torch.manual_seed(5)
    expected = Rank1Layer(7, 4, bias, dtype=torch.float64)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), expected.parameters()))
