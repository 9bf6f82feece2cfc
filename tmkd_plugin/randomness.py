"""Every random draw as a function of (seed, purpose, indices), never of the state of a global generator.

The purpose names what is drawn ("augmentation", "feature noise"), the indices say which one (epoch, step). So nothing
has to be saved to resume a run exactly, and no draw depends on what else was drawn before it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Returns a 63-bit seed that depends on all arguments and on nothing else."""
    key = repr((int(seed), purpose, tuple(int(index) for index in indices)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Returns a fresh CPU generator for one purpose; draws made on the CPU are the same on every machine."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


@contextlib.contextmanager
def forked_random_state(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seeds the global CPU generator inside the block and restores it afterwards.

    For code that knows only the global generator, such as the initialisers of torchvision's and timm's networks.
    """
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: torch.manual_seed would also reseed the GPUs', which are not restored.
        torch.default_generator.manual_seed(derive_seed(seed, purpose, *indices))
        yield
