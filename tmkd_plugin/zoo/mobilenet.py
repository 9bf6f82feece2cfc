"""MobileNet V2 (Sandler et al. 2018) at half width for small images, as in CRD's code: ReLU instead of ReLU6."""

from __future__ import annotations

from torch import Tensor, nn

from tmkd_plugin.zoo.convnet import ConvNet, conv1x1, conv3x3, depthwise3x3, initialise

LAST_WIDTH = 1280

# Table 2 of the paper: expansion, channels at full width, units, stride of the first unit (CRD's second row has 1).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; the input is added where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_activated(conv1x1(in_channels, middle)),
            *_activated(depthwise3x3(middle, stride)),
            conv1x1(middle, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride), not activated."""
        out: Tensor = self.conv(x)
        return x + out if self.adds_input else out


class MobileNetV2(ConvNet):
    """MobileNet V2 whose stages are narrowed; the last 1x1 convolution keeps its 1280 channels.

    Args:
        num_classes: K.
        width: What the stages' channels are multiplied with, rounded down.
    """

    def __init__(self, num_classes: int, width: float = 0.5) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*_activated(conv3x3(3, channels, stride=2)))
        self.blocks = nn.ModuleList()
        for expansion, full_width, units, stride in STAGES:
            out_channels = int(full_width * width)
            stage = [InvertedResidual(channels, out_channels, stride, expansion)]
            stage += [InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(units - 1)]
            self.blocks.append(nn.Sequential(*stage))
            channels = out_channels
        self.conv2 = nn.Sequential(*_activated(conv1x1(channels, LAST_WIDTH)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(LAST_WIDTH, num_classes)
        initialise(self, linear_std=0.01)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns what is pooled: the last 1x1 convolution after batch norm and ReLU, (B, 1280, H / 16, W / 16)."""
        x = self.conv1(images)
        for stage in self.blocks:
            x = stage(x)
        feature_map: Tensor = self.conv2(x)
        return feature_map


def _activated(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
