"""The values that CAT-KD's authors tuned for pairs of networks, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PairSettings:
    """Values for one pair of networks.

    Attributes:
        cat_weight: β, the weight of the map loss.
        cam_resolution: R.
        normalize: Whether planes are normalised.
        source: Where they come from.
    """

    cat_weight: float
    cam_resolution: int
    normalize: bool
    source: str


_CIFAR = "official code (CAT-KD configs/cifar100/)"
_IMAGENET = "official code (CAT-KD configs/imagenet/; published with a wrong TYPE, so indicative only)"

CAT_KD_PAIRS: dict[tuple[str, str, str], PairSettings] = {
    ("cifar100", "resnet32x4", "resnet8x4"): PairSettings(15, 2, False, _CIFAR),
    ("cifar100", "resnet56", "resnet20"): PairSettings(0.7, 2, False, _CIFAR),
    ("cifar100", "resnet110", "resnet32"): PairSettings(1.8, 2, False, _CIFAR),
    ("cifar100", "wrn_40_2", "wrn_16_2"): PairSettings(12, 2, False, _CIFAR),
    ("cifar100", "wrn_40_2", "wrn_40_1"): PairSettings(1.5, 2, False, _CIFAR),
    ("cifar100", "vgg13", "vgg8"): PairSettings(4.5, 2, False, _CIFAR),
    ("cifar100", "vgg13", "mobilenetv2"): PairSettings(15, 2, True, _CIFAR),
    ("cifar100", "resnet50", "mobilenetv2"): PairSettings(40, 2, True, _CIFAR),
    ("cifar100", "resnet32x4", "shufflenetv1"): PairSettings(600, 4, True, _CIFAR),
    ("cifar100", "resnet32x4", "shufflenetv2"): PairSettings(600, 4, True, _CIFAR),
    ("cifar100", "wrn_40_2", "shufflenetv1"): PairSettings(80, 4, True, _CIFAR),
    ("imagenet", "resnet34", "resnet18"): PairSettings(0.5, 4, False, _IMAGENET),
    ("imagenet", "resnet50", "mobilenetv2"): PairSettings(10, 2, True, _IMAGENET),
}
"""(data set, teacher, student) -> values with cross-entropy; β belongs to that data set's recipe and class count."""

CAT_ONLY = {
    False: PairSettings(50, 2, True, _CIFAR),
    True: PairSettings(300, 2, True, _CIFAR),
}
"""Binarised or not -> values for ``only_cat=True`` with resnet32x4 as teacher and student on CIFAR-100; not tuned."""


def published_settings(teacher: str, student: str, dataset: str = "cifar100") -> dict[str, Any]:
    """Returns the published values for a pair as keyword arguments of :class:`CATKD`.

    Args:
        teacher: Name of the teacher network; case, ``-``, ``_`` and a trailing ``cifar`` don't matter.
        student: Name of the student network.
        dataset: ``"cifar100"`` or ``"imagenet"``.

    Returns:
        ``cat_weight``, ``cam_resolution`` and ``normalize``; empty for a pair without published values, for which
        :class:`CATKD` has its defaults.
    """
    wanted = (_plain(dataset), _plain(teacher), _plain(student))
    for key, settings in CAT_KD_PAIRS.items():
        if tuple(_plain(part) for part in key) == wanted:
            return {
                "cat_weight": settings.cat_weight,
                "cam_resolution": settings.cam_resolution,
                "normalize": settings.normalize,
            }
    return {}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").removesuffix("cifar")
