"""State matrices of sequentially semiseparable matrices: realised from a dense matrix, or drawn at random.

Stage k takes in `input_dims[k]` inputs and gives `output_dims[k]` outputs; the equations are in semiseparablemodels.py.
Tensors are float64 on the CPU where nothing else is said. D are the blocks on the diagonal; A, B, C come from those
below, and E, F, G likewise from those above:

    T[rows of stages >= k, columns of stages < k]  =  O_k R_k        the causal Hankel block at k
                                                                     = observability times controllability
    O_k = [C_k; C_{k+1} A_k; C_{k+2} A_{k+1} A_k; ...],              R_k = [..., A_{k-1} B_{k-2}, B_{k-1}]

The state that enters stage k has as many entries as that block has rank. The leading singular triplets U, sigma, Vh of
the block give the best smaller state; O_k = U sigma^(1/2) and R_k = sigma^(1/2) Vh are the balanced form.

Source: Dewilde and van der Veen, *Time-Varying Systems and Computations*, chapter 5.
"""

import math
from contextlib import contextmanager, nullcontext
from itertools import accumulate

import numpy as np
import torch

from checks import check_finite

LARGEST_FULL_SIZE = 130  # rows or columns, the fewer, up to which a full singular value decomposition is fast enough

# draw_state_matrices: what realised matrices were found to be like, for n = 25 .. 300 and d = 1 .. 8. Entries off the
# diagonal have 1 - exp(-VARIANCE_FACTOR (d/n)^VARIANCE_EXPONENT) times the variance of the Glorot-uniform ones, and it
# falls by a factor e within n^FALL_EXPONENT entries from the diagonal.
VARIANCE_FACTOR, VARIANCE_EXPONENT, FALL_EXPONENT = 11, 4 / 3, 2 / 3


def get_random_glorot_uniform_matrix(shape, *, dtype=None):
    """Tensor of the given shape, uniform in ±sqrt(6 / sum(shape)) (Glorot and Bengio, AISTATS 2010), on the CPU:
    so the same seed gives the same numbers whatever device a layer is on."""
    limit = math.sqrt(6 / sum(shape))
    return torch.empty(shape, device="cpu", dtype=dtype).uniform_(-limit, limit)


