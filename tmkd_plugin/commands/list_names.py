"""``tmkd list``: what can be given by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tmkd_plugin.presets import describe_preset, preset_names

LISTS = ("baselines", "networks", "presets", "datasets")


def add_parser(commands: Any) -> None:
    """Adds ``tmkd list`` to the commands."""
    lists = commands.add_parser(
        "list", help="show what can be given by name", description="Show what can be given by name."
    )
    lists.add_argument("what", choices=LISTS, help=", ".join(LISTS))
    lists.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the names and returns the exit code."""
    lines: dict[str, Callable[[], list[str]]] = {
        "presets": lambda: [f"{name:16} {describe_preset(name)}" for name in preset_names()],
        "baselines": _baseline_lines,
        "networks": _network_lines,
        "datasets": _dataset_lines,
    }
    print("\n".join(lines[arguments.what]()))
    return 0


def _baseline_lines() -> list[str]:
    from tmkd_plugin.baselines import BASELINES, baseline_class
    from tmkd_plugin.bench.arms import ENHANCERS, enhancer_class, title_of
    from tmkd_plugin.bench.configuration import section_of

    lines = []
    methods = [(name, baseline_class(name)) for name in BASELINES]
    for name, method in [*methods, *((name, enhancer_class(name)) for name in ENHANCERS)]:
        lines.append(f"{name} ({title_of(name)})" + (": an enhancer" if name in ENHANCERS else ""))
        for key, setting in (section_of(method).settings or {}).items():
            lines.append(f"    {name}.{key}={setting.value}  {setting.meaning} [{setting.source}]")
    return [*lines, "module:Class  a distiller of your own"]


def _network_lines() -> list[str]:
    from tmkd_plugin.zoo import list_networks

    return [*list_networks(), "timm/<name>, torchvision/<name>, module:callable"]


def _dataset_lines() -> list[str]:
    from tmkd_plugin.data import NAMED_DATASETS

    return [
        *NAMED_DATASETS,
        "DIR  a folder with train/<class>/ and test/<class>/, or with <class>/, which is then split",
    ]
