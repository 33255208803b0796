"""Sequentially semiseparable (SSS) layers and the nets of the benchmark that have one as hidden layer.

An SSS layer computes y = T u + bias without ever forming the n x n matrix T. The input u is cut into K slices
u_k of m = `inputoutput_dim` entries, the output likewise, and two recursions carry a state from stage to stage:

    x_{k+1} = A_k x_k + B_k u_k                 causal,     k = 0 .. K-1, x_0 empty
    z_{k-1} = E_k z_k + F_k u_k                 anticausal, k = K-1 .. 0, z_{K-1} empty
    y_k     = C_k x_k + D_k u_k + G_k z_k       (+ bias)

With states of d = `statespace_dim` entries this takes O(n (d + m)²/m) parameters and operations, not O(n²).

How it is computed here. K tiny products one after the other would spend all time on calls, so neighbouring stages
are merged first, exactly, into chunks of about 64 inputs; then few and large products remain:

    1. stage matrices    every stage as one matrix M_k with [y_k; x_{k+1}] = M_k [x_k; u_k]
    2. merge             r neighbouring stages are one stage with r times the inputs
    3. apply the chunks  states from inputs, a short recursion over the chunks, outputs from states and inputs

The transpose of the anticausal part is causal with matrices Eᵀ, Gᵀ, Fᵀ in place of A, B, C, so that steps 1 and 2
handle both parts alike, stacked in one batch. The backward pass is the paper's backpropagation through states: the
recursions of steps 2 and 3 run in reverse, on gradients of states, and products give the gradients of all matrices.

Sources: Kissel et al., doi 10.1007/978-3-031-16474-3_39 (the layer); Dewilde and van der Veen, *Time-Varying Systems
and Computations* (realisation); Chandrasekaran et al., SIAM J. Matrix Anal. Appl. 27(2), 2005 (SSS arithmetic).
"""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from checks import check_features, check_positive_integers
from standardmodels import ConvNet, FeedForwardNet

LARGEST_DENSE_SIZE = 128  # up to here one chunk, that is the dense matrix and one product, is fastest
CHUNK_SIZE = 64  # inputs per chunk above; the optimum is flat


