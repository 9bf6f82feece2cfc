"""Recipes of training by name: one YAML file each, complete, so that no default that changes later changes a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.presets import FOLDER as PRESETS
from tmkd_plugin.training.settings import TrainingSettings

FOLDER = PRESETS / "recipes"
_TEXTS = ("meaning", "source")


@dataclass(frozen=True)
class Recipe:
    """How to train, with its name.

    Attributes:
        name: The file's name without its ending.
        meaning: What it is for.
        source: Where its values come from: ``paper``, ``official code`` or ``ours``, and details.
        settings: Every value.
    """

    name: str
    meaning: str
    source: str
    settings: TrainingSettings


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_by_name(name: str) -> TrainingSettings:
    """Returns the values of a recipe; see :func:`load_recipe`."""
    return load_recipe(name).settings


def recipe_values(name: str) -> dict[str, Any]:
    """Returns the values of a recipe by name, all of them; see :func:`load_recipe`."""
    return asdict(load_recipe(name).settings)


def describe_recipe(name: str) -> str:
    """Returns in one line what a recipe is for and where it comes from."""
    recipe = load_recipe(name)
    return f"{recipe.meaning} [{recipe.source}]"


def recipe_name_of(settings: TrainingSettings) -> str | None:
    """Returns the name of the recipe of the package that has these very values; ``None`` if there is none."""
    return next((name for name in recipe_names() if _packaged(name).settings == settings), None)


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe by name, or a ``.yaml`` file of one's own in the same form.

    Raises:
        InputError: There is no such recipe; or a key is unknown or missing, or a value of a wrong type or out of range: one
            line for each problem.
    """
    if name_or_path in recipe_names():
        return _packaged(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise unknown_name("recipe", name_or_path, recipe_names())
    if not path.is_file():
        raise InputError(f"There is no recipe file {path}.")
    return _read(path)


@cache
def _packaged(name: str) -> Recipe:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Recipe:
    from tmkd_plugin.presets import load_preset

    content = load_preset(str(path))
    problems = _problems(path, content)
    if not problems:
        try:
            settings = TrainingSettings(**{key: content[key] for key in TrainingSettings.SETTINGS})
            return Recipe(path.stem, content["meaning"], content["source"], settings)
        except InputError as error:
            problems.append(str(error))
    raise InputError("\n".join([f"The recipe {path} can't be used:", *(f"  {problem}" for problem in problems)]))


def _problems(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key that is unknown, missing or of a wrong type."""
    from tmkd_plugin.config_checks import checked_value, unknown_key

    types: dict[str, Any] = dict.fromkeys(_TEXTS, str) | {
        name: kind for name, kind in get_type_hints(TrainingSettings).items() if name in TrainingSettings.SETTINGS
    }
    problems = [unknown_key(key, key, types, path.name) for key in content if key not in types]
    for key, kind in types.items():
        if key in content:
            checked_value(key, content[key], kind, problems)
        else:
            problems.append(f"{key}: missing; a recipe names every value.")
    return problems
