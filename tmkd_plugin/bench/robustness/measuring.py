"""Counts correct answers: every network on every corruption at every severity, on clean images, and on shifted ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.robustness.counts import Counts
from tmkd_plugin.bench.robustness.images import MeasuredImages
from tmkd_plugin.bench.robustness.networks import MeasuredNetwork
from tmkd_plugin.bench.view_fusion import FusedViews
from tmkd_plugin.corruptions import corrupt
from tmkd_plugin.data.batches import normalize
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import fuse
from tmkd_plugin.training.metrics import check_finite, evaluating, logits_of

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset

SeenByView: TypeAlias = dict[Hashable, list[Tensor]]
"""What teachers say of the views of one batch, by teacher and views."""

BATCH = 64
CLEAN = "clean"


@dataclass(frozen=True)
class Condition:
    """What the networks are shown.

    Attributes:
        key: Its name in the counts.
        images: Clean images.
        corruption: What happens to them; ``None`` for nothing.
        severity: From 1 to 5; 0 where nothing happens.
    """

    key: str
    images: MeasuredImages
    corruption: str | None = None
    severity: int = 0


@dataclass(frozen=True)
class Draw:
    """What decides the draws of all corruptions: the seed, and where pictures of frost lie (``None``: procedural ones)."""

    seed: int = 0
    frost_dir: Path | None = None


def corruption_key(corruption: str, severity: int) -> str:
    """Returns the name of a corruption at a severity in the counts."""
    return f"{corruption}/{severity}"


def shift_key(images: MeasuredImages) -> str:
    """Returns the name of a folder of shifted images in the counts."""
    return f"shift/{images.digest}"


def conditions_of(
    test: MeasuredImages, corruptions: Sequence[str], severities: Sequence[int], shifts: Sequence[MeasuredImages]
) -> list[Condition]:
    """Lists everything that networks are shown: clean images, corrupted ones, shifted ones."""
    corrupted = [
        Condition(corruption_key(name, severity), test, name, severity)
        for name in corruptions
        for severity in severities
    ]
    return [Condition(CLEAN, test), *corrupted, *(Condition(shift_key(shift), shift) for shift in shifts)]


def measure(
    networks: Sequence[MeasuredNetwork],
    conditions: Sequence[Condition],
    dataset: ImageDataset,
    counts: Counts,
    *,
    draw: Draw,
    advance: Callable[[str], None],
) -> None:
    """Fills in the counts that are missing; images are corrupted once for all networks.

    Args:
        networks: What is measured.
        conditions: What they are shown.
        dataset: Whose mean and standard deviation normalise the pixels.
        counts: Where the answers are kept; saved from time to time and at the end, also when interrupted.
        draw: Seed and pictures of the corruptions.
        advance: Called with the name of each condition that is done.

    Raises:
        RunError: A network's logits are NaN or infinite.
    """
    try:
        for condition in conditions:
            missing = [each for each in networks if counts.get(each.digest, condition.key) is None]
            for each, correct in zip(missing, _correct(missing, condition, dataset, draw), strict=True):
                counts.set(each.digest, condition.key, correct)
            counts.save(now=False)
            advance(condition.key)
    finally:
        counts.save()


def _correct(networks: Sequence[MeasuredNetwork], condition: Condition, dataset: ImageDataset, draw: Draw) -> list[int]:
    correct = [0] * len(networks)
    if not networks:
        return correct
    for pixels, labels in _batches(condition, draw):
        images = normalize(pixels, dataset.mean, dataset.std)
        seen: SeenByView = {}
        for position, each in enumerate(networks):
            with evaluating(each.network) as device:
                logits = _logits(each.network, images.to(device), seen).float().cpu()
            check_finite(logits)
            correct[position] += int((logits.argmax(dim=1) == labels).sum())
    return correct


def _logits(network: nn.Module, images: Tensor, seen: SeenByView) -> Tensor:
    """Returns a network's logits; what a teacher says of the views of a batch is asked once for all of its fusions."""
    if not isinstance(network, FusedViews):
        return logits_of(network(images))
    key = (id(network.teacher), network.views, network.view_settings, images.device)
    if key not in seen:
        seen[key] = network.logits_by_view(images)
    return fuse(seen[key], network.weights.expand(len(images), -1))


def _batches(condition: Condition, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    source = condition.images
    for start in range(0, len(source), BATCH):
        part = slice(start, start + BATCH)
        pixels = source.images[part]
        if condition.corruption is not None:
            pixels = corrupt(
                pixels,
                condition.corruption,
                condition.severity,
                seed=draw.seed,
                ids=source.ids[part],
                frost_dir=draw.frost_dir,
            )
        yield pixels, source.labels[part]


def device_of(name: str) -> torch.device:
    """Returns a device by its name.

    Raises:
        InputError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {name} can't be used: {reason}. Give cpu, or a device that torch finds here."
        ) from None
    return device
