"""Wide residual networks for CIFAR (Zagoruyko and Komodakis 2016): 6n+4 layers, pre-activation blocks, no dropout."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tmkd_plugin.zoo.convnet import ConvNet, conv1x1, conv3x3, initialise


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input; otherwise it is the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride), not activated."""
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        skip: Tensor = x if self.shortcut is None else self.shortcut(active)
        return residual + skip


class WideResNet(ConvNet):
    """A wide residual network of three stages at full, half and quarter resolution.

    Args:
        depth: The number of layers, 6n+4.
        width: The widening factor of the stages 16-32-64.
        num_classes: K.
    """

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = _stage(16, 16 * width, blocks, stride=1)
        self.block2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns what is pooled: the last sum after batch norm and ReLU, (B, 64 * width, H / 4, W / 4)."""
        x = self.conv1(images)
        x = self.block1(x)
        x = self.block2(x)
        x = self.block3(x)
        return F.relu(self.bn1(x))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
