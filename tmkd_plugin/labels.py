"""Labels of a batch: classes (B,) or probabilities (B,K), checked once and used alike."""

from __future__ import annotations

import torch
from torch import Tensor

from tmkd_plugin.errors import InputError

_SHOWN = 5
_EXPECTED = "expected classes, int64 (B,), or probabilities, floating (B,K)"


def check_labels(labels: Tensor, batch_size: int, num_classes: int, *, values: bool | None = None) -> None:
    """Refuses labels that are neither classes nor probabilities of this batch.

    Args:
        labels: (B,) int64 in ``0..num_classes-1``, or (B,K) floating, each row non-negative with sum 1.
        batch_size: B, the number of images.
        num_classes: K.
        values: Whether to look at the values too. By default only for a CPU tensor outside of ``torch.compile``:
            looking at values on a GPU waits for it.

    Raises:
        InputError: With what was given, what was expected and what to do.
    """
    if not isinstance(labels, Tensor):
        raise InputError(f"The labels are a {type(labels).__name__}: {_EXPECTED}; use torch.as_tensor.")
    if values is None:
        values = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if labels.ndim == 1:
        _check_classes(labels, batch_size, num_classes, values)
    elif labels.ndim == 2:
        _check_probabilities(labels, batch_size, num_classes, values)
    else:
        raise InputError(f"The labels have shape {tuple(labels.shape)}: {_EXPECTED}.")


def same_labels(first: Tensor, second: Tensor) -> bool:
    """Says whether two tensors of labels are equal."""
    return first is second or (first.shape == second.shape and torch.equal(first, second))


def select_rows(table: Tensor, labels: Tensor) -> Tensor:
    """Looks up one row for each sample: the row of its class, or the mean of all rows under its probabilities.

    Args:
        table: (K,V), one row for each class.
        labels: (B,) int64 or (B,K) probabilities.

    Returns:
        (B,V) in the dtype of the table, also under autocast; gradients reach the table.
    """
    if labels.ndim == 1:
        return table[labels]
    with torch.autocast(device_type=table.device.type, enabled=False):
        return labels.to(table.dtype) @ table


def _check_classes(labels: Tensor, batch_size: int, num_classes: int, values: bool) -> None:
    if labels.dtype != torch.int64:
        raise InputError(
            f"The labels have shape {tuple(labels.shape)} and dtype {_name(labels.dtype)}: {_EXPECTED}; "
            "if they are class indices, pass labels.long()."
        )
    _check_length(labels, batch_size)
    if values and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        outside = torch.unique(labels[(labels < 0) | (labels >= num_classes)]).tolist()
        raise InputError(
            f"Labels outside 0..{num_classes - 1}: {_first(outside)}; there are {num_classes} classes. "
            "Check the class names against the data set (labels start at 0)."
        )


def _check_probabilities(labels: Tensor, batch_size: int, num_classes: int, values: bool) -> None:
    if not labels.is_floating_point():
        advice = "labels.squeeze(1)" if labels.shape[1] == 1 else "labels.argmax(1) if the rows are one-hot"
        raise InputError(
            f"The labels have shape {tuple(labels.shape)} and dtype {_name(labels.dtype)}: {_EXPECTED}; pass {advice}."
        )
    _check_length(labels, batch_size)
    if labels.shape[1] != num_classes:
        raise InputError(
            f"The labels have shape {tuple(labels.shape)}, probabilities of {labels.shape[1]} classes: "
            f"expected {num_classes} columns, one for each class."
        )
    if values:
        _check_distributions(labels)


def _check_distributions(labels: Tensor) -> None:
    probabilities = labels.detach().double()
    # Half-precision targets are rounded entry by entry, which moves their sums by a few thousandths.
    tolerance = 1e-3 if labels.dtype in (torch.float32, torch.float64) else 1e-2
    sums = probabilities.sum(dim=1)
    faults = (
        ("are not finite", ~probabilities.isfinite().all(dim=1)),
        ("hold negative probabilities", (probabilities < 0).any(dim=1)),
        (f"do not sum to 1 (within {tolerance:g})", (sums - 1).abs() > tolerance),
    )
    for fault, rows in faults:
        if rows.any():
            found = rows.nonzero().flatten().tolist()
            worst = found[0]
            raise InputError(
                f"The label rows {_first(found)} {fault}: row {worst} has minimum "
                f"{float(probabilities[worst].min()):.4g} and sum {float(sums[worst]):.4g}. Expected the probabilities of "
                "one class each: softmax them, or divide by their sum. Several labels of one image are not supported."
            )


def _check_length(labels: Tensor, batch_size: int) -> None:
    if labels.shape[0] != batch_size:
        raise InputError(
            f"{labels.shape[0]} labels (shape {tuple(labels.shape)}) for {batch_size} images: expected one for each."
        )


def _first(values: list[int]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(str(value) for value in values[:_SHOWN]) + more


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
