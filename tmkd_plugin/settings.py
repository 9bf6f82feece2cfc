"""Settings as frozen dataclasses, each value with its default, where that comes from and what it means."""

from __future__ import annotations

import dataclasses
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


def check_number(name: str, value: Any, *, minimum: float = 0.0, above: bool = False) -> None:
    """Checks that a setting is a finite number not below (or, with ``above``, above) a minimum.

    Raises:
        InputError: It is not.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not minimum <= value < float("inf") or (above and value == minimum):
        raise InputError(
            f"{name} must be a number {'above' if above else 'of at least'} {minimum:g}, but is {value!r}."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks that a setting is one of some words.

    Raises:
        InputError: It is not; the message suggests the nearest one.
    """
    if value not in choices:
        raise unknown_name(name, str(value), choices)
