"""The names of our own networks."""

from __future__ import annotations

from collections.abc import Callable

from tmkd_plugin.zoo.convnet import ConvNet
from tmkd_plugin.zoo.mobilenet import MobileNetV2
from tmkd_plugin.zoo.resnet_cifar import CifarResNet
from tmkd_plugin.zoo.shufflenet import ShuffleNetV1, ShuffleNetV2
from tmkd_plugin.zoo.vgg import VGG
from tmkd_plugin.zoo.wide_resnet import WideResNet

NARROW = (16, 16, 32, 64)
TIMES_FOUR = (32, 64, 128, 256)


def _resnet(depth: int, num_classes: int, small_images: bool) -> ConvNet:
    from tmkd_plugin.zoo.resnet import ResNet  # imports torchvision

    return ResNet(depth, num_classes, small_images)


# The stem is in the name: `resnet50` has the ImageNet stem, `resnet50_cifar` a 3x3 one without max-pooling.
NETWORKS: dict[str, Callable[[int], ConvNet]] = {
    "resnet8": lambda classes: CifarResNet(8, NARROW, classes),
    "resnet14": lambda classes: CifarResNet(14, NARROW, classes),
    "resnet20": lambda classes: CifarResNet(20, NARROW, classes),
    "resnet32": lambda classes: CifarResNet(32, NARROW, classes),
    "resnet44": lambda classes: CifarResNet(44, NARROW, classes),
    "resnet56": lambda classes: CifarResNet(56, NARROW, classes),
    "resnet110": lambda classes: CifarResNet(110, NARROW, classes),
    "resnet8x4": lambda classes: CifarResNet(8, TIMES_FOUR, classes),
    "resnet32x4": lambda classes: CifarResNet(32, TIMES_FOUR, classes),
    "wrn_16_1": lambda classes: WideResNet(16, 1, classes),
    "wrn_16_2": lambda classes: WideResNet(16, 2, classes),
    "wrn_40_1": lambda classes: WideResNet(40, 1, classes),
    "wrn_40_2": lambda classes: WideResNet(40, 2, classes),
    "vgg8": lambda classes: VGG((1, 1, 1, 1, 1), classes),
    "vgg11": lambda classes: VGG((1, 1, 2, 2, 2), classes),
    "vgg13": lambda classes: VGG((2, 2, 2, 2, 2), classes),
    "vgg16": lambda classes: VGG((2, 2, 3, 3, 3), classes),
    "vgg19": lambda classes: VGG((2, 2, 4, 4, 4), classes),
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
    "mobilenetv2": MobileNetV2,
    "resnet18": lambda classes: _resnet(18, classes, small_images=False),
    "resnet34": lambda classes: _resnet(34, classes, small_images=False),
    "resnet50": lambda classes: _resnet(50, classes, small_images=False),
    "resnet18_cifar": lambda classes: _resnet(18, classes, small_images=True),
    "resnet34_cifar": lambda classes: _resnet(34, classes, small_images=True),
    "resnet50_cifar": lambda classes: _resnet(50, classes, small_images=True),
}


def list_networks() -> list[str]:
    """Returns the names of our own networks; ``timm/<name>`` and ``torchvision/<name>`` come on top."""
    return sorted(NETWORKS)