class SemiseparableLayer(nn.Module):
    """y = T u + bias with an SSS matrix T; (..., input_size) -> (..., input_size).

    Parameters, zero-padded to one size and stacked over the K = nb_states stages, d the largest state:
    A, E (K, d, d), B, F (K, d, m), C, G (K, m, d), D (K, m, m), bias (input_size,). The true sizes are A_k: d_{k+1} x
    d_k, B_k: d_{k+1} x m, C_k: m x d_k, D_k: m x m, E_k: d_k x d_{k+1}, F_k: d_k x m, G_k: m x d_{k+1} with
    d_k = state_dims[k]. The padding has zero gradients, so that it stays zero in training.

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
        if initialisation not in INITIALISATIONS:
            raise ValueError(f"initialisation must be one of {', '.join(INITIALISATIONS)}, got {initialisation!r}")
        self.input_size, self.statespace_dim, self.inputoutput_dim = input_size, statespace_dim, inputoutput_dim
        self.nb_states = input_size // inputoutput_dim
        K, m, d = self.nb_states, inputoutput_dim, max(self.state_dims)
        self._nb_chunks, self._merge_factors = _plan_chunks(K, m, d)
        for name, shape in dict(A=(K, d, d), B=(K, d, m), C=(K, m, d), D=(K, m, m), E=(K, d, d), F=(K, d, m),
                                G=(K, m, d), bias=(input_size,)).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, device=device, dtype=dtype)))
        # Drawn on the CPU, whatever the default device is, so that a seed means the same on all devices.
        with torch.device("cpu"):
            values = INITIALISATIONS[initialisation](input_size, inputoutput_dim, self.state_dims)
        self._set_parameters(values)

    @classmethod
    def from_matrix(cls, matrix, statespace_dim, inputoutput_dim=1, bias=None):
        """The SSS layer whose matrix is close to a given one, by truncated balanced realisation.

        Exact if statespace_dim is at least the rank of every block T[k m:, :k m] and T[:k m, k m:]. Takes a full
        singular value decomposition of each of them, about O(n⁴) operations: seconds at n = 500.

        :param matrix: square tensor or array (n, n), row i the weights of output i; its floating-point dtype and
            its device become those of the layer
        :param bias: (n,), zero if None
        :raises ValueError: matrix not square, a bias of another size, or entries that are complex, NaN or infinite
        """
        matrix = torch.as_tensor(matrix).detach()
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        bias = torch.zeros(len(matrix)) if bias is None else torch.as_tensor(bias).detach()
        if bias.shape != (len(matrix),):
            raise ValueError(f"bias must have shape ({len(matrix)},), got {tuple(bias.shape)}")
        for name, values in (("matrix", matrix), ("bias", bias)):
            if values.is_complex() or not torch.isfinite(values).all():
                raise ValueError(f"{name} has entries that are complex, NaN or infinite")
        dtype = matrix.dtype if matrix.is_floating_point() else torch.get_default_dtype()
        layer = cls(len(matrix), statespace_dim, inputoutput_dim, initialisation="zeros",
                    device=matrix.device, dtype=dtype)
        matrices = realise(matrix.double().cpu(), inputoutput_dim, layer.state_dims, hankel_svds)
        layer._set_parameters({**matrices, "bias": bias})
        return layer

    @torch.no_grad()
    def _set_parameters(self, values):
        for name, value in values.items():
            getattr(self, name).copy_(value)

    @property
    def state_dims(self):
        """[d_0, ..., d_K]: entries of the causal state that enters stage k; the anticausal one that enters stage k
        from the right has d_{k+1}. Border states are smaller: fewer inputs lie before them, or outputs behind."""
        K, m = self.nb_states, self.inputoutput_dim
        return [min(self.statespace_dim, k * m, (K - k) * m) for k in range(K + 1)]

    @property
    def padding_sizes(self):
        """{parameter name: how many of its entries are padding and no parameters of the model}."""
        d, K, m = self.state_dims, self.nb_states, self.inputoutput_dim
        vector_entries = m * sum(d)
        matrix_entries = sum(d[k] * d[k + 1] for k in range(K))
        used = dict(A=matrix_entries, E=matrix_entries, B=vector_entries, C=vector_entries, F=vector_entries,
                    G=vector_entries)
        return {name: getattr(self, name).numel() - entries for name, entries in used.items()}

    def forward(self, u):
        check_features(u, self.input_size, self.bias.dtype)
        batch = u.reshape(-1, self.input_size)  # (..., n) -> (batch, n)
        # Like torch's own layers, this one leaves float64 alone under autocast.
        if not torch.is_autocast_enabled(u.device.type) or u.dtype == torch.float64:
            return self._apply_matrix(batch, self.bias).reshape(u.shape)
        # The stages are merged in the parameters' precision; only the large products take the lower one.
        dtype = torch.get_autocast_dtype(u.device.type)
        with torch.autocast(u.device.type, enabled=False):
            return self._apply_matrix(batch.to(dtype), self.bias).reshape(u.shape)

    def _apply_matrix(self, u, bias):
        """T u + bias, (batch, n) -> (batch, n)"""
        n, nb_chunks = self.input_size, self._nb_chunks
        T, *state_matrices = _MergeStages.apply(self.A, self.B, self.C, self.D, self.E, self.F, self.G,
                                                nb_chunks, self._merge_factors)
        T, bias = T.to(u.dtype), bias.to(u.dtype)
        if nb_chunks == 1:  # no states between chunks
            return functional.linear(u, T[0, :n, :n], bias)
        B_F, C_G, A_E = (matrices.to(u.dtype) for matrices in state_matrices)
        L = T.shape[-1]  # inputs per chunk
        nb_empty = nb_chunks * L - n
        if nb_empty:  # the last chunk is not full: its empty stages get zeros, and what they give is dropped
            u, bias = functional.pad(u, (0, nb_empty)), functional.pad(bias, (0, nb_empty))
        y = _ApplyChunks.apply(u, T, B_F, torch.cat((C_G, bias.view(nb_chunks, L, 1)), 2), A_E)
        return y[:, :n].contiguous()

    def to_matrix(self):
        """The matrix T that the layer represents, (input_size, input_size), dense and differentiable."""
        identity = torch.eye(self.input_size, device=self.bias.device, dtype=self.bias.dtype)
        with torch.autocast(self.bias.device.type, enabled=False):
            return self._apply_matrix(identity, torch.zeros_like(self.bias)).mT

    def extra_repr(self):
        return (f"input_size={self.input_size}, statespace_dim={self.statespace_dim}, "
                f"inputoutput_dim={self.inputoutput_dim}, nb_states={self.nb_states}")


# ---- steps 1 and 2: stage matrices, merged into those of the chunks ----

def _plan_chunks(nb_states, m, d):
    """(number of chunks, factors by which stages are merged, one round after the other)"""
    if nb_states * m <= LARGEST_DENSE_SIZE:
        stages_per_chunk = nb_states
    else:
        # Chunks must be longer than their two states, or handling these costs more than the inputs do.
        stages_per_chunk = max(1, max(CHUNK_SIZE, 2 * d) // m)
    nb_chunks = math.ceil(nb_states / stages_per_chunk)
    stages_per_chunk = math.ceil(nb_states / nb_chunks)
    # A round that merges r stages takes r steps: two rounds with the smallest sum, and then the fewest empty stages.
    factors = min(((r, math.ceil(stages_per_chunk / r)) for r in range(1, stages_per_chunk + 1)),
                  key=lambda factors: (sum(factors), math.prod(factors)))
    return nb_chunks, tuple(r for r in factors if r > 1)


class _MergeStages(Function):
    """State matrices A .. G (K, ..) -> those of the chunks, which are stages with L inputs each:
    T (chunks, L, L) the D_k, B_F (chunks, 2d, L) the [B_k; F_k], C_G (chunks, L, 2d) the [C_k G_k],
    A_E (2, chunks, d, d) the A_k and the E_k; None for the last three if there is one chunk.
    """

    @staticmethod
    def forward(ctx, A, B, C, D, E, F, G, nb_chunks, factors):
        K, d, m = B.shape
        # Step 1: the stages, causal and anticausal ones; zero matrices for empty stages
        M = A.new_zeros(2, nb_chunks * math.prod(factors), m + d, d + m)
        M[0, :K] = _stage_matrices(A, B, C, D)
        M[1, :K] = _stage_matrices(E.mT, G.mT, F.mT, torch.zeros_like(D))
        # Step 2
        M = M.flatten(0, 1)
        saved = []
        for r in factors:
            merged, Z = _merge(M, r, d)
            saved += [M, Z]
            M = merged
        ctx.save_for_backward(*saved)
        ctx.sizes = nb_chunks, K, d
        M = _flush_denormals(M).unflatten(0, (2, nb_chunks))
        L = M.shape[-1] - d
        T = M[0, :, :L, d:] + M[1, :, :L, d:].mT
        if nb_chunks == 1:  # nothing enters a single chunk
            return T, None, None, None
        (A, B, C, _), (E, G, F, _) = _blocks(M[0], d), (block.mT for block in _blocks(M[1], d))
        return T, torch.cat((B, F), 1), torch.cat((C, G), 2), torch.stack((A, E))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_T, grad_B_F, grad_C_G, grad_A_E):
        nb_chunks, K, d = ctx.sizes
        if nb_chunks == 1:
            grad_M = functional.pad(torch.stack((grad_T, grad_T.mT)), (d, 0, 0, d))  # (2, 1, L + d, d + L)
        else:
            (B, F), (C, G), (A, E) = grad_B_F.split(d, 1), grad_C_G.split(d, 2), grad_A_E
            grad_M = torch.stack((_stage_matrices(A, B, C, grad_T), _stage_matrices(E.mT, G.mT, F.mT, grad_T.mT)))
        grad_M = grad_M.flatten(0, 1)
        saved = list(ctx.saved_tensors)
        while saved:
            Z, M = saved.pop(), saved.pop()
            grad_M = _merge_backward(grad_M, M, Z, d)
        causal, anticausal = grad_M.unflatten(0, (2, -1))[:, :K]
        (A, B, C, D), (E, G, F, _) = _blocks(causal, d), (block.mT for block in _blocks(anticausal, d))
        return A, B, C, D, E, F, G, None, None


def _stage_matrices(A, B, C, D):
    """M (stages, w + d, d + w) with M_k = [[C_k, D_k], [A_k, B_k]]."""
    return torch.cat((torch.cat((C, D), 2), torch.cat((A, B), 2)), 1)


def _blocks(M, d):
    """Views A, B, C, D of stage matrices M (stages, w + d, d + w)."""
    w = M.shape[-1] - d
    C_D, A_B = M.split((w, d), 1)
    return *A_B.split((d, w), 2), *C_D.split((d, w), 2)


def _merge(M, r, d):
    """M (S r, w + d, d + w) -> M' (S, r w + d, d + r w): r neighbouring stages of w inputs are one of r w inputs.

    The recursion itself, on matrices: let Z_k give the output and the next state of stage k of a group from all that
    the group takes in, the state x that enters it and the inputs u_1 .. u_r,

        [y_k; x_{k+1}] = M_k [x_k; u_k] = V_k x_k + [D_k; B_k] u_k = Z_k [x; u_1; ..; u_r],    V_k = [C_k; A_k].

    Then Z_k = V_k X_k, plus [D_k; B_k] in the columns of u_k, where X_k is the x-part of Z_{k-1}; M' consists of the
    y-parts of all Z_k and the x-part of the last.

    :return: M', and Z (r, S, w + d, d + r w) for _merge_backward
    """
    M = M.view(-1, r, *M.shape[1:])  # (S, r, w + d, d + w)
    S, w = len(M), M.shape[2] - d
    V = M[..., :d].unbind(1)
    Z = M.new_zeros(r, S, w + d, d + r * w)
    Y, X = Z.split((w, d), 2)
    _own_columns(Z, d).copy_(M[..., d:])
    Z[0, :, :, :d] = V[0]
    for Z_k, V_k, X_k in zip(Z.unbind(0)[1:], V[1:], X.unbind(0)):
        Z_k.baddbmm_(V_k, X_k)
    return torch.cat((Y.transpose(0, 1).reshape(S, r * w, d + r * w), X[-1]), 1), Z


def _merge_backward(grad, M, Z, d):
    """Gradient with respect to M (S r, w + d, d + w) from the one with respect to M' (S, r w + d, d + r w)."""
    r, S, h, nb_columns = Z.shape  # h = w + d
    w = h - d
    M = M.view(S, r, h, h)
    grad_Z = torch.empty_like(Z)
    grad_Y, grad_X = grad_Z.split((w, d), 2)
    grad_Y.copy_(grad[:, :r * w].view(S, r, w, nb_columns).transpose(0, 1))
    grad_X[-1] = grad[:, r * w:]
    grad_X_before, V_transposed = grad_X.unbind(0), M[..., :d].mT.unbind(1)
    for k, grad_Z_k in reversed(list(enumerate(grad_Z.unbind(0)))[1:]):
        grad_X_before[k - 1].copy_(torch.bmm(V_transposed[k], grad_Z_k))
    grad_M = torch.empty_like(M)
    grad_V, grad_own = grad_M.split((d, w), 3)
    grad_V[:, 0] = grad_Z[0, :, :, :d]
    X = Z[:-1, :, w:].flatten(0, 1)  # ((r - 1) S, d, nb_columns): X_k of the stages after the first
    grad_V[:, 1:] = torch.bmm(X, grad_Z[1:].flatten(0, 1).mT).mT.view(r - 1, S, h, d).transpose(0, 1)
    grad_own.copy_(_own_columns(grad_Z, d))
    return grad_M.flatten(0, 1)


