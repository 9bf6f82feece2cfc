"""How strong each corruption is at each severity: the published tables, by the side of the images.

The numbers are those of the generators of Hendrycks and Dietterich (arXiv 1903.12261, repository ``hendrycks/robustness``,
``ImageNet-C/create_c``): ``make_cifar_c.py`` for 32 px (CIFAR-10-C), ``make_tinyimagenet_c.py`` for 64 px (Tiny-ImageNet-C)
and ``make_imagenet_c.py`` for 224 px (ImageNet-C).
"""

from __future__ import annotations

from collections.abc import Mapping

from tmkd_plugin.errors import InputError, unknown_name

Strength = tuple[float, ...]
"""The parameters of one corruption at one severity; the corruption's own function says what each one means."""

SEVERITIES = (1, 2, 3, 4, 5)
SIDES = (32, 64, 224)

_IMAGENET_ELASTIC = 244 / 224  # the published lengths are multiples of 244, a slip that its author left in


def _single(*values: float) -> tuple[Strength, ...]:
    return tuple((value,) for value in values)


STRENGTHS: Mapping[str, Mapping[int, tuple[Strength, ...]]] = {
    "gaussian_noise": {
        32: _single(0.04, 0.06, 0.08, 0.09, 0.10),
        64: _single(0.04, 0.08, 0.12, 0.15, 0.18),
        224: _single(0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {
        32: _single(500, 250, 100, 75, 50),
        64: _single(250, 100, 50, 30, 15),
        224: _single(60, 25, 12, 5, 3),
    },
    "impulse_noise": {
        32: _single(0.01, 0.02, 0.03, 0.05, 0.07),
        64: _single(0.01, 0.02, 0.05, 0.08, 0.14),
        224: _single(0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "defocus_blur": {
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {
        32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    },
    "fog": {
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {
        32: _single(0.05, 0.1, 0.15, 0.2, 0.3),
        64: _single(0.1, 0.2, 0.3, 0.4, 0.5),
        224: _single(0.1, 0.2, 0.3, 0.4, 0.5),
    },
    "contrast": {
        32: _single(0.75, 0.5, 0.4, 0.3, 0.15),
        64: _single(0.4, 0.3, 0.2, 0.1, 0.05),
        224: _single(0.4, 0.3, 0.2, 0.1, 0.05),
    },
    # Shares of the side: height and width of the displacement's Gaussian, and the range of the affine corners.
    "elastic_transform": {
        32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        224: tuple(
            tuple(_IMAGENET_ELASTIC * share for share in shares)
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    },
    "pixelate": {
        32: _single(0.95, 0.9, 0.85, 0.75, 0.65),
        64: _single(0.9, 0.8, 0.7, 0.6, 0.5),
        224: _single(0.6, 0.5, 0.4, 0.3, 0.25),
    },
    "jpeg_compression": {
        32: _single(80, 65, 58, 50, 40),
        64: _single(65, 58, 50, 40, 25),
        224: _single(25, 18, 15, 10, 7),
    },
}
"""By corruption, side of the images in pixels, and severity from 1 to 5."""


def nearest_side(side: int) -> int:
    """Returns the side, in pixels, whose table images of this side take; the smaller one of two that are equally near."""
    return min(SIDES, key=lambda known: (abs(known - side), known))


def strength_of(name: str, severity: int, side: int) -> Strength:
    """Returns the published parameters of a corruption.

    Args:
        name: The corruption.
        severity: From 1, the weakest, to 5.
        side: Height and width of the images in pixels; the nearest of 32, 64 and 224 decides.

    Raises:
        InputError: There is no such corruption or severity.
    """
    if name not in STRENGTHS:
        raise unknown_name("corruption", name, STRENGTHS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise InputError(f"severity={severity!r}: expected a whole number from 1, the weakest, to 5.")
    return STRENGTHS[name][nearest_side(side)][severity - 1]
