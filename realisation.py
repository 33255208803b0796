"""State matrices of sequentially semiseparable matrices: realised from a dense matrix, or drawn at random.

Stage k takes in `input_dims[k]` inputs and gives `output_dims[k]` outputs; the equations are in semiseparablemodels.py.
Here everything is a plain function of tensors, float64 on the CPU where nothing else is said. D are the blocks on the
diagonal; A, B, C come from those below, and E, F, G likewise from those above:

    T[rows of stages >= k, columns of stages < k]  =  O_k R_k        the causal Hankel block at k
                                                                     = observability times controllability
    O_k = [C_k; C_{k+1} A_k; C_{k+2} A_{k+1} A_k; ...],              R_k = [..., A_{k-1} B_{k-2}, B_{k-1}]

The state that enters stage k has as many entries as that block has rank. The leading singular triplets U, sigma, Vh of
the block give the best smaller state; O_k = U sigma^(1/2) and R_k = sigma^(1/2) Vh are the balanced form.

Source: Dewilde and van der Veen, *Time-Varying Systems and Computations*, chapter 5.
"""

import math
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch.nn import functional

from checks import to_matrix

# draw_state_matrices: what realised matrices were found to be like, for n = 25 .. 300 and d = 1 .. 8. Entries off the
# diagonal have 1 - exp(-VARIANCE_FACTOR (d/n)^VARIANCE_EXPONENT) times the variance of the Glorot-uniform ones, and it
# falls by a factor e within n^FALL_EXPONENT entries from the diagonal.
VARIANCE_FACTOR, VARIANCE_EXPONENT = 11, 4 / 3
FALL_EXPONENT = 2 / 3


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
    inputs_before = accumulate(input_dims, initial=0)
    outputs_before = accumulate(output_dims, initial=0)
    return [min(statespace_dim, i, sum(output_dims) - o) for i, o in zip(inputs_before, outputs_before)]


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

def realise(matrix, input_dims, output_dims, statespace_dim, *, hankel_svds=None):
    """The truncated balanced realisation of a matrix; exact if no Hankel block has a rank above statespace_dim.

    :param matrix: tensor, array or lists (outputs, inputs)
    :param input_dims, output_dims: [inputs of stage k], [outputs of stage k]; their sums are the matrix's sizes
    :param hankel_svds: function like get_hankel_svds, which is the default
    :return: {name: tensor} with A, E (K, d, d), B, F (K, d, m), C, G (K, p, d), D (K, p, m), zero-padded to the largest
        state d and the largest numbers m and p of inputs and outputs of a stage; float64 on the CPU
    """
    hankel_svds = hankel_svds or get_hankel_svds
    matrix = to_matrix(matrix).double().cpu()
    causal = get_state_dims(input_dims, output_dims, statespace_dim)
    anticausal = get_state_dims(output_dims, input_dims, statespace_dim)
    d = max(causal + anticausal)
    with _one_thread_on_the_cpu():
        A, B, C = _realise_causal_part(matrix, input_dims, output_dims, causal, d, hankel_svds)
        # The transpose of the anticausal part is causal, with Eᵀ, Gᵀ, Fᵀ in place of A, B, C:
        # (G_j E_{j+1} .. E_{i-1} F_i)ᵀ = F_iᵀ E_{i-1}ᵀ .. E_{j+1}ᵀ G_jᵀ.
        E, G, F = (stages.mT for stages in _realise_causal_part(matrix.mT, output_dims, input_dims, anticausal, d,
                                                                hankel_svds))
    D = matrix.new_zeros(len(input_dims), max(output_dims), max(input_dims))
    starts = zip(accumulate(output_dims, initial=0), accumulate(input_dims, initial=0))
    for k, ((row, column), m, p) in enumerate(zip(starts, input_dims, output_dims)):
        D[k, :p, :m] = matrix[row:row + p, column:column + m]
    return dict(A=A, B=B, C=C, D=D, E=E, F=F, G=G)


def _realise_causal_part(T, input_dims, output_dims, state_dims, d, hankel_svds):
    K = len(input_dims)
    A, B, C = T.new_zeros(K, d, d), T.new_zeros(K, d, max(input_dims)), T.new_zeros(K, max(output_dims), d)
    O_previous = None
    for k, (U, sigma, Vh) in enumerate(hankel_svds(T, input_dims, output_dims, state_dims), start=1):
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
        return matrix.new_zeros(0, 1), matrix.new_zeros(0, 1)
    return torch.nn.utils.rnn.pad_sequence(causal + anticausal, batch_first=True).unflatten(0, (2, -1)).unbind()


