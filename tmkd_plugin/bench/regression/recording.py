"""Makes a reference from the results of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.reference import (
    FEWEST_SEEDS,
    SCHEMA_VERSION,
    ArmReference,
    Environment,
    Measured,
    Reference,
    ReferenceConfiguration,
    ReferenceDataset,
)
from tmkd_plugin.config import COMMAND_LINE
from tmkd_plugin.errors import InputError
from tmkd_plugin.version import __version__

PRESET_SOURCE = "preset "
OF_A_MACHINE = {"seeds", "data_dir", "download", "workers"}
"""Values that a reference does not prescribe."""


def reference_of(
    results: Mapping[str, Any],
    arms: Mapping[str, ArmMeasurements],
    environment: Environment,
    check_seeds: Sequence[int],
) -> Reference:
    """Makes a reference of a comparison with at least 20 seeds.

    Args:
        results: The data of ``results.json``.
        arms: What was measured in it.
        environment: Where it ran.
        check_seeds: The seeds that a check is to run.

    Raises:
        InputError: An arm has failed runs, or fewer than 20 that finished.
    """
    for arm in arms.values():
        if arm.failed:
            seed, why = next(iter(arm.failed.items()))
            raise InputError(f"A reference can't hold failed runs: {arm.title}, seed {seed}: {why}")
        if len(arm.top1) < FEWEST_SEEDS:
            raise InputError(
                f"A reference takes at least {FEWEST_SEEDS} seeds, and {arm.title} has {len(arm.top1)}: run the comparison "
                "with, for instance, --seeds 100-119."
            )
    dataset = results["dataset"]
    return Reference(
        schema_version=SCHEMA_VERSION,
        tmkd=__version__,
        configuration=_configuration(results["config"]),
        check_seeds=list(check_seeds),
        dataset=ReferenceDataset(name=dataset["name"], fingerprint=dataset["fingerprint"], test=dataset["test"]),
        environment=environment,
        teachers=teachers_of(results),
        arms={
            arm.name: ArmReference(
                title=arm.title,
                baseline=arm.baseline,
                enhancer=arm.enhancer,
                control=arm.control,
                top1=Measured.of(arm.top1),
                terms={name: Measured.of(values) for name, values in arm.terms.items()},
            )
            for arm in arms.values()
        },
    )


def teachers_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the hash of the weights of each teacher of a comparison, by role."""
    return {teacher["role"]: teacher["weights_sha256"] for teacher in results.get("teachers", ())}


def _configuration(described: Mapping[str, Any]) -> ReferenceConfiguration:
    """Takes the preset and what differs from it out of a described configuration; defaults stay with the code."""
    preset: str | None = None
    values: dict[str, Any] = {}
    for key, entry in described.items():
        is_value = "source" in entry and "value" in entry
        for inner, described_value in [(None, entry)] if is_value else entry.items():
            source = described_value["source"]
            if source.startswith(PRESET_SOURCE):
                preset = source.removeprefix(PRESET_SOURCE)
            if source != COMMAND_LINE or key in OF_A_MACHINE:
                continue
            if inner is None:
                values[key] = described_value["value"]
            else:
                values.setdefault(key, {})[inner] = described_value["value"]
    return ReferenceConfiguration(preset=preset, values=values)
