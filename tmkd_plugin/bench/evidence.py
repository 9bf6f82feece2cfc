"""What ``results.json`` says of a difference beside its t interval: resampling, and the error of the test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tmkd_plugin.bench.resampling import bootstrap_interval, sign_flip_test
from tmkd_plugin.bench.test_set_error import error_parts_of_runs

DECIMALS = 6


def seed_evidence(differences: Sequence[float]) -> dict[str, Any]:
    """Returns what resampling says of the differences of the seeds.

    Args:
        differences: ``enhanced - baseline`` of each seed.

    Returns:
        ``sign_flip_p``; ``sign_flip_note``, ``None`` where there is nothing to know; ``bootstrap95``, ``None`` below n = 20.
    """
    test, interval = sign_flip_test(differences), bootstrap_interval(differences)
    return {
        "sign_flip_p": float(f"{test.p_value:.6g}"),
        "sign_flip_note": test.note,
        "bootstrap95": None if interval is None else [round(bound, DECIMALS) for bound in interval],
    }


def evidence_of_test_set(baseline: Sequence[Path], enhanced: Sequence[Path]) -> dict[str, Any]:
    """Returns the error of the test set beside that of the seeds, from the predictions of the best epochs.

    Args:
        baseline: The ``predictions.npz`` of each seed.
        enhanced: Those of the same seeds in the same order.

    Returns:
        ``images``; standard errors of the mean top-1 difference in points: ``seed_error`` (other seeds), ``test_set_error``
        (other test images), ``error`` (both; this and the first are ``None`` for one seed); for each seed the images that one
        arm alone gets right, ``gained`` and ``lost``, and ``mcnemar_p``.
    """
    parts = error_parts_of_runs(baseline, enhanced)
    errors = {"seed_error": parts.seed_error, "test_set_error": parts.test_set_error, "error": parts.both}
    return {
        "images": parts.images,
        **{name: None if value is None else round(value, DECIMALS) for name, value in errors.items()},
        "gained": [one.gained for one in parts.each],
        "lost": [one.lost for one in parts.each],
        "mcnemar_p": [float(f"{one.p_value:.6g}") for one in parts.each],
    }


def evidence_sentence(entry: Mapping[str, Any]) -> str | None:
    """Says in a sentence what a comparison's entry holds beside its interval, ``None`` if it holds nothing.

    Args:
        entry: An entry of ``comparisons``, with what :func:`seed_evidence` and :func:`evidence_of_test_set` return.
    """
    parts = []
    if "sign_flip_p" in entry:
        note = f" ({entry['sign_flip_note']})" if entry["sign_flip_note"] else ""
        parts.append(f"sign-flip p = {entry['sign_flip_p']:.2g}{note}")
    if entry.get("bootstrap95"):
        low, high = entry["bootstrap95"]
        parts.append(f"bootstrap 95 % [{low:+.2f}, {high:+.2f}]")
    if test_set := entry.get("test_set"):
        images = f"{test_set['test_set_error']:.2f} from the choice of {test_set['images']:,} test images"
        if test_set["seed_error"] is None:
            parts.append(f"standard error {images}")
        else:
            parts.append(
                f"standard error {test_set['seed_error']:.2f} from seeds, {images}, {test_set['error']:.2f} from both"
            )
        parts.append("McNemar p by seed " + ", ".join(f"{p:.2g}" for p in test_set["mcnemar_p"]))
    return "; ".join(parts) + "." if parts else None
