"""Forward and backward pass of a batch, in one go or in parts whose gradients add up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.distiller_return import DistillerReturn, read_return
from tmkd_plugin.sample_ids import ids_for
from tmkd_plugin.training.precision import Precision


def accumulate(
    distiller: nn.Module,
    precision: Precision,
    images: Tensor,
    labels: Tensor,
    *,
    ids: Tensor | None = None,
    parts: int = 1,
) -> DistillerReturn:
    """Adds the gradients of a batch's loss to those that are there.

    The loss is the mean of the parts' losses by their images: the loss of the batch where that is a mean over images, but
    not for relations between images (RKD, SP), of which only those inside a part are seen.

    Args:
        distiller: Maps (images, labels) to what ``read_return`` understands.
        precision: Runs the passes.
        images: (B, 3, H, W).
        labels: (B,) int64 or (B, K) probabilities.
        ids: (B,) int64, which samples the images are, for a distiller that asks for it.
        parts: How many parts, at most B are made; one part is the batch itself.

    Returns:
        Loss and terms of the batch, and the student's logits where the distiller returns them.
    """
    parts = min(parts, len(images))
    results, weights = [], []
    rows = torch.arange(len(images), device=images.device).tensor_split(parts)
    for piece, of_piece, part in zip(images.tensor_split(parts), labels.tensor_split(parts), rows, strict=True):
        known = {} if ids is None else ids_for(distiller, ids[part])
        with precision.forward_context():
            result = read_return(distiller(piece, of_piece, **known))
        if parts == 1:
            precision.backward(result.loss)
            return result
        weights.append(len(piece) / len(images))
        precision.backward(result.loss * weights[-1])
        results.append(_detached(result))
    return _mean_of(results, weights)


def _detached(result: DistillerReturn) -> DistillerReturn:
    terms = {name: term.detach() for name, term in result.terms.items()}
    return DistillerReturn(result.loss.detach(), None if result.output is None else result.output.detach(), terms)


def _mean_of(results: Sequence[DistillerReturn], weights: Sequence[float]) -> DistillerReturn:
    """Puts the parts of a batch together; a term that some parts lack counts as 0 there."""
    pairs = list(zip(results, weights, strict=True))
    names = dict.fromkeys(name for result in results for name in result.terms)
    loss = torch.stack([result.loss * weight for result, weight in pairs]).sum()
    terms = {
        name: torch.stack([result.terms[name] * weight for result, weight in pairs if name in result.terms]).sum()
        for name in names
    }
    outputs = [result.output for result in results if result.output is not None]
    return DistillerReturn(loss, torch.cat(outputs) if len(outputs) == len(results) else None, terms)
