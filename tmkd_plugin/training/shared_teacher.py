"""One pass of the teacher for every arm: distillers that train side by side share what their teacher says of a batch.

Each distiller keeps a teacher of its own, whose ``forward`` answers from a common memory of the batch: the first distiller
that asks runs its network, the others get the same tensors. Whoever records a teacher from inside (``OutputReader``) gets
what was recorded then. A call that can't be shared, such as with somebody's own hooks in the network, runs the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.batch_memory import MEMORY, BatchMemory
from tmkd_plugin.errors import RunError
from tmkd_plugin.model_output import LISTENERS, Place, Recorder
from tmkd_plugin.nested import is_nest, leaves, map_leaves
from tmkd_plugin.stand_in import replaced_attributes
from tmkd_plugin.training.watched_teacher import (
    WatchedTeacher,
    description,
    have_drawn,
    random_states,
    replaced_forward,
    switches,
)


class SharedTeachers:
    """Lets distillers share the answers of their teachers, which are one network or copies that hold the same tensors.

    Args:
        distillers: Distillers with ``.teacher``; others are left alone, as is a teacher that no other distiller has.
    """

    def __init__(self, distillers: Sequence[nn.Module]) -> None:
        groups: dict[Hashable, list[nn.Module]] = {}
        for distiller in distillers:
            teacher = getattr(distiller, "teacher", None)
            # A network that was compiled in place runs past what answers for its forward; another's forward is not known.
            if isinstance(teacher, nn.Module) and teacher._compiled_call_impl is None and not replaced_forward(teacher):
                groups.setdefault(_content(teacher), []).append(teacher)
        self._memories: list[BatchMemory] = []
        self._forwards: list[_SharedForward] = []
        for teachers in groups.values():
            if len(teachers) > 1:
                shared = _Shared(BatchMemory(), [])
                self._memories.append(shared.memory)
                networks = {id(teacher): teacher for teacher in teachers}.values()
                self._forwards += [_SharedForward(network, shared) for network in networks]

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answers for the networks inside the block, and lets go of everything at its end."""
        try:
            with contextlib.ExitStack() as stack:
                for forward in self._forwards:
                    stack.enter_context(forward.installed())
                yield
        finally:
            self.forget()

    def forget(self) -> None:
        """Lets go of what was kept of a batch, once it is over."""
        for memory in self._memories:
            memory.forget()


@contextlib.contextmanager
def shared_teachers(distillers: Sequence[nn.Module]) -> Iterator[Callable[[], None]]:
    """Lets distillers share what their teachers say inside the block; see :class:`SharedTeachers`.

    Yields:
        A function to call when a batch is over, which lets go of what was kept of it.
    """
    shared = SharedTeachers(distillers)
    with shared.answering():
        yield shared.forget


@dataclass(frozen=True)
class _Shared:
    """What copies of a teacher have in common: the memory of the batch, and where anybody has ever recorded."""

    memory: BatchMemory
    places: list[Place]


@dataclass(frozen=True)
class _Answer:
    """What a network returned, and what was heard at each place."""

    returned: Any
    heard: list[dict[str, Any]]


class _SharedForward:
    """Stands in for a teacher's ``forward``."""

    def __init__(self, network: nn.Module, shared: _Shared) -> None:
        self.network = network
        self.shared = shared
        self._run: Callable[..., Any] = network.forward
        self._watched = WatchedTeacher(network)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Answers for the network inside the block."""
        with replaced_attributes(self.network, {"forward": self, MEMORY: self.shared.memory}):
            yield

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answers from the memory of the batch, or runs the network."""
        if self._watched.was_written_to:
            raise RunError(
                f"The teacher ({type(self.network).__name__}) was changed while distillers share it. Train this one by itself, "
                "with --arms-at-once 1."
            )
        images = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        key = _key(args, kwargs, switches(self.network))
        listeners: list[Recorder] = self.network.__dict__.get(LISTENERS, [])
        if len(images) != 1 or key is None or not self._is_plain(images[0], listeners):
            return self._run(*args, **kwargs)
        for listener in listeners:
            if listener.place not in self.shared.places:
                self.shared.places.append(listener.place)
        found: _Answer | None = self.shared.memory.find(key, images[0])
        if found is None or len(found.heard) < len(self.shared.places):
            before = random_states(images[0].device)
            found = self._ask(*args, **kwargs)
            if _can_be_kept(found) and not have_drawn(before, random_states(images[0].device)):
                self.shared.memory.keep(key, images[0], found)
        else:
            for listener in listeners:
                listener.hear(found.heard[self.shared.places.index(listener.place)])
        # Its own containers: what one caller does to a list, the next must not see.
        return map_leaves(lambda leaf: leaf, found.returned)

    def _ask(self, *args: Any, **kwargs: Any) -> _Answer:
        recorders = [Recorder(place) for place in self.shared.places]
        with contextlib.ExitStack() as stack:
            for recorder in recorders:
                stack.enter_context(recorder.listening(self.network))
            # Tensors of inference mode could not enter the graph of another distiller; leaving it turns gradients on.
            with_gradient = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(with_gradient))
            returned = self._run(*args, **kwargs)
            return _Answer(map_leaves(lambda leaf: leaf, returned), [recorder.heard() for recorder in recorders])

    def _is_plain(self, images: Tensor, listeners: Sequence[Recorder]) -> bool:
        """Says whether the answer is a function of the images alone, and nobody else listens inside the network."""
        watched = self._watched
        return not (watched.is_training or watched.wants_gradient(images) or watched.is_heard_by_others(listeners))


def _can_be_kept(answer: _Answer) -> bool:
    """Says whether an answer is tensors and plain values all through, which can be handed on as another's own."""
    return is_nest(answer.returned) and not any(leaf.requires_grad for leaf in leaves(answer))


def _content(network: nn.Module) -> Hashable:
    """Identifies what a network computes: its description, and its tensors by identity."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    return description(network), tuple((name, id(tensor)) for name, tensor in tensors)


def _key(args: tuple[Any, ...], kwargs: dict[str, Any], state: Hashable) -> Hashable | None:
    """Returns what tells calls with the same images apart, ``None`` where arguments can't be compared."""
    plain = ["images" if isinstance(value, Tensor) else value for value in args]
    named = sorted((name, "images" if isinstance(value, Tensor) else value) for name, value in kwargs.items())
    autocast = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    key = ("teacher", tuple(plain), tuple(named), tuple(autocast), state)
    try:
        hash(key)
    except TypeError:
        return None
    return key
