"""Sequentially semiseparable (SSS) layers and the nets of the benchmark that have one as hidden layer.

An SSS layer computes y = T u + bias, where small matrices stand for T. The input u is cut into K slices u_k of m
entries, the output into K slices y_k of p entries, and two recursions carry a state from stage to stage:

    x_{k+1} = A_k x_k + B_k u_k                 causal,     k = 0 .. K-1, x_0 empty
    z_{k-1} = E_k z_k + F_k u_k                 anticausal, k = K-1 .. 0, z_{K-1} empty
    y_k     = C_k x_k + D_k u_k + G_k z_k       (+ bias)

With states of d entries this takes about 2 K (d + m) (d + p) parameters and operations, not K² m p: `recursion`. Many
tiny products would spend all time on calls, so `forward` first merges neighbouring stages, exactly, into chunks:

    1. stage matrices    every stage as one matrix M_k with [y_k; x_{k+1}] = M_k [x_k; u_k]
    2. merge             two neighbouring stages are one stage with twice the inputs, again and again
    3. apply the chunks  states from inputs, a short recursion over the chunks, outputs from states and inputs

Up to n = 128, or with large states, one chunk is fastest: its matrix is T itself, and step 3 one dense product. Else
only blocks on the diagonal of T are formed. The anticausal part is causal if the stages are taken in reverse order, so
steps 1 and 2 handle both in one batch. The backward pass is autograd's in steps 1 and 2 and written out in step 3.

Sources: Kissel et al., doi 10.1007/978-3-031-16474-3_39; Chandrasekaran et al., SIAM J. Matrix Anal. Appl. 27(2), 2005.
"""

import math
import warnings
from itertools import groupby, pairwise

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from checks import check_choice, check_integers
from realisation import (INITIALISATIONS, get_padded_positions, get_random_glorot_uniform_matrix,  # noqa: F401
                         get_stage_dims, get_stage_shapes, get_state_dims, get_used_entries, realise, to_matrix)
from standardmodels import ConvNet, FeedForwardNet

LARGEST_DENSE_SIZE = 128  # sqrt(n n') up to which one chunk, that is the dense matrix and one product, is fastest
CHUNK_SIZE = 32  # sqrt(inputs outputs) of a chunk of larger layers, at least; the optimum is flat
CHUNK_SIZE_PER_STATE = 4  # and at least so many times d, or the states make more work than inputs and outputs


