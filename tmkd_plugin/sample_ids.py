"""Which training samples there are and which of them a batch holds, for the parts of a distiller that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def tell_samples(distiller: nn.Module, labels: Tensor, ids: Tensor) -> None:
    """Tells every module that has a method ``know_samples`` which samples will be trained on; before the first step.

    Args:
        distiller: The distiller, with all that is wrapped in it.
        labels: (N,) int64 classes of the training samples.
        ids: (N,) int64, their places in the data set's own order.
    """
    listeners = [module for module in distiller.modules() if callable(getattr(module, "know_samples", None))]
    if not listeners:
        return
    table = labels_by_id(labels, ids)
    for module in listeners:
        know: Callable[[Tensor], None] = getattr(module, "know_samples")  # noqa: B009
        know(table)


def wants_ids(distiller: Any) -> bool:
    """Says whether a distiller has to be called with ``ids=``: whether a module in it has a true ``wants_ids``."""
    if not isinstance(distiller, nn.Module):
        return bool(getattr(distiller, "wants_ids", False))
    return any(bool(getattr(module, "wants_ids", False)) for module in distiller.modules())


def ids_for(distiller: Any, ids: Tensor | None) -> dict[str, Tensor]:
    """Returns the keyword arguments by which a distiller learns the samples of a batch: ``{"ids": ids}`` or nothing.

    Args:
        distiller: Any distiller.
        ids: (B,) int64; None where they are not known.
    """
    return {"ids": ids} if ids is not None and wants_ids(distiller) else {}


def labels_by_id(labels: Tensor, ids: Tensor) -> Tensor:
    """Returns the class of each sample id, (max id + 1,) int64, -1 for ids that do not occur; labels and ids are (N,)."""
    table = torch.full((int(ids.max()) + 1,), -1, dtype=torch.int64)
    table[ids.cpu()] = labels.cpu()
    return table
