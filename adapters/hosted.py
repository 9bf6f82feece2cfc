"""An enhancer as a part of a framework's own module, whole or in two halves where labels come late."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from tmkd_plugin.clip_teacher import ClipAnswers
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.enhancer_base import TeacherEnhancer
from tmkd_plugin.errors import InputError, TmkdNotice, unknown_name
from tmkd_plugin.labels import check_labels
from tmkd_plugin.multi_view_teacher import PerView
from tmkd_plugin.richkd import RichKDEnhancer


class Hosted(TeacherEnhancer):
    """What makes an enhancer a child of its host: it holds the heads alone, since the networks are the host's own.

    A checkpoint without its keys, as from before the host was enhanced, loads too and leaves the heads as they are.
    """

    def attach(self, name: str, network: nn.Module) -> None:
        """Makes a network an attribute and never a child."""
        self.__dict__[name] = network

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            warnings.warn(
                f"The checkpoint holds nothing of {self.TITLE} (no key {prefix}*): what it trains stays as it is.",
                TmkdNotice,
                stacklevel=2,
            )
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LateLabels(Hosted):
    """What makes an enhancer run in two halves, for frameworks that run teacher and student before they show the labels.

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
        self._per_view = self.views_forward(images, run=run)
        self._recording = contextlib.ExitStack()
        self._recording.enter_context(self.student_reader.recording())
        return self._per_view

    def fused(self, labels: Tensor) -> Any:
        """Fuses what the teacher returned in this step into a nest like its own, with detached weights."""
        return self.fuse(self._shown(), labels)

    def late_terms(self, labels: Tensor) -> dict[str, Tensor]:
        """Computes the enhancer's own terms of this step, weighted, and forgets the step.

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


class HostedTMKD(Hosted, TMKDEnhancer):
    """TMKD in a host."""


class HostedRichKD(Hosted, RichKDEnhancer):
    """RichKD in a host."""


class LateLabelTMKD(LateLabels, TMKDEnhancer):
    """TMKD in a host that shows its labels late."""


class LateLabelRichKD(LateLabels, RichKDEnhancer):
    """RichKD in a host that shows its labels late."""


HOSTED: dict[str, type[Hosted]] = {"tmkd": HostedTMKD, "richkd": HostedRichKD}
LATE_LABELS: dict[str, type[LateLabels]] = {"tmkd": LateLabelTMKD, "richkd": LateLabelRichKD}

_Kind = TypeVar("_Kind", bound=Hosted)


class HostStep:
    """Stands where an enhancer has its distiller: a host runs its steps itself.

    Args:
        how_to_run: Said to who calls the enhancer all the same.
        has_logit_kl: Whether the host's loss has a KL divergence of logits; None where nobody knows.
    """

    def __init__(self, how_to_run: str, has_logit_kl: bool | None) -> None:
        self.how_to_run = how_to_run
        self.has_logit_kl = has_logit_kl

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuses."""
        raise InputError(self.how_to_run)


def build(
    classes: Mapping[str, type[_Kind]],
    enhancer: str,
    step: HostStep,
    *arguments: Any,
    text: Any,
    clip: Any,
    without_ids: str | None = None,
    **named: Any,
) -> _Kind:
    """Makes the enhancer of a host.

    Args:
        classes: Classes by the names of enhancers.
        enhancer: The name.
        step: Stands for the distiller.
        *arguments: The enhancer's other positional arguments.
        text: What guides TMKD; None: its default.
        clip: What guides RichKD; None: its default.
        without_ids: The host in words, where it never says which training images a batch holds.
        **named: The enhancer's other arguments.

    Raises:
        InputError: There is no such enhancer, or something given can't be used.
    """
    if enhancer not in classes:
        raise unknown_name("enhancer", str(enhancer), classes)
    made = classes[enhancer]
    guides = {"text": text, "clip": clip}
    guide = guides.pop(made.GUIDE)
    for unused in [name for name, value in guides.items() if value is not None]:
        other = next(name for name, each in classes.items() if unused == each.GUIDE)
        raise InputError(
            f"{unused}= was given, but enhancer='{enhancer}' takes {made.GUIDE}= and no {unused}=. Leave it out, or set "
            f"enhancer='{other}'."
        )
    if without_ids is not None and isinstance(guide, ClipAnswers):
        raise InputError(
            f"clip= is ClipAnswers, which are looked up by the ids of a batch's images, but {without_ids} passes images and "
            "labels alone. Give clip= a CLIP that runs on every batch: MODEL/PRETRAINED of open_clip, MODEL=/path/to/weights, "
            "or a ClipTeacher."
        )
    if guide is not None:
        named[made.GUIDE] = guide
    return made(step, *arguments, **named)
