"""The images that are measured: in memory and in files, all and some, with digests that tell them apart."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from tmkd_plugin.bench.robustness import images as robustness_images
from tmkd_plugin.bench.robustness.images import clean_images, measured_images, shifted_images
from tmkd_plugin.data import load_dataset
from tmkd_plugin.data.batches import evaluation_batches, normalize
from tmkd_plugin.data.dataset import ImageSplit
from tmkd_plugin.errors import InputError


@pytest.fixture(params=[None, "resized_crop"])
def dataset(request, image_folder):
    """The same folder in memory, and with its images left in files."""
    return load_dataset(image_folder, image_size=24, augmentation=request.param)


def test_clean_images_are_what_the_student_is_tested_on(dataset):
    found = clean_images(dataset)
    (batch,) = evaluation_batches(dataset.test, dataset.mean, dataset.std, batch_size=100)
    assert torch.equal(normalize(found.images, dataset.mean, dataset.std), batch.images)
    assert torch.equal(found.labels, batch.labels)
    assert torch.equal(found.ids, batch.ids)
    assert (len(found), found.side) == (12, 24)


def test_a_folder_is_read_as_the_comparison_s_images_are(dataset, image_folder):
    clean, shifted = clean_images(dataset), shifted_images(image_folder / "test", dataset, "same")
    assert torch.equal(shifted.images, clean.images)
    assert torch.equal(shifted.labels, clean.labels)
    assert shifted.ids.tolist() == list(range(12))


def test_one_class_is_enough(dataset, image_folder, tmp_path):
    shutil.copytree(image_folder / "test" / "green", tmp_path / "green")
    shifted = shifted_images(tmp_path, dataset, "one")
    assert set(shifted.labels.tolist()) == {dataset.class_names.index("green")}
    assert len(shifted) == 4


def test_fewer_images_are_spread_over_the_classes(dataset):
    some = clean_images(dataset, 6)
    assert torch.bincount(some.labels).tolist() == [2, 2, 2]
    assert len(clean_images(dataset, 99)) == 12


def test_digests_tell_pixels_labels_and_ids_apart(dataset):
    clean = clean_images(dataset)
    split = ImageSplit(clean.images, clean.labels, clean.ids)
    others = [
        dataclasses.replace(split, images=split.images.flip(0)),
        dataclasses.replace(split, labels=split.labels.flip(0)),
        dataclasses.replace(split, ids=split.ids + 1),
    ]
    digests = {measured_images("test", each).digest for each in (split, *others)}
    assert len(digests) == 4
    assert measured_images("other name", split).digest == clean.digest


def test_too_many_images_are_refused_with_advice(dataset, image_folder, monkeypatch):
    monkeypatch.setattr(robustness_images, "MAX_GIGABYTES", 1e-6)
    with pytest.raises(InputError, match=r"The 12 test images of 24 px need .* GB of memory.*--images"):
        clean_images(dataset)
    with pytest.raises(InputError, match="Put fewer of them into the folder"):
        shifted_images(image_folder, dataset, "x")
