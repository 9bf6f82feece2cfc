"""The arms of a comparison: which distillers are trained, under which teacher, and what is compared with what."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tmkd_plugin.errors import InputError, unknown_name

ENHANCERS: dict[str, str] = {
    "tmkd": "tmkd_plugin.enhancer:TMKDEnhancer",
    "richkd": "tmkd_plugin.richkd:RichKDEnhancer",
}
"""Name -> ``module:Class``; called as ``Class(distiller, class_names, text=, mean=, std=, seed=, input_size=, **settings)``,
or with ``clip=`` instead of ``text=`` where the class has that argument."""

STUDENT_ALONE = "student"
"""The arm of the student that is trained with cross-entropy and no teacher."""

TITLES = {
    "student": "Student alone",
    "kd": "KD",
    "rkd": "RKD",
    "sp": "SP",
    "catkd": "CAT-KD",
    "tekap": "TeKAP",
    "tmkd": "TMKD",
    "richkd": "RichKD",
}

Control = Literal["logit_kl", "rgb_teacher"]


@dataclass(frozen=True)
class ArmSpec:
    """One distiller of a comparison.

    Attributes:
        baseline: Name of the distillation method, or ``module:Class``.
        enhancer: Name of the enhancer around it, if there is one, or of several as ``tmkd+richkd``, the outermost first.
        variant: Name of the settings with which the enhancer differs from its usual ones; ``None`` for those.
        control: ``"logit_kl"``: the baseline and the KL of the single-view teacher's logits, which the enhanced arm of a
            baseline without one of its own also has; ``"rgb_teacher"``: the baseline under a teacher trained on RGB
            images only, by the same recipe. Each tells a part of the enhanced arm's difference that is not the enhancer's.
    """

    baseline: str
    enhancer: str | None = None
    control: Control | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The arm's name in ``results.json``, such as ``kd+tmkd`` or ``rkd@rgb_teacher``."""
        if self.control == "rgb_teacher":
            return f"{self.baseline}@rgb_teacher"
        added = self.control or self.enhancer
        name = f"{self.baseline}+{added}" if added else self.baseline
        return f"{name}@{self.variant}" if self.variant else name

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
        title = f"{baseline} + {added}" if added else baseline
        return f"{title} ({self.variant.replace('_', ' ')})" if self.variant else title


def title_of(name: str) -> str:
    """Returns a method's name for tables: ``CAT-KD`` for ``catkd``, the class for ``module:Class``."""
    if ":" in name:
        return name.rpartition(":")[2]
    return " + ".join(TITLES.get(part, part) for part in parts_of(name))


def subtracted(title: str) -> str:
    """Returns an arm's title as it stands behind a minus: one with a plus in brackets."""
    return f"({title})" if " + " in title else title


def parts_of(enhancer: str) -> list[str]:
    """Returns the enhancers that a name stands for, the outermost first: ``tmkd+richkd`` is TMKD around RichKD."""
    return enhancer.split("+")


@dataclass(frozen=True)
class Plan:
    """The arms in the order of the tables, the pairs to compare, and what was left out and why."""

    arms: list[ArmSpec]
    pairs: list[tuple[ArmSpec, ArmSpec]]
    notices: list[str]


def plan_arms(
    baselines: Sequence[str],
    enhancers: Sequence[str],
    *,
    controls: bool,
    adds_logit_kl: Mapping[str, bool],
    no_rgb_teacher: str | None,
    variants: Sequence[str] = (),
    student_alone: bool = False,
) -> Plan:
    """Lists the arms for each baseline: itself, enhanced, variants of that, and its controls.

    Args:
        baselines: Names, each once.
        enhancers: Names; none for the baselines alone.
        controls: Whether to add the controls.
        adds_logit_kl: For each baseline whether the enhanced arm has a KL of logits that the baseline has not.
        no_rgb_teacher: Why there is no control under an RGB-trained teacher; ``None`` if there is one.
        variants: Names of the variants of the one enhancer.
        student_alone: Whether to add the student that is trained without a teacher.
    """
    arms: list[ArmSpec] = []
    pairs: list[tuple[ArmSpec, ArmSpec]] = []
    notices: list[str] = []
    if controls and no_rgb_teacher is not None:
        notices.append(f"No control arms under an RGB-trained teacher: {no_rgb_teacher}.")
    if student_alone:
        arms.append(ArmSpec(STUDENT_ALONE))
    for baseline in baselines:
        plain = ArmSpec(baseline)
        enhanced = [ArmSpec(baseline, enhancer) for enhancer in enhancers]
        varied = [ArmSpec(baseline, enhancers[0], variant=variant) for variant in variants]
        checks = []
        if controls and adds_logit_kl[baseline]:
            checks.append(ArmSpec(baseline, control="logit_kl"))
        elif controls:
            title = title_of(baseline)
            notices.append(f"No control arm {title} + logit KL: no logit KL is added to {title} in the first place.")
        if controls and no_rgb_teacher is None:
            checks.append(ArmSpec(baseline, control="rgb_teacher"))
        arms += [plain, *enhanced, *varied, *checks]
        # Everything against the baseline, the enhanced arms against each control and each other, and the usual settings
        # against their variants.
        pairs += [(plain, other) for other in [*enhanced, *varied, *checks]]
        pairs += [(check, arm) for check in checks for arm in enhanced]
        pairs += [(other, enhanced[0]) for other in varied]
        pairs += list(itertools.combinations(enhanced, 2))
        if student_alone:
            pairs.append((ArmSpec(STUDENT_ALONE), plain))
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


def check_enhancers(names: Sequence[str]) -> list[str]:
    """Returns the enhancers' names, an empty list for ``none``.

    Raises:
        InputError: There is no enhancer of a name, one comes twice, or ``none`` is not alone.
    """
    if list(names) == ["none"]:
        return []
    given = ",".join(names)
    if "none" in names:
        raise InputError(
            f"--enhancer {given}: every baseline is trained alone too; leave 'none' out, or give it alone."
        )
    for name in names:
        parts = parts_of(name)
        for part in parts:
            if not part:
                raise InputError(
                    f"--enhancer '{given}': a name is missing. Expected names with commas such as tmkd,richkd (side by side), "
                    "or with + such as tmkd+richkd (the first around the second)."
                )
            if part not in ENHANCERS:
                raise unknown_name("enhancer", part, [*ENHANCERS, "none"])
        if len(set(parts)) < len(parts):
            raise InputError(f"--enhancer {name}: puts an enhancer around itself.")
    if len(set(names)) < len(names):
        raise InputError(f"--enhancer {given}: names an enhancer twice.")
    return list(names)
