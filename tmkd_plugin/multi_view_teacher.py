"""A frozen teacher that is shown several views of each image, and the fusion of what it says about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.batch_memory import once
from tmkd_plugin.errors import InputError, unknown_name
from tmkd_plugin.fusion import fuse, fuse_nests
from tmkd_plugin.model_output import SUBSTITUTE, ModelOutput, OutputReader, Substitute
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.pixels import channel_statistics, check_images, from_pixels, to_pixels
from tmkd_plugin.views import VIEW_NAMES, ViewSettings, make_views


@dataclass(frozen=True)
class PerView:
    """What the teacher says about each view of a batch.

    Attributes:
        returned: V nests of tensors, as the teacher returned them.
        outputs: V :class:`ModelOutput`, the same as logits, pooled features and last feature map.
    """

    returned: tuple[Any, ...]
    outputs: tuple[ModelOutput, ...]


@dataclass(frozen=True)
class ViewsKey:
    """Says which views of a batch are asked for: their names, their settings, and the normalisation of the images."""

    names: tuple[str, ...]
    settings: ViewSettings
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def normalised_views(
    images: Tensor,
    names: Sequence[str],
    settings: ViewSettings,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> list[Tensor]:
    """Makes views of normalised images (B, 3, H, W), normalised again, in their dtype."""
    pixels = make_views(to_pixels(images, mean, std), names, settings)
    return [from_pixels(each, mean, std, images.dtype) for each in pixels]


class MultiViewTeacher:
    """Shows a frozen teacher several views of each image and fuses its answers (Eq 1, 2 and 5).

    Args:
        reader: Reads the teacher.
        views: Names of the views, in the order of the fusion weights; must hold ``"rgb"`` or one other view at least.
        mean: Mean of the images' normalisation, three floats in pixel units of [0, 1]; None for images in [0, 1].
        std: Standard deviation, likewise.
        view_settings: Thresholds and scales of Eq 1 and 2.
        logit_source: ``"fused"``, or ``"rgb"`` to leave the logits as the RGB view gives them.
    """

    def __init__(
        self,
        reader: OutputReader,
        views: Sequence[str] = VIEW_NAMES,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        view_settings: ViewSettings | None = None,
        logit_source: str = "fused",
    ) -> None:
        self.reader = reader
        self.views = _checked_views(views)
        channel_statistics(mean, std)
        self.mean, self.std = mean, std
        self.view_settings = view_settings or ViewSettings()
        if logit_source not in ("fused", "rgb"):
            raise unknown_name("logit source", logit_source, ("fused", "rgb"))
        if logit_source == "rgb" and "rgb" not in self.views:
            raise InputError("logit_source='rgb' needs the view 'rgb' among views=.")
        self.logit_source = logit_source
        self._has_checked = False

    @property
    def teacher(self) -> nn.Module:
        """The frozen network."""
        return self.reader.model

    @property
    def rgb(self) -> int:
        """Position of the view from which everything comes that can't be fused: RGB, else the first."""
        return self.views.index("rgb") if "rgb" in self.views else 0

    def check(self, images: Tensor) -> None:
        """Refuses images of a wrong shape or dtype, or with values that ``mean`` and ``std`` can't give.

        Raises:
            InputError: With what was found, what was expected and what to do.
        """
        if not isinstance(images, Tensor):
            raise InputError(
                f"The images are a {type(images).__name__}, but one tensor (B, 3, H, W) is expected. Several crops of a batch "
                "go into one tensor: torch.cat(crops), with the labels repeated."
            )
        # Looking at values makes a GPU wait: there, the first batch has to speak for the others.
        if images.device.type == "cpu" or not self._has_checked:
            check_images(images, self.mean, self.std)
            self._has_checked = True

    def views_of(self, images: Tensor) -> list[Tensor]:
        """Returns the views of normalised images, normalised again; RGB is the given tensor itself.

        Args:
            images: (B, 3, H, W), normalised with ``mean`` and ``std``.

        Returns:
            V tensors of the shape and dtype of ``images``.

        """
        others = tuple(name for name in self.views if name != "rgb")
        if not others:
            return [images]

        def make() -> list[Tensor]:
            return normalised_views(images, others, self.view_settings, self.mean, self.std)

        key = ViewsKey(others, self.view_settings, _numbers(self.mean), _numbers(self.std))
        made = dict(zip(others, once(self.teacher, key, images, make), strict=True))
        return [images if name == "rgb" else made[name] for name in self.views]

    def for_each_view(self, call: Callable[[Any], Any], per_view: Sequence[Any]) -> list[Any]:
        """Calls ``call`` on what there is of each view, without gradient; the answers come in the views' order."""
        answers: dict[int, Any] = {}
        # The RGB view goes last, so that hooks which somebody has on the teacher are left with what they would see anyway.
        for v in sorted(range(len(per_view)), key=lambda v: v == self.rgb):
            # Inference tensors, if the caller is in inference mode, could not enter the trainable fusion.
            with torch.inference_mode(False), torch.no_grad():
                # Its own containers: a network may return the same list each time, filled anew.
                answers[v] = map_leaves(lambda leaf: leaf, call(per_view[v]))
        return [answers[v] for v in range(len(per_view))]

    def views_forward(
        self, images: Tensor, *args: Any, run: Callable[..., Any] | None = None, **kwargs: Any
    ) -> PerView:
        """Runs the teacher on each view, (B, 3, H, W) -> :class:`PerView`; it needs no labels.

        Args:
            images: (B, 3, H, W), normalised.
            *args: Given to the teacher after the images.
            run: What runs the teacher; None for the teacher itself.
            **kwargs: Given to the teacher.
        """
        run = run or self.teacher
        # Another enhancer may stand between this one and the network: what its hooks see is then a part of its answer.
        outer: Substitute | None = self.teacher.__dict__.get(SUBSTITUTE)

        def call(view: Tensor) -> tuple[Any, ModelOutput]:
            with self.reader.recording():
                returned = run(view, *args, **kwargs)
                return returned, self.reader.recorded(returned) if outer is None else outer.last_output()

        returned, outputs = zip(*self.for_each_view(call, self.views_of(images)), strict=True)
        return PerView(returned, outputs)

    def fused_return(self, per_view: PerView, weights: Tensor) -> Any:
        """Fuses what the teacher returned with weights (B, V); a nest like the teacher's own."""
        fused = fuse_nests(per_view.returned, weights, self.rgb)
        if self.logit_source == "fused":
            return fused
        # Where the logits are depends on how the teacher was called, such as with is_feat=True.
        given, own = leaves(per_view.returned[self.rgb]), per_view.outputs[self.rgb].logits
        place = next((index for index, leaf in enumerate(given) if leaf is own), self.reader.logits_index())
        logits = leaves(fused)[place]
        rgb_logits = per_view.outputs[self.rgb].logits
        return map_leaves(lambda leaf: rgb_logits if leaf is logits else leaf, fused)

    def fused_output(self, per_view: PerView, weights: Tensor) -> ModelOutput:
        """Fuses logits, pooled features and feature map with weights (B, V)."""
        fused: ModelOutput = fuse_nests(per_view.outputs, weights, self.rgb)
        if self.logit_source == "fused":
            return fused
        return dataclasses.replace(fused, logits=per_view.outputs[self.rgb].logits)

    def fused_pooled_features(self, per_view: PerView, weights: Tensor) -> Tensor:
        """Fuses the pooled features (B, D) with weights (B, V), to which the gradient goes."""
        features = [output.pooled_features for output in per_view.outputs if output.pooled_features is not None]
        if len(features) < len(per_view.outputs):
            raise InputError(self.reader.no_pooled_features())
        return fuse(features, weights)


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _checked_views(views: Sequence[str]) -> tuple[str, ...]:
    if isinstance(views, str) or not views:
        raise InputError(f"views= must be a sequence of names out of {', '.join(VIEW_NAMES)}, but is {views!r}.")
    for name in views:
        if name not in VIEW_NAMES:
            raise unknown_name("view", str(name), VIEW_NAMES)
    if len(set(views)) < len(views):
        raise InputError(f"views= names a view twice: {', '.join(views)}.")
    return tuple(views)
