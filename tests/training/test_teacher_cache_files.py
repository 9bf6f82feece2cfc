"""Files of a teacher's answers: what names them, what is wrong with them, and how they are written."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.teacher_cache import TeacherCache, TeacherCacheFolder
from tmkd_plugin.training.teacher_cache_file import (
    Layout,
    UnusableFileError,
    answers_file,
    read_answers,
    writing_answers,
)
from tmkd_plugin.training.teacher_cache_key import RGB, View, computation_key, images_key, teacher_key, view_key
from tmkd_plugin.views import ViewSettings

LAYOUTS = {"pooled_features": Layout(5, 4, torch.float32), "logits": Layout(5, 3, torch.bfloat16)}
KEY = {"teacher": "mine", "seed": 3}
CROPS = Augmentation(crop_padding=1)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, each.width, generator=draw).to(each.dtype) for name, each in LAYOUTS.items()}


def written(folder: Path, seed: int = 0, key=KEY) -> Path:
    path = answers_file(folder, key)
    with writing_answers(path, key, LAYOUTS) as writer:
        for first, last in ((3, 5), (0, 3)):  # in any order
            writer.put(first, {name: tensor[first:last] for name, tensor in tensors(seed).items()})
    return path


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path / "new")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = read_answers(path, KEY, 5)
    assert found.keys() == LAYOUTS.keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("logits"), tensors()["logits"])
        assert file.metadata()["format"] == "tmkd teacher answers 1"


def test_what_is_read_can_not_change_the_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    read_answers(path, KEY, 5)["logits"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", [0, 9, 60, 200, -1, -20])
def test_a_byte_that_has_changed_is_seen(place, tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x21
    path.write_bytes(content)
    with pytest.raises(UnusableFileError):
        read_answers(path, KEY, 5)


@pytest.mark.parametrize("length", [0, 4, 30, 300, -1])
def test_a_file_that_ends_early_is_seen(length, tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UnusableFileError):
        read_answers(path, KEY, 5)


def test_a_file_of_other_answers_is_seen(tmp_path):
    path = written(tmp_path)
    with pytest.raises(UnusableFileError, match="of other answers than its name says"):
        read_answers(path, {**KEY, "seed": 4}, 5)
    with pytest.raises(UnusableFileError, match="not of 6 images"):
        read_answers(path, KEY, 6)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    written(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with contextlib.suppress(KeyboardInterrupt), writing_answers(answers_file(tmp_path, KEY), KEY, LAYOUTS) as writer:
        writer.put(0, tensors(1))
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Small(nn.Module):
    """A teacher of 8-pixel images."""

    def __init__(self, seed: int = 0, stride: int = 1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, stride=stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)
        self.eval()

    def forward(self, images):
        return self.fc(self.pool(self.conv(images).relu()).flatten(1))


def dataset(**changes) -> ImageDataset:
    def split(count, seed):
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
        return ImageSplit(images.to(torch.uint8), torch.arange(count) % 3, torch.arange(count))

    values = {
        "name": "noise",
        "class_names": list("abc"),
        "train": split(12, 1),
        "validation": split(3, 2),
        "test": split(3, 3),
    }
    values |= {"mean": (0.5,) * 3, "std": (0.25,) * 3, "augmentation": CROPS, "fingerprint": "0" * 64}
    return ImageDataset(**{**values, **changes})


class Arm(nn.Module):
    """A distiller as far as the cache looks at it."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher


def opened(
    folder: Path, teacher: nn.Module, epoch: int = 1, seed: int = 0, data=None, lines=None, variants=2, **options
):
    """Opens the answers of an epoch, as training does, and returns the teacher's to its first four images."""
    data, lines = data or dataset(), [] if lines is None else lines
    cache = TeacherCache(
        TeacherCacheFolder(folder, lines.append), data, data.train, seed=seed, variants=variants, batch_size=5,
        device=torch.device("cpu"), acceleration=Acceleration(**options),
    )  # fmt: skip
    arm = Arm(teacher)
    cache.know(arm)
    images = torch.zeros(4, 3, 8, 8)
    with cache.answering([arm], epoch)(images, data.train.ids[:4]), torch.no_grad():
        return arm.teacher(images)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_for_each_thing_that_answers_depend_on(tmp_path):
    opened(tmp_path, Small())
    assert len(names(tmp_path)) == 1
    opened(tmp_path, Small(), epoch=3)
    assert len(names(tmp_path)) == 1, "the third epoch replays the first"
    others = [
        {"teacher": Small(seed=1)},
        {"teacher": Small(stride=2)},
        {"epoch": 2},
        {"seed": 1},
        {"data": dataset(fingerprint="1" * 64)},
        {"data": dataset(mean=(0.4, 0.5, 0.5))},
        {"data": dataset(std=(0.25, 0.25, 0.2))},
        {"data": dataset(augmentation=Augmentation(crop_padding=1, flip=True))},
        {"data": dataset(augmentation=Augmentation())},
        {"precision": "bf16"},
    ]
    for count, changes in enumerate(others, start=2):
        opened(tmp_path, **{"teacher": Small(), **changes})
        assert len(names(tmp_path)) == count, changes
    data = dataset()
    fewer = ImageSplit(data.train.images[1:], data.train.labels[1:], data.train.ids[1:])
    opened(tmp_path, Small(), data=dataclasses.replace(data, train=fewer))
    assert len(names(tmp_path)) == len(others) + 2


