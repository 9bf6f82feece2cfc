"""Precision, parts of a batch, clipping and compilation, in one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tmkd_plugin.baselines import build_baseline
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.acceleration import Acceleration
from tmkd_plugin.training.arm import Arm
from tmkd_plugin.training.checkpoint import Checkpoints
from tmkd_plugin.training.precision import Precision
from tmkd_plugin.training.settings import TrainingSettings
from tmkd_plugin.training.trainer import train_distiller

SETTINGS = TrainingSettings(epochs=1, warmup_epochs=0, decay_epochs=(), learning_rate=0.1)


def network(width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.GroupNorm(2, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, 3),
        )  # fmt: skip


def arm_of(baseline: str, **acceleration) -> Arm:
    distiller = build_baseline(baseline, network(4, 1), network(6, 2), input_size=8)
    arm = Arm("arm", distiller, SETTINGS, seed=0, steps_per_epoch=5, acceleration=Acceleration(**acceleration))
    arm.begin_epoch(1)
    return arm


def batch(size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(size)
    return torch.randn(size, 3, 8, 8, generator=draw), torch.randint(3, (size,), generator=draw)


def gradients(arm: Arm, size: int = 7) -> torch.Tensor:
    arm.step(*batch(size))
    return torch.cat([parameter.grad.flatten() for parameter in arm.student.parameters()])


def weights(arm: Arm) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in arm.student.parameters()])


@pytest.mark.parametrize("baseline", ["kd", "catkd"])
@pytest.mark.parametrize("parts", [2, 3, 50])
def test_parts_give_the_gradient_of_the_whole_batch_where_the_loss_is_a_mean(baseline, parts):
    whole, in_parts = arm_of(baseline), arm_of(baseline, accumulation_steps=parts)
    expected = gradients(whole)
    torch.testing.assert_close(gradients(in_parts), expected, rtol=1e-4, atol=1e-6)
    meters = [arm._meter.means() | {"top1": arm._meter.top1()} for arm in (whole, in_parts)]
    assert meters[1] == pytest.approx(meters[0], rel=1e-5)
    assert in_parts.steps_done == 1


def test_relations_between_images_of_different_parts_are_not_seen():
    """Documented: accumulation is no bigger batch for RKD and SP. If it were, this would have to change."""
    whole, in_parts = (arm_of("sp", accumulation_steps=parts) for parts in (1, 2))
    assert (gradients(whole) - gradients(in_parts)).abs().max() > 1e-3


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_the_norm_of_the_gradients_is_clipped(limit):
    free, clipped = gradients(arm_of("kd")), gradients(arm_of("kd", clip_norm=limit))
    norm = free.norm()
    expected = free * min(1.0, limit / (float(norm) + 1e-6))
    torch.testing.assert_close(clipped, expected)
    assert 1e-3 < norm < 1e6


def test_half_precision_computes_near_float32_and_keeps_its_weights_in_float32():
    exact, half = arm_of("kd"), arm_of("kd", precision="bf16")
    difference = (gradients(exact) - gradients(half)).abs().max()
    assert 0 < difference < 0.05 * gradients(exact).abs().max()
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.float32}


def test_a_student_that_ran_without_gradient_first_still_gets_its_gradient():
    class LooksFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = network(4, 1)

        def forward(self, images, labels):
            with torch.no_grad():
                self.student(images)
            return nn.functional.cross_entropy(self.student(images), labels)

    arm = Arm("arm", LooksFirst(), SETTINGS, seed=0, steps_per_epoch=5, acceleration=Acceleration(precision="bf16"))
    arm.begin_epoch(1)
    assert gradients(arm).abs().max() > 0
    assert all(parameter.grad is not None for parameter in arm.student.parameters())


def test_a_float16_step_that_overflows_is_left_out_and_the_scale_is_in_the_checkpoint():
    """float16 is for GPUs; the loss scaler behind it works on a CPU too, where it can be tested."""
    arm = arm_of("kd", precision="fp16")
    before = weights(arm)
    arm._precision._scaler._init_scale = 2.0**100  # overflows
    arm.step(*batch())
    assert torch.equal(weights(arm), before)
    scale = arm.snapshot().state["precision"]["scale"]
    assert scale == 2.0**99
    arm._precision._scaler.update(1024.0)
    arm.step(*batch())
    assert not torch.equal(weights(arm), before)
    other = arm_of("kd", precision="fp16")
    other.restore(copy.deepcopy(arm.snapshot()))
    for each in (arm, other):
        each.step(*batch(5))
    assert torch.equal(weights(arm), weights(other))
    assert other._precision.state() == arm._precision.state()
    assert arm._precision.state()["scale"] == 1024.0


def test_float16_gradients_are_clipped_at_their_own_size_not_at_the_scaled_one():
    limit = 0.01
    clipped = gradients(arm_of("kd", precision="fp16", clip_norm=limit))
    assert float(clipped.norm()) == pytest.approx(limit, rel=1e-2)


def test_float32_is_what_it_was_without_all_this(dataset, settings, small_distiller, tmp_path):
    results = [
        train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path / name, acceleration=acceleration)
        for name, acceleration in (("plain", None), ("off", Acceleration()))
    ]
    assert results[0].history == results[1].history
    files = [(tmp_path / name / "student_last.safetensors").read_bytes() for name in ("plain", "off")]
    assert files[0] == files[1]


def test_a_run_in_parts_and_bf16_resumes_to_the_same_bits(dataset, settings, small_distiller, tmp_path):
    acceleration = Acceleration(precision="bf16", accumulation_steps=2, clip_norm=1.0)

    def train(name, progress=None):
        checkpoints = Checkpoints(tmp_path / name, every_seconds=0)
        train_distiller(
            small_distiller(), dataset, settings, seed=0, folder=tmp_path / name, checkpoints=checkpoints,
            progress=progress, acceleration=acceleration,
        )  # fmt: skip
        return (tmp_path / name / "student_last.safetensors").read_bytes()

    class Stops:
        steps = 0

        def begin(self, *_, **__): ...
        def epoch(self, *_, **__): ...
        def end(self, *_, **__): ...
        def step(self, arm):
            self.steps += 1
            if self.steps == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("stopped", Stops())
    assert train("stopped") == train("whole")


@pytest.mark.parametrize("baseline", ["kd", "sp"])
def test_compiled_networks_train_to_the_same_weights(baseline):
    plain, compiled = arm_of(baseline), arm_of(baseline)
    Acceleration(compile="aot_eager").apply(compiled.distiller)
    for arm in (plain, compiled):
        for size in (7, 7, 4):
            arm.step(*batch(size))
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=1e-4, atol=1e-5)


def test_each_run_is_compiled_from_scratch(monkeypatch):
    """torch stops compiling a class of networks, with a line in the log, after eight versions of it."""
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    for _ in range(2):
        Acceleration(compile="eager").apply(arm_of("kd").distiller)
    Acceleration().apply(arm_of("kd").distiller)
    assert len(resets) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp16"}, "fp16 needs a GPU, but device=cpu: use bf16 or fp32"),
        ({"precision": "bf61"}, "Unknown precision 'bf61'. Did you mean 'bf16'"),
        ({"channels_last": True}, "channels_last is for GPUs"),
        ({"sync_batch_norm": True}, "sync_batch_norm is for GPUs.*group norm"),
        ({"accumulation_steps": 0}, "accumulation_steps must be a whole number at least 1"),
        ({"clip_norm": 0.0}, "clip_norm must be a number above 0"),
        ({"compile": "inducto"}, "Unknown compile backend 'inducto'. Did you mean 'inductor'"),
    ],
)
def test_what_a_cpu_does_not_have_is_refused_by_name(values, message, dataset, settings, small_distiller, tmp_path):
    distiller = small_distiller()
    before = copy.deepcopy(distiller.state_dict())
    with pytest.raises(InputError, match=message):
        train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path, acceleration=Acceleration(**values))
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_precision_without_a_scaler_has_no_state():
    assert Precision("bf16", torch.device("cpu")).state() is None
