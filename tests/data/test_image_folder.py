import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tmkd_plugin.data import Augmentation, load_dataset

PARTS = ("train", "validation", "test")
SPLIT_TREE = {"train/cat": 10, "train/dog": 10, "test/cat": 4, "test/dog": 3}


def pixels_of(split):
    return {image.numpy().tobytes() for image in split.images}


def names_of(root, split):
    """The files of a split, found by their pixels; for images that loading does not resize."""
    by_pixels = {}
    for path in root.rglob("*.png"):
        by_pixels[np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes()] = path.relative_to(root).as_posix()
    return {by_pixels[pixels] for pixels in pixels_of(split)}


def test_train_and_test_folders(make_tree):
    root = make_tree(SPLIT_TREE, size=(32, 32))
    data = load_dataset(str(root))
    assert data.name == "pictures"
    assert data.class_names == ["cat", "dog"]
    assert data.augmentation == Augmentation(crop_padding=4, flip=True)
    assert names_of(root, data.test) == {
        f"test/{name}"
        for name in [
            "cat/000.png",
            "cat/001.png",
            "cat/002.png",
            "cat/003.png",
            "dog/000.png",
            "dog/001.png",
            "dog/002.png",
        ]
    }
    train, validation = names_of(root, data.train), names_of(root, data.validation)
    assert not train & validation
    assert train | validation == {f"train/{name}/{index:03d}.png" for name in ("cat", "dog") for index in range(10)}
    for part in PARTS:
        split = getattr(data, part)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == split.ids.dtype == torch.int64
        assert set(split.labels.tolist()) == {0, 1}


def test_labels_and_ids_belong_to_the_images(make_tree):
    root = make_tree(SPLIT_TREE, size=(32, 32))
    data = load_dataset(root)
    order = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    for part in PARTS:
        split = getattr(data, part)
        for image, label, index in zip(split.images, split.labels, split.ids, strict=True):
            path = root / order[index]
            assert data.class_names[label] == path.parent.name
            assert np.array_equal(np.asarray(Image.open(path)).transpose(2, 0, 1), image.numpy())


@pytest.mark.parametrize("name", ["val", "validation", "valid", "Validation"])
def test_a_validation_folder_is_used_whole(make_tree, name):
    root = make_tree(SPLIT_TREE | {f"{name}/cat": 2, f"{name}/dog": 1}, size=(32, 32))
    data = load_dataset(root, validation_fraction=0.9)
    assert names_of(root, data.validation) == {f"{name}/cat/000.png", f"{name}/cat/001.png", f"{name}/dog/000.png"}
    assert len(data.train) == 20


def test_one_tree_is_split_by_file_name(make_tree):
    root = make_tree({"cat": 60, "dog": 60, "train": 60}, size=(32, 32))
    data = load_dataset(root)
    assert data.class_names == ["cat", "dog", "train"]
    splits = [names_of(root, getattr(data, part)) for part in PARTS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 180
    for split, share in zip(splits, (0.64, 0.16, 0.2), strict=True):
        for name in data.class_names:
            assert sum(path.startswith(name) for path in split) == pytest.approx(60 * share, abs=13)
    assert load_dataset(root).fingerprint == data.fingerprint


def test_new_files_do_not_move_the_others(make_tree, make_image):
    root = make_tree({"cat": 25, "dog": 25}, size=(32, 32))
    before = {part: names_of(root, getattr(load_dataset(root), part)) for part in PARTS}
    for index in range(10):
        make_image((32, 32), seed=5000 + index).save(root / "cat" / f"new{index}.png")
    (root / "bird").mkdir()
    for index in range(5):
        make_image((32, 32), seed=6000 + index).save(root / "bird" / f"{index}.png")
    data = load_dataset(root)
    for part in PARTS:
        after = names_of(root, getattr(data, part))
        assert before[part] == {name for name in after if "new" not in name and "bird" not in name}


def test_the_place_of_the_folder_does_not_matter(make_tree, tmp_path):
    root = make_tree({"cat": 12, "dog": 12})
    shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert load_dataset(root).fingerprint == load_dataset(tmp_path / "elsewhere" / "copy").fingerprint


def test_smallest_classes_that_can_be_split(make_tree):
    data = load_dataset(make_tree({"cat": 3, "dog": 3}))
    assert [torch.bincount(getattr(data, part).labels).tolist() for part in PARTS] == [[1, 1]] * 3


def test_class_names_from_folder_names(make_tree):
    folders = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "red__panda", "7_up", "3.14"]
    data = load_dataset(make_tree(dict.fromkeys(folders, 3)))
    assert data.class_names == ["Black footed Albatross", "Laysan Albatross", "14", "7 up", "red panda"]


