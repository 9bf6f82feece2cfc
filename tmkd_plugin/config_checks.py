"""Checks of configuration values by pydantic, in words for people: one line for each problem, no class names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Model = TypeVar("Model", bound=BaseModel)

EXPECTED_BY_KIND = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "none": "null",
}


def unknown_key(path: str, key: str, known: Iterable[str], source: str) -> str:
    """Returns the line for a key that no one reads; it names the nearest known key."""
    choices = list(known)
    near = difflib.get_close_matches(key, choices, n=1, cutoff=0.5)
    prefix = path[: len(path) - len(key)]
    suggestion = f" Did you mean '{prefix}{near[0]}'?" if near else ""
    return f"{path}: unknown key ({source}).{suggestion} Known: {', '.join(choices) or 'none'}."


def checked_model(model: type[Model], values: Mapping[str, Any], problems: list[str]) -> Model | None:
    """Builds a pydantic model; where that fails, adds a line for each problem and returns ``None``."""
    for key, value in values.items():
        if isinstance(value, bool) and not _accepts_bool(model.model_fields[key].annotation):
            problems.append(_line(key, value, ["a value other than true or false"]))
    if problems:
        return None
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems += _lines(error, values)
        return None


def checked_value(path: str, value: Any, kind: Any, problems: list[str]) -> Any:
    """Returns the value as the type ``kind``; where it is of another, adds a line and returns it as it is."""
    if isinstance(value, bool) and not _accepts_bool(kind):
        problems.append(_line(path, value, ["a value other than true or false"]))
        return value
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        problems += _lines(error, {path: value}, path)
        return value


def _accepts_bool(kind: Any) -> bool:
    """Whether a type names bool: pydantic alone would take ``true`` for the number 1."""
    return kind is Any or kind is bool or any(_accepts_bool(part) for part in getattr(kind, "__args__", ()))


def _lines(error: ValidationError, values: Mapping[str, Any], path: str | None = None) -> list[str]:
    """Returns one line for each key; the alternatives of a union type are one problem, not several."""
    expected: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        key = path if path is not None else str(problem["loc"][0])
        words = _expected(problem["type"], problem.get("ctx", {}), problem["msg"])
        if words not in expected.setdefault(key, []):
            expected[key].append(words)
    return [_line(key, values.get(key), words) for key, words in expected.items()]


def _line(path: str, value: Any, expected: Sequence[str]) -> str:
    words = " or ".join(expected)
    if not words.startswith(("expected", "holds")):  # a message of a validator of ours is a sentence of its own
        words = f"expected {words}"
    near = difflib.get_close_matches(str(value), re.findall("'([^']+)'", words), n=1, cutoff=0.5)
    suggestion = f" Did you mean '{near[0]}'?" if near else ""
    return f"{path}: {words}, got {value!r}.{suggestion}"


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "missing":
        return "a value, for there is no default"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace(" or ", ", ")
    if kind == "value_error":
        return str(context["error"])
    for bound, words in {
        "greater_than_equal": "a number of at least {ge}",
        "greater_than": "a number above {gt}",
        "less_than_equal": "a number of at most {le}",
        "less_than": "a number below {lt}",
    }.items():
        if kind == bound:
            return words.format(**context)
    return EXPECTED_BY_KIND.get(kind.split("_")[0], message[0].lower() + message[1:])
