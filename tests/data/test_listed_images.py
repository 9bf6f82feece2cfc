from collections import Counter

import numpy as np
import pytest
import torch

from tmkd_plugin.data import Augmentation
from tmkd_plugin.data.dataset import Limits
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.data.list_files import read_rows
from tmkd_plugin.data.listed_images import ListedImage, ListedImages, ListProblems, dataset_from_list, say_counts
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

PARTS = ("train", "validation", "test")
NAMES = ["cat", "dog", "red fox"]


@pytest.fixture
def write(tmp_path, make_image):
    """Writes images of one grey level each and lists them: the class is the folder, the level the number of the image."""

    def make(train=20, test=4, validation=0, size=(16, 16)):
        rows = {"train": [], "validation": [], "test": []}
        place = 0
        for split, count in (("train", train), ("validation", validation), ("test", test)):
            for index in range(count):
                for label in range(len(NAMES)):
                    path = f"pictures/{label}/{split}_{index}.png"
                    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                    make_image(size, low=place, high=place + 1).save(tmp_path / path)
                    rows[split].append(ListedImage(path, label))
                    place += 1
        return ListedImages("pets", tmp_path, NAMES, rows["train"], rows["test"], rows["validation"] or None)

    return make


def load(listed, problems=None, **arguments):
    request = DatasetRequest("pets", listed.root, **arguments)
    return dataset_from_list(listed, request, default_size=16, default_augmentation="crop_flip", problems=problems)


def refusal(listed, problems=None, **arguments):
    with pytest.raises(InputError) as error:
        load(listed, problems, **arguments)
    return str(error.value)


def test_pixels_labels_and_ids_belong_together(write):
    listed = write()
    data = load(listed)
    assert (data.name, data.class_names, data.image_size) == ("pets", NAMES, 16)
    assert data.augmentation == Augmentation(crop_padding=2, flip=True)
    assert len(data.train) + len(data.validation) == 60
    assert len(data.test) == 12
    order = [*listed.train, *listed.test]
    for part in PARTS:
        split = getattr(data, part)
        for image, label, place in zip(split.images, split.labels.tolist(), split.ids.tolist(), strict=True):
            assert (image == place).all()
            assert order[place].label == label
    everything = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert sorted(everything.tolist()) == list(range(72))
    assert data.test.ids.tolist() == list(range(60, 72))


def test_validation_is_cut_from_each_class_by_path_alone(write):
    listed = write(train=30)
    data = load(listed, validation_fraction=0.25)
    counts = Counter(data.validation.labels.tolist())
    assert set(counts) == {0, 1, 2}
    assert 10 < len(data.validation) < 35
    shuffled = ListedImages(
        "pets", listed.root, NAMES, [listed.train[i] for i in np.random.default_rng(0).permutation(90)], listed.test
    )
    other = load(shuffled, validation_fraction=0.25)
    assert {listed.train[i].path for i in data.validation.ids} == {shuffled.train[i].path for i in other.validation.ids}
    assert len(load(listed).validation) < len(data.validation)


def test_validation_is_never_empty(write):
    data = load(write(train=2), validation_fraction=0.001)
    assert sorted(data.validation.labels.tolist()) == sorted(data.train.labels.tolist()) == [0, 1, 2]


def test_an_official_validation_split_stays(write):
    listed = write(train=1, validation=2, test=3)
    data = load(listed, validation_fraction=0.5)
    assert [len(data.train), len(data.validation), len(data.test)] == [3, 6, 9]
    assert data.validation.ids.tolist() == [3, 4, 5, 6, 7, 8]
    assert (data.validation.images.flatten(1)[:, 0] == data.validation.ids).all()


