"""What is measured, and how often: in full, or as a quick trial."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tmkd_plugin.bench.perf.timing import Case, Times, cpu_seconds, interleaved

BASELINES = ("kd", "rkd", "sp", "catkd", "tekap")


@dataclass(frozen=True)
class Pair:
    """Two networks and the batch that they are measured with.

    Attributes:
        teacher: Name of the teacher.
        student: Name of the student.
        image_size: Height and width in pixels.
        batch: Images in a batch.
        rounds: How often a step is timed.
    """

    teacher: str
    student: str
    image_size: int
    batch: int
    rounds: int

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}, {self.image_size} px, batch {self.batch}"


@dataclass(frozen=True)
class TextTower:
    """The size of CLIP's text encoder; the defaults are those of ViT-B/32."""

    width: int = 512
    heads: int = 8
    layers: int = 12


@dataclass(frozen=True)
class Scope:
    """The sizes of everything that is measured.

    Attributes:
        steps: Pairs for the cost of a step.
        ten_arms: The pair for ten arms in lockstep.
        naive: The pair for the naive way.
        text_tower: CLIP's text encoder, which the naive way runs in every step.
        views: Side and batch of the images for the rate of the views.
        view_rounds: How often a batch of views is timed.
        start_rounds: How many processes of each kind are started.
        judges: Whether the limits count. They do not where the networks are too small for their passes to be the cost.
        classes: Number of classes.
        baselines: The methods whose arms, each alone and with TMKD, go in lockstep.
    """

    steps: tuple[Pair, ...] = (
        Pair("vgg13", "vgg8", 32, 32, rounds=15),
        Pair("resnet50_cifar", "resnet18_cifar", 64, 8, rounds=5),
    )
    ten_arms: Pair = Pair("resnet50_cifar", "vgg8", 32, 32, rounds=3)
    naive: Pair = Pair("vgg13", "vgg8", 32, 32, rounds=2)
    text_tower: TextTower = TextTower()
    views: tuple[tuple[int, int], ...] = ((32, 32), (64, 8), (224, 8))
    view_rounds: int = 15
    start_rounds: int = 4
    judges: bool = True
    classes: int = 10
    baselines: tuple[str, ...] = BASELINES


FULL = Scope()

_TINY = Pair("resnet14", "resnet8", 16, 4, rounds=2)
QUICK = Scope(
    steps=(_TINY,),
    ten_arms=_TINY,
    naive=_TINY,
    text_tower=TextTower(width=64, heads=1, layers=1),
    views=((32, 4),),
    view_rounds=2,
    start_rounds=1,
    judges=False,
)
"""Tries everything out in seconds; its figures mean nothing."""


@dataclass(frozen=True)
class Conditions:
    """What all measurements of a run have in common.

    Attributes:
        scope: What is measured.
        device: Where.
        repeats: How many rounds there are of everything; None for the scope's own numbers.
        cpu_time: Whether the time counts that processors work, instead of the time that passes.
    """

    scope: Scope
    device: torch.device
    repeats: int | None = None
    cpu_time: bool = False

    def rounds(self, own: int) -> int:
        """Returns how many rounds there are of something that has its own number in the scope."""
        return own if self.repeats is None else self.repeats

    def times(self, cases: Mapping[str, Case], rounds: int, *, least_seconds: float = 0.0) -> Times:
        """Times cases in turn; see :func:`~tmkd_plugin.bench.perf.timing.interleaved`."""
        clock = cpu_seconds if self.cpu_time else time.perf_counter
        return interleaved(cases, self.rounds(rounds), least_seconds=least_seconds, wait=self._wait, clock=clock)

    def _wait(self) -> None:
        """Waits until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
