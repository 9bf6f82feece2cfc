"""What a teacher's answers depend on, and whether that has changed, for those that answer in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from tmkd_plugin.batch_memory import version_of
from tmkd_plugin.model_output import Recorder

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class WatchedTeacher:
    """Sees what makes a network's answer something else than the function of the images that it was.

    Args:
        network: The teacher.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._inside = list(network.modules())[1:]
        self._tensors = [*network.parameters(), *network.buffers()]
        self._writes = self._count_writes()

    @property
    def was_written_to(self) -> bool:
        """Whether a weight or a buffer has been changed."""
        return self._count_writes() != self._writes

    @property
    def is_training(self) -> bool:
        """Whether any module is in training mode."""
        return self.network.training or any(module.training for module in self._inside)

    def wants_gradient(self, images: Tensor) -> bool:
        """Says whether the answer to these images would have a gradient."""
        return torch.is_grad_enabled() and (
            images.requires_grad or any(tensor.requires_grad for tensor in self._tensors)
        )

    def is_heard_by_others(self, listeners: Sequence[Recorder]) -> bool:
        """Says whether somebody else than these listens inside, or to all modules that there are."""
        if hooks_of_all_modules._global_forward_hooks or hooks_of_all_modules._global_forward_pre_hooks:
            return True
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in self._inside)
        return hooks != sum(listener.hooks_inside for listener in listeners)

    def _count_writes(self) -> int:
        return sum(version_of(tensor) for tensor in self._tensors)


def description(network: nn.Module) -> Hashable:
    """Returns what a network computes with besides its tensors: its modules, and what each has as plain attributes.

    Numbers, words, flags and tensors count, also in lists and mappings; of other objects only their type is seen.
    """
    return tuple(
        (name, type(module).__qualname__, module.extra_repr(), attributes(module))
        for name, module in network.named_modules()
    )


def attributes(module: nn.Module) -> Hashable:
    """Returns the attributes of one module on which its forward may depend, its mode aside."""
    return tuple((name, _comparable(value)) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE)


def switches(module: nn.Module) -> Hashable:
    """Returns the numbers, words and flags among the attributes of one module, which is quickly done."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and name not in _OF_EVERY_MODULE
    )


def replaced_forward(network: nn.Module) -> str | None:
    """Returns the dotted name of a module whose ``forward`` somebody has replaced on the object; ``None`` if there is none."""
    for name, module in network.named_modules():
        forward = vars(module).get("forward")
        # What stands there for this package, such as a pass in parts, gives the network's own answer.
        if forward is not None and not type(forward).__module__.startswith("tmkd_plugin."):
            return name or type(network).__name__
    return None


def random_states(device: torch.device) -> list[Tensor]:
    """Returns the states of the global generators that a network on a device may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def have_drawn(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Says whether something was drawn between two :func:`random_states`."""
    return not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def _comparable(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), hashlib.sha256(plain.numpy().data).hexdigest()
    return type(value).__qualname__, *_parts(value)


def _parts(value: Any) -> Iterator[Hashable]:
    if isinstance(value, Mapping):
        yield from ((str(key), _comparable(item)) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        yield from map(_comparable, value)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(map(str, value))
    elif isinstance(value, (torch.dtype, torch.device)):
        yield str(value)