def _hankel_positions(input_dims, output_dims):
    """[(k, (row, column) where the Hankel block T[row:, :column] begins and ends)] for k = 1 .. K-1."""
    return list(enumerate(zip(accumulate(output_dims[:-1]), accumulate(input_dims[:-1])), start=1))


def get_hankel_svds(T, input_dims, output_dims, state_dims, largest_full_size=130, nb_blocks=48):
    """Iterate over k = 1 .. K-1: U (rows, d_k), sigma (d_k,), Vh (d_k, columns), the leading singular triplets of the
    causal Hankel blocks. Singular values that are zero up to rounding are zero.

    Blocks with a side of up to `largest_full_size` get their full decomposition. Of the others only few triplets
    matter, and neighbours differ in few rows and columns: `nb_blocks` of them share the products of one Lanczos
    iteration.
    """
    d = max(state_dims)
    largest_full_size = max(largest_full_size, 6 * (d + 5))
    waiting = []
    for k, (row, column) in _hankel_positions(input_dims, output_dims):
        is_large = min(len(T) - row, column) > largest_full_size
        if is_large:
            waiting.append((row, column))
        if waiting and (len(waiting) == nb_blocks or not is_large):
            yield from _svds_by_lanczos(T, waiting, d)
            waiting = []
        if not is_large:
            yield _hankel_svd(T, row, column, state_dims[k])
    if waiting:
        yield from _svds_by_lanczos(T, waiting, d)


def _hankel_svd(T, row, column, d):
    H = T[row:, :column]
    U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    rounding = sigma[0] * max(H.shape) * torch.finfo(H.dtype).eps
    return U[:, :d], torch.where(sigma > rounding, sigma, 0)[:d], Vh[:d]


def _svds_by_lanczos(T, positions, d, tolerance=1e-11, max_restarts=50):
    """The d leading singular triplets of T[row:, :column] for all positions (row, column), which ascend.

    Lanczos iteration with thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22(2), 2000) for the eigenvectors
    of H Hᵀ or Hᵀ H, whichever is smaller, for all blocks H at once: H stands for the matrix that holds them all,
    and each block masks the rows and columns that it lacks. Blocks for which it does not work get a full
    decomposition: those with too small singular values, which squares lose, and those that do not converge.
    """
    first_row, last_column = positions[0][0], positions[-1][1]
    rows, columns = torch.tensor(positions).T[:, :, None]  # (blocks, 1) each
    H = T[first_row:, :last_column]
    mask_out = (torch.arange(first_row, len(T)) >= rows).to(T.dtype)  # (blocks, rows of H)
    mask_in = (torch.arange(last_column) < columns).to(T.dtype)  # (blocks, columns of H)
    transposed = H.shape[0] < H.shape[1]
    if transposed:
        H, mask_in, mask_out = H.mT, mask_out, mask_in
    nb_kept, nb_vectors = d + 5, 3 * (d + 5)
    blocks, size = mask_in.shape
    draw_direction = partial(_draw_direction, mask=mask_in, generator=torch.Generator().manual_seed(0))

    Q = T.new_zeros(blocks, nb_vectors + 1, size)  # orthonormal rows
    projected = T.new_zeros(blocks, nb_vectors, nb_vectors)  # Q HᵀH Qᵀ, upper triangle
    Q[:, 0] = draw_direction(Q[:, :0])
    nb_known, sigma_before = 0, None
    for _ in range(max_restarts):
        norm = _extend_krylov_basis(Q, projected, nb_known, lambda q: (q @ H.mT * mask_out) @ H * mask_in,
                                    draw_direction)
        values, vectors = torch.linalg.eigh(projected, UPLO="U")
        residuals = (norm * vectors[:, -1, -d:]).abs()
        sigma = values[:, -d:].clamp(min=0).sqrt()
        works = sigma[:, 0] > 1e-5 * sigma[:, -1]
        is_converged = (residuals <= tolerance * values[:, -1:]).all(1)
        # Of equal singular values one start finds one. So another start, beside what is found, must find nothing new.
        is_confirmed = sigma_before is not None and ((sigma - sigma_before).abs() <= 1e-9 * sigma).all(1)
        if (is_converged & is_confirmed | ~works).all():
            break
        # Restart with the best eigenvectors found so far, and the last direction.
        Q[:, :nb_kept] = torch.bmm(vectors[:, :, -nb_kept:].mT, Q[:, :nb_vectors])
        Q[:, nb_kept] = Q[:, nb_vectors]
        sigma_before = None
        if (is_converged | ~works).all():
            Q[:, nb_kept], sigma_before = draw_direction(Q[:, :nb_kept]), sigma
        projected = torch.diag_embed(functional.pad(values[:, -nb_kept:], (0, nb_vectors - nb_kept)))
        nb_known = nb_kept
    else:
        works[:] = False
    works = works & is_converged & is_confirmed
    sigma = sigma.flip(1)
    inner = torch.bmm(vectors[:, :, -d:].mT, Q[:, :nb_vectors]).flip(1)  # (blocks, d, size), largest first
    outer = inner @ H.mT * mask_out[:, None] / sigma[:, :, None]
    left, right = (inner, outer) if transposed else (outer, inner)
    return [(left[i, :, row - first_row:].mT, sigma[i], right[i, :, :column]) if works[i]
            else _hankel_svd(T, row, column, d) for i, (row, column) in enumerate(positions)]


