"""The authors' published implementation, recorded in tests/golden, is reproduced number by number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model_training import evaluate, get_loss_and_accuracy, get_nb_model_parameters
from rank1models import Rank1THLFFNN
from semiseparablemodels import SemiseparableLayer, TwoHiddenLayeredSSNet
from sss_reference import STATE_MATRICES, dense_matrix, load_stages, stages_of
from standardmodels import StandardTHLFFNN

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN_FOLDER = Path(__file__).resolve().parent / "golden"
LAYER_FILES = [f"layer_n{n}_d{d}_io{m}.npz"
               for n, d, m in ((7, 5, 1), (12, 3, 2), (50, 1, 1), (50, 5, 1), (60, 4, 10))]
TRAINING_FILES = [f"training_{family}_n20.npz"
                  for family in ("standard_nn", "ss_1_dim", "ss_3_dim", "rank_1")]
EVERY_LAYER = pytest.mark.parametrize("file", LAYER_FILES)


def load(file):
    with np.load(GOLDEN_FOLDER / file) as arrays:
        return dict(arrays)


def authors_layer(golden):
    layer = SemiseparableLayer(len(golden["bias"]), int(golden["statespace_dim"]),
                               int(golden["inputoutput_dim"]), initialisation="zeros")
    assert layer.nb_states == golden["nb_states"]
    load_stages(layer, golden, "{name}_{k}")
    with torch.no_grad():
        layer.bias.copy_(torch.from_numpy(golden["bias"]))
    return layer


def assert_equal_in_float32(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=what)


def test_every_recorded_file_is_tested():
    assert sorted(path.name for path in GOLDEN_FOLDER.glob("*.npz")) == sorted(LAYER_FILES + TRAINING_FILES)


@EVERY_LAYER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in float64 without rounding of our own
def test_output_and_every_gradient_equal_the_authors(file, dtype):
    golden = load(file)
    layer = authors_layer(golden).to(dtype)
    u = torch.from_numpy(golden["input"]).to(dtype).requires_grad_()
    y = layer(u)
    y.backward(torch.from_numpy(golden["cotangent"]).to(dtype))

    assert_equal_in_float32(y.detach(), golden["output"], "output")
    assert_equal_in_float32(u.grad, golden["grad_input"], "input")
    assert_equal_in_float32(layer.bias.grad, golden["grad_bias"], "bias")
    gradients = stages_of(layer, {name: getattr(layer, name).grad for name in STATE_MATRICES})
    for name, matrices in gradients.items():
        assert len(matrices) == golden["nb_states"]
        for k, gradient in enumerate(matrices):
            assert_equal_in_float32(gradient, golden[f"grad_{name}_{k}"], f"{name}_{k}")


@EVERY_LAYER
def test_realisation_equals_the_authors_approximation(file):
    golden = load(file)
    layer = SemiseparableLayer.from_matrix(golden["dense_matrix"], int(golden["statespace_dim"]),
                                           int(golden["inputoutput_dim"]))
    for matrix in (layer.to_matrix(), dense_matrix(layer)):
        assert matrix.dtype == torch.float64
        np.testing.assert_allclose(matrix.detach(), golden["approximation"], rtol=0, atol=1e-8)


@EVERY_LAYER
def test_loaded_stages_represent_the_authors_approximation(file):
    golden = load(file)
    layer = authors_layer(golden)
    np.testing.assert_allclose(layer.to_matrix().detach(), golden["approximation"], rtol=0, atol=1e-6)


@EVERY_LAYER
def test_number_of_parameters_equals_the_authors(file):
    golden = load(file)
    assert get_nb_model_parameters(authors_layer(golden)) == golden["nb_parameters"]


def authors_net(file, golden, moment):
    """The net of a recorded training with its values at a moment, "init" or "final"."""
    def values(**names):
        return {ours: torch.from_numpy(golden[f"{moment}/{theirs}"]) for ours, theirs in names.items()}

    if "standard" in file:
        net = StandardTHLFFNN(16, 10, 20)
        net.load_state_dict(values(**{name: f"model.{name}" for name in net.state_dict()}))
        return net
    outer_layers = {name: name for name in ("input_layer.weight", "input_layer.bias", "output_layer.weight",
                                            "output_layer.bias")}
    if "rank" in file:
        net = Rank1THLFFNN(16, 10, 20)
        hidden_layer = {"hidden_layers.0.v1": "hidden_layer_vec1", "hidden_layers.0.v2": "hidden_layer_vec2",
                        "hidden_layers.0.bias": "bias"}
        net.load_state_dict(values(**outer_layers, **hidden_layer))
        return net
    net = TwoHiddenLayeredSSNet(16, 10, 20, statespace_dim=int(file.split("_")[2]))
    load_stages(net.hidden_layers[0], golden, moment + "/hidden_layer.{name}.{k}")
    loaded = values(**outer_layers, **{"hidden_layers.0.bias": "hidden_layer.bias"})
    assert not net.load_state_dict(loaded, strict=False).unexpected_keys
    return net


@pytest.mark.parametrize("file", TRAINING_FILES)
def test_training_follows_the_authors_curve(file):
    golden = load(file)
    net = authors_net(file, golden, "init")
    X, y = torch.from_numpy(golden["X"]), torch.from_numpy(golden["y"])
    optimizer = torch.optim.Adam(net.parameters(), lr=float(golden["learning_rate"]), fused=True)
    history = []
    evaluate(net, X, y, len(X), pass_size=256, add_gradients=True)
    for _ in range(60):
        optimizer.step()
        optimizer.zero_grad()
        history.append(evaluate(net, X, y, len(X), pass_size=256, add_gradients=True)[:2])

    loss, accuracy = np.transpose(history)
    assert golden["loss"].shape == (60,) and golden["loss"][0] - golden["loss"][-1] > 0.01  # no straight line
    np.testing.assert_allclose(loss, golden["loss"], rtol=0, atol=1e-4)
    # One sample may be near a tie.
    np.testing.assert_allclose(accuracy, golden["accuracy"], rtol=0, atol=1.1 / len(X))
    with torch.no_grad():
        np.testing.assert_allclose(net(X[:20]), golden["output_after"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("file", TRAINING_FILES)
def test_trained_weights_of_the_authors_give_their_output(file):
    golden = load(file)
    net = authors_net(file, golden, "final")
    X, y = torch.from_numpy(golden["X"]), torch.from_numpy(golden["y"])
    with torch.no_grad():
        np.testing.assert_allclose(net(X[:20]), golden["output_after"], rtol=1e-5, atol=1e-6)
    loss, accuracy = get_loss_and_accuracy(net, X, y)
    assert loss == pytest.approx(golden["loss"][-1], abs=1e-6)
    assert accuracy == pytest.approx(golden["accuracy"][-1], abs=1e-6)  # recorded in float32
