"""The memory of CRD: the official bank with one entry a training sample, or a queue of fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin.contrastive import Scores, check_embeddings, indexed_scores, nce_loss
from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import at_least_float32
from tmkd_plugin.randomness import generator_for


class ContrastMemory(nn.Module):
    """The embeddings of former batches, of both networks; what a checkpoint needs to go on exactly is in its buffers.

    Args:
        entries: N, the number of rows.
        width: D.
        negatives: K, the number of negatives a sample.
        temperature: tau.
        generator: Draws the first content, uniform in ±1/sqrt(D/3).
    """

    student: Tensor
    teacher: Tensor
    normalisers: Tensor

    def __init__(
        self, entries: int, width: int, negatives: int, temperature: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        bound = (width / 3) ** -0.5
        for name in ("student", "teacher"):
            self.register_buffer(name, (torch.rand(entries, width, generator=generator) * 2 - 1) * bound)
        # Z of both sides, set by the first batch and kept from then on; 0: not yet.
        self.register_buffer("normalisers", torch.zeros(2))
        self.negatives = negatives
        self.temperature = temperature

    def sides(self, student: Tensor, teacher: Tensor, batch: ContrastBatch) -> tuple[Tensor, Tensor]:
        """Returns the student side and the teacher side of the loss, two scalars.

        Args:
            student: (B, D), rows of length 1.
            teacher: (B, D), likewise.
            batch: What :meth:`begin` returned for these samples.
        """
        check_embeddings(student, teacher, self.student, self.teacher)
        losses = []
        for side, (own, other, memory) in enumerate(
            ((student, teacher, self.teacher), (teacher, student, self.student))
        ):
            scores = self.scores(own, other, memory, batch)
            known = self.normalisers[side]
            normaliser = torch.where(known > 0, known, scores.normaliser(len(memory)).to(known.dtype))
            if self.training:
                self.normalisers[side] = normaliser
            losses.append(nce_loss(scores, normaliser, len(memory)))
        return losses[0], losses[1]

    def begin(self, labels: Tensor, ids: Tensor | None, generator: torch.Generator) -> ContrastBatch:
        """Prepares the contrast of a batch.

        Args:
            labels: (B,) int64.
            ids: (B,) int64, which samples these are, where the memory goes by that.
            generator: Draws the negatives, where they are drawn.
        """
        raise NotImplementedError

    def scores(self, own: Tensor, other: Tensor, memory: Tensor, batch: ContrastBatch) -> Scores:
        """Scores one network's embeddings with the other's memory."""
        raise NotImplementedError

    def update(self, student: Tensor, teacher: Tensor, batch: ContrastBatch) -> None:
        """Takes the embeddings of a batch into the memory, without gradient."""
        raise NotImplementedError

    def _all_scores(self, own: Tensor, memory: Tensor) -> Tensor:
        own = at_least_float32(own)
        with torch.autocast(own.device.type, enabled=False):
            return own @ memory.to(own.dtype).T / self.temperature


@dataclass(frozen=True)
class ContrastBatch:
    """Which entries of the memory a batch is compared with.

    Attributes:
        labels: (B,) int64.
        index: (B,), the samples' own rows; None where the memory has none.
        contrast_index: (B, K+1), as of :func:`crd_loss`; None for all entries of other classes.
    """

    labels: Tensor
    index: Tensor | None = None
    contrast_index: Tensor | None = None


class MemoryBank(ContrastMemory):
    """CRD's own memory: one entry for each training sample, moved towards the sample's embedding when it is seen.

    Negatives are drawn among the samples of other classes without replacement. Where K exceeds their number P for some class
    (the official code then draws with replacement) each of them counts K/P times, the expectation of a draw, which costs less.

    Args:
        sample_labels: (ids,) int64, the class of each sample by its id; -1 for an id that is not trained on and gets no entry.
        width: See :class:`ContrastMemory`, as for all that follow.
        negatives: ...
        temperature: ...
        generator: ...
        momentum: m: an entry becomes ``normalise(m entry + (1-m) v)``.

    Raises:
        InputError: There are no two classes.
    """

    wants_ids: ClassVar[bool] = True
    labels: Tensor
    row_of_id: Tensor

    def __init__(
        self,
        sample_labels: Tensor,
        width: int,
        negatives: int,
        temperature: float,
        generator: torch.Generator,
        momentum: float = 0.5,
    ) -> None:
        trained = sample_labels >= 0
        labels = sample_labels[trained]
        super().__init__(len(labels), width, negatives, temperature, generator)
        if len(torch.unique(labels)) < 2:
            raise InputError(
                "CRD draws its negatives from other classes, but the training samples are of less than two."
            )
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("row_of_id", (trained.cumsum(0) - 1).where(trained, -1), persistent=False)
        self.smallest_pool = len(labels) - int(labels.bincount().max())
        self.momentum = momentum

    def begin(self, labels: Tensor, ids: Tensor | None, generator: torch.Generator) -> ContrastBatch:
        """See :meth:`ContrastMemory.begin`."""
        if ids is None:
            raise InputError(
                "CRD's memory bank has one entry for each training sample and needs to know which samples these are: call the "
                "distiller with ids=batch.ids, or set bank_limit=0, which takes a queue that needs no ids."
            )
        if ids.shape != labels.shape or ids.dtype != torch.int64:
            raise InputError(f"ids= must be int64 {tuple(labels.shape)}, but are {ids.dtype} {tuple(ids.shape)}.")
        if ids.device.type == "cpu":  # elsewhere the check would make the processor wait
            _check_ids(ids, self.row_of_id)
        index = self.row_of_id[ids]
        if self.smallest_pool < self.negatives:
            return ContrastBatch(labels, index)
        pools = {label: (self.labels != label).nonzero()[:, 0] for label in set(labels.tolist())}
        rows = [
            pools[label][torch.randperm(len(pools[label]), generator=generator)[: self.negatives].to(index.device)]
            for label in labels.tolist()
        ]
        return ContrastBatch(labels, index, torch.cat([index[:, None], torch.stack(rows)], dim=1))

    def scores(self, own: Tensor, other: Tensor, memory: Tensor, batch: ContrastBatch) -> Scores:
        """See :meth:`ContrastMemory.scores`."""
        if batch.contrast_index is not None:
            return indexed_scores(own, memory, batch.contrast_index, self.temperature)
        index = _present(batch.index)
        scores = self._all_scores(own, memory)
        is_negative = self.labels != batch.labels[:, None]
        return Scores(scores.gather(1, index[:, None])[:, 0], scores, is_negative, self.negatives)

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, batch: ContrastBatch) -> None:
        """See :meth:`ContrastMemory.update`; of a sample that is twice in a batch one embedding is taken."""
        index = _present(batch.index)
        for name, embeddings in (("student", student), ("teacher", teacher)):
            memory: Tensor = getattr(self, name)
            moved = self.momentum * memory[index] + (1 - self.momentum) * embeddings.detach().to(memory.dtype)
            # A new tensor: the backward pass of this step still needs the old entries.
            setattr(self, name, memory.index_copy(0, index, F.normalize(moved, dim=1)))


class MemoryQueue(ContrastMemory):
    """A memory of fixed size that needs to know no samples: the last embeddings, first in, first out (ours).

    A sample's positive is the other network's embedding of it in this very batch, detached; every entry of another class
    is a negative, and together they count as K.

    Args:
        entries: See :class:`ContrastMemory`, as for all that follow.
        width: ...
        negatives: ...
        temperature: ...
        generator: ...
    """

    labels: Tensor
    cursor: Tensor

    def __init__(
        self, entries: int, width: int, negatives: int, temperature: float, generator: torch.Generator
    ) -> None:
        super().__init__(entries, width, negatives, temperature, generator)
        # The random vectors at the start belong to no class, so that they are negatives of all.
        self.register_buffer("labels", torch.full((entries,), -1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def begin(self, labels: Tensor, ids: Tensor | None, generator: torch.Generator) -> ContrastBatch:
        """See :meth:`ContrastMemory.begin`."""
        return ContrastBatch(labels)

    def scores(self, own: Tensor, other: Tensor, memory: Tensor, batch: ContrastBatch) -> Scores:
        """See :meth:`ContrastMemory.scores`."""
        own = at_least_float32(own)
        positive = (own * other.detach().to(own.dtype)).sum(dim=1) / self.temperature
        is_negative = self.labels != batch.labels[:, None]
        return Scores(positive, self._all_scores(own, memory), is_negative, self.negatives)

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, batch: ContrastBatch) -> None:
        """See :meth:`ContrastMemory.update`."""
        last = slice(-len(self.labels), None)  # a batch may be larger than the queue
        count = len(batch.labels[last])
        rows = (self.cursor + torch.arange(count, device=self.labels.device)) % len(self.labels)
        # New tensors: the backward pass of this step still needs the old entries.
        self.student = self.student.index_copy(0, rows, student.detach()[last].to(self.student.dtype))
        self.teacher = self.teacher.index_copy(0, rows, teacher.detach()[last].to(self.teacher.dtype))
        self.labels = self.labels.index_copy(0, rows, batch.labels[last])
        self.cursor.copy_((self.cursor + count) % len(self.labels))


class ContrastSettings(Protocol):
    """The values that a memory is made with."""

    @property
    def projection_width(self) -> int:
        """D."""

    @property
    def negatives(self) -> int:
        """K."""

    @property
    def contrast_temperature(self) -> float:
        """Temperature tau."""

    @property
    def memory_momentum(self) -> float:
        """m, of the bank."""

    @property
    def bank_limit(self) -> int:
        """The most entries of the bank; each takes 8·D bytes."""

    @property
    def queue_size(self) -> int:
        """Entries of the queue."""


def contrast_memory(settings: ContrastSettings, seed: int, sample_labels: Tensor | None = None) -> ContrastMemory:
    """Builds the exact bank where the training samples are known and few enough, else the queue.

    Args:
        settings: Sizes and temperature.
        seed: The first content is a function of it.
        sample_labels: (ids,), see :class:`MemoryBank`; None where the samples are not known.
    """
    generator = generator_for(seed, "contrast memory")
    shape = settings.projection_width, settings.negatives, settings.contrast_temperature, generator
    if sample_labels is None or int((sample_labels >= 0).sum()) > settings.bank_limit:
        return MemoryQueue(settings.queue_size, *shape)
    return MemoryBank(sample_labels, *shape, settings.memory_momentum)


def _check_ids(ids: Tensor, row_of_id: Tensor) -> None:
    known = (ids >= 0) & (ids < len(row_of_id))
    known &= row_of_id[ids.clamp(0, len(row_of_id) - 1)] >= 0
    if not bool(known.all()):
        raise InputError(
            f"ids= hold {int(ids[~known][0])}, which is none of the {int((row_of_id >= 0).sum())} training samples that "
            "tell_samples(distiller, labels, ids) was told of."
        )


def _present(index: Tensor | None) -> Tensor:
    if index is None:
        raise InputError("This batch was prepared without ids; see MemoryBank.begin.")
    return index
