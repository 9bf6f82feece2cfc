import dataclasses
import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tmkd_plugin.data import ImageSplit
from tmkd_plugin.data.cifar import load_cifar
from tmkd_plugin.data.dataset import Limits
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

PARTS = ("train", "validation", "test")
TRAIN, TEST = 600, 100
NAMES10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES100 = ["apple", "aquarium_fish", "maple_tree", "lawn_mower", "sea"]
OFFICIAL = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def make_pixels(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def make_labels(count, num_classes, seed):
    labels = np.arange(count) % num_classes
    return np.random.default_rng(seed).permutation(labels).tolist()


@dataclasses.dataclass
class Written:
    """A small data set in the official format."""

    name: str
    folder: object
    pixels: np.ndarray  # uint8 (N,3072), training images first
    labels: list

    def load(self, **fields):
        return load_cifar(DatasetRequest(self.name, self.folder.parent, download=False, **fields))


def write_cifar(monkeypatch, data_dir, name, **changes):
    """Writes batches and tells torchvision's class their checksums, which is where the loader reads them."""
    official = OFFICIAL[name]
    folder = data_dir / official.base_folder
    folder.mkdir(parents=True)
    names, key = (NAMES10, "labels") if name == "cifar10" else (NAMES100, "fine_labels")
    pixels = make_pixels(TRAIN + TEST, 0)
    labels = make_labels(TRAIN, len(names), 1) + make_labels(TEST, len(names), 2)
    train_files = [file for file, _ in official.train_list]
    bounds = np.linspace(0, TRAIN, len(train_files) + 1).astype(int).tolist()
    rows = {file: slice(*bounds[place : place + 2]) for place, file in enumerate(train_files)}
    rows[official.test_list[0][0]] = slice(TRAIN, None)
    content = {
        file: {"batch_label": file, key: labels[part], "data": pixels[part], "coarse_labels": [0]} | changes
        for file, part in rows.items()
    }
    content[official.meta["filename"]] = {official.meta["key"]: names, "num_vis": 3072}
    checksums = {}
    for file, value in content.items():
        raw = pickle.dumps(value, protocol=2)
        (folder / file).write_bytes(raw)
        checksums[file] = hashlib.md5(raw).hexdigest()
    monkeypatch.setattr(official, "train_list", [[file, checksums[file]] for file in train_files])
    monkeypatch.setattr(official, "test_list", [[file, checksums[file]] for file, _ in official.test_list])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": checksums[official.meta["filename"]]})
    return Written(name, folder, pixels, labels)


@pytest.fixture(params=["cifar10", "cifar100"])
def written(request, monkeypatch, tmp_path):
    return write_cifar(monkeypatch, tmp_path / "data", request.param)


@pytest.fixture
def small(monkeypatch, tmp_path):
    return write_cifar(monkeypatch, tmp_path / "data", "cifar100")


def test_images_and_labels_are_those_of_the_official_order(written):
    data = written.load()
    expected = written.pixels.reshape(-1, 3, 32, 32)
    for part in PARTS:
        split = getattr(data, part)
        assert isinstance(split, ImageSplit)
        np.testing.assert_array_equal(split.images.numpy(), expected[split.ids.numpy()])
        assert split.labels.tolist() == [written.labels[index] for index in split.ids.tolist()]
    assert data.test.ids.tolist() == list(range(TRAIN, TRAIN + TEST))
    assert data.name == written.name
    assert data.image_size == 32


def test_class_names_are_words(monkeypatch, tmp_path):
    assert write_cifar(monkeypatch, tmp_path / "10", "cifar10").load().class_names == NAMES10
    names = write_cifar(monkeypatch, tmp_path / "100", "cifar100").load().class_names
    assert names == ["apple", "aquarium fish", "maple tree", "lawn mower", "sea"]


def test_validation_is_a_tenth_of_training_in_each_class_by_a_fixed_rule(written):
    data = written.load()
    ids = torch.cat([data.train.ids, data.validation.ids])
    assert sorted(ids.tolist()) == list(range(TRAIN))
    per_class = torch.bincount(data.validation.labels, minlength=data.num_classes)
    assert per_class.min() >= 1
    assert 0.06 * TRAIN < len(data.validation) < 0.14 * TRAIN
    # The rule, written down a second time: the first 64 bits of a hash of purpose and id, as a number in [0, 1).
    for index in data.validation.ids.tolist():
        digest = hashlib.sha256(f"{written.name} validation\0{index}".encode()).digest()
        assert int.from_bytes(digest[:8], "big") / 2**64 < 0.1 or per_class[written.labels[index]] == 1
    assert data.fingerprint == written.load().fingerprint


def test_a_larger_fraction_takes_more_of_the_same(small):
    tenth, third = small.load(), small.load(validation_fraction=0.33)
    assert set(tenth.validation.ids.tolist()) < set(third.validation.ids.tolist())
    assert third.test.ids.tolist() == tenth.test.ids.tolist()
    with pytest.raises(InputError, match="validation_fraction=1"):
        small.load(validation_fraction=1)


def test_limits_keep_equally_many_of_each_class(small):
    whole, limited = small.load(), small.load(limits=Limits(train=52, validation=10, test=20))
    assert torch.bincount(limited.train.labels).tolist() == [11, 11, 10, 10, 10]
    assert [len(getattr(limited, part)) for part in PARTS] == [52, 10, 20]
    for part in PARTS:
        kept = getattr(limited, part).ids.tolist()
        assert kept == sorted(kept)
        assert set(kept) <= set(getattr(whole, part).ids.tolist())
    with pytest.raises(InputError, match="train_limit=4"):
        small.load(limits=Limits(train=4))


def test_statistics_are_those_of_the_training_split(small):
    data = small.load()
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=6e-5)


