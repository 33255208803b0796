import pytest

import benchmark
from datasets import load_digits_data

TINY_SWEEP = dict(
    dataset_loading_functions=[load_digits_data], model_names=["standard_nn", "ss_2_dim", "rank_1"], nb_iterations=2,
    nb_neurons_list=[6], training_set_shares=[0.05], min_number_training_epochs=0, max_number_training_epochs=3,
    nb_jobs=1)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A function that runs benchmark.main() on a tiny sweep in tmp_path, with the hyperparameters that it is given."""
    def run(**hyperparameters):
        for name, value in {**TINY_SWEEP, "result_file": tmp_path / "benchmark_result.p", **hyperparameters}.items():
            assert hasattr(benchmark, name)
            monkeypatch.setattr(benchmark, name, value)
        return benchmark.main()
    return run
