import pytest
import torch

import semiseparablemodels


@pytest.fixture
def one_thread():
    """Small products are no faster on several threads, and far slower when other programs run."""
    nb_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(nb_threads)


@pytest.fixture
def chunk_size(request, monkeypatch):
    """For indirect parametrisation: layers of the test have chunks of at least so many inputs; None: as they come."""
    if request.param is not None:
        monkeypatch.setattr(semiseparablemodels, "LARGEST_DENSE_SIZE", 0)
        monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE", request.param)
        monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE_PER_STATE", 0)
