"""Damaged and hostile files end in a good run or in an error for people, never in a traceback, and nothing is lost.

``TMKD_FUZZ`` is the number of mutated files for each kind of file; ``make fuzz`` sets it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import mutated
from PIL import Image

from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.run_record import read_record, write_record
from tmkd_plugin.cli import main
from tmkd_plugin.data import load_dataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.text_cache import StoredText, read_cache, write_cache, write_text_file
from tmkd_plugin.text_teacher import text_embeddings
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.files import save_tensors
from tmkd_plugin.zoo import build_network

COUNT = int(os.environ.get("TMKD_FUZZ", "20"))
NAMES = ["red", "green", "blue"]


def tried(content: bytes, path: Path, use, kind: str) -> Counter:
    """Writes COUNT mutations of a file and uses each; returns what became of them."""
    outcomes: Counter = Counter()
    for seed in range(COUNT):
        name, damaged = mutated(content, seed)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use()
        except InputError as error:
            outcomes["refused"] += 1
            if not str(error).strip() or "Traceback" in str(error):
                raise AssertionError(f"{kind}, seed {seed}, {name}: no message for people: {error}") from error
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, {name}: {type(error).__name__}: {error}") from error
        else:
            outcomes["used"] += 1
    path.write_bytes(content)
    use()
    assert outcomes["refused"], f"no mutation of {kind} was noticed"
    print(f"{kind}: {dict(outcomes)}")
    return outcomes


def test_checkpoints(tmp_path):
    kept = Checkpoints(tmp_path, {"seed": 1}, every_seconds=0)
    kept.save({"w": torch.arange(200.0)}, {"step": 1})
    file = tmp_path / "checkpoint.safetensors"
    seen = []

    def use():
        found = Checkpoints(tmp_path, {"seed": 1}).load()
        assert found is not None
        seen.append(torch.equal(found.tensors["w"], torch.arange(200.0)) and found.state == {"step": 1})

    tried(file.read_bytes(), file, use, "checkpoint")
    assert all(seen), "a damaged checkpoint was taken for a good one"


def test_run_records(tmp_path):
    from tmkd_plugin.bench.results import Cell
    from tmkd_plugin.training.trainer import EpochScores

    scores = EpochScores(1, 50.0, 51.0, 99.0, 50.5)
    identity = {"arm": "kd", "seed": 0, "training": {"epochs": 1}}
    save_tensors(tmp_path / "student.safetensors", {"w": torch.zeros(3)})
    write_record(tmp_path, identity, Cell(0, scores, scores))
    file = tmp_path / "run.json"
    tried(file.read_bytes(), file, lambda: refused_if_problem(read_record(tmp_path, identity)), "run.json")


def refused_if_problem(found):
    cell, problem = found
    if problem is not None:
        raise InputError(problem)
    if cell is not None:
        assert cell.best.epoch == 1


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_text_embeddings(tmp_path, kind):
    embeddings = np.random.default_rng(0).normal(size=(3, 3, 8)).astype(np.float32)
    path = tmp_path / f"text.{kind}"
    if kind == "npz":
        np.savez(path, emb=embeddings, names=np.array(NAMES))
    else:
        views = ["rgb", "edge", "high_frequency"]
        stored = StoredText(torch.from_numpy(embeddings), class_names=NAMES, views=views, key={}, source="a")
        write_text_file(path, stored)
    tried(path.read_bytes(), path, lambda: text_embeddings(NAMES, str(path), cache_dir=tmp_path / "c"), f"text {kind}")


def test_text_cache(tmp_path):
    key = {"model": "a", "prompts": ["b"]}
    embeddings = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
    file = write_cache(tmp_path, StoredText(embeddings, class_names=NAMES, views=["x"], key=key, source="a"))

    def use():
        found = read_cache(tmp_path, key)
        assert found is not None
        assert torch.equal(found.embeddings, embeddings), "damaged numbers were taken for good ones"

    tried(file.read_bytes(), file, use, "text cache")


def test_presets(tmp_path):
    from tmkd_plugin.presets import FOLDER

    path = tmp_path / "mine.yaml"
    content = (FOLDER / "digits.yaml").read_bytes()
    tried(content, path, lambda: configure({}, {}, str(path)), "preset")


def test_weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, build_network("resnet8", 3).state_dict())
    small = path.read_bytes()
    tried(small, path, lambda: build_network("resnet8", 3, checkpoint=path), "weights")


def test_pickled_weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build_network("resnet8", 3).state_dict(), path)
    tried(path.read_bytes(), path, lambda: build_network("resnet8", 3, checkpoint=path), "pickled weights")


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "webp", "gif"])
def test_images(tmp_path, kind):
    draw = np.random.default_rng(0)
    for name in NAMES:
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = draw.integers(0, 255, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.{kind}")
    file = tmp_path / "train" / "red" / f"1.{kind}"
    tried(file.read_bytes(), file, lambda: load_dataset(str(tmp_path), image_size=16), kind)


def test_the_command_says_one_line_and_loses_nothing(tmp_path, capsys, monkeypatch):
    """The same through the command: exit code 0 or 2, an error of one problem, results untouched."""
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    preset = tmp_path / "mine.yaml"
    results = tmp_path / "out" / "results.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"schema_version": 1, "config": {}, "dataset": {}, "arms": []}))
    before = results.read_bytes()
    for seed in range(max(5, COUNT // 8)):
        name, damaged = mutated(b"dataset: ./nowhere\nimage_size: 16\nseeds: 2\ntraining:\n  epochs: 1\n", seed)
        preset.write_bytes(damaged)
        code = main(["bench", "--preset", str(preset), "--dataset", "./nowhere", "--out", str(results.parent)])
        error = capsys.readouterr().err
        assert code == 2, (seed, name, error)
        assert error.startswith("error: "), (seed, name)
        assert "Traceback" not in error
        assert results.read_bytes() == before
