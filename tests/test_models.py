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
from standardmodels import ConvFeatureExtractorBase, StandardFFNN, StandardSLFFNN, StandardTHLConvNet, StandardTHLFFNN

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = (2, 28, 28)
# What a net takes, the nets of the three families, and what their submodules are called
VECTOR_NETS = 6, [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN], ""
IMAGE_NETS = IMAGE, [StandardTHLConvNet, SSSTHLConvNet, Rank1THLConvNet], "vector_net."
# Function that makes a net with 9 hidden neurons and 4 classes, shape of one sample
EVERY_NET = pytest.mark.parametrize("make, shape", [
    (partial(net, sizes, 4, 9), np.atleast_1d(sizes)) for sizes, nets, _ in (VECTOR_NETS, IMAGE_NETS) for net in nets])


@EVERY_NET
def test_nets_give_class_probabilities_of_every_sample_by_itself_for_any_leading_shape(make, shape):
    net, X = make(), 10 * torch.randn(2, 3, *shape)
    probabilities = net(X)
    assert probabilities.shape == (2, 3, 4) and (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(net(X[1, 2]), probabilities[1, 2])
    assert net(X[0, :0]).shape == (0, 4) and net(X[:, :0]).shape == (2, 0, 4)


@pytest.mark.parametrize("net, nb_matrices", [
    (StandardSLFFNN(6, 4, 9), 2), (StandardTHLFFNN(6, 4, 9), 3), (StandardFFNN(6, 4, 9, 3), 4)])
def test_standard_net_is_a_chain_of_dense_layers_with_relu_between(net, nb_matrices):
    X = h = torch.randn(5, 6)
    *layers, last = net.input_layer, *net.hidden_layers, net.output_layer
    assert len(layers) + 1 == nb_matrices
    for layer in layers:
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    scores = h @ last.weight.T + last.bias
    torch.testing.assert_close(net(X), scores.exp() / scores.exp().sum(1, keepdim=True))


@pytest.mark.parametrize("sizes, makers, prefix", [VECTOR_NETS, IMAGE_NETS])
def test_the_three_nets_differ_in_the_hidden_layers_only(sizes, makers, prefix):
    """A rank-1 matrix is also a dense one and a semiseparable one: with the same matrices the nets compute the same."""
    standard, sss, rank_1 = (make(sizes, 4, 9, nb_hidden_layers=3, dtype=torch.float64) for make in makers)
    values = {net: rank_1.state_dict() for net in (standard, sss)}
    for i, layer in enumerate(rank_1.get_submodule(prefix + "hidden_layers")):
        matrix = (layer.v1 @ layer.v2).T.detach()
        for net, other in ((standard, {"weight": matrix}), (sss, SemiseparableLayer.from_matrix(matrix, 1).state_dict())):
            values[net] |= {f"{prefix}hidden_layers.{i}.{name}": value for name, value in {**other, "bias": layer.bias}.items()}
    X = 10 * torch.randn(5, *np.atleast_1d(sizes), dtype=torch.float64)
    for net in (standard, sss):
        net.load_state_dict(values[net])
        torch.testing.assert_close(net(X), rank_1(X))
