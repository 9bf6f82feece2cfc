"""Lists of seeds as people write them."""

from __future__ import annotations

from typing import Any

EXPECTED = "expected a number n (seeds 0 to n-1), a list such as 0,1,5, or a range such as 8-15"


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Reads ``3`` (seeds 0, 1, 2), ``"0,1,5"``, ``"8-15"`` (both ends included), ``"0-3,7"`` or a list of numbers.

    A single seed k is written ``"k-k"`` or ``[k]``.

    Raises:
        ValueError: The value is none of these, or a seed is negative or comes twice.
    """
    seeds = _listed(value)
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ValueError(EXPECTED)
    if len(set(seeds)) < len(seeds):
        raise ValueError("names a seed twice; the same seed gives the same run again")
    return tuple(seeds)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return list(range(value))
    text = str(value).strip()
    if text.isdecimal():
        return list(range(int(text)))
    seeds: list[Any] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(EXPECTED)
        seeds += range(int(first), int(last or first) + 1)
    return seeds
