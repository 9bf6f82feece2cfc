from __future__ import annotations

import math

import pytest
import torch

from tmkd_plugin.baselines import rkd as rkd_module
from tmkd_plugin.baselines.rkd import RKD, rkd_loss
from tmkd_plugin.errors import InputError


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def naive_distances(points, squared, eps):
    n = len(points)
    table = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j:
                square = max(sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)), eps)
                table[i][j] = square if squared else math.sqrt(square)
    positive = [d for row in table for d in row if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in row] for row in table]


def naive_angles(points):
    def direction(i, j):
        difference = [b - a for a, b in zip(points[i], points[j], strict=True)]
        length = max(math.sqrt(sum(x * x for x in difference)), 1e-12)
        return [x / length for x in difference]

    n = range(len(points))
    return [
        [[sum(a * b for a, b in zip(direction(i, j), direction(i, k), strict=True)) for k in n] for j in n] for i in n
    ]


def naive_rkd(student, teacher, distance_weight, angle_weight, squared, eps):
    student, teacher = student.flatten(1).tolist(), teacher.flatten(1).tolist()
    n = range(len(student))
    d_s, d_t = naive_distances(student, squared, eps), naive_distances(teacher, squared, eps)
    a_s, a_t = naive_angles(student), naive_angles(teacher)
    distance = sum(huber(d_s[i][j] - d_t[i][j]) for i in n for j in n) / len(n) ** 2
    angle = sum(huber(a_s[i][j][k] - a_t[i][j][k]) for i in n for j in n for k in n) / len(n) ** 3
    return distance_weight * distance + angle_weight * angle


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("eps", [1e-12, 4.0])
def test_equals_the_naive_loops(draw, squared, eps):
    student, teacher = draw(6, 2, 2, seed=1), 3 * draw(6, 7, seed=2)
    expected = naive_rkd(student, teacher, 2.0, 3.0, squared, eps)
    assert rkd_loss(student, teacher, 2.0, 3.0, squared, eps).item() == pytest.approx(expected, rel=1e-12)


def test_the_huber_function_is_linear_beyond_one(draw):
    # One far point makes squared relative distances that differ by more than 1.
    student, teacher = draw(5, 3, seed=1), draw(5, 3, seed=2)
    teacher[0] *= 20
    expected = naive_rkd(student, teacher, 1.0, 0.0, True, 1e-12)
    assert rkd_loss(student, teacher, 1.0, 0.0, True).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_official_ones(draw):
    student, teacher = draw(5, 3, seed=1), draw(5, 4, seed=2)
    assert torch.equal(rkd_loss(student, teacher), rkd_loss(student, teacher, 25.0, 50.0, False, 1e-12))


@pytest.mark.parametrize("size", [6, 17])
def test_gradcheck(draw, size):
    student, teacher = draw(size, 2, seed=1).requires_grad_(), draw(size, 3, seed=2)
    assert torch.autograd.gradcheck(lambda x: rkd_loss(x, teacher), student)


def test_the_teacher_is_a_constant(draw):
    student, teacher = draw(5, 4, seed=1).requires_grad_(), draw(5, 4, seed=2).requires_grad_()
    rkd_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_is_zero_for_a_scaled_shifted_copy(draw):
    teacher = draw(20, 4)
    assert rkd_loss(3 * teacher + 1, teacher).item() == pytest.approx(0, abs=1e-20)


class TestTraps:
    def test_duplicate_rows_are_apart_by_the_root_of_eps(self, draw):
        student = draw(6, 4, seed=1)
        student[4] = student[2]
        expected = naive_rkd(student, draw(6, 4, seed=2), 25.0, 50.0, False, 1e-12)
        assert rkd_loss(student, draw(6, 4, seed=2)).item() == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_duplicate_rows_have_a_bounded_gradient(self, draw, dtype):
        student = draw(20, 6, seed=1, dtype=dtype)
        student[4] = student[2]
        student[17] = student[2]
        student.requires_grad_()
        rkd_loss(student, draw(20, 6, seed=2, dtype=dtype)).backward()
        assert student.grad.abs().max() < 10
        assert student.grad[0].abs().max() > 0

    def test_the_clamp_ends_the_gradient_of_a_distance(self, draw):
        # Two points closer than the root of eps: only their distances from the others move them.
        student = torch.tensor([[0.0, 0.0], [1e-3, 0.0]], dtype=torch.float64, requires_grad=True)
        rkd_loss(student, draw(2, 2), 1.0, 0.0, False, 1.0).backward()
        assert torch.equal(student.grad, torch.zeros_like(student))

    @pytest.mark.parametrize("squared", [False, True])
    def test_the_diagonal_is_exactly_zero(self, draw, squared):
        # A large common offset: |e|² + |e|² - 2 e·e is far from 0 in float32.
        distances = rkd_module._relative_distances(draw(6, 50, dtype=torch.float32) + 1000, squared, 1e-12)
        assert torch.equal(distances.diagonal(), torch.zeros(6))
        off_diagonal = distances.sum() / 30
        assert off_diagonal.item() == pytest.approx(1, rel=1e-5)

    def test_all_rows_equal(self):
        student = torch.ones(5, 3, requires_grad=True)
        loss = rkd_loss(student, torch.ones(5, 4))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(student.grad, torch.zeros(5, 3))

    def test_a_batch_of_one_gives_zero_with_zero_gradient(self, draw):
        student = draw(1, 4).requires_grad_()
        loss = rkd_loss(student, draw(1, 6))
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(student.grad, torch.zeros(1, 4, dtype=torch.float64))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("size", [8, 20])
    def test_half_precision_is_computed_in_float32(self, draw, dtype, size):
        # 300 squared overflows float16.
        student = (300 * draw(size, 12, seed=1)).to(dtype).requires_grad_()
        teacher = (300 * draw(size, 12, seed=2)).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = rkd_loss(student, teacher)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, rkd_loss(student.float(), teacher.float()))
        loss.backward()
        assert student.grad.isfinite().all()

    def test_float64_stays_float64_under_autocast(self, draw):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert rkd_loss(draw(4, 3), draw(4, 3, seed=1)).dtype == torch.float64


