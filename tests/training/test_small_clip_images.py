import numpy as np
import pytest
import torch
from PIL import Image

from tmkd_plugin.data import FileSplit, ImageSplit
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.small_clip_images import images_of


def in_memory(images):
    count = len(images)
    return ImageSplit(images, torch.arange(count) % 2, torch.arange(count))


def noise(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def bars(count, size):
    """Pictures of two classes: a bright bar that stands or lies, at another place and brightness in each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    for index in range(count):
        start = int(torch.randint(size // 8, size - size // 4, (), generator=generator))
        bar = (
            images[index, :, :, start : start + size // 8] if index % 2 else images[index, :, start : start + size // 8]
        )
        bar.fill_(int(torch.randint(120, 256, (), generator=generator)))
    return images


@pytest.fixture
def files(tmp_path):
    """Files of 24 bars at 64 px, and their pixels."""
    images = bars(24, 64)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index:02d}.png")
    paths = tuple(f"{index:02d}.png" for index in range(24))
    return FileSplit(tmp_path, paths, torch.arange(24) % 2, torch.arange(24), image_size=224), images


def test_images_of_32_px_are_those_of_the_split():
    images = noise(5, 3, 32, 32)
    assert images_of(in_memory(images)) is images


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (16, 16), (48, 80)])
def test_other_sizes_are_resized_with_antialiasing(size):
    images = noise(3, 3, *size)
    result = images_of(in_memory(images))
    assert (result.shape, result.dtype) == ((3, 3, 32, 32), torch.uint8)
    for image, resized in zip(images, result, strict=True):
        by_pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(by_pillow).astype(int) - resized.permute(1, 2, 0).numpy()).max() <= 2


def test_no_image_depends_on_the_others():
    images = noise(300, 3, 20, 20)
    whole = images_of(in_memory(images))
    assert torch.equal(torch.cat([images_of(in_memory(part)) for part in images.split(7)]), whole)


def test_files_give_their_central_square(files):
    split, images = files
    result = images_of(split)
    assert (result.shape, result.dtype) == ((24, 3, 32, 32), torch.uint8)
    assert torch.equal(images_of(split), result)
    for image, resized in zip(images, result, strict=True):
        by_pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(by_pillow), resized.permute(1, 2, 0).numpy())


def test_files_that_can_not_be_used_are_named(files):
    split, _ = files
    split.file(3).write_bytes(b"x")
    with pytest.raises(InputError, match=r"03\.png: not an image"):
        images_of(split)
