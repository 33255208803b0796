"""The SSS layer as a PyTorch module: number formats, devices, shapes, copies, export, compilers and transforms."""

import copy
import io

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jvp, linearize, vmap
from torch.nn.utils import skip_init
from torch.optim.swa_utils import AveragedModel

from semiseparablemodels import SemiseparableLayer
from sss_reference import (assert_equal, assert_outputs_and_gradients_equal, dense_matrix, make_layer,
                           outputs_and_gradients, random_batch)

# Most tests take 22 inputs: asked for chunks of 3 they get chunks of 4 stages, the last one with two empty ones.
EVERY_CHUNKING = pytest.mark.parametrize("chunk_size", [None, 3], indirect=True)
# One chunk; four uneven ones, the last of a single stage
EITHER_SIZE = pytest.mark.parametrize("n, outputs, chunk_size", [(9, 9, None), (13, 7, 2)], indirect=["chunk_size"])


def relative_difference(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def test_float32_agrees_with_float64_at_4096_inputs():
    torch.manual_seed(0)
    layer = SemiseparableLayer(4096, 5, initialisation="direct")
    u, cotangent = (random_batch(8, 4096, dtype=torch.float32, seed=seed) for seed in (1, 2))
    actual = outputs_and_gradients(layer, layer, u, cotangent)
    expected = outputs_and_gradients(layer.double(), layer, u.double(), cotangent.double())
    for name in actual:
        assert relative_difference(actual[name], expected[name]) < 1e-4, name


@pytest.mark.parametrize("n, outputs", [(50, 50), (300, 170)])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_close_to_float32(n, outputs, input_dtype):
    torch.manual_seed(0)
    layer = SemiseparableLayer(n, 3, output_size=outputs, bias=n == outputs, initialisation="direct")
    u, cotangent = (random_batch(16, size, dtype=torch.float32, seed=size) for size in (n, outputs))
    expected, matrix = outputs_and_gradients(layer, layer, u, cotangent), layer.to_matrix()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.to_matrix(), matrix)
        actual = outputs_and_gradients(layer, layer, u.to(input_dtype), cotangent)
        with pytest.raises(ValueError, match="torch.int64"):
            layer(u.long())
    assert (actual["output"].dtype, actual["input"].dtype) == (torch.bfloat16, input_dtype)
    assert {actual[name].dtype for name, _ in layer.named_parameters()} == {torch.float32}
    for name in actual:
        assert relative_difference(actual[name], expected[name]) < 0.03, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n, d, m", [(50, 5, 1), (300, 3, 1), (300, 2, 2)])
def test_cuda_gives_what_the_cpu_gives(n, d, m):
    layer = make_layer(n, d, m)
    u, cotangent = random_batch(6, n), random_batch(6, n, seed=2)
    expected = outputs_and_gradients(layer, layer, u, cotangent)
    actual = outputs_and_gradients(layer.cuda(), layer, u.cuda(), cotangent.cuda())
    for name in expected:
        assert actual[name].is_cuda
        assert_equal(actual[name].cpu(), expected[name])


@pytest.mark.parametrize("initialisation", ["realisation", "direct", "zeros"])
def test_device_dtype_and_the_default_device_are_respected(initialisation):
    layer = SemiseparableLayer(140, 2, output_size=30, initialisation=initialisation, device="meta", dtype=torch.half)
    assert {(str(value.device), value.dtype) for value in layer.parameters()} == {("meta", torch.half)}
    assert layer(torch.empty(3, 140, device="meta", dtype=torch.half)).shape == (3, 30)
    with torch.device("meta"):
        state_dict = SemiseparableLayer(20, 2, initialisation=initialisation).state_dict()
    assert {str(value.device) for value in state_dict.values()} == {"meta"}
    assert {name: tuple(value.shape) for name, value in state_dict.items()} == dict(
        A=(20, 2, 2), B=(20, 2, 1), C=(20, 1, 2), D=(20, 1, 1), E=(20, 2, 2), F=(20, 2, 1), G=(20, 1, 2), bias=(20,))


@EVERY_CHUNKING
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (1, 1, 1, 2)])
def test_any_leading_batch_shape_works(shape, chunk_size):
    layer, u = make_layer(22, 2), random_batch(*shape, 22).requires_grad_()
    y = layer(u)
    assert y.shape == layer.recursion(u).shape == (*shape, 22)
    y.sum().backward()  # its gradient is expanded, not contiguous
    T = dense_matrix(layer).detach()
    assert_equal(y, u @ T.mT + layer.bias)
    assert_equal(u.grad, T.sum(0).expand(*shape, 22))


