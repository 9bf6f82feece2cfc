"""One thread a test process: the tensors are tiny, and pytest-xdist runs one process a core."""

import torch

torch.set_num_threads(1)
