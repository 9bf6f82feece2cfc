"""Checks of hyper-parameters, made when a distiller is built and not in its first step, and of what a network gave."""

from __future__ import annotations

import math

from torch import Tensor

from tmkd_plugin.errors import InputError


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


def check_weights(**weights: float) -> None:
    """Refuses weights of loss terms that are not numbers of at least 0; the keywords are their names."""
    for name, value in weights.items():
        check_number(name, value, at_least=0)


def present(values: Tensor | None, what: str) -> Tensor:
    """Returns a tensor that a network was found to have when the distiller was built.

    Args:
        values: A field of :class:`ModelOutput`.
        what: The field in words, such as ``"the teacher's pooled features"``.

    Raises:
        InputError: It is None.
    """
    if values is None:
        raise InputError(f"This step needs {what}, which were there when the distiller was built but are missing now.")
    return values
