import dataclasses
import os
import tarfile
from pathlib import Path

import pytest

from tmkd_plugin.data import Augmentation, cub
from tmkd_plugin.data.cub import load_cub200, read_cub200
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.list_files import ListProblems
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

FOLDERS = ["001.Black_footed_Albatross", "002.Groove_billed_Ani"]
LISTS = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")


@pytest.fixture
def root(tmp_path, make_image):
    """A small tree in the official layout: 2 classes, 6 images each, of which every third is for testing."""
    root = tmp_path / "CUB_200_2011"
    rows = {name: [] for name in LISTS}
    rows["classes.txt"] = [f"{place} {folder}" for place, folder in enumerate(FOLDERS, start=1)]
    for image in range(1, 13):
        label = 1 + (image > 6)
        path = f"{FOLDERS[label - 1]}/{FOLDERS[label - 1][4:]}_{image:04d}_{700 + image}.jpg"
        (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        make_image((20, 16), seed=image).save(root / "images" / path)
        rows["images.txt"].append(f"{image} {path}")
        rows["image_class_labels.txt"].append(f"{image} {label}")
        rows["train_test_split.txt"].append(f"{image} {int(image % 3 > 0)}")
    for name, lines in rows.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def load(root, **arguments):
    return load_cub200(DatasetRequest("cub200", root.parent, download=False, **arguments))


def refusal(root):
    with pytest.raises(InputError) as error:
        load(root)
    return str(error.value)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_official_layout(root):
    lines = []
    data = load(root, image_size=16, augmentation="crop_flip", say=lines.append)
    assert (data.name, data.class_names) == ("cub200", ["Black footed Albatross", "Groove billed Ani"])
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 4)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert len(lines) == 1
    assert "8 train, 4 test (official: 5,994 train, 5,794 test)" in lines[0]


def test_defaults(root):
    data = load(root)
    assert isinstance(data.test, FileSplit)
    assert data.image_size == 224
    assert data.augmentation == Augmentation(flip=True, resized_crop=(0.08, 1.0))
    assert [path[-7:-4] for path in data.test.paths] == ["703", "706", "709", "712"]
    assert data.test.paths[0] == "images/001.Black_footed_Albatross/Black_footed_Albatross_0003_703.jpg"


def test_the_folder_itself_may_be_given(root):
    data = load_cub200(DatasetRequest("cub200", root))
    assert data.test.root == root


def test_splits_follow_the_ids_whatever_the_order_of_the_rows(root):
    before = load(root)
    for name in LISTS[1:]:
        (root / name).write_text("\n".join(reversed((root / name).read_text().splitlines())))
    after = load(root)
    assert after.test.paths == before.test.paths
    assert after.fingerprint == before.fingerprint


def test_lists_that_disagree(root):
    change(root / "images.txt", "2 001.", "99 001.")
    change(root / "train_test_split.txt", "\n5 1", "")
    change(root / "image_class_labels.txt", "\n7 2", "\n7 1")
    message = refusal(root)
    assert "has 4 problems" in message
    assert "image 2: in image_class_labels.txt and train_test_split.txt, but not in images.txt" in message
    assert "image 99: in images.txt, but not in image_class_labels.txt and train_test_split.txt" in message
    assert "image 5: in images.txt and image_class_labels.txt, but not in train_test_split.txt" in message
    assert (
        "image 7 is '002.Groove_billed_Ani/Groove_billed_Ani_0007_707.jpg', but image_class_labels.txt says" in message
    )
    assert "says class 1, '001.Black_footed_Albatross'" in message


def test_wrong_rows(root):
    change(root / "images.txt", "12 002.", "eleven 002.")
    change(root / "images.txt", "4 001.", "3 001.")
    change(root / "image_class_labels.txt", "\n5 1", "\n5 3")
    change(root / "image_class_labels.txt", "\n6 1", "\n6 one")
    change(root / "train_test_split.txt", "\n8 1", "\n8 2")
    change(root / "train_test_split.txt", "\n9 0", "\n9")
    message = refusal(root)
    for problem in (
        "images.txt, row 12: image id 'eleven', expected a whole number",
        "images.txt, row 4: image id 3 for the second time",
        "image 5 has class '3', expected 1 to 2",
        "image 6 has class 'one', expected 1 to 2",
        "train_test_split.txt: image 8 has '2', expected 1 (training) or 0 (test)",
        "train_test_split.txt, row 9: '9', expected image id, 1 for training or 0 for test",
    ):
        assert problem in message


def test_class_ids_count_from_one(root):
    change(root / "classes.txt", "2 002.", "3 002.")
    assert "classes.txt, row 2: class id '3', expected 2" in refusal(root)


def test_one_image_in_both_splits(root):
    change(root / "images.txt", "_0003_703", "_0002_702")
    path = "images/001.Black_footed_Albatross/Black_footed_Albatross_0002_702.jpg"
    assert f"{path}: in the train split and in the test split" in refusal(root)


def test_missing_images_and_lists(root):
    (root / "images" / FOLDERS[0] / "Black_footed_Albatross_0002_702.jpg").unlink()
    assert "Black_footed_Albatross_0002_702.jpg: listed, but there is no such file" in refusal(root)
    (root / "train_test_split.txt").unlink()
    assert "There is no file" in refusal(root)
    assert "train_test_split.txt', which the official data set has" in refusal(root)


def test_an_absent_data_set(tmp_path):
    message = refusal(tmp_path / "CUB_200_2011")
    assert "CUB_200_2011.tgz" in message
    assert "md5 97eceeb196236b17998738112f37df78" in message


def shared(*parts):
    folder = os.environ.get("TMKD_SHARED")
    if not folder:
        pytest.skip("TMKD_SHARED, the folder of the shared data, is not set")
    return Path(folder).joinpath("data", "official_lists", *parts)


def test_the_official_lists(tmp_path):
    official = shared("CUB_200_2011")
    for name in LISTS:
        if name != "images.txt":  # which is not to be had: its rows follow from the other files
            (tmp_path / name).write_text((official / name).read_text())
    folders = [line.split()[1] for line in (official / "classes.txt").read_text().splitlines()]
    rows = [line.split() for line in (official / "image_class_labels.txt").read_text().splitlines()]
    (tmp_path / "images.txt").write_text(
        "\n".join(f"{image} {folders[int(label) - 1]}/{image}.jpg" for image, label in rows)
    )
    problems = ListProblems("cub200", tmp_path)
    listed = read_cub200(tmp_path, problems)
    problems.raise_if_any()
    assert (len(listed.train), len(listed.test), len(listed.class_names)) == (5994, 5794, 200)
    assert listed.class_names[0] == "Black footed Albatross"
    assert {row.label for row in listed.train} == {row.label for row in listed.test} == set(range(200))


def test_the_archive_is_unpacked_without_what_lies_beside_the_folder(root, tmp_path, monkeypatch):
    expected = load(root)
    data_dir = tmp_path / "elsewhere"
    data_dir.mkdir()
    (tmp_path / "attributes.txt").write_text("1 has_bill_shape::curved")
    with tarfile.open(data_dir / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "attributes.txt", "attributes.txt")
        archive.add(root, "CUB_200_2011")
    monkeypatch.setattr(cub, "ARCHIVE", dataclasses.replace(cub.ARCHIVE, md5=None, size=None))
    data = load(data_dir / "CUB_200_2011")
    assert data.fingerprint == expected.fingerprint
    assert sorted(path.name for path in (data_dir / "CUB_200_2011").iterdir()) == sorted([*LISTS, "images"])
