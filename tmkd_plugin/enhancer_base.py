"""What every enhancer has in common: a wrapped distiller, its two networks, and the checks of a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.model_output import ModelOutput, OutputReader
from tmkd_plugin.prompts import check_class_names
from tmkd_plugin.teacher_free_state import TeacherFreeState
from tmkd_plugin.wrapped_networks import find_networks


class TeacherEnhancer(TeacherFreeState):
    """A distiller that runs another one with a better teacher.

    Args:
        distiller: A module with ``.student`` and ``.teacher``, or a function with ``student=`` and ``teacher=``.
        class_names: The K class names in the order of the labels.
        student: The student, or its dotted name in the distiller.
        teacher: The teacher, likewise.
        seed: Every draw is a function of it.
        input_size: Side in pixels of the images with which the networks are probed; None finds it out.

    Raises:
        InputError: The networks can't be found or read, or their classes differ.
    """

    student: nn.Module

    def __init__(
        self,
        distiller: nn.Module | Callable[..., Any],
        class_names: Sequence[str],
        *,
        student: nn.Module | str | None,
        teacher: nn.Module | str | None,
        seed: int,
        input_size: int | None,
    ) -> None:
        super().__init__()
        found_student, found_teacher = find_networks(distiller, student, teacher)
        self.distiller = distiller
        # The module that a bound method belongs to may have parameters of its own.
        owner = getattr(distiller, "__self__", None)
        if isinstance(owner, nn.Module):
            self.distiller_owner = owner
        self.attach("student", found_student)
        self.attach("teacher", found_teacher)
        self.seed = seed
        self.steps_done = 0
        self.student_reader = OutputReader(self.student, "student", input_size)
        existing = getattr(distiller, "teacher_reader", None)
        # A distiller of this package may read another map of its teacher than usual.
        if not isinstance(existing, OutputReader) or existing.model is not self.teacher:
            existing = OutputReader(self.teacher, "teacher", input_size)
        self.teacher_reader: OutputReader = existing
        self.class_names = self._check_classes(class_names)
        self.freeze_teacher()

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def attach(self, name: str, network: nn.Module) -> None:
        """Makes a network an attribute, and a child where it is not part of the distiller already."""
        if any(module is network for module in self.modules()):
            self.__dict__[name] = network
        else:
            setattr(self, name, network)

    def keep_teacher_in_eval(self) -> None:
        """Puts the teacher back in eval mode, since somebody may have called train() on the wrapped distiller."""
        if any(module.training for module in self.teacher.modules()):
            self.teacher.eval()

    def resolve_logit_weight(self, given: float | None, usual: float) -> float:
        """Returns the weight of an added logit KL: what was given, else ``usual`` where the distiller has none of its own."""
        if given is not None:
            return given
        has_own = getattr(self.distiller, "has_logit_kl", None)
        if has_own is None:
            warnings.warn(
                f"{type(self.distiller).__name__} does not say whether it has a KL divergence of logits (attribute "
                f"has_logit_kl), so none is added. Pass logit_weight={usual} to add one, logit_weight=0.0 to silence this.",
                TmkdNotice,
                stacklevel=4,
            )
        return usual if has_own is False else 0.0

    def check_student(self, student: ModelOutput, labels: Tensor) -> None:
        """Refuses a student's first call from which nothing can be learned for this batch."""
        if student.logits.shape[0] != labels.shape[0]:
            raise InputError(
                f"The distiller called its student on {student.logits.shape[0]} images first, but the batch has "
                f"{labels.shape[0]} labels. Call it on the batch, in the order of the labels, before anything else."
            )
        trains = any(parameter.requires_grad for parameter in self.student.parameters())
        if self.training and torch.is_grad_enabled() and trains and not student.logits.requires_grad:
            raise InputError(
                f"The student ({type(self.student).__name__}) ran without gradient (no_grad, or checkpointing with "
                "use_reentrant=True), so the added terms would not train it. Call it with gradient."
            )

    def check_pairing(self, labels: Tensor, teacher_labels: Tensor, advice: str) -> None:
        """Refuses to compare the student's rows with a teacher's that are of other images."""
        if teacher_labels is labels or (teacher_labels.shape == labels.shape and torch.equal(teacher_labels, labels)):
            return
        raise InputError(
            "teacher_labels= differ from labels, so the rows of the teacher and of the student are not the same images and "
            f"can't be paired. Give both the same order, or {advice}."
        )

    def renamed(self, added: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives added terms a free name where the distiller, such as another enhancer, has one of the same name."""
        renamed = {}
        for name, term in added.items():
            free = name
            while free in own:
                free = f"{free}_of_{type(self).__name__}"
            renamed[free] = term
        return renamed

    def get_extra_state(self) -> Tensor:
        """Returns the number of training steps made, on which draws depend."""
        return torch.tensor(self.steps_done)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores the number of training steps."""
        self.steps_done = int(state)

    def _check_classes(self, class_names: Sequence[str]) -> list[str]:
        of_student, of_teacher = self.student_reader.num_classes, self.teacher_reader.num_classes
        if of_student != of_teacher:
            raise InputError(
                f"Student and teacher must tell the same classes apart, but the student ({type(self.student).__name__}) has "
                f"{of_student} and the teacher ({type(self.teacher).__name__}) {of_teacher}."
            )
        return check_class_names(class_names, expected_count=of_teacher)
