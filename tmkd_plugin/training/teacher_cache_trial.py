"""Whether a distiller can be trained from a teacher's kept answers: found out by one step, before anything is trained."""

from __future__ import annotations

import copy

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
from tmkd_plugin.training.teacher_cache_fill import read_teacher, seen_as
from tmkd_plugin.training.teacher_cache_forward import Answers, KnownBatch, KnownForward
from tmkd_plugin.training.teacher_cache_key import teacher_key

TOLERANCE = 1e-3
"""How far the loss of a step from kept answers may be from that of a step with the teacher, as a share of it."""


def require_kept_answers_suffice(distiller: nn.Module, title: str, batch: Batch, dataset: ImageDataset) -> None:
    """Refuses a distiller that needs more of its teacher than what it says of the batch, or that makes it say something else.

    It makes a step from kept answers and the same step with the teacher, which have to agree; the distiller is of no use for
    training after that.

    Args:
        distiller: The distiller, in training mode, with its networks on the device of the batch.
        title: What messages call it.
        batch: A few images.
        dataset: Whose images they are.

    Raises:
        InputError: With what it needs, and what to do.
    """
    if not isinstance(getattr(distiller, "teacher", None), nn.Module):
        return
    try:
        as_it_is = copy.deepcopy(distiller)
        kept, own = _loss_from_kept_answers(distiller, batch, dataset), _loss(as_it_is, batch)
        if not abs(kept - own) <= TOLERANCE * max(1.0, abs(own)):
            raise InputError(
                f"its loss is {kept:.4g} with what the teacher says when it is simply asked, but {own:.4g} with the teacher "
                "itself, so it changes the teacher for the call."
            )
    except Exception as error:  # a user's distiller raises whatever it likes
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{title} can't be trained with --teacher-cache, which keeps the teacher's logits and pooled features and no "
            f"feature maps: {reason} Leave --teacher-cache out, or compare {title} by itself without it."
        ) from error


def _loss_from_kept_answers(distiller: nn.Module, batch: Batch, dataset: ImageDataset) -> float:
    teacher: nn.Module = distiller.teacher  # type: ignore[assignment]
    teacher_key(teacher)
    reading, precision = read_teacher(teacher, dataset.image_size), Precision("fp32", batch.images.device)
    answers = {}
    for view in views_needed(distiller):
        said = reading.ask(seen_as(view, batch.images, dataset), precision)
        answers[view] = Answers(said["logits"], said.get("pooled_features"))
    known = KnownBatch(answers, dataset.mean, dataset.std)
    known.begin(batch.images, torch.arange(len(batch)))
    with KnownForward(teacher, known, reading.classifier).installed():
        return _loss(distiller, batch)


def _loss(distiller: nn.Module, batch: Batch) -> float:
    with forked_random_state(0, "teacher cache trial"):
        returned = distiller(batch.images, batch.labels, **ids_for(distiller, batch.ids))
        return float(read_return(returned).loss.detach())