def _own_columns(Z, d):
    """View (S, r, w + d, w) of a contiguous Z (r, S, w + d, d + r w): of each stage the columns of its own inputs."""
    r, S, h, nb_columns = Z.shape
    w = h - d  # the block of w columns moves by w from one stage to the next
    return Z.as_strided((S, r, h, w), (h * nb_columns, S * h * nb_columns + w, nb_columns, 1), d)


def _flush_denormals(matrices):
    """Replace entries too small to matter by zero: products of many small A_k underflow in trained layers, and
    processors take up to a hundred times as long for a product with a denormal number."""
    finfo = torch.finfo(matrices.dtype)
    # A million times the smallest normal number leaves room for a factor; float16 has not so much and gets eps².
    return functional.hardshrink(matrices, min(2 ** 20 * finfo.tiny, finfo.eps ** 2))


# ---- step 3: applying the chunks ----

class _ApplyChunks(Function):
    """y = T u + bias for stages that are few and large, so that every line is a large product.

    u (batch, chunks L), T (chunks, L, L) the matrices D_k, B_F (chunks, 2d, L) the matrices [B_k; F_k], C_G_bias
    (chunks, L, 2d + 1) the matrices [C_k G_k bias_k], A_E (2, chunks, d, d) A_k and E_k; y like u.

    u is read and y written in place of their slices: (batch, chunks L) seen as (chunks, batch, L), never transposed in
    memory.
    """

    @staticmethod
    def forward(ctx, u, T, B_F, C_G_bias, A_E):
        K, L, _ = T.shape
        d = A_E.shape[-1]
        U = _slices(u, K)
        # 3a. What the inputs of each chunk add to the two states: S_k = [B_k; F_k] u_k
        S = torch.bmm(B_F, U.mT)  # (K, 2d, batch)
        # 3b. The states that enter each chunk, and a row of ones for the bias
        X = torch.zeros(K, 2 * d + 1, len(u), device=u.device, dtype=u.dtype)
        x, z = X[:, :d], X[:, d:2 * d]
        X[:, 2 * d] = 1
        A, E = A_E
        for k in range(K - 1):
            torch.addmm(S[k, :d], A[k], x[k], out=x[k + 1])
        for k in range(K - 1, 0, -1):
            torch.addmm(S[k, d:], E[k], z[k], out=z[k - 1])
        # 3c. y_k = [C_k G_k bias_k] [x_k; z_k; 1] + T_k u_k
        y = torch.empty(u.shape, device=u.device, dtype=u.dtype)
        Y = _slices(y, K)
        torch.bmm(X.mT, C_G_bias.mT, out=Y)
        Y.baddbmm_(U, T.mT)
        ctx.save_for_backward(u, T, B_F, C_G_bias, A_E, X)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, T, B_F, C_G_bias, A_E, X = ctx.saved_tensors
        K, d = len(T), A_E.shape[-1]
        U, grad_Y = _slices(u, K), _slices(grad_y.contiguous(), K)
        # 3c, backwards: gradients of the states as far as the outputs of their own chunk depend on them
        grad_X = torch.bmm(C_G_bias[..., :2 * d].mT, grad_Y.mT)  # (K, 2d, batch)
        # 3b, backwards: the gradient of S_k is the whole gradient of the state that S_k is added to
        grad_S = torch.zeros_like(grad_X)
        grad_x, grad_z = grad_S[:, :d], grad_S[:, d:]
        A, E = A_E
        for k in range(K - 1, 0, -1):
            torch.addmm(grad_X[k, :d], A[k].mT, grad_x[k], out=grad_x[k - 1])
        for k in range(K - 1):
            torch.addmm(grad_X[k, d:], E[k].mT, grad_z[k], out=grad_z[k + 1])
        # 3a, backwards, and the gradients of all matrices
        grad_u = None
        if ctx.needs_input_grad[0]:
            grad_u = torch.empty(u.shape, device=u.device, dtype=u.dtype)
            torch.bmm(grad_S.mT, B_F, out=_slices(grad_u, K))
            _slices(grad_u, K).baddbmm_(grad_Y, T)
        grad_A_E = torch.stack((torch.bmm(grad_x, X[:, :d].mT), torch.bmm(grad_z, X[:, d:2 * d].mT)))
        # Of the two ways to multiply with X, the one that gives the transpose is many times faster in MKL.
        grad_C_G_bias = torch.bmm(X, grad_Y).mT
        return grad_u, torch.bmm(grad_Y.mT, U), torch.bmm(grad_S, U), grad_C_G_bias, grad_A_E


