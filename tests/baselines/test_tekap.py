from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin.baselines.kd import kd_loss
from tmkd_plugin.baselines.tekap import TeKAP, tekap_loss
from tmkd_plugin.errors import InputError
from tmkd_plugin.randomness import generator_for


def naive_kl(student, teacher, temperature):
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(z / temperature) for z in row] for row in (z_s, z_t))
        q, p = ([x / sum(row) for x in row] for row in (q, p))
        total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_equals_the_naive_loops(draw, reduce):
    student, teacher, noise = draw(4, 5, seed=1), draw(4, 5, seed=2), draw(2, 4, 5, seed=3)
    copies = [naive_kl(student, 0.7 * teacher + 0.3 * noise[n], 2.0) for n in range(2)]
    expected = naive_kl(student, teacher, 2.0) + 0.6 * sum(copies) / (2 if reduce == "mean" else 1)
    loss = tekap_loss(student, teacher, 2.0, noise, 2, 0.3, 0.6, reduce=reduce)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_official_ones(draw):
    student, teacher, noise = draw(4, 5, seed=1), draw(4, 5, seed=2), draw(3, 4, 5, seed=3)
    defaults = tekap_loss(student, teacher, 4.0, noise)
    assert torch.equal(defaults, tekap_loss(student, teacher, 4.0, noise, 3, 0.1, 0.8, reduce="sum"))


def test_gradcheck(draw):
    student = draw(4, 5, seed=1).requires_grad_()
    teacher, noise = draw(4, 5, seed=2), draw(3, 4, 5, seed=3)
    assert torch.autograd.gradcheck(lambda x: tekap_loss(x, teacher, 4.0, noise), student)


def test_without_noise_it_weighs_3_4_times_kd(draw):
    student, teacher = draw(4, 5, seed=1), draw(4, 5, seed=2)
    torch.testing.assert_close(tekap_loss(student, teacher, 4.0, noise_mix=0.0), 3.4 * kd_loss(student, teacher, 4.0))


def test_no_copies_is_kd(draw):
    student, teacher = draw(4, 5, seed=1), draw(4, 5, seed=2)
    assert torch.equal(tekap_loss(student, teacher, 4.0, n_augmented=0), kd_loss(student, teacher, 4.0))


class TestNoise:
    def test_is_drawn_from_the_generator(self, draw):
        student, teacher = draw(4, 5, seed=1), draw(4, 5, seed=2)
        noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(7)).double()
        drawn = tekap_loss(student, teacher, 4.0, n_augmented=2, generator=torch.Generator().manual_seed(7))
        assert torch.equal(drawn, tekap_loss(student, teacher, 4.0, noise, 2))

    def test_never_touches_the_global_generator(self, draw):
        before = torch.get_rng_state()
        first = tekap_loss(draw(4, 5, seed=1), draw(4, 5, seed=2), 4.0)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, tekap_loss(draw(4, 5, seed=1), draw(4, 5, seed=2), 4.0))

    def test_is_the_same_for_every_dtype(self, draw):
        student, teacher = draw(4, 5, seed=1), draw(4, 5, seed=2)
        single = tekap_loss(student.float(), teacher.float(), 4.0)
        torch.testing.assert_close(single.double(), tekap_loss(student, teacher, 4.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(draw, dtype):
    student, teacher = draw(4, 50, seed=1).to(dtype).requires_grad_(), draw(4, 50, seed=2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tekap_loss(student, teacher, 4.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, tekap_loss(student.float(), teacher.float(), 4.0))
    loss.backward()
    assert student.grad.isfinite().all()


class TestErrors:
    def test_shape_of_the_noise(self, draw):
        with pytest.raises(InputError, match=r"\(N, B, K\) where the logits are \(4, 5\), but is \(4, 5\)"):
            tekap_loss(draw(4, 5), draw(4, 5), 4.0, draw(4, 5))

    def test_values(self, draw):
        logits = draw(4, 5)
        with pytest.raises(InputError, match="n_augmented must be a whole number at least 0, but is -1"):
            tekap_loss(logits, logits, 4.0, n_augmented=-1)
        with pytest.raises(InputError, match=r"noise_mix must be a number at least 0 and at most 1, but is 1.5"):
            tekap_loss(logits, logits, 4.0, noise_mix=1.5)
        with pytest.raises(InputError, match=r"Unknown reduce 'meen'. Did you mean 'mean'"):
            tekap_loss(logits, logits, 4.0, reduce="meen")
        with pytest.raises(InputError, match="temperature must be above 0"):
            tekap_loss(logits, logits, 0.0)


class TestDistiller:
    def test_terms(self, student, teacher, batch):
        images, labels = batch
        distiller = TeKAP(
            student, teacher, temperature=2.0, ce_weight=0.3, tekap_weight=0.6, n_augmented=2, seed=5
        ).eval()
        out = distiller(images, labels)
        generator = generator_for(5, "tekap noise", 0)
        expected = 0.6 * tekap_loss(student(images), teacher(images), 2.0, n_augmented=2, generator=generator)
        torch.testing.assert_close(out["tekap"], expected)
        torch.testing.assert_close(out["cross_entropy"], 0.3 * F.cross_entropy(student(images), labels))
        torch.testing.assert_close(out["loss"], out["tekap"] + out["cross_entropy"])

    def test_noise_differs_from_step_to_step_and_with_the_seed(self, tiny_net, batch):
        def losses(seed, steps=2):
            # Without batch norm's momentum the student answers the same each time.
            distiller = TeKAP(tiny_net(seed=1), tiny_net(seed=2), seed=seed)
            return [distiller(*batch)["tekap"].item() for _ in range(steps)]

        first, second = losses(0)
        assert first != second
        assert losses(0) == [first, second]
        assert losses(1)[0] != first

    def test_evaluation_does_not_count_as_a_step(self, student, teacher, batch):
        distiller = TeKAP(student, teacher).eval()
        assert torch.equal(distiller(*batch)["tekap"], distiller(*batch)["tekap"])

    def test_resumes_with_the_noise_of_the_next_step(self, tiny_net, batch):
        whole = TeKAP(tiny_net(seed=1), tiny_net(seed=2))
        resumed = TeKAP(tiny_net(seed=3), tiny_net(seed=2))
        for _ in range(3):
            whole(*batch)
        state = whole.state_dict()
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        resumed.load_state_dict(state)
        assert resumed.step == 3
        assert torch.equal(whole(*batch)["tekap"], resumed(*batch)["tekap"])

    def test_leaves_the_global_generator_alone(self, student, teacher, batch):
        distiller = TeKAP(student, teacher)
        before = torch.get_rng_state()
        distiller(*batch)
        assert torch.equal(torch.get_rng_state(), before)
