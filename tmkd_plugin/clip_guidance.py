"""A CLIP as the guide of a whole comparison: its text embeddings, and what it says of the training images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
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
        answers: What it said of each training image, without augmentation.
        clip: The CLIP itself, to run on every batch.
    """

    answers: ClipAnswers | None = None
    clip: ClipTeacher | None = None

    def images_for(self, clip_images: str | None) -> ClipAnswers | ClipTeacher | None:
        """Returns the image side for ``"once"`` (None is the same) or ``"augmented"``."""
        return self.clip if clip_images == "augmented" else self.answers

    @property
    def asked(self) -> list[str]:
        """Which images it is asked about: ``"once"``, ``"augmented"``."""
        return [name for name, side in (("once", self.answers), ("augmented", self.clip)) if side is not None]

    def sha256(self, clip_images: str | None) -> str:
        """Returns the hash of all that decides what the image side says."""
        images, digest = self.images_for(clip_images), hashlib.sha256()
        if isinstance(images, ClipAnswers):
            tensors = {"features": images.features, "cosines": images.cosines, "ids": images.ids}
        else:
            tensors = {} if images is None else dict(images.state_dict())
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def with_images(
    text: TextEmbeddings,
    source: str | Path,
    dataset: ImageDataset,
    *,
    clip_images: Collection[str] = ("once",),
    cache_dir: Path | None = None,
) -> ClipGuidance:
    """Adds the image side of a CLIP to its text embeddings.

    Args:
        text: The text embeddings.
        source: See :func:`~tmkd_plugin.clip_teacher.load_clip_teacher`.
        dataset: Whose training images it is asked about.
        clip_images: ``"once"``: every training image without augmentation, kept on disk; ``"augmented"``: the CLIP itself,
            which then runs on every batch; or both.
        cache_dir: Where its answers are kept.

    Raises:
        InputError: The source names no CLIP with both towers.
    """
    answers, clip = None, None
    if "augmented" in clip_images:
        clip = load_clip_teacher(source, dataset.class_names)
        clip.source = text.source
    if "once" in clip_images:
        answers = clip_answers(
            source, dataset.class_names, dataset.train, images_digest=dataset.fingerprint, cache_dir=cache_dir
        )
        answers = dataclasses.replace(answers, source=text.source)
    return _guidance(text, answers, clip)


def with_stand_in(text: TextEmbeddings, ids: Tensor, class_names: Sequence[str]) -> ClipGuidance:
    """Adds answers that say nothing, for a trial step before there is a CLIP; ids (N,) are those of the training images."""
    return _guidance(text, ClipAnswers.stand_in(ids, len(class_names)), None)


def _guidance(text: TextEmbeddings, answers: ClipAnswers | None, clip: ClipTeacher | None) -> ClipGuidance:
    fields = {field.name: getattr(text, field.name) for field in dataclasses.fields(TextEmbeddings)}
    return ClipGuidance(**fields, answers=answers, clip=clip)
