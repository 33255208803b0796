"""The authors' published implementation, recorded in tests/golden, is reproduced number by number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model_training import get_loss_and_accuracy, get_nb_model_parameters, train_model
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, TwoHiddenLayeredSSNet
from sss_reference import STATE_MATRICES, dense_matrix, load_stages, stages_of
from standardmodels import StandardTHLFFNN

pytestmark = pytest.mark.filterwarnings("ignore:SemiseparableLayer")

GOLDEN_FOLDER = Path(__file__).resolve().parent / "golden"
EVERY_LAYER = pytest.mark.parametrize("file", [
    f"layer_n{n}_d{d}_io{m}.npz" for n, d, m in ((7, 5, 1), (12, 3, 2), (50, 1, 1), (50, 5, 1), (60, 4, 10))])
EVERY_TRAINING = pytest.mark.parametrize("file", [
    f"training_{family}_n20.npz" for family in ("standard_nn", "ss_1_dim", "ss_3_dim", "rank_1")])


def load(file):
    with np.load(GOLDEN_FOLDER / file) as arrays:
        return dict(arrays)


@torch.no_grad()
def authors_layer(golden):
    layer = SemiseparableLayer(len(golden["bias"]), int(golden["statespace_dim"]), int(golden["inputoutput_dim"]),
                               initialisation="zeros")
    load_stages(layer, golden, "{name}_{k}")
    layer.bias.copy_(torch.from_numpy(golden["bias"]))
    return layer


@EVERY_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in float64 without rounding of our own
def test_output_and_every_gradient_equal_the_authors(file, dtype):
    golden = load(file)
    layer = authors_layer(golden).to(dtype)
    u = torch.from_numpy(golden["input"]).to(dtype).requires_grad_()
    y = layer(u)
    y.backward(torch.from_numpy(golden["cotangent"]).to(dtype))

    actual = {"output": y.detach(), "grad_input": u.grad, "grad_bias": layer.bias.grad}
    for name, matrices in stages_of(layer, {name: getattr(layer, name).grad for name in STATE_MATRICES}).items():
        assert len(matrices) == golden["nb_states"]
        actual.update({f"grad_{name}_{k}": gradient for k, gradient in enumerate(matrices)})
    for name, values in actual.items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-5, atol=1e-6, err_msg=name)


@EVERY_LAYER
def test_realisation_and_loaded_stages_represent_the_authors_approximation(file):
    golden = load(file)
    realised = SemiseparableLayer.from_matrix(golden["dense_matrix"], int(golden["statespace_dim"]),
                                              int(golden["inputoutput_dim"]))
    for matrix, tolerance in ((realised.to_matrix(), 1e-8), (dense_matrix(realised), 1e-8),
                              (authors_layer(golden).to_matrix(), 1e-6)):
        np.testing.assert_allclose(matrix.detach(), golden["approximation"], rtol=0, atol=tolerance)


@EVERY_LAYER
def test_number_of_parameters_equals_the_authors(file):
    golden = load(file)
    assert get_nb_model_parameters(authors_layer(golden)) == golden["nb_parameters"]


def authors_net(file, golden, moment):
    """The net of a recorded training with its values at a moment, "init" or "final"."""
    outer = [f"{layer}.{name}" for layer in ("input_layer", "output_layer") for name in ("weight", "bias")]
    if "standard" in file:
        net = StandardTHLFFNN(16, 10, 20)
        names = {name: f"model.{name}" for name in net.state_dict()}
    elif "rank" in file:
        net = Rank1THLFFNN(16, 10, 20)
        names = {"hidden_layers.0.v1": "hidden_layer_vec1", "hidden_layers.0.v2": "hidden_layer_vec2",
                 "hidden_layers.0.bias": "bias", **dict(zip(outer, outer))}
    else:
        net = TwoHiddenLayeredSSNet(16, 10, 20, statespace_dim=int(file.split("_")[2]))
        load_stages(net.hidden_layers[0], golden, moment + "/hidden_layer.{name}.{k}")
        names = {"hidden_layers.0.bias": "hidden_layer.bias", **dict(zip(outer, outer))}
    values = {ours: torch.from_numpy(golden[f"{moment}/{theirs}"]) for ours, theirs in names.items()}
    net.load_state_dict({**net.state_dict(), **values})
    return net


@EVERY_TRAINING
def test_training_follows_the_authors_curve(file, monkeypatch):
    golden = load(file)
    net, X, y = authors_net(file, golden, "init"), golden["X"], golden["y"]
    # All samples are trained on, as was recorded; validation samples do not change the training.
    monkeypatch.setattr("sklearn.model_selection.train_test_split", lambda rows, **options: (rows, rows[:5]))
    loss, accuracy, _ = train_model(net, X, y, float(golden["learning_rate"]), len(X), max_number_training_epochs=60)
    assert golden["loss"].shape == (60,) and golden["loss"][0] - golden["loss"][-1] > 0.01  # no straight line
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(accuracy, golden["accuracy"], rtol=0, atol=1.1 / len(X))  # one may be near a tie
    np.testing.assert_allclose(net(torch.from_numpy(X[:20])).detach(), golden["output_after"], rtol=0, atol=1e-3)


@EVERY_TRAINING
def test_trained_weights_of_the_authors_give_their_output(file):
    golden = load(file)
    net = authors_net(file, golden, "final")
    np.testing.assert_allclose(net(torch.from_numpy(golden["X"][:20])).detach(), golden["output_after"], 1e-5, 1e-6)
    loss, accuracy = get_loss_and_accuracy(net, golden["X"], golden["y"])
    assert loss == pytest.approx(golden["loss"][-1], abs=1e-6)
    assert accuracy == pytest.approx(golden["accuracy"][-1], abs=1e-6)  # recorded in float32