def test_views_versions_and_buffers_are_part_of_the_key(monkeypatch):
    views = [
        RGB,
        *(View(name, ViewSettings(canny_low=low)) for name in ("edge", "high_frequency") for low in (50, 100)),
    ]
    assert len({str(view_key(view)) for view in views}) == len(views)
    before = computation_key(Acceleration(), torch.device("cpu"))
    assert computation_key(Acceleration(), torch.device("cuda"))["device"] != before["device"]
    monkeypatch.setattr("tmkd_plugin.training.teacher_cache_key.__version__", "9")
    assert computation_key(Acceleration(), torch.device("cpu")) != before
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    assert teacher_key(first) == teacher_key(second)
    second.running_mean += 1
    assert teacher_key(first) != teacher_key(second)
    assert teacher_key(nn.Dropout(0.1)) != teacher_key(nn.Dropout(0.2))


@pytest.mark.parametrize(
    "value", [2.0, True, "on", torch.tensor(2.0), {"scale": [2.0]}, (1, 2.0), {"on"}, torch.bfloat16, None]
)
def test_attributes_inside_a_teacher_are_part_of_the_key(value):
    networks = [nn.Sequential(nn.Linear(2, 2)) for _ in range(3)]
    for network, attribute in zip(networks, (1.0, value, copy.deepcopy(value)), strict=True):
        network.load_state_dict(networks[0].state_dict())
        network[0].scale = attribute
    keys = [teacher_key(network) for network in networks]
    assert keys[0] != keys[1]
    assert keys[1] == keys[2]


def test_without_random_augmentation_seeds_and_epochs_share_their_answers(tmp_path):
    data = dataset(augmentation=Augmentation())
    for seed in (0, 1):
        for epoch in (1, 2):
            opened(tmp_path, Small(), epoch, seed, data, variants=None)
    assert len(names(tmp_path)) == 1
    assert images_key(data, 0, 1) == images_key(data, 1, 2)


def test_a_damaged_file_is_said_and_made_again(tmp_path):
    lines: list[str] = []
    expected = opened(tmp_path, Small(), lines=lines)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert "12 images in rgb: asking the teacher; 0.0 MB in" in lines[0]
    for damage in (b"no such file", whole[:-5], whole[:-4] + b"\0\0\0\1"):
        path.write_bytes(damage)
        lines.clear()
        assert torch.equal(opened(tmp_path, Small(), lines=lines), expected)
        assert f"{path} can't be used" in lines[0]
        assert "they are made again" in lines[0]
        assert path.read_bytes() == whole
    lines.clear()
    opened(tmp_path, Small(), lines=lines)
    assert lines == []


def test_a_foreign_file_under_the_name_is_made_again(tmp_path):
    expected = opened(tmp_path / "one", Small())
    opened(tmp_path / "two", Small(seed=1))
    (mine,), (other,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    shutil.copy(other, mine)
    lines: list[str] = []
    assert torch.equal(opened(tmp_path / "one", Small(), lines=lines), expected)
    assert "of other answers than its name says" in lines[0]


class Renamed(Small):
    """A network whose code is changed without its key noticing."""

    factor = 1.0

    def forward(self, images):
        return super().forward(images * self.factor)


def test_what_the_key_does_not_see_the_check_does(tmp_path, monkeypatch):
    opened(tmp_path, Renamed())
    (path,) = tmp_path.iterdir()
    opened(tmp_path, Renamed())
    monkeypatch.setattr(Renamed, "factor", 1.05)
    with pytest.raises(InputError, match=f"{path.name}.*logits differ by.*more than 0.001.*Delete the file") as error:
        opened(tmp_path, Renamed())
    assert str(path) in str(error.value)
    monkeypatch.setattr(Renamed, "factor", 1 + 1e-6)
    opened(tmp_path, Renamed())


def test_a_fill_that_is_interrupted_leaves_nothing_and_is_made_again(tmp_path):
    teacher, passes = Small(), iter(range(100))
    hook = teacher.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt) if next(passes) == 3 else None
    )
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, teacher)
    hook.remove()
    assert names(tmp_path) == set()
    assert torch.equal(opened(tmp_path, teacher), opened(tmp_path, copy.deepcopy(teacher)))


def test_a_file_where_the_folder_belongs(tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "deeper"):
        with pytest.raises(InputError, match=r"needs the folder .*taken.* is a file\. Remove it, set TMKD_CACHE"):
            opened(folder, Small())


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(
        InputError, match=r"The teacher cache needs .* GB in .* are free there. Make room, set TMKD_CACHE"
    ):
        opened(tmp_path, Small())
    assert names(tmp_path) == set()


def test_a_teacher_that_returns_more_than_logits(tmp_path):
    class Pair(Small):
        def forward(self, images):
            logits = super().forward(images)
            return logits, logits

    with pytest.raises(InputError, match=r"returns its logits \(B, K\) and nothing else, but Pair returns tuple"):
        opened(tmp_path, Pair())


def test_a_teacher_without_pooled_features(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 8)
            nn.init.constant_(self.conv.weight, 0.1)

        def forward(self, images):
            return self.conv(images).flatten(1)

    opened(tmp_path, Flat().eval())
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["logits"]
