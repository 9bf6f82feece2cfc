"""What is asked on a GPU alone: images a second, the share of its bf16 rate, and the rate of the exact Canny."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.photographs import photographs
from tmkd_plugin.bench.perf.scope import Conditions, Pair
from tmkd_plugin.bench.perf.workload import Workload
from tmkd_plugin.canny import canny, canny_torch

_LEAST_SECONDS = 0.2
_GPU_BATCH = 256
_MATRIX = 8192  # side of the matrices whose product gives the rate that counts as the peak
_CANNY_ROUNDS = 15
_CANNY = ((32, 256), (224, 64))  # side, batch


def gpu_figures(conditions: Conditions) -> list[Figure]:
    """Measures the teacher's pass and the Canny operator; nothing where there is no GPU."""
    if conditions.device.type != "cuda":
        return []
    figures = []
    for pair in conditions.scope.steps:
        figures += _teacher_figures(pair, conditions)
    for size, batch in _CANNY:
        figures += _canny_figures(size, batch, conditions)
    return figures


def _teacher_figures(pair: Pair, conditions: Conditions) -> list[Figure]:
    large = Pair(pair.teacher, pair.student, pair.image_size, _GPU_BATCH, pair.rounds)
    workload = Workload(large, conditions.scope.classes, conditions.device)
    student, enhanced = workload.student_alone(), workload.arm("kd", enhanced=True)
    matrix = torch.randn(_MATRIX, _MATRIX, device=conditions.device, dtype=torch.bfloat16)
    times = conditions.times(
        {
            "teacher": workload.run_teacher,
            "student": lambda: workload.step(student),
            "enhanced": lambda: workload.step(enhanced),
            "matmul": lambda: matrix @ matrix,
        },
        pair.rounds,
        least_seconds=_LEAST_SECONDS,
    )
    operations = _operations(workload.run_teacher)
    shares = [
        100 * (operations / teacher) / (2 * _MATRIX**3 / matmul)
        for teacher, matmul in zip(times["teacher"], times["matmul"], strict=True)
    ]
    rates = {name: [_GPU_BATCH / seconds for seconds in values] for name, values in times.items()}
    note = f"bf16, channels_last; the rate of a {_MATRIX} x {_MATRIX} bf16 matrix product counts as the peak"
    return [
        plain_figure("gpu", f"the teacher's share of the bf16 peak, {large}", "%", shares, note),
        plain_figure("gpu", f"the teacher's forward pass, {large}", "images/s", rates["teacher"]),
        plain_figure("gpu", f"the student's step, {large}", "images/s", rates["student"]),
        plain_figure("gpu", f"KD + TMKD step, {large}", "images/s", rates["enhanced"]),
    ]


def _operations(run: Callable[[], Tensor]) -> int:
    """Returns the floating-point operations of a call, a multiplication and an addition counting as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _canny_figures(size: int, batch: int, conditions: Conditions) -> list[Figure]:
    pixels = photographs(batch, size)
    images = pixels.to(conditions.device)
    differing = int((canny_torch(images).cpu() != canny(pixels)).sum())
    cases: dict[str, Callable[[], object]] = {"ours": lambda: canny_torch(images)}
    kornia = _kornia()
    if kornia is not None:
        unit = images.float() / 255
        # Channel by channel like ours, and without the blur that OpenCV does not have.
        planes = unit.flatten(0, 1)[:, None]
        low, high = 100 / 255, 200 / 255
        cases["kornia"] = lambda: kornia.filters.canny(planes, low, high, kernel_size=(1, 1))
    times = conditions.times(cases, _CANNY_ROUNDS, least_seconds=_LEAST_SECONDS)
    what = f"{size} px, batch {batch}"
    figures = [
        judged_figure("gpu", f"pixels where Canny differs from OpenCV, {what}", "pixels", [differing], "at most", 0),
        plain_figure("gpu", f"exact Canny, {what}", "images/s", [batch / seconds for seconds in times["ours"]]),
    ]
    if "kornia" in times:
        ratios = [theirs / ours for theirs, ours in zip(times["kornia"], times["ours"], strict=True)]
        note = "kornia's is another operator: it has the L2 norm alone"
        figures.append(plain_figure("gpu", f"exact Canny / kornia's, images a second, {what}", "x", ratios, note))
    return figures


def _kornia() -> ModuleType | None:
    try:
        return importlib.import_module("kornia")
    except ImportError:
        return None
