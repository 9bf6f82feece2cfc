"""A frozen teacher whose logits are fused with CLIP's (RichKD), and how it answers for the bare one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.clip_teacher import ClipAnswers, ClipOutput, ClipTeacher
from tmkd_plugin.errors import InputError
from tmkd_plugin.interception import TeacherInterception
from tmkd_plugin.labels import same_labels
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.model_output import ModelOutput, OutputReader
from tmkd_plugin.multi_view_teacher import MultiViewTeacher, PerView
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.pixels import to_pixels


def fused_logits(teacher_logits: Tensor, clip_cosines: Tensor, alpha: float, clip_logit_scale: float = 1.0) -> Tensor:
    """``z_F = alpha z_T + (1-alpha) s z_C``, all (B, K), in the dtype of the teacher's logits.

    Args:
        teacher_logits: z_T.
        clip_cosines: z_C, cosines of image features and class prototypes.
        alpha: The teacher's share, 0 to 1.
        clip_logit_scale: s; the official code has none (1), CLIP itself classifies with about 100.
    """
    own = at_least_float32(teacher_logits)
    if own.shape != clip_cosines.shape:
        raise InputError(
            f"The teacher's logits are {tuple(own.shape)}, but CLIP's cosines {tuple(clip_cosines.shape)}: both must be of the "
            "same images and classes."
        )
    clip = clip_cosines.to(device=own.device, dtype=own.dtype)
    return (alpha * own + (1 - alpha) * clip_logit_scale * clip).to(teacher_logits.dtype)


class ClipView:
    """Says what CLIP sees in the images of a step.

    Args:
        clip: Runs on the images themselves, or holds what it said of them without augmentation.
        mean: Mean of the images' normalisation; None: images are in [0, 1].
        std: Standard deviation, likewise.
    """

    def __init__(
        self, clip: ClipTeacher | ClipAnswers, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        self.clip = clip
        self.mean, self.std = mean, std
        self._rows = clip.rows() if isinstance(clip, ClipAnswers) else None
        self._seen: tuple[Tensor, ClipOutput] | None = None
        self._ids: Tensor | None = None

    @property
    def wants_ids(self) -> bool:
        """Whether it has to know which samples a batch holds."""
        return self._rows is not None

    def begin(self, ids: Tensor | None) -> None:
        """Begins a step with the images of these ids (B,).

        Raises:
            InputError: They are needed and missing, or there is no answer for one.
        """
        self._seen = None
        if self._rows is None:
            return
        if ids is None:
            raise InputError(
                "CLIP's answers were computed once for each training image, so RichKD needs to know which images a batch "
                "holds: call the distiller with ids=batch.ids, or give clip= a model, which then runs on every batch."
            )
        known = ids.cpu()
        outside = (known < 0) | (known >= len(self._rows))
        if outside.any() or (self._rows[known] < 0).any():
            missing = known[outside] if outside.any() else known[self._rows[known] < 0]
            raise InputError(f"CLIP's answers hold none for the image with id {int(missing[0])}.")
        self._ids = self._rows[known]

    def of(self, images: Tensor) -> ClipOutput:
        """Returns CLIP's answer for (B, 3, H, W) of this step, on their device."""
        if isinstance(self.clip, ClipAnswers):
            return self._stored(self.clip, images)
        if self._seen is None or self._seen[0] is not images:
            clip = self.clip.to(images.device)
            self._seen = images, clip(to_pixels(images, self.mean, self.std))
        return self._seen[1]

    def _stored(self, answers: ClipAnswers, images: Tensor) -> ClipOutput:
        rows = self._ids
        if rows is None or len(rows) != len(images):
            given = "none" if rows is None else len(rows)
            raise InputError(
                f"CLIP's answers are for the ids of a batch ({given}), but the teacher got {len(images)} images."
            )
        return ClipOutput(answers.features[rows].to(images.device), answers.cosines[rows].to(images.device))


@dataclass(frozen=True)
class CrossModalView(PerView):
    """What the teacher says of a batch, and what CLIP says of it."""

    clip: ClipOutput | None = None


