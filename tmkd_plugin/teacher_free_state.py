"""A module whose checkpoints leave the frozen teacher out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class TeacherFreeState(nn.Module):
    """An ``nn.Module`` with a ``teacher`` that stays frozen, in eval mode, and out of ``state_dict``.

    A checkpoint without the teacher's tensors loads strictly; one that has them loads too and leaves the teacher alone.
    """

    teacher: nn.Module

    def freeze_teacher(self) -> None:
        """Puts the teacher in eval mode and takes its parameters out of training."""
        self.teacher.requires_grad_(False)
        self.teacher.eval()

    def train(self, mode: bool = True) -> Any:
        """Sets training or eval mode of everything but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Returns what an optimiser should get: every parameter that needs a gradient and is not the teacher's."""
        of_teacher = {id(parameter) for parameter in self.teacher.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in of_teacher]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the state without the teacher's."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for name in self._teacher_prefixes():
            for key in [key for key in state if key.startswith(prefix + name)]:
                del state[key]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # The teacher's own tensors stand in for the missing ones, so that strict loading asks for nothing else.
        for name in self._teacher_prefixes():
            for key in [key for key in state_dict if key.startswith(prefix + name)]:
                del state_dict[key]
            for key, value in self.teacher.state_dict().items():
                state_dict[prefix + name + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _teacher_prefixes(self) -> Iterator[str]:
        for name, module in self.named_modules(remove_duplicate=False):
            if module is self.teacher:
                yield f"{name}."