def _extend_krylov_basis(Q, projected, nb_known, apply, draw_direction):
    """Fill the rows of Q (blocks, vectors + 1, size) from nb_known + 1 on, and the columns of `projected` from nb_known
    on, in place; apply is the symmetric operator. Returns the norm (blocks, 1) of what is left beyond the basis."""
    for j in range(nb_known, projected.shape[1]):
        q = apply(Q[:, j])
        for _ in range(2):  # Gram-Schmidt is only stable if it is done twice
            coefficients = torch.bmm(Q[:, :j + 1], q[:, :, None])
            q = q - torch.bmm(coefficients.mT, Q[:, :j + 1])[:, 0]
            projected[:, :j + 1, j] += coefficients[:, :, 0]
        norm = q.norm(dim=1, keepdim=True)
        Q[:, j + 1] = q / norm
        is_exhausted = norm <= 1e-13 * projected.abs().amax((1, 2))[:, None]  # a block of low rank
        if is_exhausted.any():
            norm = norm.masked_fill(is_exhausted, 0)
            Q[:, j + 1] = torch.where(is_exhausted, draw_direction(Q[:, :j + 1]), Q[:, j + 1])
    return norm


def _draw_direction(Q, mask, generator):
    """Unit vectors (blocks, size), zero outside the mask and orthogonal to the rows of Q (blocks, vectors, size)."""
    q = torch.randn(mask.shape[1], dtype=mask.dtype, generator=generator) * mask
    for _ in range(2):
        q = q - torch.bmm(torch.bmm(Q, q[:, :, None]).mT, Q)[:, 0]
    return q / q.norm(dim=1, keepdim=True)


@contextmanager
def _one_thread_on_the_cpu():
    """Thousands of small decompositions are faster on one thread than on several that wait for each other."""
    nb_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.device("cpu"):  # whatever the default device is
            yield
    finally:
        torch.set_num_threads(nb_threads)


# ---- initialisations: {parameter name: tensor} of a layer ----

def realise_glorot_uniform_matrix(input_dims, output_dims, statespace_dim):
    """The paper's: a dense Glorot-uniform matrix is drawn and realised, in about O(n³) operations."""
    n, nb_outputs = sum(input_dims), sum(output_dims)
    bias = get_random_glorot_uniform_matrix((nb_outputs,))
    matrix = get_random_glorot_uniform_matrix((nb_outputs, n), dtype=torch.float64)
    return dict(realise(matrix, input_dims, output_dims, statespace_dim), bias=bias)


def draw_state_matrices(input_dims, output_dims, statespace_dim):
    """Drawn at random in O(n), like what realise_glorot_uniform_matrix finds in O(n³), see VARIANCE_FACTOR above.

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

    stages = {}
    for A, B, C in ("ABC", "EFG"):
        stages[A] = fall * torch.linalg.qr(torch.randn(K, d, d)).Q
        stages[B] = scale * torch.randn(K, d, m)
        stages[C] = scale * torch.randn(K, p, d)
    stages["D"] = torch.empty(K, p, m).uniform_(-math.sqrt(3 * variance), math.sqrt(3 * variance))
    for name, shapes in get_stage_shapes(input_dims, output_dims, statespace_dim).items():
        stages[name] *= get_used_entries(shapes, stages[name].shape)
    return dict(stages, bias=get_random_glorot_uniform_matrix((sum(output_dims),)))


INITIALISATIONS = {"realisation": realise_glorot_uniform_matrix, "direct": draw_state_matrices,
                   "zeros": lambda *sizes: {}}  # for layers whose parameters are set afterwards
