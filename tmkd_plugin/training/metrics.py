"""How good a network is on a split: top-1, top-5 and macro recall."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError, RunError

if TYPE_CHECKING:
    from tmkd_plugin.data.dataset import Split


@dataclass(frozen=True)
class Scores:
    """Accuracies in percent, rounded to four decimals.

    Attributes:
        top1: Images whose label has the largest logit.
        top5: Images whose label is among the min(5, K) largest of K logits; 100 where there are at most 5 classes.
        recall: The mean over classes of each class's own top-1, over the classes that occur in the split.
    """

    top1: float
    top5: float
    recall: float


def scores_of(logits: Tensor, labels: Tensor) -> Scores:
    """Returns the scores of logits.

    Args:
        logits: (N, K) floating, finite.
        labels: (N,) int64 in [0, K), on the logits' device.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise InputError(
            f"The network has {classes} outputs, but the labels go up to {int(labels.max())}: "
            f"build it for at least {int(labels.max()) + 1} classes."
        )
    if classes == 1:  # torchmetrics needs two; with one class there is nothing to get wrong
        return Scores(100.0, 100.0, 100.0)
    top1 = multiclass_accuracy(logits, labels, classes, average="micro")
    top5 = multiclass_accuracy(logits, labels, classes, top_k=min(5, classes), average="micro")
    by_class = multiclass_recall(logits, labels, classes, average="none")
    recall = by_class[torch.bincount(labels, minlength=classes) > 0].mean()
    return Scores(_percent(top1), _percent(top5), _percent(recall))


def _percent(fraction: Tensor) -> float:
    return round(100 * float(fraction), 4)


def evaluate(
    network: nn.Module, split: Split, mean: Sequence[float], std: Sequence[float], batch_size: int
) -> tuple[Scores, Tensor]:
    """Runs a network over a split, in eval mode and without gradients; afterwards every module's mode is as before.

    Args:
        network: Takes normalised images (B, 3, H, W) on its own device, returns logits (B, K) or a tuple that starts with them.
        split: The images and labels; not empty.
        mean: The normalisation's mean of each channel, for pixels in [0, 1].
        std: Its standard deviation of each channel.
        batch_size: Images a forward pass.

    Returns:
        The scores, and the logits as float32 (N, K) on the CPU in the split's order.

    Raises:
        InputError: The split is empty, or the network has fewer outputs than there are classes.
        RunError: A logit is NaN or infinite.
    """
    from tmkd_plugin.data.batches import evaluation_batches

    if len(split.labels) == 0:
        raise InputError("A split without images can't be evaluated.")
    with evaluating(network) as device:
        batches = evaluation_batches(split, mean, std, batch_size=batch_size)
        logits = torch.cat([logits_of(network(batch.images.to(device))).float().cpu() for batch in batches])
    check_finite(logits)
    return scores_of(logits, split.labels.cpu()), logits


def check_finite(logits: Tensor) -> None:
    """Raises a ``RunError`` if any logit of (N, K) is NaN or infinite."""
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise RunError(
            f"The network's logits are NaN or infinite on {broken} of {len(logits)} images: its weights have diverged. "
            "Lower the learning rate or lengthen the warm-up."
        )


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[torch.device]:
    """Puts a network into eval mode without gradients, gives its device, and restores each module's own mode."""
    modes = [(module, module.training) for module in network.modules()]
    tensor = next(network.parameters(), None)
    network.eval()
    try:
        with torch.no_grad():
            yield tensor.device if tensor is not None else torch.device("cpu")
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(output: Any) -> Tensor:
    """Returns the logits (B, K) of what a network returned: a tensor, or a tuple or list that starts with one."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(first, Tensor) and first.dim() == 2:
        return first
    given = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
    raise InputError(
        f"Expected a network that returns logits of shape (B, K), alone or first in a tuple; it returned {given}."
    )
