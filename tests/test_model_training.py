"""Facts about model_training.py, the training protocol."""

import copy
import inspect
import math
import re

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import model_training
from model_training import (_is_finished, get_accuracy_score, get_loss, get_loss_and_accuracy,
                            get_nb_model_parameters, train_model)
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from standardmodels import StandardTHLFFNN

NB_CLASSES = 3
PASS_SIZE = 16  # so that batches of 34 samples and evaluations of 40 take several passes


@pytest.fixture(autouse=True)
def small_passes(monkeypatch):
    monkeypatch.setattr(model_training, "SMALLEST_PASS", PASS_SIZE)
    monkeypatch.setattr(model_training, "PASS_BYTES", {"cpu": 1, "cuda": 1})


def make_data(nb_samples=40, nb_features=5):
    """Three clouds of points, all samples different."""
    rng = np.random.default_rng(0)
    y = rng.integers(NB_CLASSES, size=nb_samples)
    return (rng.normal(size=(nb_samples, nb_features)) + y[:, None]).astype(np.float32), y


SAMPLES, LABELS = make_data()


def make_net(make=StandardTHLFFNN, hidden_layer_size=6, seed=0, **kwargs):
    torch.manual_seed(seed)
    return make(5, NB_CLASSES, hidden_layer_size, **kwargs)


def make_net_with(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), layer, nn.ReLU(), nn.Linear(6, NB_CLASSES), nn.Softmax(1)).double()


def train(net=None, data=None, **settings):
    """train_model for three epochs, unless told otherwise."""
    return train_model(net or make_net(), *(data or make_data()),
                       **{"max_number_training_epochs": 3, "seed": 0, **settings})


# ---- the protocol ----

