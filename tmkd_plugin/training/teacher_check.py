"""What a stored teacher can do, measured, and compared with what its record says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tmkd_plugin.data.dataset import ImageDataset, Split
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.teacher_store import WEIGHTS, StoredTeacher, advice_for, read_weights
from tmkd_plugin.training.view_training import top1_by_view
from tmkd_plugin.views import ViewSettings
from tmkd_plugin.zoo import build_network


def verify_teacher(stored: StoredTeacher, dataset: ImageDataset, device: str | torch.device = "cpu") -> list[str]:
    """Measures a stored teacher again, on validation and test images and every view, and compares it with its record.

    Args:
        stored: The teacher.
        dataset: What its record says it was measured on, loaded again.
        device: Where to measure.

    Returns:
        A line for each thing that is not what the record says; none if all is well.
    """
    if stored.problem is not None:
        return [stored.problem]
    record, identity = stored.record, stored.record["identity"]
    if dataset.fingerprint != identity["data_fingerprint"]:
        return [f"the images of '{dataset.name}' are not those that it was measured on: their fingerprint is another"]
    try:
        weights = read_weights(stored.folder, record)
        network = build_network(identity["network"], identity["num_classes"], image_size=dataset.image_size)
        network.load_state_dict(weights)
    except (InputError, RuntimeError) as error:  # torch's own for weights of another network
        return [str(error)]
    batch_size, view_settings = identity["settings"]["batch_size"], ViewSettings(**identity["view_settings"])
    problems = []
    for split, by_view in measure(network.to(device), dataset, batch_size, view_settings).items():
        for view, top1 in by_view.items():
            recorded = record[split].get(view, math.nan)
            if not _agree(top1, recorded, len(_split_of(dataset, split))):
                problems.append(
                    f"{split.removesuffix('_top1')} top-1, {view}: {top1:.2f} %, the record says {recorded:.2f} %"
                )
    return problems


def measure(
    network: nn.Module, dataset: ImageDataset, batch_size: int, view_settings: ViewSettings
) -> dict[str, dict[str, float]]:
    """Returns the top-1 of each view on the validation and on the test split."""
    return {
        name: top1_by_view(network, _split_of(dataset, name), dataset.mean, dataset.std, batch_size, view_settings)
        for name in ("val_top1", "test_top1")
    }


def _split_of(dataset: ImageDataset, score: str) -> Split:
    return dataset.test if score == "test_top1" else dataset.validation


def check_accuracy(network: nn.Module, dataset: ImageDataset, record: Mapping[str, Any], folder: Path) -> None:
    """Refuses a network whose validation top-1 on RGB images is not the one in its record.

    Raises:
        InputError: It is another; the message gives both.
    """
    recorded = record["val_top1"]["rgb"]
    measured = validation_top1(network, dataset, record["identity"]["settings"]["batch_size"])
    if not _agree(measured, recorded, len(dataset.validation)):
        raise InputError(
            f"The teacher '{folder / WEIGHTS}' has {measured:.2f} % on the validation split, but its record says "
            f"{recorded:.2f} %: data, pre-processing or network have changed since. {advice_for(folder)}"
        )


def _agree(measured: float, recorded: float, images: int) -> bool:
    """Another machine type may decide one image, or one of a thousand, differently."""
    return abs(measured - recorded) <= max(100 / images, 0.1) + 1e-3


def validation_top1(network: nn.Module, dataset: ImageDataset, batch_size: int) -> float:
    """Returns the top-1 on the validation split, RGB, in percent."""
    scores, _ = evaluate(network, dataset.validation, dataset.mean, dataset.std, batch_size)
    return scores.top1
