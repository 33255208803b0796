"""The nets of the benchmark, here with a dense hidden layer. The other two families differ in that layer only.

    vectors:  Linear(input_size, h) -> ReLU -> hidden layer h x h -> ReLU -> Linear(h, output_size) -> Softmax
    images:   ConvFeatureExtractorBase -> the net for vectors

`FeedForwardNet` and `ConvNet` take the hidden layer as an argument: `nn.Linear` here, `SemiseparableLayer` in
semiseparablemodels.py, `Rank1Layer` in rank1models.py. All nets return class probabilities.
"""

import torch
from torch import nn

from checks import check_integers
from realisation import get_random_glorot_uniform_matrix


class FeedForwardNet(nn.Module):
    """Net for vectors with given hidden layers; (..., input_size) -> class probabilities (..., output_size).

    :param make_hidden_layer: function without arguments that makes a module from hidden_layer_size to as many neurons
    :param nb_hidden_layers: hidden layers of neurons, which are joined by one matrix less
    :raises ValueError: a size that is not a positive integer
    """

    def __init__(self, input_size, output_size, hidden_layer_size, make_hidden_layer, nb_hidden_layers=2, *,
                 device=None, dtype=None):
        super().__init__()
        check_integers(input_size=input_size, output_size=output_size, hidden_layer_size=hidden_layer_size,
                       nb_hidden_layers=nb_hidden_layers)
        # First the hidden layers, so that the seed of a run gives them the same weights as ever.
        hidden_layers = [make_hidden_layer() for _ in range(nb_hidden_layers - 1)]
        self.input_layer = nn.Linear(input_size, hidden_layer_size, device=device, dtype=dtype)
        self.hidden_layers = nn.ModuleList(hidden_layers)
        self.output_layer = nn.Linear(hidden_layer_size, output_size, device=device, dtype=dtype)

    def forward(self, X):
        return torch.softmax(self.scores(X), dim=-1)

    def scores(self, X):
        """What the softmax is applied to, (..., output_size)."""
        h = torch.relu(self.input_layer(X))
        for hidden_layer in self.hidden_layers:
            h = torch.relu(hidden_layer(h))
        return self.output_layer(h)


class ConvFeatureExtractorBase(nn.Module):
    """The convolutional part of the nets for images; (..., channels, height, width) -> (..., out_dim).

    Conv 5 channels, kernel 5, stride 2 -> ReLU -> AvgPool 2 -> Conv 10 channels, kernel 5 -> ReLU -> AvgPool 2.
    `out_dim` is 10 for images of 28 x 28 and of 32 x 32.

    :param sample_input: one image (channels, height, width) or a batch of them; only its shape matters
    :raises ValueError: not an image of 1 to 3 channels, or one too small for the two convolutions
    """

    def __init__(self, sample_input, *, device=None, dtype=None):
        super().__init__()
        self.image_shape = tuple(sample_input.shape[-3:])
        if len(self.image_shape) != 3 or not 1 <= self.image_shape[0] <= 3:
            raise ValueError(f"expected images (channels, height, width) with 1 to 3 channels, got "
                             f"{tuple(sample_input.shape)}; X.transpose(0, 3, 1, 2) puts channels first that are last")
        if min(self.image_shape[1:]) < 27:
            raise ValueError(f"images of {self.image_shape[1]} x {self.image_shape[2]} are too small for the two "
                             f"convolutions, which need 27 x 27; X.reshape(len(X), -1) makes vectors of them")
        self.layers = nn.Sequential(
            nn.Conv2d(self.image_shape[0], 5, kernel_size=5, stride=2, device=device, dtype=dtype), nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(5, 10, kernel_size=5, device=device, dtype=dtype), nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten())
        with torch.no_grad():
            self.out_dim = self.layers(torch.zeros(1, *self.image_shape, device=device, dtype=dtype)).shape[1]

    def forward(self, X):
        if tuple(X.shape[-3:]) != self.image_shape:
            raise ValueError(f"expected images (..., {', '.join(map(str, self.image_shape))}), got {tuple(X.shape)}; "
                             f"X.transpose(0, 3, 1, 2) puts channels first that are last")
        features = self.layers(X.reshape(-1, *self.image_shape))  # Conv2d takes one batch dimension
        return features.reshape(*X.shape[:-3], self.out_dim)


class ConvNet(nn.Module):
    """Net for images: the feature extractor, then a net for vectors on its features.

    :param input_shape: (channels, height, width) of one image
    :param make_vector_net: function from the number of features to the net for vectors
    """

    def __init__(self, input_shape, make_vector_net, *, device=None, dtype=None):
        super().__init__()
        self.feature_extractor = ConvFeatureExtractorBase(torch.empty(input_shape, device="meta"),
                                                          device=device, dtype=dtype)
        self.vector_net = make_vector_net(self.feature_extractor.out_dim)

    def forward(self, X):
        return self.vector_net(self.feature_extractor(X))

    def scores(self, X):
        """What the softmax is applied to, (..., output_size)."""
        return self.vector_net.scores(self.feature_extractor(X))


class StandardFFNN(FeedForwardNet):
    """Net for vectors with dense layers; `nb_hidden_layers` of `hidden_layer_size` neurons each.

    :param scale: factor of Glorot-uniform hidden matrices, with which they start; None: they start as torch draws them
    """

    def __init__(self, input_size, output_size, hidden_layer_size, nb_hidden_layers, *, scale=None, device=None,
                 dtype=None):
        def make_hidden_layer():
            layer = nn.Linear(hidden_layer_size, hidden_layer_size, device=device, dtype=dtype)
            if scale is not None:
                with torch.no_grad():
                    layer.weight.copy_(scale * get_random_glorot_uniform_matrix(layer.weight.shape))
            return layer
        super().__init__(input_size, output_size, hidden_layer_size, make_hidden_layer, nb_hidden_layers,
                         device=device, dtype=dtype)


class StandardSLFFNN(StandardFFNN):
    """StandardFFNN with one hidden layer of neurons."""

    def __init__(self, input_size, output_size, hidden_layer_size, *, device=None, dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size, 1, device=device, dtype=dtype)


class StandardTHLFFNN(StandardFFNN):
    """StandardFFNN with two hidden layers of neurons, joined by one dense matrix: the benchmark's `standard_nn`.

    :param scale: see StandardFFNN; the benchmark's `standard_scaled_p`
    :param nb_hidden_layers: another number than the paper's two
    """

    def __init__(self, input_size, output_size, hidden_layer_size, *, scale=None, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_size, output_size, hidden_layer_size, nb_hidden_layers, scale=scale, device=device,
                         dtype=dtype)


class StandardTHLConvNet(ConvNet):
    """Net for images with two hidden layers of neurons, joined by a dense matrix; parameters as above."""

    def __init__(self, input_shape, output_size, hidden_layer_size, *, scale=None, nb_hidden_layers=2, device=None,
                 dtype=None):
        super().__init__(input_shape, lambda nb_features: StandardTHLFFNN(
            nb_features, output_size, hidden_layer_size, scale=scale, nb_hidden_layers=nb_hidden_layers,
            device=device, dtype=dtype), device=device, dtype=dtype)
