"""Where the figures of a regression check come from: a comparison that is run now, or the results of an earlier one."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tmkd_plugin.bench.command import run_comparison
from tmkd_plugin.bench.configuration import Configuration, configure
from tmkd_plugin.bench.output import TIMING
from tmkd_plugin.bench.preparation import describe_dataset, prepare
from tmkd_plugin.bench.regression.compatibility import check_same_images, environment_of
from tmkd_plugin.bench.regression.measurements import ArmMeasurements, measurements_of
from tmkd_plugin.bench.regression.reference import Environment, Reference
from tmkd_plugin.bench.results_file import read_json, read_results
from tmkd_plugin.text_cache import default_cache_dir


@dataclass(frozen=True)
class Measured:
    """A comparison and where it ran.

    Attributes:
        results: The data of ``results.json``.
        arms: Name to what was measured.
        environment: Where it ran; ``None`` where no ``timing.json`` says it.
    """

    results: Mapping[str, Any]
    arms: dict[str, ArmMeasurements]
    environment: Environment | None


def configuration_of(reference: Reference, seeds: tuple[int, ...]) -> Configuration:
    """Returns the configuration of a reference, with today's defaults and other seeds.

    Raises:
        InputError: A key or value of it is unknown or unusable.
    """
    values = reference.configuration.values
    return configure({}, {**values, "seeds": list(seeds)}, reference.configuration.preset)


def read_comparison(path: Path) -> Measured:
    """Reads a ``results.json`` with the histories and the ``timing.json`` beside it.

    Raises:
        InputError: A file can't be used.
    """
    results = read_results(path)
    timing = path.with_name(TIMING)
    environment = environment_of(read_json(timing, "timing file")) if timing.exists() else None
    return Measured(results, measurements_of(results, path.parent), environment)


def run_anew(
    configuration: Configuration, out: Path, *, images_of: Reference | None, threads: int, quiet: bool
) -> Measured:
    """Runs a comparison.

    Args:
        configuration: What to run.
        out: The folder of its files; runs that stand there are replaced, for they are of earlier code.
        images_of: The reference whose images these must be; ``None`` for any.
        threads: Number of CPU threads.
        quiet: Whether to show no progress.

    Raises:
        InputError: Something can't be used; nothing has been trained.
        RunError: The small CLIP or a teacher could not be trained.
    """
    torch.set_num_threads(threads)
    if images_of is not None:
        check_same_images(describe_dataset(prepare(configuration, default_cache_dir()).dataset), images_of)
    results = run_comparison(configuration, out, overwrite=True, quiet=quiet)
    plain: dict[str, Any] = json.loads(json.dumps(results))  # lists for tuples, as in the file
    here = Environment(
        torch=torch.__version__,
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        threads=threads,
    )
    return Measured(plain, measurements_of(plain, out), here)
