import contextlib
import os
import struct
import tempfile
import zlib
from pathlib import Path

import pytest

from tmkd_plugin.data import load_dataset
from tmkd_plugin.errors import InputError

SPLIT_TREE = {"train/cat": 5, "train/dog": 5, "test/cat": 2, "test/dog": 2}


def refusal(path, **arguments):
    with pytest.raises(InputError) as error:
        load_dataset(path, **arguments)
    return str(error.value)


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1000) + b"IDAT"


def test_missing_folder_suggests_a_sibling(make_tree, tmp_path):
    make_tree({"cat": 3, "dog": 3}, name="cifar10")
    message = refusal(tmp_path / "cifer10")
    assert f"There is no folder '{tmp_path / 'cifer10'}'. Did you mean '{tmp_path / 'cifar10'}'?" in message
    assert "train/<class>/" in message
    assert f"Did you mean '{tmp_path / 'cifar10'}'?" in refusal(tmp_path / "cifar" / "images" / "deep")
    assert f"The nearest folder that exists is '{tmp_path}'." in refusal(tmp_path / "xyzzy")
    assert "There is no folder" in refusal("/nowhere\0/else")


def test_files_are_not_folders(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK")
    assert "is a file, not a folder of images. Unpack it first." in refusal(tmp_path / "data.npz")
    (tmp_path / "cat.jpg").write_bytes(b"x")
    message = refusal(tmp_path / "cat.jpg")
    assert "is a file" in message
    assert "Unpack" not in message


def test_empty_folder(tmp_path):
    assert f"The folder '{tmp_path}' is empty. Expected train/<class>/" in refusal(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert "is empty" in refusal(tmp_path)


def test_images_without_class_folders(make_tree):
    assert "holds images but no class folders" in refusal(make_tree({".": 3}))


def test_split_without_class_folders(make_tree):
    root = make_tree({"train": 3, "test": 3})
    assert f"'{root / 'test'}' holds images but no class folders" in refusal(root)


def test_only_files(tmp_path):
    (tmp_path / "labels.csv").write_text("a,b")
    assert "holds no folders, only files: 'labels.csv'" in refusal(tmp_path)


@pytest.mark.parametrize("layout", [{"cat": 5}, {"train/cat": 5, "test/cat": 5}])
def test_one_class(make_tree, layout):
    assert "has only one class, 'cat': expected two or more" in refusal(make_tree(layout))


def test_a_folder_too_high(make_tree, tmp_path):
    make_tree(SPLIT_TREE, name="above/pictures")
    assert f"Did you mean '{tmp_path / 'above' / 'pictures'}'" in refusal(tmp_path / "above")


def test_classes_without_images(make_tree):
    root = make_tree({"cat": 5, "dog": 5, "bird": 0, "fish": 0})
    (root / "fish" / "readme.txt").write_text("none yet")
    message = refusal(root)
    assert "2 class folder(s)" in message
    assert f"'{root / 'bird'}', '{root / 'fish'}'" in message
    assert ".jpeg, .jpg" in message


def test_a_folder_above_the_classes_is_named(make_tree):
    root = make_tree({"images/cat": 3, "images/dog": 3, "attributes": 0})
    message = refusal(root)
    assert f"'{root / 'attributes'}'. Images end in" in message
    assert f"Did you mean '{root / 'images'}'" in message


def test_empty_class_of_the_test_split(make_tree):
    root = make_tree(SPLIT_TREE | {"train/bird": 2, "test/bird": 0})
    assert f"1 class folder(s) of '{root}' hold no images: '{root / 'test' / 'bird'}'" in refusal(root)


def test_differing_classes(make_tree):
    root = make_tree(SPLIT_TREE | {"train/bird": 2, "test/fish": 1, "val/cat": 1, "val/dog": 1})
    message = refusal(root)
    assert "only in train/: 'bird'; only in test/: 'fish'; only in train/: 'bird'." in message
    assert "Expected the same class folders in every split" in message


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"train/cat": 2, "train/dog": 2}, "has train/ but no test/"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 2, "val/dog": 2}, "has train/, val/ but no test/"),
        ({"test/cat": 2, "test/dog": 2}, "has test/ but no train/"),
        (
            SPLIT_TREE | {"val/cat": 1, "validation/cat": 1},
            "several folders for the validation split: 'val', 'validation'",
        ),
    ],
)
def test_incomplete_splits(make_tree, layout, message):
    assert message in refusal(make_tree(layout))


def test_one_folder_for_two_splits(make_tree):
    root = make_tree({"train/cat": 2, "train/dog": 2})
    (root / "test").symlink_to("train")
    assert "are the same folder" in refusal(root)


