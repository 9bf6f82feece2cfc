"""The figures of a finished comparison: what they compute, what is written, and what can be wrong with a run."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from finished_runs import call, copied, make_run
from PIL import Image
from torch import nn

from tmkd_plugin.bench.figures import drawing as style
from tmkd_plugin.bench.figures.attention_maps import grad_cam
from tmkd_plugin.bench.figures.drawing import Drawing, inline_svg, shown_name
from tmkd_plugin.bench.figures.embedding import plane_of, separation
from tmkd_plugin.bench.figures.finished_run import newest_run, read_run
from tmkd_plugin.bench.figures.fusion_curves import by_epoch
from tmkd_plugin.bench.figures.images import evenly_spaced, spread_over_classes
from tmkd_plugin.bench.figures.logit_heat_map import summarise
from tmkd_plugin.bench.predictions import Predictions
from tmkd_plugin.commands import figures
from tmkd_plugin.errors import InputError, TmkdNotice

HOSTILE = '<script>alert("1")</script> $x^{2 & \x07\udcff\u202egnp.exe ' + "very" * 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("run") / "finished", image_folder, text_file, cache)


class Tiny(nn.Module):
    """Feature map by one convolution, mean, classifier: everything about its Grad-CAM can be written down."""

    def __init__(self, classes: int = 3, channels: int = 5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, images):
        return self.fc(self.pool(self.conv(images).tanh()).flatten(1))


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_grad_cam_is_the_formula_written_out(images):
    """The gradient of a mean of h x w values is the classifier's weight over h w, in float64 and loops."""
    network, classes = Tiny().eval(), torch.tensor([0, 2, 1, 2])
    maps, logits = grad_cam(network, images, classes)
    assert torch.equal(logits, network(images).detach())
    features = network.conv(images).tanh().detach().double()
    for row in range(4):
        expected = torch.zeros(8, 8, dtype=torch.float64)
        for channel in range(5):
            expected += network.fc.weight[classes[row], channel].item() / 64 * features[row, channel]
        expected = expected.clamp(min=0)
        large = nn.functional.interpolate(expected[None, None], (16, 16), mode="bilinear", align_corners=False)[0, 0]
        large = (large - large.min()) / (large.max() - large.min())
        torch.testing.assert_close(maps[row].double(), large, atol=1e-5, rtol=0)


def test_grad_cam_equals_the_package(images):
    package = pytest.importorskip("pytorch_grad_cam", reason="needs the package grad-cam, which tmkd does not install")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from tmkd_plugin.zoo import build_network

    network, classes = build_network("resnet8", 10, seed=3).eval(), [3, 1, 4, 1]
    maps, _ = grad_cam(network, images, torch.tensor(classes))
    layer = network.blocks[-1] if hasattr(network, "blocks") else list(network.children())[-3]
    with package.GradCAM(model=network, target_layers=[layer]) as theirs:
        expected = theirs(input_tensor=images, targets=[ClassifierOutputTarget(label) for label in classes])
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-4)


def test_grad_cam_needs_a_feature_map(images):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    with pytest.raises(InputError, match="feature map"):
        grad_cam(flat, images, torch.tensor([0, 1, 2, 0]))


def test_separation_is_the_silhouette_written_out():
    generator = torch.Generator().manual_seed(2)
    points, labels = torch.randn(20, 4, generator=generator).double(), torch.arange(20) % 3
    scores = []
    for i in range(20):
        means = [
            np.mean([float((points[i] - points[j]).norm()) for j in range(20) if labels[j] == label and j != i])
            for label in range(3)
        ]
        own = means.pop(int(labels[i]))
        scores.append((min(means) - own) / max(min(means), own))
    assert separation(points, labels) == pytest.approx(np.mean(scores), abs=1e-9)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_separation_needs_classes_with_several_images(labels):
    with pytest.raises(InputError, match="at least 2 classes and more images"):
        separation(torch.randn(4, 2), torch.tensor(labels))


def test_plane_is_the_same_each_time():
    features = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
    first, second = plane_of(features), plane_of(features)
    assert first.shape == (24, 2)
    np.testing.assert_array_equal(first, second)


