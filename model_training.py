"""The training protocol of the paper, for any net that returns class probabilities.

15 % of the samples are split off for validation. An epoch shuffles the rest, takes Adam steps on batches of it, then
records loss and accuracy on all of it and the accuracy on the validation part. Training stops once the validation
accuracy has not improved for `patience` epochs; the weights of the last epoch stay.

Two things make this fast and change nothing but rounding. A batch passes through the net in parts that fit the
processor's cache, whose gradients add up. And where an epoch is one batch, as in the paper, the pass that makes the
gradient of step t + 1 is taken with the weights after step t: its loss and accuracy are those to record after epoch t.
"""

import copy
import math
import re
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from checks import check_choice, check_finite_numbers, check_positive_integers, check_seed, to_tensor

VALIDATION_SHARE = 0.15
# What a forward pass may keep for the backward one, by device: on a CPU what fits its cache, on a GPU what occupies it.
PASS_BYTES = {"cpu": 12 * 2 ** 20, "cuda": 2 ** 30}
SMALLEST_PASS = 1024  # samples; fewer would spend their time on calls


def train_model(model, X_train_np, Y_train_np, learning_rate=1e-3, batch_size=1000, use_Adam=True,
                min_accuracy_improvement=5e-4, patience=10, min_number_training_epochs=200, *,
                max_number_training_epochs=None, standardise_inputs=False, softmax_twice=True, seed=None):
    """Train a net in place, on the device and in the dtype of its parameters.

    Training stops after an epoch if more than min_number_training_epochs and more than 2 patience epochs are done and
    the best of the last `patience` validation accuracies is less than min_accuracy_improvement above the best earlier
    one.

    :param model: module that maps (batch, ...) to class probabilities (batch, classes)
    :param X_train_np: array (N, ...), real numbers; 15 % of it become the validation part
    :param Y_train_np: array (N,), integer labels 0 .. classes - 1
    :param use_Adam: plain stochastic gradient descent if False
    :param max_number_training_epochs: stop there in any case; None as in the paper: no limit
    :param standardise_inputs: train on inputs whose features, or channels of images (axis 1), have mean 0 and
        deviation 1 over the training part; constant ones become 0. The weights given apply to such inputs; those that
        come of it to inputs as they are, for the first layer takes the standardisation over.
    :param softmax_twice: False: the loss is the cross-entropy of the probabilities themselves
    :param seed: int from 0 to 2 ** 32 - 1 that the split and all shuffles derive from, so that they repeat; None draws
        one from torch's global generator
    :return: training_loss_history, accuracy_history, val_accuracy_history: lists of floats, one per epoch
    :raises ValueError: samples or labels that do not fit, see _to_tensors, hyperparameters that are out of range, and
        nets that cannot be trained with these two switches
    :raises FloatingPointError: the training loss is NaN or infinite
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    check_training_hyperparameters(learning_rate, batch_size, use_Adam, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs, standardise_inputs,
                                   softmax_twice)
    if len(X_train_np) < 2:
        raise ValueError(f"{len(X_train_np)} samples are too few to split off {VALIDATION_SHARE:.0%} for validation")
    if seed is None:
        seed = torch.randint(2 ** 31, (), device="cpu").item()
    check_seed(seed)
    training_part, validation_part = train_test_split(np.arange(len(X_train_np)), test_size=VALIDATION_SHARE,
                                                      random_state=seed)
    nb_training = len(training_part)
    X, y = _to_tensors(model, X_train_np, Y_train_np, np.concatenate((training_part, validation_part)))
    model = model if softmax_twice else _NetWithoutSoftmax(model)

    # The fused implementation does the same arithmetic in one call for all parameters.
    optimizer = (torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True) if use_Adam
                 else torch.optim.SGD(model.parameters(), lr=learning_rate))
    shuffles = torch.Generator().manual_seed(int(seed))  # torch takes no other integers
    pass_size, is_same_in_training = _get_pass_size(model, X), _is_same_in_training(model, X)
    is_one_batch = bool(batch_size >= nb_training and is_same_in_training)
    training_loss_history, accuracy_history, val_accuracy_history = [], [], []
    optimizer.zero_grad()  # of what the caller has left
    with _standardised(model, X, nb_training) if standardise_inputs else nullcontext():
        if is_one_batch:
            evaluate(model, X, y, nb_training, pass_size, add_gradients=True)
        while not _is_finished(val_accuracy_history, min_accuracy_improvement, patience, min_number_training_epochs,
                               max_number_training_epochs):
            if is_one_batch:  # its gradient comes from the evaluation before, whatever the order of the samples
                optimizer.step()
            else:
                train_epoch(model, X[:nb_training], y[:nb_training], optimizer, batch_size, shuffles,
                            pass_size if is_same_in_training else int(batch_size))  # statistics are of a whole batch
            optimizer.zero_grad()
            loss, accuracy, val_accuracy = evaluate(model, X, y, nb_training, pass_size, add_gradients=is_one_batch)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the training loss is {loss} after epoch {len(accuracy_history) + 1}; "
                                         f"try a learning_rate below {learning_rate:g}")
            training_loss_history.append(loss)
            accuracy_history.append(accuracy)
            val_accuracy_history.append(val_accuracy)
    return training_loss_history, accuracy_history, val_accuracy_history


def check_training_hyperparameters(learning_rate, batch_size, use_Adam, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs, standardise_inputs,
                                   softmax_twice):
    """Raise ValueError for the first hyperparameter of train_model that is out of range."""
    for name, value in dict(use_Adam=use_Adam, standardise_inputs=standardise_inputs,
                            softmax_twice=softmax_twice).items():
        check_choice(name, value, (True, False))
    check_positive_integers(batch_size=batch_size, patience=patience)
    if max_number_training_epochs is not None:
        check_positive_integers(max_number_training_epochs=max_number_training_epochs)
    check_finite_numbers(learning_rate=learning_rate, min_accuracy_improvement=min_accuracy_improvement,
                         min_number_training_epochs=min_number_training_epochs)
    if min_number_training_epochs < 0:
        raise ValueError(f"min_number_training_epochs must be 0 or more, got {min_number_training_epochs!r}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")


def train_epoch(model, X, y, optimizer, batch_size, shuffles, pass_size):
    """One pass over the tensors X (N, ...) and y (N,) in shuffled batches, one step of the optimizer per batch.

    :param shuffles: torch.Generator on the CPU that the order of the samples is drawn from
    :param pass_size: samples that go through the net at a time
    """
    model.train()
    for batch in torch.randperm(len(X), generator=shuffles, device="cpu").to(X.device).split(int(batch_size)):
        optimizer.zero_grad()
        for part in batch.split(pass_size):
            (get_loss(y[part], model(X[part])) * (len(part) / len(batch))).backward()
        optimizer.step()


def evaluate(model, X, y, nb_training, pass_size, add_gradients=False):
    """(loss and accuracy on the first nb_training samples, accuracy on the others or NaN if there are none), floats.

    :param X, y: tensors (N, ...) and (N,)
    :param pass_size: samples that go through the net at a time
    :param add_gradients: add the gradients of the loss to those of the parameters
    """
    loss, is_right = torch.zeros((), device=X.device), []
    for start, X_part, y_part in zip(range(0, len(X), pass_size), X.split(pass_size), y.split(pass_size)):
        nb_with_loss = min(max(nb_training - start, 0), len(X_part))
        with _in_mode(model, add_gradients), torch.set_grad_enabled(add_gradients and nb_with_loss > 0):
            y_pred = model(X_part)
            if nb_with_loss:
                part = get_loss(y_part[:nb_with_loss], y_pred[:nb_with_loss]) * (nb_with_loss / nb_training)
                loss = loss + part.detach()
        if add_gradients and nb_with_loss:
            part.backward()
        is_right.append(y_pred.detach().argmax(1) == y_part)
    is_right = torch.cat(is_right).double()
    return loss.item(), is_right[:nb_training].mean().item(), is_right[nb_training:].mean().item()


class _NetWithoutSoftmax(nn.Module):
    """A net up to its softmax; get_loss of its outputs is the cross-entropy of the net's probabilities.

    Logarithms of the probabilities would have no gradient where one is rounded to 0, as happens with raw inputs.
    """

    def __init__(self, net):
        super().__init__()
        if not hasattr(net, "scores") and not (isinstance(net, nn.Sequential) and isinstance(net[-1], nn.Softmax)):
            raise ValueError(f"softmax_twice=False needs a net with a method scores, which returns what its softmax is "
                             f"applied to, or a Sequential that ends in a Softmax, got a {type(net).__name__}")
        self.net = net
        self.train(net.training)

    def forward(self, X):
        return self.net.scores(X) if hasattr(self.net, "scores") else self.net[:-1](X)


@contextmanager
def _standardised(model, X, nb_training):
    """Train the model here on samples X (N, features) or (N, channels, height, width) that are standardised in place.

    Each feature or channel has mean 0 and deviation 1 over the first nb_training samples, and afterwards the model's
    first layer does this itself: the model takes samples as they are, and is one of the same kind and size.

    :raises ValueError: its first layer cannot do that
    """
    from sklearn.preprocessing import StandardScaler  # which leaves the deviation of constant features at 1

    scaler = StandardScaler()
    for part in X[:nb_training].split(SMALLEST_PASS):
        scaler.partial_fit(part.movedim(1, -1).flatten(0, -2).double().cpu().numpy())
    mean, deviation = (torch.from_numpy(statistic).to(X.device).reshape(-1, *[1] * (X.dim() - 2))  # float64
                       for statistic in (scaler.mean_, scaler.scale_))
    _check_first_layer(model, X[:16].double(), mean, deviation)
    for part in X.split(SMALLEST_PASS):
        part.copy_((part.double() - mean) / deviation)
    try:
        yield
    finally:  # also if it is interrupted: the net is used as it is then
        _fold_into_first_layer(model, mean, deviation)


def _get_first_layer(model):
    return next((module for module in model.modules() if next(module.parameters(recurse=False), None) is not None))


@torch.no_grad()
def _fold_into_first_layer(model, mean, deviation):
    """Change the weights so that inputs X give what (X - mean) / deviation has given."""
    layer = _get_first_layer(model)
    weight = layer.weight.double() / deviation  # (outputs, features) or (outputs, channels, height, width)
    layer.weight.copy_(weight)
    layer.bias.copy_(layer.bias.double() - (weight * mean).flatten(1).sum(1))


@torch.no_grad()
def _check_first_layer(model, X, mean, deviation):
    layer, probe = _get_first_layer(model), copy.deepcopy(model).double().eval()
    can_fold = (isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None
                and layer.weight.dim() == X.dim() and layer.weight.shape[1] == X.shape[1])
    if can_fold:
        expected = probe((X - mean) / deviation)
        _fold_into_first_layer(probe, mean, deviation)
        can_fold = torch.allclose(probe(X), expected)  # not if zeros are padded, or another layer comes first
    if not can_fold:
        raise ValueError(f"standardise_inputs needs a net whose first layer is a Linear or Conv2d with bias, without "
                         f"padding and groups, got {layer}; or standardise the samples yourself")


@contextmanager
def _in_mode(model, training):
    """The model in training or in evaluation mode, and afterwards in its own again."""
    was_training = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(was_training)


def _is_same_in_training(model, X):
    """Whether a net gives the same in training and in evaluation mode, so has no dropout and no batch statistics."""
    X, probe = X[:SMALLEST_PASS], copy.deepcopy(model)  # batch statistics change, those of the copy
    with torch.no_grad(), torch.random.fork_rng(devices=[X.device] if X.is_cuda else []):
        return torch.equal(probe.train()(X), probe.eval()(X))


def _get_pass_size(model, X):
    """Number of samples that fill PASS_BYTES with what their forward pass keeps for the backward one."""
    def get_nb_bytes(nb_samples):
        samples = X[:1].expand(nb_samples, *X.shape[1:])
        sizes = [samples.nbytes]
        with _in_mode(model, False), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: sizes.append(tensor.nbytes), lambda size: size):
            model(samples)
        return sum(sizes)

    nb_bytes_per_sample = get_nb_bytes(2) - get_nb_bytes(1)  # parameters, kept as well, cancel out
    return max(SMALLEST_PASS, PASS_BYTES.get(X.device.type, PASS_BYTES["cuda"]) // nb_bytes_per_sample)


def _is_finished(val_accuracy_history, min_accuracy_improvement, patience, min_number_training_epochs,
                 max_number_training_epochs):
    nb_epochs = len(val_accuracy_history)
    if max_number_training_epochs is not None and nb_epochs >= max_number_training_epochs:
        return True
    if nb_epochs <= max(min_number_training_epochs, 2 * patience):
        return False
    return max(val_accuracy_history[-patience:]) < max(val_accuracy_history[:-patience]) + min_accuracy_improvement


def get_loss(y_true, y_pred):
    """Mean cross-entropy, a tensor with one entry, of labels (N,) and class probabilities (N, classes), tensors."""
    # As in the paper's protocol: the nets end in a softmax, and cross_entropy applies another one.
    return functional.cross_entropy(y_pred, y_true)


def get_accuracy_score(y_true, y_pred):
    """Share (float) of labels (N,) that are the most probable class in y_pred (N, classes); tensors or arrays."""
    return (to_tensor("y_pred", y_pred).argmax(1) == to_tensor("y_true", y_true)).double().mean().item()


def get_loss_and_accuracy(model, X, y_true, *, softmax_twice=True):
    """(loss, accuracy) of a model on samples X (N, ...) with labels y_true (N,), arrays or tensors; floats.

    :param softmax_twice: as train_model's
    :raises ValueError: samples or labels that do not fit
    """
    X, y_true = _to_tensors(model, X, y_true)
    model = model if softmax_twice else _NetWithoutSoftmax(model)
    return evaluate(model, X, y_true, len(X), _get_pass_size(model, X))[:2]


def get_nb_model_parameters(model, count_gradientless_parameters=True):
    """Number (int) of parameters of a model; the padding of SSS layers does not count.

    :param count_gradientless_parameters: whether frozen parameters (requires_grad False) count
    """
    # By identity: a parameter that two modules share counts once.
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()
             if parameter.requires_grad or count_gradientless_parameters}
    for module in model.modules():
        for name, padding_size in getattr(module, "padding_sizes", {}).items():
            stacked = getattr(module, name)
            for parameter_name, parameter in module.named_parameters():
                # A itself, or what torch.nn.utils makes of it: A_orig, A_v, parametrizations.A.original
                if (re.fullmatch(rf"(parametrizations\.)?{name}([_.].*)?", parameter_name)
                        and parameter.shape == stacked.shape and id(parameter) in sizes):
                    sizes[id(parameter)] = stacked.numel() - padding_size
    return sum(sizes.values())


def _to_tensors(model, X, y, rows=None):
    """Samples and labels on the model's device, in its dtype and int64, checked for all that would fail later.

    :param rows: array of int, which samples in which order; None: all of them
    """
    if len(X) != len(y):
        raise ValueError(f"{len(X)} samples, but {len(y)} labels")
    if len(X) == 0:
        raise ValueError("no samples")
    rows = np.arange(len(X)) if rows is None else rows
    parameter = next(model.parameters())
    X = to_tensor("samples", X, rows).to(parameter.device, parameter.dtype)
    y = to_tensor("labels", y, rows).to(parameter.device)
    if X.dim() < 2:
        raise ValueError(f"samples must have shape (N, ...) with one feature or more, got {tuple(X.shape)}")
    if y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers of shape (N,), got dtype {y.dtype} and shape {tuple(y.shape)}")
    y = y.to(torch.int64)
    finite = torch.cat([torch.isfinite(part.flatten(1)).all(1) for part in X.split(SMALLEST_PASS)]).cpu().numpy()
    if not finite.all():
        raise ValueError(f"X has {(~finite).sum()} of {len(X)} samples with NaN or infinite values, "
                         f"the first is sample {rows[~finite].min()}; remove or replace them")
    with _in_mode(model, False), torch.no_grad():
        nb_classes = model(X[:1]).shape[1]
    if y.min() < 0 or y.max() >= nb_classes:
        raise ValueError(f"labels must be 0 .. {nb_classes - 1}, one per output of the model, "
                         f"got {int(y.min())} .. {int(y.max())}")
    return X, y
