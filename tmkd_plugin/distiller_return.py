"""What a distiller may return, brought into the one form of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError


@dataclass(frozen=True)
class DistillerReturn:
    """A step of a distiller.

    Attributes:
        loss: Scalar to back-propagate.
        output: Student logits (B, K), or None where the distiller did not return them.
        terms: The weighted terms by name.
    """

    loss: Tensor
    output: Tensor | None
    terms: dict[str, Tensor]


def read_return(returned: Any) -> DistillerReturn:
    """Understands a dict with ``"loss"``, a pair ``(logits, {name: term})``, or a scalar.

    Raises:
        InputError: It is none of them.
    """
    if isinstance(returned, Tensor) and returned.numel() == 1:
        loss = returned.mean()
        return DistillerReturn(loss, None, {"distiller": loss})
    if isinstance(returned, Mapping) and isinstance(returned.get("loss"), Tensor):
        loss = returned["loss"].mean()
        output = returned.get("output")
        terms = {
            name: value.mean()
            for name, value in returned.items()
            # What carries no gradient beside a loss that does is a figure for the log, such as an accuracy.
            if name not in ("loss", "output")
            and isinstance(value, Tensor)
            and value.numel() == 1
            and value.requires_grad >= loss.requires_grad
        }
        return DistillerReturn(loss, output if isinstance(output, Tensor) else None, terms or {"distiller": loss})
    if isinstance(returned, (tuple, list)) and len(returned) == 2:
        output, terms = returned
        has_logits = output is None or (isinstance(output, Tensor) and output.ndim >= 2)
        if has_logits and isinstance(terms, Mapping) and terms and all(_is_term(term) for term in terms.values()):
            means = {
                name: torch.as_tensor(term).float().mean() if not isinstance(term, Tensor) else term.mean()
                for name, term in terms.items()
            }
            return DistillerReturn(sum_of(means), output, means)
    raise InputError(
        f"The distiller returned {_describe(returned)}. Expected a dict with 'loss' (and 'output', and its terms), a pair "
        f"(logits, {{name: weighted term}}), or a scalar loss.{_advice(returned)}"
    )


def sum_of(terms: Mapping[str, Tensor]) -> Tensor:
    """Adds terms up from left to right, as a trainer's ``sum()`` does."""
    first, *rest = terms.values()
    return sum(rest, start=first)


def _is_term(value: Any) -> bool:
    return isinstance(value, (Tensor, int, float))


def _advice(returned: Any) -> str:
    if isinstance(returned, Tensor) and returned.ndim == 2:
        return " If it predicts in eval mode: call train() on it for a loss, and distiller.student(images) for predictions."
    if isinstance(returned, (tuple, list)) and returned and isinstance(returned[0], Tensor) and returned[0].ndim == 0:
        return " For (loss, logs) return the loss alone, or {'loss': loss}."
    return ""


def _describe(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a mapping with the keys {sorted(map(str, returned))}"
    if isinstance(returned, (tuple, list)):
        return f"a {type(returned).__name__} of {', '.join(type(part).__name__ for part in returned)}"
    return f"{type(returned).__name__}"
