import os

# Small products are no faster on several threads, and far slower when other tests run; read when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
import pytest
import torch

import semiseparablemodels


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever a test, or the code that it calls, has set."""
    torch.set_num_threads(1)


@pytest.fixture
def chunk_size(request, monkeypatch):
    """For indirect parametrisation: layers of the test have chunks of at least so many inputs; None: as they come."""
    if request.param is not None:
        monkeypatch.setattr(semiseparablemodels, "LARGEST_DENSE_SIZE", 0)
        monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE", request.param)
        monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE_PER_STATE", 0)
