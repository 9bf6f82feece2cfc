"""Whether results and a reference are of the same experiment, and how their surroundings differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tmkd_plugin.bench.configuration import Configuration
from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.reference import Environment, Reference
from tmkd_plugin.errors import InputError

NOT_COMPARED = {"dataset", "data_dir", "download", "workers", "device", "seeds"}
"""Values that say where and how often something runs. The images are compared by their fingerprint."""


def check_same_experiment(results: Mapping[str, Any], configuration: Configuration, reference: Reference) -> None:
    """Refuses results of another experiment than the reference's.

    Args:
        results: The data of ``results.json``.
        configuration: The reference's, with the defaults of today's code.
        reference: What was recorded.

    Raises:
        InputError: With what differs.
    """
    check_same_images(results["dataset"], reference)
    differing = list(_differences(results["config"], configuration.resolved.described))
    if differing:
        raise InputError(
            "The results are of another configuration than the reference:\n  "
            + "\n  ".join(differing)
            + "\nCompare what belongs together, or record a new reference with --update."
        )


def check_same_images(dataset: Mapping[str, Any], reference: Reference) -> None:
    """Refuses other images than those of the reference.

    Raises:
        InputError: With both fingerprints.
    """
    known, found = reference.dataset, str(dataset.get("fingerprint"))
    if found != known.fingerprint:
        raise InputError(
            f"The data set '{dataset.get('name')}' (fingerprint {found[:12]}) is not that of the reference: "
            f"'{known.name}' (fingerprint {known.fingerprint[:12]}). Give the same images, or record a new reference with "
            "--update."
        )


def check_same_arms(arms: Mapping[str, ArmMeasurements], reference: Reference) -> None:
    """Refuses results that lack an arm of the reference, or whose arms have not the same seeds.

    Raises:
        InputError: With the arms that are missing, or their seeds.
    """
    missing = [name for name in reference.arms if name not in arms]
    if missing:
        raise InputError(
            f"The results have no arm {', '.join(missing)}, which the reference has: {', '.join(arms)} are there."
        )
    seeds = {name: sorted({*arms[name].top1, *arms[name].failed}) for name in reference.arms}
    first = next(iter(seeds.values()))
    if not first or any(others != first for others in seeds.values()):
        listed = "; ".join(f"{name}: {', '.join(map(str, own)) or 'none'}" for name, own in seeds.items())
        raise InputError(f"The arms of the results must have the same seeds, at least one: {listed}.")


def environment_of(timing: Mapping[str, Any]) -> Environment:
    """Returns the environment that ``timing.json`` tells of.

    Raises:
        InputError: It does not say it.
    """
    try:
        return Environment(**{name: timing[name] for name in Environment.model_fields})
    except (KeyError, ValueError) as error:
        raise InputError(f"timing.json does not say where the comparison ran: {error}.") from None


def surroundings_notice(
    reference: Reference, environment: Environment | None, teachers: Mapping[str, str]
) -> str | None:
    """Returns a sentence on what differs around the runs, ``None`` if nothing does.

    Args:
        reference: What was recorded.
        environment: Where the comparison ran, if that is known.
        teachers: The hashes of its teachers' weights, by role.
    """
    differing = []
    if environment is not None:
        differing = [
            f"{name} {getattr(reference.environment, name)} there, {getattr(environment, name)} here"
            for name in Environment.model_fields
            if getattr(reference.environment, name) != getattr(environment, name)
        ]
    if teachers != reference.teachers:
        differing.append("its teacher has other weights")
    if not differing:
        return None
    return (
        f"The reference was recorded under other circumstances ({'; '.join(differing)}), and its bands know only the spread "
        "over seeds. If a band is left for no reason of your code, record a reference here with --update."
    )


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields a line for each value that both have and that differs; what a version of tmkd does not know is no difference."""
    for key in wanted:
        name = f"{path}{key}"
        if key not in there or name in NOT_COMPARED:
            continue
        mine, theirs = wanted[key], there[key]
        if isinstance(mine, Mapping) and "value" in mine and "source" in mine:
            found = theirs.get("value") if isinstance(theirs, Mapping) else theirs
            if _plain(found) != _plain(mine["value"]):
                yield f"{name}: reference {mine['value']!r}, results {found!r}"
        elif isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(theirs, mine, f"{name}.")


def _plain(value: Any) -> Any:
    """Makes tuples and lists alike, as JSON does."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
