"""VGG with batch norm for small images: five stages of 3x3 convolutions and one linear layer, as in CRD's code."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tmkd_plugin.zoo.convnet import ConvNet, initialise

# From this height on the fourth stage is followed by a max-pooling too, as in CRD's code, which does so at 64 px.
FOUR_POOLINGS_FROM = 64

WIDTHS = (64, 128, 256, 512, 512)


class VGG(ConvNet):
    """A VGG network without the hidden linear layers.

    Args:
        convolutions: How many convolutions each of the five stages has.
        num_classes: K.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        in_widths = (3, *WIDTHS[:-1])
        self.blocks = nn.ModuleList(map(_stage, in_widths, WIDTHS, convolutions))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        initialise(self, linear_std=0.01)

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last stage's output, after its ReLU: (B, 512, 4, 4) at 32 and 64 px, (B, 512, 14, 14) at 224."""
        poolings = 4 if images.shape[2] >= FOUR_POOLINGS_FROM else 3
        x = images
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < poolings:
                x = F.max_pool2d(x, 2)
        return x


def _stage(in_channels: int, out_channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        layers.append(nn.Conv2d(in_channels if index == 0 else out_channels, out_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)
