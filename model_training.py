"""The training protocol of the paper, for any net that returns class probabilities.

15 % of the samples are split off for validation. An epoch shuffles the rest, takes Adam steps on batches of it, then
records loss and accuracy on all of it and the accuracy on the validation part.

Two things make this fast and change nothing but rounding. A batch passes through the net in parts that fit the
processor's cache, whose gradients add up. And where an epoch is one batch, as in the paper, the pass that makes the
gradient of step t + 1 is taken with the weights after step t: its loss and accuracy are those to record after epoch t.
"""

import copy
import math
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional

from checks import check_choice, check_finite_numbers, check_integers

VALIDATION_SHARE = 0.15
# What a forward pass may keep for the backward one, by device: on a CPU what fits its cache, on a GPU what occupies it.
PASS_BYTES = {"cpu": 12 * 2 ** 20, "cuda": 2 ** 30}
SMALLEST_PASS = 1024  # samples; fewer would spend their time on calls


def train_model(model, X_train_np, Y_train_np, learning_rate=1e-3, batch_size=1000, use_Adam=True,
                min_accuracy_improvement=5e-4, patience=10, min_number_training_epochs=200, *,
                max_number_training_epochs=None, softmax_twice=True, restore_best_weights=False, seed=None):
    """Train a net in place, on the device and in the dtype of its parameters.

    Training stops after an epoch if more than min_number_training_epochs and more than 2 patience epochs are done and
    the best of the last `patience` validation accuracies is less than min_accuracy_improvement above the best earlier
    one.

    :param model: module that maps (batch, ...) to class probabilities (batch, classes)
    :param X_train_np: array (N, ...), real numbers; 15 % of it become the validation part
    :param Y_train_np: array (N,), integer labels 0 .. classes - 1
    :param use_Adam: plain stochastic gradient descent if False
    :param max_number_training_epochs: stop there in any case; None as in the paper: no limit
    :param softmax_twice: False: the loss is the cross-entropy of the probabilities themselves
    :param restore_best_weights: True: the net ends with the weights of the first epoch of the best validation accuracy
    :param seed: int from 0 to 2 ** 32 - 1 that the split and all shuffles derive from, so that they repeat; None draws
        one from torch's global generator
    :return: training_loss_history, accuracy_history, val_accuracy_history: lists of floats, one per epoch
    :raises ValueError: samples, labels or hyperparameters that do not fit; softmax_twice=False without net.scores
    :raises FloatingPointError: the training loss is NaN or infinite
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    check_training_hyperparameters(learning_rate, batch_size, use_Adam, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs, softmax_twice,
                                   restore_best_weights)
    seed = torch.randint(2 ** 31, (), device="cpu").item() if seed is None else seed
    training_part, validation_part = train_test_split(np.arange(len(X_train_np)), test_size=VALIDATION_SHARE,
                                                      random_state=seed)
    nb_training = len(training_part)
    X, y = _to_tensors(model, X_train_np, Y_train_np, np.concatenate((training_part, validation_part)))
    predict = _get_predict(model, softmax_twice)

    # The fused implementation does the same arithmetic in one call for all parameters.
    optimizer = (torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True) if use_Adam
                 else torch.optim.SGD(model.parameters(), lr=learning_rate))
    shuffles = torch.Generator().manual_seed(int(seed))  # torch takes no other integers
    pass_size, is_same_in_training = _get_pass_size(model, X), _is_same_in_training(model, X, nb_training, batch_size)
    is_one_batch = bool(batch_size >= nb_training and is_same_in_training)
    histories = [], [], []  # of the training loss, the accuracy, the validation accuracy
    optimizer.zero_grad()  # of what the caller has left
    if is_one_batch:
        evaluate(model, predict, X, y, nb_training, pass_size, add_gradients=True)
    while not _is_finished(histories[2], min_accuracy_improvement, patience, min_number_training_epochs,
                           max_number_training_epochs):
        if is_one_batch:  # its gradient comes from the evaluation before, whatever the order of the samples
            optimizer.step()
        else:
            train_epoch(model, predict, X[:nb_training], y[:nb_training], optimizer, batch_size, shuffles,
                        pass_size if is_same_in_training else int(batch_size))  # statistics are of a whole batch
        optimizer.zero_grad()
        for history, value in zip(histories, evaluate(model, predict, X, y, nb_training, pass_size, is_one_batch)):
            history.append(value)
        if not math.isfinite(histories[0][-1]):
            raise FloatingPointError(f"the training loss is {histories[0][-1]} after epoch {len(histories[0])}; "
                                     f"try a learning_rate below {learning_rate:g}")
        if restore_best_weights and histories[2][-1] > max(histories[2][:-1], default=-1):
            best_weights = copy.deepcopy(model.state_dict())
    if restore_best_weights:
        model.load_state_dict(best_weights)
    return histories


def check_training_hyperparameters(learning_rate, batch_size, use_Adam, min_accuracy_improvement, patience,
                                   min_number_training_epochs, max_number_training_epochs, softmax_twice,
                                   restore_best_weights):
    """Raise ValueError for the first hyperparameter of train_model that is out of range."""
    check_choice("use_Adam", use_Adam, (True, False))
    check_choice("softmax_twice", softmax_twice, (True, False))
    check_choice("restore_best_weights", restore_best_weights, (True, False))
    check_integers(batch_size=batch_size, patience=patience)
    check_integers(0, min_number_training_epochs=min_number_training_epochs)
    if max_number_training_epochs is not None:
        check_integers(max_number_training_epochs=max_number_training_epochs)
    check_finite_numbers(learning_rate=learning_rate, min_accuracy_improvement=min_accuracy_improvement)
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")


def train_epoch(model, predict, X, y, optimizer, batch_size, shuffles, pass_size):
    """One pass over the tensors X (N, ...) and y (N,) in shuffled batches, one step of the optimizer per batch.

    :param predict: the model, or what of it get_loss is applied to
    :param shuffles: torch.Generator on the CPU that the order of the samples is drawn from
    :param pass_size: samples that go through the net at a time
    """
    model.train()
    for batch in torch.randperm(len(X), generator=shuffles, device="cpu").to(X.device).split(int(batch_size)):
        optimizer.zero_grad()
        for part in batch.split(pass_size):
            (get_loss(y[part], predict(X[part])) * (len(part) / len(batch))).backward()
        optimizer.step()


def evaluate(model, predict, X, y, nb_training, pass_size, add_gradients):
    """(loss and accuracy on the first nb_training samples, accuracy on the others or NaN if there are none), floats.

    :param add_gradients: add the gradients of the loss to those of the parameters; the others as for train_epoch
    """
    loss, is_right = torch.zeros((), device=X.device), []
    for start, X_part, y_part in zip(range(0, len(X), pass_size), X.split(pass_size), y.split(pass_size)):
        nb_with_loss = min(max(nb_training - start, 0), len(X_part))
        with _evaluating(model), torch.set_grad_enabled(add_gradients and nb_with_loss > 0):
            y_pred = predict(X_part)
            if nb_with_loss:
                part = get_loss(y_part[:nb_with_loss], y_pred[:nb_with_loss]) * (nb_with_loss / nb_training)
                loss = loss + part.detach()
        if add_gradients and nb_with_loss:
            part.backward()
        is_right.append(y_pred.detach().argmax(1) == y_part)
    is_right = torch.cat(is_right).double()
    return loss.item(), is_right[:nb_training].mean().item(), is_right[nb_training:].mean().item()


def _get_predict(model, softmax_twice):
    """The net, or the net up to its softmax: get_loss of that is the cross-entropy of the probabilities, whose
    logarithms would have no gradient where one is rounded to 0, as happens with raw inputs."""
    if not softmax_twice and not hasattr(model, "scores"):
        raise ValueError(f"softmax_twice=False needs a net with a method scores, softmax left out; got {type(model)}")
    return model if softmax_twice else model.scores


@contextmanager
def _evaluating(model):
    """The model in evaluation mode, and afterwards in its own again."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _is_same_in_training(model, X, nb_training, batch_size):
    """Whether a net gives the same in training and in evaluation mode, so has no dropout and no batch statistics."""
    X = X[:SMALLEST_PASS]
    with _evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[X.device] if X.is_cuda else []):
        # Batch statistics change, those of the copy; what prune derives can be copied after a pass without gradients.
        expected, probe = model(X), copy.deepcopy(model).train()
        try:
            if (nb_training - 1) % batch_size == 0:
                probe(X[:1])
        except ValueError as problem:
            raise ValueError(f"batch_size {batch_size} leaves a last batch of one sample; try another") from problem
        return torch.equal(probe(X), expected)


