"""The control with a logit KL: a baseline plus plain KD from the single-view teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmkd_plugin.distiller_return import read_return
from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import kd_loss
from tmkd_plugin.model_output import OutputReader
from tmkd_plugin.wrapped_networks import find_networks


class WithLogitKL(nn.Module):
    """Adds to a distiller the logit KL that an enhanced arm also has, but from the teacher's RGB view alone.

    What this arm gains over the baseline is plain KD's and not the enhancer's.

    Args:
        distiller: A distiller whose return holds the student's logits.
        weight: Weight of the KL, > 0.
        temperature: Its temperature, > 0.
        input_size: Side in pixels of the images with which the teacher is probed.
    """

    def __init__(self, distiller: nn.Module, *, weight: float, temperature: float, input_size: int) -> None:
        super().__init__()
        self.distiller = distiller
        self.student, self.teacher = find_networks(distiller, None, None)
        self.teacher_reader = OutputReader(self.teacher, "teacher", input_size)
        self.weight = weight
        self.temperature = temperature

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the distiller's own terms and ``"logit_kl"``, with their sum as ``"loss"``."""
        own = read_return(self.distiller(images, labels))
        if own.output is None:
            raise InputError(
                f"{type(self.distiller).__name__} returns no student logits, which the control with a logit KL needs: return "
                "a dict with 'output', or run without controls."
            )
        with torch.no_grad():
            teacher = self.teacher_reader(images)
        added = self.weight * kd_loss(own.output, teacher.logits, self.temperature)
        return {"loss": own.loss + added, "output": own.output, **own.terms, "logit_kl": added}

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Returns every parameter but the teacher's."""
        frozen = {id(parameter) for parameter in self.teacher.parameters()}
        return [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in frozen]
