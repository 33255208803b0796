"""Sequentially semiseparable (SSS) layers and the nets of the benchmark that have one as hidden layer.

An SSS layer computes y = T u + bias without ever forming the n x n matrix T. The input u is cut into K slices
u_k of m = `inputoutput_dim` entries, the output likewise, and two recursions carry a state from stage to stage:

    x_{k+1} = A_k x_k + B_k u_k                 causal,     k = 0 .. K-1, x_0 empty
    z_{k-1} = E_k z_k + F_k u_k                 anticausal, k = K-1 .. 0, z_{K-1} empty
    y_k     = C_k x_k + D_k u_k + G_k z_k       (+ bias)

With states of d = `statespace_dim` entries this takes O(n (d + m)²/m) parameters and operations, not O(n²). Such is
`recursion`. `forward` gives the same faster: K tiny products one after the other would spend all time on calls, so
neighbouring stages are merged first, exactly, into chunks of about 64 inputs:

    1. stage matrices    every stage as one matrix M_k with [y_k; x_{k+1}] = M_k [x_k; u_k]
    2. merge             two neighbouring stages are one stage with twice the inputs, again and again
    3. apply the chunks  states from inputs, a short recursion over the chunks, outputs from states and inputs

The anticausal part is causal if the stages are taken in reverse order, so that steps 1 and 2 handle both parts alike,
stacked in one batch. The backward pass is the paper's backpropagation through states: autograd's, and in step 3 that
of the recursion over the chunks, written out.

Sources: Kissel et al., doi 10.1007/978-3-031-16474-3_39; Chandrasekaran et al., SIAM J. Matrix Anal. Appl. 27(2), 2005.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional

from checks import check_choice, check_features, check_finite, check_positive_integers
from realisation import INITIALISATIONS, get_random_glorot_uniform_matrix, get_state_dims, realise  # noqa: F401
from standardmodels import ConvNet, FeedForwardNet

LARGEST_DENSE_SIZE = 128  # up to here one chunk, that is the dense matrix and one product, is fastest
CHUNK_SIZE = 64  # inputs per chunk above; the optimum is flat


class SemiseparableLayer(nn.Module):
    """y = T u + bias with an SSS matrix T; (..., input_size) -> (..., input_size).

    The parameters are stacked over the K = nb_states stages and zero-padded to the largest state, d. The true sizes,
    with d_k = state_dims[k], are A_k: d_{k+1} x d_k, B_k: d_{k+1} x m, C_k: m x d_k, D_k: m x m, E_k: d_k x d_{k+1},
    F_k: d_k x m, G_k: m x d_{k+1}. The padding has zero gradients, so that it stays zero in training.

    :param input_size: number n of inputs and of outputs
    :param statespace_dim: largest number of entries of a state
    :param inputoutput_dim: number m of inputs and outputs per stage; divides input_size
    :param initialisation: "realisation" realises a Glorot-uniform matrix as in the paper, about O(n³) operations;
        "direct" draws state matrices whose matrix has entries of about the same variance, O(n); "zeros" is for
        layers whose parameters are set afterwards
    :raises ValueError: for sizes that are no positive integers or do not divide, and for another initialisation
    """

    def __init__(self, input_size, statespace_dim=10, inputoutput_dim=1, *, initialisation="realisation",
                 device=None, dtype=None):
        super().__init__()
        check_positive_integers(input_size=input_size, statespace_dim=statespace_dim, inputoutput_dim=inputoutput_dim)
        if input_size % inputoutput_dim:
            raise ValueError(f"inputoutput_dim must divide input_size, got {inputoutput_dim} and {input_size}")
        check_choice("initialisation", initialisation, tuple(INITIALISATIONS))
        self.input_size, self.statespace_dim, self.inputoutput_dim = input_size, statespace_dim, inputoutput_dim
        self.nb_states = input_size // inputoutput_dim
        K, m, d = self.nb_states, inputoutput_dim, max(self.state_dims)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.A = zeros(K, d, d)  # causal state to the next stage's
        self.B = zeros(K, d, m)  # input to causal state
        self.C = zeros(K, m, d)  # causal state to output
        self.D = zeros(K, m, m)  # input to output
        self.E = zeros(K, d, d)  # anticausal state to the previous stage's
        self.F = zeros(K, d, m)  # input to anticausal state
        self.G = zeros(K, m, d)  # anticausal state to output
        self.bias = zeros(input_size)
        # Chunks must be longer than their two states, or handling these costs more than the inputs do.
        stages_per_chunk = K if input_size <= LARGEST_DENSE_SIZE else max(1, max(CHUNK_SIZE, 2 * d) // m)
        self._nb_chunks = math.ceil(K / stages_per_chunk)
        # Drawn on the CPU, whatever the default device is, so that a seed means the same on all devices.
        with torch.device("cpu"):
            values = INITIALISATIONS[initialisation](*self._dims, statespace_dim)
        self._set_parameters(values)

    @classmethod
    def from_matrix(cls, matrix, statespace_dim, inputoutput_dim=1, bias=None):
        """The SSS layer whose matrix is close to a given one, by truncated balanced realisation.

        Exact if statespace_dim is at least the rank of every block T[k m:, :k m] and T[:k m, k m:]. Takes a full
        singular value decomposition of each of them, about O(n⁴) operations: seconds at n = 500.

        :param matrix: square tensor or array (n, n), row i the weights of output i; gives the layer dtype and device
        :param bias: (n,), zero if None
        :raises ValueError: matrix not square, a bias of another size, or entries that are complex, NaN or infinite
        """
        matrix = torch.as_tensor(matrix).detach()
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        bias = torch.zeros(len(matrix)) if bias is None else torch.as_tensor(bias).detach()
        if bias.shape != (len(matrix),):
            raise ValueError(f"bias must have shape ({len(matrix)},), got {tuple(bias.shape)}")
        check_finite(matrix=matrix, bias=bias)
        layer = cls(len(matrix), statespace_dim, inputoutput_dim, initialisation="zeros", device=matrix.device,
                    dtype=matrix.dtype if matrix.is_floating_point() else None)
        layer._set_parameters({**realise(matrix.double().cpu(), *layer._dims, statespace_dim), "bias": bias})
        return layer

    @torch.no_grad()
    def _set_parameters(self, values):
        for name, value in values.items():
            getattr(self, name).copy_(value)

    @property
    def _dims(self):
        """Inputs and outputs of each stage."""
        return ([self.inputoutput_dim] * self.nb_states,) * 2

    @property
    def state_dims(self):
        """[d_0, ..., d_K]: entries of the causal state that enters stage k, and of the anticausal one that leaves it.
        Border states are smaller: fewer inputs lie before them, or outputs behind."""
        return get_state_dims(*self._dims, self.statespace_dim)

    @property
    def padding_sizes(self):
        """{parameter name: how many of its entries are padding and no parameters of the model}."""
        d, m = self.state_dims, self.inputoutput_dim
        matrix_entries, vector_entries = sum(d[k] * d[k + 1] for k in range(self.nb_states)), m * sum(d)
        return {name: getattr(self, name).numel() - (matrix_entries if name in "AE" else vector_entries)
                for name in "ABCEFG"}

    def recursion(self, u):
        """What forward gives, by the equations above, stage after stage: slow, and what forward is tested against."""
        check_features(u, self.input_size, self.bias.dtype)
        stages = u.reshape(-1, self.nb_states, self.inputoutput_dim).permute(1, 2, 0)  # (..., n) -> (K, m, batch)
        y = _recursion(stages, self.A, self.B, self.C, self.D, self.E, self.F, self.G)
        return y.permute(2, 0, 1).reshape(u.shape) + self.bias  # (K, m, batch) -> (..., n)

    def forward(self, u):
        check_features(u, self.input_size, self.bias.dtype)
        batch = u.reshape(-1, self.input_size)  # (..., n) -> (batch, n)
        # Like torch's own layers, this one leaves float64 alone under autocast.
        if not torch.is_autocast_enabled(u.device.type) or u.dtype == torch.float64:
            return self._apply_matrix(batch, self.bias).reshape(u.shape)
        # The stages are merged in the parameters' precision; only the large products take the lower one.
        with torch.autocast(u.device.type, enabled=False):
            return self._apply_matrix(batch.to(torch.get_autocast_dtype(u.device.type)), self.bias).reshape(u.shape)

    def to_matrix(self):
        """The matrix T that the layer represents, (input_size, input_size), dense and differentiable."""
        identity = torch.eye(self.input_size, device=self.bias.device, dtype=self.bias.dtype)
        with torch.autocast(self.bias.device.type, enabled=False):
            return self._apply_matrix(identity, torch.zeros_like(self.bias)).mT

    def _apply_matrix(self, u, bias):
        """T u + bias, (batch, n) -> (batch, n)"""
        chunks = _merge_stages(self.A, self.B, self.C, self.D, self.E, self.F, self.G, self._nb_chunks)
        chunks, bias = [matrices.to(u.dtype) for matrices in chunks], bias.to(u.dtype)
        if self._nb_chunks == 1:
            return functional.linear(u, chunks[0][0], bias)
        A, B, C, D, E, F, G = chunks
        nb_empty = D.shape[0] * D.shape[1] - self.input_size
        if nb_empty:  # the last chunk is not full: its empty stages get zeros, and what they give is dropped
            u, bias = (functional.pad(values, (0, nb_empty)) for values in (u, bias))
        # Compilers and functorch's transforms cannot see through what _ApplyChunks writes in place.
        plain = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        y = (_apply_chunks if plain else _ApplyChunks.apply)(u, A, B, C, D, E, F, G, bias)
        return y[:, :self.input_size].contiguous()

    def extra_repr(self):
        names = "input_size", "statespace_dim", "inputoutput_dim", "nb_states"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _recursion(u, A, B, C, D, E, F, G):
    """The equations above for u (K, inputs of a stage, batch): y (K, outputs of a stage, batch)."""
    x = z = u.new_zeros(A.shape[-1], u.shape[-1])  # (d, batch)
    y = [None] * len(u)
    for k in range(len(u)):
        y[k] = C[k] @ x + D[k] @ u[k]
        x = A[k] @ x + B[k] @ u[k]
    for k in reversed(range(len(u))):
        y[k] = y[k] + G[k] @ z
        z = E[k] @ z + F[k] @ u[k]
    return torch.stack(y)


# ---- steps 1 and 2: stage matrices, merged into those of the chunks ----

def _merge_stages(A, B, C, D, E, F, G, nb_chunks):
    """The state matrices of the chunks, which are stages with L inputs each, from those of the stages.

    A (K, d, d), B (K, d, m), C (K, m, d), D (K, m, m), .. -> A (chunks, d, d), B (chunks, d, L), C (chunks, L, d),
    D (chunks, L, L), ..; of a single chunk, which no state enters, D only.
    """
    # 1. (K, m + d, d + m); rows: output and state that leaves, columns: state that enters and input
    causal = torch.cat((torch.cat((C, D), 2), torch.cat((A, B), 2)), 1)
    anticausal = torch.cat((torch.cat((G, torch.zeros_like(D)), 2), torch.cat((E, F), 2)), 1)
    # 2. Each part in the order in which its state passes the stages, (2 chunks S, m + d, d + m)
    m, d, S = D.shape[-1], A.shape[-1], math.ceil(len(D) / nb_chunks)  # S stages are one chunk
    causal, anticausal = (_add_empty_stages(part, d, nb_chunks * S) for part in (causal, anticausal))
    M = torch.cat((causal, anticausal.flip(0))).unflatten(0, (2 * nb_chunks, S))
    M = _add_empty_stages(M, d, 2 ** (S - 1).bit_length()).flatten(0, 1)
    while len(M) > 2 * nb_chunks:
        M = _merge_pairs(M, d)
    # The chunks' own A .. G; what belongs to empty stages in them is left out.
    L, nb_empty = S * m, M.shape[-1] - d - S * m
    Y, _, X = _flush_denormals(M).unflatten(0, (2, nb_chunks)).split_with_sizes((L, nb_empty, d), 2)
    (C, G), (D, D_anticausal), _ = Y.split_with_sizes((d, L, nb_empty), 3)
    # The anticausal part's chunks, and the stages in them, back into the order of the causal one
    D = D + D_anticausal.reshape(nb_chunks, S, m, S, m).flip(0, 1, 3).reshape(nb_chunks, L, L)
    if nb_chunks == 1:
        return [D]
    (A, E), (B, F), _ = X.split_with_sizes((d, L, nb_empty), 3)
    F = F.reshape(nb_chunks, d, S, m).flip(0, 2).reshape(nb_chunks, d, L)
    G = G.reshape(nb_chunks, S, m, d).flip(0, 1).reshape(nb_chunks, L, d)
    return A, B, C, D, E.flip(0), F, G


def _merge_pairs(M, d):
    """M (2 pairs, w + d, d + w) -> (pairs, 2w + d, d + 2w): the two stages of each pair are one stage with

        [y_1]   [C_1      D_1      0  ] [x_1]
        [y_2] = [C_2 A_1  C_2 B_1  D_2] [u_1]
        [x_3]   [A_2 A_1  A_2 B_1  B_2] [u_2]
    """
    w = M.shape[-1] - d
    first, second = M.view(-1, 2, w + d, d + w).unbind(1)
    C1_D1, A1_B1 = first.split_with_sizes((w, d), 1)
    C2_A2, D2_B2 = second.split_with_sizes((d, w), 2)
    return torch.cat((functional.pad(C1_D1, (0, w)), torch.cat((torch.bmm(C2_A2, A1_B1), D2_B2), 2)), 1)


def _add_empty_stages(M, d, nb_stages):
    """Fill M (.., stages, m + d, d + m) up with stages that take and give nothing and carry the state on: A = I."""
    *batch, nb_before, nb_rows, nb_columns = M.shape
    if nb_before == nb_stages:
        return M
    carry = functional.pad(torch.eye(d, device=M.device, dtype=M.dtype), (0, nb_columns - d, nb_rows - d, 0))
    return torch.cat((M, carry.expand(*batch, nb_stages - nb_before, nb_rows, nb_columns)), -3)


def _flush_denormals(matrices):
    """Replace entries too small to matter by zero: products of many small A_k underflow in trained layers, and
    processors take up to a hundred times as long for a product with a denormal number."""
    finfo = torch.finfo(matrices.dtype)
    # A million times the smallest normal number leaves room for a factor; float16 has not so much and gets eps².
    flushed = functional.hardshrink(matrices, min(2 ** 20 * finfo.tiny, finfo.eps ** 2))
    # Added as a constant: hardshrink itself would cut off the gradient of entries that are exactly zero.
    return matrices + (flushed - matrices).detach()


# ---- step 3: applying the chunks ----

def _apply_chunks(u, A, B, C, D, E, F, G, bias):
    """T u + bias, (batch, chunks L) -> (batch, chunks L), by the recursion over the chunks."""
    y = _recursion(_slices(u, len(D)).mT, A, B, C, D, E, F, G)  # (chunks, L, batch)
    return y.permute(2, 0, 1).flatten(1) + bias


class _ApplyChunks(Function):
    """_apply_chunks in half the time: every line is one large product, and u is read and y written in place of their
    slices, (batch, chunks L) seen as (chunks, batch, L), never transposed in memory."""

    @staticmethod
    def forward(ctx, u, A, B, C, D, E, F, G, bias):
        K, L, d = len(D), D.shape[-1], A.shape[-1]
        U, B_F, C_G_bias = _slices(u, K), torch.cat((B, F), 1), torch.cat((C, G, bias.view(K, L, 1)), 2)
        # 3a. What the inputs of each chunk add to the two states
        S = torch.bmm(B_F, U.mT)  # (K, 2d, batch)
        # 3b. The states that enter each chunk, and a row of ones for the bias
        X = u.new_zeros(K, 2 * d + 1, len(u))
        X[:, 2 * d] = 1
        _recur(X[:, :d], A, S[:, :d])
        _recur(X[:, d:2 * d], E, S[:, d:], reverse=True)
        # 3c. y_k = [C_k G_k bias_k] [x_k; z_k; 1] + D_k u_k
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        torch.bmm(X.mT, C_G_bias.mT, out=_slices(y, K))
        _slices(y, K).baddbmm_(U, D.mT)
        ctx.save_for_backward(u, A, B, C, D, E, F, G, bias, B_F, C_G_bias, X)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        *inputs, B_F, C_G_bias, X = ctx.saved_tensors
        if torch.is_grad_enabled():  # these gradients are to be differentiated once more
            wanted = [i for i in inputs if i.requires_grad]
            gradients = iter(torch.autograd.grad(_apply_chunks(*inputs), wanted, grad_y, create_graph=True))
            return tuple(next(gradients) if i.requires_grad else None for i in inputs)
        u, A, _, _, D, E, _, _, bias = inputs
        K, d = len(D), A.shape[-1]
        U, grad_Y = _slices(u, K), _slices(grad_y.contiguous(), K)
        # 3c, backwards: gradients of the states through the outputs of their own chunk, (K, 2d, batch)
        grad_X = torch.bmm(C_G_bias[..., :2 * d].mT, grad_Y.mT)
        # 3b, backwards: the gradient of S_k is the whole gradient of the state that S_k is added to
        grad_S = torch.zeros_like(grad_X)
        _recur(grad_S[:, :d], A.mT, grad_X[:, :d], reverse=True)
        _recur(grad_S[:, d:], E.mT, grad_X[:, d:])
        # 3a, backwards, and the gradients of all matrices
        grad_u = None
        if ctx.needs_input_grad[0]:
            grad_u = torch.empty_like(u, memory_format=torch.contiguous_format)
            torch.bmm(grad_S.mT, B_F, out=_slices(grad_u, K))
            _slices(grad_u, K).baddbmm_(grad_Y, D)
        grad_A, grad_E = torch.bmm(grad_S[:, :d], X[:, :d].mT), torch.bmm(grad_S[:, d:], X[:, d:2 * d].mT)
        grad_B, grad_F = torch.bmm(grad_S, U).split(d, 1)
        # Of the two ways to multiply with X, the one that gives the transpose is many times faster in MKL.
        grad_C, grad_G, grad_bias = torch.bmm(X, grad_Y).mT.split((d, d, 1), 2)
        grad_D = torch.bmm(grad_Y.mT, U)
        return grad_u, grad_A, grad_B, grad_C, grad_D, grad_E, grad_F, grad_G, grad_bias.reshape(bias.shape)


def _recur(states, matrices, added, reverse=False):
    """states[k + 1] = matrices[k] states[k] + added[k], in place, for (K, d, batch), (K, d, d), (K, d, batch); with
    reverse=True it is states[k - 1]."""
    stages = list(zip(states.unbind(), matrices.unbind(), added.unbind()))[::-1 if reverse else 1]
    for (state, matrix, addend), (next_state, _, _) in pairwise(stages):
        torch.addmm(addend, matrix, state, out=next_state)


def _slices(u, nb_chunks):
    """View (chunks, batch, L) of (batch, chunks L)."""
    return u.unflatten(1, (nb_chunks, -1)).transpose(0, 1)


# ---- the nets of the benchmark ----

class TwoHiddenLayeredSSNet(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by an SSS matrix: the benchmark's `ss_d_dim`.

    :param statespace_dim, input_output_dim, initialisation: see SemiseparableLayer
    """

    def __init__(self, input_size, output_size, hidden_layer_size, statespace_dim=1, input_output_dim=1, *,
                 initialisation="realisation", device=None, dtype=None):
        hidden_layer = SemiseparableLayer(hidden_layer_size, statespace_dim, input_output_dim,
                                          initialisation=initialisation, device=device, dtype=dtype)
        super().__init__(input_size, output_size, hidden_layer_size, [hidden_layer], device=device, dtype=dtype)


class SSSTHLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by an SSS matrix; parameters as above."""

    def __init__(self, input_shape, output_size, hidden_layer_size, statespace_dim=1, *,
                 initialisation="realisation", device=None, dtype=None):
        super().__init__(input_shape, lambda nb_features: TwoHiddenLayeredSSNet(
            nb_features, output_size, hidden_layer_size, statespace_dim, initialisation=initialisation,
            device=device, dtype=dtype), device=device, dtype=dtype)
