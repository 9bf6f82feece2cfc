from __future__ import annotations

import math

import pytest
import torch

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines.sp import SP, sp_loss
from tmkd_plugin.errors import InputError
from tmkd_plugin.fusion import fuse
from tmkd_plugin.zoo import build_network


def naive_sp(student, teacher):
    def similarities(maps):
        rows = maps.flatten(1).tolist()
        gram = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
        norms = [max(math.sqrt(sum(g * g for g in row)), 1e-12) for row in gram]
        return [[g / norm for g in row] for row, norm in zip(gram, norms, strict=True)]

    g_s, g_t = similarities(student), similarities(teacher)
    n = range(len(g_s))
    return sum((g_t[i][j] - g_s[i][j]) ** 2 for i in n for j in n) / len(n) ** 2


def test_equals_the_naive_loops(draw):
    student, teacher = draw(6, 3, 2, 2, seed=1), draw(6, 5, 1, 3, seed=2)
    assert sp_loss(student, teacher).item() == pytest.approx(naive_sp(student, teacher), rel=1e-12)


def test_layers_are_summed(draw):
    students = [draw(4, 3, 2, 2, seed=1), draw(4, 6, seed=2), draw(4, 5, 2, seed=3)]
    teachers = [draw(4, 2, 3, 3, seed=4), draw(4, 8, seed=5), draw(4, 2, 2, seed=6)]
    expected = sum(naive_sp(s, t) for s, t in zip(students, teachers, strict=True))
    loss = sp_loss(students, teachers)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert sp_loss(tuple(students), tuple(teachers)).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck(draw):
    student = draw(5, 2, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sp_loss(x, draw(5, 3, seed=2)), student)


def test_does_not_see_the_scale_of_a_network(draw):
    student, teacher = draw(5, 8, seed=1), draw(5, 8, seed=2)
    torch.testing.assert_close(sp_loss(7 * student, 0.1 * teacher), sp_loss(student, teacher))
    assert sp_loss(7 * teacher, teacher).item() == pytest.approx(0, abs=1e-28)


def test_the_teacher_is_a_constant(draw):
    student, teacher = draw(5, 4, seed=1).requires_grad_(), draw(5, 4, seed=2).requires_grad_()
    sp_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


class TestTraps:
    def test_a_zero_sample_gives_a_zero_row_and_a_bounded_gradient(self, draw):
        student, teacher = draw(6, 8, seed=1), draw(6, 8, seed=2)
        student[2] = 0
        student.requires_grad_()
        loss = sp_loss(student, teacher)
        assert loss.item() == pytest.approx(naive_sp(student, teacher), rel=1e-12)
        loss.backward()
        assert student.grad.abs().max() < 1
        # The other samples' similarity to it still moves it.
        assert student.grad[2].abs().max() > 0

    def test_all_samples_zero(self):
        student = torch.zeros(4, 3, requires_grad=True)
        sp_loss(student, torch.zeros(4, 2)).backward()
        assert torch.equal(student.grad, torch.zeros(4, 3))

    def test_duplicate_rows(self, draw):
        student = draw(4, 3, seed=1)
        student[1] = student[0]
        student.requires_grad_()
        sp_loss(student, draw(4, 3, seed=2)).backward()
        assert student.grad.isfinite().all()

    def test_a_batch_of_one(self, draw):
        student = draw(1, 3, seed=1).requires_grad_()
        loss = sp_loss(student, draw(1, 4, seed=2))
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-30)
        assert student.grad.abs().max() < 1e-12

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, draw, dtype):
        student = (300 * draw(8, 12, seed=1)).to(dtype).requires_grad_()
        teacher = (300 * draw(8, 12, seed=2)).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sp_loss(student, teacher)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, sp_loss(student.float(), teacher.float()))
        loss.backward()
        assert student.grad.isfinite().all()

    def test_float64_stays_float64_under_autocast(self, draw):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert sp_loss(draw(4, 3), draw(4, 3, seed=1)).dtype == torch.float64


class TestErrors:
    def test_number_of_layers(self, draw):
        with pytest.raises(InputError, match="2 of the student and 1 of the teacher"):
            sp_loss([draw(2, 3), draw(2, 3)], [draw(2, 3)])
        with pytest.raises(InputError, match="at least one"):
            sp_loss([], [])

    def test_batch_sizes_differ(self, draw):
        with pytest.raises(InputError, match="first dimensions must agree"):
            sp_loss(draw(2, 3), draw(3, 3))


def maps_of(network, images):
    return torch.relu(network.norm(network.conv(images)))


def test_the_distiller_compares_maps_before_pooling(student, teacher, batch):
    images, labels = batch
    out = SP(student, teacher, ce_weight=0.5, sp_weight=10.0).eval()(images, labels)
    expected = 10.0 * sp_loss(maps_of(student, images), maps_of(teacher, images))
    torch.testing.assert_close(out["sp"], expected)
    torch.testing.assert_close(out["cross_entropy"], 0.5 * torch.nn.functional.cross_entropy(student(images), labels))
    torch.testing.assert_close(out["loss"], out["sp"] + out["cross_entropy"])


def test_networks_without_a_map_are_refused_by_name(student, token_net):
    with pytest.raises(InputError, match=r"SP needs the last feature map.*teacher \(TokenNet\)"):
        SP(student, token_net())


@pytest.mark.parametrize(
    ("name", "module", "channels"),
    [("wrn_16_1", "block3", 64), ("shufflenetv2", "layer3", 464), ("mobilenetv2", "blocks.6", 160)],
)
def test_mdistillers_map(student, batch, name, module, channels):
    images, labels = (each[:3] for each in batch)
    teacher = build_network(name, 5)
    distiller = SP(student, teacher, sp_map="mdistiller").eval()
    seen = []
    teacher.get_submodule(module).register_forward_hook(lambda module, args, output: seen.append(output))
    out = distiller(images, labels)
    assert seen[0].shape[1] == channels
    torch.testing.assert_close(out["sp"], 3000 * sp_loss(maps_of(student, images), seen[0]))
    pre_pool = SP(student, teacher).eval()(images, labels)
    assert not torch.allclose(pre_pool["sp"], out["sp"])


def test_mdistillers_map_is_the_tensor_before_pooling_elsewhere(student, batch):
    images, labels = batch
    teacher = build_network("resnet8", 5)
    ours, theirs = (SP(student, teacher, sp_map=m).eval()(images, labels)["sp"] for m in ("pre_pool", "mdistiller"))
    assert torch.equal(ours, theirs)


def test_mdistillers_map_is_fused_under_an_enhancer(student, batch):
    images, labels = batch[0].clamp(0, 1), batch[1]
    teacher = build_network("wrn_16_1", 5)
    text = torch.nn.functional.normalize(torch.rand(3, 5, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    enhancer = TMKDEnhancer(SP(student, teacher, sp_map="mdistiller"), list("abcde"), text=text).eval()
    seen = []
    teacher.block3.register_forward_hook(lambda module, args, output: seen.append(output))
    out = enhancer(images, labels)
    edge, high_frequency, rgb = seen
    fused = fuse([rgb, edge, high_frequency], enhancer.fusion_table().detach()[labels])
    torch.testing.assert_close(out["sp"], 3000 * sp_loss(maps_of(student, images), fused))


def test_unknown_map(student, teacher):
    with pytest.raises(InputError, match=r"Unknown sp_map 'prepool'. Did you mean 'pre_pool'"):
        SP(student, teacher, sp_map="prepool")
