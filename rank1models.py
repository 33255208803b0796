"""The nets of the benchmark with a hidden matrix of rank 1: the lower end of what structure can save."""

import torch
from torch import nn

from checks import check_features, check_positive_integers
from realisation import get_random_glorot_uniform_matrix
from standardmodels import ConvNet, FeedForwardNet


class Rank1Layer(nn.Module):
    """y = (u v1) v2 + bias: a square layer with a weight matrix of rank 1; (..., size) -> (..., size).

    v1 (size, 1), v2 (1, size) and bias (size,) are Glorot-uniform.

    :raises ValueError: size is not a positive integer, or an input of another size or dtype
    """

    def __init__(self, size, *, device=None, dtype=None):
        super().__init__()
        check_positive_integers(size=size)
        self.size = size
        self.v1 = nn.Parameter(torch.empty(size, 1, device=device, dtype=dtype))
        self.v2 = nn.Parameter(torch.empty(1, size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Draw all parameters anew, on the CPU's generator whatever their device."""
        for parameter in (self.v1, self.v2, self.bias):
            parameter.copy_(get_random_glorot_uniform_matrix(parameter.shape))

    def forward(self, u):
        check_features(u, self.size, self.bias.dtype)
        return u @ self.v1 @ self.v2 + self.bias

    def extra_repr(self):
        return f"size={self.size}"


class Rank1THLFFNN(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by a matrix of rank 1: the benchmark's `rank_1`."""

    def __init__(self, input_size, output_size, hidden_layer_size, *, device=None, dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size,
                         [Rank1Layer(hidden_layer_size, device=device, dtype=dtype)], device=device, dtype=dtype)


class Rank1THLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by a matrix of rank 1."""

    def __init__(self, input_shape, output_size, hidden_layer_size, *, device=None, dtype=None):
        super().__init__(input_shape, lambda nb_features: Rank1THLFFNN(
            nb_features, output_size, hidden_layer_size, device=device, dtype=dtype), device=device, dtype=dtype)
