import pytest

from tmkd_plugin.data.dtd import load_dtd
from tmkd_plugin.data.request import DatasetRequest
from tmkd_plugin.errors import InputError

TEXTURES = ["polka-dotted", "banded", "lacelike"]


@pytest.fixture
def root(tmp_path, make_image):
    """A small tree in the official layout: 2 images of each texture in each split."""
    root = tmp_path / "dtd"
    (root / "labels").mkdir(parents=True)
    for place, split in enumerate(("train", "val", "test")):
        rows = []
        for texture in TEXTURES:
            (root / "images" / texture).mkdir(parents=True, exist_ok=True)
            for index in (1, 2):
                rows.append(f"{texture}/{texture}_{10 * place + index:04d}.jpg")
                make_image((12, 14), seed=len(rows)).save(root / "images" / rows[-1])
        (root / f"labels/{split}1.txt").write_text("\n".join(rows) + "\n")
        (root / f"labels/{split}2.txt").write_text("another split\n")
    return root


def load(root, **arguments):
    return load_dtd(DatasetRequest("dtd", root.parent, download=False, **arguments))


def refusal(root):
    with pytest.raises(InputError) as error:
        load(root)
    return str(error.value)


def test_the_official_layout(root):
    data = load(root, validation_fraction=0.9)
    assert data.class_names == ["banded", "lacelike", "polka dotted"]
    assert (data.image_size, data.augmentation.resized_crop) == (224, (0.08, 1.0))
    for part, place in (("train", 0), ("validation", 1), ("test", 2)):
        split = getattr(data, part)
        assert split.labels.tolist() == [2, 2, 0, 0, 1, 1]
        assert split.paths[5] == f"images/lacelike/lacelike_{10 * place + 2:04d}.jpg"
        assert split.ids.tolist() == list(range(6 * place, 6 * place + 6))


def test_wrong_rows_and_missing_images(root):
    (root / "labels/train1.txt").write_text(
        "banded\nbanded/x/y.jpg\n/banded.jpg\n" + (root / "labels/train1.txt").read_text()
    )
    with (root / "labels/val1.txt").open("a") as file:
        file.write("banded/banded_0001.jpg\nwoven/woven_0001.jpg\n")
    message = refusal(root)
    assert "has 6 problems" in message
    for problem in (
        "train1.txt, row 1: 'banded', expected <class>/<file>",
        "train1.txt, row 2: 'banded/x/y.jpg', expected <class>/<file>",
        "train1.txt, row 3: '/banded.jpg', expected <class>/<file>",
        "images/banded/banded_0001.jpg: in the train split and in the validation split",
        "class 'woven': 0 training images, expected 1 or more",
        "images/woven/woven_0001.jpg: listed, but there is no such file",
    ):
        assert problem in message


def test_an_empty_list(root):
    (root / "labels/val1.txt").write_text("\n")
    assert "no image in the validation split" in refusal(root)


def test_a_missing_list(root):
    (root / "labels/test1.txt").unlink()
    assert "test1.txt', which the official data set has" in refusal(root)


def test_an_absent_data_set(tmp_path):
    message = refusal(tmp_path / "dtd")
    assert "dtd-r1.0.1.tar.gz" in message
    assert "fff73e5086ae6bdbea199a49dfb8a4c1" in message


def test_address_and_checksum_are_torchvisions():
    from torchvision.datasets import DTD

    from tmkd_plugin.data.dtd import ARCHIVE

    assert (ARCHIVE.url, ARCHIVE.md5) == (DTD._URL, DTD._MD5)