def test_limits_keep_equal_nested_classes(make_tree):
    root = make_tree({"train/cat": 30, "train/dog": 20, "test/cat": 9, "test/dog": 9}, size=(32, 32))
    whole = load_dataset(root)
    small = load_dataset(root, train_limit=6, validation_limit=3, test_limit=4)
    larger = load_dataset(root, train_limit=10)
    assert torch.bincount(small.train.labels).tolist() == [3, 3]
    assert torch.bincount(small.validation.labels).tolist() == [2, 1]
    assert torch.bincount(small.test.labels).tolist() == [2, 2]
    assert pixels_of(small.train) < pixels_of(larger.train) < pixels_of(whole.train)
    assert set(small.train.ids.tolist()) < set(whole.train.ids.tolist())
    assert pixels_of(larger.validation) == pixels_of(whole.validation)
    # "dog" has fewer images than its share: it gives all of them.
    assert torch.bincount(load_dataset(root, train_limit=38).train.labels).tolist()[0] == 19


def test_only_images_that_are_kept_are_read(make_tree):
    root = make_tree(SPLIT_TREE)
    kept = {("train", "validation", "test")[part]: limit for part, limit in enumerate((4, 2, 2))}
    calls = []
    small = load_dataset(
        root, **{f"{part}_limit": limit for part, limit in kept.items()}, progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == (8, 8)
    ids = {index for part in PARTS for index in getattr(small, part).ids.tolist()}
    order = sorted(root.rglob("*.png"))
    for index, path in enumerate(order):
        if index not in ids:
            path.write_bytes(b"broken")
    again = load_dataset(root, **{f"{part}_limit": limit for part, limit in kept.items()})
    assert again.fingerprint == small.fingerprint


@pytest.mark.parametrize(("size", "expected"), [((28, 28), 32), ((48, 60), 32), ((49, 49), 64), ((200, 80), 64)])
def test_natural_image_size(make_tree, size, expected):
    root = make_tree({"cat": 3, "dog": 3}, size=size)
    assert load_dataset(root).image_size == expected
    assert load_dataset(root, image_size=24).train.images.shape[2:] == (24, 24)


def test_natural_image_size_does_not_depend_on_limits(make_tree):
    root = make_tree({"cat": 30, "dog": 30})
    make_tree({"bird": 30}, size=(90, 90))
    assert {load_dataset(root, train_limit=limit).image_size for limit in (3, 9, 27, None)} == {32}


def test_hidden_and_foreign_files_are_ignored(make_tree):
    root = make_tree(SPLIT_TREE)
    before = load_dataset(root).fingerprint
    for place in ("", "train", "train/cat", "test/dog"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "._000.png"):
            (root / place / name).write_bytes(b"not an image")
    for name in (".git", "__MACOSX", "train/.ipynb_checkpoints"):
        (root / name).mkdir()
    assert load_dataset(root).fingerprint == before


def test_deeper_folders_belong_to_their_class(make_tree):
    root = make_tree({"train/cat/indoor/grey": 4, "train/cat": 2, "train/dog": 5, "test/cat/a": 1, "test/dog/b": 1})
    data = load_dataset(root)
    assert data.class_names == ["cat", "dog"]
    assert len(data.train) + len(data.validation) == 11
    assert len(data.test) == 2


def test_links_are_followed_and_circles_end(make_tree, tmp_path):
    real = make_tree({"cat": 5, "dog": 5}, name="real")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(real / name, target_is_directory=True)
    expected = load_dataset(real).fingerprint
    assert load_dataset(tmp_path / "linked").fingerprint == expected
    for place, target in (("cat/self", "."), ("cat/up", ".."), ("dog/other", "../dog"), ("dog/loop", "loop")):
        (real / place).symlink_to(target, target_is_directory=True)
    assert load_dataset(real).fingerprint == expected


def test_home_and_relative_paths(make_tree, tmp_path, monkeypatch):
    expected = load_dataset(make_tree({"cat": 3, "dog": 3})).fingerprint
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/pictures", "./pictures", "pictures", "pictures/"):
        data = load_dataset(path)
        assert (data.fingerprint, data.name) == (expected, "pictures")
    monkeypatch.chdir(tmp_path / "pictures")
    assert load_dataset(".").name == "pictures"


@pytest.mark.skipif("TMKD_SHARED" not in os.environ, reason="TMKD_SHARED does not name the folder of the shared data")
def test_real_images(tmp_path):
    pack = np.load(os.path.join(os.environ["TMKD_SHARED"], "data", "cifar10_jpeg_full.npz"), allow_pickle=False)
    names, offsets, blob = pack["class_names"], pack["offsets"], pack["blob"]
    for index in range(0, 60_000, 200):
        folder = tmp_path / "cifar" / str(names[pack["labels"][index]])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:05d}.jpg").write_bytes(blob[offsets[index] : offsets[index + 1]].tobytes())
    data = load_dataset(tmp_path / "cifar")
    assert data.class_names == sorted(names.tolist())
    assert data.image_size == 32
    assert 0.4 < data.mean[0] < 0.6
    assert sum(len(getattr(data, part)) for part in PARTS) == 300
