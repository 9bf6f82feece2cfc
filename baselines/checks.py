"""Checks of hyper-parameters, made when a distiller is built and not in its first step, and of what a network gave."""

from __future__ import annotations

from torch import Tensor

from tmkd_plugin.errors import InputError
from tmkd_plugin.settings import check_number


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
