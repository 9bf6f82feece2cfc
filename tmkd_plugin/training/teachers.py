"""Teachers by name: trained here once and kept, or loaded from a user's checkpoint, and always measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.batches import Batch, training_batches
from tmkd_plugin.data.dataset import ImageDataset
from tmkd_plugin.distiller import cross_entropy
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.files import append_jsonl, remove_temporary_files, save_tensors, sha256_of_file, write_json
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.progress import Progress
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.trainer import check_splits, train_arms
from tmkd_plugin.training.view_training import top1_by_view, with_random_views
from tmkd_plugin.views import ViewSettings
from tmkd_plugin.zoo import build_network

TEACHER_VIEWS = ("rgb", "all")
WEIGHTS, RECORD, HISTORY = "teacher.safetensors", "teacher.json", "history.jsonl"
SCHEMA_VERSION = 1


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
) -> TrainedTeacher:
    """Returns a teacher for a data set: from a checkpoint, from the cache, or trained now and put into the cache.

    A teacher that is trained here learns from labels alone; the epoch is chosen by its validation top-1 on RGB images.

    Args:
        name: A network's name; see :func:`~tmkd_plugin.zoo.build_network`.
        dataset: What it is trained, chosen and measured on.
        settings: The recipe.
        views: ``"rgb"``, or ``"all"`` to show each image in a view drawn at random in each epoch.
        seed: Initialisation, order, augmentation and views are functions of it.
        cache_dir: Teachers lie in a folder each under it, named by everything that decides their weights.
        checkpoint: A file with the user's own weights; nothing is trained or cached then.
        progress: What shows how far training is; None for nothing.
        device: Where to train.
        view_settings: Thresholds and scales of the views that it is trained and measured on; None for the defaults.
        pretrained: Start from the weights that torchvision or timm offer for this name, with a new classifier.

    Raises:
        InputError: A name is unknown, the checkpoint does not fit, or a cached teacher is not what its record says.
    """
    if views not in TEACHER_VIEWS:
        raise unknown_name("teacher views", views, TEACHER_VIEWS)
    view_settings = view_settings or ViewSettings()
    check_splits(dataset, settings)
    if checkpoint is not None:
        return _from_checkpoint(name, dataset, settings, Path(checkpoint), device, view_settings)
    recipe = _recipe(name, dataset, settings, views, seed, view_settings, pretrained)
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir) / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}-{key[:16]}"
    from_cache = (folder / RECORD).exists()
    # A cached teacher overwrites its start, which need not be downloaded for it.
    start = pretrained and not from_cache
    network = build_network(name, dataset.num_classes, pretrained=start, seed=seed, image_size=dataset.image_size).to(
        device
    )
    if not from_cache:
        _train(network, dataset, settings, views, seed, folder, recipe, progress, view_settings)
    record = _load(network, dataset, settings, folder, recipe)
    return TrainedTeacher(
        network=_frozen(network),
        folder=folder,
        val_top1=record["val_top1"],
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
        val_top1=_validation_top1(network, dataset, settings),
        top1=by_view["rgb"],
        per_view_top1=by_view,
        source=f"{name}, checkpoint {path.name}",
        weights_sha256=sha256_of_file(path),
        from_cache=False,
    )


def _recipe(
    name: str,
    dataset: ImageDataset,
    settings: TrainingSettings,
    views: str,
    seed: int,
    view_settings: ViewSettings,
    pretrained: bool,
) -> dict[str, Any]:
    """Everything that decides the weights; through JSON and back, so that it compares with what was written."""
    recipe = {
        "schema_version": SCHEMA_VERSION,
        "network": name,
        "num_classes": dataset.num_classes,
        "data_fingerprint": dataset.fingerprint,
        "normalisation": [dataset.mean, dataset.std],
        "augmentation": dataclasses.asdict(dataset.augmentation),
        "settings": dataclasses.asdict(settings),
        "views": views,
        # Of an RGB-trained teacher they decide what its record says of the other views.
        "view_settings": dataclasses.asdict(view_settings),
        "seed": seed,
        "pretrained": pretrained,
        "torch": torch.__version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    return plain


def _train(
    network: nn.Module,
    dataset: ImageDataset,
    settings: TrainingSettings,
    views: str,
    seed: int,
    folder: Path,
    recipe: dict[str, Any],
    progress: Progress | None,
    view_settings: ViewSettings,
) -> None:
    """Trains a network and writes its weights, then its record: a folder without a record holds no teacher."""
    device = next(network.parameters()).device
    train, ids = dataset.train.to(device), int(dataset.train.ids.max()) + 1
    arm = Arm(
        f"teacher {recipe['network']}",
        Classifier(network),
        settings,
        seed=seed,
        steps_per_epoch=check_splits(dataset, settings),
        device=device,
    )
    arm.check(dataset)
    if folder.exists():  # an interrupted attempt
        remove_temporary_files(folder)
        (folder / HISTORY).unlink(missing_ok=True)

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
        if views == "rgb":
            return plain
        return with_random_views(
            plain, dataset.mean, dataset.std, images=ids, seed=seed, epoch=epoch, view_settings=view_settings
        )

    def save(_: Arm, record: dict[str, Any]) -> None:
        append_jsonl(folder / HISTORY, record)

    train_arms([arm], batches, dataset, after_epoch=save, progress=progress)
    arm.restore_best()
    save_tensors(folder / WEIGHTS, network.state_dict(), epoch=arm.best_epoch)
    record = {
        "recipe": recipe,
        "best_epoch": arm.best_epoch,
        "val_top1": arm.history[arm.best_epoch - 1]["val_top1"],
        "test_top1": top1_by_view(network, dataset.test, dataset.mean, dataset.std, settings.batch_size, view_settings),
        "weights_sha256": sha256_of_file(folder / WEIGHTS),
    }
    write_json(folder / RECORD, record)


def _load(
    network: nn.Module, dataset: ImageDataset, settings: TrainingSettings, folder: Path, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Loads a cached teacher's weights into a network and compares all that its record says; returns the record."""
    from safetensors.torch import load_file

    weights, advice = folder / WEIGHTS, f"Delete the folder '{folder}' to train the teacher again."
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded, expected_hash = record["val_top1"], record["weights_sha256"]
        same_recipe = record["recipe"] == recipe and "rgb" in record["test_top1"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The teacher's record '{folder / RECORD}' can't be read ({error!r}). {advice}") from error
    if not same_recipe:
        raise InputError(
            f"The teacher's record '{folder / RECORD}' is of another recipe than its folder's name. {advice}"
        )
    if not weights.exists() or sha256_of_file(weights) != expected_hash:
        raise InputError(f"The teacher's weights '{weights}' are missing or not those that its record names. {advice}")
    network.load_state_dict(load_file(weights))
    measured = _validation_top1(network, dataset, settings)
    # Another machine type may decide one image differently.
    if abs(measured - recorded) > 100 / len(dataset.validation) + 1e-3:
        raise InputError(
            f"The teacher '{weights}' has {measured:.2f} % on the validation split, but its record says {recorded:.2f} %: "
            f"data, pre-processing or network have changed since. {advice}"
        )
    return record


def _validation_top1(network: nn.Module, dataset: ImageDataset, settings: TrainingSettings) -> float:
    scores, _ = evaluate(network, dataset.validation, dataset.mean, dataset.std, settings.batch_size)
    return scores.top1


def _frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False).eval()