class SemiseparableLayer(nn.Module):
    """y = T u + bias with an SSS matrix T; (..., input_size) -> (..., output_size).

    Inputs and outputs are split into K = nb_states consecutive parts as even as possible, `input_dims` and
    `output_dims`, a stage for each. Parameters are stacked over the stages and zero-padded to the largest state d, the
    most inputs m and the most outputs p of a stage. Whatever stands in the padding is left out, and its gradient is
    zero; `stage_shapes` {name: [(rows, columns) of stage k]} has the true sizes, `padding_sizes` {name: entries}.

    :param input_size, output_size: numbers n of inputs and n' of outputs; None: as many outputs as inputs
    :param statespace_dim: largest number of entries of a state
    :param inputoutput_dim: inputs and outputs of a stage; divides the smaller size, and the larger has as many parts
    :param initialisation: "realisation" realises a Glorot-uniform matrix as in the paper, O(n⁴); "direct" draws state
        matrices for entries of about the same variance, O(n); "zeros" for layers whose parameters are set afterwards
    :raises ValueError: for sizes that are no positive integers or do not divide, and for another initialisation
    """

    def __init__(self, input_size, statespace_dim=10, inputoutput_dim=1, *, output_size=None, bias=True,
                 initialisation="realisation", device=None, dtype=None):
        super().__init__()
        nb_outputs = input_size if output_size is None else output_size
        check_integers(input_size=input_size, statespace_dim=statespace_dim, inputoutput_dim=inputoutput_dim,
                       output_size=nb_outputs)
        if min(input_size, nb_outputs) % inputoutput_dim:
            raise ValueError(f"inputoutput_dim must divide input_size, or output_size if that is smaller, "
                             f"got {inputoutput_dim} and {min(input_size, nb_outputs)}")
        check_choice("initialisation", initialisation, tuple(INITIALISATIONS))
        self.input_size, self.output_size, self.initialisation = input_size, nb_outputs, initialisation
        self.statespace_dim, self.inputoutput_dim = statespace_dim, inputoutput_dim
        self.input_dims, self.output_dims = get_stage_dims(input_size, nb_outputs, inputoutput_dim)
        self.state_dims = get_state_dims(self.input_dims, self.output_dims, statespace_dim)
        self.anticausal_state_dims = get_state_dims(self.output_dims, self.input_dims, statespace_dim)
        self.nb_states = K = len(self.input_dims)
        m, p, d = self.input_dims[0], self.output_dims[0], max(self.state_dims + self.anticausal_state_dims)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.A = zeros(K, d, d)  # causal state to the next stage's
        self.B = zeros(K, d, m)  # input to causal state
        self.C = zeros(K, p, d)  # causal state to output
        self.D = zeros(K, p, m)  # input to output
        self.E = zeros(K, d, d)  # anticausal state to the previous stage's
        self.F = zeros(K, d, m)  # input to anticausal state
        self.G = zeros(K, p, d)  # anticausal state to output
        self.register_parameter("bias", zeros(nb_outputs) if bias else None)
        self.stage_shapes = get_stage_shapes(self.input_dims, self.output_dims, statespace_dim)
        nb_used = {name: sum(rows * columns for rows, columns in shapes) for name, shapes in self.stage_shapes.items()}
        self.padding_sizes = {name: getattr(self, name).numel() - size for name, size in nb_used.items()}
        if output_size is None and sum(nb_used.values()) > 2 * input_size ** 2:
            warnings.warn(f"SemiseparableLayer({input_size}, {statespace_dim}, ..) has {sum(nb_used.values()):,} "
                          f"parameters, more than twice as many as a dense matrix; its second argument is "
                          f"statespace_dim, the number of outputs is the keyword output_size", stacklevel=2)
        self._chunk_length, self._runs = _get_chunks(self.input_dims, self.output_dims, d)
        # No buffers: skip_init empties those, load_state_dict leaves them on the meta device, averages change them.
        with torch.device("cpu"):
            is_used = {name: get_used_entries(shapes, getattr(self, name).shape)
                       for name, shapes in self.stage_shapes.items()}
            self._is_padding = ~_stage_matrices(self._chunk_length, **is_used)
            self._output_index, self._input_index = (
                get_padded_positions(dims, self._chunk_length) for dims in (self.output_dims, self.input_dims))
        self.to(self.D.device).reset_parameters()

    def reset_parameters(self):
        """Draw all parameters anew, by the layer's initialisation."""
        # On the CPU, whatever the default device is, so that a seed means the same on all devices.
        with torch.device("cpu"):
            values = INITIALISATIONS[self.initialisation](self.input_dims, self.output_dims, self.statespace_dim)
        self._set_parameters(values)

    def _apply(self, fn, recurse=True):
        """What .to, to_empty and the like call: the mask of the padding and the indices follow the parameters."""
        super()._apply(fn, recurse)
        device = next(self.parameters()).device
        with torch.inference_mode(False):  # they may be kept for a backward pass later
            for name in "_is_padding", "_output_index", "_input_index":
                if getattr(self, name) is not None and device.type != "meta":
                    setattr(self, name, getattr(self, name).to(device))
        return self

    @classmethod
    def from_matrix(cls, matrix, statespace_dim, inputoutput_dim=1, bias=None):
        """The SSS layer whose matrix is close to a given one, by truncated balanced realisation.

        Exact if statespace_dim is at least the rank of every block of rows of stages from k on and columns of stages
        before k, and the other way round; hankel_singular_values of realisation.py tells how close. O(n⁴) operations.

        :param matrix: tensor, array or lists (n', n); its device and its floating-point dtype become the layer's
        :param bias: (n',); zero if None; a layer without bias if False
        :raises ValueError: no matrix of finite real numbers, or no vector of them as bias
        """
        has_dtype, matrix = hasattr(matrix, "dtype"), to_matrix(matrix)  # lists have none
        output_size, input_size = matrix.shape
        layer = cls(input_size, statespace_dim, inputoutput_dim, output_size=output_size, bias=bias is not False,
                    initialisation="zeros", device=matrix.device,
                    dtype=matrix.dtype if has_dtype and matrix.is_floating_point() else None)
        values = realise(matrix, layer.input_dims, layer.output_dims, statespace_dim)
        if bias is not None and bias is not False:
            values["bias"] = to_matrix(bias, "bias", nb_dims=1).reshape(output_size)  # of one entry, copy_ makes all
        layer._set_parameters(values)
        layer.initialisation = "realisation"  # for reset_parameters
        return layer

    @classmethod
    def from_linear(cls, linear, statespace_dim, inputoutput_dim=1):
        """The SSS layer closest to an nn.Linear in the sense of from_matrix, with its bias, dtype, device and mode; its
        parameters require gradients where those of the nn.Linear do, or those behind a weight that is derived."""
        with torch.no_grad():  # prune and weight_norm derive it in a forward pass, the last one before a step maybe
            linear(linear.weight.new_empty(0, linear.in_features))
        layer = cls.from_matrix(linear.weight, statespace_dim, inputoutput_dim,
                                bias=False if linear.bias is None else linear.bias)
        trained = {name.removeprefix("parametrizations.").startswith("bias")
                   for name, parameter in linear.named_parameters() if parameter.requires_grad}
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_((name == "bias") in trained)
        return layer.train(linear.training)

    def to_linear(self):
        """The nn.Linear of the same map, with parameters of its own; draws no random numbers."""
        linear = nn.Linear(self.input_size, self.output_size, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.to_matrix().detach())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear

    @torch.no_grad()
    def _set_parameters(self, values):
        for name, parameter in self.named_parameters(recurse=False):
            parameter.copy_(values[name]) if name in values else parameter.zero_()

    def recursion(self, u):
        """What forward gives, by the equations above, stage after stage: slow, and what forward is tested against."""
        batch = self._to_batch(u)
        stages = {name: [matrix[:rows, :columns] for matrix, (rows, columns) in zip(getattr(self, name), shapes)]
                  for name, shapes in self.stage_shapes.items()}
        y = _recursion(batch.mT.split(self.input_dims), **stages).mT.reshape(*u.shape[:-1], self.output_size)
        return y if self.bias is None else y + self.bias

    def forward(self, u):
        batch = self._to_batch(u)
        # Like torch's own layers, this one leaves float64 alone under autocast.
        if not _is_autocast_enabled(u) or u.dtype == torch.float64:
            y = self._apply_matrix(batch, self.bias)
        else:  # The stages are merged in the parameters' precision; only the large products take the lower one.
            with torch.autocast(u.device.type, enabled=False):
                y = self._apply_matrix(batch.to(torch.get_autocast_dtype(u.device.type)), self.bias)
        return y.reshape(*u.shape[:-1], self.output_size)  # (batch, n') -> (..., n')

    def _to_batch(self, u):
        """(..., n) -> (batch, n). Unchecked, reshape would take other shapes too, and _apply_matrix other dtypes."""
        if u.dim() == 0 or u.shape[-1] != self.input_size:
            raise ValueError(f"expected an input of shape (..., {self.input_size}), got {tuple(u.shape)}")
        if u.dtype != self.D.dtype and not (_is_autocast_enabled(u) and u.is_floating_point()):
            raise ValueError(f"expected an input of dtype {self.D.dtype}, got {u.dtype}; .to({self.D.dtype}) converts")
        return u.reshape(-1, self.input_size)

    def to_matrix(self):
        """The matrix T that the layer represents, (output_size, input_size), dense and differentiable."""
        identity = torch.eye(self.input_size, device=self.D.device, dtype=self.D.dtype)
        with torch.autocast("cpu" if self.D.is_meta else self.D.device.type, enabled=False):
            return self._apply_matrix(identity, None).mT

    def _apply_matrix(self, u, bias):
        """T u + bias, (batch, n) -> (batch, n')"""
        M = _stage_matrices(self._chunk_length, self.A, self.B, self.C, self.D, self.E, self.F, self.G)
        # To the parameters' device: they move without _apply too, by load_state_dict(assign=True) or functional_call.
        chunks = _merge_stages(M.masked_fill(self._is_padding.to(M.device), 0), self._chunk_length, *self.D.shape[1:],
                               self._output_index, self._input_index)
        chunks = [matrices.to(u.dtype) for matrices in chunks]
        bias = u.new_zeros(self.output_size) if bias is None else bias.to(u.dtype)
        if len(chunks) == 1:
            return functional.linear(u, chunks[0][0, :self.output_size, :self.input_size], bias)
        return (_apply_chunks if _needs_plain_path(u) else _ApplyChunks.apply)(self._runs, u, bias, *chunks)

    def extra_repr(self):
        names = "input_size", "output_size", "statespace_dim", "inputoutput_dim", "nb_states"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names) + f", bias={self.bias is not None}"


