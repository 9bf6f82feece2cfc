"""What all networks of ours share: a convolutional trunk, global average pooling and one linear classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ConvNet(nn.Module, ABC):
    """A network that shows the tensor which enters its global pooling.

    A subclass sets ``pool`` and ``fc`` and implements ``forward_features``. The logits are the classifier's answer to
    the feature map's spatial mean, at any image size that the trunk can take.

    Attributes:
        pool: Global average pooling to 1x1.
        fc: The classifier, from C pooled features to K logits.
    """

    pool: nn.AdaptiveAvgPool2d
    fc: nn.Linear

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the feature map that enters global pooling.

        Args:
            images: Float images (B, 3, H, W), as they are normalised for training.

        Returns:
            The feature map (B, C, h, w), same dtype as the images.
        """

    def forward_head(self, feature_map: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools a feature map and classifies it.

        Args:
            feature_map: What ``forward_features`` returned, (B, C, h, w).
            pre_logits: Return the pooled features instead of the logits.

        Returns:
            Logits (B, K), or pooled features (B, C).
        """
        pooled: Tensor = self.pool(feature_map).flatten(1)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (B, K) of images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(images))


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Returns a 3x3 convolution without bias that keeps the size (stride 1) or halves it (stride 2)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    """Returns a 3x3 convolution without bias that keeps every channel to itself."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


def initialise(network: nn.Module, linear_std: float | None = None) -> None:
    """Initialises the convolutions for ReLU: N(0, 2 / (k * k * out_channels)), He et al. 2015; their biases are 0.

    Batch norms keep PyTorch's 1 and 0.

    Args:
        network: Changed in place, with draws of the global generator (``build_network`` seeds it).
        linear_std: Draw the linear layers' weights from N(0, linear_std^2) with bias 0; None keeps PyTorch's default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleaves the channels of the groups: channel j of group i moves to place ``j * groups + i``.

    Args:
        x: (B, C, h, w) with C a multiple of ``groups``.
        groups: The number of groups.

    Returns:
        The same values, (B, C, h, w).
    """
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)
