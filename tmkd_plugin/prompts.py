"""Class names -> the view-specific prompts of Table 1 (TMKD, arXiv 2603.24208)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmkd_plugin.errors import InputError, unknown_name

#: Table 1, one template for each view; ``{class}`` stands for the class name.
PROMPTS = {
    "rgb": "a photo of a {class}",
    "edge": "an edge enhanced image of a {class}",
    "high_frequency": "a high-frequency enhanced image of a {class}",
}


def prompts_for(class_names: Sequence[str], view: str) -> list[str]:
    """Returns one prompt for each class, in the order of the names.

    Underscores become spaces, since folders are named ``great_white_shark`` and CLIP has read "great white shark" (ours; the
    paper shows the template alone).

    Args:
        class_names: The names, as ``check_class_names`` accepts them.
        view: A view of Table 1: ``"rgb"``, ``"edge"`` or ``"high_frequency"``.

    Raises:
        InputError: If the view has no template; the nearest name is suggested.
    """
    if view not in PROMPTS:
        raise unknown_name("view", view, PROMPTS)
    return [PROMPTS[view].replace("{class}", readable(name)) for name in class_names]


def readable(name: str) -> str:
    """Returns the name as words: underscores and runs of white space become one space."""
    return " ".join(name.replace("_", " ").split())


def check_class_names(class_names: object, expected_count: int | None = None) -> list[str]:
    """Returns the class names as a list of plain strings, or says what is wrong with them.

    Names that differ only in case, ``_`` or white space count as duplicates: CLIP's tokenizer makes the same prompt of them.

    Args:
        class_names: A list, tuple or 1-D array of different, non-empty strings, one a class, in the order of the labels.
        expected_count: How many classes there must be, such as the width of the teacher's logits.

    Raises:
        InputError: If it is not such a sequence, is empty, or has another length than ``expected_count``.
    """
    names = _as_list(class_names)
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"Class names must be strings: name {index} is {name!r} of type {type(name).__name__}.")
        if not readable(name):
            raise InputError(f"Class names must not be empty: name {index} is {name!r}.")
    if expected_count is not None and len(names) != expected_count:
        raise InputError(
            f"Wrong number of class names: {len(names)} were given, {expected_count} are expected, one for each class"
            f" in the order of the labels. Given: {shortened(names)}."
        )
    if not names:
        raise InputError("No class names were given; one for each class is expected, in the order of the labels.")
    _refuse_duplicates(names)
    return [str(name) for name in names]


def shortened(names: Sequence[str], limit: int = 10) -> str:
    """Returns the names for an error message: the first few, and how many there are."""
    text = ", ".join(repr(str(name)) for name in names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"


def folded(name: str) -> str:
    """Returns what is left of a name when case, ``_`` and white space make no difference."""
    return readable(name).casefold()


def _as_list(class_names: object) -> list[str]:
    if isinstance(class_names, str):
        raise InputError(
            f"Class names must be a list of strings, one for each class; given: the single string {class_names!r}."
        )
    if isinstance(class_names, np.ndarray) and class_names.ndim == 1:
        return list(class_names)
    if not isinstance(class_names, Sequence) or isinstance(class_names, bytes):
        raise InputError(
            "Class names must be a list of strings, one for each class, in the order of the labels;"
            f" given: {type(class_names).__name__}, which is no sequence of strings."
        )
    return list(class_names)


def _refuse_duplicates(names: Sequence[str]) -> None:
    first_seen: dict[str, int] = {}
    clashes = []
    for index, name in enumerate(names):
        first = first_seen.setdefault(folded(name), index)
        if first != index:
            clashes.append(f"{str(names[first])!r} (name {first}) and {str(name)!r} (name {index})")
    if clashes:
        raise InputError(
            "Duplicate class names: "
            + "; ".join(clashes[:10])
            + (f"; ... ({len(clashes)} in all)" if len(clashes) > 10 else "")
            + ". Each class needs a name of its own; case, '_' and spaces make no difference to the text teacher."
        )