def _is_autocast_enabled(u):
    return not u.is_meta and torch.is_autocast_enabled(u.device.type)  # which raises an error for the meta device


def _recursion(u, A, B, C, D, E, F, G):
    """The equations above for K stages: inputs u_k (inputs of stage k, batch) -> outputs (all outputs, batch)."""
    x = u[0].new_zeros(A[0].shape[-1], u[0].shape[-1])
    z = u[0].new_zeros(E[-1].shape[-1], u[0].shape[-1])
    y_causal, y_anticausal = [], []
    for k in range(len(u)):
        y_causal.append(C[k] @ x + D[k] @ u[k])
        x = A[k] @ x + B[k] @ u[k]
    for k in reversed(range(len(u))):
        y_anticausal.append(G[k] @ z)
        z = E[k] @ z + F[k] @ u[k]
    return torch.cat(y_causal) + torch.cat(y_anticausal[::-1])


# ---- steps 1 and 2: stage matrices, merged into those of the chunks ----

def _get_chunks(input_dims, output_dims, d):
    """(stages of a chunk, a power of two; runs). A run is a row of equal chunks, whose part of u, or y, is one view:
    (slice of the chunks, slice of their inputs, slice of their outputs, inputs of a chunk, outputs of a chunk)."""
    stages, size = list(zip(input_dims, output_dims)), math.sqrt(sum(input_dims) * sum(output_dims))
    share = 1 if size <= LARGEST_DENSE_SIZE else min(1, max(CHUNK_SIZE, CHUNK_SIZE_PER_STATE * d) / size)
    chunk_length = 2 ** math.ceil(math.log2(max(1, len(stages) * share)))
    runs, starts = [], (0, 0, 0)  # the next run's first chunk, input and output
    for chunk, equal_chunks in groupby(stages[k:k + chunk_length] for k in range(0, len(stages), chunk_length)):
        nb_chunks, sizes = len(list(equal_chunks)), list(map(sum, zip(*chunk)))
        ends = [start + nb_chunks * step for start, step in zip(starts, (1, *sizes))]
        runs.append((*map(slice, starts, ends), *sizes))
        starts = ends
    return chunk_length, runs


