"""The networks that are measured: every finished student of a comparison, and its teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tmkd_plugin.bench.figures.finished_run import Entry, FinishedRun, finished_seeds
from tmkd_plugin.bench.robustness.images import MeasuredImages
from tmkd_plugin.data.batches import normalize
from tmkd_plugin.errors import InputError, RunError
from tmkd_plugin.training.metrics import evaluating, logits_of

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import ImageDataset

PROBED = 64
"""How many test images tell one network from another."""


@dataclass(frozen=True, eq=False)
class MeasuredNetwork:
    """A network that is measured.

    Attributes:
        name: Of the arm, or of the teacher.
        title: Its name in tables.
        seed: Of the run; ``None`` for a teacher that no run has a part in.
        network: Normalised images (B, 3, S, S) on its device -> logits (B, K), in eval mode.
        note: What a reader has to know of it; empty for students.
        digest: Tells it from every other network: a hash of its logits on the first test images.
    """

    name: str
    title: str
    seed: int | None
    network: nn.Module
    note: str
    digest: str


def chosen_arms(run: FinishedRun, names: Sequence[str] | None) -> list[Entry]:
    """Returns the arms of these names, or all, that have a finished seed.

    Raises:
        InputError: There is no arm of a name, or no finished one.
    """
    arms = list(run.results["arms"]) if names is None else [run.arm(name) for name in dict.fromkeys(names)]
    arms = [arm for arm in arms if finished_seeds(arm)]
    if not arms:
        raise InputError(
            f"No arm of {run.folder} has a finished seed: the same `tmkd bench` command goes on from there."
        )
    return arms


def student_networks(
    run: FinishedRun, arms: Sequence[Entry], dataset: ImageDataset, images: MeasuredImages, device: torch.device
) -> list[MeasuredNetwork]:
    """Returns the students of all finished seeds, with the weights of their best epochs.

    Raises:
        InputError: Weights are missing or don't fit.
    """
    found = []
    for arm in arms:
        for seed in finished_seeds(arm):
            network = run.student(arm, seed).to(device)
            digest = network_digest(network, dataset, images)
            found.append(MeasuredNetwork(str(arm["name"]), str(arm["title"]), seed, network, "", digest))
    return found


def teacher_networks(
    run: FinishedRun,
    dataset: ImageDataset,
    images: MeasuredImages,
    device: torch.device,
    cache_dir: Path | None = None,
) -> list[MeasuredNetwork]:
    """Returns the comparison's teachers, alone and fused, as classifiers into which no label enters.

    Raises:
        InputError: A teacher is not to be had any more.
    """
    from tmkd_plugin.bench.fused_teachers import teachers_of

    found = []
    for teacher in teachers_of(run, cache_dir, dataset=dataset):
        network = teacher.network.to(device).eval()
        digest = network_digest(network, dataset, images)
        found.append(MeasuredNetwork(teacher.name, teacher.title, teacher.seed, network, teacher.note, digest))
    return found


def network_digest(network: nn.Module, dataset: ImageDataset, images: MeasuredImages) -> str:
    """Returns the sha256 of what a network says of the first test images: whatever changes its answers changes this.

    Raises:
        RunError: A logit is NaN or infinite.
    """
    with evaluating(network) as device:
        pixels = normalize(images.images[:PROBED], dataset.mean, dataset.std)
        logits = logits_of(network(pixels.to(device))).float().cpu().contiguous()
    if not bool(logits.isfinite().all()):
        raise RunError("A network's logits are NaN or infinite on clean test images: its weights have diverged.")
    return hashlib.sha256(repr(tuple(logits.shape)).encode() + logits.numpy().tobytes()).hexdigest()
