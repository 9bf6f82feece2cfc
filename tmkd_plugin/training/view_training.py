"""Training and measuring a network on the views of its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import Batch, evaluation_batches
from tmkd_plugin.data.dataset import Split
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.training.metrics import check_finite, evaluating, logits_of, scores_of
from tmkd_plugin.views import VIEW_NAMES, ViewSettings, from_pixels, make_views, to_pixels

AVERAGE = "average"
"""The name under which the plain average of the views' logits is reported."""


def with_random_views(
    batches: Iterable[Batch],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    images: int,
    seed: int,
    epoch: int,
    view_settings: ViewSettings | None = None,
) -> Iterator[Batch]:
    """Shows each image of an epoch in one view, drawn with equal chances.

    Args:
        batches: Augmented and normalised.
        mean: Of the normalisation, for pixels in [0, 1].
        std: Likewise.
        images: More than the largest id in the batches.
        seed: Each draw is a function of seed, epoch and the image's id.
        epoch: From 1.
        view_settings: Thresholds and scales of the views; None for the defaults.

    Yields:
        The batches; images that drew RGB are as they were.
    """
    draws = torch.randint(len(VIEW_NAMES), (images,), generator=generator_for(seed, "teacher views", epoch))
    for batch in batches:
        drawn = draws.to(batch.ids.device)[batch.ids]
        shown = batch.images.clone()
        for position, name in enumerate(VIEW_NAMES):
            rows = drawn == position
            if name != "rgb" and bool(rows.any()):
                shown[rows] = view_of(batch.images[rows], name, mean, std, view_settings)
        yield Batch(shown, batch.labels, batch.ids)


def view_of(
    images: Tensor, name: str, mean: Sequence[float], std: Sequence[float], view_settings: ViewSettings | None = None
) -> Tensor:
    """Returns one view of normalised images (B, 3, H, W), normalised again; RGB is the given tensor itself."""
    if name == "rgb":
        return images
    (pixels,) = make_views(to_pixels(images, mean, std), [name], view_settings)
    return from_pixels(pixels, mean, std, images.dtype)


def top1_by_view(
    network: nn.Module,
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    view_settings: ViewSettings | None = None,
) -> dict[str, float]:
    """Measures a network on each view of a split.

    Returns:
        Top-1 in percent for each view, and under ``"average"`` that of the plain average of the views' logits, into which no
        label enters.
    """
    by_view: dict[str, list[Tensor]] = {name: [] for name in VIEW_NAMES}
    with evaluating(network) as device:
        for batch in evaluation_batches(split, mean, std, batch_size=batch_size):
            for name, logits in by_view.items():
                images = view_of(batch.images, name, mean, std, view_settings).to(device)
                logits.append(logits_of(network(images)).float().cpu())
    answers = {name: torch.cat(logits) for name, logits in by_view.items()}
    answers[AVERAGE] = torch.stack(list(answers.values())).mean(0)
    check_finite(answers[AVERAGE])
    return {name: scores_of(answer, split.labels.cpu()).top1 for name, answer in answers.items()}