def _stage_matrices(chunk_length, A, B, C, D, E, F, G):
    """Step 1: M (2 K', p + d, d + m), [[C_k, D_k], [A_k, B_k]] of the causal part for k = 0 .. K'-1, then [[G_k, 0],
    [E_k, F_k]] of the anticausal one for k = K'-1 .. 0, the order in which its state passes the stages. Empty stages
    fill the last chunk up, zeros, for no state passes beyond the last stage: K' is a multiple of chunk_length."""
    causal = torch.cat((torch.cat((C, D), 2), torch.cat((A, B), 2)), 1)
    anticausal = torch.cat((torch.cat((G, torch.zeros_like(D)), 2), torch.cat((E, F), 2)), 1)
    empty = causal.new_zeros(-len(D) % chunk_length, *causal.shape[1:])
    return torch.cat((causal, empty, empty, anticausal.flip(0)))


def _merge_stages(M, S, p, m, output_index=None, input_index=None):
    """Step 2: stage matrices M (2 K', p + d, d + m) -> A (chunks, d, d), B (chunks, d, S m), C (chunks, S p, d),
    D (chunks, S p, S m), E, F, G of the chunks of S stages, which are stages again; of a single one, which no state
    enters, D only. An index (chunks, entries) leaves out the padding of an uneven split."""
    nb_chunks, d = len(M) // 2 // S, M.shape[2] - m
    while len(M) > 2 * nb_chunks:
        M = _merge_pairs(M, d)
    Y, X = _flush_denormals(M).unflatten(0, (2, nb_chunks)).split_with_sizes((S * p, d), 2)
    (C, G), (D, D_anticausal) = Y.split_with_sizes((d, S * m), 3)
    # The anticausal part back into the order of the causal one: the chunks, and the stages in rows and columns
    D = D + D_anticausal.reshape(nb_chunks, S, p, S, m).flip(0, 1, 3).reshape(nb_chunks, S * p, S * m)
    D = _take(_take(D, output_index, 1), input_index, 2)
    if nb_chunks == 1:
        return [D]
    (A, E), (B, F) = X.split_with_sizes((d, S * m), 3)
    F = F.reshape(nb_chunks, d, S, m).flip(0, 2).reshape(nb_chunks, d, S * m)
    G = G.reshape(nb_chunks, S, p, d).flip(0, 1).reshape(nb_chunks, S * p, d)
    B, F = (_take(matrices, input_index, 2) for matrices in (B, F))
    C, G = (_take(matrices, output_index, 1) for matrices in (C, G))
    return A, B, C, D, E.flip(0), F, G


