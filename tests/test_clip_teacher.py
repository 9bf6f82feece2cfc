"""CLIP's image side: prompts, preprocessing, and answers that are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from richkd_cases import NAMES, clip_model, enhanced, images
from torch import Tensor

from tmkd_plugin.clip_cache import clip_cache_file
from tmkd_plugin.clip_teacher import TEMPLATES, clip_answers, text_prototypes
from tmkd_plugin.data.dataset import ImageSplit
from tmkd_plugin.errors import InputError


def test_text_prototypes_normalise_average_normalise() -> None:
    asked: list[list[str]] = []

    def encode(prompts: list[str]) -> Tensor:
        asked.append(prompts)
        generator = torch.Generator().manual_seed(len(asked))
        return torch.randn(len(prompts), 5, generator=generator) * torch.arange(1, len(prompts) + 1)[:, None]

    prototypes = text_prototypes(encode, ["great_tit", "wren"])
    assert asked[0][:2] == ["a photo of a great tit", "a blurry photo of a great tit"]
    assert "a natural photo of a wren in the wild" in asked[1]
    assert len(set(asked[0])) == len(TEMPLATES) == 12
    for index, prompts in enumerate(asked):
        rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(index + 1)) * torch.arange(1, 13)[:, None]
        mean = sum(row / row.norm() for row in rows) / len(prompts)
        torch.testing.assert_close(prototypes[index], mean / mean.norm())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 31), (17, 31), (8, 8), (5, 9)])
def test_preprocessing_is_the_image_library_s(height: int, width: int) -> None:
    from torchvision.transforms import v2

    levels = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    prepared = clip_model().preprocessing(levels)
    usual = v2.Compose(
        [v2.ToPILImage(), v2.Resize(8, v2.InterpolationMode.BICUBIC), v2.CenterCrop(8), v2.PILToTensor()]
    )
    expected = torch.stack([usual(image) for image in levels]).float()
    assert prepared.shape == (2, 3, 8, 8)
    difference = ((prepared * 0.25 + 0.5) * 255 - expected).abs()
    # In grey levels, on noise: PIL rounds and clips between its two passes.
    assert difference.max() < 4.01
    assert difference.mean() < 0.5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP as a local open_clip checkpoint."""
    import open_clip

    from tmkd_plugin.training.small_clip import MODEL_CONFIG
    from tmkd_plugin.training.small_clip_cache import write_checkpoint

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**MODEL_CONFIG)
    folder = tmp_path_factory.mktemp("clip") / "model"
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    write_checkpoint(folder, model.state_dict(), config, [1.0], {})
    return folder


def test_answers_are_computed_once_and_verified(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = (images(6, size=32) * 255).round().to(torch.uint8)
    split = ImageSplit(pixels, torch.arange(6) % 4, torch.tensor([5, 4, 8, 1, 0, 2]))
    first = clip_answers(checkpoint, NAMES, split, cache_dir=tmp_path)
    assert first.features.shape == (6, 64)
    assert first.cosines.shape == (6, 4)
    torch.testing.assert_close(first.features.norm(dim=1), torch.ones(6))
    enhancer = enhanced(clip=checkpoint)
    torch.testing.assert_close(enhancer.multi_view.view.clip(pixels).cosines, first.cosines)

    def refuse(*args: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("tmkd_plugin.clip_teacher.load_clip_teacher", refuse)
    again = clip_answers(checkpoint, NAMES, split, cache_dir=tmp_path)
    assert torch.equal(again.features, first.features)
    assert torch.equal(again.ids, split.ids)
    other_pixels = ImageSplit(pixels.flip(3), split.labels, split.ids)
    for change in ({"split": other_pixels}, {"class_names": NAMES[::-1]}):
        with pytest.raises(AssertionError, match="loaded again"):
            clip_answers(checkpoint, change.get("class_names", NAMES), change.get("split", split), cache_dir=tmp_path)

    (file,) = tmp_path.glob("clip-*.safetensors")
    content = bytearray(file.read_bytes())
    for damaged in (content[:-8], content[:-8] + b"damaged!", b""):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"clip-\w+\.safetensors are damaged.*Delete"):
            clip_answers(checkpoint, NAMES, split, cache_dir=tmp_path)
    assert clip_cache_file(tmp_path, {"a": 1}) != clip_cache_file(tmp_path, {"a": 2})


def test_a_file_of_text_embeddings_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "text.safetensors"
    file.write_bytes(b"")
    with pytest.raises(InputError, match="image encoder"):
        enhanced(clip=file)
