"""``tmkd views``: the sheet shows the views that the teacher is shown, of any image file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import call
from PIL import Image

from tmkd_plugin.bench.figures.views_sheet import read_pixels, settings_line, views_sheet
from tmkd_plugin.commands import views
from tmkd_plugin.errors import InputError
from tmkd_plugin.views import VIEW_NAMES, ViewSettings, make_views


def save(path: Path, width: int = 40, height: int = 24, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_a_sheet_of_several_files(tmp_path, capsys):
    names = ["a.png", "b.jpg", "<i>&\u202egpj.gif", "grey.bmp"]
    files = [save(tmp_path / name, mode="L" if name.startswith("grey") else "RGB") for name in names]
    out = tmp_path / "deep" / "sheet.svg"
    assert call(views, *map(str, files), "--out", str(out)) == 0
    text = ET.fromstring(out.read_bytes())
    words = " ".join(element.text or "" for element in text.iter())
    for word in (
        "RGB",
        "edge",
        "high-frequency",
        "a.png",
        "<i>&gpj.gif",
        "40 \u00d7 24",
        "canny_low=100",
        "blur_sigma=by size",
    ):
        assert word in words
    assert "4 images" in capsys.readouterr().out


def test_png_is_the_same_each_time(tmp_path):
    image = save(tmp_path / "a.png")
    for name in ("1.png", "2.png"):
        assert call(views, str(image), "--out", str(tmp_path / name), "--size", "16") == 0
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    with Image.open(tmp_path / "1.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 900


def test_the_sheet_shows_the_views(tmp_path):
    pixels = read_pixels(save(tmp_path / "a.png"), None)
    settings = ViewSettings(canny_low=10, canny_high=20, high_frequency_weight=3.0)
    shown = [axes.images[0].get_array() for axes in views_sheet([("a", pixels)], settings).figure.axes]
    for array, view in zip(shown, make_views(pixels[None], VIEW_NAMES, settings), strict=True):
        assert np.array_equal(array, view[0].round().to(torch.uint8).permute(1, 2, 0).numpy())
    assert not np.array_equal(shown[0], shown[2])


def test_large_images_are_reduced_and_squares_are_cut(tmp_path):
    image = save(tmp_path / "a.png", 1000, 500)
    assert read_pixels(image, None).shape == (3, 224, 448)
    assert read_pixels(image, 32).shape == (3, 32, 32)
    assert read_pixels(save(tmp_path / "small.png"), None).shape == (3, 24, 40)


def test_settings_are_named():
    line = settings_line(ViewSettings(edge_alpha=0.7))
    assert "edge_alpha=0.7" in line
    assert all(name in line for name in ViewSettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], r"The image missing.png can't be used: the file is missing"),
        (["broken.png"], r"broken.png can't be used: not an image"),
        (["a.png", "--out", "x.gif"], r"written as .png or .svg"),
        (["a.png", "--set", "cany_low=3"], r"Did you mean 'canny_low'"),
        (["a.png", "--set", "canny_low=.inf"], r"thresholds must be finite"),
        (["a.png", "--set", "canny_low=low"], r"canny_low: .*number.*'low'"),
        (["a.png"] * 17, r"1 to 16 images, but 17"),
    ],
)
def test_what_can_t_be_shown(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=message):
        call(views, *words)
    assert not (tmp_path / "views.png").exists()
