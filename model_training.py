"""The training protocol of the paper, for any net that returns class probabilities.

15 % of the samples are split off for validation. An epoch shuffles the rest, takes Adam steps on batches of it, then
records loss and accuracy on all of it and the accuracy on the validation part. Training stops once the validation
accuracy has not improved for `patience` epochs; the weights of the last epoch stay.
"""

import math

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch.nn import functional

from checks import check_finite_numbers, check_positive_integers

VALIDATION_SHARE = 0.15
EVALUATION_BATCH_SIZE = 8192  # samples per forward pass without gradients; bounds the memory of evaluation


def train_model(model, X_train_np, Y_train_np, learning_rate=1e-3, batch_size=1000, use_Adam=True,
                min_accuracy_improvement=5e-4, patience=10, min_number_training_epochs=200, *,
                max_number_training_epochs=None, seed=None):
    """Train a net in place, on the device and in the dtype of its parameters.

    Training stops after an epoch if more than min_number_training_epochs and more than 2 patience epochs are done and
    the best of the last `patience` validation accuracies is less than min_accuracy_improvement above the best earlier
    one.

    :param model: module that maps (batch, ...) to class probabilities (batch, classes)
    :param X_train_np: array (N, ...), real numbers; 15 % of it become the validation part
    :param Y_train_np: array (N,), integer labels 0 .. classes - 1
    :param use_Adam: plain stochastic gradient descent if False
    :param max_number_training_epochs: stop there in any case; None as in the paper: no limit
    :param seed: int that the split and all shuffles derive from, so that they repeat; None draws one from torch's
        global generator
    :return: training_loss_history, accuracy_history, val_accuracy_history: lists of floats, one per epoch
    :raises ValueError: samples or labels that do not fit, see _to_tensors, and hyperparameters that are out of range
    :raises FloatingPointError: the training loss is NaN or infinite
    """
    check_training_hyperparameters(learning_rate, batch_size, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs)
    X, y = _to_tensors(model, X_train_np, Y_train_np)
    if len(X) < 2:
        raise ValueError(f"{len(X)} samples are too few to split off {VALIDATION_SHARE:.0%} for validation")
    if seed is None:
        seed = torch.randint(2 ** 31, (), device="cpu").item()
    training_part, validation_part = train_test_split(np.arange(len(X)), test_size=VALIDATION_SHARE, random_state=seed)
    # The training part first, so that both parts are evaluated in one forward pass.
    order = torch.from_numpy(np.concatenate((training_part, validation_part))).to(X.device)
    X, y, nb_training = X[order], y[order], len(training_part)

    # The fused implementation does the same arithmetic in one call for all parameters.
    optimizer = (torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True) if use_Adam
                 else torch.optim.SGD(model.parameters(), lr=learning_rate))
    shuffles = torch.Generator().manual_seed(seed)
    training_loss_history, accuracy_history, val_accuracy_history = [], [], []
    while not _is_finished(val_accuracy_history, min_accuracy_improvement, patience, min_number_training_epochs,
                           max_number_training_epochs):
        train_epoch(model, X[:nb_training], y[:nb_training], optimizer, batch_size, shuffles)
        y_pred = predict(model, X)
        loss = get_loss(y[:nb_training], y_pred[:nb_training]).item()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} after epoch {len(accuracy_history) + 1}; "
                                     f"try a learning_rate below {learning_rate:g}")
        training_loss_history.append(loss)
        accuracy_history.append(get_accuracy_score(y[:nb_training], y_pred[:nb_training]))
        val_accuracy_history.append(get_accuracy_score(y[nb_training:], y_pred[nb_training:]))
    return training_loss_history, accuracy_history, val_accuracy_history


def check_training_hyperparameters(learning_rate, batch_size, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs):
    """Raise ValueError for the first hyperparameter of train_model that is out of range."""
    check_positive_integers(batch_size=batch_size, patience=patience)
    if max_number_training_epochs is not None:
        check_positive_integers(max_number_training_epochs=max_number_training_epochs)
    check_finite_numbers(learning_rate=learning_rate, min_accuracy_improvement=min_accuracy_improvement,
                         min_number_training_epochs=min_number_training_epochs)
    if min_number_training_epochs < 0:
        raise ValueError(f"min_number_training_epochs must be 0 or more, got {min_number_training_epochs!r}")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")


