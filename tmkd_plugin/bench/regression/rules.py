"""The rules of a regression check: each says whether it holds, and if not, by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tmkd_plugin.bench.power import POWER, seeds_for_non_inferiority
from tmkd_plugin.bench.regression.bands import difference_interval, prediction_band, resolution
from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.reference import Measured, Reference
from tmkd_plugin.bench.statistics import mean_and_sd

TOP1 = "test top-1, %"

LEAST_TERM_SPREAD = 0.15
"""The spread over seeds of a term of the loss is taken to be at least this share of its mean.

Some seeds learn much later than others, which leaves the terms a heavier tail than 20 seeds show; the rule is for a term that
is dropped, doubled, halved or of the wrong sign.
"""


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: The rule's name, unique within a check.
        passed: Whether it holds.
        found: A sentence with the figures.
    """

    rule: str
    passed: bool
    found: str


def check_rules(
    arms: Mapping[str, ArmMeasurements], reference: Reference, *, margin: float, strict: bool
) -> list[Finding]:
    """Applies every rule.

    Args:
        arms: What was measured; every arm of the reference, each with at least one finished run.
        reference: What was recorded.
        margin: How many points worse than its baseline an enhanced arm may be, at least 0.
        strict: Whether it has to be shown that it is not worse than that.
    """
    least_sd = resolution(reference.dataset.test)
    measured = [arms[name] for name in reference.arms]
    bands = [(arm, quantity) for arm in measured for quantity in (TOP1, *_shared_terms(arm, reference))]
    findings = []
    for baseline, enhanced in reference.pairs():
        findings.append(_not_worse(arms[baseline], arms[enhanced], margin, least_sd))
        if strict:
            findings.append(_non_inferior(arms[baseline], arms[enhanced], margin, least_sd))
    for arm, quantity in bands:
        recorded = reference.arms[arm.name]
        if quantity == TOP1:
            findings.append(_in_band(arm, TOP1, arm.top1, recorded.top1, len(bands), least_sd))
        else:
            term, values = recorded.terms[quantity], arm.terms[quantity]
            least_spread = LEAST_TERM_SPREAD * abs(term.mean)
            findings.append(_in_band(arm, quantity, values, term, len(bands), least_spread))
    return findings


def strict_forecasts(reference: Reference, margin: float) -> list[tuple[int | None, str]]:
    """Says before a strict check how many seeds it takes to pass, if the arms are what the reference says.

    Returns:
        For each pair of arms the number of seeds, ``None`` if no number does; and a sentence.
    """
    forecasts = []
    for baseline, enhanced in reference.pairs():
        expected, sd = mean_and_sd(reference.differences(baseline, enhanced))
        sd = max(sd or 0.0, resolution(reference.dataset.test))
        needed = seeds_for_non_inferiority(expected, sd, margin)
        known = f"the reference's difference is {expected:+.2f} points, sd {sd:.2f}"
        what = f"{reference.arms[enhanced].title} against {reference.arms[baseline].title}: the lower 95 % bound"
        if needed is None:
            words = f"{what} can't be shown above {-margin:+.2f} with any number of seeds: {known}."
        else:
            words = f"{what} is above {-margin:+.2f} in {100 * POWER:g} % of checks with {needed:,} seeds: {known}."
        forecasts.append((needed, words))
    return forecasts


def _shared_terms(arm: ArmMeasurements, reference: Reference) -> list[str]:
    return [term for term in reference.arms[arm.name].terms if term in arm.terms]


def _not_worse(baseline: ArmMeasurements, enhanced: ArmMeasurements, margin: float, least_sd: float) -> Finding:
    interval, found = _difference(baseline, enhanced, least_sd)
    rule = f"{enhanced.title} is not shown to be worse than {baseline.title}"
    if interval is None:
        return Finding(rule, True, f"{found}; one seed has no interval, so nothing is shown.")
    short = -margin - interval[1]
    if short > 0:
        return Finding(
            rule, False, f"{found}: shown worse, the upper bound is {short:.2f} points below {-margin:+.2f}."
        )
    return Finding(rule, True, f"{found}; the upper bound is not below {-margin:+.2f}.")


def _non_inferior(baseline: ArmMeasurements, enhanced: ArmMeasurements, margin: float, least_sd: float) -> Finding:
    interval, found = _difference(baseline, enhanced, least_sd)
    rule = f"{enhanced.title} is shown not to be worse than {baseline.title} by {margin:g} (strict)"
    if interval is None:
        return Finding(rule, False, f"{found}; one seed has no interval, so nothing is shown.")
    short = -margin - interval[0]
    if short >= 0:
        return Finding(rule, False, f"{found}: the lower bound is {short:.2f} points short of {-margin:+.2f}.")
    return Finding(rule, True, f"{found}; the lower bound is above {-margin:+.2f}.")


def _difference(
    baseline: ArmMeasurements, enhanced: ArmMeasurements, least_sd: float
) -> tuple[tuple[float, float] | None, str]:
    differences = [enhanced.top1[seed] - value for seed, value in baseline.top1.items() if seed in enhanced.top1]
    interval = difference_interval(differences, least_sd)
    words = f"{mean_and_sd(differences)[0]:+.2f} points, n = {len(differences)}"
    if interval is not None:
        words += f", 95 % interval [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return interval, words


def _in_band(
    arm: ArmMeasurements,
    quantity: str,
    values: Mapping[int, float],
    recorded: Measured,
    bands: int,
    least_sd: float,
) -> Finding:
    mean = mean_and_sd(list(values.values()))[0]
    band = prediction_band(recorded.mean, recorded.sd, recorded.n, len(values), bands=bands, least_sd=least_sd)
    # Two decimals for percent; a term of the loss can be of any size.
    write = "{:.2f}".format if quantity == TOP1 else "{:.3g}".format
    found = (
        f"mean {write(mean)} of {len(values)} seed{'s' if len(values) > 1 else ''}, band [{write(band.low)}, "
        f"{write(band.high)}] (reference {write(recorded.mean)} +- {write(recorded.sd)}, n = {recorded.n})"
    )
    rule = f"{arm.title} is where it was: {quantity}"
    outside = band.distance(mean)
    if outside == 0:
        return Finding(rule, True, f"{found}.")
    points = " points" if quantity == TOP1 else ""
    return Finding(
        rule, False, f"{found}: {write(outside)}{points} {'below' if mean < band.low else 'above'} its band."
    )
