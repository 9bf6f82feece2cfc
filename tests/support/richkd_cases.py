"""Tiny networks and a tiny CLIP, and RichKD around them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tiny_networks import TinyConvNet
from torch import Tensor, nn

from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.clip_teacher import ClipTeacher
from tmkd_plugin.richkd import RichKDEnhancer

NAMES = ["heron", "tern", "wren", "jay"]
SMALL = {"projection_width": 8, "negatives": 5, "queue_size": 20}


def images(batch: int = 5, seed: int = 0, size: int = 16) -> Tensor:
    levels = torch.randint(0, 256, (batch, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


class TinyImageTower(nn.Module):
    """Stands in for an open_clip model: mean colour -> 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = SimpleNamespace(preprocess_cfg={"size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3})
        weight = torch.randn(6, 3 * 8 * 8, generator=torch.Generator().manual_seed(4))
        self.weight = nn.Parameter(weight)

    def encode_image(self, prepared: Tensor) -> Tensor:
        return prepared.flatten(1) @ self.weight.T


def clip_model() -> ClipTeacher:
    prototypes = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    return ClipTeacher(TinyImageTower(), prototypes, "tiny")


def networks() -> tuple[TinyConvNet, TinyConvNet]:
    return TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2)


def enhanced(distiller: nn.Module | Callable | None = None, **settings: object) -> RichKDEnhancer:
    return RichKDEnhancer(distiller or KD(*networks()), NAMES, **{"clip": clip_model(), **SMALL, **settings})