def test_augmentation_is_a_crop_after_padding_by_4_and_a_flip(small):
    for augmentation in (None, "crop_flip"):
        found = small.load(augmentation=augmentation).augmentation
        assert (found.crop_padding, found.flip, found.resized_crop) == (4, True, None)
    with pytest.raises(InputError, match=r"augmentation='resized_crop' can't be used for 'cifar100'.*give 'crop_flip'"):
        small.load(augmentation="resized_crop")


def test_other_sizes_are_interpolated(small):
    data = small.load(image_size=64, limits=Limits(train=10, validation=5, test=5))
    assert data.image_size == 64
    assert data.augmentation.crop_padding == 8
    pixels = small.pixels.reshape(-1, 3, 32, 32)[int(data.test.ids[3])].transpose(1, 2, 0)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(data.test.images[3].numpy(), expected.transpose(2, 0, 1))
    with pytest.raises(InputError, match="image_size=4"):
        small.load(image_size=4)


def test_memory_is_bounded(small):
    with pytest.raises(InputError, match=r"max_gigabytes=0\.001"):
        small.load(max_gigabytes=0.001)


def test_the_folder_of_data_sets_may_be_the_folder_itself(small):
    request = DatasetRequest("cifar100", small.folder, download=False)
    assert load_cifar(request).fingerprint == small.load().fingerprint


def test_the_official_archive_is_unpacked(small, monkeypatch, tmp_path):
    expected = small.load().fingerprint
    there = tmp_path / "there"
    there.mkdir()
    archive = there / datasets.CIFAR100.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(small.folder, arcname=datasets.CIFAR100.base_folder)
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    lines = []
    assert load_cifar(DatasetRequest("cifar100", there, download=False, say=lines.append)).fingerprint == expected
    assert len(lines) == 1
    assert (there / "cifar-100-python" / "meta").is_file()


def test_a_missing_data_set_names_torchvisions_url_and_checksum(tmp_path):
    for name, official in OFFICIAL.items():
        with pytest.raises(InputError) as error:
            load_cifar(DatasetRequest(name, tmp_path, download=False))
        for part in (official.url, official.tgz_md5, official.filename, official.base_folder):
            assert part in str(error.value)


def test_every_file_is_checked_before_it_is_read(written):
    for path in sorted(written.folder.iterdir()):
        content = path.read_bytes()
        path.write_bytes(b"cos\nsystem\n(Vtouch ran\ntR.")
        with pytest.raises(InputError, match=rf"{path.name}' has md5 \w+, expected \w+: it is not the official file"):
            written.load()
        path.write_bytes(content)
    written.load()


def test_a_pickle_that_runs_something_is_refused_even_with_a_right_checksum(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    hostile = b"cos\nsystem\n(Vtouch ran\ntR."
    (small.folder / "train").write_bytes(hostile)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", hashlib.md5(hostile).hexdigest()]])
    with pytest.raises(InputError, match=r"asks to import 'os\.system'"):
        small.load()
    assert not (tmp_path / "ran").exists()


def test_a_missing_batch_is_named(small):
    (small.folder / "test").unlink()
    with pytest.raises(InputError, match=r"test' can't be read: No such file"):
        small.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((4, 3072), np.float32)}, "no array 'data' of uint8 with 3,072 columns"),
        ({"data": np.zeros((4, 1024), np.uint8)}, "no array 'data'"),
        ({"data": [1]}, "no array 'data'"),
        ({"fine_labels": [0]}, "no list of 600 labels"),
        ({"fine_labels": None}, "no list of 600 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 5]}, "has the label 5, expected .* from 0 to 4"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, True]}, "has the label True"),
    ],
)
def test_content_of_another_form_is_refused(monkeypatch, tmp_path, changes, message):
    written = write_cifar(monkeypatch, tmp_path, "cifar100", **changes)
    with pytest.raises(InputError, match=message):
        written.load()


def test_an_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'cifar100'"):
        load_cifar(DatasetRequest("cifar1000", tmp_path))
