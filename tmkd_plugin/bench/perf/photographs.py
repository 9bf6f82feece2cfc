"""Photographs to measure with: how long Canny takes depends on how many edges there are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LONGEST_SIDE = 420  # of a crop: scikit-learn's photographs are 427 pixels high


def photographs(count: int, size: int) -> Tensor:
    """Returns crops of scikit-learn's two photographs, most of them shrunk, uint8 (count,3,size,size)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(size)
    whole = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    crops = []
    for number in range(count):
        photograph = whole[number % len(whole)]
        side = int(rng.uniform(min(size, _LONGEST_SIDE), _LONGEST_SIDE))
        left = int(rng.integers(0, photograph.width - side))
        top = int(rng.integers(0, photograph.height - side))
        crop = photograph.resize((size, size), Image.Resampling.BOX, (left, top, left + side, top + side))
        crops.append(np.asarray(crop).transpose(2, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops)))
