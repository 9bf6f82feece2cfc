"""Networks and distillers small enough for any test, in the forms that users' code has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyConvNet(nn.Module):
    """Convolution, batch norm, global pooling, linear: images (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, num_classes: int = 4, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, width, 3, padding=1)
            self.bn = nn.BatchNorm2d(width)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(width, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(images)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.pool(features).flatten(1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class FeaturePairNet(TinyConvNet):
    """Returns (logits, {"feats": [...], "pooled_feat": ...}), as mdistiller's networks do."""

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, object]]:
        features = self.forward_features(images)
        pooled = self.pool(features).flatten(1)
        return self.fc(pooled), {"feats": [images.mean(1, keepdim=True), features], "pooled_feat": pooled}


class LogitsAndFeaturesNet(TinyConvNet):
    """Returns (logits, features)."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.forward_features(images)
        return self.forward_head(features), features


class FunctionalPoolNet(TinyConvNet):
    """Pools by a mean in forward(), without a pooling layer."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(images))).mean(dim=(2, 3)))


def logit_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="batchmean")
