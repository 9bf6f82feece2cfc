"""A frozen teacher that is shown views of an image, as one classifier: with weights for every image, or of the true class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import fuse
from tmkd_plugin.training.metrics import logits_of
from tmkd_plugin.training.view_training import view_of
from tmkd_plugin.views import ViewSettings


class FusedViews(nn.Module):
    """A frozen teacher that is shown views of an image, its logits added up with the same weights for every image (Eq 5).

    Args:
        teacher: Normalised images (B, 3, H, W) -> logits (B, K), alone or first in a tuple.
        weights: (V,), one for each view.
        views: Their names.
        mean: Mean of the images' normalisation, for pixels in [0, 1].
        std: Standard deviation, likewise.
        view_settings: Thresholds and scales of the views; None for the defaults.
    """

    weights: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        weights: Tensor,
        views: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        view_settings: ViewSettings | None = None,
    ) -> None:
        super().__init__()
        if weights.shape != (len(views),):
            raise InputError(f"{len(views)} views need as many weights, but they are {tuple(weights.shape)}.")
        self.teacher = teacher
        self.register_buffer("weights", weights.detach().clone())
        self.views = tuple(views)
        self.mean, self.std = mean, std
        self.view_settings = view_settings
        self.eval()

    @torch.no_grad()
    def logits_by_view(self, images: Tensor) -> list[Tensor]:
        """Returns the teacher's logits (B, K) for each view of normalised images (B, 3, H, W)."""
        shown = [view_of(images, name, self.mean, self.std, self.view_settings) for name in self.views]
        return [logits_of(self.teacher(each)) for each in shown]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Classifies normalised images (B, 3, H, W): fused logits (B, K), without gradient."""
        return fuse(self.logits_by_view(images), self.weights.expand(len(images), -1))

    def weights_of(self, labels: Tensor) -> Tensor:
        """Returns the weights (B, V) of images with these labels (B,), which have no say in them."""
        return self.weights.expand(len(labels), -1)


class LabelGathered(FusedViews):
    """The teacher as TMKD trains with it: each image has the weights of its true class. It uses the answer.

    Args:
        teacher: See :class:`FusedViews`.
        table: (K, V), the weights of each class.
        views: ...
        mean: ...
        std: ...
        view_settings: ...
    """

    table: Tensor

    def __init__(
        self,
        teacher: nn.Module,
        table: Tensor,
        views: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        view_settings: ViewSettings | None = None,
    ) -> None:
        super().__init__(teacher, table.mean(dim=0), views, mean, std, view_settings)
        self.register_buffer("table", table.detach().clone())

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns fused logits (B, K) of images whose true classes (B,) are known.

        Raises:
            InputError: There are no labels: without the answer this is no classifier.
        """
        if labels is None:
            raise InputError("The label-gathered teacher takes its weights from the true class: give the labels too.")
        return fuse(self.logits_by_view(images), self.weights_of(labels))

    def weights_of(self, labels: Tensor) -> Tensor:
        """Returns the weights (B, V) of the images' true classes (B,)."""
        return self.table[labels]
