"""``tmkd text-cache``: files that are text sources elsewhere, class names without images, all data sets at once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tmkd_plugin.cli import main
from tmkd_plugin.commands.text_cache import write_embeddings
from tmkd_plugin.data import NAMED_DATASETS, load_dataset
from tmkd_plugin.data.class_names import class_names_of_dataset
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.text_teacher import text_embeddings

VIEWS = ("rgb", "edge", "high_frequency")
TINY_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a tiny open_clip checkpoint (random weights: a test of the path, not of meaning)."""
    import open_clip

    with forked_random_state(0, "test weights"):
        model = open_clip.CLIP(**TINY_CONFIG)
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CONFIG, "preprocess_cfg": {}}))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_place_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TMKD_DATA_DIR", raising=False)


def text_cache(*words: object) -> int:
    return main(["text-cache", *map(str, words)])


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_the_file_of_a_data_set_gives_what_the_model_gives(checkpoint, tmp_path, capsys, ending):
    output = tmp_path / "new" / f"digits.{ending}"
    assert text_cache("--dataset", "digits", "--model", checkpoint, "--output", output) == 0
    assert "3 views x 10 classes x 8 numbers from" in capsys.readouterr().out
    names = load_dataset("digits").class_names
    direct = text_embeddings(names, checkpoint, cache_dir=tmp_path / "other")
    text = text_embeddings(names, output)
    assert torch.equal(text.tensor, direct.tensor)
    assert (text.text_views, text.views) == ("per view", VIEWS)
    assert torch.equal(text_embeddings(names, output, views=("high_frequency",)).tensor, direct.tensor[2:])
    with pytest.raises(InputError, match=r"row 0 is 'zero' in the file, but class 0 is 'nine'.*another order"):
        text_embeddings(names[::-1], output)
    with pytest.raises(InputError, match="embeddings of 10 names, but there are 9 classes"):
        text_embeddings(names[:-1], output)


def test_the_same_embeddings_give_the_same_bytes_and_nothing_half(checkpoint, tmp_path, monkeypatch):
    text = text_embeddings(["cat", "sea lion"], checkpoint, cache_dir=tmp_path / "cache")
    for name in ("a.npz", "b.npz"):
        write_embeddings(tmp_path / name, text)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(tmp_path / "c.npz", text)
    assert not [path for path in tmp_path.iterdir() if "c.npz" in path.name]


def test_class_names_of_ones_own(checkpoint, tmp_path):
    (tmp_path / "classes.txt").write_text("sea lion\r\nit's\n\n")
    output = tmp_path / "text.npz"
    assert text_cache("--classes", tmp_path / "classes.txt", "--model", checkpoint, "--output", output) == 0
    assert text_embeddings(["sea lion", "it's"], output).tensor.shape == (3, 2, 8)
    assert str(np.load(output)["source"]) == str(checkpoint)


