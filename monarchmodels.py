"""The nets of the benchmark with a Monarch matrix: two block-diagonal matrices and a fixed permutation between them.

Source: Dao et al., *Monarch: Expressive Structured Matrices for Efficient and Accurate Training*, ICML 2022.
"""

import math

import torch
from torch import nn

from checks import check_integers
from realisation import get_random_glorot_uniform_matrix
from standardmodels import ConvNet, FeedForwardNet


class MonarchLayer(nn.Module):
    """y = L P R u + bias; (..., n) -> (..., n'), for b blocks:

        R   b blocks of n'/b x n/b
        P   transposes the grid (b, n'/b) of its outputs
        L   n'/b blocks of b x b

    An entry of the represented matrix is a product of one entry of L and one of R. Both are uniform, so that it starts
    with the variance of a Glorot-uniform matrix; the bias is Glorot-uniform.

    :raises ValueError: sizes that are no positive integers, or that nb_blocks does not divide
    """

    def __init__(self, input_size, nb_blocks, *, output_size=None, bias=True, device=None, dtype=None):
        super().__init__()
        output_size = input_size if output_size is None else output_size
        check_integers(input_size=input_size, nb_blocks=nb_blocks, output_size=output_size)
        if input_size % nb_blocks or output_size % nb_blocks:
            raise ValueError(f"nb_blocks {nb_blocks} must divide both sizes, got {input_size} and {output_size}")
        self.input_size, self.nb_blocks, self.output_size = input_size, nb_blocks, output_size
        b, q = nb_blocks, output_size // nb_blocks
        self.R = nn.Parameter(torch.empty(b, q, input_size // b, device=device, dtype=dtype))  # (block, output, input)
        self.L = nn.Parameter(torch.empty(q, b, b, device=device, dtype=dtype))  # likewise
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(output_size, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Draw all parameters anew, from the CPU's generator whatever their device."""
        limit = math.sqrt(3) * (2 / (self.input_size + self.output_size)) ** 0.25  # variance: limit² / 3
        for matrices in (self.R, self.L):
            matrices.copy_(torch.empty(matrices.shape, device="cpu").uniform_(-limit, limit))
        if self.bias is not None:
            self.bias.copy_(get_random_glorot_uniform_matrix(self.bias.shape))

    def forward(self, u):
        blocks = torch.einsum("kqp,...kp->...qk", self.R, u.unflatten(-1, (self.nb_blocks, -1)))  # R, then P
        y = torch.einsum("qsk,...qk->...qs", self.L, blocks).flatten(-2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        names = "input_size", "nb_blocks", "output_size"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names) + f", bias={self.bias is not None}"


class MonarchTHLFFNN(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by a Monarch matrix: the benchmark's `monarch_b`."""

    def __init__(self, input_size, output_size, hidden_layer_size, nb_blocks, *, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size,
                         lambda: MonarchLayer(hidden_layer_size, nb_blocks, device=device, dtype=dtype),
                         nb_hidden_layers, device=device, dtype=dtype)


class MonarchTHLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by a Monarch matrix."""

    def __init__(self, input_shape, output_size, hidden_layer_size, nb_blocks, *, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_shape, lambda nb_features: MonarchTHLFFNN(
            nb_features, output_size, hidden_layer_size, nb_blocks, nb_hidden_layers=nb_hidden_layers, device=device,
            dtype=dtype), device=device, dtype=dtype)
