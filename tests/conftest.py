import pytest
import torch


@pytest.fixture
def one_thread():
    """Small products are no faster on several threads, and far slower when other programs run."""
    nb_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(nb_threads)