def _slices(u, nb_chunks):
    """View (chunks, batch, L) of (batch, chunks L)."""
    return u.unflatten(1, (nb_chunks, -1)).transpose(0, 1)


# ---- initialisation ----

def get_random_glorot_uniform_matrix(shape, *, dtype=None):
    """Tensor of the given shape, uniform in ±sqrt(6 / sum(shape)) (Glorot and Bengio, AISTATS 2010), on the CPU:
    so the same seed gives the same numbers whatever device a layer is on."""
    limit = math.sqrt(6 / sum(shape))
    return torch.empty(shape, device="cpu", dtype=dtype).uniform_(-limit, limit)


def realise_glorot_uniform(n, m, state_dims):
    """{parameter name: tensor} of the paper's initialisation: a Glorot-uniform matrix is drawn and realised."""
    bias = get_random_glorot_uniform_matrix((n,))
    matrix = get_random_glorot_uniform_matrix((n, n), dtype=torch.float64)
    return dict(realise(matrix, m, state_dims, hankel_svds_of_random_matrix), bias=bias)


def draw_state_matrices(n, m, state_dims):
    """{parameter name: tensor} drawn at random in O(n), like what realise_glorot_uniform finds in O(n³).

    Realised matrices follow two laws, measured for n = 25 .. 300 and d = 1 .. 8: entries off the diagonal have 1 -
    exp(-11 (d/n)^(4/3)) times the variance 1/n of the Glorot-uniform ones, and their variance falls with the distance
    from the diagonal, by a factor e within about n^(2/3) entries. Here every A_k is an orthogonal matrix times the
    factor of that fall, and B_k and C_k are normal with the variance that gives the entries theirs.
    """
    K, d = len(state_dims) - 1, max(state_dims)
    fall = math.exp(-m / (2 * n ** (2 / 3)))
    # E T_ij² = d_k fall^(2 (i-j-1)) E B² E C² for stages i > j; scale = sqrt(E B²) = sqrt(E C²) sets its mean.
    distances = torch.arange(max(K - 1, 1), dtype=torch.float64)
    mean_fall = torch.sum((len(distances) - distances) * fall ** (2 * distances)) / torch.sum(distances + 1)
    mean_dim = max(1, sum(state_dims) / len(distances))
    scale = ((1 - math.exp(-11 * (max(1, d) / n) ** (4 / 3))) / n / mean_dim / mean_fall.item()) ** 0.25

    used = (torch.arange(d) < torch.tensor(state_dims)[:, None]).float()  # (K + 1, d): 0 in the padding

    def draw_part(used_in, used_out):
        """A, B and C for states that enter the stages, or leave them, with the given entries in use (K, d)."""
        used_in, used_out = used_in[:, None, :], used_out[:, :, None]
        A = fall * torch.linalg.qr(torch.randn(K, d, d)).Q * used_out * used_in
        return A, scale * torch.randn(K, d, m) * used_out, scale * torch.randn(K, m, d) * used_in

    A, B, C = draw_part(used[:-1], used[1:])
    E, F, G = draw_part(used[1:], used[:-1])
    D = torch.empty(K, m, m).uniform_(-math.sqrt(3 / n), math.sqrt(3 / n))
    return dict(A=A, B=B, C=C, D=D, E=E, F=F, G=G, bias=get_random_glorot_uniform_matrix((n,)))


