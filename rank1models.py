"""The nets of the benchmark with a hidden matrix of rank 1: the lower end of what structure can save."""

import torch
from torch import nn

from checks import check_integers
from realisation import get_random_glorot_uniform_matrix
from standardmodels import ConvNet, FeedForwardNet


class Rank1Layer(nn.Module):
    """y = (u v1) v2 + bias: a weight matrix of rank 1; (..., size) -> (..., output_size).

    v1 (size, 1), v2 (1, output_size) and bias (output_size,) are Glorot-uniform; output_size None means size.

    :raises ValueError: a size is not a positive integer
    """

    def __init__(self, size, output_size=None, bias=True, *, device=None, dtype=None):
        super().__init__()
        output_size = size if output_size is None else output_size
        check_integers(size=size, output_size=output_size)
        self.size, self.output_size = size, output_size
        self.v1 = nn.Parameter(torch.empty(size, 1, device=device, dtype=dtype))
        self.v2 = nn.Parameter(torch.empty(1, output_size, device=device, dtype=dtype))
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
        return f"size={self.size}, output_size={self.output_size}, bias={self.bias is not None}"


class Rank1THLFFNN(FeedForwardNet):
    """Net for vectors with two hidden layers of neurons, joined by a matrix of rank 1: the benchmark's `rank_1`.

    :param nb_hidden_layers: see StandardTHLFFNN
    """

    def __init__(self, input_size, output_size, hidden_layer_size, *, nb_hidden_layers=2, device=None, dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size,
                         lambda: Rank1Layer(hidden_layer_size, device=device, dtype=dtype), nb_hidden_layers,
                         device=device, dtype=dtype)


class Rank1THLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by a matrix of rank 1; parameters as above."""

    def __init__(self, input_shape, output_size, hidden_layer_size, *, nb_hidden_layers=2, device=None, dtype=None):
        super().__init__(input_shape, lambda nb_features: Rank1THLFFNN(
            nb_features, output_size, hidden_layer_size, nb_hidden_layers=nb_hidden_layers, device=device,
            dtype=dtype), device=device, dtype=dtype)
