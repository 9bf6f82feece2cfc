"""Teachers by name: trained here once and kept, or loaded from a user's checkpoint, and always measured."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import Batch, training_batches
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.distiller import cross_entropy
from tmkd_plugin.errors import TmkdNotice, unknown_name
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import CHECKPOINT_SECONDS, Checkpoints
from tmkd_plugin.training.files import json_line, save_tensors, sha256_of_file, write_bytes, write_json
from tmkd_plugin.training.lockstep import train_arms
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.recipes import recipe_name_of
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teacher_check import check_accuracy, measure, validation_top1
from tmkd_plugin.training.teacher_store import (
    HISTORY,
    RECORD,
    WEIGHTS,
    holds_teacher,
    read_record,
    read_weights,
    teacher_folder,
    teacher_identity,
    training_folder,
)
from tmkd_plugin.training.trainer import check_splits
from tmkd_plugin.training.view_training import top1_by_view, with_random_views
from tmkd_plugin.version import __version__
from tmkd_plugin.views import ViewSettings
from tmkd_plugin.zoo import build_network

TEACHER_VIEWS = ("rgb", "all")


@dataclass(frozen=True)
class TrainedTeacher:
    """A frozen teacher and what it can do.

    Attributes:
        network: In eval mode, without gradients.
        folder: Where its weights lie.
        val_top1: Top-1 on the validation split, RGB, in percent.
        top1: Top-1 on the test split, RGB.
        per_view_top1: Top-1 on the test split for each view, and for the plain average of their logits (``"average"``).
        source: Where it comes from, in words that are the same for a fresh and a cached teacher.
        weights_sha256: SHA-256 of the file with its weights.
        from_cache: Whether it was trained earlier.
    """

    network: nn.Module
    folder: Path
    val_top1: float
    top1: float
    per_view_top1: dict[str, float]
    source: str
    weights_sha256: str
    from_cache: bool


class Classifier(nn.Module):
    """A network that learns from labels alone, in the shape of a distiller: cross-entropy is its only term.

    Args:
        network: Takes images (B, 3, H, W), returns logits (B, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.student = network

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns ``"loss"``, ``"output"`` and ``"ce"`` of a batch; labels are (B,) int64 or (B, K) probabilities."""
        logits = self.student(images)
        loss = cross_entropy(logits, labels)
        return {"loss": loss, "output": logits, "ce": loss}


def trained_teacher(
    name: str,
    dataset: ImageDataset,
    settings: TrainingSettings,
    *,
    views: str,
    seed: int = 0,
    cache_dir: str | Path,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    view_settings: ViewSettings | None = None,
    pretrained: bool = False,
    loading: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainedTeacher:
    """Returns a teacher for a data set: from a checkpoint, from the store, or trained now and put into the store.

    A teacher that is trained here learns from labels alone; the epoch is chosen by its validation top-1 on RGB images. If
    training is interrupted, the next call goes on from the last checkpoint.

    Args:
        name: A network's name; see :func:`~tmkd_plugin.zoo.build_network`.
        dataset: What it is trained, chosen and measured on.
        settings: The recipe.
        views: ``"rgb"``, or ``"all"`` to show each image in a view drawn at random in each epoch.
        seed: Initialisation, order, augmentation and views are functions of it.
        cache_dir: The store: teachers lie in a folder each under it, named by everything that decides their weights.
        checkpoint: A file with the user's own weights; nothing is trained or stored then.
        progress: What shows how far training is; None for nothing.
        device: Where to train.
        view_settings: Thresholds and scales of the views that it is trained and measured on; None for the defaults.
        pretrained: Start from the weights that torchvision or timm offer for this name, with a new classifier.
        loading: What ``load_dataset`` was called with, see :func:`~tmkd_plugin.training.teacher_store.loading_of`; the
            record keeps it, so that the teacher can be measured again. Decides nothing.
        checkpoint_seconds: The least time between two checkpoints.

    Raises:
        InputError: A name is unknown, pretrained weights can't be had, the checkpoint does not fit, or a stored teacher is
            not what its record says.
    """
    if views not in TEACHER_VIEWS:
        raise unknown_name("teacher views", views, TEACHER_VIEWS)
    view_settings = view_settings or ViewSettings()
    check_splits(dataset, settings)
    if checkpoint is not None:
        return _from_checkpoint(name, dataset, settings, Path(checkpoint), device, view_settings)
    identity = teacher_identity(name, dataset, settings, views, seed, view_settings, pretrained)
    folder = teacher_folder(cache_dir, identity)
    from_cache = holds_teacher(folder)
    # A stored teacher overwrites its start, which need not be downloaded for it.
    start = pretrained and not from_cache
    network = build_network(name, dataset.num_classes, pretrained=start, seed=seed, image_size=dataset.image_size)
    network = network.to(device)
    if not from_cache:
        with training_folder(folder) as unfinished:
            from_cache = unfinished is None
            if unfinished is not None:
                checkpoints = Checkpoints(unfinished, identity, every_seconds=checkpoint_seconds, say=_notice)
                _train(network, dataset, settings, view_settings, identity, unfinished, progress, loading, checkpoints)
    record = read_record(folder)
    network.load_state_dict(read_weights(folder, record))
    check_accuracy(network, dataset, record, folder)
    return TrainedTeacher(
        network=_frozen(network),
        folder=folder,
        val_top1=record["val_top1"]["rgb"],
        top1=record["test_top1"]["rgb"],
        per_view_top1=record["test_top1"],
        source=f"{name}{', pretrained' if pretrained else ''}, trained on {dataset.name} "
        f"({'RGB' if views == 'rgb' else 'all views'}, seed {seed})",
        weights_sha256=record["weights_sha256"],
        from_cache=from_cache,
    )


def _from_checkpoint(
    name: str,
    dataset: ImageDataset,
    settings: TrainingSettings,
    path: Path,
    device: str | torch.device,
    view_settings: ViewSettings,
) -> TrainedTeacher:
    network = build_network(name, dataset.num_classes, checkpoint=path, image_size=dataset.image_size).to(device)
    by_view = top1_by_view(network, dataset.test, dataset.mean, dataset.std, settings.batch_size, view_settings)
    return TrainedTeacher(
        network=_frozen(network),
        folder=path.parent,
        val_top1=validation_top1(network, dataset, settings.batch_size),
        top1=by_view["rgb"],
        per_view_top1=by_view,
        source=f"{name}, checkpoint {path.name}",
        weights_sha256=sha256_of_file(path),
        from_cache=False,
    )


def _train(
    network: nn.Module,
    dataset: ImageDataset,
    settings: TrainingSettings,
    view_settings: ViewSettings,
    identity: dict[str, Any],
    folder: Path,
    progress: Progress | None,
    loading: Mapping[str, Any] | None,
    checkpoints: Checkpoints,
) -> None:
    """Trains a network and writes its weights, its history and its record into a folder."""
    device, seed = next(network.parameters()).device, identity["seed"]
    train, ids = dataset.train.to(device), int(dataset.train.ids.max()) + 1
    steps = check_splits(dataset, settings)
    arm = Arm(
        f"teacher {identity['network']}", Classifier(network), settings, seed=seed, steps_per_epoch=steps, device=device
    )
    arm.check(dataset)
    if (found := checkpoints.load()) is not None:
        arm.restore(found)

    def batches(epoch: int) -> Iterable[Batch]:
        plain = training_batches(
            train,
            dataset.augmentation,
            dataset.mean,
            dataset.std,
            batch_size=settings.batch_size,
            seed=seed,
            epoch=epoch,
        )
        if identity["views"] == "rgb":
            return plain
        return with_random_views(
            plain, dataset.mean, dataset.std, images=ids, seed=seed, epoch=epoch, view_settings=view_settings
        )

    def save(arm: Arm, _: dict[str, Any]) -> None:
        write_bytes(folder / HISTORY, b"".join(json_line(record) for record in arm.history))

    train_arms([arm], batches, dataset, after_epoch=save, progress=progress, checkpoints={arm.name: checkpoints})
    arm.restore_best()
    save(arm, {})
    save_tensors(folder / WEIGHTS, network.state_dict(), epoch=arm.best_epoch)
    record = {
        "identity": identity,
        "recipe_name": recipe_name_of(settings),
        "dataset": {"name": dataset.name, "loading": None if loading is None else dict(loading)},
        "best_epoch": arm.best_epoch,
        **measure(network, dataset, settings.batch_size, view_settings),
        "weights_sha256": sha256_of_file(folder / WEIGHTS),
        "trained_with": _environment(device),
    }
    checkpoints.clear()
    write_json(folder / RECORD, record)


def _environment(device: torch.device) -> dict[str, str]:
    """Returns what made a teacher and does not name it, but for the version of torch."""
    import torchvision

    return {
        "tmkd_plugin": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "device": device.type,
    }


def _notice(line: str) -> None:
    warnings.warn(line, TmkdNotice, stacklevel=3)


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False).eval()