INITIALISATIONS = {"realisation": realise_glorot_uniform, "direct": draw_state_matrices, "zeros": lambda *sizes: {}}


def realise(T, m, state_dims, hankel_svds):
    """{name: stacked tensor} of the truncated balanced realisation of T (n, n), float64 on the CPU.

    Dewilde and van der Veen, *Time-Varying Systems and Computations*, chapter 5.

    :param hankel_svds: one of the two functions below
    """
    K = len(state_dims) - 1
    with _one_thread():
        A, B, C = _realise_causal_part(T, m, state_dims, hankel_svds)
        # The transpose of the anticausal part is causal: G_j E_{j+1} .. E_{i-1} F_i = B_jᵀ A_{j+1}ᵀ .. A_{i-1}ᵀ C_iᵀ.
        E, G, F = (matrices.mT for matrices in _realise_causal_part(T.mT, m, state_dims, hankel_svds))
    D = torch.stack([T[k * m:(k + 1) * m, k * m:(k + 1) * m] for k in range(K)])
    return dict(A=A, B=B, C=C, D=D, E=E, F=F, G=G)


def _realise_causal_part(T, m, state_dims, hankel_svds):
    K, d = len(state_dims) - 1, max(state_dims)
    A, B, C = T.new_zeros(K, d, d), T.new_zeros(K, d, m), T.new_zeros(K, m, d)
    O_previous = None
    for k, (U, sigma, Vh) in enumerate(hankel_svds(T, m, state_dims), start=1):
        # T[km:, :km] = O R, observability and controllability in balanced form; the nearest stage is the first one
        # of O and the last one of R.
        root = sigma.sqrt()
        O, R = U * root, root[:, None] * Vh
        C[k, :, :len(sigma)] = O[:m]
        B[k - 1, :len(sigma)] = R[:, -m:]
        if O_previous is not None:
            # The same output rows, seen from the states k-1 and k: O_{k-1} without its first stage = O_k A_{k-1}.
            pinv_O = (U * torch.where(sigma > 0, 1 / root, 0)).mT
            A[k - 1, :len(sigma), :O_previous.shape[1]] = pinv_O @ O_previous[m:]
        O_previous = O
    return A, B, C


