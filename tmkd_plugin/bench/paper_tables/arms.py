"""The names of arms in tables and in results, such as ``catkd+tmkd@rgb``."""

from __future__ import annotations

from dataclasses import dataclass

from tmkd_plugin.bench.paper_tables.schema import STUDENT_ARM, TEACHER_ARM

ENHANCER = "tmkd"


@dataclass(frozen=True)
class ArmName:
    """What the name of an arm says.

    Attributes:
        name: The whole name, as in ``results.json``.
        baseline: The distillation method; ``None`` for the teacher and the student alone.
        enhanced: Whether TMKD is around it.
        variant: The variant of TMKD, ``None`` for the default.
        control: ``logit_kl`` or ``rgb_teacher`` for a control arm.
    """

    name: str
    baseline: str | None
    enhanced: bool = False
    variant: str | None = None
    control: str | None = None


def parse_arm(name: str) -> ArmName:
    """Takes an arm's name apart."""
    if name in (TEACHER_ARM, STUDENT_ARM):
        return ArmName(name, None)
    method, _, after = name.partition("@")
    baseline, _, added = method.partition("+")
    if added == ENHANCER:
        return ArmName(name, baseline, enhanced=True, variant=after or None)
    return ArmName(name, baseline, control=added or after or None)
