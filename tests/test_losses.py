"""Each loss term against naive loops in float64, by gradcheck, and by the properties that its equation has."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tmkd_plugin.errors import InputError
from tmkd_plugin.losses import feature_kl_loss, kd_loss, perturbed_features, text_contrast_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_softmax(row: list[float], temperature: float) -> list[float]:
    largest = max(row)
    powers = [math.exp((value - largest) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def naive_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = naive_softmax(s_row, temperature), naive_softmax(t_row, temperature)
        total += sum(p_k * (math.log(p_k) - math.log(q_k)) for p_k, q_k in zip(p, q, strict=True))
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_logit_and_feature_kl_are_the_naive_sums(temperature: float) -> None:
    student, teacher = draw(5, 7), draw(5, 7, seed=1) * 3
    expected = naive_kl(student, teacher, temperature)
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * expected, rel=1e-12)
    assert float(feature_kl_loss(student, teacher, temperature)) == pytest.approx(temperature**2 * expected, rel=1e-12)
    assert float(feature_kl_loss(student, teacher, temperature, False)) == pytest.approx(expected, rel=1e-12)


def test_text_contrast_is_the_naive_sum() -> None:
    embeddings, texts, labels = draw(5, 6), draw(4, 6, seed=1), torch.tensor([0, 3, 1, 1, 2])

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    expected = 0.0
    for row, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        scores = [math.exp(cosine(row, text) / 0.07) for text in texts.tolist()]
        expected -= math.log(scores[label] / sum(scores))
    loss = text_contrast_loss(embeddings, texts, labels, 0.07)
    assert float(loss) == pytest.approx(expected / 5, rel=1e-10)
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    assert float(text_contrast_loss(embeddings, texts, one_hot, 0.07)) == pytest.approx(expected / 5, rel=1e-10)


def test_text_contrast_of_mixed_labels_is_linear_in_them() -> None:
    embeddings, texts = draw(3, 6), draw(4, 6, seed=1)
    first, second = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 0])
    mixed = 0.3 * torch.nn.functional.one_hot(first, 4).double() + 0.7 * torch.nn.functional.one_hot(second, 4).double()
    expected = 0.3 * text_contrast_loss(embeddings, texts, first, 0.1) + 0.7 * text_contrast_loss(
        embeddings, texts, second, 0.1
    )
    torch.testing.assert_close(text_contrast_loss(embeddings, texts, mixed, 0.1), expected)


def test_gradients_are_the_numerical_ones() -> None:
    student, teacher = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).requires_grad_()
    texts, labels = draw(4, 5, seed=2).requires_grad_(), torch.tensor([0, 3, 2])
    assert gradcheck(lambda s, t: kd_loss(s, t, 4.0), (student, teacher))
    noise = draw(3, 5, seed=3)
    assert gradcheck(lambda s, t: feature_kl_loss(s, perturbed_features(t, noise, 0.1), 4.0), (student, teacher))
    assert gradcheck(lambda s, t: text_contrast_loss(s, t, labels, 0.5), (student, texts))


@given(st.integers(1, 6), st.integers(2, 9), st.floats(0.5, 10), st.integers(0, 10_000))
def test_kl_is_zero_for_equal_sides_and_never_negative(batch: int, width: int, temperature: float, seed: int) -> None:
    student, teacher = draw(batch, width, seed=seed), draw(batch, width, seed=seed + 1)
    assert float(kd_loss(student, student, temperature)) == pytest.approx(0, abs=1e-12)
    assert float(kd_loss(student, teacher, temperature)) >= 0
    shifted = kd_loss(student + 5.0, teacher - 3.0, temperature)
    torch.testing.assert_close(shifted, kd_loss(student, teacher, temperature))


def test_no_noise_and_a_student_equal_to_the_fused_features_give_no_loss() -> None:
    fused = draw(4, 6)
    assert float(feature_kl_loss(fused, perturbed_features(fused, draw(4, 6, seed=1), 0.0), 4.0)) == 0


def test_noise_is_added_with_its_scale() -> None:
    fused, noise = draw(4, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(perturbed_features(fused, noise, 0.1), fused + 0.1 * noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = draw(4, 6).to(dtype), draw(4, 6, seed=1).to(dtype)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = [kd_loss(student, teacher, 4.0), text_contrast_loss(student, teacher, labels, 0.07)]
    student, teacher = student.float(), teacher.float()
    wholes = [kd_loss(student, teacher, 4.0), text_contrast_loss(student, teacher, labels, 0.07)]
    for half, whole in zip(halves, wholes, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, whole)


def test_classes_that_the_teacher_masks_out_do_no_harm() -> None:
    student, teacher = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    teacher[:, 2] = -math.inf
    kept = [0, 1, 3, 4]
    loss = kd_loss(student, teacher, 4.0)
    log_q = torch.log_softmax(student / 4, dim=1)[:, kept]
    p = torch.softmax(teacher[:, kept] / 4, dim=1)
    torch.testing.assert_close(loss, 16 * (p * (p.log() - log_q)).sum(1).mean())
    loss.backward()
    assert student.grad.isfinite().all()


def test_unusable_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\) and \(2, 4\)"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4), 4.0)
    with pytest.raises(InputError, match="above 0, but is 0"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)
    with pytest.raises(InputError, match="same width"):
        text_contrast_loss(torch.zeros(2, 3), torch.zeros(5, 4), torch.tensor([0, 1]), 0.07)