def hankel_svds(T, m, state_dims):
    """Iterate over k = 1 .. K-1: U (n - km, d_k), sigma (d_k,), Vh (d_k, km), the leading singular triplets of
    T[km:, :km]. Singular values that are zero up to rounding are zero."""
    for k in range(1, len(state_dims) - 1):
        yield _hankel_svd(T, k * m, state_dims[k])


def _hankel_svd(T, position, d):
    H = T[position:, :position]
    U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    rounding = sigma[0] * max(H.shape) * torch.finfo(H.dtype).eps
    return U[:, :d], torch.where(sigma > rounding, sigma, 0)[:d], Vh[:d]


def hankel_svds_of_random_matrix(T, m, state_dims, smallest_size=130, nb_blocks=48):
    """hankel_svds for a matrix with distinct singular values, as random ones have: faster for large blocks.

    Blocks with a side of up to `smallest_size` get their full decomposition. Of the others only few triplets matter,
    and neighbours differ in few rows and columns: `nb_blocks` of them share the products of one Lanczos iteration.
    """
    K, d = len(state_dims) - 1, max(state_dims)
    first = max(smallest_size, 6 * (d + 5)) // m + 1
    last = K - first
    for k in range(1, K):
        if not first <= k <= last:
            yield _hankel_svd(T, k * m, state_dims[k])
        elif (k - first) % nb_blocks == 0:
            yield from _hankel_svds_by_lanczos(T, [j * m for j in range(k, min(k + nb_blocks, last + 1))], d)


