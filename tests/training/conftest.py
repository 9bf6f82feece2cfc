"""A small data set and small distillers for the trainer's tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit, make_dataset
from tmkd_plugin.randomness import forked_random_state, generator_for
from tmkd_plugin.training.settings import TrainingSettings

CLASSES = ["red", "green", "blue"]


def _split(name: str, count: int, first_id: int) -> ImageSplit:
    """Noise in which one colour channel, the class, is brighter: learnable, but not at once."""
    generator = generator_for(0, f"test images {name}")
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randint(0, 200, (count, 3, 8, 8), generator=generator)
    images[torch.arange(count), labels] += 30
    return ImageSplit(images.clamp(max=255).to(torch.uint8), labels, torch.arange(first_id, first_id + count))


@pytest.fixture(scope="session")
def dataset() -> ImageDataset:
    return make_dataset(
        "colours",
        CLASSES,
        train=_split("train", 61, 0),
        validation=_split("validation", 40, 61),
        test=_split("test", 50, 101),
        augmentation=Augmentation(crop_padding=1, flip=True),
    )


class SmallDistiller(nn.Module):
    """Cross-entropy, and a squared error against a teacher through a head of the distiller's own."""

    def __init__(self, seed: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        with forked_random_state(seed, "small distiller"):
            self.student = nn.Sequential(
                nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout),
                nn.Linear(6, 3),
            )  # fmt: skip
            self.teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 3))
            self.head = nn.Linear(3, 3)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [*self.student.parameters(), *self.head.parameters()]

    def epoch_report(self) -> dict:
        return {"fusion_weights": {"rgb": 0.5, "edge": 0.5}}

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.student(images)
        with torch.no_grad():
            taught = self.teacher(images)
        ce, mse = F.cross_entropy(logits, labels), 0.1 * F.mse_loss(self.head(logits), taught)
        return {"loss": ce + mse, "output": logits, "ce": ce, "mse": mse}


@pytest.fixture
def small_distiller():
    return SmallDistiller


@pytest.fixture
def settings() -> TrainingSettings:
    return TrainingSettings(epochs=4, batch_size=16, learning_rate=0.1, warmup_epochs=1, decay_epochs=(3,))
