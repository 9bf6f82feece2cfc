"""A tiny folder of images with its text embeddings, and the arguments of a comparison that takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASS_NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Noise in which the channel of the class is brighter: 8 training and 4 test images of each of 3 classes, 16 px."""
    root = tmp_path_factory.mktemp("images") / "colours"
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 160, (16, 16, 3))
                pixels[..., channel] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Embeddings for every view and class, drawn at random: only their shape matters to these tests."""
    path = tmp_path_factory.mktemp("text") / "text.npz"
    embeddings = np.random.default_rng(1).normal(size=(3, 3, 12)).astype(np.float32)
    np.savez(path, emb=embeddings, names=np.array(CLASS_NAMES))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_bench(image_folder, text_file, cache, monkeypatch) -> list[str]:
    """The words after ``tmkd`` of a comparison with tiny networks of one epoch."""
    monkeypatch.setenv("TMKD_CACHE", str(cache))
    options = ["bench", "--dataset", str(image_folder), "--text", str(text_file), "--teacher", "resnet8"]
    options += ["--student", "resnet8", "--threads", "1", "--seeds", "2", "--quiet"]
    for value in ("image_size=16", "training.epochs=1", "teacher_training.epochs=1", "training.batch_size=12"):
        options += ["--set", value]
    return options
