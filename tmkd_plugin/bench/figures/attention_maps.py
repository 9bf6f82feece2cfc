"""Fig 3: where the baseline's and the enhanced student look for the true class of the same test images (Grad-CAM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmkd_plugin.bench.figures.drawing import Drawing, figure_style, new_figure, shown_name
from tmkd_plugin.bench.figures.finished_run import ArmPair, FinishedRun
from tmkd_plugin.bench.figures.images import pixels_of, spread_over_classes
from tmkd_plugin.data.batches import normalize
from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import OutputReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tmkd_plugin.data.dataset import ImageDataset

SHARPEST = 192
"""Height and width in pixels that small images are enlarged to, so that a map on them is smooth."""


@dataclass(frozen=True)
class Look:
    """What one student makes of N images.

    Attributes:
        title: The arm's title.
        maps: float32 (N, H, W) in [0, 1], the size of the images.
        predicted: int64 (N,).
        confidence: float32 (N,), the probability of the predicted class.
    """

    title: str
    maps: Tensor
    predicted: Tensor
    confidence: Tensor


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Explains the logit of a class by where in the last feature map it comes from.

    The map's channels are weighted by the mean gradient of the logit and added up; what speaks against the class is cut
    off. Source: Selvaraju et al., Grad-CAM (ICCV 2017), equations 1 and 2; equal to the package ``grad-cam`` by test.
    The package itself is not used: it brings ``opencv-python-headless``, which overwrites the files of ``opencv-python``.

    Args:
        network: In eval mode.
        images: float32 (N,3,H,W), normalised.
        classes: int64 (N,), the class to explain for each image.

    Returns:
        Maps, float32 (N,H,W), each from 0 to 1 (all 0 where nothing speaks for the class), and the logits, (N,K).

    Raises:
        InputError: The network has no last feature map of the form (N,C,h,w).
    """
    reader = OutputReader(network, "student", images.shape[-1])
    reader.require_feature_map("Grad-CAM")
    with torch.enable_grad():
        output = reader(images)
        feature_map = output.feature_map
        gradient = None
        if feature_map is not None and feature_map.requires_grad:
            score = output.logits.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, feature_map, allow_unused=True)
    if feature_map is None or gradient is None:
        raise InputError(f"Grad-CAM needs a last feature map (N, C, h, w); {type(network).__name__} shows none.")
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = F.relu((weights * feature_map).sum(dim=1)).detach()
    sides = (int(images.shape[-2]), int(images.shape[-1]))
    maps = F.interpolate(maps[:, None], size=sides, mode="bilinear", align_corners=False)[:, 0]
    low = maps.amin(dim=(1, 2), keepdim=True)
    # Each map on its own scale: maps of two networks have no common one.
    maps = (maps - low) / (maps.amax(dim=(1, 2), keepdim=True) - low).clamp(min=1e-7)
    return maps, output.logits.detach()


def attention_maps(run: FinishedRun, pair: ArmPair, dataset: ImageDataset, *, seed: int, count: int = 6) -> Drawing:
    """Draws the maps of both students of a seed for the same test images.

    Args:
        run: The comparison.
        pair: Its arms.
        dataset: Its images.
        seed: Which students.
        count: How many images.

    Raises:
        InputError: A student's weights are missing, or it has no feature map.
    """
    rows = spread_over_classes(dataset.test.labels.cpu(), count)
    pixels, labels = pixels_of(dataset.test, rows), dataset.test.labels.cpu()[rows]
    looks = [_look(run, arm["title"], run.student(arm, seed), pixels, labels, dataset) for arm in pair.both]
    names = [run.class_names[label] for label in labels.tolist()]
    count = len(rows)
    with figure_style():
        figure = new_figure(max(3.2, 0.75 + 1.05 * count), 4.1)
        grid = figure.subplots(3, count, squeeze=False)
        for column in range(count):
            image = _enlarged(pixels[column])
            _show(grid[0][column], image, shown_name(names[column], 12))
            for axes, look in zip(grid[1:, column], looks, strict=True):
                predicted = int(look.predicted[column])
                right = predicted == int(labels[column])
                said = f"{'✓' if right else '✗'} {shown_name(run.class_names[predicted], 12)}"
                _show(axes, _overlaid(image, look.maps[column]), said)
        for axes, title in zip(grid[:, 0], ("image", *(look.title for look in looks)), strict=True):
            axes.set_ylabel(shown_name(title, 20))
    return Drawing(
        "fig3-attention-maps",
        f"Where the students look: {pair.baseline['title']} and {pair.enhanced['title']}",
        f"Grad-CAM of the true class on the last feature map; best weights of seed {seed}; bright: speaks for the class. "
        "Each map has its own scale. Below each map what the student says, ✓ right or ✗ wrong. The images are the first "
        "test images of evenly spaced classes, chosen without regard to any result.",
        f"The images are of the classes {', '.join(names)}. "
        + " ".join(_sentence(names, labels, look, run.class_names) for look in looks),
        figure,
    )


def _look(
    run: FinishedRun, title: str, student: nn.Module, pixels: Tensor, labels: Tensor, dataset: ImageDataset
) -> Look:
    maps, logits = grad_cam(student, normalize(pixels, dataset.mean, dataset.std), labels)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    return Look(title, maps, predicted, confidence)


def _enlarged(pixels: Tensor) -> Tensor:
    """Returns an image, uint8 (3,H,W), as float32 (H',W',3) in [0, 1], at least ``SHARPEST`` high and wide."""
    side = max(SHARPEST, *pixels.shape[1:])
    image = F.interpolate(pixels[None].float() / 255, size=(side, side), mode="bicubic", align_corners=False)
    return image[0].clamp(0, 1).permute(1, 2, 0)


def _overlaid(image: Tensor, attention: Tensor) -> Tensor:
    """Returns the image in grey under its map in colour, (H,W,3)."""
    import matplotlib

    sides = (int(image.shape[0]), int(image.shape[1]))
    attention = F.interpolate(attention[None, None], size=sides, mode="bilinear", align_corners=False)[0, 0]
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](attention.numpy())[..., :3]).float()
    grey = image.mean(dim=2, keepdim=True).expand(-1, -1, 3)
    strength = 0.25 + 0.5 * attention[..., None]  # what speaks for nothing stays visible
    return (1 - strength) * grey + strength * colours


def _show(axes: Axes, image: Tensor, below: str) -> None:
    axes.imshow((255 * image).round().to(torch.uint8).numpy(), interpolation="none")
    axes.set_xlabel(below, fontsize=8, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def _sentence(names: Sequence[str], labels: Tensor, look: Look, class_names: Sequence[str]) -> str:
    wrong = [
        f"{name} taken for {class_names[predicted]}"
        for name, label, predicted in zip(names, labels.tolist(), look.predicted.tolist(), strict=True)
        if predicted != label
    ]
    mistakes = f" ({'; '.join(wrong)})" if wrong else ""
    return f"{look.title} is right on {len(names) - len(wrong)} of {len(names)}{mistakes}."
