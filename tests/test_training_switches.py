"""Facts about the two switches of train_model that are off in the paper: standardise_inputs and softmax_twice=False."""

import copy

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from model_training import get_accuracy_score, get_loss_and_accuracy
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet
from test_model_training import (FAMILIES, LABELS, NB_CLASSES, SAMPLES, make_data, make_net, make_net_with,
                                 plain_training, small_passes, train, train_as_plainly)

pytestmark = pytest.mark.usefixtures("one_thread", small_passes.__name__)


# ---- standardise_inputs ----

def standardise(X, seed=0):
    """X with mean 0 and deviation 1 of each feature or channel over the training part of the split of that seed."""
    X = np.asarray(X, dtype=np.float64)
    part = X[train_test_split(np.arange(len(X)), test_size=0.15, random_state=seed)[0]]
    axes = (0, *range(2, X.ndim))
    return (X - part.mean(axes, keepdims=True)) / part.std(axes, keepdims=True)


def train_as_plainly_on_standardised_inputs(net, X, y, **settings):
    """train_as_plainly with standardise_inputs; what must be equal is what the nets make of samples."""
    plain_net = copy.deepcopy(net)
    losses, *accuracies = train(net, (X, y), standardise_inputs=True, **settings)
    settings = {"max_number_training_epochs": 3, "seed": 0, **settings}
    plain_losses, *plain_accuracies = plain_training(plain_net, standardise(X), y, **settings)
    assert accuracies == plain_accuracies
    assert losses == pytest.approx(plain_losses, rel=1e-10, abs=0)
    X, X_standardised = torch.from_numpy(X).double(), torch.from_numpy(standardise(X))
    torch.testing.assert_close(net(X), plain_net(X_standardised), rtol=0, atol=1e-9)


@FAMILIES
@pytest.mark.parametrize("settings", [{}, dict(batch_size=7), dict(softmax_twice=False)])
def test_training_on_standardised_inputs_equals_that_on_standardised_samples(make, settings):
    X, y = make_data()
    X = X * [1e-3, 1, 50, 1, 1] + [0, -7, 1e4, 0, 1]
    train_as_plainly_on_standardised_inputs(make_net(make, dtype=torch.float64), X, y, learning_rate=0.03, **settings)


def test_channels_of_images_are_standardised():
    X = np.random.default_rng(0).integers(256, size=(20, 3, 28, 30)) * np.array([1, 0.1, 1e-3])[:, None, None] + 5
    torch.manual_seed(0)
    net = SSSTHLConvNet((3, 28, 30), NB_CLASSES, 6, dtype=torch.float64)
    train_as_plainly_on_standardised_inputs(net, X, np.arange(20) % NB_CLASSES, learning_rate=0.03, softmax_twice=False)


def test_statistics_are_those_of_the_training_part_alone():
    X, y = make_data()
    training_part, validation_part = train_test_split(np.arange(len(X)), test_size=0.15, random_state=0)
    nets = [make_net(), make_net()]
    losses, accuracies, _ = train(nets[0], (X, y), standardise_inputs=True)
    X[validation_part] = 100 * X[validation_part] + 1000
    assert train(nets[1], (X, y), standardise_inputs=True)[:2] == (losses, accuracies)
    assert all(torch.equal(*parameters) for parameters in zip(*(net.parameters() for net in nets)))


def test_constant_features_become_zero():
    X, y = make_data()
    X[:, 3] = 0.1  # the mean of which is not 0.1 in floating-point numbers
    nets = [make_net(dtype=torch.float64), make_net(dtype=torch.float64)]
    losses, *_ = train(nets[0], (X, y), standardise_inputs=True)
    without = standardise(np.where(np.arange(5) == 3, np.arange(40)[:, None], X))
    without[:, 3] = 0
    assert losses == pytest.approx(train(nets[1], (without, y))[0], rel=1e-10)
    torch.testing.assert_close(nets[0](torch.from_numpy(X).double()), nets[1](torch.from_numpy(without)))


