"""Images that show what a corruption does: smooth clouds, flat areas, black and white ones."""

from __future__ import annotations

import pytest
import torch


def cloudy(count: int, side: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic", align_corners=False)
    return images.clamp(0, 255).to(torch.uint8)


@pytest.fixture
def images() -> torch.Tensor:
    """uint8 (6, 3, 32, 32): clouds, a white, a black, a half grey one."""
    made = cloudy(6, 32)
    made[3], made[4], made[5, :, :, :16] = 255, 0, 128
    return made


@pytest.fixture
def make_images():
    return cloudy
