"""What every process of a distributed test runs: ``torchrun ... distributed_cases.py OUT``.

Each case is computed by this process alone on the global batch, and by all processes together; the largest differences of
the loss terms and gradients go to OUT as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.data.dataset import Augmentation, ImageDataset, ImageSplit, make_dataset
from tmkd_plugin.distiller_return import read_return
from tmkd_plugin.errors import NonFiniteLossError
from tmkd_plugin.randomness import forked_random_state, generator_for
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.distributed import Processes, joined_processes, process_count
from tmkd_plugin.training.progress import SilentProgress
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.sharding import sharded_networks
from tmkd_plugin.training.trainer import ArmResult, train_distiller

BASELINES = ("kd", "rkd", "sp", "catkd", "tekap")
CLASSES = ["heron", "tern", "wren", "jay"]
BATCHES = (6, 5, 1)
"""An even one, an uneven one, and one that leaves the second of two processes without an image."""


class Net(nn.Module):
    """A network without batch statistics; ``returns`` is how it answers."""

    def __init__(self, width: int, seed: int, returns: str = "logits") -> None:
        super().__init__()
        with forked_random_state(seed, "test network"):
            self.conv = nn.Conv2d(3, width, 3, padding=1)
            self.norm = nn.GroupNorm(2, width)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(width, len(CLASSES))
        self.returns = returns

    def forward(self, images: Tensor):
        features = torch.relu(self.norm(self.conv(images)))
        pooled = self.pool(features).flatten(1)
        logits = self.fc(pooled)
        return logits if self.returns == "logits" else (logits, {"feats": [features], "pooled_feat": pooled})


class OwnForm(nn.Module):
    """A distiller as users write them: no base class, relations of the whole batch, the student called twice."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, images: Tensor, labels: Tensor):
        logits, extra = self.student(images)
        again, _ = self.student(images.flip(3))
        with torch.no_grad():
            taught, _ = self.teacher(images)
        relations = (torch.cdist(extra["pooled_feat"], extra["pooled_feat"]) - torch.cdist(taught, taught)).square()
        return {
            "loss": (ce := nn.functional.cross_entropy(logits + again, labels)) + (rel := relations.mean()),
            "output": logits,
            "ce": ce,
            "relations": rel,
        }


class LooksInside(OwnForm):
    """A distiller with a hook of its own inside the student, which sees a part of the batch."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.student.pool.register_forward_hook(lambda module, inputs, output: seen.append(output))
        self.student(images)
        hook.remove()
        return seen[0].mean()


def batch(size: int) -> tuple[Tensor, Tensor]:
    draw = generator_for(3, "test batch", size)
    images = torch.randint(0, 256, (size, 3, 8, 8), generator=draw).double() / 255
    return images, torch.randint(len(CLASSES), (size,), generator=draw)


def distiller_of(name: str, enhanced: bool) -> nn.Module:
    """A distiller in float64; every draw is a function of its seeds."""
    if name == "own form":
        distiller: nn.Module = OwnForm(Net(4, 1, "pair").double(), Net(6, 2, "pair").double())
    else:
        distiller = build_baseline(name, Net(4, 1).double(), Net(6, 2).double(), input_size=8)
    if enhanced:
        text = torch.randn(3, len(CLASSES), 5, generator=generator_for(0, "test text"))
        distiller = TMKDEnhancer(distiller, CLASSES, text=nn.functional.normalize(text, dim=2), logit_weight=1.0)
    return distiller.double().train()


def arm_of(distiller: nn.Module, processes: Processes | None, **acceleration) -> Arm:
    settings = TrainingSettings(epochs=1, warmup_epochs=0, decay_epochs=(), learning_rate=0.05)
    arm = Arm("case", distiller, settings, seed=0, steps_per_epoch=9, acceleration=Acceleration(**acceleration),
              processes=processes)  # fmt: skip
    arm.begin_epoch(1)
    return arm


def largest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def compare(name: str, enhanced: bool, size: int, processes: Processes) -> dict[str, float]:
    """The largest differences of loss terms and gradients, and the largest gradient."""
    alone, together = distiller_of(name, enhanced), distiller_of(name, enhanced)
    images, labels = batch(size)
    expected = read_return(alone(images, labels))
    expected.loss.backward()
    with sharded_networks(together, processes):
        found = read_return(together(images, labels))
        found.loss.backward()
    trained = [parameter for parameter in together.parameters() if parameter.requires_grad]
    processes.check_same(name, found.loss, trained)
    processes.average_gradients(trained)
    gradients = [
        {key: parameter.grad for key, parameter in module.named_parameters() if parameter.grad is not None}
        for module in (alone, together)
    ]
    terms = [{**result.terms, "loss": result.loss, "output": result.output} for result in (expected, found)]
    assert "forward" not in vars(together.student)
    return {
        "loss": largest(*terms), "gradient": largest(*gradients),
        "scale": max(float(g.abs().max()) for g in gradients[0].values()),
        "tensors": len(gradients[0]),
    }  # fmt: skip


def steps(processes: Processes, **acceleration) -> float:
    """The largest difference of the weights after four steps with uneven batches."""
    distillers = distiller_of("rkd", True), distiller_of("rkd", True)
    for distiller, group in zip(distillers, (None, processes), strict=True):
        arm = arm_of(distiller, group, **acceleration)
        with sharded_networks(distiller, group):
            for size in (6, 5, 5, 3):
                arm.step(*batch(size))
    return largest(*({k: v for k, v in d.state_dict().items() if "extra" not in k} for d in distillers))


def compiled(processes: Processes) -> float:
    """The largest difference of the weights after two steps where the networks are compiled in place."""
    distillers = distiller_of("sp", True), distiller_of("sp", True)
    Acceleration(compile="eager").apply(distillers[1])
    for distiller, group in zip(distillers, (None, processes), strict=True):
        arm = arm_of(distiller, group)
        with sharded_networks(distiller, group):
            for size in (6, 5):
                arm.step(*batch(size))
    return largest(*({k: v for k, v in d.state_dict().items() if "extra" not in k} for d in distillers))


def dropout_masks(processes: Processes) -> list[list[float]]:
    """What dropout leaves of ones, for the rows of each process, in two calls."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    holder = nn.Module()
    holder.student = network
    with forked_random_state(0, "test dropout"), sharded_networks(holder, processes):
        return [network(torch.ones(4, 3, 4, 4)).flatten().tolist() for _ in range(2)]


