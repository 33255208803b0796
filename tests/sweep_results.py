"""Results as sweeps leave them, made up, for tests of tables and figures."""
import itertools
import math

SIZES = {"standard_nn": 3910, "ss_1_dim": 1752, "ss_2_dim": 2220, "ss_3_dim": 2848, "ss_4_dim": 3620,
         "ss_5_dim": 4520, "rank_1": 1510}
NAN = math.nan


def make_run(test_accuracy, size=100, history=(0.1, 0.3, 0.5, 0.7), val_history=(0.1, 0.2, 0.3, 0.4)):
    return {"accuracy_history": list(history), "val_accuracy_history": list(val_history), "test_loss": 2.0,
            "test_accuracy": test_accuracy, "training_time": 0.5, "nb_model_parameters": size}


def make_results(datasets=("digits",), shares=(0.1,), neurons=(50,), models=tuple(SIZES), nb_iterations=3):
    """A complete sweep; every run has another accuracy."""
    results = {"dataset_names": list(datasets), "training_set_shares": list(shares), "nb_neurons_list": list(neurons),
               "model_names": list(models), "nb_iterations": nb_iterations, "failures": []}
    accuracies = (0.4 + 0.5 * (0.618 * i % 1) for i in itertools.count(1))
    for dataset in datasets:
        results[dataset] = {share: {model: {h: {
            iteration: make_run(next(accuracies), size=SIZES.get(model, 1000) * h // 50)
            for iteration in range(nb_iterations)} for h in neurons} for model in models} for share in shares}
    return results


def make_failure(reason, **where):
    return {**dict.fromkeys(("dataset", "share", "model_name", "nb_neurons", "iteration")), **where, "reason": reason}


def set_accuracies(results, **accuracies):
    """Give families of the first block these test accuracies, one run each."""
    block = results[results["dataset_names"][0]][results["training_set_shares"][0]]
    for model, values in accuracies.items():
        block[model] = {results["nb_neurons_list"][0]: {
            i: make_run(value, size=SIZES.get(model, 1000)) for i, value in enumerate(values)}}
