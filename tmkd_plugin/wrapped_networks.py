"""Finding the student and the teacher of somebody else's distiller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tmkd_plugin.errors import InputError


def find_networks(
    distiller: nn.Module | Callable[..., Any], student: nn.Module | str | None, teacher: nn.Module | str | None
) -> tuple[nn.Module, nn.Module]:
    """Returns the student and the teacher of a distiller.

    Args:
        distiller: A module or any function.
        student: The student, its dotted name in the distiller, or None for ``distiller.student``.
        teacher: Likewise.

    Raises:
        InputError: The distiller can't be called, or a network was not found, is not a module, or is both.
    """
    if not callable(distiller):
        raise InputError(
            f"A distiller is called with (images, labels), but {type(distiller).__name__} can't be called. Pass a module, "
            "or a function together with student= and teacher=."
        )
    found_student = _find(distiller, student, "student")
    found_teacher = _find(distiller, teacher, "teacher")
    if found_student is found_teacher:
        raise InputError("Student and teacher are the same module; the teacher has to be another, frozen network.")
    if isinstance(distiller, nn.Module) and (found_student is distiller or found_teacher is distiller):
        raise InputError(
            f"The distiller ({type(distiller).__name__}) is itself given as a network. Pass what computes the loss as the "
            "distiller, and its two networks as student= and teacher=."
        )
    return found_student, found_teacher


def _find(distiller: Any, given: nn.Module | str | None, role: str) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    name = role if given is None else given
    if not isinstance(name, str):
        raise InputError(f"{role}= must be a torch.nn.Module or its dotted name in the distiller, but is {given!r}.")
    found = distiller
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, nn.Module):
        return found
    children = [child for child, _ in distiller.named_children()] if isinstance(distiller, nn.Module) else []
    modules = f" Its modules are: {', '.join(children)}." if children else ""
    raise InputError(
        f"The distiller ({getattr(distiller, '__name__', type(distiller).__name__)}) has no module '{name}'.{modules} Pass the "
        f"{role} as {role}=, as a module or as its name in the distiller."
    )
