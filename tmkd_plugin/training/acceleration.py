"""How a machine works through a recipe: in which precision, in how many parts, compiled or not. All off by default."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.settings import check_number
from tmkd_plugin.training.precision import check_precision
from tmkd_plugin.training.teacher_parts import run_in_parts


@dataclass(frozen=True)
class Acceleration:
    """Values that change how a batch is computed.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``; see :mod:`tmkd_plugin.training.precision`.
        accumulation_steps: In how many parts a batch goes through the networks, one after the other, before the weights
            change. Their losses count by their images.
        clip_norm: The largest L2 norm of all gradients together; None for no limit.
        compile: The backend with which ``torch.compile`` compiles student and teacher, such as ``inductor``; None for none.
        channels_last: Whether the networks' weights are laid out NHWC, which tensor cores are fastest with; GPUs only.
        sync_batch_norm: Whether batch norm takes its statistics over all processes; GPUs only.
        teacher_batch: How many images the teacher sees at a time, which caps its memory; None for the whole batch. Parts of a
            batch need not give the bits of the batch.
    """

    precision: str = "fp32"
    accumulation_steps: int = 1
    clip_norm: float | None = None
    compile: str | None = None
    channels_last: bool = False
    sync_batch_norm: bool = False
    teacher_batch: int | None = None

    def check(self, device: str | torch.device) -> None:
        """Refuses what can't be used on a device, before anything is trained.

        Raises:
            InputError: With what to use instead.
        """
        device = torch.device(device)
        check_precision(self.precision, device)
        check_number("accumulation_steps", self.accumulation_steps, at_least=1, whole=True)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0)
        if self.teacher_batch is not None:
            check_number("teacher_batch", self.teacher_batch, at_least=1, whole=True)
        if self.teacher_batch is not None and self.compile is not None:
            raise InputError(
                "teacher_batch and compile exclude each other: a compiled teacher takes the batch as a whole."
            )
        if self.compile is not None:
            backends = [*torch.compiler.list_backends(), "aot_eager", "eager"]
            if self.compile not in backends:
                raise unknown_name("compile backend", self.compile, backends)
        if device.type != "cuda" and self.channels_last:
            raise InputError(
                f"channels_last is for GPUs, but device={device}: on a CPU some convolutions in that layout corrupt memory."
            )
        if device.type != "cuda" and self.sync_batch_norm:
            raise InputError(
                f"sync_batch_norm is for GPUs, but device={device}: there batch norm takes its statistics in each process. "
                "Use networks with group norm if the statistics must be those of the whole batch."
            )

    def apply(self, distiller: nn.Module) -> None:
        """Brings a distiller's networks, on their device already, into the form in which they train."""
        student, teacher = (getattr(distiller, name, None) for name in ("student", "teacher"))
        networks = [network for network in (student, teacher) if isinstance(network, nn.Module)]
        if self.sync_batch_norm and isinstance(student, nn.Module):
            nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
        if self.channels_last:
            for network in networks:
                network.to(memory_format=torch.channels_last)
        if self.teacher_batch is not None and isinstance(teacher, nn.Module):
            run_in_parts(teacher, self.teacher_batch)
        if self.compile is not None:
            # torch gives up on a class of networks after a few compilations: the next run starts with none.
            torch.compiler.reset()
            for network in networks:
                network.compile(backend=self.compile)
