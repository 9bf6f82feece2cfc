"""The naive way of doing TMKD, to tell what this package saves.

It makes the views image by image, runs CLIP's text encoder in every step, and trains each arm by itself. Loss, networks and
the three passes of the teacher are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tmkd_plugin.bench.perf.figure import Figure, plain_figure
from tmkd_plugin.bench.perf.lockstep import one_after_another, side_by_side
from tmkd_plugin.bench.perf.scope import Conditions, Pair, TextTower
from tmkd_plugin.bench.perf.timing import Times
from tmkd_plugin.bench.perf.view_rate import BareLoop
from tmkd_plugin.bench.perf.workload import MEAN, STD, Workload
from tmkd_plugin.enhancer import TMKDEnhancer
from tmkd_plugin.pixels import from_pixels, to_pixels
from tmkd_plugin.prompts import prompts_for
from tmkd_plugin.randomness import forked_random_state
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.views import VIEW_NAMES, ViewSettings


def naive_figures(conditions: Conditions) -> list[Figure]:
    """Times a step of KD + TMKD and a batch through all arms, naively and as this package does it, in turn."""
    scope = conditions.scope
    pair = scope.naive
    workload = Workload(pair, scope.classes, conditions.device)
    encode = text_encoder(scope.text_tower, workload)
    ours, together = workload.arm("kd", enhanced=True), workload.arms(scope.baselines)
    naive, alone = workload.arm("kd", enhanced=True), workload.arms(scope.baselines)
    for arm in [naive, *alone]:
        make_naive(arm, encode)
    times = conditions.times(
        {
            "ours": lambda: workload.step(ours),
            "naive": lambda: workload.step(naive),
            "ours_ten": lambda: side_by_side(workload, together),
            "naive_ten": lambda: one_after_another(workload, alone),
        },
        pair.rounds,
    )
    return judge_naive(pair, len(together), times)


def make_naive(arm: Arm, encode_text: Callable[[], Tensor]) -> None:
    """Makes an arm with TMKD go the naive way from now on; any other is left as it is.

    Args:
        arm: The arm.
        encode_text: Returns the text embeddings (V, K, D).
    """
    enhancer = arm.distiller
    if not isinstance(enhancer, TMKDEnhancer):
        return
    bare = BareLoop(1, ViewSettings())

    def views_image_by_image(images: Tensor) -> list[Tensor]:
        edge, high = bare(to_pixels(images, MEAN, STD).cpu())
        made = [from_pixels(torch.from_numpy(view).to(images.device), MEAN, STD, images.dtype) for view in (edge, high)]
        return [images, *made]

    def encode_first(*_: object) -> None:
        enhancer.heads.text_embeddings.copy_(encode_text())

    enhancer.multi_view.views_of = views_image_by_image  # type: ignore[method-assign]
    enhancer.register_forward_pre_hook(encode_first)


def text_encoder(tower: TextTower, workload: Workload) -> Callable[[], Tensor]:
    """Returns what encodes all prompts with a text tower of CLIP's shape, with random weights: (V, K, D)."""
    from open_clip import tokenize
    from open_clip.transformer import TextTransformer

    with forked_random_state(0, "text tower"):
        network = TextTransformer(
            width=tower.width,
            heads=tower.heads,
            layers=tower.layers,
            output_dim=workload.text.tensor.shape[-1],
        )
    network = network.to(workload.device).eval()
    prompts = [prompt for view in VIEW_NAMES for prompt in prompts_for(workload.class_names, view)]
    tokens = tokenize(prompts).to(workload.device)

    def encode() -> Tensor:
        with torch.no_grad():
            rows: Tensor = network(tokens).float()
            return nn.functional.normalize(rows, dim=-1).view(len(VIEW_NAMES), len(workload.class_names), -1)

    return encode


def judge_naive(pair: Pair, arms: int, times: Times) -> list[Figure]:
    """Turns seconds of ``ours``, ``naive``, ``ours_ten`` and ``naive_ten`` into figures; there are no limits."""
    note = "naive: views image by image, the text encoder in every step, each arm by itself"

    def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
        return [a / b for a, b in zip(slow, fast, strict=True)]

    return [
        plain_figure(
            "naive", f"KD + TMKD step, naive / ours, {pair}", "x", ratios(times["naive"], times["ours"]), note
        ),
        plain_figure(
            "naive", f"{arms} arms, naive / ours, {pair}", "x", ratios(times["naive_ten"], times["ours_ten"]), note
        ),
    ]
