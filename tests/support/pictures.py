"""Images on which views are tested, and `cv2.Canny` plane by plane."""

import functools
import itertools

import cv2
import numpy as np
import torch


def canny_plane_by_plane(images, low=100, high=200, l2_gradient=False):
    planes = images.contiguous().numpy().reshape(-1, *images.shape[-2:])
    edges = [cv2.Canny(plane, low, high, L2gradient=l2_gradient) for plane in planes]
    return torch.from_numpy(np.stack(edges).reshape(images.shape)) > 0


def random_pixels(*shape, seed=0, top=256):
    return torch.randint(0, top, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def photographs(size):
    """Crops of scikit-learn's two photographs, most of them shrunk, uint8 (8,3,size,size)."""
    rng = np.random.default_rng(size)
    crops = []
    for index in range(8):
        photograph = load_photographs()[index % 2]
        side = int(size * rng.uniform(1, 420 / size))
        top, left = rng.integers(0, photograph.shape[0] - side), rng.integers(0, photograph.shape[1] - side)
        crop = photograph[top : top + side, left : left + side]
        crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA).transpose(2, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops)))


@functools.cache
def load_photographs():
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def synthetic_images(size=40):
    """Images that stress ties and diagonals: ramps, noise of one grey level, discs, stripes, a lone pixel, checkers."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    rng = np.random.default_rng(0)
    disc = np.hypot(x - size / 2, y - size / 3) < size / 4
    planes = [
        x * 255 / size,
        (x + y) * 255 / (2 * size),
        np.abs(x - y) * 255 / size,
        100 + rng.integers(0, 2, (size, size)),
        100 + 30 * disc,
        40 + 200 * disc,
        128 + 120 * np.sin(x / 2) * np.cos(y / 3),
        255 * ((x.astype(int) // 4) % 2),
        255 * ((x.astype(int) + y.astype(int)) % 2),
        255 * (x.astype(int) // 2 + y.astype(int) // 2 > size // 2),
        np.where((x == 7) & (y == 9), 255, 0),
        cv2.GaussianBlur(rng.uniform(0, 255, (size, size)), (7, 7), 2) * 3 - 255,
    ]
    return torch.from_numpy(np.stack(planes).clip(0, 255).astype(np.uint8)).view(-1, 3, size, size)


def read_jpegs(archive, count):
    """Decodes the first images of a pack of JPEG files, uint8 (count,3,H,W)."""
    with np.load(archive, allow_pickle=False) as pack:
        blob, offsets = pack["blob"], pack["offsets"]
    spans = itertools.pairwise(offsets[: count + 1])
    images = np.stack([cv2.imdecode(blob[start:end], cv2.IMREAD_COLOR) for start, end in spans])
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
