"""Both enhancers for the same small problem: what a host is given for each, and each without a host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin import RichKDEnhancer, TMKDEnhancer
from tmkd_plugin.clip_teacher import ClipAnswers, ClipTeacher
from tmkd_plugin.enhancer_base import TeacherEnhancer

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)


class TinyImageTower(nn.Module):
    """Stands in for an open_clip model: an image of 8 pixels -> 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = SimpleNamespace(preprocess_cfg={"size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3})
        self.weight = nn.Parameter(torch.randn(6, 3 * 8 * 8, generator=torch.Generator().manual_seed(4)))

    def encode_image(self, prepared: Tensor) -> Tensor:
        return prepared.flatten(1) @ self.weight.T


def clip_model(num_classes: int = 4) -> ClipTeacher:
    prototypes = F.normalize(torch.randn(num_classes, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    return ClipTeacher(TinyImageTower(), prototypes, "tiny")


def clip_answers(count: int = 12) -> ClipAnswers:
    generator = torch.Generator().manual_seed(6)
    features = F.normalize(torch.randn(count, 6, generator=generator), dim=1)
    return ClipAnswers(features, torch.rand(count, 4, generator=generator), torch.arange(count), "tiny")


CLIP = clip_model()
RICHKD = {"enhancer": "richkd", "clip": CLIP, "clip_logit_scale": 20.0}
RICHKD |= {"projection_width": 8, "negatives": 5, "queue_size": 20}
GIVEN: dict[str, dict[str, Any]] = {"tmkd": {"text": TEXT}, "richkd": RICHKD}
"""Arguments of `enhance` by enhancer."""

ENHANCERS = list(GIVEN)
OFF: list[dict[str, Any]] = [
    {"enabled": False},
    {"text": TEXT[0], "views": ("rgb",), "fusion": "average"}
    | dict.fromkeys(("feature_weight", "contrast_weight", "logit_weight"), 0.0),
    {"enhancer": "richkd", "clip": CLIP, "alpha": 1.0, "feature_weight": 0.0, "logit_weight": 0.0},
]
"""Arguments of `enhance` that leave every number as it is."""


def unhosted(kind: str, distiller: Any, **arguments: Any) -> TeacherEnhancer:
    """The enhancer itself around a distiller, with the settings that a host is given in the tests."""
    made = {"tmkd": TMKDEnhancer, "richkd": RichKDEnhancer}[kind]
    given = {name: value for name, value in GIVEN[kind].items() if name != "enhancer"}
    return made(distiller, NAMES, **{**given, **arguments})


def usual_logit_weight(kind: str) -> float:
    """Weight of the logit KL that is added where the host has none."""
    return {"tmkd": 1.0, "richkd": 3.0}[kind]


def asked_clip(images: Tensor, mean: Any = (0.0,) * 3, std: Any = (1.0,) * 3) -> Tensor:
    """CLIP's cosines (B, 4) of normalised images."""
    means, stds = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return CLIP((((images * stds + means) * 255).round().clamp(0, 255)).byte()).cosines
