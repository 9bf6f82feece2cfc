"""The residual networks for CIFAR: 6n+2 layers, three stages (He et al. 2016, section 4.2).

Widths and projection shortcuts are those of CRD's code: 16-16-32-64, and 32-64-128-256 for the "x4" variants.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tmkd_plugin.zoo.convnet import ConvNet, conv1x1, conv3x3, initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv1x1(in_channels, out_channels, stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride)."""
        residual = F.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.downsample(x))


class CifarResNet(ConvNet):
    """A residual network of three stages at full, half and quarter resolution.

    Args:
        depth: The number of layers, 6n+2.
        widths: Channels of the stem and of the three stages.
        num_classes: K.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last stage's output, after its ReLU: (B, C, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer1(x)
        x = self.layer2(x)
        feature_map: Tensor = self.layer3(x)
        return feature_map


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
