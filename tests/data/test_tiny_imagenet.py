import hashlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from tmkd_plugin.data import ImageSplit, tiny_imagenet
from tmkd_plugin.data.archives import ArchiveSource
from tmkd_plugin.data.dataset import Limits
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.data.tiny_imagenet import distinct_names, load_tiny_imagenet
from tmkd_plugin.errors import InputError

PARTS = ("train", "validation", "test")
CLASSES = {
    "n02124075": "Egyptian cat",
    "n01443537": "goldfish, Carassius auratus",
    "n03042490": "cliff dwelling",
}
IN_ORDER = ["n01443537", "n02124075", "n03042490"]
TRAIN_PER_CLASS, TEST = 12, 6


def colour_of(wnid, number):
    return (IN_ORDER.index(wnid) * 80, number * 7, 120)


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path, format="JPEG", quality=95)


@pytest.fixture
def root(tmp_path):
    """Three classes in the official layout; the files listed out of order, as the official ones are."""
    root = tmp_path / "data" / "tiny-imagenet-200"
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(CLASSES))
    words = {"n00001740": "entity", "n00002137": "abstraction, abstract entity"} | CLASSES
    (root / "words.txt").write_text("".join(f"{wnid}\t{names}\n" for wnid, names in words.items()))
    for wnid in CLASSES:
        for number in range(TRAIN_PER_CLASS):
            save(root / f"train/{wnid}/images/{wnid}_{number}.JPEG", colour_of(wnid, number))
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    rows = []
    for number in range(TEST):
        wnid = list(CLASSES)[number % 3]
        save(root / f"val/images/val_{number}.JPEG", colour_of(wnid, number))
        rows.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(rows))
    save(root / "test/images/test_0.JPEG", (0, 0, 0))
    return root


def load(root, **fields):
    return load_tiny_imagenet(DatasetRequest("tiny_imagenet", root.parent, **({"download": False} | fields)))


def append(path, text):
    path.write_text(path.read_text() + text)


def test_classes_are_in_the_order_of_their_ids_with_names_as_words(root):
    data = load(root)
    assert data.class_names == ["goldfish", "Egyptian cat", "cliff dwelling"]
    assert data.name == "tiny_imagenet"
    assert data.image_size == 64


def test_every_image_has_its_class_and_its_place(root):
    data = load(root)
    official = [(wnid, number) for wnid in IN_ORDER for number in range(TRAIN_PER_CLASS)]
    official += [(list(CLASSES)[number % 3], number) for number in range(TEST)]
    for part in PARTS:
        split = getattr(data, part)
        assert isinstance(split, ImageSplit)
        for image, label, index in zip(split.images, split.labels.tolist(), split.ids.tolist(), strict=True):
            wnid, number = official[index]
            assert IN_ORDER[label] == wnid
            difference = image.float().mean((1, 2)).numpy() - np.array(colour_of(wnid, number))
            assert np.abs(difference).max() < 4
    ids = [index for part in PARTS for index in getattr(data, part).ids.tolist()]
    assert sorted(ids) == list(range(len(official)))
    assert data.test.ids.tolist() == list(range(3 * TRAIN_PER_CLASS, len(official)))


def test_defaults_and_settings(root):
    data = load(root)
    assert (data.augmentation.crop_padding, data.augmentation.flip) == (8, True)
    assert set(data.validation.labels.tolist()) == {0, 1, 2}
    assert len(data.validation) < len(data.train) / 2
    assert len(load(root, validation_fraction=0.5).validation) > len(data.validation)
    limited = load(root, image_size=32, limits=Limits(train=6, validation=3, test=3))
    assert [len(getattr(limited, part)) for part in PARTS] == [6, 3, 3]
    assert limited.image_size == 32


def test_images_may_stay_in_files(root):
    data = load(root, augmentation="resized_crop")
    assert not isinstance(data.train, ImageSplit)
    assert data.train.ids.tolist() == load(root).train.ids.tolist()


