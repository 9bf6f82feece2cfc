import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tmkd_plugin.data import load_dataset
from tmkd_plugin.errors import InputError

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_splits_are_pinned(digits):
    assert [len(getattr(digits, part)) for part in PARTS] == [698, 299, 800]
    assert digits.fingerprint == "dbc0e4bcf4e806f6e5294b8c9aed3c3fb11683261ca25be27415443298a069d4"
    assert load_dataset("digits").fingerprint == digits.fingerprint


def test_splits_are_stratified_and_share_no_image(digits):
    ids = torch.cat([getattr(digits, part).ids for part in PARTS])
    assert sorted(ids.tolist()) == list(range(1797))
    assert torch.bincount(digits.test.labels).tolist() == [80] * 10
    for part in ("train", "validation"):
        counts = torch.bincount(getattr(digits, part).labels)
        assert counts.max() - counts.min() <= 6
    pixels = torch.cat([getattr(digits, part).images for part in PARTS]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 1797


def test_images_are_the_rasters_interpolated(digits):
    source = load_digits()
    split = digits.test
    assert split.images.shape == (800, 3, 32, 32)
    assert split.images.dtype == torch.uint8
    assert digits.image_size == 32
    assert np.array_equal(split.labels.numpy(), source.target[split.ids.numpy()])
    # Independent reference: weights of linear interpolation at the centres of the small pixels, in float64.
    centres = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)))
    expected = np.rint(weights @ source.images[split.ids.numpy()] @ weights.T * 255 / 16)
    for channel in range(3):
        assert np.array_equal(split.images[:, channel].numpy(), expected)
    assert int(digits.train.images.max()) == 255


def test_class_names_and_augmentation(digits):
    assert digits.class_names == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert digits.num_classes == 10
    assert digits.name == "digits"
    assert not digits.augmentation.flip
    assert digits.augmentation.crop_padding == 2


def test_limits_keep_nested_stratified_subsets_of_the_same_splits(digits):
    small = load_dataset("digits", train_limit=103, validation_limit=20, test_limit=50)
    larger = load_dataset("digits", train_limit=300)
    assert torch.bincount(small.train.labels).tolist() == [11, 11, 11] + [10] * 7
    assert torch.bincount(small.validation.labels).tolist() == [2] * 10
    assert torch.bincount(small.test.labels).tolist() == [5] * 10
    assert set(small.train.ids.tolist()) < set(larger.train.ids.tolist()) < set(digits.train.ids.tolist())
    assert torch.equal(larger.test.ids, digits.test.ids)
    assert torch.equal(larger.validation.ids, digits.validation.ids)
    assert small.fingerprint != larger.fingerprint != digits.fingerprint


def test_a_limit_above_the_size_keeps_everything(digits):
    assert load_dataset("digits", train_limit=5000).fingerprint == digits.fingerprint


def test_validation_fraction_leaves_the_test_split(digits):
    other = load_dataset("digits", validation_fraction=0.1)
    assert len(other.validation) == pytest.approx(100, abs=5)
    assert torch.equal(other.test.ids, digits.test.ids)


def test_image_size(digits):
    assert load_dataset("digits", image_size=16, train_limit=10).train.images.shape == (10, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_limit": 5}, "train_limit=5: .*at least 10, one for each class"),
        ({"test_limit": 0}, "test_limit=0"),
        ({"validation_limit": 20.0}, r"validation_limit=20\.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0: expected a number above 0 and below 1"),
        ({"validation_fraction": 0}, "validation_fraction=0"),
        ({"image_size": 4}, "image_size=4: .* at least 8"),
        ({"image_size": 64.0}, r"image_size=64\.0"),
        ({"max_gigabytes": 0.001}, r"'digits' needs 0\.01 GB .*1,797 images of 32 px.*max_gigabytes=0\.001"),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        load_dataset("digits", **arguments)


@pytest.mark.parametrize("name", ["digts", "Digits", "mnist", ""])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"Unknown data set '{name}'.*with a slash") as error:
        load_dataset(name)
    assert ("Did you mean 'digits'?" in str(error.value)) == (name in ("digts", "Digits"))