def unchunked(monkeypatch):
    monkeypatch.setattr(rkd_module, "ANCHORS_PER_CHUNK", 10**6)


def value_and_gradient(student, teacher):
    student = student.clone().requires_grad_()
    loss = rkd_loss(student, teacher)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("size", [17, 32, 45])
def test_chunks_change_nothing(draw, monkeypatch, size):
    student, teacher = draw(size, 10, seed=1), draw(size, 12, seed=2)
    student[3] = student[size - 1]
    in_chunks = value_and_gradient(student, teacher)
    unchunked(monkeypatch)
    whole = value_and_gradient(student, teacher)
    torch.testing.assert_close(in_chunks[0], whole[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(in_chunks[1], whole[1], rtol=1e-10, atol=1e-15)


def peak_bytes(size):
    """Most bytes that lie in memory together while the loss runs forward and backward, from the allocator's own events."""
    student, teacher = torch.randn(size, 8, generator=torch.Generator().manual_seed(0)), torch.ones(size, 8)
    student.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        rkd_loss(student, teacher).backward()
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_grows_with_the_square_of_the_batch(monkeypatch):
    small, large = peak_bytes(48), peak_bytes(192)
    assert 192 * 192 * 4 < large < 1.3 * 4**2 * small
    unchunked(monkeypatch)
    # The measure does see the cube.
    assert peak_bytes(192) > 4 * large


def test_what_is_saved_for_the_backward_pass_grows_with_the_square(draw):
    def saved_bytes(size):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        student = draw(size, 8, dtype=torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            rkd_loss(student, student.detach() + 1)
        return sum(seen.values())

    assert saved_bytes(160) < 1.2 * 2**2 * saved_bytes(80)


class TestErrors:
    def test_batch_sizes_differ(self, draw):
        with pytest.raises(InputError, match=r"\(4, 3\).*\(5, 3\).*first dimensions must agree"):
            rkd_loss(draw(4, 3), draw(5, 3))

    @pytest.mark.parametrize("shape", [(0, 3), (3,), (3, 0)])
    def test_no_features(self, draw, shape):
        with pytest.raises(InputError, match="the student's are"):
            rkd_loss(draw(*shape), draw(3, 3))

    def test_integers(self, draw):
        with pytest.raises(InputError, match=r"the teacher's are \(3, 3\) of torch.int64"):
            rkd_loss(draw(3, 3), torch.ones(3, 3, dtype=torch.int64))

    @pytest.mark.parametrize("eps", [0, -1e-12, float("nan")])
    def test_eps(self, draw, eps):
        with pytest.raises(InputError, match="eps must be above 0"):
            rkd_loss(draw(3, 3), draw(3, 3), eps=eps)


def test_the_distiller_compares_pooled_features(student, teacher, batch):
    distiller = RKD(
        student, teacher, ce_weight=0.5, rkd_weight=2.0, distance_weight=3.0, angle_weight=4.0, squared=True
    )
    images, labels = batch
    out = distiller.eval()(images, labels)
    with torch.no_grad():
        pooled = [net.pool(torch.relu(net.norm(net.conv(images)))).flatten(1) for net in (student, teacher)]
    expected = 2.0 * rkd_loss(*pooled, 3.0, 4.0, True)
    torch.testing.assert_close(out["rkd"].detach(), expected)
    torch.testing.assert_close(out["cross_entropy"], 0.5 * torch.nn.functional.cross_entropy(student(images), labels))
    torch.testing.assert_close(out["loss"], out["rkd"] + out["cross_entropy"])