def _hankel_svds_by_lanczos(T, positions, d, tolerance=1e-11, max_restarts=100):
    """The d leading singular triplets of T[p:, :p] for all p in `positions`, which ascend.

    Lanczos iteration with thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000) for the eigenvectors
    of H Hᵀ or Hᵀ H, whichever is smaller, for all blocks H at once: H stands for the matrix that holds them all, and
    each block masks the rows and columns that it lacks.
    """
    bounds = torch.tensor(positions, device=T.device)[:, None]
    H = T[positions[0]:, :positions[-1]]
    mask_out = (torch.arange(positions[0], len(T), device=T.device) >= bounds).to(T.dtype)  # (blocks, rows)
    mask_in = (torch.arange(positions[-1], device=T.device) < bounds).to(T.dtype)  # (blocks, columns)
    transposed = H.shape[0] < H.shape[1]
    if transposed:
        H, mask_in, mask_out = H.mT, mask_out, mask_in
    nb_kept, nb_vectors = d + 5, 3 * (d + 5)
    blocks, size = mask_in.shape

    Q = T.new_zeros(blocks, nb_vectors + 1, size)  # orthonormal rows
    projected = T.new_zeros(blocks, nb_vectors, nb_vectors)  # Q HᵀH Qᵀ, upper triangle
    start = torch.randn(size, dtype=T.dtype, device=T.device, generator=torch.Generator().manual_seed(0)) * mask_in
    Q[:, 0] = start / start.norm(dim=1, keepdim=True)
    first = 0
    for _ in range(max_restarts):
        for j in range(first, nb_vectors):
            q = (Q[:, j] @ H.mT * mask_out) @ H * mask_in
            for _ in range(2):  # Gram-Schmidt is only stable if it is done twice
                coefficients = torch.bmm(Q[:, :j + 1], q[:, :, None])
                q = q - torch.bmm(coefficients.mT, Q[:, :j + 1])[:, 0]
                projected[:, :j + 1, j] += coefficients[:, :, 0]
            norm = q.norm(dim=1, keepdim=True)
            Q[:, j + 1] = q / norm
        values, vectors = torch.linalg.eigh(projected, UPLO="U")
        residuals = (norm * vectors[:, -1, -d:]).abs()
        if (residuals <= tolerance * values[:, -1:]).all():
            break
        # Restart with the best eigenvectors found so far, and the last direction.
        Q[:, :nb_kept] = torch.bmm(vectors[:, :, -nb_kept:].mT, Q[:, :nb_vectors])
        Q[:, nb_kept] = Q[:, nb_vectors]
        projected = torch.diag_embed(functional.pad(values[:, -nb_kept:], (0, nb_vectors - nb_kept)))
        first = nb_kept
    else:
        yield from (_hankel_svd(T, position, d) for position in positions)
        return
    inner = torch.bmm(vectors[:, :, -d:].mT, Q[:, :nb_vectors]).flip(1)  # (blocks, d, size), largest first
    sigma = values[:, -d:].flip(1).sqrt()
    outer = inner @ H.mT * mask_out[:, None] / sigma[:, :, None]
    left, right = (inner, outer) if transposed else (outer, inner)
    for i, position in enumerate(positions):
        yield left[i, :, position - positions[0]:].mT, sigma[i], right[i, :, :position]


@contextmanager
def _one_thread():
    """Thousands of small decompositions are faster on one thread than on several that wait for each other."""
    nb_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(nb_threads)


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
    """Net for images with two hidden layers of neurons, joined by an SSS matrix.

    :param statespace_dim, initialisation: see SemiseparableLayer
    """

    def __init__(self, input_shape, output_size, hidden_layer_size, statespace_dim=1, *,
                 initialisation="realisation", device=None, dtype=None):
        super().__init__(input_shape, lambda nb_features: TwoHiddenLayeredSSNet(
            nb_features, output_size, hidden_layer_size, statespace_dim, initialisation=initialisation,
            device=device, dtype=dtype), device=device, dtype=dtype)
