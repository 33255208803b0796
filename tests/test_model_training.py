"""Facts about model_training.py, the training protocol."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import model_training
from model_training import (_is_finished, get_accuracy_score, get_loss, get_loss_and_accuracy,
                            get_nb_model_parameters, predict, train_epoch, train_model)
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import StandardTHLFFNN

pytestmark = pytest.mark.usefixtures("one_thread")

NB_CLASSES = 3
FAMILIES = pytest.mark.parametrize("make", [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN])


def make_data(nb_samples=40, nb_features=5):
    """Three clouds of points, all samples different."""
    rng = np.random.default_rng(0)
    y = rng.integers(NB_CLASSES, size=nb_samples)
    return (rng.normal(size=(nb_samples, nb_features)) + y[:, None]).astype(np.float32), y


def make_net(make=StandardTHLFFNN, hidden_layer_size=6, seed=0, **kwargs):
    torch.manual_seed(seed)
    return make(5, NB_CLASSES, hidden_layer_size, **kwargs)


def train(net=None, data=None, **kwargs):
    """train_model for three epochs, unless told otherwise."""
    return train_model(net if net is not None else make_net(), *(data or make_data()),
                       **{"max_number_training_epochs": 3, "seed": 0, **kwargs})


@pytest.fixture
def epochs(monkeypatch):
    """List that the samples and labels which every epoch trains on are appended to."""
    calls = []

    def recording_train_epoch(model, X, y, *args):
        calls.append((X.clone(), y.clone()))
        return train_epoch(model, X, y, *args)

    monkeypatch.setattr(model_training, "train_epoch", recording_train_epoch)
    return calls


# ---- the stopping rule ----

def finished(history, improvement=5e-4, patience=10, minimum=200, maximum=None):
    return _is_finished(history, improvement, patience, minimum, maximum)


def test_training_needs_more_than_the_minimum_number_of_epochs():
    assert not finished([])
    assert not finished([0.5])
    assert not finished([0.5] * 200)
    assert finished([0.5] * 201)
    assert not finished([0.5] * 30, minimum=30)
    assert finished([0.5] * 31, minimum=30)


def test_training_needs_more_than_twice_the_patience():
    assert not finished([0.5] * 300, patience=150)
    assert finished([0.5] * 301, patience=150)
    assert not finished([0.5] * 2, patience=1, minimum=0)
    assert finished([0.5] * 3, patience=1, minimum=0)


def test_an_improvement_of_exactly_the_threshold_continues():
    earlier = [0.5] * 300
    assert not finished([*earlier, *[0.75] * 10], improvement=0.25)
    assert finished([*earlier, *[math.nextafter(0.75, 0)] * 10], improvement=0.25)
    assert not finished([*earlier, *[0.5 + 5e-4] * 10])
    assert not finished([*earlier, *[0.5] * 10], improvement=0)


def test_the_best_of_the_last_epochs_counts_against_the_best_of_all_earlier_ones():
    assert not finished([0.5] * 300 + [0.1] * 4 + [0.6] + [0.1] * 5)
    assert finished([0.9] + [0.5] * 300 + [0.6] * 10)  # the best was long ago


def test_training_ends_once_the_last_improvement_is_patience_epochs_old():
    history = [0.5] * 299 + [0.6]
    for nb_epochs in range(300, 400):
        assert finished(history + [0.6] * (nb_epochs - 300), patience=20) == (nb_epochs >= 320)


def test_the_maximum_number_of_epochs_ends_training_in_any_case():
    rising = list(np.linspace(0, 1, 50))
    assert not finished(rising, maximum=51)
    assert finished(rising, maximum=50)
    assert finished([0.5], maximum=1)


@pytest.mark.parametrize("kwargs, nb_epochs", [
    ({}, 201), (dict(patience=150), 301), (dict(min_number_training_epochs=7, patience=2), 8),
    (dict(min_number_training_epochs=0, patience=4), 9), (dict(max_number_training_epochs=5), 5),
    (dict(min_number_training_epochs=3, patience=2, max_number_training_epochs=100), 5)])
def test_training_stops_when_accuracy_stands_still(kwargs, nb_epochs, monkeypatch):
    monkeypatch.setattr(model_training, "get_accuracy_score", lambda *args: 0.5)
    histories = train_model(make_net(), *make_data(), seed=0, **kwargs)
    assert [len(history) for history in histories] == [nb_epochs] * 3


def test_validation_accuracy_and_not_training_accuracy_decides(monkeypatch):
    X, y = make_data(40)  # 34 samples to train on, 6 to validate

    def run(rising_part):
        values = iter(np.linspace(0, 1, 1000))
        monkeypatch.setattr(model_training, "get_accuracy_score",
                            lambda y_true, y_pred: next(values) if len(y_true) == rising_part else 0.5)
        losses, *_ = train(data=(X, y), patience=2, min_number_training_epochs=10,
                           max_number_training_epochs=50)
        return len(losses)

    assert run(rising_part=34) == 11
    assert run(rising_part=6) == 50


# ---- histories ----

@FAMILIES
def test_histories_are_lists_of_plain_floats_of_equal_length(make):
    histories = train(make_net(make), max_number_training_epochs=4)
    assert type(histories) is tuple and len(histories) == 3
    for history in histories:
        assert type(history) is list and len(history) == 4
        assert all(type(value) is float for value in history)
    for history in histories[1:]:
        assert all(0 <= value <= 1 for value in history)


def test_recorded_loss_and_accuracy_are_those_of_the_weights_after_the_epoch(epochs):
    net = make_net()
    losses, accuracies, val_accuracies = train(net, batch_size=7)
    X, y = epochs[-1]
    loss, accuracy = get_loss_and_accuracy(net, X, y)
    assert losses[-1] == pytest.approx(loss, rel=1e-6)
    assert accuracies[-1] == accuracy
    X_all, y_all = make_data()
    is_validation = ~(torch.tensor(X_all)[:, None] == X).all(2).any(1)
    assert is_validation.sum() == 6
    assert val_accuracies[-1] == get_loss_and_accuracy(net, X_all[is_validation], y_all[is_validation])[1]


def test_training_lowers_the_loss_and_finds_the_classes():
    losses, accuracies, val_accuracies = train(
        data=make_data(200), learning_rate=0.02, batch_size=50, max_number_training_epochs=60)
    assert losses[-1] < losses[0] - 0.2
    assert accuracies[-1] > 0.8 and val_accuracies[-1] > 0.7


@FAMILIES
def test_same_seed_gives_the_same_histories_and_weights_bit_for_bit(make):
    def run(seed):
        net = make_net(make)
        return train(net, seed=seed, batch_size=8), net.state_dict()

    (histories, weights), (same_histories, same_weights) = run(1), run(1)
    assert histories == same_histories
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
    other_histories, other_weights = run(2)
    assert histories[0] != other_histories[0]
    assert not torch.equal(weights["input_layer.weight"], other_weights["input_layer.weight"])


def test_with_a_seed_the_global_generators_have_no_influence_and_are_left_alone():
    histories = []
    for global_seed in (5, 6):
        net = make_net()
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        histories.append(train(net, seed=1))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert (np.random.get_state()[1] == numpy_state).all()
    assert histories[0] == histories[1]


def test_without_a_seed_the_global_generator_of_torch_governs():
    def run(global_seed):
        net = make_net()
        torch.manual_seed(global_seed)
        return train(net, seed=None)

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]


# ---- what an epoch trains on ----

@pytest.mark.parametrize("nb_samples, nb_validation", [(2, 1), (7, 2), (20, 3), (100, 15), (101, 16)])
def test_fifteen_percent_are_split_off_for_validation(nb_samples, nb_validation, epochs, monkeypatch):
    validated = []

    def recording_accuracy(y_true, y_pred):
        validated.append(len(y_true))
        return get_accuracy_score(y_true, y_pred)

    monkeypatch.setattr(model_training, "get_accuracy_score", recording_accuracy)
    train(data=make_data(nb_samples), max_number_training_epochs=1)
    assert [len(X) for X, _ in epochs] == [nb_samples - nb_validation]
    assert validated == [nb_samples - nb_validation, nb_validation]


def test_training_part_is_random_keeps_its_labels_and_stays_the_same(epochs):
    X_all, y_all = make_data(100)
    train(data=(X_all, y_all))
    X, y = epochs[0]
    # the samples that are in the training part, ascending
    rows = (torch.tensor(X_all)[:, None] == X).all(2).nonzero()[:, 0].tolist()
    assert len(set(rows)) == 85 and rows != list(range(85)) and rows != list(range(15, 100))
    label_of = {tuple(sample): label for sample, label in zip(X_all.tolist(), y_all.tolist())}
    assert [label_of[tuple(sample)] for sample in X.tolist()] == y.tolist()
    for X_later, y_later in epochs[1:]:
        assert torch.equal(X_later, X) and torch.equal(y_later, y)


class RecordingNet(nn.Module):
    """Softmax of a linear layer that keeps the batches it gets, by mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.batches = {True: [], False: []}

    def forward(self, X):
        self.batches[self.training].append(X[:, 0].tolist())
        assert torch.is_grad_enabled() == self.training
        return torch.softmax(self.layer(X), 1)


