"""The SSS layer as a PyTorch module: number formats, devices, shapes, copies, export, compilers and transforms."""

import copy
import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from semiseparablemodels import SemiseparableLayer, SSSTHLConvNet, TwoHiddenLayeredSSNet
from sss_reference import (assert_equal, assert_outputs_and_gradients_equal, dense_matrix, make_layer,
                           outputs_and_gradients, random_batch)

pytestmark = pytest.mark.usefixtures("one_thread")

# Most tests take 22 inputs: asked for chunks of 3 they get chunks of 4 stages, the last one with two empty ones.
EVERY_CHUNKING = pytest.mark.parametrize("chunk_size", [None, 3], ids=["one chunk", "several chunks"])
EITHER_SIZE = pytest.mark.parametrize("n, outputs", [(50, 50), (300, 170)], ids=["one chunk", "several uneven chunks"])


def relative_difference(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


# ---- number formats and devices ----

@pytest.mark.parametrize("d", [1, 5])
def test_float32_agrees_with_float64_at_4096_inputs(d):
    torch.manual_seed(0)
    layer = SemiseparableLayer(4096, d, initialisation="direct")
    u, cotangent = (random_batch(8, 4096, dtype=torch.float32, seed=seed) for seed in (1, 2))
    actual = outputs_and_gradients(layer, layer, u, cotangent)
    layer = layer.to(torch.float64)
    expected = outputs_and_gradients(layer, layer, u.double(), cotangent.double())
    assert actual["output"].dtype == torch.float32 and expected["output"].dtype == torch.float64
    for name in actual:
        assert relative_difference(actual[name], expected[name]) < 1e-4, name


@EITHER_SIZE
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_close_to_float32(n, outputs, input_dtype):
    torch.manual_seed(0)
    layer = SemiseparableLayer(n, 3, output_size=outputs, bias=n == outputs, initialisation="direct")
    u, cotangent = (random_batch(16, size, dtype=torch.float32, seed=size) for size in (n, outputs))
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    matrix = layer.to_matrix()

    u = u.to(input_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(u)
        assert relative_difference(layer.to_matrix(), matrix) < 0.02
    assert y.dtype == torch.bfloat16
    y.backward(cotangent.bfloat16())
    assert u.grad.dtype == input_dtype
    assert relative_difference(y, expected["output"]) < 0.02
    assert relative_difference(u.grad, expected["input"]) < 0.02
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert relative_difference(parameter.grad, expected[name]) < 0.03, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n, d, m", [(50, 5, 1), (300, 3, 1), (300, 2, 2)])
def test_cuda_gives_what_the_cpu_gives(n, d, m):
    layer = make_layer(n, d, m)
    u, cotangent = random_batch(6, n), random_batch(6, n, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    layer = layer.cuda()
    actual = outputs_and_gradients(layer, layer, u.cuda(), cotangent.cuda())
    for name in expected:
        assert actual[name].is_cuda
        assert_equal(actual[name].cpu(), expected[name])


# ---- shapes of the input ----

@EVERY_CHUNKING
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (1, 1, 1, 2)])
def test_any_leading_batch_shape_works(shape, chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(*shape, 22).requires_grad_()
    y = layer(u)
    assert y.shape == layer.recursion(u).shape == (*shape, 22)
    y.sum().backward()  # its gradient is expanded, not contiguous
    T = dense_matrix(layer).detach()
    assert_equal(y, u @ T.mT + layer.bias)
    assert_equal(u.grad, T.sum(0).expand(*shape, 22))


@EVERY_CHUNKING
def test_input_need_not_be_contiguous_and_output_is(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    batch = random_batch(44, 6)
    for u in (batch[:22].T, batch.T[:, 5:27], batch[:22, :1].T.expand(3, 22), batch.T[::2, ::2]):
        y = layer(u)
        assert y.is_contiguous() and not np.shares_memory(y.detach().numpy(), u.numpy())
        assert_equal(y, layer.recursion(u.contiguous()))
        assert_equal(layer(u.unsqueeze(1).expand(-1, 4, -1))[:, 2], y)
    u = batch[:22].clone().requires_grad_()  # the gradient of a view
    layer(u.T).square().sum().backward()
    assert_equal(u.grad, outputs_and_gradients(layer, layer, u.T, 2 * layer(u.T).detach())["input"].T)


# ---- the layer as a PyTorch module ----

@EVERY_CHUNKING
def test_copies_compute_the_same(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)
    expected = layer(u).detach()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = SemiseparableLayer(22, 2, dtype=torch.float64)
    loaded.load_state_dict(layer.state_dict())
    copies = [loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    with torch.no_grad():
        for parameter in layer.parameters():  # with which they share no memory
            parameter.zero_()
    for other in copies:
        assert torch.equal(other(u), expected)


def test_state_dict_has_the_eight_parameters():
    shapes = {name: tuple(value.shape) for name, value in SemiseparableLayer(12, 3, 2).state_dict().items()}
    assert shapes == dict(A=(6, 3, 3), B=(6, 3, 2), C=(6, 2, 3), D=(6, 2, 2), E=(6, 3, 3), F=(6, 3, 2), G=(6, 2, 3),
                          bias=(12,))


@EVERY_CHUNKING
def test_changed_parameters_change_the_output(chunk_size, set_chunks):
    """Nothing that is derived from the parameters is kept from one forward to the next."""
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u = random_batch(5, 22)
    attributes = set(vars(layer))
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
        assert_equal(layer(u), layer.recursion(u))
    assert set(vars(layer)) == attributes


@EVERY_CHUNKING
def test_two_forwards_before_the_backwards_do_not_disturb_each_other(chunk_size, set_chunks):
    set_chunks(chunk_size)
    layer = make_layer(22, 2)
    u, v = random_batch(5, 22), random_batch(3, 22, seed=2)
    expected = [torch.autograd.grad(layer(inputs).square().sum(), list(layer.parameters())) for inputs in (u, v)]
    loss = layer(u).square().sum() + layer(v).square().sum()
    loss.backward(retain_graph=True)
    for parameter, *gradients in zip(layer.parameters(), *expected):
        assert_equal(parameter.grad, sum(gradients))
    loss.backward()
    for parameter, *gradients in zip(layer.parameters(), *expected):
        assert_equal(parameter.grad, 2 * sum(gradients))


# ---- what PyTorch makes of the layer ----

@EITHER_SIZE
def test_functorch_transforms_equal_those_of_the_recursion(n, outputs):
    layer = make_layer(n, 2, output_size=outputs)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    u, tangent = random_batch(3, n), random_batch(3, n, seed=2)

    def loss(parameters, u):
        return functional_call(layer, parameters, (u,)).square().sum()

    y = layer.recursion(u)
    expected = dict(zip(parameters, torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    summed, per_sample = grad(loss)(parameters, u), vmap(grad(loss), (None, 0))(parameters, u)
    for name in parameters:
        assert_equal(summed[name], expected[name])
        assert_equal(per_sample[name].sum(0), expected[name])
    assert_equal(vmap(layer)(u), y)
    assert_equal(jvp(layer, (u,), (tangent,))[1], tangent @ dense_matrix(layer).mT)


@pytest.mark.parametrize("n, outputs", [(50, 50), (300, 300), (50, 23), (300, 170)])
def test_exported_program_takes_any_batch_size(n, outputs):
    layer = make_layer(n, 2, output_size=outputs, dtype=torch.float32)
    program = torch.export.export(layer, (random_batch(4, n, dtype=torch.float32),),
                                  dynamic_shapes=({0: torch.export.Dim("batch")},))
    u = random_batch(9, n, dtype=torch.float32)
    assert_equal(program.module()(u), layer.recursion(u), 1e-5)


@EITHER_SIZE
def test_onnx_model_gives_the_same_numbers(n, outputs, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    layer = make_layer(n, 2, output_size=outputs, dtype=torch.float32)
    torch.onnx.export(layer.eval(), (random_batch(4, n, dtype=torch.float32),), tmp_path / "layer.onnx", dynamo=True,
                      dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    u = random_batch(9, n, dtype=torch.float32)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    y, = session.run(None, {session.get_inputs()[0].name: u.numpy()})
    assert_equal(torch.from_numpy(y), layer.recursion(u), 1e-5)


@EITHER_SIZE
def test_the_compiler_takes_the_whole_layer_with_any_batch_size(n, outputs):
    layer = make_layer(n, 2, output_size=outputs)
    torch._dynamo.reset()
    # This backend traces forward and backward like the default one, and leaves out only that C++ code is made of it.
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for nb_samples in (4, 9):
        assert_outputs_and_gradients_equal(layer, compiled, layer.recursion, nb_samples)


# The first call of torch.compile warns about its own internals.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler for torch.compile")
def test_compiled_net_gives_the_same_outputs_and_gradients(set_chunks):
    set_chunks(2)  # three chunks: all steps are compiled
    torch.manual_seed(0)
    net = TwoHiddenLayeredSSNet(4, 3, 6, statespace_dim=1)
    assert net.hidden_layers[0]._chunk_length == 2
    X, cotangent = random_batch(6, 4, dtype=torch.float32), random_batch(6, 3, dtype=torch.float32, seed=2)
    expected = outputs_and_gradients(net, net, X, cotangent)
    torch._dynamo.reset()
    actual = outputs_and_gradients(net, torch.compile(net, fullgraph=True), X, cotangent)
    torch._dynamo.reset()
    for name in expected:
        assert_equal(actual[name], expected[name], 1e-5)


# ---- devices and number formats of fresh layers and nets ----

@pytest.mark.parametrize("initialisation", ["realisation", "direct", "zeros"])
@pytest.mark.parametrize("make", [SemiseparableLayer, lambda n, *args, **kwargs: TwoHiddenLayeredSSNet(
    4, 3, n, *args, **kwargs), lambda n, *args, **kwargs: SSSTHLConvNet((1, 28, 28), 3, n, *args, **kwargs)])
def test_device_dtype_and_default_device_are_respected(make, initialisation):
    module = make(20, 2, initialisation=initialisation, device="meta", dtype=torch.float64)
    assert {(str(value.device), value.dtype) for value in module.parameters()} == {("meta", torch.float64)}
    assert [value.shape for value in module.parameters()] == [value.shape for value in make(20, 2).parameters()]
    with torch.device("meta"):
        module = make(20, 2, initialisation=initialisation)
    assert {str(value.device) for value in module.parameters()} == {"meta"}


def test_a_layer_on_the_meta_device_tells_shapes():
    layer = SemiseparableLayer(300, 2, output_size=170, device="meta")
    assert {tensor.device.type for tensor in (*layer.parameters(), *layer.buffers())} == {"meta"}
    assert layer(torch.empty(3, 300, device="meta")).shape == (3, 170) and layer.to_matrix().shape == (170, 300)


def test_float64_as_default_dtype_gives_a_float64_layer():
    torch.set_default_dtype(torch.float64)
    try:
        layers = [SemiseparableLayer(20, 2, initialisation=name) for name in ("realisation", "direct", "zeros")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for layer in layers for value in layer.parameters()} == {torch.float64}