def _take(matrices, index, dim):
    """Those rows, in dimension 1, or columns, in 2, of matrices (chunks, rows, columns) that the index has, if any."""
    return matrices if index is None else matrices.take_along_dim(index.to(matrices.device).unsqueeze(3 - dim), dim)


def _merge_pairs(M, d):
    """M (2 pairs, p + d, d + m) -> (pairs, 2p + d, d + 2m): the two stages of each pair are one stage with

        [y_1]   [C_1      D_1      0  ] [x_1]
        [y_2] = [C_2 A_1  C_2 B_1  D_2] [u_1]
        [x_3]   [A_2 A_1  A_2 B_1  B_2] [u_2]
    """
    p, m = M.shape[1] - d, M.shape[2] - d
    first, second = M.view(-1, 2, p + d, d + m).unbind(1)
    C1_D1, A1_B1 = first.split_with_sizes((p, d), 1)
    C2_A2, D2_B2 = second.split_with_sizes((d, m), 2)
    return torch.cat((functional.pad(C1_D1, (0, m)), torch.cat((torch.bmm(C2_A2, A1_B1), D2_B2), 2)), 1)


def _flush_denormals(matrices):
    """Replace entries too small to matter by zero: products of many small A_k underflow in trained layers, and
    processors take up to a hundred times as long for a product with a denormal number."""
    finfo = torch.finfo(matrices.dtype)
    # A million times the smallest normal number leaves room for a factor; float16 has not so much and gets eps².
    flushed = functional.hardshrink(matrices, min(2 ** 20 * finfo.tiny, finfo.eps ** 2))
    # Added as a constant: hardshrink itself would cut off the gradient of entries that are exactly zero.
    return matrices + (flushed - matrices).detach()


# ---- step 3: applying the chunks ----

def _needs_plain_path(values):
    """Whether compilers, functorch, forward mode or batched gradients look on, who cannot see what is done in place."""
    return (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0 or torch._C._functorch.is_legacy_batchedtensor(values))