def test_colliding_class_names(make_tree):
    message = refusal(make_tree({"001.big_cat": 3, "big cat": 3, "dog": 3}))
    assert "'001.big_cat', 'big cat' give the same class name 'big cat'" in message
    assert "'012.' gives no class name" in refusal(make_tree({"012.": 3, "dog": 3}, name="other"))


def test_classes_too_small_to_split(make_tree):
    message = refusal(make_tree({"cat": 2, "dog": 5, "bird": 1}))
    assert "too few images to be split into test, validation, train: 'bird' (1), 'cat' (2)" in message
    message = refusal(make_tree(SPLIT_TREE | {"train/bird": 1, "test/bird": 1}, name="other"))
    assert "split into validation, train: 'bird' (1). Expected 2 or more" in message


def test_all_unreadable_images_are_named_at_once(make_tree, make_image):
    root = make_tree(SPLIT_TREE)
    whole = (root / "train/cat/000.png").read_bytes()
    make_image((64, 64)).save(root / "train/dog/photo.jpg")
    jpeg = (root / "train/dog/photo.jpg").read_bytes()
    (root / "train/dog/photo.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "train/cat/000.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/cat/001.png").write_bytes(b"")
    (root / "train/cat/002.png").write_bytes(b"<html>404</html>")
    (root / "test/dog/000.png").write_bytes(png_header(20000, 20000))
    (root / "test/dog/bomb.png").write_bytes(png_header(10000, 10000))
    (root / "test/cat/lost.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "test/cat/pipe.png")
    message = refusal(root)
    assert f"8 of 18 images of '{root}' can't be used" in message
    lines = dict(line.strip().split(": ", 1) for line in message.splitlines() if line.startswith("  "))
    assert "truncated" in lines["train/cat/000.png"]
    assert "truncated" in lines["train/dog/photo.jpg"]
    assert lines["train/cat/001.png"] == "empty file (0 bytes)"
    assert lines["train/cat/002.png"].startswith("not an image")
    assert "decompression bomb" in lines["test/dog/000.png"]
    assert "10000 x 10000 pixels" in lines["test/dog/bomb.png"]
    assert "broken link" in lines["test/cat/lost.png"]
    assert lines["test/cat/pipe.png"] == "not a regular file"


def test_long_lists_are_cut_short(make_tree):
    root = make_tree({"cat": 30, "dog": 5})
    for path in (root / "cat").iterdir():
        path.write_bytes(b"")
    message = refusal(root)
    assert "30 of 35 images" in message
    assert message.count("0 bytes") == 20
    assert "and 10 more" in message


def test_a_format_that_runs_programs_is_not_opened(make_tree):
    root = make_tree({"cat": 3, "dog": 3})
    (root / "cat" / "000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n")
    assert "cat/000.png: not an image that can be read" in refusal(root)


def test_memory_bound(make_tree):
    root = make_tree({"cat": 5, "dog": 5})
    message = refusal(root, image_size=2000, max_gigabytes=0.1)
    assert "'pictures' needs 0.12 GB of memory (10 images of 2000 px), more than max_gigabytes=0.1" in message
    assert "train_limit" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_limit": 1}, "train_limit=1: expected a whole number of images, at least 2"),
        ({"image_size": 0}, "image_size=0"),
        ({"validation_fraction": -0.1}, r"validation_fraction=-0.1"),
    ],
)
def test_unusable_arguments(make_tree, arguments, message):
    assert message in refusal(make_tree({"cat": 3, "dog": 3}), **arguments)


@contextlib.contextmanager
def ordinary_user():
    """Drops the administrator's rights, who may read everything."""
    administrator = os.geteuid() == 0
    try:
        if administrator:
            os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"can't become an ordinary user: {error}")
    try:
        yield
    finally:
        if administrator:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_permission_denied(make_image):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        root = Path(folder, "pictures")
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for index in range(3):
                make_image(seed=index).save(root / name / f"{index}.png")
        os.chmod(folder, 0o755)
        (root / "cat" / "0.png").chmod(0)
        with ordinary_user():
            assert "cat/0.png: permission denied" in refusal(root)
        (root / "dog").chmod(0)
        with ordinary_user():
            assert f"Can't read the folder '{root / 'dog'}': Permission denied" in refusal(root)
        os.chmod(folder, 0)
        with ordinary_user():
            assert f"No permission to read '{root}'" in refusal(root)
        os.chmod(folder, 0o755)
        (root / "dog").chmod(0o755)
