"""Which image goes where: fixed rules that look at names only, so every seed and every machine sees the same splits.

An image is placed by a hash of its key. Adding images to a data set does not move those that were there (but for
classes so small that a part would be empty), and a smaller limit keeps a subset of what a larger one keeps.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from tmkd_plugin.errors import InputError


def hash_fraction(key: str, purpose: str) -> float:
    """A number in [0, 1] that depends on the key and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_order(keys: Sequence[str], purpose: str) -> list[int]:
    """The positions of the keys in the order of their hashes."""
    return sorted(range(len(keys)), key=lambda position: (hash_fraction(keys[position], purpose), keys[position]))


def split_by_hash(keys: Sequence[str], fractions: Sequence[float], purpose: str) -> list[list[int]]:
    """Splits one class into parts whose sizes follow the fractions approximately; no part is left empty.

    Args:
        keys: One for each image of the class; at least one more than there are fractions.
        fractions: Of all parts but the last, which takes the rest; their sum is below 1.
        purpose: Another purpose gives another split.

    Returns:
        The positions in each part.
    """
    order = hash_order(keys, purpose)
    hashes = [hash_fraction(keys[position], purpose) for position in order]
    bounds = [0]
    for part, threshold in enumerate(accumulate(fractions)):
        parts_after = len(fractions) - part
        end = max(bisect_left(hashes, threshold), bounds[-1] + 1)
        bounds.append(min(end, len(keys) - parts_after))
    bounds.append(len(keys))
    return [order[start:end] for start, end in pairwise(bounds)]


def keep_per_class(
    keys: Sequence[str], labels: Sequence[int], num_classes: int, limit: int | None, argument: str
) -> list[int]:
    """Chooses the images that a limit keeps: equally many of each class, the first ones in hash order.

    The first ``limit % num_classes`` classes give one more; a class with fewer images gives all it has.

    Args:
        keys: (N,), one for each image.
        labels: (N,), the class of each.
        num_classes: K.
        limit: The most images to keep; None keeps all.
        argument: The name of the limit, for errors.

    Returns:
        The positions of the kept images, ascending.
    """
    if limit is None:
        return list(range(len(keys)))
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < num_classes:
        raise InputError(
            f"{argument}={limit!r}: expected a whole number of images, at least {num_classes}, one for each class."
        )
    room = [limit // num_classes + (label < limit % num_classes) for label in range(num_classes)]
    kept = []
    for position in hash_order(keys, "limit"):
        if room[labels[position]] > 0:
            room[labels[position]] -= 1
            kept.append(position)
    return sorted(kept)
