import json
import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tmkd_plugin import text_encoder
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.prompts import PROMPTS, prompts_for
from tmkd_plugin.randomness import forked_random_state, generator_for
from tmkd_plugin.text_cache import default_cache_dir
from tmkd_plugin.text_teacher import DEFAULT_TEXT_MODEL, main, text_embeddings

NAMES = ["zero", "one", "two", "three"]
VIEWS = ("rgb", "edge", "high_frequency")
TINY_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator_for(seed, "test embeddings"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_weights():
    import open_clip

    with forked_random_state(0, "test weights"):
        model = open_clip.CLIP(**TINY_CONFIG)
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path, tiny_weights):
    """A folder as open_clip's `local-dir:` takes it (random weights: a test of the path, not of meaning)."""
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CONFIG, "preprocess_cfg": {}}))
    save_file(tiny_weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """The hub's address points to a port on which nobody listens, and its cache to nowhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setenv("no_proxy", "*")


def expect(message, source, names=NAMES, **arguments):
    with pytest.raises(InputError, match=message) as caught:
        text_embeddings(names, source, **arguments)
    return str(caught.value)


class TestLocalCheckpoints:
    def test_it_equals_open_clip_called_by_hand(self, checkpoint, cache):
        import open_clip

        text = text_embeddings(NAMES, checkpoint, cache_dir=cache)
        model = open_clip.create_model(f"local-dir:{checkpoint}").eval()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
        for index, view in enumerate(VIEWS):
            with torch.no_grad():
                expected = model.encode_text(tokenizer(prompts_for(NAMES, view)), normalize=True)
            torch.testing.assert_close(text.tensor[index], expected, rtol=0, atol=1e-6)
        assert text.text_views == "per view"
        assert text.source == str(checkpoint)
        assert not torch.allclose(text.tensor[0], text.tensor[1], atol=1e-3)

    def test_the_prefix_of_open_clip_is_allowed(self, checkpoint, cache):
        text = text_embeddings(NAMES, f"local-dir:{checkpoint}", cache_dir=cache)
        assert torch.equal(text.tensor, text_embeddings(NAMES, str(checkpoint), cache_dir=cache).tensor)
        expect("/nowhere does not exist", "local-dir:/nowhere")

    def test_a_model_with_a_weights_file(self, checkpoint, cache, tmp_path, tiny_weights):
        import open_clip

        (tmp_path / "tiny-of-this-test.json").write_text(json.dumps(TINY_CONFIG))
        open_clip.add_model_config(tmp_path / "tiny-of-this-test.json")
        source = f"tiny-of-this-test={checkpoint / 'open_clip_model.safetensors'}"
        text = text_embeddings(NAMES, source, cache_dir=cache)
        assert torch.equal(text.tensor, text_embeddings(NAMES, checkpoint, cache_dir=cache).tensor)
        torch.save(tiny_weights, tmp_path / "weights.pt")
        again = text_embeddings(NAMES, f"tiny-of-this-test={tmp_path / 'weights.pt'}", cache_dir=cache)
        assert torch.equal(text.tensor, again.tensor)

    def test_weights_and_models_that_can_not_be_used(self, checkpoint, cache, tmp_path):
        weights = checkpoint / "open_clip_model.safetensors"
        expect("does not exist: /nowhere/weights.pt", "ViT-B-32=/nowhere/weights.pt", cache_dir=cache)
        expect("Unknown open_clip model 'ViT-B-23'. Did you mean 'ViT-B-32'", f"ViT-B-23={weights}", cache_dir=cache)
        expect("model.safetensors holds no text embeddings.*MODEL=/path", weights, cache_dir=cache)

    def test_the_global_state_is_left_alone(self, checkpoint, cache):
        random_state, handlers = torch.random.get_rng_state(), list(logging.getLogger().handlers)
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert torch.equal(random_state, torch.random.get_rng_state())
        assert logging.getLogger().handlers == handlers

    def test_incomplete_folders_are_refused(self, checkpoint, cache, tmp_path):
        config, weights = checkpoint / "open_clip_config.json", checkpoint / "open_clip_model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:1000])
        expect("open_clip_model.safetensors can't be loaded", checkpoint, cache_dir=cache)
        weights.rename(checkpoint / "notes.txt")
        expect("has no weights beside open_clip_config.json", checkpoint, cache_dir=cache)
        for name in ("a.safetensors", "b.bin"):
            (checkpoint / name).write_bytes(content)
        expect("has a.safetensors, b.bin beside", checkpoint, cache_dir=cache)
        for text in ("{", "[]", '{"embed_dim": 8}', '{"model_cfg": 3}'):
            config.write_text(text)
            expect("open_clip_config.json is no configuration of open_clip", checkpoint, cache_dir=cache)
        config.unlink()
        expect(r"it has no open_clip_config.json. There: 'a.safetensors'", checkpoint, cache_dir=cache)
        (tmp_path / "empty").mkdir()
        expect("There: nothing", tmp_path / "empty", cache_dir=cache)

    def test_weights_of_another_width_are_refused(self, checkpoint, cache):
        other = TINY_CONFIG | {"embed_dim": 12}
        (checkpoint / "open_clip_config.json").write_text(json.dumps({"model_cfg": other}))
        expect("expected a state dict of that very configuration", checkpoint, cache_dir=cache)


class TestCache:
    def only_file(self, cache):
        (file,) = cache.iterdir()
        return file

    def test_a_warm_start_gives_the_same_bits_and_imports_no_open_clip(self, checkpoint, cache):
        cold = text_embeddings(NAMES, checkpoint, cache_dir=cache)
        torch.save(cold.tensor, cache.parent / "cold.pt")
        script = f"""
            import sys, torch
            from tmkd_plugin.text_teacher import text_embeddings
            text = text_embeddings({NAMES}, {str(checkpoint)!r}, cache_dir={str(cache)!r})
            assert torch.equal(text.tensor, torch.load({str(cache.parent / "cold.pt")!r}))
            print(sorted({{"open_clip", "huggingface_hub", "timm", "torchvision"}} & set(sys.modules)))
        """
        command = [sys.executable, "-c", textwrap.dedent(script)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"

    def test_a_model_with_a_tag_needs_no_network_once_cached(self, cache, monkeypatch, no_network):
        monkeypatch.setattr("tmkd_plugin.text_teacher.encode_prompts", lambda source, prompts: numbers(len(prompts), 7))
        cold = text_embeddings(NAMES, cache_dir=cache)
        monkeypatch.undo()
        warm = text_embeddings(NAMES, DEFAULT_TEXT_MODEL, cache_dir=cache)
        assert torch.equal(cold.tensor, warm.tensor)
        assert warm.source == "ViT-B-32-quickgelu/openai"
        assert self.only_file(cache).suffix == ".safetensors"

    def test_everything_that_matters_is_in_the_key(self, checkpoint, cache, monkeypatch, tiny_weights):
        def count():
            return len(list(cache.iterdir()))

        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert count() == 1
        text_embeddings(NAMES[::-1], checkpoint, cache_dir=cache)
        assert count() == 2
        text_embeddings(NAMES, checkpoint, cache_dir=cache, views=("edge", "rgb", "high_frequency"))
        assert count() == 3
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name: "0.0")
            text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert count() == 4
        with monkeypatch.context() as patch:
            patch.setitem(PROMPTS, "rgb", "a sketch of a {class}")
            text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert count() == 5
        changed = tiny_weights | {"text_projection": tiny_weights["text_projection"] + 1}
        save_file(changed, checkpoint / "open_clip_model.safetensors")
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert count() == 6

    @pytest.mark.parametrize("keep", [0, 5, 100, -4])
    def test_a_truncated_file_is_refused_by_path(self, checkpoint, cache, keep):
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        file = self.only_file(cache)
        file.write_bytes(file.read_bytes()[:keep])
        expect(
            f"{re.escape(str(file))} can't be read .*truncated or damaged.* Delete it and run again",
            checkpoint,
            cache_dir=cache,
        )

    def test_a_flipped_bit_is_noticed(self, checkpoint, cache):
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        file = self.only_file(cache)
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        expect(f"{re.escape(str(file))} is damaged.* Delete it", checkpoint, cache_dir=cache)

    def test_a_foreign_file_is_refused(self, checkpoint, cache):
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        file = self.only_file(cache)
        save_file({"embeddings": numbers(3, 4, 8)}, file)
        expect(f"{re.escape(str(file))} holds no text embeddings.* Delete it", checkpoint, cache_dir=cache)

    def test_a_file_under_another_key_is_refused(self, checkpoint, cache):
        text_embeddings(NAMES, checkpoint, cache_dir=cache)
        first = self.only_file(cache)
        text_embeddings(NAMES[::-1], checkpoint, cache_dir=cache)
        (second,) = set(cache.iterdir()) - {first}
        second.replace(first)
        expect(
            r"something else than their file name says \(they differ in: class_names, prompts\)",
            checkpoint,
            cache_dir=cache,
        )

    def test_an_interrupted_write_leaves_nothing(self, checkpoint, cache, monkeypatch):
        import safetensors.torch

        def interrupted(tensors, path, metadata):
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            text_embeddings(NAMES, checkpoint, cache_dir=cache)
        assert list(cache.iterdir()) == []

    def test_a_folder_that_can_not_be_written_costs_the_cache_alone(self, checkpoint, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.warns(TmkdNotice, match="could not be cached in"):
            text = text_embeddings(NAMES, checkpoint, cache_dir=tmp_path / "file" / "cache")
        assert text.tensor.shape == (3, 4, 8)

    def test_the_default_folder(self, monkeypatch):
        monkeypatch.setenv("TMKD_CACHE", "/somewhere/cache")
        assert default_cache_dir() == Path("/somewhere/cache")
        monkeypatch.delenv("TMKD_CACHE")
        monkeypatch.setenv("HOME", "/home/someone")
        assert default_cache_dir() == Path("/home/someone/.cache/tmkd")


class TestNamedModels:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "ViT-B-23-quickgelu/openai",
                "Unknown open_clip model 'ViT-B-23-quickgelu'. Did you mean 'ViT-B-32-quickgelu'",
            ),
            ("zzz/openai", "Unknown open_clip model 'zzz'. A text source is MODEL/PRETRAINED"),
            ("ViT-B-32-quickgelu/opnai", "Unknown pretrained tag of ViT-B-32-quickgelu 'opnai'. Did you mean 'openai'"),
            ("ViT-B-32-quickgelu", "names no pretrained weights; expected MODEL/PRETRAINED"),
            ("", "names no pretrained weights"),
            ("ViT-B-32/openai", "trained with QuickGELU.*Use 'ViT-B-32-quickgelu/openai'"),
            ("ViT-B/32/openai", "Use 'ViT-B-32-quickgelu/openai'"),
            ("RN50/yfcc15m", "Use 'RN50-quickgelu/yfcc15m'"),
            ("ViT-B-16-plus/any", "no pretrained weights for 'ViT-B-16-plus'; give a file: ViT-B-16-plus=/path"),
        ],
    )
    def test_a_wrong_name_is_told_from_a_missing_network(self, source, message, cache, no_network):
        assert "network" not in expect(message, source, cache_dir=cache)

    def test_no_network_and_no_cache_gives_the_command_to_run_elsewhere(self, cache, no_network):
        from huggingface_hub import constants

        before, random_state = constants.HF_HUB_OFFLINE, torch.random.get_rng_state()
        message = expect("there is no network", DEFAULT_TEXT_MODEL, names=["sea lion", "it's"], cache_dir=cache)
        assert "printf '%s\\n' 'sea lion' 'it'\"'\"'s' > classes.txt" in message
        command = "python -m tmkd_plugin.text_teacher --classes classes.txt --model ViT-B-32-quickgelu/openai"
        command += " --output text.safetensors"
        assert command in message
        assert "TEXT=/path/to/text.safetensors" in message
        assert str(cache) in message
        assert not cache.exists()
        assert before == constants.HF_HUB_OFFLINE
        assert torch.equal(random_state, torch.random.get_rng_state())

    def test_a_download_that_fails_with_network_says_why(self, cache, monkeypatch):
        import open_clip

        def forbidden(*args, **kwargs):
            raise RuntimeError("403 Forbidden")

        monkeypatch.setattr(text_encoder, "_hub_is_reachable", lambda: True)
        monkeypatch.setattr(open_clip, "create_model", forbidden)
        message = expect(
            r"could not be downloaded or loaded \(403 Forbidden\)", "ViT-B-32/laion2b-e16", cache_dir=cache
        )
        assert "python -m tmkd_plugin.text_teacher" in message


class TestCommand:
    def test_the_file_that_it_writes_is_a_text_source(self, checkpoint, cache, tmp_path, capsys):
        classes, output = tmp_path / "classes.txt", tmp_path / "text.safetensors"
        classes.write_text("\n".join(NAMES) + "\n\n")
        arguments = ["--classes", classes, "--model", checkpoint, "--output", output, "--cache-dir", cache]
        assert main([str(argument) for argument in arguments]) == 0
        assert "3 views x 4 classes x 8 numbers" in capsys.readouterr().out
        direct = text_embeddings(NAMES, checkpoint, cache_dir=cache)
        text = text_embeddings(NAMES, output)
        assert torch.equal(text.tensor, direct.tensor)
        assert (text.text_views, text.source) == ("per view", str(output))
        assert torch.equal(text_embeddings(NAMES, output, views=("edge",)).tensor, direct.tensor[1:2])
        expect("row 0 is 'zero' in the file, but class 0 is 'one'", output, names=["one", "zero", "two", "three"])

    def test_it_runs_as_a_module_and_answers_bad_input_with_2(self, tmp_path):
        (tmp_path / "classes.txt").write_text("cat\ncat\n")
        command = [
            sys.executable,
            "-m",
            "tmkd_plugin.text_teacher",
            "--classes",
            "classes.txt",
            "--output",
            "text.safetensors",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "error: Duplicate class names" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "text.safetensors").exists()

    @pytest.mark.parametrize(
        ("classes", "output", "message"),
        [
            ("missing.txt", "text.safetensors", "class names missing.txt can't be read"),
            ("classes.txt", "text.npz", "must end in .safetensors"),
        ],
    )
    def test_unusable_files(self, classes, output, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "classes.txt").write_text("cat\ndog")
        assert main(["--classes", classes, "--output", output]) == 2
        assert re.search(message, capsys.readouterr().err)
