"""Knowledge-distillation methods, one a file, and how they are found by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from tmkd_plugin.errors import InputError, unknown_name

BASELINES: dict[str, str] = {
    "kd": "tmkd_plugin.baselines.kd:KD",
    "rkd": "tmkd_plugin.baselines.rkd:RKD",
    "sp": "tmkd_plugin.baselines.sp:SP",
    "catkd": "tmkd_plugin.baselines.catkd:CATKD",
    "tekap": "tmkd_plugin.baselines.tekap:TeKAP",
}
"""Name -> ``module:Class``; more can be added."""


def baseline_class(name: str) -> Callable[..., nn.Module]:
    """Returns a method's class.

    Args:
        name: A name in ``BASELINES``, or ``package.module:Class`` of one's own.

    Raises:
        InputError: There is no such name, module or class.
    """
    path = name if ":" in name else BASELINES.get(name.lower())
    if path is None:
        error = unknown_name("baseline", name, BASELINES)
        raise InputError(f"{error} Or give package.module:Class of your own.")
    module_name, _, class_name = path.partition(":")
    module = _imported(name, module_name)
    found = getattr(module, class_name, None)
    if found is None:
        public = [key for key, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)]
        raise unknown_name(f"class in {module_name}", class_name, public)
    if not callable(found):
        raise InputError(f"The baseline '{name}' must be a class, but is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def build_baseline(name: str, student: nn.Module, teacher: nn.Module, **settings: Any) -> nn.Module:
    """Builds a distiller by name: ``Class(student=student, teacher=teacher, **settings)``.

    Args:
        name: A name in ``BASELINES``, or ``package.module:Class`` of one's own.
        student: The network to train.
        teacher: The frozen network.
        **settings: Values for the class's other arguments; ours are listed in its ``SETTINGS``.

    Raises:
        InputError: The name or a setting is unknown, a needed setting is missing, or the class refuses the networks.
    """
    make = baseline_class(name)
    _check_arguments(name, make, settings)
    return make(student=student, teacher=teacher, **settings)


def _imported(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(f"{missing}.")
        advice = (
            "Install it or put its folder on PYTHONPATH." if own else f"It imports '{missing}', which is not installed."
        )
        raise InputError(f"The baseline '{name}' can't be imported: no module '{missing}'. {advice}") from error
    except ValueError as error:  # an empty module name
        raise InputError(f"A baseline of your own is given as package.module:Class, but '{name}' was given.") from error


def _check_arguments(name: str, make: Callable[..., nn.Module], settings: dict[str, Any]) -> None:
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = {
        key: p
        for key, p in parameters.items()
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    if not takes_any and not {"student", "teacher"} <= named.keys():
        raise InputError(
            f"The baseline '{name}' is called as {make.__name__}(student=..., teacher=..., **settings), but its "
            f"arguments are ({', '.join(parameters)})."
        )
    choices = named.keys() - {"student", "teacher"}
    for setting in settings:
        if not takes_any and setting not in choices:
            raise unknown_name(f"setting of the baseline '{name}'", setting, choices)
    missing = [key for key in sorted(choices - settings.keys()) if named[key].default is inspect.Parameter.empty]
    if missing:
        raise InputError(f"The baseline '{name}' needs a value for {', '.join(missing)}.")