def get_stage_dims(input_size, output_size, inputoutput_dim):
    """Inputs of each stage and outputs of each stage, two lists: K = the smaller size / inputoutput_dim consecutive
    parts as even as possible, the larger ones first, as numpy.array_split makes them."""
    K = min(input_size, output_size) // inputoutput_dim
    return tuple([size // K + (k < size % K) for k in range(K)] for size in (input_size, output_size))


def get_state_dims(input_dims, output_dims, statespace_dim):
    """[d_0, ..., d_K]: entries of the causal state that enters stage k, which has no use for more than there are inputs
    before it or outputs from k on. With the two lists exchanged: of the anticausal state that leaves stage k."""
    starts = zip(accumulate(input_dims, initial=0), accumulate(output_dims, initial=0))
    return [min(statespace_dim, column, sum(output_dims) - row) for column, row in starts]


def get_stage_shapes(input_dims, output_dims, statespace_dim):
    """{name: [(rows, columns) of stage k, k = 0 .. K-1]} of the state matrices A .. G without padding."""
    d = get_state_dims(input_dims, output_dims, statespace_dim)
    e = get_state_dims(output_dims, input_dims, statespace_dim)
    return {name: list(zip(rows, columns)) for name, rows, columns in (
        ("A", d[1:], d[:-1]), ("B", d[1:], input_dims), ("C", output_dims, d[:-1]), ("D", output_dims, input_dims),
        ("E", e[:-1], e[1:]), ("F", e[:-1], input_dims), ("G", output_dims, e[1:]))}


def get_used_entries(shapes, stacked_shape):
    """Bool tensor (stages, rows, columns), False in the padding, from [(rows, columns) of stage k] without it."""
    rows, columns = torch.tensor(shapes).mT[:, :, None]  # (stages, 1) each
    _, nb_rows, nb_columns = stacked_shape
    return (torch.arange(nb_rows) < rows)[:, :, None] & (torch.arange(nb_columns) < columns)[:, None, :]


def get_padded_positions(dims, chunk_length):
    """Where in its chunk each entry lies if stages of these sizes are padded to the size of the first: (chunks, most
    entries of a chunk), zeros at the end of chunks that have fewer. None if all stages are equal."""
    if dims[0] == dims[-1]:
        return None
    stages = [k % chunk_length * dims[0] + torch.arange(size) for k, size in enumerate(dims)]
    return torch.nn.utils.rnn.pad_sequence(
        [torch.cat(stages[k:k + chunk_length]) for k in range(0, len(stages), chunk_length)], batch_first=True)


# ---- from a dense matrix to state matrices ----

def to_matrix(values, name="matrix", nb_dims=2):
    """Finite real numbers in a tensor, an array of any form in memory (which is copied) or lists -> tensor without
    gradient; ValueError for anything else, under its name."""
    if not isinstance(values, torch.Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" or np.ma.is_masked(values):
            raise ValueError(f"{name} must be real numbers, neither masked nor sparse, got dtype {array.dtype}")
        # torch takes no foreign byte order, no negative strides, and read-only memory under protest.
        values = torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    if values.layout != torch.strided or values.dim() != nb_dims or not values.numel():
        raise ValueError(f"{name} must be dense and have {nb_dims} dimensions and entries, "
                         f"got {values.layout} of shape {tuple(values.shape)}")
    check_finite(**{name: values})
    return values.detach()


def realise(matrix, input_dims, output_dims, statespace_dim):
    """The truncated balanced realisation of a matrix; exact if no Hankel block has a rank above statespace_dim.

    :param matrix: tensor, array or lists (outputs, inputs)
    :param input_dims, output_dims: [inputs of stage k], [outputs of stage k]; their sums are the matrix's sizes
    :return: {name: tensor} with A, E (K, d, d), B, F (K, d, m), C, G (K, p, d), D (K, p, m), zero-padded to the largest
        state d and the largest numbers m and p of inputs and outputs of a stage; float64 on the CPU
    """
    matrix = to_matrix(matrix).double().cpu()
    causal = get_state_dims(input_dims, output_dims, statespace_dim)
    anticausal = get_state_dims(output_dims, input_dims, statespace_dim)
    d = max(causal + anticausal)
    with _one_thread_on_the_cpu(with_scipy=min(matrix.shape) > LARGEST_FULL_SIZE):
        A, B, C = _realise_causal_part(matrix, input_dims, output_dims, causal, d)
        # The transpose of the anticausal part is causal, with Eᵀ, Gᵀ, Fᵀ in place of A, B, C:
        # (G_j E_{j+1} .. E_{i-1} F_i)ᵀ = F_iᵀ E_{i-1}ᵀ .. E_{j+1}ᵀ G_jᵀ.
        E, G, F = (stages.mT for stages in _realise_causal_part(matrix.mT, output_dims, input_dims, anticausal, d))
    D = matrix.new_zeros(len(input_dims), max(output_dims), max(input_dims))
    ends = zip(accumulate(output_dims), accumulate(input_dims))
    for k, ((row, column), p, m) in enumerate(zip(ends, output_dims, input_dims)):
        D[k, :p, :m] = matrix[row - p:row, column - m:column]
    return dict(A=A, B=B, C=C, D=D, E=E, F=F, G=G)


def _realise_causal_part(T, input_dims, output_dims, state_dims, d):
    A, B, C = (T.new_zeros(len(input_dims), *shape) for shape in ((d, d), (d, max(input_dims)), (max(output_dims), d)))
    O_previous = None
    for k, (row, column) in _hankel_positions(input_dims, output_dims):
        U, sigma, Vh = _get_leading_triplets(T[row:, :column], state_dims[k])
        # The nearest stage is the first one of O, and the last one of R.
        root = sigma.sqrt()
        O, R = U * root, root[:, None] * Vh
        C[k, :output_dims[k], :len(sigma)] = O[:output_dims[k]]
        B[k - 1, :len(sigma), :input_dims[k - 1]] = R[:, -input_dims[k - 1]:]
        if O_previous is not None:
            # The same output rows, seen from the states k-1 and k: O_{k-1} without its first stage = O_k A_{k-1}.
            pinv_O = (U * torch.where(sigma > 0, 1 / root, 0)).mT
            A[k - 1, :len(sigma), :O_previous.shape[1]] = pinv_O @ O_previous[output_dims[k - 1]:]
        O_previous = O
    return A, B, C


# ---- the singular values of Hankel blocks ----

def hankel_singular_values(matrix, input_dims=None, output_dims=None):
    """Which statespace_dim does a matrix need? Its realisation drops all but the first statespace_dim of each row here.

    :param matrix: tensor, array or lists (outputs, inputs)
    :param input_dims, output_dims: see realise; None: those of a SemiseparableLayer with inputoutput_dim 1
    :return: the singular values of the causal and of the anticausal Hankel blocks at k = 1 .. K-1, descending, two
        tensors (K - 1, r), zero-padded; float64 on the CPU
    """
    matrix = to_matrix(matrix).double().cpu()
    if input_dims is None:
        input_dims, output_dims = get_stage_dims(matrix.shape[1], matrix.shape[0], 1)
    with _one_thread_on_the_cpu():
        causal, anticausal = (
            [torch.linalg.svdvals(T[row:, :column]) for _, (row, column) in _hankel_positions(*dims)]
            for T, dims in ((matrix, (input_dims, output_dims)), (matrix.mT, (output_dims, input_dims))))
    if not causal:  # a single stage
        return matrix.new_zeros(2, 0, 1).unbind()
    return torch.nn.utils.rnn.pad_sequence(causal + anticausal, batch_first=True).chunk(2)


def _hankel_positions(input_dims, output_dims):
    """[(k, (row, column) where the Hankel block T[row:, :column] begins and ends)] for k = 1 .. K-1."""
    return list(enumerate(zip(accumulate(output_dims[:-1]), accumulate(input_dims[:-1])), start=1))


def _get_leading_triplets(H, d):
    """U (rows, d), sigma (d,), Vh (d, columns) of a matrix H; singular values that are zero up to rounding are zero."""
    # d eigenvectors of H Hᵀ take a fifth of the time, of large blocks whose squares are within the range of float64.
    if min(H.shape) > max(LARGEST_FULL_SIZE, 6 * d) and 1e-140 < H.abs().max() < 1e140:
        if H.shape[0] > H.shape[1]:
            V, sigma, Uh = _get_leading_triplets(H.mT, d)
            return Uh.mT, sigma, V.mT
        from scipy.linalg import eigh  # here, for it takes a tenth of a second to import

        values, vectors = eigh((H @ H.mT).numpy(), subset_by_index=(len(H) - d, len(H) - 1))
        sigma, U = torch.from_numpy(values).flip(0).clamp(min=0).sqrt(), torch.from_numpy(vectors).flip(1)
        if sigma[-1] > 1e-5 * sigma[0]:  # the squares of smaller ones are lost in rounding
            return U, sigma, U.mT @ H / sigma[:, None]
    U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    rounding = sigma[0] * max(H.shape) * torch.finfo(H.dtype).eps
    return U[:, :d], torch.where(sigma > rounding, sigma, 0)[:d], Vh[:d]


@contextmanager
def _one_thread_on_the_cpu(with_scipy=False):
    """Thousands of small decompositions are faster on one thread than on several that wait for each other."""
    nb_threads, limits = torch.get_num_threads(), nullcontext()
    if with_scipy:  # which has threads of its own; finding them takes 10 ms
        import scipy.linalg  # noqa: F401, for what is loaded later is not found
        from threadpoolctl import threadpool_limits

        limits = threadpool_limits(1, user_api="blas")
    torch.set_num_threads(1)
    try:
        with limits, torch.device("cpu"):  # whatever the default device is
            yield
    finally:
        torch.set_num_threads(nb_threads)


# ---- initialisations: {parameter name: tensor} of a layer ----

def realise_glorot_uniform_matrix(input_dims, output_dims, statespace_dim):
    """The paper's: a dense Glorot-uniform matrix is drawn and realised, in about O(n⁴) operations."""
    bias = get_random_glorot_uniform_matrix((sum(output_dims),))
    matrix = get_random_glorot_uniform_matrix((sum(output_dims), sum(input_dims)), dtype=torch.float64)
    return dict(realise(matrix, input_dims, output_dims, statespace_dim), bias=bias)


def draw_state_matrices(input_dims, output_dims, statespace_dim):
    """Drawn at random in O(n), like what realise_glorot_uniform_matrix finds in O(n⁴), see VARIANCE_FACTOR above.

    Every A_k is an orthogonal matrix times the factor by which entries fall from one stage to the next; B_k and C_k are
    normal with the variance that gives the entries of the represented matrix theirs.
    """
    K, m, p = len(input_dims), max(input_dims), max(output_dims)
    n = 2 / (1 / sum(input_dims) + 1 / sum(output_dims))  # of rectangular layers the mean that fits the law best
    variance = 2 / (sum(input_dims) + sum(output_dims))  # of Glorot-uniform entries
    state_dims = get_state_dims(input_dims, output_dims, statespace_dim)
    d = max(state_dims + get_state_dims(output_dims, input_dims, statespace_dim))
    fall = math.exp(-n / K / (2 * n ** FALL_EXPONENT))
    # mean T_ij² = d_k fall^(2 (i-j-1)) mean B² mean C² for stages i > j; scale, of B and of C, sets its mean.
    distances = torch.arange(max(K - 1, 1), dtype=torch.float64)
    mean_fall = torch.sum((len(distances) - distances) * fall ** (2 * distances)) / torch.sum(distances + 1)
    mean_dim = max(1, sum(state_dims) / len(distances))
    realised_share = 1 - math.exp(-VARIANCE_FACTOR * (max(1, d) / n) ** VARIANCE_EXPONENT)
    scale = (realised_share * variance / mean_dim / mean_fall.item()) ** 0.25

    stages, dtype = {}, torch.promote_types(torch.get_default_dtype(), torch.float32)  # no qr in half precision
    for A, B, C in ("ABC", "EFG"):
        stages[A] = fall * torch.linalg.qr(torch.randn(K, d, d, dtype=dtype)).Q
        stages[B] = scale * torch.randn(K, d, m, dtype=dtype)
        stages[C] = scale * torch.randn(K, p, d, dtype=dtype)
    stages["D"] = torch.empty(K, p, m, dtype=dtype).uniform_(-math.sqrt(3 * variance), math.sqrt(3 * variance))
    for name, shapes in get_stage_shapes(input_dims, output_dims, statespace_dim).items():
        stages[name] *= get_used_entries(shapes, stages[name].shape)
    return dict(stages, bias=get_random_glorot_uniform_matrix((sum(output_dims),)))


INITIALISATIONS = {"realisation": realise_glorot_uniform_matrix, "direct": draw_state_matrices,
                   "zeros": lambda *sizes: {}}  # for layers whose parameters are set afterwards