def test_every_epoch_sees_each_sample_once_in_shuffled_batches():
    net = RecordingNet()
    X, y = torch.arange(23.)[:, None], torch.arange(23) % 2
    shuffles = torch.Generator().manual_seed(0)
    for _ in range(2):
        train_epoch(net, X, y, torch.optim.SGD(net.parameters(), lr=0.1), 10, shuffles)
    batches = net.batches[True]
    assert [len(batch) for batch in batches] == [10, 10, 3] * 2
    orders = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(23))
    assert orders[0] != sorted(orders[0]) and orders[0] != orders[1]


def test_an_epoch_takes_one_step_per_batch():
    net = make_net()
    expected = copy.deepcopy(net)
    X, y = map(torch.from_numpy, make_data(23))
    train_epoch(net, X, y, torch.optim.SGD(net.parameters(), lr=0.1), 10, torch.Generator().manual_seed(4))
    order = torch.randperm(23, generator=torch.Generator().manual_seed(4))
    for batch in order.split(10):
        gradients = torch.autograd.grad(get_loss(y[batch], expected(X[batch])), list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients):
                parameter -= 0.1 * gradient
    for actual, parameter in zip(net.parameters(), expected.parameters()):
        torch.testing.assert_close(actual, parameter)


@pytest.mark.parametrize("use_Adam", [True, False])
def test_optimizer_is_adam_or_plain_gradient_descent(use_Adam, epochs):
    net = make_net()
    start = copy.deepcopy(net)
    train(net, learning_rate=0.01, use_Adam=use_Adam, max_number_training_epochs=1)
    X, y = epochs[0]
    get_loss(y, start(X)).backward()
    for before, after in zip(start.parameters(), net.parameters()):
        gradient = before.grad
        # The first step of Adam: both moments are the gradient's own.
        step = gradient / (gradient.abs() + 1e-8) if use_Adam else gradient
        torch.testing.assert_close(after.detach(), before.detach() - 0.01 * step, rtol=1e-4, atol=1e-7)