def test_logits_are_averaged_as_written_out():
    draw = np.random.default_rng(4)
    logits, labels = draw.normal(size=(2, 9, 4)), np.array([0, 0, 1, 1, 1, 3, 3, 0, 1])
    found = summarise([Predictions(np.arange(9), labels, each.astype(np.float32), each.argmax(1)) for each in logits])
    true, margins = [], []
    for each in logits:
        for row, label in zip(each, labels, strict=True):
            weights = np.exp(row)
            true.append(weights[label] / weights.sum())
            margins.append(row[label] - max(value for k, value in enumerate(row) if k != label))
    assert found.true_class == pytest.approx(np.mean(true), abs=1e-6)
    assert found.margin == pytest.approx(np.mean(margins), abs=1e-6)
    cell = np.mean([[row[2] - row.mean() for row, k in zip(e, labels, strict=True) if k == 1] for e in logits])
    assert found.by_class[1, 2] == pytest.approx(cell, abs=1e-6)
    assert np.isnan(found.by_class[2]).all()
    assert found.by_rank.sum() == pytest.approx(1)
    assert (np.diff(found.by_rank) <= 0).all()


def test_values_by_epoch():
    histories = [[{"w": {"edge": 1}}, {"w": {"edge": 2}}], [{"w": {"edge": 3}}, {}]]
    np.testing.assert_array_equal(by_epoch(histories, "w", "edge"), [[1, 2], [3, np.nan]])


def test_images_are_chosen_by_class_alone():
    labels = torch.tensor([3, 3, 1, 2, 1, 0, 2, 0])
    assert spread_over_classes(labels, 2) == [5, 3]
    assert spread_over_classes(labels, 6) == [5, 2, 3, 0, 7, 4]
    assert spread_over_classes(labels, 99) == [5, 2, 3, 0, 7, 4, 6, 1]
    assert evenly_spaced(labels, 8, 20) == (list(range(8)), False)
    assert evenly_spaced(labels, 2, 2) == ([3, 5], True)


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#15181d"])
def test_colours_are_seen_on_light_and_dark(page):
    for colour in (style.BASELINE, style.ENHANCED, *style.VIEW_COLOURS.values(), *style.CLASS_COLOURS):
        assert contrast(colour, page) >= 3, colour


def hostile_drawing(name: str = "x") -> Drawing:
    with style.figure_style():
        figure = style.new_figure(6, 5)
        axes = figure.subplots()
        axes.plot([0, 1], [1, 2], marker="o", color=style.BASELINE, label=shown_name(HOSTILE, 40))
        axes.set_title(shown_name(HOSTILE, 40))
        axes.legend()
    return Drawing(name, HOSTILE, "caption", f'" onload="{HOSTILE}', figure)


def test_hostile_names_stay_text_in_svg(tmp_path):
    for content in (style.svg(hostile_drawing()), inline_svg(hostile_drawing()).encode()):
        root = ET.fromstring(content)
        assert not [element for element in root.iter() if element.tag.rpartition("}")[2] in ("script", "style_")]
        assert not [key for element in root.iter() for key in element.attrib if key.lower().startswith("on")]
        assert any('<script>alert("1")' in (element.text or "") for element in root.iter())
    files = style.save(hostile_drawing(), tmp_path)
    with Image.open(files[0]) as image:
        assert image.format == "PNG"


