import os
from collections import Counter
from pathlib import Path

import pytest

from tmkd_plugin.data.list_files import ListProblems
from tmkd_plugin.data.rafdb import load_rafdb, read_rafdb
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

EMOTIONS = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
LIST = "EmoLabel/list_patition_label.txt"


@pytest.fixture
def root(tmp_path, make_image):
    """A small tree in the official layout: 4 training images and 1 test image of each emotion."""
    return write(tmp_path / "RAF-DB", make_image)


def write(root, make_image):
    rows = [f"train_{number:05d}.jpg {1 + number % 7}" for number in range(1, 29)]
    rows += [f"test_{number:04d}.jpg {8 - number}" for number in range(1, 8)]
    (root / "EmoLabel").mkdir(parents=True)
    (root / LIST).write_text("\n".join(rows))
    (root / "Image/aligned").mkdir(parents=True)
    for seed, row in enumerate(rows):
        make_image((10, 10), seed=seed).save(root / "Image/aligned" / f"{row.split('.')[0]}_aligned.jpg")
    return root


def load(data_dir, **arguments):
    return load_rafdb(DatasetRequest("rafdb", data_dir, **arguments))


def refusal(data_dir):
    with pytest.raises(InputError) as error:
        load(data_dir)
    return str(error.value)


def change(root, old, new):
    text = (root / LIST).read_text()
    assert old in text
    (root / LIST).write_text(text.replace(old, new, 1))


def test_the_official_layout(root):
    data = load(root.parent)
    assert data.class_names == EMOTIONS
    assert (data.image_size, data.augmentation.resized_crop) == (224, (0.08, 1.0))
    assert len(data.train) + len(data.validation) == 28
    assert data.test.labels.tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert data.test.paths[6] == "Image/aligned/test_0007_aligned.jpg"
    assert data.test.ids.tolist() == list(range(28, 35))
    place = data.train.ids.tolist()[0]
    assert data.train.paths[0] == f"Image/aligned/train_{place + 1:05d}_aligned.jpg"
    assert data.train.labels[0] == (place + 1) % 7


@pytest.mark.parametrize("folder", ["RAF-DB/basic", "basic"])
def test_the_folder_of_the_authors(tmp_path, make_image, folder):
    root = write(tmp_path / folder, make_image)
    assert load(tmp_path).test.root == root
    assert load(root).test.root == root


def test_an_absent_data_set_is_to_be_requested(tmp_path):
    message = refusal(tmp_path)
    for words in (
        f"Expected its folder '{tmp_path / 'RAF-DB'}' with 'EmoLabel/list_patition_label.txt' in it",
        "licence",
        "whdeng.cn/RAF/model1.html",
        "Image/aligned/train_00001_aligned.jpg",
    ):
        assert words in message


def test_images_that_are_still_packed(tmp_path):
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / LIST).write_text("train_00001.jpg 5")
    assert "has its list but no folder 'Image/aligned'. Unpack Image/aligned.zip there" in refusal(tmp_path)


def test_wrong_rows_and_missing_images(root):
    change(root, "train_00001.jpg 2", "train_00001.jpg 8")
    change(root, "train_00002.jpg 3", "train_00002.jpg happy")
    change(root, "train_00003.jpg 4", "valid_00003.jpg 4")
    change(root, "train_00004.jpg 5", "train_00004.png 5")
    change(root, "train_00005.jpg 6", "train_00005.jpg")
    change(root, "train_00006.jpg 7", "train_00007.jpg 7")
    change(root, "train_00008.jpg", "train_../../x.jpg")
    (root / "Image/aligned/test_0003_aligned.jpg").unlink()
    message = refusal(root)
    assert "has 8 problems" in message
    for problem in (
        "row 1: train_00001.jpg has label '8', expected 1 to 7",
        "row 2: train_00002.jpg has label 'happy', expected 1 to 7",
        "row 3: 'valid_00003.jpg', expected train_<number>.jpg or test_<number>.jpg",
        "row 4: 'train_00004.png', expected train_<number>.jpg",
        "row 5: 'train_00005.jpg', expected image, label",
        "row 8: 'train_../../x.jpg', expected train_<number>.jpg",
        "Image/aligned/train_00007_aligned.jpg: 2 times in the train split",
        "Image/aligned/test_0003_aligned.jpg: listed, but there is no such file",
    ):
        assert problem in message


def test_the_official_list(tmp_path):
    folder = os.environ.get("TMKD_SHARED")
    if not folder:
        pytest.skip("TMKD_SHARED, the folder of the shared data, is not set")
    official = Path(folder) / "data/official_lists/RAF-DB/list_patition_label.txt"
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / LIST).write_bytes(official.read_bytes())
    problems = ListProblems("rafdb", tmp_path)
    listed = read_rafdb(tmp_path, problems)
    problems.raise_if_any()
    assert (len(listed.train), len(listed.test)) == (12271, 3068)
    # The counts that the authors publish for each emotion.
    counts = Counter(listed.class_names[row.label] for row in listed.train)
    assert counts == dict(zip(EMOTIONS, (1290, 281, 717, 4772, 1982, 705, 2524), strict=True))
