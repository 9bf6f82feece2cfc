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


@dataclass(frozen=True)
class Place:
    """Where in a network is recorded; the same place in a copy of the network.

    Attributes:
        classifier: Dotted name of the module whose input is the pooled features; None for none.
        map: Dotted name of the module at which the last feature map passes; None for none.
        map_is_input: Whether the map is that module's input.
    """

    classifier: str | None
    map: str | None
    map_is_input: bool


class Recorder:
    """Keeps what hooks saw of a call; its attributes are plain so that ``torch.compile`` can trace the hooks.

    Args:
        place: Where the hooks are.
        keeps_return: Whether to keep what the network returned.
    """

    def __init__(self, place: Place, *, keeps_return: bool = False) -> None:
        self.place = place
        self.keeps_return = keeps_return
        self.active = False
        self.clear()

    def clear(self) -> None:
        """Forgets the call."""
        self.complete = False
        self.passing_map: Tensor | None = None
        self.pooled: Tensor | None = None
        self.pooled_is_constant = False
        self.logits: Tensor | None = None
        self.feature_map: Tensor | None = None
        self.returned: Any = None

    def on_classifier(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Sees the last linear layer at work."""
        pooled = args[0] if args else kwargs["input"]
        # The first of several calls counts, but one that can be trained counts more than one made under no_grad.
        if self.active and (not self.complete or (self.pooled_is_constant and pooled.requires_grad)):
            self.pooled = pooled
            self.pooled_is_constant = not pooled.requires_grad
            self.logits = output
            self.feature_map = self.passing_map
            self.complete = True

    @contextlib.contextmanager
    def listening(self, network: nn.Module) -> Iterator[None]:
        """Records calls of the network inside the block."""
        self.clear()
        self.active = True
        handles = self._attach(network)
        listeners = network.__dict__.setdefault(LISTENERS, [])
        listeners.append(self)
        try:
            yield
        finally:
            listeners.remove(self)
            if not listeners:
                del network.__dict__[LISTENERS]
            self.active = False
            for handle in handles:
                handle.remove()
            self.clear()

    @property
    def hooks_inside(self) -> int:
        """How many hooks it has on modules inside the network."""
        return sum(bool(name) for name in (self.place.classifier, self.place.map))

    def hear(self, heard: Mapping[str, Any]) -> None:
        """Records what another one, at the same place, :meth:`heard` of a call that this one did not see."""
        self.passing_map = heard["passing_map"]
        if heard["pooled"] is not None:
            self.on_classifier(_NOWHERE, (heard["pooled"],), {}, heard["logits"])

    def _attach(self, network: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        handles, place = [], self.place
        if place.classifier is not None:
            classifier = network.get_submodule(place.classifier)
            handles.append(classifier.register_forward_hook(self.on_classifier, with_kwargs=True))
        if place.map is not None and place.map_is_input:
            passing = network.get_submodule(place.map)
            handles.append(passing.register_forward_pre_hook(self.on_map_input, with_kwargs=True))
        elif place.map is not None:
            handles.append(network.get_submodule(place.map).register_forward_hook(self.on_map_output))
        if self.keeps_return:
            handles.append(network.register_forward_hook(self.on_return))
        return handles

    def heard(self) -> dict[str, Any]:
        """Returns what has been recorded so far."""
        return {name: getattr(self, name) for name in ("passing_map", "pooled", "logits", "feature_map", "returned")}

    def rewrite(self, before: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> None:
        """Applies ``change`` to every tensor that was recorded since ``before``, which :meth:`heard` returned."""
        for name, value in self.heard().items():
            if value is not before[name]:
                setattr(self, name, map_leaves(change, value))

    def on_map_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Sees the map enter a module."""
        if self.active:
            self.passing_map = args[0] if args else kwargs["input"]

    def on_map_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Sees the map leave a module."""
        if self.active:
            self.passing_map = output

    def on_return(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Sees what the network returns."""
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
        self.plan = plan_outputs(model, role, input_size)

    @property
    def plan(self) -> OutputPlan:
        """Where the network keeps what is read; another plan makes the reader look there."""
        return self._plan

    @plan.setter
    def plan(self, plan: OutputPlan) -> None:
        self._plan = plan
        classifier, passing = (_name_of(module, self.model) for module in (plan.classifier, plan.map_module))
        place = Place(classifier, passing, plan.map_is_input)
        self._recorder = Recorder(place, keeps_return=not plan.classifier_gives_logits)

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
        with self._recorder.listening(self.model):
            yield

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


_NOWHERE = nn.Identity()


def _name_of(module: nn.Module | None, network: nn.Module) -> str | None:
    return next((name for name, each in network.named_modules() if each is module), None)
