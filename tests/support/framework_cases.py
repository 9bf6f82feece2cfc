"""One small problem for all frameworks: networks, images, labels, text embeddings; and the examples in the documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tiny_networks import TinyConvNet
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
CLASSES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
MAXIMUM_LINES = 15


def networks(student_width: int = 5, teacher_width: int = 7) -> tuple[TinyConvNet, TinyConvNet]:
    """A student and a teacher, the same ones in each call."""
    return TinyConvNet(width=student_width, seed=1), TinyConvNet(width=teacher_width, seed=2)


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 16, 16), normalised, and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (size, 3, 16, 16), generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (levels / 255 - mean) / std, torch.randint(0, len(CLASSES), (size,), generator=generator)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of a module's trainable parameters; every one must have one."""
    found = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values()), found
    return found


def example(document: str, block: int = 0) -> str:
    """A code block of a document in docs/, which must be short enough to be read at once."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert len(blocks[block].strip().splitlines()) <= MAXIMUM_LINES
    return str(blocks[block])


def run_example(document: str, names: dict[str, Any], block: int = 0) -> dict[str, Any]:
    """Runs a code block of a document as it stands, with what the reader is said to have; returns all names."""
    exec(compile(example(document, block), document, "exec"), names)
    return names
