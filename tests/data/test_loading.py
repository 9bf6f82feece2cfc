import sys
from pathlib import Path
from types import ModuleType

import pytest

from tmkd_plugin.data import NAMED_DATASETS, load_dataset
from tmkd_plugin.data.dataset import Limits
from tmkd_plugin.data.loading import default_data_dir
from tmkd_plugin.errors import InputError

LOADERS = {
    "cifar10": ("cifar", "load_cifar"),
    "cifar100": ("cifar", "load_cifar"),
    "cub200": ("cub", "load_cub200"),
    "rafdb": ("rafdb", "load_rafdb"),
    "dtd": ("dtd", "load_dtd"),
    "stanford_dogs": ("stanford_dogs", "load_stanford_dogs"),
    "tiny_imagenet": ("tiny_imagenet", "load_tiny_imagenet"),
}


@pytest.fixture
def requests(monkeypatch):
    """Puts loaders in place that keep what they are asked, and return their own name."""
    kept = []
    for module, function in set(LOADERS.values()):
        stand_in = ModuleType(module)
        setattr(stand_in, function, lambda request, name=function: kept.append(request) or name)
        monkeypatch.setitem(sys.modules, f"tmkd_plugin.data.{module}", stand_in)
    return kept


def test_every_name_reaches_its_loader(requests):
    assert {*NAMED_DATASETS} == {"digits", *LOADERS}
    for name, (_, function) in LOADERS.items():
        assert load_dataset(name) == function
        assert requests[-1].name == name


def test_the_loader_gets_all_that_was_asked(requests, tmp_path):
    progress, said = (lambda done, total: None), []
    load_dataset(
        "cub200",
        image_size=96,
        train_limit=400,
        validation_limit=300,
        test_limit=200,
        validation_fraction=0.25,
        max_gigabytes=3.5,
        progress=progress,
        data_dir=str(tmp_path),
        augmentation="resized_crop",
        workers=2,
        download=False,
        say=said.append,
    )
    (request,) = requests
    assert (request.image_size, request.limits) == (96, Limits(400, 300, 200))
    assert (request.validation_fraction, request.max_gigabytes, request.progress) == (0.25, 3.5, progress)
    assert (request.data_dir, request.augmentation, request.workers, request.download) == (
        tmp_path,
        "resized_crop",
        2,
        False,
    )
    request.say("a line")
    assert said == ["a line"]


def test_what_was_not_asked_is_left_to_the_data_set(requests, monkeypatch, tmp_path):
    monkeypatch.setenv("TMKD_DATA_DIR", str(tmp_path))
    load_dataset("cifar100")
    (request,) = requests
    assert (request.image_size, request.augmentation, request.validation_fraction) == (None, None, None)
    assert (request.data_dir, request.workers, request.download, request.limits) == (tmp_path, 0, True, Limits())
    request.say("nothing happens")


def test_the_folder_of_data_sets(monkeypatch):
    for name in ("TMKD_DATA_DIR", "TMKD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert default_data_dir() == Path("~/.cache/tmkd/datasets").expanduser()
    monkeypatch.setenv("TMKD_CACHE", "/caches")
    assert default_data_dir() == Path("/caches/datasets")
    monkeypatch.setenv("TMKD_DATA_DIR", "~/images")
    assert default_data_dir() == Path("~/images").expanduser()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cub20", {}, r"Unknown data set 'cub20'\. Did you mean 'cub200'\?.*A folder of images is given by its path"),
        (
            "cub200",
            {"augmentation": "resize_crop"},
            r"Unknown augmentation 'resize_crop'\. Did you mean 'resized_crop'",
        ),
        ("cub200", {"workers": -1}, "workers=-1"),
        ("digits", {"augmentation": "crop_flip"}, "the digits have their own"),
    ],
)
def test_what_can_not_be_loaded_is_refused(requests, name, options, message):
    with pytest.raises(InputError, match=message):
        load_dataset(name, **options)
    assert requests == []