def _get_pass_size(model, X):
    """Number of samples that fill PASS_BYTES with what their forward pass keeps for the backward one."""
    def get_nb_bytes(nb_samples):
        samples = X[:1].expand(nb_samples, *X.shape[1:])
        sizes = [samples.nbytes]
        with _evaluating(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: sizes.append(tensor.nbytes), lambda size: size):
            model(samples)
        return sum(sizes)

    nb_bytes_per_sample = get_nb_bytes(2) - get_nb_bytes(1)  # parameters, kept as well, cancel out
    return max(SMALLEST_PASS, PASS_BYTES.get(X.device.type, PASS_BYTES["cuda"]) // nb_bytes_per_sample)


def _is_finished(history, min_accuracy_improvement, patience, min_number_training_epochs, max_number_training_epochs):
    limit = math.inf if max_number_training_epochs is None else max_number_training_epochs
    return len(history) >= limit or len(history) > max(min_number_training_epochs, 2 * patience) and (
        max(history[-patience:]) < max(history[:-patience]) + min_accuracy_improvement)


def get_loss(y_true, y_pred):
    """Mean cross-entropy, a tensor with one entry, of labels (N,) and class probabilities (N, classes), tensors."""
    # As in the paper's protocol: the nets end in a softmax, and cross_entropy applies another one.
    return functional.cross_entropy(y_pred, y_true)


def get_accuracy_score(y_true, y_pred):
    """Share (float) of labels (N,) that are the most probable class in y_pred (N, classes); tensors or arrays."""
    return (torch.as_tensor(y_pred).argmax(1) == torch.as_tensor(y_true)).double().mean().item()


def get_loss_and_accuracy(model, X, y_true, *, softmax_twice=True):
    """(loss, accuracy) of a model on samples X (N, ...) with labels y_true (N,), arrays or tensors; floats.

    :param softmax_twice: as train_model's
    :raises ValueError: samples or labels that do not fit
    """
    X, y_true = _to_tensors(model, X, y_true, np.arange(len(X)))
    predict = _get_predict(model, softmax_twice)
    return evaluate(model, predict, X, y_true, len(X), _get_pass_size(model, X), add_gradients=False)[:2]


def get_nb_model_parameters(model, count_gradientless_parameters=True):
    """Number (int) of parameters of a model; the padding of SSS layers does not count.

    :param count_gradientless_parameters: whether frozen parameters (requires_grad False) count
    """
    def is_counted(tensor):
        return count_gradientless_parameters or tensor.requires_grad

    # By the tensor: one that two modules share counts once.
    padding_sizes = {tensor: size for module in model.modules()
                     for name, size in getattr(module, "padding_sizes", {}).items()
                     if is_counted(tensor := getattr(module, name))}
    return sum(tensor.numel() for tensor in model.parameters() if is_counted(tensor)) - sum(padding_sizes.values())


def _to_tensors(model, X, y, rows):
    """Those samples and labels, rows an array of int, on the model's device, in its dtype and int64, checked for what
    would fail later or pass unnoticed."""
    parameter = next(model.parameters())
    X, y = _to_tensor(X, rows).to(parameter.device, parameter.dtype), _to_tensor(y, rows).to(parameter.device)
    if not all(torch.isfinite(part).all() for part in X.split(SMALLEST_PASS)):
        raise ValueError("there are samples with NaN or infinite values; remove or replace them")
    with _evaluating(model), torch.no_grad():
        nb_classes = model(X[:1]).shape[1]
    if y.is_floating_point() or y.dim() != 1 or y.min() < 0 or y.max() >= nb_classes:
        raise ValueError(f"labels must be integers of shape (N,), 0 .. {nb_classes - 1}, one per output of the model, "
                         f"got {y[:10].tolist()} of dtype {y.dtype}")
    return X, y.to(torch.int64)


def _to_tensor(values, rows):
    """Some rows of an array or tensor as a tensor without gradient. Arrays are copied, for torch takes no foreign byte
    order, no negative strides, and read-only memory under protest."""
    if isinstance(values, torch.Tensor):
        return values.detach()[rows]
    array = np.asarray(values)
    return torch.from_numpy(np.asarray(array[rows], array.dtype.newbyteorder("="), order="C"))
