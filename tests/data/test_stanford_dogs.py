import dataclasses
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from tmkd_plugin.data import stanford_dogs
from tmkd_plugin.data.list_files import ListProblems
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.data.stanford_dogs import load_stanford_dogs, read_stanford_dogs
from tmkd_plugin.errors import InputError

BREEDS = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086240-Shih-Tzu"]


def cells(texts):
    """An (N,1) array of objects, each an array of one string, as in the official lists."""
    array = np.empty((len(texts), 1), dtype=object)
    for row, text in enumerate(texts):
        array[row, 0] = np.array([text])
    return array


def write_list(path, files, labels, **arguments):
    annotations = [file.removesuffix(".jpg") for file in files]
    savemat(
        path,
        {
            "file_list": cells(files),
            "annotation_list": cells(annotations),
            "labels": np.array(labels).reshape(-1, 1).astype(arguments.get("dtype", np.uint8)),
        },
        do_compression=True,
    )


def rows_of(numbers, breeds=BREEDS):
    files = [f"{breed}/{breed.split('-')[0]}_{number}.jpg" for breed in breeds for number in numbers]
    return files, [label for label in range(1, len(breeds) + 1) for _ in numbers]


@pytest.fixture
def root(tmp_path, make_image):
    """A small tree in the official layout: 4 training images and 2 test images of each of 3 breeds."""
    root = tmp_path / "StanfordDogs"
    for numbers, name in (((5927, 12, 7, 8), "train_list.mat"), ((9, 10), "test_list.mat")):
        files, labels = rows_of(numbers)
        for seed, file in enumerate(files):
            (root / "Images" / file).parent.mkdir(parents=True, exist_ok=True)
            make_image((18, 14), seed=seed).save(root / "Images" / file)
        write_list(root / name, files, labels)
    return root


def load(root, **arguments):
    return load_stanford_dogs(DatasetRequest("stanford_dogs", root.parent, download=False, **arguments))


def refusal(root):
    with pytest.raises(InputError) as error:
        load(root)
    return str(error.value)


def test_the_official_layout(root):
    lines = []
    data = load(root, say=lines.append)
    assert data.class_names == ["Chihuahua", "Japanese spaniel", "Shih-Tzu"]
    assert (data.image_size, data.augmentation.resized_crop) == (224, (0.08, 1.0))
    assert len(data.train) + len(data.validation) == 12
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.paths[3] == "Images/n02085782-Japanese_spaniel/n02085782_10.jpg"
    assert data.test.ids.tolist() == list(range(12, 18))
    assert "12 train, 6 test (official: 12,000 train, 8,580 test)" in lines[0]


def test_labels_may_be_doubles(root):
    write_list(root / "test_list.mat", *rows_of((9, 10)), dtype=np.float64)
    assert load(root).test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_lists_that_disagree(root):
    files, labels = rows_of((9, 10))
    labels[1], labels[4] = 2, 4
    write_list(root / "test_list.mat", [*files, files[5], "n02085620-Chihuahua/n02085620_12.jpg"], [*labels, 3, 1])
    message = refusal(root)
    for problem in (
        "n02085620-Chihuahua/n02085620_10.jpg: label 2, which is 'n02085782-Japanese_spaniel' in rows before",
        "n02086240-Shih-Tzu/n02086240_9.jpg: label 4, but rows before have label 3 for this folder",
        "Images/n02086240-Shih-Tzu/n02086240_10.jpg: 2 times in the test split",
        "Images/n02085620-Chihuahua/n02085620_12.jpg: in the train split and in the test split",
    ):
        assert problem in message


def test_wrong_rows(root):
    files, _ = rows_of((9, 10))
    files[0], files[1] = "n02085620_9.jpg", "Chihuahua/n02085620_10.jpg"
    write_list(root / "test_list.mat", files, [1, 4, 2, 0, 3, 121])
    message = refusal(root)
    for problem in (
        "test_list.mat, row 1: 'n02085620_9.jpg', expected <breed>/<file>",
        "test_list.mat, row 4: n02085782-Japanese_spaniel/n02085782_10.jpg has label 0, expected 1 to 120",
        "test_list.mat, row 6: n02086240-Shih-Tzu/n02086240_10.jpg has label 121, expected 1 to 120",
        "folder 'Chihuahua': expected an ImageNet id and a breed, such as n02085620-Chihuahua",
        "Images/Chihuahua/n02085620_10.jpg: listed, but there is no such file",
    ):
        assert problem in message