def test_large_offsets_cost_no_more_than_float32_has_lost_before():
    X, y = make_data()
    X = (X + np.float32(1e5)) * np.array([1, 1, 1, 1, 1e-6], dtype=np.float32)
    net, same_net = make_net(), make_net()
    losses, *_ = train(net, (X, y), standardise_inputs=True)
    assert losses == pytest.approx(train(same_net, (standardise(X), y))[0], rel=1e-6)
    torch.testing.assert_close(net(torch.from_numpy(X)), same_net(torch.from_numpy(standardise(X)).float()),
                               rtol=0, atol=0.01)  # 1e5 has 0.008 to the next number


def test_a_net_whose_training_fails_takes_inputs_as_they_are():
    X, y = make_data()
    net, untrained_net = make_net(dtype=torch.float64), make_net(dtype=torch.float64)
    handle = net.register_forward_pre_hook(
        lambda net, inputs: 1 / 0 if net.training and torch.is_grad_enabled() else None)
    with pytest.raises(ZeroDivisionError):
        train(net, (X, y), standardise_inputs=True, batch_size=7)
    handle.remove()
    torch.testing.assert_close(net(torch.from_numpy(X).double()), untrained_net(torch.from_numpy(standardise(X))))


@pytest.mark.parametrize("net, X", [
    (nn.Sequential(nn.Linear(5, 3, bias=False), nn.Softmax(1)), SAMPLES),
    (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Softmax(1)), SAMPLES),
    (nn.Sequential(SemiseparableLayer(5), nn.Linear(5, 3), nn.Softmax(1)), SAMPLES),
    (nn.Sequential(nn.ReLU(), nn.Linear(5, 3), nn.Softmax(1)), SAMPLES),
    (nn.Sequential(nn.Conv2d(1, 3, 5, padding=2), nn.AvgPool2d(5), nn.Flatten(), nn.Softmax(1)),
     SAMPLES[:, None, :, None] + np.zeros(5, dtype=np.float32))])
def test_nets_whose_first_layer_cannot_standardise_are_refused_and_left_alone(net, X):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="standardise_inputs needs a net whose first layer"):
        train(net, (X, LABELS), standardise_inputs=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- softmax_twice ----

@FAMILIES
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_training_with_one_softmax_equals_the_protocol_written_plainly(make, batch_size):
    train_as_plainly(make_net(make, dtype=torch.float64), make_data(), learning_rate=0.03, batch_size=batch_size,
                     softmax_twice=False, max_number_training_epochs=6)


def test_sequences_that_end_in_a_softmax_train_with_one_and_others_are_refused():
    net = make_net_with(nn.LayerNorm(6))
    train_as_plainly(net, make_data(), softmax_twice=False, max_number_training_epochs=3)
    for net in (net[:-1], nn.Sequential(*net, nn.Identity())):
        with pytest.raises(ValueError, match="softmax_twice=False needs a net with a method scores"):
            get_loss_and_accuracy(net, *make_data(), softmax_twice=False)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_probabilities_that_are_rounded_to_zero_still_have_a_gradient(batch_size):
    X, y = make_data()
    X, net = 2e3 * X, make_net()
    assert (net(torch.from_numpy(X))[range(40), y] == 0).float().mean() > 0.3
    # float64, where a probability of 1e-300 is not 0 yet, shows what is right
    settings = dict(softmax_twice=False, batch_size=batch_size, max_number_training_epochs=5, seed=0)
    losses, *_ = plain_training(copy.deepcopy(net).double(), X, y, **settings)
    assert train(net, (X, y), **settings)[0] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < losses[0] - 1


def test_loss_with_one_softmax_is_the_cross_entropy_of_the_probabilities():
    net, (X, y) = make_net(dtype=torch.float64), make_data()
    probabilities = net(torch.from_numpy(X).double())
    loss, accuracy = get_loss_and_accuracy(net, X, y, softmax_twice=False)
    assert loss == pytest.approx(-probabilities[range(40), y].log().mean().item(), rel=1e-12)
    assert accuracy == get_accuracy_score(y, probabilities)