def test_limits_keep_a_subset_and_its_ids(write):
    listed = write()
    whole, limited = load(listed), load(listed, limits=Limits(train=9, validation=3, test=6))
    for part, count in zip(PARTS, (9, 3, 6), strict=True):
        kept = getattr(limited, part)
        assert Counter(kept.labels.tolist()) == {0: count // 3, 1: count // 3, 2: count // 3}
        assert set(kept.ids.tolist()) <= set(getattr(whole, part).ids.tolist())
        assert (kept.images.flatten(1)[:, 0] == kept.ids).all()
    assert "train_limit=2: expected a whole number of images, at least 3" in refusal(listed, limits=Limits(train=2))


def test_resized_crop_leaves_the_images_in_their_files(write):
    listed = write()
    data = load(listed, augmentation="resized_crop", image_size=24, workers=2)
    assert data.augmentation == Augmentation(flip=True, resized_crop=(0.08, 1.0))
    in_memory = load(listed)
    order = [*listed.train, *listed.test]
    for part in PARTS:
        split = getattr(data, part)
        assert isinstance(split, FileSplit)
        assert (split.image_size, split.workers, split.root) == (24, 2, listed.root)
        assert split.ids.tolist() == getattr(in_memory, part).ids.tolist()
        assert list(split.paths) == [order[place].path for place in split.ids.tolist()]
        assert split.labels.tolist() == [order[place].label for place in split.ids.tolist()]


def test_images_that_are_not_square_lose_their_margins(write):
    listed = write(size=(32, 16))
    assert load(listed).train.images.shape[1:] == (3, 16, 16)
    assert load(listed, image_size=8).augmentation.crop_padding == 1


def test_missing_images_are_listed_before_any_is_decoded(write):
    listed = write()
    for index in (2, 5, 60):
        row = [*listed.train, *listed.test][index]
        (listed.root / row.path).unlink()
    (listed.root / listed.train[7].path).write_bytes(b"no image")

    def decoded(done, total):
        pytest.fail("an image was decoded")

    message = refusal(listed, progress=decoded)
    assert "The data set 'pets' in" in message
    assert "has 3 problems:" in message
    assert "\n  pictures/2/train_0.png: listed, but there is no such file\n" in message
    assert "\n  pictures/0/test_0.png: listed, but there is no such file\n" in message
    assert "unpacking the archive again" in message


def test_ten_problems_are_shown_and_the_others_counted(write, tmp_path):
    listed = write(test=7)
    for row in listed.test:
        (listed.root / row.path).unlink()
    problems = ListProblems("pets", tmp_path)
    problems.add("list.txt, row 3: rubbish")
    message = refusal(listed, problems)
    lines = message.splitlines()
    assert "has 22 problems:" in lines[0]
    assert lines[1] == "  list.txt, row 3: rubbish"
    assert len(lines) == 1 + 10 + 1 + 1
    assert lines[11] == "  and 12 more"


def test_a_folder_of_the_name_is_no_image(write):
    listed = write()
    (listed.root / listed.train[0].path).unlink()
    (listed.root / listed.train[0].path).mkdir()
    assert f"{listed.train[0].path}: listed, but there is no such file" in refusal(listed)


@pytest.mark.parametrize(
    "path", ["../outside.png", "/{root}/pictures/0/train_0.png", "pictures/0/../../../outside.png"]
)
def test_no_path_leaves_the_folder(write, tmp_path_factory, make_image, path):
    listed = write()
    make_image().save(listed.root.parent / "outside.png")
    row = ListedImage(path.format(root=str(listed.root).lstrip("/")), 0)
    listed.train.append(row)
    assert f"{row.path}: listed, but there is no such file" in refusal(listed)


def test_rows_that_contradict_each_other(write):
    listed = write()
    listed.train.append(listed.train[4])
    listed.test.append(listed.train[8])
    listed.test.append(ListedImage(listed.test[0].path, 3))
    message = refusal(listed)
    assert f"{listed.train[4].path}: 2 times in the train split" in message
    assert f"{listed.train[8].path}: in the train split and in the test split" in message
    assert f"{listed.test[0].path}: class 4, expected 1 to 3" in message
    assert f"{listed.test[0].path}: 2 times in the test split" in message
    assert "has 4 problems" in message


def test_classes_and_splits_need_images(write):
    listed = write()
    few = [row for row in listed.train if row.label != 1 or row.path.endswith("_0.png")]
    message = refusal(ListedImages("pets", listed.root, NAMES, few, []))
    assert "class 'dog': 1 training image, expected 2 or more" in message
    assert "no image in the test split" in message
    with_validation = ListedImages("pets", listed.root, NAMES, few, listed.test[:6], listed.test[6:])
    assert len(load(with_validation).validation) == 6


def test_class_names_must_differ(write):
    listed = write()
    twice = ListedImages("pets", listed.root, ["cat", "Cat", "dog"], listed.train, listed.test)
    assert "Duplicate class names: 'cat' (name 0) and 'Cat' (name 1)" in refusal(twice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 7}, "image_size=7: expected a whole number of pixels, at least 8"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0: expected a number above 0"),
        ({"augmentation": "resize_crop"}, "Unknown augmentation 'resize_crop'. Did you mean 'resized_crop'?"),
        ({"image_size": 512, "max_gigabytes": 0.05}, "The data set 'pets' needs 0.06 GB of memory"),
    ],
)
def test_arguments_that_cannot_be_used(write, arguments, message):
    assert message in refusal(write(), **arguments)


def test_a_streamed_data_set_is_not_bounded_by_memory(write):
    assert len(load(write(), augmentation="resized_crop", max_gigabytes=1e-9).test) == 12


def test_counts_that_are_not_official_are_said(write):
    listed, lines = write(), []
    say_counts(listed, {"train": 60, "test": 12}, lines.append)
    assert lines == []
    say_counts(listed, {"train": 6000, "test": 12}, lines.append)
    assert len(lines) == 1
    assert "60 train, 12 test (official: 6,000 train, 12 test)" in lines[0]


def test_rows_of_list_files(tmp_path):
    problems = ListProblems("pets", tmp_path)
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf1 a\r\n\n2   b c \r\n3\n  4\td")
    assert read_rows(path, ("id", "name"), problems) == [(1, ["1", "a"]), (3, ["2", "b c"]), (5, ["4", "d"])]
    with pytest.raises(InputError, match=r"has 1 problem:\n  list\.txt, row 4: '3', expected id, name\n"):
        problems.raise_if_any()


def test_list_files_that_cannot_be_read(tmp_path):
    problems = ListProblems("pets", tmp_path)
    with pytest.raises(InputError, match=r"There is no file '.*absent\.txt', which the official data set has"):
        read_rows(tmp_path / "absent.txt", ("id",), problems)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.txt' is no text file in UTF-8"):
        read_rows(tmp_path / "binary.txt", ("id",), problems)
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(InputError, match=r"large\.txt' is larger than 64 MiB"):
        read_rows(tmp_path / "large.txt", ("id",), problems)
    with pytest.raises(InputError, match="Can't read"):
        read_rows(tmp_path, ("id",), problems)
