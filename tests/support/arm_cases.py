"""Arms that train on noise, and copies of a teacher that hold the same tensors."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.trainer import train_distillers
from tmkd_plugin.zoo import build_network

NAMES = ["blue", "green", "red"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def split(count: int, seed: int) -> ImageSplit:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=draw, dtype=torch.uint8)
    return ImageSplit(images, torch.arange(count) % 3, torch.arange(count))


def noise() -> ImageDataset:
    """Images of noise, 22 of them to train on."""
    splits = {"train": split(22, 1), "validation": split(6, 2), "test": split(6, 3)}
    return ImageDataset(
        name="noise", class_names=NAMES, mean=MEAN, std=STD, augmentation=Augmentation(crop_padding=2, flip=True),
        fingerprint="0" * 64, **splits,
    )  # fmt: skip


class Counted(nn.Module):
    """Counts the passes of a network and of its copies."""

    passes = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        type(self).passes += 1
        return self.network(images)


def sharing_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network, {id(t): t for t in (*network.parameters(), *network.buffers())})


def text() -> torch.Tensor:
    return torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(4))


def distiller(name: str, teacher: nn.Module) -> nn.Module:
    baseline, _, enhancer = name.partition("+")
    settings = {"seed": 3} if baseline == "tekap" else {}
    built = build_baseline(baseline, build_network("resnet8", 3, seed=3), teacher, **settings)
    if enhancer == "tmkd":
        built = TMKDEnhancer(built, NAMES, text=text(), mean=MEAN, std=STD, seed=3, input_size=16)
    return built


def train(names, teachers, dataset, root: Path, **options):
    arms = {name: distiller(name, teacher) for name, teacher in zip(names, teachers, strict=True)}
    settings = TrainingSettings(epochs=2, batch_size=8, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
    folders = {name: root / name for name in names}
    return train_distillers(arms, dataset, settings, seed=3, folders=folders, **options)


def step(arm: nn.Module, images, labels) -> torch.Tensor:
    return arm(images, labels)["loss"].detach()


def batch(seed: int = 0):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), torch.tensor([0, 1, 2, 0])


def two_arms(teacher: nn.Module) -> list[nn.Module]:
    arms = [nn.Module(), nn.Module()]
    for arm in arms:
        arm.teacher = sharing_copy(teacher)
    return arms
