"""Several processes that train one run together, started by ``torchrun``; gloo carries CPU tensors, nccl those of GPUs.

Every process runs the same program on the same global batches. Only the networks' forward passes are divided
(:mod:`tmkd_plugin.training.sharding`); losses and heads are computed everywhere, on the whole batch, so nothing that a
distiller does needs to know. The first process writes and speaks; one that fails alone speaks before it ends all.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from tmkd_plugin.errors import InputError, RunError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # torch.distributed.Store, which it does not declare as its own

AGREEMENT_SECONDS = 30.0
"""How long a process that failed waits for the others to fail alike, before it ends the whole run."""
_TIMEOUT = datetime.timedelta(days=7)  # the others wait while the first one downloads, or trains a teacher
_SAME_LOSS = 1e-4
_FIRST = "tmkd: first to fail"
_BAD_INPUT, _FAILED, _INTERRUPTED = 2, 3, 130


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        rank: Number of this process, from 0; the first one is the one that writes.
        count: How many there are, at least 2.
        local_rank: Number of this process on its machine.
        store: What they exchange words through, also when one of them hangs in a collective.
    """

    def __init__(self, rank: int, count: int, local_rank: int, store: Store) -> None:
        self.rank = rank
        self.count = count
        self.local_rank = local_rank
        self._store = store
        self._failures = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Returns the device of this process: ``cuda`` is the GPU with its number on its machine.

        Raises:
            InputError: There is no such GPU, or one GPU is named for all processes.
        """
        kind, _, number = name.partition(":")
        if kind != "cuda":
            return name
        if number:
            raise InputError(f"device={name} is one GPU, but there are {self.count} processes: give device=cuda.")
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"Process {self.rank} has no GPU: there are {torch.cuda.device_count()} on its machine. Start torchrun with "
                "--nproc-per-node of at most that."
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Waits until every process is here."""
        dist.all_reduce(torch.zeros(1))

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the first process through the block before all others: what it caches on disk, they find."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def from_main(self, value: Any) -> Any:
        """Returns the first process's value; those of the others are ignored."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, own: Tensor, rows: Sequence[int]) -> Tensor:
        """Puts the rows of all processes together, in their order.

        Args:
            own: (rows[rank], ...); the trailing sizes and the dtype are the same everywhere.
            rows: How many rows each process has.

        Returns:
            (sum of rows, ...), the same bits everywhere; no gradient.
        """
        padded = own.new_zeros((max(rows), *own.shape[1:]))  # gloo wants equal sizes
        padded[: own.shape[0]] = own.detach()
        # As bytes: gloo does not carry every dtype.
        sent = padded.contiguous().view(-1).view(torch.uint8)
        received = [torch.empty_like(sent) for _ in rows]
        dist.all_gather(received, sent)
        parts = [part.view(own.dtype).view(padded.shape)[:n] for part, n in zip(received, rows, strict=True)]
        return torch.cat(parts)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with the first process's."""
        with torch.no_grad():
            for tensor in tensors:
                plain = tensor.detach().contiguous()
                dist.broadcast(plain, src=0)
                tensor.copy_(plain)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the processes.

        One collective for each dtype, after the backward pass. ``DistributedDataParallel``, which would overlap it with the
        backward pass, wraps a forward pass of its own and has no place for a distiller that calls networks when it likes.
        """
        by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_kind.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
        for gradients in by_kind.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.count
            start = 0
            for gradient in gradients:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()

    def check_same(self, name: str, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Refuses a distiller whose loss is not the same everywhere: it looks at a part of the batch.

        Args:
            name: What messages call it.
            loss: Its loss.
            parameters: What it trains, after the backward pass.

        Raises:
            InputError: Loss, or the number of gradients, differ.
        """
        reached = sum(parameter.grad is not None for parameter in parameters)
        own = torch.tensor([[float(loss.detach()), reached]], dtype=torch.float64)
        losses, gradients = self.gather(own, [1] * self.count).T
        same = torch.allclose(losses, losses[:1].expand_as(losses), rtol=_SAME_LOSS, atol=1e-12, equal_nan=True)
        if same and bool((gradients == gradients[0]).all()):
            return
        values = ", ".join(f"{value:g}" for value in losses.tolist())
        raise InputError(
            f"{name}: the loss differs between the processes ({values}). Each of them runs the networks on a part of the batch "
            "and computes the loss on all of it, but this distiller looks at a part: most likely through hooks of its own "
            "inside a network. Let the networks return what the loss needs, or train in one process."
        )

    def fail_together(self, described: str) -> None:
        """Returns if every process has failed, so that all can go on with the next run.

        Raises:
            RunError: Some have not, and wait for this one in vain; or this one failed because another has ended.
        """
        self._failures += 1
        key = f"tmkd: failure {self._failures} of "
        self._store.set(f"{key}{self.rank}", described)
        try:
            everybody = [f"{key}{rank}" for rank in range(self.count)]
            self._store.wait(everybody, datetime.timedelta(seconds=AGREEMENT_SECONDS))
            ended = self._store.check([_FIRST])
        except RuntimeError:
            raise RunError(f"process {self.rank} of {self.count} failed alone: {described}") from None
        if ended:
            raise RunError(f"another process ended before process {self.rank}: {described}")

    def speaks_first(self) -> bool:
        """Says whether this process is the first that ends with an error; only that one tells the user."""
        try:
            first: bytes = self._store.compare_set(_FIRST, "", str(self.rank))
        except RuntimeError:  # the store has gone with torchrun
            return False
        return first == str(self.rank).encode()


def process_count() -> int:
    """Returns how many processes train together; 1 without ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes | None]:
    """Joins the other processes that ``torchrun`` has started; gives ``None`` where there are none.

    Of those that end with an error the first one raises it, and the others end silently with the same exit code.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield None
        return
    processes = _join()
    try:
        with contextlib.nullcontext() if processes.is_main else _no_warnings():
            yield processes
    except BaseException as error:
        if processes.speaks_first():
            raise
        raise SystemExit(_exit_code(error)) from None
    processes.barrier()  # nobody leaves while another may still need its answer
    dist.destroy_process_group()


def _join() -> Processes:
    store, rank, count = next(rendezvous("env://", timeout=_TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT)
    return Processes(rank, count, int(os.environ["LOCAL_RANK"]), store)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return _BAD_INPUT if isinstance(error, InputError) else _FAILED