def refused(processes: Processes) -> str:
    arm = arm_of(LooksInside(Net(4, 1, "pair").double(), Net(6, 2, "pair").double()), processes)
    with sharded_networks(arm.distiller, processes):
        try:
            arm.step(*batch(6))
        except ValueError as error:
            return str(error)
    return "accepted"


def weights_from_the_first(processes: Processes) -> float:
    """Networks that differ between processes start as those of the first one."""
    distiller = distiller_of("kd", False)
    with torch.no_grad():
        for parameter in distiller.student.parameters():
            parameter.add_(processes.rank)
    before = {name: value.clone() for name, value in distiller.student.named_parameters()}
    arm = arm_of(distiller, processes)
    after = dict(arm.student.named_parameters())
    return largest({n: before[n] - processes.rank for n in before}, after)


def dataset_of(train: int) -> ImageDataset:
    """Noise in which one colour channel, the class, is brighter."""

    def split(name: str, count: int) -> ImageSplit:
        draw = generator_for(0, f"test images {name}")
        labels = torch.randint(len(CLASSES), (count,), generator=draw)
        images = torch.randint(0, 200, (count, 3, 8, 8), generator=draw)
        images[torch.arange(count), labels.clamp(max=2)] += 30
        return ImageSplit(images.clamp(max=255).to(torch.uint8), labels, torch.arange(count))

    return make_dataset(
        "colours", CLASSES, train=split("train", train), validation=split("validation", 9), test=split("test", 11),
        augmentation=Augmentation(crop_padding=1, flip=True),
    )  # fmt: skip


class Interrupts(SilentProgress):
    """Interrupts a run after some steps."""

    def __init__(self, steps: int | None) -> None:
        self._left = steps

    def step(self, arm: str) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt


def train(
    folder: Path, processes: Processes | None, *, batch_norm: bool = False, stop: int | None = None, **settings: Any
) -> ArmResult | None:
    """Trains SP + TMKD; the processes that don't write are given a folder of their own, which must never appear."""
    student, teacher = Net(4, 1), Net(6, 2)
    if batch_norm:
        student.norm = nn.BatchNorm2d(4)
    baseline = build_baseline("sp", student, teacher, input_size=8)
    dataset = dataset_of(17)
    text = torch.eye(4).expand(3, 4, 4)
    distiller = TMKDEnhancer(baseline, CLASSES, text=text, mean=dataset.mean, std=dataset.std)
    settings = {
        "epochs": 2,
        "batch_size": 5,
        "learning_rate": 0.01,
        "warmup_epochs": 0,
        "decay_epochs": (1,),
        **settings,
    }
    checkpoints = Checkpoints(folder, "a run", every_seconds=0)
    own = folder if processes is None or processes.is_main else folder.with_name(f"{folder.name}_of_another")
    try:
        return train_distiller(
            distiller, dataset, TrainingSettings(**settings), seed=0, folder=own, checkpoints=checkpoints,
            progress=Interrupts(stop), processes=processes,
        )  # fmt: skip
    except KeyboardInterrupt:
        return None


def trained(out: Path, processes: Processes) -> dict[str, Any]:
    """Runs alone and together, stopped and gone on with; the files are for the test to look at."""
    alone = train(out / f"alone{processes.rank}", None)
    together = train(out / "together", processes)
    for stop in (3, 3):  # in the middle of both epochs; the second time after it has been gone on with
        assert train(out / "stopped", processes, stop=stop) is None
        processes.barrier()
    resumed = train(out / "stopped", processes)
    with_statistics = train(out / "batch_norm", processes, batch_norm=True)
    try:
        train(out / "diverged", processes, learning_rate=1e30)
        diverged = "no"
    except NonFiniteLossError as error:
        processes.fail_together(str(error))
        diverged = str(error)
    return {
        "alone": alone.history, "together": together.history, "resumed": resumed.history, "top1": with_statistics.last.top1,
        "best_top1": with_statistics.best.top1, "diverged": diverged, "count": process_count(),
    }  # fmt: skip


def main(out: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with joined_processes() as processes:
        assert processes is not None
        cases = [
            (name, enhanced, size)
            for name in (*BASELINES, "own form")
            for enhanced in (False, True)
            for size in BATCHES
        ]
        found = {
            "differences": [
                {"name": n, "enhanced": e, "size": s, **compare(n, e, s, processes)}
                for n, e, s in cases
                if not (n == "own form" and s == 1)
            ],
            "steps": steps(processes),
            "clipped": steps(processes, clip_norm=0.5),
            "accumulated": steps(processes, accumulation_steps=2),
            "compiled": compiled(processes),
            "dropout": dropout_masks(processes),
            "refused": refused(processes),
            "start": weights_from_the_first(processes),
            "trained": trained(Path(out), processes),
        }
        Path(out, f"found{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