def test_the_reader_is_told_that_it_is_not_the_whole_data_set(root):
    lines = []
    load(root, say=lines.append)
    assert len(lines) == 1
    assert "36 train, 6 test (official: 100,000 train, 10,000 test)" in lines[0]


def test_the_official_archive_is_unpacked(root, monkeypatch, tmp_path):
    expected = load(root).fingerprint
    there = tmp_path / "there"
    there.mkdir()
    archive = there / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root.parent))
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    source = ArchiveSource(None, archive.name, md5=digest, inside="tiny-imagenet-200")
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", source)
    data = load_tiny_imagenet(DatasetRequest("tiny_imagenet", there, download=False))
    assert data.fingerprint == expected


def test_a_missing_data_set_names_url_checksum_and_folder(tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path / "data" / "x")
    for part in (
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        str(tmp_path / "data" / "tiny-imagenet-200"),
    ):
        assert part in str(error.value)


def test_everything_that_is_wrong_is_said_in_one_message(root):
    append(root / "wnids.txt", "\nn09999999\nn03042490\n")
    append(
        root / "val/val_annotations.txt",
        "val_9.JPEG\tn01443537\t0\t0\t9\t9\nval_0.JPEG\tn07777777\t0\t0\t9\t9\nval_1.JPEG\n",
    )
    (root / "val/images/val_2.JPEG").unlink()
    (root / "train/n05555555").mkdir()
    with pytest.raises(InputError) as error:
        load(root)
    for problem in (
        "wnids.txt: class n03042490 2 times",
        "words.txt: no name for class n09999999 of wnids.txt",
        "train/n05555555: not a class of wnids.txt",
        "train/n09999999: a class of wnids.txt without a folder",
        "val_annotations.txt, row 8: class 'n07777777' is not in wnids.txt",
        "val_annotations.txt, row 9: 'val_1.JPEG', expected image, class id, box",
        "val/images/val_9.JPEG: listed, but there is no such file",
        "val/images/val_2.JPEG: listed, but there is no such file",
    ):
        assert problem in str(error.value)


def test_a_training_folder_without_images_is_named(root):
    (root / "train/n01443537/images").rename(root / "train/n01443537/pictures")
    with pytest.raises(InputError, match="train/n01443537/images: can't be listed"):
        load(root)


def test_hidden_and_other_files_are_no_images(root):
    expected = load(root).fingerprint
    (root / "train/.DS_Store").touch()
    (root / "train/n01443537/images/._n01443537_0.JPEG").touch()
    (root / "train/n01443537/images/Thumbs.db").touch()
    assert load(root).fingerprint == expected


def test_damaged_images_are_named(root):
    (root / "train/n01443537/images/n01443537_3.JPEG").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"train/n01443537/images/n01443537_3\.JPEG"):
        load(root)


@pytest.mark.parametrize("name", ["words.txt", "val/val_annotations.txt"])
def test_missing_list_files_are_named(root, name):
    (root / name).unlink()
    with pytest.raises(InputError, match=rf"There is no file '.*{name}'"):
        load(root)


@pytest.mark.parametrize(
    ("synonyms", "names"),
    [
        ([["goldfish", "carp"], ["cat"]], ["goldfish", "cat"]),
        ([["maillot"], ["maillot", "tank suit"]], ["maillot", "tank suit"]),
        ([["crane", "bird"], ["Crane", "machine"]], ["bird", "machine"]),
        ([["a", "b"], ["a", "b", "c"], ["b", "d"]], ["b", "c", "d"]),
        ([["same"], ["same"]], ["same", "same"]),
    ],
)
def test_classes_of_one_name_take_their_next_synonym(synonyms, names):
    assert distinct_names(synonyms) == names


def test_names_that_cannot_be_told_apart_are_refused(root):
    append(root / "words.txt", "n02124075\tgoldfish\n")
    (root / "words.txt").write_text((root / "words.txt").read_text().replace(", Carassius auratus", ""))
    with pytest.raises(InputError, match="Duplicate class names: 'goldfish'"):
        load(root)
