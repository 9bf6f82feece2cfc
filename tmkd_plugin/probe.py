"""Where a network keeps its logits, pooled features and last feature map: found by one forward pass on a probe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.nested import leaves
from tmkd_plugin.randomness import forked_random_state, generator_for

PROBE_SIZES = (32, 224)
LARGER_PROBE = 64
"""Tried where the last feature map is a single pixel at the first size, so that it can't be told from what follows it."""


@dataclass(frozen=True)
class OutputPlan:
    """Where a network keeps what we read.

    Attributes:
        num_classes: K.
        logits_index: Position of the logits among the tensors that the network returns.
        classifier: The last linear layer, whose input is the pooled features; None where there is none.
        classifier_name: Its dotted name.
        classifier_gives_logits: Whether its output is the logits themselves.
        pooled_width: D, or None where its input is not (B, D).
        map_module: The module at which the last feature map passes; None for networks without one.
        map_is_input: Whether the map is that module's input (a pooling layer) rather than its output.
        map_is_channels_last: Whether the map is (B, h, w, C).
        map_has_pixels: Whether it was larger than one pixel on the probe.
        has_class_maps: Whether the classifier applied to the mean of the map gives the logits.
        no_class_maps_because: The reason if it does not.
        input_size: Side of the probe's images in pixels.
    """

    num_classes: int
    logits_index: int
    classifier: nn.Module | None
    classifier_name: str
    classifier_gives_logits: bool
    pooled_width: int | None
    map_module: nn.Module | None
    map_is_input: bool
    map_is_channels_last: bool
    map_has_pixels: bool
    has_class_maps: bool
    no_class_maps_because: str
    input_size: int