@EITHER_SIZE
def test_however_the_parameters_are_copied_filled_or_averaged_the_layer_computes_the_same(n, outputs, chunk_size):
    layer, u, file = make_layer(n, 2, output_size=outputs), random_batch(5, n), io.BytesIO()
    expected = layer(u).detach()
    torch.save(layer, file)
    file.seek(0)
    skipped = skip_init(SemiseparableLayer, n, 2, output_size=outputs, dtype=torch.float64)
    assigned = SemiseparableLayer(n, 2, output_size=outputs, device="meta")
    skipped.load_state_dict(layer.state_dict())
    assigned.load_state_dict(copy.deepcopy(layer).state_dict(), assign=True)
    averaged = AveragedModel(layer, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(layer)
    copies = [copy.deepcopy(layer), torch.load(file, weights_only=False), skipped, assigned, averaged]
    with torch.no_grad():
        for parameter in layer.parameters():  # with which they share no memory
            parameter.zero_()
    for other in copies:
        assert torch.equal(other(u), expected)


@EVERY_CHUNKING
def test_nothing_is_kept_from_one_forward_to_the_next(chunk_size):
    layer, u, v = make_layer(22, 2), random_batch(5, 22), random_batch(3, 22, seed=2)
    for parameter in layer.parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
        assert_equal(layer(u), layer.recursion(u))
    gradients = [torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())) for x in (u, v)]
    (layer(u).square().sum() + layer(v).square().sum()).backward()  # two forwards before the backwards
    for parameter, *expected in zip(layer.parameters(), *gradients):
        assert_equal(parameter.grad, sum(expected))


@EITHER_SIZE
def test_functorch_transforms_equal_those_of_the_recursion(n, outputs, chunk_size):
    layer, u, tangent = make_layer(n, 2, output_size=outputs), random_batch(3, n), random_batch(3, n, seed=2)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters, u):
        return functional_call(layer, parameters, (u,)).square().sum()

    y = layer.recursion(u)
    expected = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    summed, per_sample = grad(loss)(parameters, u), vmap(grad(loss), (None, 0))(parameters, u)
    for name, gradient in zip(parameters, expected):
        assert_equal(summed[name], gradient)
        assert_equal(per_sample[name].sum(0), gradient)
    assert_equal(vmap(layer)(u), y)
    assert_equal(jvp(layer, (u,), (tangent,))[1], tangent @ dense_matrix(layer).mT)


@EITHER_SIZE
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # by linearize
def test_forward_mode_and_batched_gradients_give_the_matrix(n, outputs, chunk_size):
    layer, u = make_layer(n, 2, output_size=outputs), random_batch(n).requires_grad_()
    T = dense_matrix(layer)
    for strategy in ("forward-mode", "reverse-mode"):  # which takes is_grads_batched
        assert_equal(jacobian(layer, u, vectorize=True, strategy=strategy), T)
    assert_equal(linearize(layer, u.detach())[1](u.detach()), T @ u)


@pytest.mark.parametrize("chunk_size", [2], indirect=True)
def test_exported_program_and_onnx_model_take_any_batch_size(chunk_size, tmp_path):
    layer, u = make_layer(13, 2, output_size=7, dtype=torch.float32), random_batch(9, 13, dtype=torch.float32)
    program = torch.export.export(layer.eval(), (u[:4],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_equal(program.module()(u), layer.recursion(u), 1e-5)
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.onnx.export(program, f=tmp_path / "layer.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    y, = session.run(None, {session.get_inputs()[0].name: u.numpy()})
    assert_equal(torch.from_numpy(y), layer.recursion(u), 1e-5)


@EITHER_SIZE
def test_the_compiler_takes_the_whole_layer_with_any_batch_size(n, outputs, chunk_size):
    layer = make_layer(n, 2, output_size=outputs)
    torch._dynamo.reset()
    # This backend traces forward and backward like the default one, and leaves out only that C++ code is made of it.
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for nb_samples in (4, 9):
        assert_outputs_and_gradients_equal(layer, compiled, layer.recursion, nb_samples)
