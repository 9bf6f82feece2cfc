"""WeightNet (Eq 3-4) and the fused teacher (Eq 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.nested import map_leaves
from tmkd_plugin.randomness import generator_for


class WeightNet(nn.Module):
    """``w = softmax(W2 ReLU(W1 [t_rgb; t_edge; t_hf] + b1) + b2)`` (Eq 3-4), for all classes at once.

    The prompts name nothing but the class, so the weights are a table with one row a class, not one an image.

    Args:
        n_views: Number of views V.
        text_width: Width D of a text embedding.
        hidden_width: Width of the hidden layer.
        seed: The initialisation (torch's default for linear layers) is a function of it.

    Shapes:
        text embeddings (V, K, D) -> weights (K, V); every row is positive and sums to 1.
    """

    def __init__(self, n_views: int, text_width: int, hidden_width: int = 256, *, seed: int = 0) -> None:
        super().__init__()
        self.hidden = seeded_linear(n_views * text_width, hidden_width, seed, "WeightNet hidden")
        self.output = seeded_linear(hidden_width, n_views, seed, "WeightNet output")

    def forward(self, text_embeddings: Tensor) -> Tensor:
        """(V, K, D) -> (K, V)."""
        per_class = text_embeddings.transpose(0, 1).flatten(start_dim=1)
        scores = self.output(torch.relu(self.hidden(per_class)))
        return torch.softmax(at_least_float32(scores), dim=1)


def fuse(per_view: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``F_fused = Σ_v w_v F_v`` (Eq 5).

    Args:
        per_view: V tensors (B, ...) of one shape.
        weights: (B, V), one row a sample.

    Returns:
        (B, ...) in the dtype of the views; the sum is made in float32 at least.

    Raises:
        InputError: The numbers of views or of samples differ.
    """
    if weights.shape != (per_view[0].shape[0], len(per_view)):
        raise InputError(
            f"{len(per_view)} views of {per_view[0].shape[0]} samples need weights of shape "
            f"{(per_view[0].shape[0], len(per_view))}, but they are {tuple(weights.shape)}."
        )
    shape = (-1,) + (1,) * (per_view[0].ndim - 1)
    first, *rest = [
        weights[:, v].to(at_least_float32(view).dtype).reshape(shape) * at_least_float32(view)
        for v, view in enumerate(per_view)
    ]
    return sum(rest, start=first).to(per_view[0].dtype)


def fuse_nests(per_view: Sequence[Any], weights: Tensor, rgb: int) -> Any:
    """Fuses what a network returned for each view, tensor by tensor.

    Args:
        per_view: V nests of tensors of one structure.
        weights: (B, V).
        rgb: Position of the RGB view, from which everything comes that has no sample dimension.

    Returns:
        A nest like the RGB view's: every floating tensor whose first dimension is B is the weighted sum over views.
    """

    def fuse_leaves(template: Tensor, *tensors: Tensor) -> Tensor:
        if template.is_floating_point() and template.ndim > 0 and template.shape[0] == weights.shape[0]:
            return fuse(tensors, weights)
        return template

    return map_leaves(fuse_leaves, per_view[rgb], *per_view)


def seeded_linear(width_in: int, width_out: int, seed: int, purpose: str) -> nn.Linear:
    """A linear layer with torch's default initialisation, drawn from its own generator."""
    layer = nn.Linear(width_in, width_out, device="meta").to_empty(device="cpu")
    generator = generator_for(seed, f"initialisation of {purpose}")
    bound = width_in**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