@dataclass(frozen=True)
class _Event:
    """One call of one module during the probe."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None


@dataclass(frozen=True)
class _Map:
    """A feature map found on the probe: where it passes, and the map itself as (B, C, h, w)."""

    module: nn.Module
    is_input: bool
    is_channels_last: bool
    values: Tensor


def plan_outputs(model: nn.Module, role: str, input_size: int | None = None) -> OutputPlan:
    """Runs the network once on random images, in eval mode, and finds its parts.

    The network's modes, parameters and buffers and the global random state are left as they were.

    Args:
        model: The network.
        role: What it is called in messages.
        input_size: Side of the probe's images; None for the model's configuration, else 32 and then 224.

    Raises:
        InputError: The network does not run on images of any size tried, or returns no (B, K) tensor.
    """
    size, returned, events = _run_probe(model, role, input_size)
    plan = _plan(model, role, size, returned, events)
    if input_size is None and size < LARGER_PROBE and not plan.map_has_pixels:
        with contextlib.suppress(InputError):
            return _plan(model, role, *_run_probe(model, role, LARGER_PROBE))
    return plan


def _plan(model: nn.Module, role: str, size: int, returned: Any, events: list[_Event]) -> OutputPlan:
    tensors = leaves(returned)
    linears = [event for event in events if _is_classifier(event)]
    index = _find_logits(tensors, linears, returned)
    if index is None:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "no tensor at all"
        raise InputError(
            f"The {role} ({type(model).__name__}) returned nothing that could be logits (B, K) for a probe of 2 "
            f"images: {shapes}."
        )
    logits = tensors[index]
    head = next((event for event in reversed(linears) if _same(event.output, logits)), None)
    gives_logits = head is not None
    head = head or (linears[-1] if linears else None)
    pooled = head.input if head is not None and head.input is not None and head.input.ndim == 2 else None
    found = _find_map(events, pooled)
    reason = _why_no_class_maps(head if gives_logits else None, pooled, found, logits)
    return OutputPlan(
        num_classes=logits.shape[1],
        logits_index=index,
        classifier=head.module if head else None,
        classifier_name=head.name if head else "(none)",
        classifier_gives_logits=gives_logits,
        pooled_width=pooled.shape[1] if pooled is not None else None,
        map_module=found.module if found else None,
        map_is_input=found.is_input if found else False,
        map_is_channels_last=found.is_channels_last if found else False,
        map_has_pixels=found is not None and _has_pixels(found.values),
        has_class_maps=not reason,
        no_class_maps_because=reason,
        input_size=size,
    )


def _run_probe(model: nn.Module, role: str, input_size: int | None) -> tuple[int, Any, list[_Event]]:
    # A compiled network is probed as it was before: the probe's hooks must not be compiled in.
    network = getattr(model, "_orig_mod", model)
    sizes = (input_size,) if input_size else _configured_sizes(network)
    failures = []
    for size in sizes:
        try:
            return size, *_events_of(network, size)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            failures.append(f"{size} px: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    raise InputError(
        f"The {role} ({type(network).__name__}) does not run on a probe of 2 RGB images: {'; '.join(failures)}. "
        "Pass input_size= with the side of its images in pixels."
    )


def _configured_sizes(network: nn.Module) -> tuple[int, ...]:
    configuration = getattr(network, "pretrained_cfg", None)
    if isinstance(configuration, dict) and configuration.get("input_size"):
        return (int(configuration["input_size"][-1]),)
    return PROBE_SIZES


def _events_of(network: nn.Module, size: int) -> tuple[Any, list[_Event]]:
    reference = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
    images = torch.rand(2, 3, size, size, generator=generator_for(0, "probe images"))
    images = images.to(device=reference.device, dtype=reference.dtype)
    events: list[_Event] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            events.append(_Event(name, module, first, output if isinstance(output, Tensor) else None))

        return hook

    handles = [
        module.register_forward_hook(record(name), with_kwargs=True) for name, module in network.named_modules() if name
    ]
    try:
        with torch.no_grad(), _left_as_it_was(network), forked_random_state(0, "probe"):
            return network(images), events
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Puts the network in eval mode inside the block; modes and buffers are as before after it."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


def _is_classifier(event: _Event) -> bool:
    return isinstance(event.module, nn.Linear) and event.output is not None and event.output.ndim == 2


def _find_logits(tensors: list[Tensor], linears: list[_Event], returned: Any) -> int | None:
    named = returned.get("logits") if isinstance(returned, dict) else getattr(returned, "logits", None)
    candidates = [i for i, t in enumerate(tensors) if t.ndim == 2 and t.is_floating_point() and t.shape[0] == 2]
    for i in candidates:
        if tensors[i] is named:
            return i
    for event in reversed(linears):
        for i in candidates:
            if _same(tensors[i], event.output):
                return i
    widths = {event.output.shape[1] for event in linears[-1:] if event.output is not None}
    return next((i for i in candidates if tensors[i].shape[1] in widths), candidates[0] if candidates else None)


def _find_map(events: list[_Event], pooled: Tensor | None) -> _Map | None:
    """Finds the tensor that enters global pooling: by a pooling layer, by its mean, else the last pooling layer."""
    pools = [e for e in events if "Pool" in type(e.module).__name__ and e.input is not None and e.input.ndim == 4]
    outputs = [e for e in events if e.output is not None and e.output.ndim == 4 and e not in pools]
    if pooled is not None:
        candidates = [(event, True, event.input) for event in reversed(pools)]
        # A single pixel may stand behind the pooling as well as before it.
        candidates += [
            (e, False, e.output) for e in reversed(outputs) if e.output is not None and _has_pixels(e.output)
        ]
        for event, is_input, tensor in candidates:
            for channels_last in (False, True):
                values = _channels_first(tensor, channels_last)
                if _close(values.mean(dim=(2, 3)), pooled):
                    return _Map(event.module, is_input, channels_last, values)
    # Pooling is followed by more than the classifier (ConvNeXt's norm, an MLP head): take the last layer that pools.
    for event in reversed(pools):
        if event.input is not None and event.output is not None and _pools_globally(event):
            channels_last = event.output.ndim == 2 and event.output.shape[1] != event.input.shape[1]
            return _Map(event.module, True, channels_last, _channels_first(event.input, channels_last))
    return None


def _has_pixels(values: Tensor) -> bool:
    return values.shape[1] > 1 and values.shape[2] * values.shape[3] > 1


def _pools_globally(event: _Event) -> bool:
    if isinstance(event.module, nn.AdaptiveAvgPool2d):
        return True
    return event.output is not None and (event.output.ndim == 2 or tuple(event.output.shape[2:]) == (1, 1))


def _channels_first(values: Tensor | None, channels_last: bool) -> Tensor:
    if values is None:
        raise TypeError("no values")
    return values.permute(0, 3, 1, 2) if channels_last else values


def _why_no_class_maps(head: _Event | None, pooled: Tensor | None, found: _Map | None, logits: Tensor) -> str:
    if head is None or pooled is None or not isinstance(head.module, nn.Linear):
        return "its logits do not come from one linear layer on pooled features"
    if found is None:
        return "it has no last feature map (B, C, h, w)"
    weight, bias = head.module.weight, head.module.bias
    if found.values.shape[1] != weight.shape[1]:
        return f"its last feature map has {found.values.shape[1]} channels, but its classifier takes {weight.shape[1]}"
    maps = torch.einsum("kc,bchw->bkhw", weight, found.values)
    from_maps = maps.mean(dim=(2, 3)) + (bias if bias is not None else 0)
    if not _close(from_maps, logits):
        difference = (from_maps - logits).detach().abs().max()
        return f"the mean of its class maps plus the bias differs from its logits by up to {float(difference):.3g}"
    return ""


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape and torch.equal(first, second)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = float(second.abs().max())
    return bool(torch.allclose(first.double(), second.double(), rtol=1e-3, atol=1e-4 * scale + 1e-12))
