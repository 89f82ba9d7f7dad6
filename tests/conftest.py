"""Every test starts from the same seed and runs on one thread, so that results do not depend on their order."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
