"""How far the fast realisation of a random matrix is from the one by full singular value decompositions.

    python tests/compare_realisations.py [n]

prints the largest difference between the entries of the two represented matrices, and both times; n = 500 if omitted.
test_semiseparablemodels.py checks the same at n = 150.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from semiseparablemodels import (SemiseparableLayer, get_random_glorot_uniform_matrix, hankel_svds,  # noqa: E402
                                 hankel_svds_of_random_matrix, realise)

n, d = int(sys.argv[1]) if len(sys.argv) > 1 else 500, 5
torch.manual_seed(0)
matrix = get_random_glorot_uniform_matrix((n, n), dtype=torch.float64)
layer = SemiseparableLayer(n, d, initialisation="zeros", dtype=torch.float64)
represented = []
for svds in (hankel_svds_of_random_matrix, hankel_svds):
    start = time.perf_counter()
    layer.load_state_dict({**realise(matrix, 1, layer.state_dims, svds), "bias": torch.zeros(n)})
    print(f"{svds.__name__}: {time.perf_counter() - start:.1f} s")
    represented.append(layer.to_matrix().detach())
print(f"n = {n}, d = {d}: largest difference {(represented[0] - represented[1]).abs().max().item():.1e}")
