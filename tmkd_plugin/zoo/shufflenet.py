"""ShuffleNet V1 (Zhang et al. 2018) and V2 (Ma et al. 2018) for small images, as in CRD's code.

The stem is a 1x1 convolution at full resolution, without max-pooling. All layers keep PyTorch's default
initialisation, as in that code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmkd_plugin.zoo.convnet import ConvNet, channel_shuffle, conv1x1, depthwise3x3

STEM_WIDTH = 24


class GroupedBottleneck(nn.Module):
    """V1's unit: grouped 1x1 convolution, shuffle, depthwise 3x3, grouped 1x1.

    With stride 2 the pooled input is concatenated to the result instead of being added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.halves = stride == 2
        new_channels = out_channels - in_channels if self.halves else out_channels
        middle = new_channels // 4
        # The stem's 24 channels are too few to be grouped (section 3.2 of the paper).
        self.groups = 1 if in_channels == STEM_WIDTH else groups
        self.conv1 = conv1x1(in_channels, middle, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = depthwise3x3(middle, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, new_channels, groups=groups)
        self.bn3 = nn.BatchNorm2d(new_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, h, w) to (B, out_channels, h / stride, w / stride)."""
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        # The ReLU after the depthwise convolution is CRD's; the paper has none there.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.halves:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return F.relu(out + x)


class ShuffleNetV1(ConvNet):
    """ShuffleNet V1 with 3 groups and stages of 240, 480 and 960 channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM_WIDTH)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = self._stage(STEM_WIDTH, 240, units=4)
        self.layer2 = self._stage(240, 480, units=8)
        self.layer3 = self._stage(480, 960, units=4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, units: int) -> nn.Sequential:
        first = GroupedBottleneck(in_channels, out_channels, stride=2, groups=3)
        others = (GroupedBottleneck(out_channels, out_channels, stride=1, groups=3) for _ in range(units - 1))
        return nn.Sequential(first, *others)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last stage's output, after its ReLU: (B, 960, H / 8, W / 8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer1(x)
        x = self.layer2(x)
        feature_map: Tensor = self.layer3(x)
        return feature_map


class SplitUnit(nn.Module):
    """V2's unit at one resolution: half of the channels pass, the other half is convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, channels, h, w) to the same shape."""
        passing, convolved = x.chunk(2, dim=1)
        convolved = F.relu(self.bn1(self.conv1(convolved)))
        convolved = self.bn2(self.conv2(convolved))
        convolved = F.relu(self.bn3(self.conv3(convolved)))
        return channel_shuffle(torch.cat([passing, convolved], dim=1), groups=2)


class HalvingUnit(nn.Module):
    """V2's unit at a stage's start: two branches of stride 2, each of which gives half of the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        # The numbers run through both branches, so that CRD's checkpoints fit.
        self.conv1 = depthwise3x3(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_channels, h, w) to (B, out_channels, h / 2, w / 2)."""
        short = self.bn1(self.conv1(x))
        short = F.relu(self.bn2(self.conv2(short)))
        long = F.relu(self.bn3(self.conv3(x)))
        long = self.bn4(self.conv4(long))
        long = F.relu(self.bn5(self.conv5(long)))
        return channel_shuffle(torch.cat([short, long], dim=1), groups=2)


class ShuffleNetV2(ConvNet):
    """ShuffleNet V2 1x: stages of 116, 232 and 464 channels, then a 1x1 convolution to 1024.

    CRD's stages have one unit of stride 2 and 3, 7 and 3 more; so do the paper's (4, 8 and 4 in total).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM_WIDTH)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.layer1 = self._stage(STEM_WIDTH, 116, units=4)
        self.layer2 = self._stage(116, 232, units=8)
        self.layer3 = self._stage(232, 464, units=4)
        self.conv2 = conv1x1(464, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1024, num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, units: int) -> nn.Sequential:
        others = (SplitUnit(out_channels) for _ in range(units - 1))
        return nn.Sequential(HalvingUnit(in_channels, out_channels), *others)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns what is pooled: the last 1x1 convolution after batch norm and ReLU, (B, 1024, H / 8, W / 8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        return F.relu(self.bn2(self.conv2(x)))