def plain_training(model, X, y, learning_rate=1e-3, batch_size=1000, use_Adam=True, min_accuracy_improvement=5e-4,
                   patience=10, min_number_training_epochs=200, *, max_number_training_epochs=math.inf,
                   softmax_twice=True, restore_best_weights=False, seed):
    """What train_model does, one thing after the other."""
    X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.15, random_state=seed)
    dtype = next(model.parameters()).dtype
    X_train, X_val = torch.tensor(X_train, dtype=dtype), torch.tensor(X_val, dtype=dtype)
    y_train, y_val = torch.tensor(y_train), torch.tensor(y_val)
    optimizer = (torch.optim.Adam if use_Adam else torch.optim.SGD)(model.parameters(), lr=learning_rate)
    shuffles = torch.Generator().manual_seed(seed)
    losses, accuracies, val_accuracies, weights = [], [], [], []
    get_loss = functional.cross_entropy if softmax_twice else lambda p, y: -p[range(len(y)), y].log().mean()
    while True:
        model.train()
        for batch in torch.randperm(len(X_train), generator=shuffles).split(int(batch_size)):
            optimizer.zero_grad()
            get_loss(model(X_train[batch]), y_train[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            y_pred, y_val_pred = model(X_train), model(X_val)
        losses.append(get_loss(y_pred, y_train).item())
        accuracies.append((y_pred.argmax(1) == y_train).double().mean().item())
        val_accuracies.append((y_val_pred.argmax(1) == y_val).double().mean().item())
        weights.append(copy.deepcopy(model.state_dict()))
        nb_epochs = len(losses)
        if nb_epochs >= max_number_training_epochs:
            break
        if nb_epochs > min_number_training_epochs and nb_epochs > 2 * patience:
            if max(val_accuracies[-patience:]) < max(val_accuracies[:-patience]) + min_accuracy_improvement:
                break
    if restore_best_weights:
        model.load_state_dict(weights[int(np.argmax(val_accuracies))])  # of equal ones the first
    return losses, accuracies, val_accuracies


def train_as_plainly(net, data, *, seed=0, **settings):
    """The histories of train_model, which must be those of plain_training, and the weights too, but for rounding."""
    rounding = {torch.float32: 1e-5, torch.float64: 1e-10}[next(net.parameters()).dtype]
    plain_net = copy.deepcopy(net)
    torch.manual_seed(0)  # dropout draws from the global generator
    losses, *accuracies = histories = train_model(net, *data, seed=seed, **settings)
    torch.manual_seed(0)
    plain_losses, *plain_accuracies = plain_training(plain_net, *data, seed=seed, **settings)
    assert accuracies == plain_accuracies
    assert losses == pytest.approx(plain_losses, rel=rounding, abs=0)
    torch.testing.assert_close(net.state_dict(), plain_net.state_dict(), rtol=0, atol=10 * rounding)
    assert type(histories) is tuple
    assert all(type(history) is list and {*map(type, history)} == {float} for history in histories)
    return histories


@pytest.mark.parametrize("make", [StandardTHLFFNN, TwoHiddenLayeredSSNet, Rank1THLFFNN])
@pytest.mark.parametrize("settings", [dict(batch_size=7), dict(batch_size=34), dict(softmax_twice=False)])
def test_training_equals_the_protocol_written_plainly(make, settings):
    train_as_plainly(make_net(make, dtype=torch.float64), make_data(), learning_rate=0.03,
                     max_number_training_epochs=6, **settings)


CASES = {
    "batches of one sample": dict(batch_size=1),
    "gradient descent": dict(use_Adam=False, batch_size=np.int64(7), learning_rate=np.float64(0.5)),
    "two samples, one to validate": dict(nb_samples=2),
    "one hidden neuron": dict(hidden_layer_size=1),  # an SSS layer with one stage has states without entries
    "batches of several passes": dict(nb_samples=101, batch_size=40),
    "one batch of many passes": dict(nb_samples=101, batch_size=10 ** 6),
    "one softmax in batches": dict(softmax_twice=False, batch_size=7)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_training_in_special_cases_equals_the_protocol_written_plainly(case):
    settings = {"learning_rate": 0.03, "max_number_training_epochs": 6, **case}
    data = make_data(settings.pop("nb_samples", 40))
    net = make_net(TwoHiddenLayeredSSNet, settings.pop("hidden_layer_size", 6), dtype=torch.float64)
    train_as_plainly(net, data, **settings)


@pytest.mark.parametrize("layer, nb_samples, batch_size", [
    # of two samples one is trained on, so that the order in a batch of all does not matter to dropout
    (nn.Dropout(0.5), 40, 7), (nn.Dropout(0.5), 2, 1000), (nn.BatchNorm1d(6), 40, 7), (nn.BatchNorm1d(6), 40, 1000),
    (nn.LayerNorm(6).requires_grad_(False), 40, 1000)])
def test_nets_with_dropout_batch_norm_and_frozen_parameters_train(layer, nb_samples, batch_size):
    net = make_net_with(layer).eval()  # trains in training mode all the same
    train_as_plainly(net, make_data(nb_samples), batch_size=batch_size, max_number_training_epochs=4)


def test_pruned_nets_train_and_have_as_many_parameters():
    net = make_net(TwoHiddenLayeredSSNet)
    nb_parameters = get_nb_model_parameters(net)
    prune.l1_unstructured(net.hidden_layers[0], "A", amount=3)
    start = copy.deepcopy(net.state_dict())
    assert get_nb_model_parameters(net) == nb_parameters
    train(net)
    assert all((value != start[name]).any() != name.endswith("mask") for name, value in net.state_dict().items())


@pytest.mark.parametrize("settings", [dict(batch_size=7), {}, dict(softmax_twice=False)])
def test_the_weights_of_the_best_epoch_are_restored_and_the_history_stays_whole(settings):
    net = make_net(TwoHiddenLayeredSSNet, dtype=torch.float64)
    _, _, val_accuracies = train_as_plainly(net, make_data(), learning_rate=0.03, max_number_training_epochs=20,
                                            restore_best_weights=True, **settings)
    best = max(val_accuracies)
    assert len(val_accuracies) == 20 and val_accuracies.count(best) > 1 and val_accuracies.index(best) < 19


def test_gradients_left_from_before_have_no_influence():
    nets = [make_net(dtype=torch.float64), make_net(dtype=torch.float64)]
    nets[0](torch.ones(3, 5, dtype=torch.float64)).square().sum().backward()
    assert train(nets[0]) == train(nets[1])


def test_images_train():
    X, y = np.random.default_rng(0).integers(256, size=(20, 1, 28, 28)).astype(np.uint8), np.arange(20) % NB_CLASSES
    torch.manual_seed(0)
    net = SSSTHLConvNet((1, 28, 28), NB_CLASSES, 6, dtype=torch.float64)
    train_as_plainly(net, (X, y), batch_size=7, max_number_training_epochs=3)


def test_training_stops_when_validation_accuracy_no_longer_improves():
    losses, *_ = train_as_plainly(make_net(dtype=torch.float64), make_data(100), learning_rate=0.003, batch_size=7,
                                  patience=5, min_number_training_epochs=12, max_number_training_epochs=100)
    assert 13 < len(losses) < 100  # neither the minimum nor the maximum decided


def test_arguments_and_defaults_are_the_papers():
    assert str(inspect.signature(train_model)).startswith(
        "(model, X_train_np, Y_train_np, learning_rate=0.001, batch_size=1000, use_Adam=True, "
        "min_accuracy_improvement=0.0005, patience=10, min_number_training_epochs=200, *, ")
    losses, *_ = train_as_plainly(make_net(dtype=torch.float64), make_data())
    assert len(losses) > 200 and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("history, settings, finished", [
    # more than the minimum number of epochs and more than twice the patience
    ([], {}, False), ([0.5] * 200, {}, False), ([0.5] * 201, {}, True),
    ([0.5] * 300, dict(patience=150), False), ([0.5] * 301, dict(patience=150), True),
    ([0.5] * 2, dict(patience=1, minimum=0), False), ([0.5] * 3, dict(patience=1, minimum=0), True),
    # an improvement of exactly the threshold goes on
    ([0.5] * 300 + [0.75] * 10, dict(improvement=0.25), False),
    ([0.5] * 300 + [math.nextafter(0.75, 0)] * 10, dict(improvement=0.25), True),
    ([0.5] * 310, dict(improvement=0), False),
    # the best of the last epochs against the best of all earlier ones
    ([0.5] * 300 + [0.1] * 4 + [0.6] + [0.1] * 5, {}, False), ([0.9] + [0.5] * 300 + [0.6] * 10, {}, True),
    ([0.5] * 299 + [0.6] * 20, dict(patience=20), False), ([0.5] * 299 + [0.6] * 21, dict(patience=20), True),
    # the maximum in any case
    ([0.1, 0.2, 0.3], dict(maximum=4), False), ([0.1, 0.2, 0.3], dict(maximum=3), True)])
def test_stopping_rule(history, settings, finished):
    values = {"improvement": 5e-4, "patience": 10, "minimum": 200, "maximum": None, **settings}
    assert _is_finished(history, *values.values()) == finished


# ---- seeds and data ----

def test_global_generators_matter_without_a_seed_only():
    def run(global_seed, seed):
        net = make_net()
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        return train(net, seed=seed), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    assert run(3, None) == run(3, None)
    assert run(3, None)[0] != run(4, None)[0]
    histories, *states = run(3, np.uint8(1))
    assert histories == run(4, 1)[0] != run(4, 2)[0]
    np.random.seed(3)  # neither has moved since it was seeded
    assert states == [torch.manual_seed(3).get_state().tolist(), np.random.get_state()[1].tolist()]


@pytest.mark.filterwarnings("error")  # torch warns if it shares a read-only array, as broadcast_to's is
@pytest.mark.parametrize("convert", [
    lambda X, y: (X.astype(np.int64), y.astype(np.uint8)), lambda X, y: (np.broadcast_to(X, X.shape), y.tolist()),
    lambda X, y: (X.astype(">f8"), y.astype(">i2")), lambda X, y: (X[::-1, ::-1].copy()[::-1, ::-1], y),
    lambda X, y: (nn.Parameter(torch.from_numpy(X).double()), torch.from_numpy(y).int())])
def test_data_of_any_real_dtype_trains_alike_and_is_left_alone(convert):
    X, y = np.random.default_rng(0).integers(2, size=(40, 5)).astype(np.float32), make_data()[1]
    converted = convert(X, y)
    before = copy.deepcopy(converted)
    assert train(data=converted) == train(data=(X, y))
    assert get_loss_and_accuracy(make_net(), *converted) == get_loss_and_accuracy(make_net(), X, y)
    with torch.no_grad():
        assert all(np.array_equal(data, copied) for data, copied in zip(converted, before))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_runs_on_the_device_of_the_model():
    net = make_net().cuda()
    losses, *_ = train(net)
    assert losses == pytest.approx(train(make_net())[0], abs=1e-4)
    assert all(parameter.is_cuda for parameter in net.parameters())


# ---- evaluation, number of parameters ----

def test_evaluation_is_in_evaluation_mode_without_gradients_and_in_parts():
    net, (X, y), sizes = make_net_with(nn.Dropout(0.9)), make_data(), []
    y_pred = net.eval()(torch.from_numpy(X).double()).detach()

    def record(net, inputs):
        if not net.training and len(inputs[0]) > 2:  # two samples tell what a pass keeps for the backward one
            assert not torch.is_grad_enabled()
        if not net.training:
            sizes.append(len(inputs[0]))

    net.register_forward_pre_hook(record)
    for training in (False, True):
        loss, accuracy = get_loss_and_accuracy(net.train(training), X, y)
        assert net.training == training
        assert type(loss) is float and loss == pytest.approx(get_loss(torch.from_numpy(y), y_pred).item(), rel=1e-10)
        assert type(accuracy) is float and accuracy == get_accuracy_score(y, y_pred)
        assert get_loss_and_accuracy(net, torch.from_numpy(X), torch.from_numpy(y)) == (loss, accuracy)
    train(net, (X, y))
    assert max(sizes) == PASS_SIZE


@pytest.mark.parametrize("softmax_twice", [True, False])
def test_loss_is_the_cross_entropy_of_the_probabilities_after_another_softmax_or_none(softmax_twice):
    net = make_net(dtype=torch.float64)
    probabilities = net(torch.from_numpy(SAMPLES).double())
    if softmax_twice:
        probabilities = probabilities.exp() / probabilities.exp().sum(1, keepdim=True)
    loss, accuracy = get_loss_and_accuracy(net, SAMPLES, LABELS, softmax_twice=softmax_twice)
    assert loss == pytest.approx(-probabilities[range(40), LABELS].log().mean().item(), rel=1e-12)
    assert accuracy == get_accuracy_score(LABELS, probabilities)


def test_probabilities_that_are_rounded_to_zero_still_have_a_gradient():
    X, y, net = 2e3 * SAMPLES, LABELS, make_net()
    assert (net(torch.from_numpy(X))[range(40), y] == 0).float().mean() > 0.3
    # float64, where a probability of 1e-300 is not 0 yet, shows what is right
    settings = dict(softmax_twice=False, batch_size=7, max_number_training_epochs=5, seed=0)
    losses, *_ = plain_training(copy.deepcopy(net).double(), X, y, **settings)
    assert train(net, (X, y), **settings)[0] == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < losses[0] - 1


def test_accuracy_is_the_share_of_most_probable_classes():
    y_pred = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]
    for convert in (np.array, torch.tensor):
        accuracy = get_accuracy_score(convert([0, 1, 1, 2]), convert(y_pred))
        assert type(accuracy) is float and accuracy == 0.5


def test_frozen_parameters_count_unless_told_otherwise_and_padding_never():
    net = make_net(TwoHiddenLayeredSSNet)
    nb_hidden = 6 + 4 * 5 + 2 * 4 + 6  # D, B C F G, A E, bias; an SSS layer's states have 0 1 1 1 1 1 0 entries
    net.input_layer.requires_grad_(False)
    net.hidden_layers[0].A.requires_grad_(False)
    net.output_layer.bias.requires_grad_(False)
    assert get_nb_model_parameters(net) == (5 + 1) * 6 + nb_hidden + (6 + 1) * 3
    assert get_nb_model_parameters(net, count_gradientless_parameters=False) == nb_hidden - 4 + 6 * 3
    assert type(get_nb_model_parameters(net)) is int


def test_shared_parameters_count_once_and_buffers_never():
    layer = SemiseparableLayer(6, 2)
    assert get_nb_model_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == get_nb_model_parameters(layer)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert get_nb_model_parameters(nn.ModuleList([first, second, nn.BatchNorm1d(4)])) == 16 + 4 + 4 + 8


# ---- samples, labels and hyperparameters that do not fit ----

@pytest.mark.parametrize("X, y, message", [
    (SAMPLES, LABELS + 1, "labels must be integers of shape (N,), 0 .. 2, one per output of the model, got [3"),
    (SAMPLES, LABELS - 1, "labels must be"), (SAMPLES, LABELS.astype(float), "float64"),
    (SAMPLES, np.eye(3, dtype=int)[LABELS], "labels must be"),
    (np.where(SAMPLES == SAMPLES[39, 0], -np.inf, SAMPLES), LABELS, "samples with NaN or infinite values"),
    (np.where(SAMPLES == SAMPLES[7, 2], 1e39, SAMPLES.astype(float)), LABELS, "samples with NaN")])  # in float32
def test_samples_and_labels_that_do_not_fit_are_named_before_training_changes_anything(X, y, message):
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        train(net, (X, y))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name, value", [
    ("learning_rate", 0), ("learning_rate", math.nan), ("batch_size", 0), ("patience", 0),
    ("min_number_training_epochs", -1), ("max_number_training_epochs", 0), ("min_accuracy_improvement", math.nan),
    ("use_Adam", "no"), ("softmax_twice", "yes"), ("restore_best_weights", None), ("seed", -1)])
def test_hyperparameters_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name.replace('seed', 'random_state')}.*{re.escape(repr(value))}"):
        train(**{name: value})


def test_a_net_without_scores_cannot_be_trained_with_one_softmax():
    with pytest.raises(ValueError, match="softmax_twice=False needs a net with a method scores"):
        get_loss_and_accuracy(make_net_with(nn.ReLU()), *make_data(), softmax_twice=False)


@pytest.mark.parametrize("batch_size", [1, 33])
def test_a_last_batch_of_one_sample_is_named_where_batch_norm_cannot_take_it(batch_size):
    with pytest.raises(ValueError, match=f"batch_size {batch_size} leaves a last batch of one"):
        train(make_net_with(nn.BatchNorm1d(6)), batch_size=batch_size)


def test_divergence_stops_training_with_an_error():
    with pytest.raises(FloatingPointError, match=re.escape("1e+30")):
        train(learning_rate=1e30, max_number_training_epochs=50)
