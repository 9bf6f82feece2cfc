"""Answering for a network by attributes of the object, and putting it back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

_ABSENT = object()


@contextlib.contextmanager
def replaced_attributes(network: nn.Module, answers: Mapping[str, Any]) -> Iterator[None]:
    """Gives a network object other attributes inside the block; its class and its copies keep theirs.

    Args:
        network: The network.
        answers: What stands for each attribute, such as ``forward``.
    """
    attributes = network.__dict__
    before = {name: attributes.get(name, _ABSENT) for name in answers}
    attributes.update(answers)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = value