def test_all_data_sets_whose_names_are_known(checkpoint, tmp_path, capsys):
    (tmp_path / "data" / "CUB_200_2011").mkdir(parents=True)
    (tmp_path / "data" / "CUB_200_2011" / "classes.txt").write_text("1 001.Great_Auk\n2 002.Dodo\n")
    options = ["--model", checkpoint, "--data-dir", tmp_path / "data", "--output", tmp_path / "text"]
    assert text_cache("--dataset", "all", *options) == 2
    written = {path.stem for path in (tmp_path / "text").iterdir()}
    assert written == {"digits", "cifar10", "cifar100", "cub200", "rafdb", "dtd"}
    error = capsys.readouterr().err
    assert {line.partition(":")[0] for line in error.splitlines()} == set(NAMED_DATASETS) - written
    assert "stanford_dogs: not written: The class names of 'stanford_dogs' are in its list files" in error
    assert text_embeddings(["Great Auk", "Dodo"], tmp_path / "text" / "cub200.npz").tensor.shape == (3, 2, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digits", "--output", "text.pt"], "must end in .npz or .safetensors"),
        (["--dataset", "digitz", "--output", "text.npz"], "Unknown data set 'digitz'. Did you mean 'digits'?"),
        (["--dataset", "cub200", "--output", "text.npz"], "--data-dir, or the names themselves with --classes FILE"),
        (["--classes", "missing.txt", "--output", "text.npz"], "class names missing.txt can't be read"),
        (["--classes", "twice.txt", "--output", "text.npz"], "Duplicate class names"),
        (["--dataset", "digits", "--output", "twice.txt/text.npz", "--model", "{checkpoint}"], "can't be written"),
        (["--dataset", "digits", "--output", "text.npz", "--model", "nowhere/"], "nowhere"),
        (["--output", "text.npz"], "one of the arguments --dataset --classes is required"),
        (["--dataset", "digits"], "the following arguments are required: --output"),
        (["--dataset", "digits", "--classes", "twice.txt", "--output", "text.npz"], "not allowed with argument"),
    ],
)
def test_what_can_not_be_used(words, message, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("twice.txt").write_text("cat\ncat\n")
    assert text_cache(*(word.format(checkpoint=checkpoint) for word in words)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("text.npz").exists()


def test_no_network_stops_at_once(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setenv("no_proxy", "*")
    assert text_cache("--dataset", "all", "--output", tmp_path / "text") == 2
    error = capsys.readouterr().err
    assert "there is no network" in error
    assert "cifar10" not in error


class TestClassNames:
    def test_they_are_those_of_the_loaded_data_set(self, tmp_path):
        assert class_names_of_dataset("digits") == load_dataset("digits").class_names
        for split in ("train", "test"):
            for name in ("002.grey_cat", "001.dog"):
                folder = tmp_path / "images" / split / name
                folder.mkdir(parents=True)
                (folder / "1.png").write_bytes(b"no image is read")
        assert class_names_of_dataset(str(tmp_path / "images")) == ["dog", "grey cat"]

    @pytest.mark.parametrize(
        ("name", "count", "digest"),
        [("cifar10", 10, "bb3914949cecedee"), ("cifar100", 100, "60ae3a3ac1355fcf"), ("dtd", 47, "b9c70bb85120540e")],
    )
    def test_official_names(self, name, count, digest):
        """All three list their classes by the alphabet; the digests are of lists that others published."""
        names = class_names_of_dataset(name)
        assert len(set(names)) == count
        assert [other.replace(" ", "_") for other in names] == sorted(other.replace(" ", "_") for other in names)
        assert hashlib.sha256("\n".join(names).encode()).hexdigest().startswith(digest)

    def test_lists_that_are_there_come_before_official_names(self, tmp_path):
        (tmp_path / "dtd" / "labels").mkdir(parents=True)
        for split in ("train1", "val1", "test1"):
            (tmp_path / "dtd" / "labels" / f"{split}.txt").write_text("zigzagged/1.jpg\npolka-dotted/1.jpg\n")
        assert class_names_of_dataset("dtd", tmp_path) == ["polka dotted", "zigzagged"]
        assert class_names_of_dataset("dtd", tmp_path / "dtd") == ["polka dotted", "zigzagged"]

    def test_lists_that_can_not_be_used_are_named(self, tmp_path):
        (tmp_path / "classes.txt").write_text("1 001.Dodo\n2\n")
        with pytest.raises(InputError, match=r"classes\.txt, row 2: '2', expected class id, class folder"):
            class_names_of_dataset("cub200", tmp_path)

    @pytest.mark.skipif("TMKD_SHARED" not in os.environ, reason="needs TMKD_SHARED, the folder of shared data")
    def test_official_lists(self):
        lists = Path(os.environ["TMKD_SHARED"]) / "data" / "official_lists"
        names = class_names_of_dataset("cub200", lists)
        assert (len(names), names[0], names[-1]) == (200, "Black footed Albatross", "Common Yellowthroat")
        named = np.load(lists.parent / "clip_vitb32_cifar10_a_cname.npz")["names"]
        assert class_names_of_dataset("cifar10") == [str(name) for name in named]
