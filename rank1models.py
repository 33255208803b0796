"""The nets of the benchmark with a hidden matrix of low rank: of rank 1, the lower end of what structure can save."""

import torch
from torch import nn

from checks import check_integers
from realisation import get_random_glorot_uniform_matrix
from standardmodels import ConvNet, FeedForwardNet


class Rank1Layer(nn.Module):
    """y = (u v1) v2 + bias: a weight matrix of rank 1, or of another rank; (..., size) -> (..., output_size).

    v1 (size, rank), v2 (rank, output_size) and bias (output_size,) are Glorot-uniform; output_size None means size.

    :raises ValueError: a size or the rank is not a positive integer
    """

    def __init__(self, size, output_size=None, bias=True, *, rank=1, device=None, dtype=None):
        super().__init__()
        output_size = size if output_size is None else output_size
        check_integers(size=size, output_size=output_size, rank=rank)
        self.size, self.output_size, self.rank = size, output_size, rank
        self.v1 = nn.Parameter(torch.empty(size, rank, device=device, dtype=dtype))
        self.v2 = nn.Parameter(torch.empty(rank, output_size, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(output_size, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """Draw all parameters anew, from the CPU's generator whatever their device."""
        for parameter in self.parameters():
            parameter.copy_(get_random_glorot_uniform_matrix(parameter.shape))

    def forward(self, u):
        y = u @ self.v1 @ self.v2
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        return f"size={self.size}, output_size={self.output_size}, rank={self.rank}, bias={self.bias is not None}"


class Rank1THLFFNN(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by a matrix of low rank: the benchmark's `rank_r`.

    :param nb_hidden_layers: see StandardTHLFFNN
    """

    def __init__(self, input_size, output_size, hidden_layer_size, *, rank=1, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size,
                         lambda: Rank1Layer(hidden_layer_size, rank=rank, device=device, dtype=dtype),
                         nb_hidden_layers, device=device, dtype=dtype)


class Rank1THLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by a matrix of low rank; parameters as above."""

    def __init__(self, input_shape, output_size, hidden_layer_size, *, rank=1, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_shape, lambda nb_features: Rank1THLFFNN(
            nb_features, output_size, hidden_layer_size, rank=rank, nb_hidden_layers=nb_hidden_layers, device=device,
            dtype=dtype), device=device, dtype=dtype)
