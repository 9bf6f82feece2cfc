"""The options that say how runs are made: here, side by side or one by one, or on a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tmkd_plugin.commands.parser import arms_at_once
from tmkd_plugin.errors import InputError

if TYPE_CHECKING:
    from tmkd_plugin.bench.ray_engine import RayOptions

ENGINES = ("local", "ray")


def add_engine(add: Callable[..., Any]) -> None:
    """Adds the options to a command.

    Args:
        add: ``add_argument`` of a parser or a group.
    """
    add(
        "--arms-at-once",
        metavar="auto|N",
        type=arms_at_once,
        help="arms that train side by side here and share the teacher's passes (default: auto, as many as fit into memory)",
    )
    add("--engine", choices=ENGINES, default="local", help="make runs here, or as Ray tasks (extra ray)")
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="the Ray cluster (default: $RAY_ADDRESS, else a new one on this machine)",
    )
    add(
        "--gpus-per-run", metavar="N", type=float, help="GPUs that a Ray task takes; a fraction shares one (default: 0)"
    )
    add("--cpus-per-run", metavar="N", type=float, help="CPU cores that a Ray task takes (default: 1)")


def ray_options(arguments: argparse.Namespace) -> RayOptions | None:
    """Returns where runs are made; ``None`` for here.

    Raises:
        InputError: An option of Ray is given without ``--engine ray``.
    """
    given = {
        name: getattr(arguments, option)
        for name, option in (
            ("address", "ray_address"),
            ("gpus_per_run", "gpus_per_run"),
            ("cpus_per_run", "cpus_per_run"),
        )
        if getattr(arguments, option) is not None
    }
    if arguments.engine != "ray":
        if given:
            raise InputError(f"--{next(iter(given)).replace('_', '-')} needs --engine ray.")
        return None
    from tmkd_plugin.bench.ray_engine import RayOptions

    return RayOptions(**given)
