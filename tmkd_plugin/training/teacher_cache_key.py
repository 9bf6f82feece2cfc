"""What a teacher's kept answers depend on: all of it, and nothing else, names the file that they are kept in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.data.dataset import Augmentation, ImageDataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.watched_teacher import description, replaced_forward
from tmkd_plugin.version import __version__
from tmkd_plugin.views import ViewSettings


@dataclass(frozen=True)
class View:
    """A view that a teacher sees.

    Attributes:
        name: A name of ``VIEW_NAMES``.
        settings: Thresholds and scales; None for RGB, which has none.
    """

    name: str
    settings: ViewSettings | None = None


RGB = View("rgb")


def view_of(name: str, settings: ViewSettings) -> View:
    """Returns the view of this name."""
    return RGB if name == "rgb" else View(name, settings)


def is_random(augmentation: Augmentation) -> bool:
    """Says whether two epochs can show an image differently."""
    return bool(augmentation.crop_padding or augmentation.flip or augmentation.resized_crop)


def images_key(dataset: ImageDataset, seed: int, epoch: int) -> dict[str, Any]:
    """Says which pixels the teacher sees.

    Args:
        dataset: Its training split counts.
        seed: Of the augmentation.
        epoch: The epoch, from 1, whose augmentation the images have.
    """
    # Without random augmentation all seeds and epochs share the answers.
    drawn = {**asdict(dataset.augmentation), "seed": seed, "epoch": epoch}
    return {
        "fingerprint": dataset.fingerprint,
        "ids_sha256": _digest([dataset.train.ids]),
        "image_size": dataset.image_size,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "augmentation": drawn if is_random(dataset.augmentation) else None,
    }


def computation_key(acceleration: Acceleration, device: torch.device) -> dict[str, Any]:
    """Says how the teacher computes, as far as its answers depend on it."""
    return {
        "tmkd": __version__,
        "torch": str(torch.__version__),
        "device": device.type,
        "precision": acceleration.precision,
        "compile": acceleration.compile,
        "channels_last": acceleration.channels_last,
    }


def view_key(view: View) -> dict[str, Any]:
    """Says which view of the images it is."""
    return {"name": view.name, "settings": None if view.settings is None else asdict(view.settings)}


def teacher_key(network: nn.Module) -> dict[str, str]:
    """Identifies a network by its class, its structure, its modules' plain attributes and every parameter and buffer.

    Raises:
        InputError: A module's ``forward`` was replaced on the object, so that nothing says what it computes.
    """
    kind, replaced = type(network), replaced_forward(network)
    if replaced is not None:
        raise InputError(
            f"The forward of '{replaced}' in the teacher ({kind.__name__}) was replaced on the object, and a teacher cache "
            "can't tell what it computes. Override it in a class, or leave --teacher-cache out."
        )
    tensors = [*network.named_parameters(), *network.named_buffers()]
    names = " ".join(name for name, _ in tensors)
    return {
        "network": f"{kind.__module__}.{kind.__qualname__}",
        "structure_sha256": hashlib.sha256(f"{network}\n{names}\n{description(network)}".encode()).hexdigest(),
        "weights_sha256": _digest([tensor for _, tensor in tensors]),
    }


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
