"""A network's forward pass divided over processes: each runs its share of the images, and everybody gets all answers.

The division stands in the network itself, as its ``forward``, so whoever calls it, a distiller of a user's too, hands in the
global batch and gets the answers for the global batch, with gradient.

Why the gradients are right: every process computes the same loss L from the same gathered answers. The backward pass of the
gathering keeps the rows of the own share and multiplies them by the number of processes N, so a process has N times what its
share contributes to dL/dw; the mean over processes is their sum. What does not pass through a divided network (heads, a
classifier's weight that CAT-KD reads) has the whole gradient everywhere, and the mean leaves it as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin.errors import InputError
from tmkd_plugin.model_output import LISTENERS
from tmkd_plugin.nested import leaves, map_leaves
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.stand_in import replaced_attributes
from tmkd_plugin.training.distributed import Processes


def share_sizes(images: int, processes: int) -> list[int]:
    """Returns how many images each process takes: as equal as can be, the first ones one more, some perhaps none."""
    each, more = divmod(images, processes)
    return [each + (rank < more) for rank in range(processes)]


@contextlib.contextmanager
def sharded_networks(distiller: nn.Module, processes: Processes | None) -> Iterator[None]:
    """Divides the student's and the teacher's forward passes inside the block; without other processes, nothing."""
    networks = [getattr(distiller, name, None) for name in ("student", "teacher")]
    with contextlib.ExitStack() as stack:
        if processes is not None:
            for network in networks:
                if isinstance(network, nn.Module):
                    stack.enter_context(ShardedForward(network, processes).installed())
        yield


class ShardedForward:
    """Stands in for a network's ``forward``.

    Args:
        network: The network; its first argument that is a tensor holds the images.
        processes: Those that share the work.
    """

    def __init__(self, network: nn.Module, processes: Processes) -> None:
        self.network = network
        self.processes = processes
        self._run: Callable[..., Any] = network.forward
        # A module that was compiled in place runs through __call__, which looks `forward` up again.
        self._compiled = getattr(network, "_compiled_call_impl", None)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Answers for the network inside the block."""
        answers = {"forward": self} if self._compiled is None else {"forward": self, "_compiled_call_impl": None}
        with replaced_attributes(self.network, answers) as before:
            self._own_forward = before["forward"]
            yield

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network on the own share; returns what it says of all images, with gradient."""
        total = _rows_of_images(self.network, [*args, *kwargs.values()])
        rows = share_sizes(total, self.processes.count)
        own = rows[self.processes.rank]
        start = sum(rows[: self.processes.rank])
        # A process without images runs the first one and gives no row of its answer, so that its gradients exist: they are 0.
        part = slice(start, start + own) if own else slice(0, 1)

        def share(tensor: Tensor) -> Tensor:
            return tensor[part] if tensor.dim() and tensor.shape[0] == total else tensor

        whole = _Whole(self.processes, rows, part.stop - part.start)
        listeners = list(self.network.__dict__.get(LISTENERS, ()))
        heard = [listener.heard() for listener in listeners]
        with self._own_draws():
            returned = self._call(*map_leaves(share, args), **map_leaves(share, kwargs))
        for listener, before in zip(listeners, heard, strict=True):
            listener.rewrite(before, whole)
        return map_leaves(whole, returned)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            return self._run(*args, **kwargs)
        with replaced_attributes(self.network, {"forward": self._own_forward}):
            return self._compiled(*args, **kwargs)

    def _own_draws(self) -> contextlib.AbstractContextManager[None]:
        """Gives dropout other draws in each share; the global generator goes on alike everywhere."""
        if not self.network.training:
            return contextlib.nullcontext()
        seed = int(torch.randint(2**62, ()))
        return forked_random_state(seed, "share of a batch", self.processes.rank)


class _Whole:
    """Turns what a network says of the own share into what it says of all images; each tensor once."""

    def __init__(self, processes: Processes, rows: Sequence[int], ran: int) -> None:
        self._processes = processes
        self._rows = rows
        self._ran = ran
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != self._ran:
            return tensor
        if id(tensor) not in self._known:
            own = tensor[: self._rows[self._processes.rank]]
            whole: Tensor = _Gather.apply(own, self._processes, self._rows)
            self._known[id(tensor)] = tensor, whole  # the tensor too, so that its id stays its own
        return self._known[id(tensor)][1]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, rows: Sequence[int]) -> Tensor:
        ctx.start, ctx.stop = sum(rows[: processes.rank]), sum(rows[: processes.rank + 1])
        ctx.count = processes.count
        return processes.gather(own, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # No communication: the gradient of the whole is the same everywhere.
        return gradients[0][ctx.start : ctx.stop] * ctx.count, None, None


def _rows_of_images(network: nn.Module, arguments: Sequence[Any]) -> int:
    images = next((leaf for leaf in leaves(list(arguments)) if leaf.dim()), None)
    if images is None:
        raise InputError(
            f"{type(network).__name__} was called without a tensor of images, so its work can't be divided over processes."
        )
    return images.shape[0]
