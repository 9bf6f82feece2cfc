"""The arms of a comparison: which distillers are trained, under which teacher, and what is compared with what."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tmkd_plugin.errors import InputError, unknown_name

ENHANCERS: dict[str, str] = {"tmkd": "tmkd_plugin.enhancer:TMKDEnhancer"}
"""Name -> ``module:Class``; called as ``Class(distiller, class_names, text=, mean=, std=, seed=, input_size=, **settings)``."""

TITLES = {"kd": "KD", "rkd": "RKD", "sp": "SP", "catkd": "CAT-KD", "tekap": "TeKAP", "tmkd": "TMKD"}

Control = Literal["logit_kl", "rgb_teacher"]


@dataclass(frozen=True)
class ArmSpec:
    """One distiller of a comparison.

    Attributes:
        baseline: Name of the distillation method, or ``module:Class``.
        enhancer: Name of the enhancer around it, if there is one.
        control: ``"logit_kl"``: the baseline and the KL of the single-view teacher's logits, which the enhanced arm of a
            baseline without one of its own also has; ``"rgb_teacher"``: the baseline under a teacher trained on RGB
            images only, by the same recipe. Each tells a part of the enhanced arm's difference that is not the enhancer's.
    """

    baseline: str
    enhancer: str | None = None
    control: Control | None = None

    @property
    def name(self) -> str:
        """The arm's name in ``results.json``, such as ``kd+tmkd`` or ``rkd@rgb_teacher``."""
        if self.control == "rgb_teacher":
            return f"{self.baseline}@rgb_teacher"
        added = self.control or self.enhancer
        return f"{self.baseline}+{added}" if added else self.baseline

    @property
    def folder(self) -> str:
        """The name of the arm's folder: the arm's name with what file systems don't like replaced."""
        return re.sub(r"[^A-Za-z0-9_.+@-]", "_", self.name)

    @property
    def title(self) -> str:
        """The name in tables, such as ``CAT-KD + TMKD``."""
        baseline = title_of(self.baseline)
        if self.control == "rgb_teacher":
            return f"{baseline}, RGB teacher"
        added = "logit KL" if self.control else title_of(self.enhancer) if self.enhancer else ""
        return f"{baseline} + {added}" if added else baseline


def title_of(name: str) -> str:
    """Returns a method's name for tables: ``CAT-KD`` for ``catkd``, the class for ``module:Class``."""
    return TITLES.get(name, name.rpartition(":")[2])


@dataclass(frozen=True)
class Plan:
    """The arms in the order of the tables, the pairs to compare, and what was left out and why."""

    arms: list[ArmSpec]
    pairs: list[tuple[ArmSpec, ArmSpec]]
    notices: list[str]


def plan_arms(
    baselines: Sequence[str],
    enhancer: str | None,
    *,
    controls: bool,
    adds_logit_kl: Mapping[str, bool],
    no_rgb_teacher: str | None,
) -> Plan:
    """Lists the arms for each baseline: itself, enhanced, and its controls.

    Args:
        baselines: Names, each once.
        enhancer: Name, or ``None`` for the baselines alone.
        controls: Whether to add the controls.
        adds_logit_kl: For each baseline whether the enhanced arm has a KL of logits that the baseline has not.
        no_rgb_teacher: Why there is no control under an RGB-trained teacher; ``None`` if there is one.
    """
    arms: list[ArmSpec] = []
    pairs: list[tuple[ArmSpec, ArmSpec]] = []
    notices: list[str] = []
    if controls and no_rgb_teacher is not None:
        notices.append(f"No control arms under an RGB-trained teacher: {no_rgb_teacher}.")
    for baseline in baselines:
        plain = ArmSpec(baseline)
        group = [plain]
        if enhancer is not None:
            group.append(ArmSpec(baseline, enhancer))
        if controls and adds_logit_kl[baseline]:
            group.append(ArmSpec(baseline, control="logit_kl"))
        elif controls:
            title = title_of(baseline)
            notices.append(f"No control arm {title} + logit KL: no logit KL is added to {title} in the first place.")
        if controls and no_rgb_teacher is None:
            group.append(ArmSpec(baseline, control="rgb_teacher"))
        arms += group
        # Everything against the baseline, and the enhanced arm against each control.
        pairs += [(plain, other) for other in group[1:]]
        if enhancer is not None:
            pairs += [(other, group[1]) for other in group[2:]]
    _check_folders(arms)
    return Plan(arms, pairs, notices)


def _check_folders(arms: Sequence[ArmSpec]) -> None:
    names: dict[str, str] = {}
    for arm in arms:
        if names.setdefault(arm.folder.lower(), arm.name) != arm.name:
            raise InputError(
                f"The arms '{names[arm.folder.lower()]}' and '{arm.name}' would share a folder: run them apart."
            )


def expand_baselines(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the baselines that were asked for, ``all`` being every known one.

    Raises:
        InputError: A name is neither known nor of the form ``module:Class``.
    """
    if list(names) == ["all"]:
        return list(known)
    for name in names:
        if ":" not in name and name not in known:
            raise unknown_name("baseline", name, [*known, "all"])
    return list(names)


def enhancer_class(name: str) -> Callable[..., Any]:
    """Returns the class of a known enhancer."""
    module, _, attribute = ENHANCERS[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return found


def check_enhancer(name: str) -> str | None:
    """Returns the enhancer's name, ``None`` for ``none``.

    Raises:
        InputError: There is no enhancer of that name.
    """
    if name == "none":
        return None
    if name not in ENHANCERS:
        raise unknown_name("enhancer", name, [*ENHANCERS, "none"])
    return name