def _apply_chunks(runs, u, bias, *matrices):
    """T u + bias, (batch, n) -> (batch, n'), by the recursion over the chunks with matrices A .. G."""
    sizes = [(i, o) for chunks, _, _, i, o in runs for _ in range(chunks.start, chunks.stop)]  # inputs and outputs
    stages = [(A, B[:, :i], C[:o], D[:o, :i], E, F[:, :i], G[:o])
              for (i, o), A, B, C, D, E, F, G in zip(sizes, *matrices)]
    return _recursion(u.mT.split([i for i, _ in sizes]), *zip(*stages)).mT + bias


class _ApplyChunks(torch.autograd.Function):
    """_apply_chunks in half the time: a line is one large product for all chunks of a run, which reads u and writes y
    in place, a run's (batch, chunks entries) seen as (chunks, batch, entries)."""

    @staticmethod
    def forward(ctx, runs, u, bias, A, B, C, D, E, F, G):
        d, B_F = A.shape[1], torch.cat((B, F), 1)
        C_G = torch.cat((C.mT, G.mT), 1)  # products with the transpose of [C G] would be slow
        # 3a. What the inputs of each chunk add to the two states
        S = u.new_empty(len(A), 2 * d, len(u))
        for chunks, inputs, _, nb_inputs, _ in runs:
            torch.bmm(B_F[chunks, :, :nb_inputs], _slices(u, inputs, nb_inputs).mT, out=S[chunks])
        # 3b. The states that enter each chunk, and a row of ones for the bias
        X = u.new_zeros(len(A), 2 * d + 1, len(u))
        X[:, 2 * d] = 1
        _recur(X[:, :d], A, S[:, :d])
        _recur(X[:, d:2 * d], E, S[:, d:], reverse=True)
        # 3c. y_k = [C_k G_k bias_k] [x_k; z_k; 1] + D_k u_k
        y = u.new_empty(len(u), len(bias))
        for chunks, inputs, outputs, nb_inputs, nb_outputs in runs:
            Y = _slices(y, outputs, nb_outputs)
            C_G_bias = torch.cat((C_G[chunks, :, :nb_outputs], _slices(bias[None], outputs, nb_outputs)), 1)
            torch.bmm(X[chunks].mT, C_G_bias, out=Y)
            Y.baddbmm_(_slices(u, inputs, nb_inputs), D[chunks, :nb_outputs, :nb_inputs].mT)
        ctx.runs = runs
        ctx.save_for_backward(u, bias, A, B, C, D, E, F, G, B_F, C_G, X)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        *saved, B_F, C_G, X = ctx.saved_tensors
        if torch.is_grad_enabled() or _needs_plain_path(grad_y):  # the first: create_graph, a second derivative
            wanted = [tensor for tensor in saved if tensor.requires_grad]
            with torch.enable_grad():
                y = _apply_chunks(ctx.runs, *saved)
            gradients = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=torch.is_grad_enabled()))
            return None, *(next(gradients) if tensor.requires_grad else None for tensor in saved)
        (u, bias, A, _, _, D, E, _, _), grad_y, d = saved, grad_y.contiguous(), X.shape[1] // 2
        # 3c, backwards: gradients of the states through the outputs of their own chunk, (chunks, 2d, batch)
        grad_X = u.new_empty(len(X), 2 * d, len(u))
        for chunks, _, outputs, _, nb_outputs in ctx.runs:
            torch.bmm(C_G[chunks, :, :nb_outputs], _slices(grad_y, outputs, nb_outputs).mT, out=grad_X[chunks])
        # 3b, backwards: the gradient of S_k is the whole gradient of the state that S_k is added to
        grad_S = torch.zeros_like(grad_X)
        _recur(grad_S[:, :d], A.mT, grad_X[:, :d], reverse=True)
        _recur(grad_S[:, d:], E.mT, grad_X[:, d:])
        # 3a, backwards, and the gradients of all matrices
        grad_u = u.new_empty(u.shape) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(bias)
        grad_A, grad_E = torch.bmm(grad_S[:, :d], X[:, :d].mT), torch.bmm(grad_S[:, d:], X[:, d:2 * d].mT)
        grad_B_F, grad_C_G, grad_D = torch.zeros_like(B_F), torch.zeros_like(C_G), torch.zeros_like(D)
        for chunks, inputs, outputs, nb_inputs, nb_outputs in ctx.runs:
            U, grad_Y = _slices(u, inputs, nb_inputs), _slices(grad_y, outputs, nb_outputs)
            if grad_u is not None:
                grad_U = _slices(grad_u, inputs, nb_inputs)
                torch.bmm(grad_S[chunks].mT, B_F[chunks, :, :nb_inputs], out=grad_U)
                grad_U.baddbmm_(grad_Y, D[chunks, :nb_outputs, :nb_inputs])
            grad_B_F[chunks, :, :nb_inputs] = torch.bmm(grad_S[chunks], U)
            grad_C_G_bias = torch.bmm(X[chunks], grad_Y)
            grad_C_G[chunks, :, :nb_outputs] = grad_C_G_bias[:, :2 * d]
            grad_bias[outputs] = grad_C_G_bias[:, 2 * d].flatten()
            grad_D[chunks, :nb_outputs, :nb_inputs] = torch.bmm(grad_Y.mT, U)
        (grad_B, grad_F), (grad_C, grad_G) = grad_B_F.split(d, 1), grad_C_G.mT.split(d, 2)
        return None, grad_u, grad_bias, grad_A, grad_B, grad_C, grad_D, grad_E, grad_F, grad_G


