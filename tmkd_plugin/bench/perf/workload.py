"""The batch, the networks and the arms that are measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.bench.perf.photographs import photographs
from tmkd_plugin.bench.perf.scope import Pair
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.pixels import from_pixels
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.text_teacher import TextEmbeddings
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.precision import Precision
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.teachers import Classifier
from tmkd_plugin.views import VIEW_NAMES
from tmkd_plugin.zoo import build_network

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TEXT_WIDTH = 512  # of CLIP ViT-B/32
_SEED = 0
_STEPS_PER_EPOCH = 1_000_000  # so many that no schedule changes anything


class Workload:
    """One teacher, one batch, and as many arms as are asked for.

    Args:
        pair: The networks and the size of the batch.
        classes: Number of classes.
        device: Where everything is.
    """

    def __init__(self, pair: Pair, classes: int, device: torch.device) -> None:
        self.pair, self.classes, self.device = pair, classes, device
        # What makes a GPU fast is on there; on a CPU everything is as in a plain run.
        on_gpu = device.type == "cuda"
        self.acceleration = Acceleration(precision="bf16", channels_last=True) if on_gpu else Acceleration()
        self._precision = Precision(self.acceleration.precision, device)
        pixels = photographs(pair.batch, pair.image_size)
        self.images = from_pixels(pixels, MEAN, STD).to(device)
        generator = generator_for(_SEED, "measured labels")
        self.labels = torch.randint(classes, (pair.batch,), generator=generator).to(device)
        self.class_names = [f"class {number}" for number in range(classes)]
        embeddings = torch.randn(len(VIEW_NAMES), classes, TEXT_WIDTH, generator=generator)
        self.text = TextEmbeddings(
            nn.functional.normalize(embeddings, dim=-1), "per view", "random", tuple(self.class_names), VIEW_NAMES
        )
        self.teacher = build_network(pair.teacher, classes, seed=_SEED).to(device)
        _settle_batch_norm(self.teacher, self.images)
        self.teacher.eval().requires_grad_(False)

    def run_teacher(self) -> Tensor:
        """Makes one pass of the bare teacher: T of the limits."""
        with torch.no_grad(), self._precision.forward_context():
            logits: Tensor = self.teacher(self.images)
            return logits

    def student_alone(self) -> Arm:
        """Returns an arm that learns from labels alone: a step of it is S of the limits."""
        return self._arm("student", Classifier(self._student()))

    def arm(self, baseline: str, *, enhanced: bool) -> Arm:
        """Returns a fresh arm of a baseline, alone or with TMKD, under the one teacher."""
        settings = {"input_size": self.pair.image_size} | ({"seed": _SEED} if baseline == "tekap" else {})
        distiller = build_baseline(baseline, self._student(), self.teacher, **settings)
        if enhanced:
            distiller = TMKDEnhancer(
                distiller,
                self.class_names,
                text=self.text,
                mean=MEAN,
                std=STD,
                seed=_SEED,
                input_size=self.pair.image_size,
            )
        return self._arm(f"{baseline}+tmkd" if enhanced else baseline, distiller)

    def arms(self, baselines: Sequence[str]) -> list[Arm]:
        """Returns two fresh arms for each baseline: alone and with TMKD."""
        return [self.arm(baseline, enhanced=enhanced) for baseline in baselines for enhanced in (False, True)]

    def step(self, arm: Arm) -> None:
        """Trains an arm on the batch."""
        arm.step(self.images, self.labels)

    def _student(self) -> nn.Module:
        return build_network(self.pair.student, self.classes, seed=_SEED)

    def _arm(self, name: str, distiller: nn.Module) -> Arm:
        settings = TrainingSettings(batch_size=self.pair.batch, learning_rate=1e-3, warmup_epochs=0)
        arm = Arm(
            name,
            distiller,
            settings,
            seed=_SEED,
            steps_per_epoch=_STEPS_PER_EPOCH,
            device=self.device,
            acceleration=self.acceleration,
        )
        self.acceleration.apply(arm.distiller)
        arm.begin_epoch(1)
        return arm


def _settle_batch_norm(network: nn.Module, images: Tensor) -> None:
    """Gives batch norm the statistics of a batch: those it starts with let the activations of deep networks explode."""
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
