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
def set_chunks(monkeypatch):
    """Function that makes the layers built after it use chunks of at least so many inputs, or as they come if None."""
    def set_chunk_size(chunk_size):
        if chunk_size is not None:
            monkeypatch.setattr(semiseparablemodels, "LARGEST_DENSE_SIZE", 0)
            monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE", chunk_size)
            monkeypatch.setattr(semiseparablemodels, "CHUNK_SIZE_PER_STATE", 0)
    return set_chunk_size
