"""A CLIP as the guide of a whole comparison: its text embeddings, and what it says of the training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tmkd_plugin.clip_teacher import ClipAnswers, ClipTeacher, clip_answers, load_clip_teacher
from tmkd_plugin.text_teacher import TextEmbeddings

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset


@dataclass(frozen=True)
class ClipGuidance(TextEmbeddings):
    """Text embeddings with the image side of the same CLIP.

    Attributes:
        images: What it said of the training images once, or the CLIP itself, to run on every batch.
    """

    images: ClipAnswers | ClipTeacher | None = None


def with_images(
    text: TextEmbeddings,
    source: str | Path,
    dataset: ImageDataset,
    *,
    clip_images: str | None = None,
    cache_dir: Path | None = None,
) -> ClipGuidance:
    """Adds the image side of a CLIP to its text embeddings.

    Args:
        text: The text embeddings.
        source: See :func:`~tmkd_plugin.clip_teacher.load_clip_teacher`.
        dataset: Whose training images it is asked about.
        clip_images: ``"once"`` or None: every training image without augmentation, kept on disk; ``"augmented"``: the CLIP
            itself, which then runs on every batch.
        cache_dir: Where its answers are kept.

    Raises:
        InputError: The source names no CLIP with both towers.
    """
    images: ClipAnswers | ClipTeacher
    if clip_images == "augmented":
        images = load_clip_teacher(source, dataset.class_names)
    else:
        images = clip_answers(
            source, dataset.class_names, dataset.train, images_digest=dataset.fingerprint, cache_dir=cache_dir
        )
    return _guidance(
        text, dataclasses.replace(images, source=text.source) if isinstance(images, ClipAnswers) else images
    )


def with_stand_in(text: TextEmbeddings, ids: Tensor, class_names: Sequence[str]) -> ClipGuidance:
    """Adds answers that say nothing, for a trial step before there is a CLIP; ids (N,) are those of the training images."""
    return _guidance(text, ClipAnswers.stand_in(ids, len(class_names)))


def _guidance(text: TextEmbeddings, images: ClipAnswers | ClipTeacher) -> ClipGuidance:
    fields = {field.name: getattr(text, field.name) for field in dataclasses.fields(TextEmbeddings)}
    return ClipGuidance(**fields, images=images)
