"""Experiments as data: one YAML file each, found by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmkd_plugin.errors import InputError, unknown_name

FOLDER = Path(__file__).parent
EMBEDDED_DATASET = "digits"


def preset_names() -> list[str]:
    """Returns the names of the presets that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_for(dataset: str) -> str:
    """Returns the preset of a data set: its own if there is one of its name, else the one for folders of images."""
    return dataset if dataset in preset_names() else "image_folder"


def load_preset(name_or_path: str) -> dict[str, Any]:
    """Reads a preset by name, or a file of one's own.

    Returns:
        Top-level keys and sections as written, not checked yet.

    Raises:
        InputError: There is no such preset or file, or it is no YAML mapping with text keys.
    """
    import yaml

    path = _path_of(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark is not None else ""
        raise InputError(f"{path} is not YAML:{where} {getattr(error, 'problem', None) or error}.") from None
    except (ValueError, OverflowError, RecursionError) as error:  # an impossible date or number, or no end of brackets
        raise InputError(f"{path} is not YAML that can be used: {str(error) or type(error).__name__}.") from None
    except OSError as error:
        raise InputError(f"The preset {path} can't be read: {error}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: expected 'key: value' lines, such as 'student: resnet8'.")
    return content


def describe_preset(name: str) -> str:
    """Returns the first comment line of a preset that comes with the package."""
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _path_of(name_or_path: str) -> Path:
    if name_or_path in preset_names():
        return FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        if not path.is_file():
            raise InputError(f"There is no preset file {path}.")
        return path
    raise unknown_name("preset", name_or_path, preset_names())
