"""How many arms can train side by side: what an arm keeps between its steps, and what the device has left."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from tmkd_plugin.training.group_memory import free_in_groups
from tmkd_plugin.training.isolation import shares_teacher

SHARE = 0.5
"""The share of the free memory that arms may take; the rest is for activations, batches and whatever else runs."""
_COPIES_OF_A_WEIGHT = 4
"""Weight, gradient, momentum and the best epoch's copy."""


def arm_bytes(distiller: nn.Module) -> int:
    """Returns the bytes that an arm keeps between its steps; activations are there in one arm at a time.

    Args:
        distiller: What it trains; its teacher counts only where the arm has one of its own, since the others share its tensors.
    """
    teacher = getattr(distiller, "teacher", None)
    of_teacher: dict[int, Tensor] = {}
    if isinstance(teacher, nn.Module):
        of_teacher = {id(tensor): tensor for tensor in (*teacher.parameters(), *teacher.buffers())}
    total = 0
    if not shares_teacher(distiller):
        total += sum(tensor.numel() * tensor.element_size() for tensor in of_teacher.values())
    for tensor in {id(tensor): tensor for tensor in (*distiller.parameters(), *distiller.buffers())}.values():
        if id(tensor) not in of_teacher:
            copies = _COPIES_OF_A_WEIGHT if tensor.requires_grad else 2
            total += copies * tensor.numel() * tensor.element_size()
    return total


def free_bytes(device: str | torch.device) -> float:
    """Returns the free memory of a device; infinity where it can't be found out."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    return min(_of_machine(), free_in_groups())


def fits(arms: float, free: float) -> bool:
    """Says whether arms of so many bytes together may be held where ``free`` bytes are free."""
    return arms <= SHARE * free


def _of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return float(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return math.inf
