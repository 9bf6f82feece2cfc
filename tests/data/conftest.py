import numpy as np
import pytest
from PIL import Image


def noise(size=(40, 40), seed=0, low=0, high=256):
    """An RGB image of random pixels; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(low, high, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_image():
    return noise


@pytest.fixture
def make_tree(tmp_path):
    """Writes ``{"train/cat": 4, ...}``: so many different PNG images below a new folder, which is returned."""

    def make(counts, name="pictures", size=(40, 40)):
        root = tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        for place, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                noise(size, seed=1000 * place + index).save(root / folder / f"{index:03d}.png")
        return root

    return make