def test_adam_is_the_default_with_the_paper_hyperparameters(epochs):
    nets = [make_net(), make_net()]
    X, y = make_data(40)
    short = dict(seed=0, max_number_training_epochs=3)
    default = train_model(nets[0], X, y, **short)
    explicit = train_model(nets[1], X, y, 1e-3, 1000, True, 5e-4, 10, 200, **short)
    assert default == explicit
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


def test_data_is_left_alone():
    X, y = make_data()
    copies = X.copy(), y.copy()
    train(data=(X, y))
    assert (X == copies[0]).all() and (y == copies[1]).all()


@pytest.mark.parametrize("convert", [
    lambda X, y: (X.astype(np.float64), y.astype(np.uint8)), lambda X, y: (X, y.astype(np.int32)),
    lambda X, y: (torch.from_numpy(X), torch.from_numpy(y)), lambda X, y: (X.tolist(), y.tolist()),
    lambda X, y: (np.asfortranarray(X), y), lambda X, y: (torch.from_numpy(X).double(), y)],
    ids=["float64 and uint8", "int32", "tensors", "lists", "column by column", "float64 tensor"])
def test_arrays_of_any_real_dtype_train_alike(convert):
    X, y = make_data()
    assert train(data=convert(X, y)) == train(data=(X, y))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_samples_may_be_integers(dtype):
    X = np.random.default_rng(0).integers(2, size=(40, 5)).astype(dtype)
    y = make_data()[1]
    assert train(data=(X, y)) == train(data=(X.astype(np.float32), y))


def test_net_in_float64_trains_in_float64():
    histories = train(make_net(dtype=torch.float64)), train(make_net().double())
    for history in histories:
        assert any(value != float(np.float32(value)) for value in history[0])


@pytest.mark.parametrize("make, hidden_layer_size", [(StandardTHLFFNN, 1), (TwoHiddenLayeredSSNet, 1),
                                                     (TwoHiddenLayeredSSNet, 2), (Rank1THLFFNN, 1)])
