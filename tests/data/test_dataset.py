import subprocess
import sys

import pytest
import torch

from tmkd_plugin.data import Augmentation, ImageSplit, make_dataset
from tmkd_plugin.data.dataset import channel_statistics, fingerprint
from tmkd_plugin.errors import InputError


def make_split(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 9, 11), generator=generator).to(torch.uint8)
    images[:, 1] //= 3
    return ImageSplit(images, torch.arange(count) % 2, torch.arange(count))


def make(train, validation, test, names=("cat", "dog")):
    return make_dataset("mine", names, train=train, validation=validation, test=test, augmentation=Augmentation())


def test_statistics_equal_float64_and_are_those_of_training():
    train = make_split(5000)
    data = make(train, make_split(10, 1), make_split(20, 2))
    pixels = train.images.double() / 255
    for channel in range(3):
        assert data.mean[channel] == pytest.approx(float(pixels[:, channel].mean()), abs=5.1e-5)
        assert data.std[channel] == pytest.approx(float(pixels[:, channel].std(correction=0)), abs=5.1e-5)
    assert all(round(value, 4) == value for value in data.mean + data.std)


def test_a_constant_channel_can_be_divided_by():
    mean, std = channel_statistics(torch.full((3, 3, 8, 8), 51, dtype=torch.uint8))
    assert mean == (0.2, 0.2, 0.2)
    assert std == (0.0039, 0.0039, 0.0039)


def test_fingerprint_sees_pixels_labels_names_and_splits():
    names, first, second = ["cat", "dog"], make_split(6), make_split(4, 1)
    original = fingerprint(names, [first, second])
    assert original == fingerprint(list(names), [make_split(6), make_split(4, 1)])
    assert len(original) == 64
    other_pixels = first.images.clone()
    other_pixels[3, 2, 1, 0] ^= 1
    changes = [
        fingerprint(["cat", "fox"], [first, second]),
        fingerprint(names, [second, first]),
        fingerprint(names, [ImageSplit(other_pixels, first.labels, first.ids), second]),
        fingerprint(names, [ImageSplit(first.images, 1 - first.labels, first.ids), second]),
        fingerprint(names, [first]),
    ]
    assert len({original, *changes}) == 6


def test_strided_images_have_the_same_fingerprint():
    split = make_split(6)
    strided = ImageSplit(split.images.contiguous(memory_format=torch.channels_last), split.labels, split.ids)
    assert fingerprint(["a", "b"], [strided]) == fingerprint(["a", "b"], [split])


@pytest.mark.parametrize(
    ("images", "labels", "ids", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), torch.arange(2), "float32: expected uint8"),
        (torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long(), torch.arange(2), r"\(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(3).long(), torch.arange(2), r"labels of shape \(3,\)"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2), torch.arange(2), "labels .*float32: expected int64"),
        (torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long(), torch.arange(1), r"ids of shape \(1,\)"),
    ],
)
def test_splits_of_other_tensors_are_refused(images, labels, ids, message):
    with pytest.raises(InputError, match=message):
        ImageSplit(images, labels, ids)


def test_importing_the_package_imports_no_heavy_library():
    code = (
        "import sys, tmkd_plugin.data; print([m for m in ('PIL', 'sklearn', 'torchvision', 'cv2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
