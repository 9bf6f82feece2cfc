"""RichKDEnhancer: a teacher fused with CLIP around any distiller (RichKD, arXiv 2511.09286)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tmkd_plugin.clip_teacher import DEFAULT_CLIP_MODEL, ClipAnswers, ClipTeacher, load_clip_teacher
from tmkd_plugin.cross_modal_teacher import ClipView, CrossModalInterception, CrossModalTeacher, clip_of
from tmkd_plugin.enhancer_base import TeacherEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.interception import TeacherInterception
from tmkd_plugin.model_output import ModelOutput
from tmkd_plugin.multi_view_teacher import PerView
from tmkd_plugin.optimiser_watch import OptimiserWatch
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.richkd_heads import RichKDHeads
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.sample_ids import ids_for
from tmkd_plugin.settings import Setting, settings_from, settings_table


class RichKDEnhancer(TeacherEnhancer):
    """Wraps a distiller and gives its student a teacher that is fused with CLIP.

    In each step the wrapped distiller runs unchanged. When it calls its teacher, it gets logits that are fused with CLIP's
    zero-shot ones, ``alpha z_T + (1-alpha) z_C``; features and maps are the teacher's own. To the distiller's own terms the
    enhancer adds a logit KL, where the distiller has none, and a contrast (CRD) of the student's features with the teacher's
    and CLIP's, fused behind projections.

    The contrast has a queue as its memory, or CRD's own bank once :func:`~tmkd_plugin.sample_ids.tell_samples` has told it the
    training samples; then it is called with ``ids=``.

    It is a distiller itself: it trains, checkpoints and nests like one, also around or inside a ``TMKDEnhancer``. Give the
    optimiser :meth:`trainable_parameters`.

    Args:
        distiller: A module with ``.student`` and ``.teacher`` that maps (images, labels) to a dict with ``"loss"``, to a
            pair ``(logits, {name: term})`` or to a scalar; or a function that does, with ``student=`` and ``teacher=``.
        class_names: The K class names in the order of the labels, in words.
        clip: A CLIP to run on every batch: what :func:`~tmkd_plugin.clip_teacher.load_clip_teacher` understands, or a
            :class:`ClipTeacher`. Or :class:`ClipAnswers`, computed once for each training image without augmentation as in
            the official code; the enhancer is then called with ``ids=``.
        student: The student, or its dotted name in the distiller, where it is not ``distiller.student``.
        teacher: The teacher, likewise.
        mean: Mean with which the images are normalised, three floats for pixels in [0, 1]; None: images are in [0, 1].
        std: Standard deviation, likewise.
        seed: The initialisation of the projections and the negatives are functions of it.
        input_size: Side in pixels of the images with which the networks are probed; None finds it out.
        **settings: The fields of :class:`~tmkd_plugin.richkd_settings.RichKDSettings`; :attr:`SETTINGS` lists them.

    Raises:
        InputError: Something given can't be used; the message says what it is and what to do.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = settings_table(RichKDSettings)
    """Every setting with its default, the source of the default and its meaning."""

    TITLE: ClassVar[str] = "RichKD"
    GUIDE: ClassVar[str] = "clip"
    INTERCEPTION: ClassVar[type[TeacherInterception]] = CrossModalInterception

    multi_view: CrossModalTeacher
    heads: RichKDHeads

    def __init__(
        self,
        distiller: nn.Module | Callable[..., Any],
        class_names: Sequence[str],
        *,
        clip: ClipTeacher | ClipAnswers | str | Path = DEFAULT_CLIP_MODEL,
        student: nn.Module | str | None = None,
        teacher: nn.Module | str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        input_size: int | None = None,
        **settings: Any,
    ) -> None:
        richkd = settings_from(RichKDSettings, settings, "RichKDEnhancer")
        super().__init__(distiller, class_names, student=student, teacher=teacher, seed=seed, input_size=input_size)
        if isinstance(clip, (str, Path)):
            clip = load_clip_teacher(clip, self.class_names)
        if not isinstance(clip, (ClipTeacher, ClipAnswers)):
            raise InputError(
                f"clip= must name a CLIP, or be a ClipTeacher or ClipAnswers, but is {type(clip).__name__}."
            )
        if clip.num_classes != self.num_classes:
            raise InputError(
                f"CLIP tells {clip.num_classes} classes apart, but there are {self.num_classes} class names. Make it for these."
            )
        self.clip_source = clip.source
        self.clip_images = "once" if isinstance(clip, ClipAnswers) else "augmented"
        if richkd.clip_images not in (None, self.clip_images):
            raise InputError(
                f"clip_images='{richkd.clip_images}', but clip= is {type(clip).__name__}: 'once' needs ClipAnswers (see "
                "clip_answers), 'augmented' a CLIP to run."
            )
        # Not a submodule: a frozen CLIP has no place in a checkpoint.
        view = ClipView(clip, mean, std)
        alpha = richkd.alpha if richkd.fuses_logits else 1.0
        self.multi_view = CrossModalTeacher(self.teacher_reader, view, alpha, richkd.clip_logit_scale)
        weight = self.resolve_logit_weight(richkd.logit_weight, 3.0) if richkd.fuses_logits else 0.0
        widths = None
        if richkd.contrasts_features:
            widths = (self.student_reader.pooled_width, self.teacher_reader.pooled_width, clip.width)
        parameter = next(self.student.parameters())
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        heads = RichKDHeads(richkd, weight, widths, seed)
        self.heads = heads.to(device=parameter.device, dtype=dtype)
        self._watch = OptimiserWatch(list(self.student.parameters()), list(self.heads.parameters()))

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *args: Any,
        ids: Tensor | None = None,
        teacher_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Runs one step of the distiller with the fused teacher and adds RichKD's terms.

        Args:
            images: (B, 3, H, W), normalised with ``mean`` and ``std``.
            labels: (B,) integers or (B, K) probabilities.
            *args: Given to the distiller after images and labels.
            ids: (B,) int64, which training samples these are; see :func:`~tmkd_plugin.sample_ids.wants_ids`.
            teacher_labels: Labels of the images that the distiller gives its teacher, where these are not the batch.
            **kwargs: Given to the distiller.

        Returns:
            ``"loss"``, ``"output"`` (student logits (B, K)) and every weighted term; the terms add up to the loss.

        Raises:
            InputError: Images, labels or ids can't be used, or the distiller did not call its teacher.
        """
        kwargs |= ids_for(self.distiller, ids)
        return self.enhanced_step(
            lambda: self.distiller(images, labels, *args, **kwargs),
            images,
            labels,
            ids=ids,
            teacher_labels=teacher_labels,
        )

    def begin_batch(self, ids: Tensor | None) -> None:
        """Tells what CLIP sees of which samples the next batch is; see :meth:`TeacherEnhancer.begin_batch`.

        Raises:
            InputError: CLIP's answers are looked up by ids, and these are missing or unknown.
        """
        self.multi_view.view.begin(ids)

    def fusion_table(self) -> Tensor:
        """Returns ones (K, 1): the teacher has one view, and CLIP's share is the same for every class."""
        return torch.ones(self.num_classes, 1, device=next(self.student.parameters()).device)

    def unpaired_advice(self) -> str | None:
        """See :meth:`TeacherEnhancer.unpaired_advice`."""
        if self.heads.memory is None and not self.heads.logit_weight:
            return None
        return "set logit_weight=0 and variant='L', which leaves the fused teacher"

    def added_terms(
        self,
        student: ModelOutput,
        per_view: PerView,
        labels: Tensor,
        table: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes RichKD's own terms of a step; see :meth:`TeacherEnhancer.added_terms`."""
        added = self.heads.terms(
            student,
            self.multi_view.fused_output(per_view),
            clip_of(per_view) if self.heads.memory is not None else None,
            labels,
            ids,
            generator_for(self.seed, "contrast negatives", self.steps_done),
        )
        self.steps_done += self.training
        return added

    @property
    def wants_ids(self) -> bool:
        """Whether CLIP's answers are looked up by ``ids=``; see also :func:`~tmkd_plugin.sample_ids.wants_ids`."""
        return self.multi_view.view.wants_ids

    def epoch_report(self) -> dict[str, Any]:
        """Returns what a log should hold of each epoch: which images CLIP was asked about."""
        return {"clip_images": self.clip_images}
