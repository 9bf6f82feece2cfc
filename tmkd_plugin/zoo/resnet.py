"""ResNet-18, -34 and -50, built from torchvision's classes, with the ImageNet stem or with one for small images."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from tmkd_plugin.zoo.convnet import ConvNet, conv3x3


class ResNet(ConvNet):
    """A residual network of four stages whose state dict has torchvision's names and shapes.

    Initialised as torchvision does: Kaiming normal, fan-out, for convolutions; PyTorch's default for the classifier.

    Args:
        depth: 18, 34 or 50.
        num_classes: K.
        small_images: A 3x3 stem of stride 1 without max-pooling, which keeps the resolution, instead of the ImageNet
            stem, which divides it by 4.
    """

    def __init__(self, depth: int, num_classes: int, small_images: bool = False) -> None:
        super().__init__()
        theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=num_classes)
        self.conv1: nn.Conv2d = theirs.conv1
        self.bn1: nn.BatchNorm2d = theirs.bn1
        self.relu: nn.ReLU = theirs.relu
        self.maxpool: nn.Module = theirs.maxpool
        if small_images:
            self.conv1 = conv3x3(3, 64)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        self.layer1: nn.Sequential = theirs.layer1
        self.layer2: nn.Sequential = theirs.layer2
        self.layer3: nn.Sequential = theirs.layer3
        self.layer4: nn.Sequential = theirs.layer4
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Linear = theirs.fc

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last stage's output, after its ReLU.

        (B, C, H / 32, W / 32), or (B, C, H / 8, W / 8) with the stem for small images; C is 512, or 2048 for depth 50.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        feature_map: Tensor = self.layer4(x)
        return feature_map