class CrossModalTeacher(MultiViewTeacher):
    """A frozen teacher beside CLIP: what it returns has fused logits, and its own features and maps.

    (CLIP's features have another width: RichKD fuses them behind projections, in its own loss.)

    Args:
        reader: Reads the teacher.
        view: Says what CLIP sees.
        alpha: The teacher's share in the fused logits; 1 leaves them as they are.
        clip_logit_scale: See :func:`fused_logits`.
    """

    def __init__(self, reader: OutputReader, view: ClipView, alpha: float, clip_logit_scale: float) -> None:
        super().__init__(reader, ("rgb",), view.mean, view.std)
        self.view = view
        self.alpha = alpha
        self.clip_logit_scale = clip_logit_scale

    def views_forward(self, images: Tensor, *args: Any, run: Any = None, **kwargs: Any) -> CrossModalView:
        """Runs the teacher and CLIP on (B, 3, H, W), without gradient."""
        own = super().views_forward(images, *args, run=run, **kwargs)
        return CrossModalView(own.returned, own.outputs, self.view.of(images))

    def fused_return(self, per_view: PerView, weights: Tensor | None = None) -> Any:
        """Returns what the teacher returned, with fused logits; weights of views have no part in it."""
        given, own = leaves(per_view.returned[0]), per_view.outputs[0].logits
        # Where the logits are depends on how the teacher was called, such as with is_feat=True.
        logits = own if any(leaf is own for leaf in given) else given[self.reader.logits_index()]
        fused = self.fuse_logits(logits, per_view)
        return map_leaves(lambda leaf: fused if leaf is logits else leaf, per_view.returned[0])

    def fused_output(self, per_view: PerView, weights: Tensor | None = None) -> ModelOutput:
        """Returns the teacher's output with fused logits."""
        own = per_view.outputs[0]
        return dataclasses.replace(own, logits=self.fuse_logits(own.logits, per_view))

    def fuse_logits(self, logits: Tensor, per_view: PerView) -> Tensor:
        """Fuses the teacher's logits (B, K) with what CLIP said of the same images."""
        return (
            logits
            if self.alpha == 1
            else fused_logits(logits, clip_of(per_view).cosines, self.alpha, self.clip_logit_scale)
        )


class CrossModalInterception(TeacherInterception):
    """Answers for a teacher with fused logits, also where a distiller asks for features and head apart."""

    multi_view: CrossModalTeacher

    def _labels_of(self, images: Tensor) -> Tensor:
        labels = super()._labels_of(images)
        if self.multi_view.view.wants_ids and not same_labels(labels, self.labels):
            raise InputError(
                "teacher_labels= differ from labels, so the teacher's images are not those that ids= names in this order, and "
                "CLIP's kept answers would be fused with other images' logits. Give both the same order, or let CLIP see "
                "the teacher's own images: clip= a CLIP to run (clip_images='augmented')."
            )
        return labels

    def _forward_features(self, *args: Any, **kwargs: Any) -> Any:
        features = super()._forward_features(*args, **kwargs)
        images = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        _, per_view, labels = self._features[-1]
        # What the head gets later is known by these features, and CLIP's answer goes with them.
        self._features[-1] = features, _WithClip(per_view, self.multi_view.view.of(images)), labels
        return features

    def _forward_head(self, features: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super()._forward_head(features, *args, **kwargs)
        per_view = next((entry[1] for entry in self._features if entry[0] is features), None)
        if not isinstance(per_view, _WithClip) or kwargs.get("pre_logits", args[0] if args else False):
            return answer
        return self.multi_view.fuse_logits(answer, CrossModalView((), (), per_view.clip))

    def _finish(self, features: list[Any]) -> PerView:
        own = super()._finish(features)
        return CrossModalView(own.returned, own.outputs, features.clip if isinstance(features, _WithClip) else None)


class _WithClip(list[Any]):
    """A list of features of each view, and what CLIP says of their images."""

    def __init__(self, values: Sequence[Any], clip: ClipOutput) -> None:
        super().__init__(values)
        self.clip = clip


class FusedClassifier(nn.Module):
    """A teacher fused with CLIP as a classifier of any images, (B, 3, H, W) -> (B, K): for reports and robustness.

    Args:
        teacher: images -> logits, or any nest that :class:`OutputReader` can read.
        clip: Runs on the images; kept answers know training images alone.
        mean: Mean of the images' normalisation.
        std: Standard deviation, likewise.
        alpha: See :func:`fused_logits`.
        clip_logit_scale: See :func:`fused_logits`.
        input_size: Side of the probe's images.
    """

    def __init__(
        self,
        teacher: nn.Module,
        clip: ClipTeacher,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        alpha: float = 0.7,
        clip_logit_scale: float = 1.0,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.clip = clip
        self.mean, self.std = mean, std
        self.alpha, self.clip_logit_scale = alpha, clip_logit_scale
        self._reader = OutputReader(teacher, "teacher", input_size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Classifies normalised images, without gradient."""
        cosines = self.clip(to_pixels(images, self.mean, self.std)).cosines
        return fused_logits(self._reader(images).logits, cosines, self.alpha, self.clip_logit_scale)


def clip_of(per_view: PerView) -> ClipOutput:
    """Returns what CLIP said of a batch, where it was asked."""
    clip = per_view.clip if isinstance(per_view, CrossModalView) else None
    if clip is None:
        raise InputError("CLIP was not asked about the images of this step.")
    return clip