def train_epoch(model, X, y, optimizer, batch_size, shuffles):
    """One pass over the tensors X (N, ...) and y (N,) in shuffled batches, one step of the optimizer per batch.

    :param shuffles: torch.Generator on the CPU that the order of the samples is drawn from
    """
    model.train()
    for batch in torch.randperm(len(X), generator=shuffles, device="cpu").to(X.device).split(int(batch_size)):
        optimizer.zero_grad()
        get_loss(y[batch], model(X[batch])).backward()
        optimizer.step()


def _is_finished(val_accuracy_history, min_accuracy_improvement, patience, min_number_training_epochs,
                 max_number_training_epochs):
    nb_epochs = len(val_accuracy_history)
    if max_number_training_epochs is not None and nb_epochs >= max_number_training_epochs:
        return True
    if nb_epochs <= max(min_number_training_epochs, 2 * patience):
        return False
    return max(val_accuracy_history[-patience:]) < max(val_accuracy_history[:-patience]) + min_accuracy_improvement


@torch.no_grad()
def predict(model, X):
    """Class probabilities (N, classes) of a tensor X (N, ...): evaluation mode, no gradients, bounded memory."""
    was_training = model.training
    model.eval()
    y_pred = torch.cat([model(part) for part in X.split(EVALUATION_BATCH_SIZE)])
    model.train(was_training)
    return y_pred


def get_loss(y_true, y_pred):
    """Mean cross-entropy, a tensor with one entry, of labels (N,) and class probabilities (N, classes), tensors."""
    # As in the paper's protocol: the nets end in a softmax, and cross_entropy applies another one.
    return functional.cross_entropy(y_pred, y_true)


def get_accuracy_score(y_true, y_pred):
    """Share (float) of labels (N,) that are the most probable class in y_pred (N, classes); tensors or arrays."""
    return (torch.as_tensor(y_pred).argmax(1) == torch.as_tensor(y_true)).double().mean().item()


def get_loss_and_accuracy(model, X, y_true):
    """(loss, accuracy) of a model on samples X (N, ...) with labels y_true (N,), arrays or tensors; floats.

    :raises ValueError: samples or labels that do not fit
    """
    X, y_true = _to_tensors(model, X, y_true)
    y_pred = predict(model, X)
    return get_loss(y_true, y_pred).item(), get_accuracy_score(y_true, y_pred)


def get_nb_model_parameters(model, count_gradientless_parameters=True):
    """Number (int) of parameters of a model; the zero padding of SSS layers does not count.

    :param count_gradientless_parameters: whether frozen parameters (requires_grad False) count
    """
    sizes = {}  # by identity: a parameter that two modules share counts once
    for module in model.modules():
        padding_sizes = getattr(module, "padding_sizes", {})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad or count_gradientless_parameters:
                sizes[id(parameter)] = parameter.numel() - padding_sizes.get(name, 0)
    return sum(sizes.values())


def _to_tensors(model, X, y):
    """Samples and labels on the model's device, in its dtype and int64, checked for all that would fail later."""
    parameter = next(model.parameters())
    # Arrays are copied: joblib hands out read-only ones, which torch must not share.
    X, y = (data if isinstance(data, torch.Tensor) else torch.tensor(np.asarray(data)) for data in (X, y))
    X = X.to(parameter.device, parameter.dtype)
    if X.dim() < 2:
        raise ValueError(f"samples must have shape (N, ...) with one feature or more, got {tuple(X.shape)}")
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers of shape (N,), got dtype {y.dtype} and shape {tuple(y.shape)}")
    y = y.to(parameter.device, torch.int64)
    if len(X) != len(y):
        raise ValueError(f"{len(X)} samples, but {len(y)} labels")
    if len(X) == 0:
        raise ValueError("no samples")
    finite = torch.isfinite(X.flatten(1)).all(1)
    if not finite.all():
        raise ValueError(f"X has {len(X) - int(finite.sum())} of {len(X)} samples with NaN or infinite values, "
                         f"the first is sample {int((~finite).nonzero()[0])}; remove or replace them")
    nb_classes = predict(model, X[:1]).shape[1]
    if y.min() < 0 or y.max() >= nb_classes:
        raise ValueError(f"labels must be 0 .. {nb_classes - 1}, one per output of the model, "
                         f"got {int(y.min())} .. {int(y.max())}")
    return X, y
