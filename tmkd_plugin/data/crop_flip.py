"""Random crops after padding, and mirroring, drawn for a whole split at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmkd_plugin.data.dataset import Augmentation
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for


def draw_augmentation(count: int, augmentation: Augmentation, seed: int, epoch: int) -> Tensor:
    """Draws the augmentation of every image of a split.

    Returns:
        int64 (count,3): top and left of the crop in the padded image, both in 0..2 * crop_padding, and 1 to flip.
    """
    padding = augmentation.crop_padding
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise InputError(f"crop_padding={padding!r}: expected a whole number of pixels, 0 or more.")
    generator = generator_for(seed, "augmentation", epoch)
    # Flips are drawn first, and always, so that turning crops on or off does not change them.
    flips = torch.randint(2, (count, 1), generator=generator) * int(augmentation.flip)
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator)
    return torch.cat([corners, flips], dim=1)


def augment(images: Tensor, draws: Tensor, crop_padding: int) -> Tensor:
    """Crops and flips each image as drawn; what lies outside of the image is 0, black.

    Args:
        images: uint8 (B,3,H,W).
        draws: int64 (B,3): top and left of the crop in the padded image, and 1 to flip.
        crop_padding: Pixels of padding on each side.

    Returns:
        uint8 (B,3,H,W).
    """
    count, channels, height, width = images.shape
    top, left, flip = draws.unbind(dim=1)
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device).expand(count, -1)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns) + left[:, None]
    if crop_padding:
        images = F.pad(images, [crop_padding] * 4)
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(count, 1, height * width)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(count, channels, height, width)
