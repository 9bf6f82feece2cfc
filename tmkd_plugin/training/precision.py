"""The numbers that networks compute with: float32, or bfloat16 or float16 where that is safe (automatic mixed precision).

Weights, gradients and losses stay in float32. float16 has a small range: its losses are multiplied before the backward pass,
the gradients divided after it, and a step whose gradients overflow is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError, unknown_name

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str, device: torch.device) -> None:
    """Refuses a precision that is unknown, or that a device does not have.

    Raises:
        InputError: With what to use instead.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"precision=fp16 needs a GPU, but device={device}: use bf16 or fp32 there.")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError(f"precision=bf16 is not supported by {torch.cuda.get_device_name(device)}: use fp16 or fp32.")


class Precision:
    """Runs forward passes, backward passes and steps of the optimiser in one precision.

    Args:
        name: One of ``PRECISIONS``; with ``fp32`` everything is as without this class, bit for bit.
        device: Where the networks are.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._device = device
        self._dtype = _DTYPES.get(name)
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def forward_context(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context for the forward pass."""
        if self._dtype is None:
            return contextlib.nullcontext()
        # Without the cache of casted weights: in torch 2.4 one filled under no_grad leaves a later call without gradient.
        return torch.autocast(self._device.type, self._dtype, cache_enabled=False)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, for float16 multiplied until :meth:`unscale`."""
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Makes the gradients those of the loss itself; once a step, before they are clipped."""
        if self._scaler is not None:
            self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Makes the optimiser's step, for float16 unless a gradient overflowed."""
        if self._scaler is None:
            optimiser.step()
            return
        self._scaler.step(optimiser)
        self._scaler.update()

    def state(self) -> dict[str, Any] | None:
        """Returns what the next step depends on, as JSON values; ``None`` for nothing."""
        return None if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what :meth:`state` returned."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(dict(state))