def test_inline_figures_share_a_page():
    first, second = inline_svg(hostile_drawing("a")), inline_svg(hostile_drawing("b"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
        assert {name for pair in references for name in pair if name} <= own
        assert "<style" not in text
        assert style.INK not in text
        assert "currentColor" in text


def test_names_are_cut_and_cleaned():
    assert shown_name("a\x00b\u202ec", 8) == "a bc"
    assert shown_name("abcdefgh", 5) == "abcd…"
    assert shown_name("مرحبا", 8) == "مرحبا"


def test_every_figure_is_written_and_the_same_again(finished, tmp_path, capsys):
    outcomes = []
    for out in ("first", "second"):
        assert call(figures, str(finished), "--out", str(tmp_path / out), "--images", "3") == 0
        outcomes.append({path.name: path.read_bytes() for path in sorted((tmp_path / out).iterdir())})
    names = ("fig3-attention-maps", "fig4-features", "fig5-logits", "fig6-fusion")
    assert sorted(outcomes[0]) == [f"{name}{suffix}" for name in names for suffix in (".png", ".svg", ".txt")]
    assert outcomes[0] == outcomes[1]
    for name, content in outcomes[0].items():
        if name.endswith(".svg"):
            ET.fromstring(content)
        elif name.endswith(".txt"):
            assert content.decode().count("\n\n") >= 2
    assert "Silhouette of the features over 2 seeds: KD " in capsys.readouterr().out


def test_figures_stand_in_the_run_and_harm_nothing(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    assert call(figures, str(run / "results.json"), "--arms", "kd+tmkd,kd", "--seed", "1") == 0
    assert (run / "figures" / "fig5-logits.png").is_file()
    assert newest_run(tmp_path) == run


def test_attention_maps_show_the_best_weights(finished, tmp_path):
    """The students that are drawn are those whose predictions stand in the run, not those of the last epoch."""
    run = read_run(copied(finished, tmp_path / "run"))
    for path in run.folder.rglob("student_last.safetensors"):
        path.unlink()
    (pair,) = run.pairs()
    from tmkd_plugin.bench.figures.finished_run import load_images
    from tmkd_plugin.data.batches import normalize

    dataset = load_images(run)
    for arm in pair.both:
        logits = run.student(arm, 1)(normalize(dataset.test.images, dataset.mean, dataset.std)).detach().numpy()
        np.testing.assert_allclose(logits, run.predictions(arm, 1).logits, atol=0.02)


def without_enhanced(results):
    results["arms"] = results["arms"][:1]


def of_other_images(results):
    results["dataset"]["fingerprint"] = "0" * 64


def of_no_place(results):
    results["config"]["dataset"]["value"] = "/nowhere/at/all"


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (without_enhanced, (), "holds no finished pair .* only: kd. Run `tmkd bench` with --enhancer tmkd"),
        (of_other_images, (), "are not those of .* any more: their fingerprint is"),
        (of_no_place, (), "can't be loaded: .*nowhere"),
        (None, ("--seed", "7"), "--seed 7: KD and KD . TMKD have both finished the seeds 0, 1 only"),
        (None, ("--arms", "kd,kd+tmdk"), "Did you mean 'kd.tmkd'"),
    ],
)
def test_runs_that_can_t_be_drawn(finished, tmp_path, change, words, message):
    run = copied(finished, tmp_path / "run", change)
    with pytest.raises(InputError, match=message):
        call(figures, str(run), *words)
    assert not (run / "figures").exists()


def test_unfinished_and_missing_runs(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    (run / "results.json").unlink()
    with pytest.raises(InputError, match=r"is not finished: it has no results\.json"):
        call(figures, str(run))
    with pytest.raises(InputError, match="There is no folder"):
        call(figures, str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no comparison"):
        call(figures, str(tmp_path / "empty"))
    with pytest.raises(InputError, match="No finished comparison lies below"):
        newest_run(tmp_path / "empty")


def test_files_of_a_run_that_are_gone(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    (run / "kd" / "seed0" / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"predictions.npz can't be read .*makes what is missing or damaged again"):
        call(figures, str(run))
    shutil.rmtree(run / "kd+tmkd" / "seed0")
    with (
        pytest.warns(TmkdNotice, match=r"No (attention maps|plane of features): .*student.safetensors"),
        pytest.raises(InputError),
    ):
        call(figures, str(run))


@pytest.mark.parametrize("words", [("--arms", "kd"), ("--arms", "kd,kd"), ("--images", "0"), ("--seed", "-1")])
def test_wrong_words(finished, words, capsys):
    with pytest.raises(SystemExit):
        call(figures, str(finished), *words)
    assert "expected" in capsys.readouterr().err