def test_a_label_between_two_numbers(root):
    files, labels = rows_of((9, 10))
    write_list(root / "test_list.mat", files, [1.5, *labels[1:]], dtype=np.float64)
    assert "test_list.mat, row 1: n02085620-Chihuahua/n02085620_9.jpg has label 1.5" in refusal(root)


def test_labels_without_a_breed(root):
    files, labels = rows_of((5927, 12, 7, 8))
    write_list(root / "train_list.mat", files, [label + 2 * (label == 3) for label in labels])
    write_list(root / "test_list.mat", files[:8], labels[:8])
    assert "labels up to 5 but none of 3, 4: expected 1 to K" in refusal(root)


def test_all_breeds_need_the_official_numbers(tmp_path):
    breeds = [f"n{number:08d}-breed_{number}" for number in range(120)]
    write_list(tmp_path / "train_list.mat", *rows_of(range(100), breeds))
    write_list(tmp_path / "test_list.mat", *rows_of(range(100, 102), breeds))
    problems = ListProblems("stanford_dogs", tmp_path)
    listed = read_stanford_dogs(tmp_path, problems)
    assert (len(listed.train), len(listed.class_names), listed.class_names[119]) == (12000, 120, "breed 119")
    with pytest.raises(
        InputError, match=r"has 1 problem:\n  test_list\.mat: 240 images of 120 breeds, expected 8,580\n"
    ):
        problems.raise_if_any()


@pytest.mark.parametrize(
    "content", [b"", b"no matlab", b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\xff" * 90]
)
def test_damaged_lists(root, content):
    (root / "test_list.mat").write_bytes(content)
    message = refusal(root)
    assert "test_list.mat'" in message
    assert "Unpack lists.tar again." in message


def test_every_cut_of_a_list_is_refused(root):
    whole = (root / "test_list.mat").read_bytes()
    for size in range(0, len(whole), 37):
        (root / "test_list.mat").write_bytes(whole[:size])
        assert "Unpack lists.tar again." in refusal(root)


def test_lists_of_another_content(root):
    path = root / "test_list.mat"
    savemat(path, {"labels": np.ones((3, 1))})
    assert "expected 'file_list' and 'labels' with one row for each image" in refusal(root)
    savemat(path, {"file_list": cells(["a/b"] * 2), "labels": np.ones((3, 1))})
    assert "expected 'file_list' and 'labels' with one row for each image" in refusal(root)
    savemat(path, {"file_list": np.ones((3, 1)), "labels": np.ones((3, 1))})
    assert "row 1: '1.0', expected <breed>/<file>" in refusal(root)
    savemat(path, {"file_list": cells(["a/b"]), "labels": np.zeros((200_000, 1))}, do_compression=True)
    assert "labels has 200,000 elements, more than 100,000" in refusal(root)
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    assert "larger than 16 MiB" in refusal(root)
    path.unlink()
    assert "There is no file" in refusal(root)


def test_an_absent_data_set(tmp_path):
    message = refusal(tmp_path / "StanfordDogs")
    assert "images.tar" in message
    assert "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58" in message


def test_the_two_archives_make_one_folder(root, tmp_path, monkeypatch):
    expected = load(root)
    data_dir = tmp_path / "elsewhere"
    data_dir.mkdir()
    for name, members in (("images.tar", ["Images"]), ("lists.tar", ["train_list.mat", "test_list.mat"])):
        with tarfile.open(data_dir / name, "w") as archive:
            for member in members:
                archive.add(root / member, member)
    unchecked = [dataclasses.replace(source, sha256=None, size=None) for source in stanford_dogs.ARCHIVES]
    monkeypatch.setattr(stanford_dogs, "ARCHIVES", unchecked)
    data = load(data_dir / "StanfordDogs")
    assert data.test.root == data_dir / "StanfordDogs"
    assert data.fingerprint == expected.fingerprint
