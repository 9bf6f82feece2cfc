"""Settings as frozen dataclasses, each value with its default, where that comes from and what it means."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tmkd_plugin.errors import InputError, unknown_name

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One configurable value.

    Attributes:
        value: The default.
        source: Where the default comes from: ``"paper"``, ``"official code"`` (with the file) or ``"ours"``.
        meaning: What the value does, with its range and unit.
    """

    value: Any
    source: str
    meaning: str


def setting(default: Any, source: str, meaning: str) -> Any:
    """Declares a field of a settings dataclass; see :class:`Setting`."""
    return dataclasses.field(default=default, metadata={"source": source, "meaning": meaning})


def settings_table(settings: type) -> dict[str, Setting]:
    """Returns every field of a settings dataclass as a :class:`Setting`."""
    return {
        field.name: Setting(field.default, field.metadata["source"], field.metadata["meaning"])
        for field in dataclasses.fields(settings)
    }


def settings_from(settings: type[T], given: Mapping[str, Any], owner: str) -> T:
    """Builds a settings dataclass from values by name.

    Args:
        settings: The dataclass.
        given: Values by field name.
        owner: Whose settings they are, for the message.

    Raises:
        InputError: A name is unknown; the message suggests the nearest one.
    """
    known = settings_table(settings)
    for name in given:
        if name not in known:
            raise unknown_name(f"setting of {owner}", name, known)
    return settings(**given)


def resolve(settings: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns every setting as ``{"value": ..., "source": ...}``; a value that was given has the source ``"given"``."""
    return {
        name: {"value": given[name], "source": "given"}
        if name in given and given[name] != setting.value
        else {"value": setting.value, "source": setting.source}
        for name, setting in settings.items()
    }


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    whole: bool = False,
) -> None:
    """Refuses what is not a finite number in the given range.

    Args:
        name: The hyper-parameter, for the message.
        value: What was given.
        above: The number must be larger than this.
        at_least: The number must be this or larger.
        at_most: The number must be this or smaller.
        whole: The number must be an integer.

    Raises:
        InputError: The value is no such number.
    """
    numeric = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    inside = (
        numeric
        and math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    )
    if not inside:
        bounds = [("above", above), ("at least", at_least), ("at most", at_most)]
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise InputError(
            f"{name} must be a{' whole' if whole else ''} number{' ' + wanted if wanted else ''}, but is {value!r}."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks that a setting is one of some words.

    Raises:
        InputError: It is not; the message suggests the nearest one.
    """
    if value not in choices:
        raise unknown_name(name, str(value), choices)