@pytest.mark.parametrize("use_Adam", [True, False])
def test_the_smallest_hidden_layers_train(make, hidden_layer_size, use_Adam):
    net = make_net(make, hidden_layer_size)  # an SSS layer with one stage has states without entries
    start = copy.deepcopy(net)
    losses, *_ = train(net, use_Adam=use_Adam, learning_rate=0.1)
    assert len(losses) == 3
    assert not torch.equal(net.output_layer.bias, start.output_layer.bias)


def test_images_train():
    rng = np.random.default_rng(0)
    X, y = rng.integers(256, size=(20, 1, 28, 28)).astype(np.uint8), np.arange(20) % NB_CLASSES
    torch.manual_seed(0)
    losses, *_ = train(SSSTHLConvNet((1, 28, 28), NB_CLASSES, 6), (X, y))
    assert len(losses) == 3


def test_frozen_parameters_stay():
    net = make_net()
    start = copy.deepcopy(net)
    net.input_layer.requires_grad_(False)
    train(net)
    assert torch.equal(net.input_layer.weight, start.input_layer.weight)
    assert not torch.equal(net.output_layer.weight, start.output_layer.weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_runs_on_the_device_of_the_model():
    net = make_net().cuda()
    losses, *_ = train(net)
    assert losses == pytest.approx(train(make_net())[0], abs=1e-4)
    assert all(parameter.is_cuda for parameter in net.parameters())


# ---- evaluation ----

def test_evaluation_in_parts_equals_one_pass(monkeypatch):
    X, y = make_data(50)
    net = make_net()
    expected = get_loss_and_accuracy(net, X, y)
    sizes = []
    net.register_forward_pre_hook(lambda net, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(model_training, "EVALUATION_BATCH_SIZE", 7)
    assert get_loss_and_accuracy(net, X, y) == pytest.approx(expected, rel=1e-6)
    assert max(sizes) == 7 and sum(sizes) >= 50  # memory is bounded by the parts
    monkeypatch.setattr(model_training, "EVALUATION_BATCH_SIZE", 1000)
    torch.testing.assert_close(predict(net, torch.from_numpy(X)), net(torch.from_numpy(X)).detach())


def test_evaluation_during_training_is_bounded_too(monkeypatch):
    net = RecordingNet()
    monkeypatch.setattr(model_training, "EVALUATION_BATCH_SIZE", 7)
    train(net, (np.arange(40.)[:, None], np.arange(40) % 2), max_number_training_epochs=1)
    assert [len(batch) for batch in net.batches[True]] == [34]
    assert max(len(batch) for batch in net.batches[False]) == 7
    assert set(sum(net.batches[False], [])) == set(range(40))


def test_prediction_needs_no_gradients_and_uses_evaluation_mode():
    net = nn.Sequential(nn.Linear(5, NB_CLASSES), nn.Dropout(0.9), nn.Softmax(1))
    X = torch.from_numpy(make_data()[0])
    probabilities = predict(net.train(), X)
    assert not probabilities.requires_grad
    assert torch.equal(probabilities, predict(net, X))


def test_loss_is_cross_entropy_of_the_softmax_of_the_probabilities():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.5, 0.5, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    second_softmax = probabilities.exp() / probabilities.exp().sum(1, keepdim=True)
    expected = -(second_softmax[0, 0].log() + second_softmax[1, 1].log() + second_softmax[2, 2].log()) / 3
    loss = get_loss(y, probabilities)
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_accuracy_is_the_share_of_most_probable_classes():
    y_pred = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]
    y_true = [0, 1, 1, 2]
    for convert in (np.array, torch.tensor):
        accuracy = get_accuracy_score(convert(y_true), convert(y_pred))
        assert type(accuracy) is float and accuracy == 0.5
    assert get_accuracy_score(np.array([2]), np.array([[0, 0, 1]])) == 1.0


def test_loss_and_accuracy_of_a_model_are_those_of_its_predictions():
    net = make_net()
    X, y = map(torch.from_numpy, make_data())
    loss, accuracy = get_loss_and_accuracy(net, X.numpy(), y.numpy())
    assert type(loss) is float and type(accuracy) is float
    with torch.no_grad():
        assert loss == pytest.approx(get_loss(y, net(X)).item(), rel=1e-6)
        assert accuracy == get_accuracy_score(y, net(X))
    assert get_loss_and_accuracy(net, X, y) == (loss, accuracy)
    assert get_loss_and_accuracy(net, X[:1], y[:1])[1] in (0.0, 1.0)


# ---- number of parameters ----

def test_frozen_parameters_count_unless_told_otherwise():
    net = make_net()
    assert get_nb_model_parameters(net) == (5 + 1) * 6 + (6 + 1) * 6 + (6 + 1) * 3
    net.input_layer.requires_grad_(False)
    net.output_layer.bias.requires_grad_(False)
    assert get_nb_model_parameters(net) == (5 + 1) * 6 + (6 + 1) * 6 + (6 + 1) * 3
    assert get_nb_model_parameters(net, count_gradientless_parameters=False) == (6 + 1) * 6 + 6 * 3
    assert type(get_nb_model_parameters(net)) is int


def test_shared_parameters_count_once():
    layer = SemiseparableLayer(6, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert get_nb_model_parameters(net) == get_nb_model_parameters(layer)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert get_nb_model_parameters(nn.ModuleList([first, second])) == 16 + 4 + 4


def test_padding_of_frozen_layers_does_not_count():
    layer = SemiseparableLayer(6, 2)
    nb_parameters = get_nb_model_parameters(layer)
    nb_frozen = sum(layer.state_dims[k + 1] * layer.state_dims[k] for k in range(6))
    layer.A.requires_grad_(False)
    assert get_nb_model_parameters(layer) == nb_parameters
    assert get_nb_model_parameters(layer, False) == nb_parameters - nb_frozen


def test_buffers_are_no_parameters():
    assert get_nb_model_parameters(nn.BatchNorm1d(4)) == 8
    assert get_nb_model_parameters(nn.ReLU()) == 0


# ---- samples, labels and hyperparameters that do not fit ----

X, Y = make_data()


def changed(array, position, value):
    array = array.copy()
    array[position] = value
    return array


BAD_DATA = {
    "label too large": (X, changed(Y, 3, 3), "labels must be 0 .. 2"),
    "label negative": (X, changed(Y, 3, -1), "-1"),
    "labels from 1": (X, Y + 1, "1 .. 3"),
    "float labels": (X, Y.astype(float), "float64"),
    "boolean labels": (X, Y > 0, "bool"),
    "one-hot labels": (X, np.eye(3, dtype=int)[Y], "(40, 3)"),
    "NaN": (changed(X, (7, 2), np.nan), Y, "sample 7"),
    "infinity": (changed(X, (39, 0), -np.inf), Y, "1 of 40"),
    "too large for float32": (changed(X.astype(float), (7, 2), 1e39), Y, "sample 7"),
    "fewer labels": (X, Y[:39], "40 samples, but 39 labels"),
    "more labels": (X[:39], Y, "39 samples, but 40 labels"),
    "no samples": (X[:0], Y[:0], "no samples"),
    "other features": (X[:, :4], Y, "4)"),
    "one number per sample": (X[:, 0], Y, "(40,)"),
}
EVERY_BAD_DATA = pytest.mark.parametrize("X, y, message", BAD_DATA.values(), ids=BAD_DATA.keys())


@EVERY_BAD_DATA
def test_training_names_samples_and_labels_that_do_not_fit_and_trains_nothing(X, y, message):
    net = make_net()
    start = copy.deepcopy(net)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(net, (X, y))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters()))


