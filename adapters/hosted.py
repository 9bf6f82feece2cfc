"""The enhancer as a part of a framework's own module, whole or in two halves where labels come late."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.labels import check_labels
from tmkd_plugin.multi_view_teacher import PerView


class HostedEnhancer(TMKDEnhancer):
    """An enhancer that can be a child of its host: it holds the heads alone, since the networks are the host's own.

    A checkpoint without its keys, as from before the host was enhanced, loads too and leaves the heads as they are.
    """

    def attach(self, name: str, network: nn.Module) -> None:
        """Makes a network an attribute and never a child."""
        self.__dict__[name] = network

    def around(self, step: Callable[..., Any], images: Tensor, labels: Tensor, **options: Any) -> dict[str, Tensor]:
        """Runs ``step(images, labels)`` as the wrapped distiller; options are those of a call of the enhancer."""
        own, self.distiller = self.distiller, step
        try:
            out: dict[str, Tensor] = self(images, labels, **options)
            return out
        finally:
            self.distiller = own

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            warnings.warn(
                f"The checkpoint holds nothing of TMKD (no key {prefix}*): WeightNet and the projections stay as they are.",
                TmkdNotice,
                stacklevel=2,
            )
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LateLabelEnhancer(HostedEnhancer):
    """An enhancer in two halves, for frameworks that run teacher and student before they show the labels.

    In each step: :meth:`show` while the teacher runs, then the student's own forward pass, then :meth:`fused` and
    :meth:`late_terms` with the labels. The results are those of the enhancer in one piece.
    """

    _recording: contextlib.ExitStack | None = None
    _per_view: PerView | None = None

    def show(self, images: Tensor, run: Callable[..., Any] | None = None) -> PerView:
        """Shows the teacher each view of (B, 3, H, W) and records the student from now on.

        Args:
            images: The batch, normalised.
            run: What runs the teacher on a view, and may return more than it; None for the teacher itself.
        """
        self.forget()
        self.multi_view.check(images)
        self.keep_teacher_in_eval()
        self._per_view = self.multi_view.views_forward(images, run=run)
        self._recording = contextlib.ExitStack()
        self._recording.enter_context(self.student_reader.recording())
        return self._per_view

    def fused(self, labels: Tensor) -> Any:
        """Fuses what the teacher returned in this step into a nest like its own, with detached weights."""
        return self.fuse(self._shown(), labels)

    def late_terms(self, labels: Tensor) -> dict[str, Tensor]:
        """Computes TMKD's own terms of this step, weighted, and forgets the step.

        Args:
            labels: (B,) integers or (B, K) probabilities.

        Raises:
            InputError: Teacher or student did not run in this step, or the labels are not those of the batch.
        """
        per_view = self._shown()
        check_labels(labels, per_view.outputs[0].logits.shape[0], self.num_classes)
        student = self.student_reader.recorded()
        self.forget()
        self.check_student(student, labels)
        if self.training:
            self._watch.look()
        return self.added_terms(student, per_view, labels)

    @property
    def has_shown(self) -> bool:
        """Whether the teacher ran in this step."""
        return self._per_view is not None

    def forget(self) -> None:
        """Forgets a step that was not finished, such as a forward pass in evaluation."""
        if self._recording is not None:
            self._recording.close()
        self._recording = self._per_view = None

    def _shown(self) -> PerView:
        if self._per_view is None:
            raise InputError(
                f"The teacher ({type(self.teacher).__name__}) did not run since the last step, so there is nothing to fuse. "
                "Run the forward pass of the batch first, and ask for the loss once."
            )
        return self._per_view
