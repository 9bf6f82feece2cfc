"""What a network says of a batch: logits, pooled features and the last feature map, of any network.

``OutputReader`` finds once, on a probe, where a network keeps them, and reads them from then on through forward hooks:
from its own call of the network or from calls that somebody else makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.probe import OutputPlan, plan_outputs

SUBSTITUTE = "_tmkd_substitute"
"""Instance attribute of a network under which a :class:`Substitute` stands while it is intercepted."""

LISTENERS = "_tmkd_listeners"
"""Instance attribute of a network: those that record what it says now. Who runs it on a part of the images makes it whole."""


class Substitute(Protocol):
    """What answers for a network while it is intercepted."""

    def read(self, images: Tensor) -> ModelOutput:
        """Answers instead of :meth:`OutputReader.__call__`."""

    def last_output(self) -> ModelOutput:
        """Returns the answer to the last call of the network itself."""


@dataclass(frozen=True)
class ModelOutput:
    """What a network says of a batch.

    Attributes:
        logits: (B, K).
        pooled_features: (B, D), the input of the last linear layer, or None where a network has none.
        feature_map: (B, C, h, w), the tensor that enters global pooling, or None where a network has none (a ViT).
    """

    logits: Tensor
    pooled_features: Tensor | None
    feature_map: Tensor | None


class _Recorder:
    """Keeps what the hooks saw; its attributes are plain so that ``torch.compile`` can trace the hooks."""

    def __init__(self) -> None:
        self.active = False
        self.clear()

    def clear(self) -> None:
        self.complete = False
        self.passing_map: Tensor | None = None
        self.pooled: Tensor | None = None
        self.pooled_is_constant = False
        self.logits: Tensor | None = None
        self.feature_map: Tensor | None = None
        self.returned: Any = None

    def on_classifier(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        pooled = args[0] if args else kwargs["input"]
        # The first of several calls counts, but one that can be trained counts more than one made under no_grad.
        if self.active and (not self.complete or (self.pooled_is_constant and pooled.requires_grad)):
            self.pooled = pooled
            self.pooled_is_constant = not pooled.requires_grad
            self.logits = output
            self.feature_map = self.passing_map
            self.complete = True

    def heard(self) -> dict[str, Any]:
        """Returns what has been recorded so far."""
        return {name: getattr(self, name) for name in ("passing_map", "pooled", "logits", "feature_map", "returned")}

    def rewrite(self, before: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> None:
        """Applies ``change`` to every tensor that was recorded since ``before``, which :meth:`heard` returned."""
        for name, value in self.heard().items():
            if value is not before[name]:
                setattr(self, name, map_leaves(change, value))

    def on_map_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.active:
            self.passing_map = args[0] if args else kwargs["input"]

    def on_map_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.active:
            self.passing_map = output

    def on_return(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.active and self.returned is None:
            self.returned = output


class OutputReader:
    """Reads logits, pooled features and the last feature map of a network.

    Args:
        model: The network; images (B, 3, H, W) -> logits, or any nest of tensors that holds them.
        role: What the network is called in messages (``"student"``, ``"teacher"``).
        input_size: Side of the probe's images in pixels. None takes the model's configuration (timm's
            ``pretrained_cfg``), else tries 32 and then 224.

    Raises:
        InputError: The network can't run on the probe, or returns nothing that could be logits.
    """

    def __init__(self, model: nn.Module, role: str = "network", input_size: int | None = None) -> None:
        self.model = model
        self.role = role
        self.plan: OutputPlan = plan_outputs(model, role, input_size)
        self._recorder = _Recorder()

    @property
    def num_classes(self) -> int:
        """Number of classes K of the logits."""
        return self.plan.num_classes

    @property
    def pooled_width(self) -> int:
        """Width D of the pooled features.

        Raises:
            InputError: The network has no pooled features.
        """
        if self.plan.pooled_width is None:
            raise InputError(self.no_pooled_features())
        return self.plan.pooled_width

    def __call__(self, images: Tensor) -> ModelOutput:
        """Runs the network once and returns what it says; (B, 3, H, W) -> :class:`ModelOutput`."""
        substitute = self.model.__dict__.get(SUBSTITUTE)
        if substitute is not None:
            answer: ModelOutput = substitute.read(images)
            return answer
        with self.recording():
            returned = self.model(images)
            return self.recorded(returned)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records the first call of the network that somebody makes inside the block; :meth:`recorded` returns it."""
        recorder = self._recorder
        recorder.clear()
        recorder.active = True
        handles = self._attach()
        listeners = self.model.__dict__.setdefault(LISTENERS, [])
        listeners.append(recorder)
        try:
            yield
        finally:
            listeners.remove(recorder)
            if not listeners:
                del self.model.__dict__[LISTENERS]
            recorder.active = False
            for handle in handles:
                handle.remove()
            recorder.clear()

    def recorded(self, returned: Any = None) -> ModelOutput:
        """Returns what was recorded and forgets it, so that the block can record the next call.

        Args:
            returned: What the network returned, where the caller has it.

        Raises:
            InputError: The network was not called, or not as far as its classifier.
        """
        recorder = self._recorder
        returned = recorder.returned if returned is None else returned
        logits = recorder.logits if self.plan.classifier_gives_logits else self._logits_of(returned)
        pooled, feature_map = recorder.pooled, recorder.feature_map if recorder.complete else recorder.passing_map
        recorder.clear()
        if logits is None or (self.plan.classifier is not None and pooled is None):
            raise InputError(
                f"The {self.role} ({type(self.model).__name__}) was not called, or not as far as its classifier "
                f"'{self.plan.classifier_name}', in this step. If it is compiled and had run before it was wrapped, "
                "call torch.compiler.reset() after wrapping; if the distiller uses parts of it, let it call the network."
            )
        if feature_map is not None and self.plan.map_is_channels_last:
            feature_map = feature_map.permute(0, 3, 1, 2)
        return ModelOutput(logits, pooled if self.plan.pooled_width is not None else None, feature_map)

    def class_map_weights(self) -> tuple[Tensor, Tensor | None]:
        """Returns the classifier's weight (K, C) and bias (K,), with which class activation maps are made.

        Raises:
            InputError: The spatial mean of the maps plus the bias does not give this network's logits.
        """
        classifier = self.plan.classifier
        if not self.plan.has_class_maps or not isinstance(classifier, nn.Linear):
            raise InputError(
                "Class activation maps need a network whose logits are the classifier applied to the mean of its last "
                f"feature map; the {self.role} ({type(self.model).__name__}) is not one: "
                f"{self.plan.no_class_maps_because}. Use another network, or a method without maps (kd, rkd, tekap)."
            )
        return classifier.weight, classifier.bias

    def require_feature_map(self, method: str) -> None:
        """Refuses a network without a last feature map.

        Raises:
            InputError: The network has none (a ViT, say).
        """
        if self.plan.map_module is None:
            raise InputError(
                f"{method} needs the last feature map (B, C, h, w); the {self.role} ({type(self.model).__name__}) has "
                "none. Use a convolutional network, or a method without maps (kd, rkd, tekap)."
            )

    def no_pooled_features(self) -> str:
        """Says that the network has no pooled features and what to do."""
        return (
            f"The {self.role} ({type(self.model).__name__}) has no pooled features: no linear layer that takes (B, D) "
            "was found in it. Give it one as its last layer, or set the weights of the terms that need features to 0 "
            "(feature_weight=0, contrast_weight=0)."
        )

    def logits_index(self) -> int:
        """Position of the logits among the tensors that the network returns."""
        return self.plan.logits_index

    def _logits_of(self, returned: Any) -> Tensor | None:
        tensors = leaves(returned)
        return tensors[self.plan.logits_index] if self.plan.logits_index < len(tensors) else None

    def _attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        plan, recorder = self.plan, self._recorder
        handles = []
        if plan.classifier is not None:
            handles.append(plan.classifier.register_forward_hook(recorder.on_classifier, with_kwargs=True))
        if plan.map_module is not None and plan.map_is_input:
            handles.append(plan.map_module.register_forward_pre_hook(recorder.on_map_input, with_kwargs=True))
        elif plan.map_module is not None:
            handles.append(plan.map_module.register_forward_hook(recorder.on_map_output))
        if not plan.classifier_gives_logits:
            handles.append(self.model.register_forward_hook(recorder.on_return))
        return handles