@EVERY_BAD_DATA
def test_evaluation_names_samples_and_labels_that_do_not_fit(X, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        get_loss_and_accuracy(make_net(), X, y)


def test_one_sample_is_too_small_to_split():
    with pytest.raises(ValueError, match="1 samples are too few"):
        train(data=make_data(1))


@pytest.mark.parametrize("name, value", [
    ("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", math.nan), ("learning_rate", math.inf),
    ("batch_size", 0), ("batch_size", -5), ("batch_size", 2.5),
    ("patience", 0), ("patience", -1), ("patience", 2.5),
    ("min_number_training_epochs", -1), ("min_number_training_epochs", math.nan),
    ("max_number_training_epochs", 0), ("max_number_training_epochs", -2),
    ("min_accuracy_improvement", math.nan)])
def test_hyperparameters_out_of_range_are_named(name, value):
    net = make_net()
    start = copy.deepcopy(net)
    with pytest.raises(ValueError, match=f"{name}.*{re.escape(repr(value))}"):
        train(net, **{"min_number_training_epochs": 0, name: value})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters()))


def test_hyperparameters_may_be_numpy_numbers():
    assert train(batch_size=np.int64(8), patience=np.int32(2), learning_rate=np.float64(0.01)) \
        == train(batch_size=8, patience=2, learning_rate=0.01)


@FAMILIES
def test_divergence_stops_training_with_an_error(make):
    with pytest.raises(FloatingPointError, match=re.escape("1e+30")):
        train(make_net(make), learning_rate=1e30, max_number_training_epochs=50)
