"""What every enhancer has in common: a wrapped distiller, its two networks, and the course of a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tmkd_plugin.distiller_return import read_return, sum_of
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.interception import TeacherInterception
from tmkd_plugin.labels import check_labels, same_labels, select_rows
from tmkd_plugin.model_output import ModelOutput, OutputReader
from tmkd_plugin.multi_view_teacher import MultiViewTeacher, PerView
from tmkd_plugin.optimiser_watch import OptimiserWatch
from tmkd_plugin.prompts import check_class_names
from tmkd_plugin.teacher_free_state import TeacherFreeState
from tmkd_plugin.wrapped_networks import find_networks


@dataclass(frozen=True)
class EnhancedStep:
    """A step that has begun.

    Attributes:
        answers: Answers for the teacher while it is active.
        labels: (B,) integers or (B, K) probabilities.
        ids: (B,) int64, which training samples these are, where that is known.
        table: (K, V), the fusion weights of each class, attached.
    """

    answers: TeacherInterception
    labels: Tensor
    ids: Tensor | None
    table: Tensor


class TeacherEnhancer(TeacherFreeState):
    """A distiller that runs another one with a better teacher.

    A subclass makes ``multi_view``, ``heads`` and ``_watch``, says how the teacher is fused (:meth:`fusion_table`) and which
    terms it adds (:meth:`added_terms`). Its step runs in one piece (:meth:`enhanced_step`), around somebody else's loop
    (:meth:`begin_step`, :meth:`end_step`), or in halves where labels come late (:meth:`views_forward`, :meth:`fuse`).

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

    TITLE: ClassVar[str]
    """Its name for readers."""

    GUIDE: ClassVar[str]
    """The argument that says what guides it: ``text`` or ``clip``."""

    INTERCEPTION: ClassVar[type[TeacherInterception]] = TeacherInterception
    """What answers for the teacher."""

    student: nn.Module
    multi_view: MultiViewTeacher
    heads: nn.Module
    _watch: OptimiserWatch

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

    @property
    def has_logit_kl(self) -> bool | None:
        """Whether a step has a KL of logits, added or the distiller's own; None where the distiller does not say."""
        return True if self.heads.logit_weight else getattr(self.distiller, "has_logit_kl", None)

    def enhanced_step(
        self,
        run: Callable[[], Any],
        images: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        teacher_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Runs one step of a distiller with the enhanced teacher and adds the enhancer's terms.

        Args:
            run: Runs the distiller on this batch and returns what :func:`~tmkd_plugin.distiller_return.read_return` reads.
            images: (B, 3, H, W), those of the batch.
            labels: (B,) integers or (B, K) probabilities.
            ids: (B,) int64, which training samples these are.
            teacher_labels: Labels of the images that the distiller gives its teacher, where these are not the batch.

        Returns:
            ``"loss"``, ``"output"`` (student logits (B, K)) and every weighted term; the terms add up to the loss.
        """
        step = self.begin_step(images, labels, ids=ids, teacher_labels=teacher_labels)
        with self.student_reader.recording():
            with step.answers.active():
                own = read_return(run())
            student, added = self.end_step(step)
        # The distiller's own loss comes first and whole: with no added term it is left as it is, bit for bit.
        loss = sum_of({"own": own.loss, **added})
        output = student.logits if own.output is None else own.output
        return {"loss": loss, "output": output, **own.terms, **self.renamed(added, own.terms)}

    def begin_step(
        self, images: Tensor, labels: Tensor, *, ids: Tensor | None = None, teacher_labels: Tensor | None = None
    ) -> EnhancedStep:
        """Begins a step; student and teacher then run while ``student_reader`` records and ``answers`` is active.

        Raises:
            InputError: Images, labels or ids can't be used.
        """
        if teacher_labels is None:
            # Before the student runs; other images than the batch are checked when the teacher gets them.
            self.multi_view.check(images)
        check_labels(labels, images.shape[0], self.num_classes)
        self.begin_batch(ids)
        if self.training:
            self._watch.look()
        self.keep_teacher_in_eval()
        table = self.fusion_table()
        answers = self.INTERCEPTION(self.multi_view, table.detach(), images, labels, teacher_labels)
        return EnhancedStep(answers, labels, ids, table)

    def end_step(self, step: EnhancedStep) -> tuple[ModelOutput, dict[str, Tensor]]:
        """Returns what the student said and the added terms, once student and teacher have run.

        Raises:
            InputError: One of them did not run, or they ran on other images.
        """
        per_view, labels_seen = step.answers.first_call()
        student = self.student_reader.recorded()
        self.check_student(student, step.labels)
        advice = self.unpaired_advice()
        if advice is not None:
            self.check_pairing(step.labels, labels_seen, advice)
        return student, self.added_terms(student, per_view, step.labels, step.table, step.ids)

    def begin_batch(self, ids: Tensor | None) -> None:
        """Learns which training samples the next batch holds, (B,) int64, where an enhancer asks for it."""

    def fusion_table(self) -> Tensor:
        """Returns the fusion weights (K, V) of all classes, attached to what learns them; rows sum to 1."""
        raise NotImplementedError

    def unpaired_advice(self) -> str | None:
        """Says what to set so that no term compares student and teacher image by image; None where none does."""
        raise NotImplementedError

    def added_terms(
        self,
        student: ModelOutput,
        per_view: PerView,
        labels: Tensor,
        table: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the enhancer's own terms of a step, weighted, and counts the step.

        Args:
            student: What the student said of the batch.
            per_view: What the teacher said of each view of it.
            labels: (B,) integers or (B, K) probabilities.
            table: The fusion table, attached; None computes it.
            ids: (B,) int64, which training samples these are, where that is known.
        """
        raise NotImplementedError

    def views_forward(self, images: Tensor, run: Callable[..., Any] | None = None) -> PerView:
        """Runs the teacher on each view, without gradient, for frameworks that show labels only later.

        Args:
            images: (B, 3, H, W), normalised.
            run: What runs the teacher on a view, and may return more than it; None for the teacher itself.
        """
        self.multi_view.check(images)
        self.begin_batch(None)
        self.keep_teacher_in_eval()
        return self.multi_view.views_forward(images, run=run)

    def fuse(self, per_view: PerView, labels: Tensor) -> Any:
        """Fuses what :meth:`views_forward` returned into a nest like the teacher's own, with detached weights.

        Args:
            per_view: What the teacher said of each view.
            labels: (B,) integers or (B, K) probabilities.

        Raises:
            InputError: The labels are not those of these images.
        """
        check_labels(labels, per_view.outputs[0].logits.shape[0], self.num_classes)
        return self.multi_view.fused_return(per_view, select_rows(self.fusion_table().detach(), labels))

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
        if same_labels(teacher_labels, labels):
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