def _recur(states, matrices, added, reverse=False):
    """In place states[k + 1], or if reverse [k - 1], = matrices[k] states[k] + added[k]; matrices are (K, d, d)."""
    stages = list(zip(states.unbind(), matrices.unbind(), added.unbind()))[::-1 if reverse else 1]
    for (state, matrix, addend), (next_state, _, _) in pairwise(stages):
        torch.addmm(addend, matrix, state, out=next_state)


def _slices(values, of_run, size):
    """View (chunks, batch, entries of a chunk) of what belongs to a run in (batch, entries)."""
    return values[:, of_run].unflatten(1, (-1, size)).transpose(0, 1)


# ---- the nets of the benchmark ----

class TwoHiddenLayeredSSNet(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by an SSS matrix: the benchmark's `ss_d_dim`.

    :param statespace_dim, input_output_dim, initialisation: see SemiseparableLayer
    :param nb_hidden_layers: another number than the paper's two
    :param is_dense: a control: dense hidden matrices that start as those SSS matrices, `standard_as_ss_d`
    """

    def __init__(self, input_size, output_size, hidden_layer_size, statespace_dim=1, input_output_dim=1, *,
                 nb_hidden_layers=2, initialisation="realisation", is_dense=False, device=None, dtype=None):
        def make_hidden_layer():
            layer = SemiseparableLayer(
                hidden_layer_size, statespace_dim, input_output_dim, output_size=hidden_layer_size,
                initialisation=initialisation, device=device, dtype=dtype)
            return layer.to_linear() if is_dense else layer
        super().__init__(input_size, output_size, hidden_layer_size, make_hidden_layer, nb_hidden_layers,
                         device=device, dtype=dtype)


class SSSTHLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by an SSS matrix; parameters as above."""

    def __init__(self, input_shape, output_size, hidden_layer_size, statespace_dim=1, input_output_dim=1, *,
                 nb_hidden_layers=2, initialisation="realisation", is_dense=False, device=None, dtype=None):
        super().__init__(input_shape, lambda nb_features: TwoHiddenLayeredSSNet(
            nb_features, output_size, hidden_layer_size, statespace_dim, input_output_dim, is_dense=is_dense,
            nb_hidden_layers=nb_hidden_layers, initialisation=initialisation, device=device, dtype=dtype),
            device=device, dtype=dtype)
