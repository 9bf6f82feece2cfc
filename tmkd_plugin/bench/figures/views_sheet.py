"""A sheet with the three views of a few images: what the teacher is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import torch
from torch import Tensor

from tmkd_plugin.bench.figures.drawing import INK, Drawing, figure_style, new_figure, png, shown_name, svg
from tmkd_plugin.bench.figures.fusion_curves import VIEW_TITLES
from tmkd_plugin.config import parse_assignments
from tmkd_plugin.config_checks import checked_value
from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import settings_from
from tmkd_plugin.training.files import write_bytes
from tmkd_plugin.views import VIEW_NAMES, ViewSettings, make_views

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 448
"""The long side in pixels to which a larger image is reduced where no size is asked for."""

MOST_IMAGES = 16
SUFFIXES = (".png", ".svg")


def read_pixels(path: Path, size: int | None) -> Tensor:
    """Reads an image of any common kind.

    Args:
        path: The file.
        size: Height and width to which its central square is resized, as networks are shown it; ``None`` keeps its
            shape and reduces a long side above 448 pixels to that.

    Returns:
        uint8 (3,H,W), RGB.

    Raises:
        InputError: The file can't be read.
    """
    import numpy as np

    from tmkd_plugin.data.decode import UnusableImageError, decode_image, read_image

    try:
        square = None if size is None else decode_image(path, size)
        pixels = np.asarray(_reduced(read_image(path))) if square is None else square
    except UnusableImageError as error:
        raise InputError(f"The image {path} can't be used: {error}.") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _reduced(image: Image.Image) -> Image.Image:
    from PIL import Image

    scale = LARGEST / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def views_sheet(images: Sequence[tuple[str, Tensor]], settings: ViewSettings | None = None) -> Drawing:
    """Draws a row for each image: RGB, edge, high-frequency.

    Args:
        images: Names and pixels, uint8 (3,H,W).
        settings: Thresholds and scales; ``None`` for the defaults.

    Raises:
        InputError: There are no images, or more than 16.
    """
    if not 1 <= len(images) <= MOST_IMAGES:
        raise InputError(f"A sheet takes 1 to {MOST_IMAGES} images, but {len(images)} were given.")
    settings = settings or ViewSettings()
    heights = [2.0 * pixels.shape[1] / pixels.shape[2] for _, pixels in images]
    with figure_style():
        figure = new_figure(6.6, sum(min(height, 4.0) + 0.3 for height in heights) + 0.75)
        ratios = [min(height, 4.0) for height in heights]
        grid = figure.subplots(len(images), len(VIEW_NAMES), squeeze=False, gridspec_kw={"height_ratios": ratios})
        for row, (name, pixels) in zip(grid, images, strict=True):
            height, width = pixels.shape[1:]
            for axes, view in zip(row, make_views(pixels[None], VIEW_NAMES, settings), strict=True):
                axes.imshow(view[0].round().to(torch.uint8).permute(1, 2, 0).numpy(), interpolation="antialiased")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            row[0].set_xlabel(f"{shown_name(name, 32)}, {width} \u00d7 {height}", loc="left", fontsize=8)
        for axes, view_name in zip(grid[0], VIEW_NAMES, strict=True):
            axes.set_title(VIEW_TITLES[view_name])
        figure.supxlabel(settings_line(settings), fontsize=7, color=INK, x=0.01, ha="left")
    return Drawing(
        "views",
        "The three views",
        settings_line(settings),
        f"RGB, edge and high-frequency view of {', '.join(name for name, _ in images)}.",
        figure,
    )


def settings_given(assignments: Sequence[str]) -> ViewSettings:
    """Returns the settings that ``key=value`` words give, the rest as they are by default.

    Raises:
        InputError: A setting is unknown, of a wrong type or out of range.
    """
    given, kinds, problems = parse_assignments(assignments), get_type_hints(ViewSettings), list[str]()
    for name, value in given.items():
        if name in kinds:
            given[name] = checked_value(name, value, kinds[name], problems)
    if problems:
        raise InputError("\n".join(problems))
    return settings_from(ViewSettings, given, "the views")


def settings_line(settings: ViewSettings) -> str:
    """Says which settings the views have."""
    values = dataclasses.asdict(settings)
    shown = (f"{name}={'by size' if value is None else value}" for name, value in values.items())
    parts = list(shown)
    middle = (len(parts) + 1) // 2
    return "  ".join(parts[:middle]) + "\n" + "  ".join(parts[middle:])


def write_sheet(drawing: Drawing, path: Path) -> None:
    """Writes the sheet as PNG or SVG, by the suffix.

    Raises:
        InputError: The suffix is another one.
    """
    check_suffix(path)
    write_bytes(path, svg(drawing) if path.suffix.lower() == ".svg" else png(drawing))


def check_suffix(path: Path) -> None:
    """Refuses a file name that is neither PNG nor SVG.

    Raises:
        InputError: With the suffixes that are possible.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {path}: the sheet is written as {' or '.join(SUFFIXES)}; give a name that ends so.")
