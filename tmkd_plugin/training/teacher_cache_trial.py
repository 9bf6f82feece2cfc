"""Whether a distiller can be trained from a teacher's kept answers: found out by one step, before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from tmkd_plugin.data.batches import Batch
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.distiller_return import read_return
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.sample_ids import ids_for
from tmkd_plugin.training.precision import Precision
from tmkd_plugin.training.teacher_cache import views_needed
from tmkd_plugin.training.teacher_cache_fill import read_teacher
from tmkd_plugin.training.teacher_cache_forward import Answers, KnownBatch, KnownForward


def require_kept_answers_suffice(distiller: nn.Module, title: str, batch: Batch, dataset: ImageDataset) -> None:
    """Refuses a distiller that needs more of its teacher than logits and pooled features of the batch.

    It makes one step in which every view has the same answers; the distiller is of no use for training after that.

    Args:
        distiller: The distiller, in training mode, with its networks on the device of the batch.
        title: What messages call it.
        batch: A few images.
        dataset: Whose images they are.

    Raises:
        InputError: With what it needs, and what to do.
    """
    teacher = getattr(distiller, "teacher", None)
    if not isinstance(teacher, nn.Module):
        return
    reading = read_teacher(teacher, dataset.image_size)
    said = reading.ask(batch.images, Precision("fp32", batch.images.device))
    answers = Answers(said["logits"], said.get("pooled_features"))
    known = KnownBatch(dict.fromkeys(views_needed(distiller), answers), dataset.mean, dataset.std)
    known.begin(batch.images, torch.arange(len(batch)))
    try:
        with (
            KnownForward(teacher, known, reading.classifier).installed(),
            forked_random_state(0, "teacher cache trial"),
        ):
            read_return(distiller(batch.images, batch.labels, **ids_for(distiller, batch.ids)))
    except Exception as error:  # a user's distiller raises whatever it likes
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{title} can't be trained with --teacher-cache, which keeps the teacher's logits and pooled features and no "
            f"feature maps: {reason} Leave --teacher-cache out, or compare {title} by itself without it."
        ) from error
