"""Answering for a network by attributes of the object, and putting it back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

ABSENT: Any = object()
"""Stands for an attribute that an object does not have."""


@contextlib.contextmanager
def replaced_attributes(network: nn.Module, answers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Gives a network object other attributes inside the block; its class and its copies keep theirs.

    Args:
        network: The network.
        answers: What stands for each attribute, such as ``forward``; ``ABSENT`` takes it away.

    Yields:
        What stood there before, in the form of ``answers``.
    """
    before = {name: network.__dict__.get(name, ABSENT) for name in answers}
    _set(network, answers)
    try:
        yield before
    finally:
        _set(network, before)


def _set(network: nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is ABSENT:
            network.__dict__.pop(name, None)
        else:
            network.__dict__[name] = value
