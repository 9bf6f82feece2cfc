"""Every value of RichKD that can be set: its default, where that comes from, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from tmkd_plugin.contrastive import LOWEST_TEMPERATURE
from tmkd_plugin.settings import check_choice, check_number, setting

VARIANTS = ("L", "F", "LF")
_CODE = "official code (RichKD configs/cifar100/richkd)"
_CRD = "official code (RichKD engine/cfg.py, as CRD)"


@dataclass(frozen=True)
class RichKDSettings:
    """The settings of :class:`~tmkd_plugin.richkd.RichKDEnhancer`.

    Raises:
        InputError: A value is out of its range.
    """

    variant: str = setting("LF", "paper", "'L': fused logits; 'F': contrast with fused features; 'LF': both")
    alpha: float = setting(0.7, _CODE, "the teacher's share in the fused logits, 0 to 1; the rest is CLIP's")
    lambda_: float | None = setting(
        None,
        "official code, where it is alpha; the paper's own value is not known",
        "the teacher's share in the fused features, 0 to 1; None: alpha",
    )
    clip_logit_scale: float = setting(
        1.0,
        "official code, which has none; the paper's is not known",
        "factor of CLIP's cosines in the fused logits, > 0; CLIP itself classifies with about 100",
    )
    clip_images: str | None = setting(
        None,
        "official code: once",
        "'once': CLIP is asked about each training image without augmentation; 'augmented': about every batch as the teacher "
        "sees it; None: as clip= is given, in a comparison 'once'",
    )
    temperature: float = setting(3.0, _CODE, "temperature of the added logit KL, > 0")
    logit_weight: float | None = setting(
        None,
        "ours; 3 is the official code's",
        "weight of the added logit KL, >= 0; None: 0 where the distiller has one of its own (which sees the fused logits), "
        "3 where it says that it has none, 0 with a notice where it does not say",
    )
    feature_weight: float = setting(0.8, _CODE, "weight of the contrast (CRD) with the fused features, >= 0")
    projection_width: int = setting(128, _CRD, "width of the space of the contrast, >= 1")
    contrast_temperature: float = setting(0.07, _CRD, "temperature tau of the contrast, >= 0.015")
    negatives: int = setting(16384, _CRD, "number K of negatives of a sample, >= 1")
    memory_momentum: float = setting(0.5, _CRD, "share of the old entry when the bank is updated, 0 to 1")
    bank_limit: int = setting(
        65536, "ours", "most training samples for which the exact bank is kept (8 bytes x width each); else the queue"
    )
    queue_size: int = setting(4096, "ours", "entries of the queue, which needs to know no samples, >= 2")

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_number("alpha", self.alpha, at_least=0, at_most=1)
        if self.lambda_ is not None:
            check_number("lambda_", self.lambda_, at_least=0, at_most=1)
        if self.clip_images is not None:
            check_choice("clip_images", self.clip_images, ("once", "augmented"))
        if self.logit_weight is not None:
            check_number("logit_weight", self.logit_weight, at_least=0)
        for name in ("clip_logit_scale", "temperature"):
            check_number(name, getattr(self, name), above=0)
        check_number("contrast_temperature", self.contrast_temperature, at_least=LOWEST_TEMPERATURE)
        check_number("feature_weight", self.feature_weight, at_least=0)
        check_number("memory_momentum", self.memory_momentum, at_least=0, at_most=1)
        for name, least in (("projection_width", 1), ("negatives", 1), ("bank_limit", 0), ("queue_size", 2)):
            check_number(name, getattr(self, name), at_least=least, whole=True)

    @property
    def fuses_logits(self) -> bool:
        """Whether the logits are fused (L)."""
        return "L" in self.variant

    @property
    def contrasts_features(self) -> bool:
        """Whether there is a contrast with fused features (F)."""
        return "F" in self.variant and self.feature_weight > 0

    @property
    def feature_share(self) -> float:
        """The teacher's share in the fused features."""
        return self.alpha if self.lambda_ is None else self.lambda_
