"""Every value of TMKD that can be set: its default, where that comes from, and what it means.

The paper's text gives none of its numbers (they are lost in the copies that can be had), so most defaults are ours, after
the codes that the paper builds on. The thresholds and scales of the views stand in ``views.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tmkd_plugin.settings import check_choice, check_number, setting


@dataclass(frozen=True)
class TMKDSettings:
    """The settings of :class:`~tmkd_plugin.enhancer.TMKDEnhancer`.

    Raises:
        InputError: A value is out of its range.
    """

    feature_weight: float = setting(1.0, "ours", "weight of the feature KL (Eq 7) in the total (Eq 12), >= 0")
    logit_weight: float | None = setting(
        None,
        "ours",
        "weight of the added logit KL (Eq 8), >= 0; None: 0 where the distiller has one of its own, 1 where it says that "
        "it has none, 0 with a notice where it does not say",
    )
    contrast_weight: float = setting(
        0.8, "ours, after RepDistiller's CRD", "weight of the text contrast (Eq 11) in the total, >= 0"
    )
    temperature: float = setting(
        4.0, "ours, after mdistiller's CIFAR default", "temperature of the added logit KL (Eq 8), > 0"
    )
    feature_temperature: float = setting(4.0, "ours", "temperature of the feature KL (Eq 7), > 0")
    contrast_temperature: float = setting(0.07, "ours, after CRD", "temperature tau of the text contrast (Eq 11), > 0")
    noise_scale: float = setting(0.1, "ours, after TeKAP", "scale of the noise on the fused features (Eq 6), >= 0")
    scale_logit_kl: bool = setting(True, "official code (mdistiller KD)", "multiply the added logit KL by temperature²")
    scale_feature_kl: bool = setting(True, "ours", "multiply the feature KL by feature_temperature²")
    hidden_width: int = setting(256, "ours", "width of WeightNet's hidden layer (Eq 3), >= 1")
    projection_width: int = setting(128, "ours, after CRD", "width of the space of the text contrast (Eq 9-10), >= 1")
    fusion: str = setting("text", "paper", "'text': weights by WeightNet; 'average': the plain average of the views")
    fusion_objective: str = setting(
        "feature_kl",
        "paper",
        "what WeightNet learns from: 'feature_kl' (Eq 7), 'labels' (cross-entropy of the fused teacher logits), or "
        "'frozen' (nothing: it keeps its initialisation)",
    )
    logit_source: str = setting(
        "fused", "ours", "logits that the distiller and the logit KL see: 'fused', or 'rgb' for the single view's"
    )

    def __post_init__(self) -> None:
        for name in ("feature_weight", "contrast_weight", "noise_scale"):
            check_number(name, getattr(self, name), at_least=0)
        if self.logit_weight is not None:
            check_number("logit_weight", self.logit_weight, at_least=0)
        for name in ("temperature", "feature_temperature", "contrast_temperature"):
            check_number(name, getattr(self, name), above=0)
        for name in ("hidden_width", "projection_width"):
            check_number(name, getattr(self, name), at_least=1, whole=True)
        check_choice("fusion", self.fusion, ("text", "average"))
        check_choice("fusion_objective", self.fusion_objective, ("feature_kl", "labels", "frozen"))
        check_choice("logit_source", self.logit_source, ("fused", "rgb"))
