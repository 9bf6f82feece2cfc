from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin.baselines.catkd import CATKD, binarize, cat_loss, class_activation_maps, select_classes
from tmkd_plugin.baselines.catkd_pairs import CAT_KD_PAIRS, CAT_ONLY, published_settings
from tmkd_plugin.errors import InputError


def naive_pool(plane, resolution):
    """Adaptive average pooling: cell i covers floor(i h / R) to ceil((i + 1) h / R)."""
    h, w = len(plane), len(plane[0])
    pooled = []
    for i in range(resolution):
        rows = range(i * h // resolution, -(-(i + 1) * h // resolution))
        for j in range(resolution):
            columns = range(j * w // resolution, -(-(j + 1) * w // resolution))
            pooled.append(sum(plane[r][c] for r in rows for c in columns) / (len(rows) * len(columns)))
    return pooled


def naive_cat(student, teacher, resolution, normalize):
    total, cells = 0.0, 0
    for student_sample, teacher_sample in zip(student.tolist(), teacher.tolist(), strict=True):
        for planes in zip(student_sample, teacher_sample, strict=True):
            s, t = (naive_pool(plane, resolution) for plane in planes)
            if normalize:
                s, t = ([x / max(math.sqrt(sum(y * y for y in p)), 1e-12) for x in p] for p in (s, t))
            total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
            cells += len(s)
    return total / cells


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("resolution", [1, 2, 3, 5])
def test_equals_the_naive_loops(draw, normalize, resolution):
    student, teacher = draw(3, 4, 5, 7, seed=1), draw(3, 4, 4, 3, seed=2)
    expected = naive_cat(student, teacher, resolution, normalize)
    assert cat_loss(student, teacher, resolution, normalize).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_official_ones(draw):
    student, teacher = draw(3, 4, 5, 5, seed=1), draw(3, 4, 4, 4, seed=2)
    assert torch.equal(cat_loss(student, teacher), cat_loss(student, teacher, 2, True))


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(draw, normalize):
    student, teacher = draw(2, 2, 3, 3, seed=1).requires_grad_(), draw(2, 2, 4, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: cat_loss(x, teacher, 2, normalize), student)


def test_the_teacher_is_a_constant(draw):
    student, teacher = draw(2, 3, 4, 4, seed=1).requires_grad_(), draw(2, 3, 4, 4, seed=2).requires_grad_()
    cat_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_maps_equal_the_naive_loops(draw):
    feature_map, weight = draw(2, 3, 2, 4, seed=1), draw(5, 3, seed=2)
    maps = class_activation_maps(feature_map, weight)
    assert maps.shape == (2, 5, 2, 4)
    for b, k, x, y in [(b, k, x, y) for b in range(2) for k in range(5) for x in range(2) for y in range(4)]:
        expected = sum(float(weight[k, c] * feature_map[b, c, x, y]) for c in range(3))
        assert maps[b, k, x, y].item() == pytest.approx(expected, rel=1e-12)


def test_maps_gradcheck(draw):
    inputs = draw(2, 3, 2, 2, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(class_activation_maps, inputs)


class TestTraps:
    def test_zero_planes_pass_no_gradient_and_the_others_their_own(self, draw):
        student, teacher = draw(3, 4, 4, 4, seed=1), draw(3, 4, 4, 4, seed=2)
        student[1, 3], teacher[2, 0] = 0, 0
        student.requires_grad_()
        loss = cat_loss(student, teacher, 2, True)
        assert loss.item() == pytest.approx(naive_cat(student, teacher, 2, True), rel=1e-12)
        loss.backward()
        assert torch.equal(student.grad[1, 3], torch.zeros(4, 4, dtype=torch.float64))
        others = student.grad.abs().amax(dim=(2, 3))
        assert (
            others[:, :3] > 1e-12
        ).sum() == 8  # all but the plane whose teacher is zero: (unit vector)² has no slope
        assert others.max() < 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, draw, dtype):
        feature_map = (30 * draw(4, 6, 4, 4, seed=1)).to(dtype).requires_grad_()
        weight, teacher = (30 * draw(5, 6, seed=2)).to(dtype), draw(4, 5, 4, 4, seed=3).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cat_loss(class_activation_maps(feature_map, weight), teacher, 2, False)
        assert loss.dtype == torch.float32
        expected = cat_loss(class_activation_maps(feature_map.float(), weight.float()), teacher.float(), 2, False)
        assert torch.equal(loss, expected)
        loss.backward()
        assert feature_map.grad.isfinite().all()

    def test_float64_stays_float64_under_autocast(self, draw):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = class_activation_maps(draw(2, 3, 4, 4), draw(5, 3))
            assert maps.dtype == cat_loss(maps, maps).dtype == torch.float64

    def test_a_batch_of_one(self, draw):
        assert cat_loss(draw(1, 3, 4, 4, seed=1), draw(1, 3, 4, 4, seed=2)).item() > 0


def test_binarize_is_strictly_above_the_mean_absolute_value():
    plane = torch.tensor([[[[1.0, -2.0], [2.0, 3.0]]]], dtype=torch.float64)  # mean absolute value 2
    assert torch.equal(binarize(plane), torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]], dtype=torch.float64))


class TestSelectClasses:
    def test_the_best_are_one_fewer(self, draw):
        logits = draw(4, 100)
        selected = select_classes(logits, 5, 0)
        assert torch.equal(selected.sum(dim=1), torch.full((4,), 4))
        assert selected.gather(1, logits.topk(4).indices).all()

    def test_the_worst_are_one_more(self, draw):
        logits = draw(4, 100)
        selected = select_classes(logits, 75, 1)
        assert torch.equal(selected.sum(dim=1), torch.full((4,), 76))
        assert selected.gather(1, logits.topk(76, largest=False).indices).all()

    def test_other_class_counts(self, draw):
        assert torch.equal(select_classes(draw(2, 7), 3, 1).sum(dim=1), torch.tensor([4, 4]))

    def test_ties_take_all(self):
        logits = torch.tensor([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
        assert select_classes(logits, 2, 0).all()
        assert select_classes(torch.ones(1, 3), 2, 0).all()

    @pytest.mark.parametrize(("n", "strategy"), [(1, 0), (8, 0), (-1, 1), (7, 1), (2.5, 0)])
    def test_counts_that_leave_no_class(self, draw, n, strategy):
        with pytest.raises(
            InputError, match=f"cams_nums, for strategy {strategy} and 7 classes, must be a whole number"
        ):
            select_classes(draw(2, 7), n, strategy)

    def test_unknown_strategy(self, draw):
        with pytest.raises(InputError, match=r"strategy must be 0 .* or 1"):
            select_classes(draw(2, 7), 3, 2)

    def test_only_the_selected_planes_count(self, draw):
        student, teacher, logits = draw(3, 6, 4, 4, seed=1), draw(3, 6, 4, 4, seed=2), draw(3, 6, seed=3)
        selected = select_classes(logits, 4, 0)
        loss = cat_loss(student, teacher, 2, True, selected)
        best = logits.topk(3).indices[:, :, None, None].expand(-1, -1, 4, 4)
        expected = naive_cat(student.gather(1, best), teacher.gather(1, best), 2, True)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


class TestErrors:
    def test_channels(self, draw):
        with pytest.raises(InputError, match=r"\(2, 3, 4, 4\) and \(5, 6\)"):
            class_activation_maps(draw(2, 3, 4, 4), draw(5, 6))

    def test_classes_differ(self, draw):
        with pytest.raises(InputError, match=r"\(2, 3, 4, 4\) and the teacher's \(2, 5, 4, 4\)"):
            cat_loss(draw(2, 3, 4, 4), draw(2, 5, 4, 4))

    @pytest.mark.parametrize("resolution", [0, 1.5, True])
    def test_resolution(self, draw, resolution):
        with pytest.raises(InputError, match="resolution must be a whole number at least 1"):
            cat_loss(draw(2, 3, 4, 4), draw(2, 3, 4, 4), resolution)


def maps_of(network, images):
    return class_activation_maps(torch.relu(network.norm(network.conv(images))), network.fc.weight)


class TestDistiller:
    def test_terms(self, student, teacher, batch):
        images, labels = batch
        out = CATKD(student, teacher, ce_weight=0.5, cat_weight=7.0, cam_resolution=3, normalize=True).eval()(
            images, labels
        )
        expected = 7.0 * cat_loss(maps_of(student, images), maps_of(teacher, images), 3, True)
        torch.testing.assert_close(out["cat"], expected)
        # The student keeps its bias for logits and cross-entropy.
        torch.testing.assert_close(out["output"], student(images))
        torch.testing.assert_close(out["cross_entropy"], 0.5 * F.cross_entropy(student(images), labels))
        torch.testing.assert_close(out["loss"], out["cat"] + out["cross_entropy"])

    def test_the_gradient_reaches_the_classifier_through_the_maps(self, student, teacher, batch):
        CATKD(student, teacher)(*batch)["cat"].backward()
        assert student.fc.weight.grad.abs().max() > 0
        assert student.fc.bias.grad is None

    def test_only_cat(self, student, teacher, batch):
        out = CATKD(student, teacher, only_cat=True)(*batch)
        assert set(out) == {"loss", "output", "cat"}
        assert torch.equal(out["loss"], out["cat"])

    def test_binarize_and_class_selection(self, student, teacher, batch):
        images, labels = batch
        options = {"binarize": True, "cams_nums": 3, "strategy": 0, "normalize": False, "cat_weight": 1.0}
        out = CATKD(student, teacher, **options).eval()(images, labels)
        selected = select_classes(teacher(images), 3, 0)
        expected = cat_loss(maps_of(student, images), binarize(maps_of(teacher, images)), 2, False, selected)
        torch.testing.assert_close(out["cat"], expected)

    def test_drop_bias_is_the_official_conversion(self, student, teacher, batch):
        images, labels = batch
        with torch.no_grad():
            # Alone the teacher's bias would choose the classes.
            teacher.fc.bias.copy_(torch.tensor([100.0, 0, 0, 0, -100]))
        before = teacher.fc.bias.clone()
        distiller = CATKD(student, teacher, drop_bias=True, cams_nums=3, cat_weight=1.0).eval()
        out = distiller(images, labels)
        torch.testing.assert_close(out["output"], maps_of(student, images).mean(dim=(2, 3)))
        torch.testing.assert_close(out["output"], student(images))
        selected = select_classes(maps_of(teacher, images).mean(dim=(2, 3)), 3, 0)
        torch.testing.assert_close(
            out["cat"], cat_loss(maps_of(student, images), maps_of(teacher, images), 2, False, selected)
        )
        assert torch.equal(teacher.fc.bias, before)
        assert all(parameter is not student.fc.bias for parameter in distiller.trainable_parameters())

    def test_networks_without_a_bias(self, tiny_net, teacher, batch):
        CATKD(tiny_net(bias=False), teacher, drop_bias=True)(*batch)["loss"].backward()

    def test_normalised_when_the_architectures_differ(self, student, tiny_net, other_net):
        assert CATKD(student, tiny_net()).normalize is False
        assert CATKD(student, other_net()).normalize is True
        assert CATKD(student, other_net(), normalize=False).normalize is False

    def test_networks_without_class_maps_are_refused_by_name(self, student, token_net):
        with pytest.raises(InputError, match=r"the teacher \(TokenNet\)"):
            CATKD(student, token_net())
        with pytest.raises(InputError, match=r"the student \(TokenNet\)"):
            CATKD(token_net(), student)

    def test_class_counts_are_checked_when_it_is_built(self, student, teacher):
        with pytest.raises(InputError, match="5 classes"):
            CATKD(student, teacher, cams_nums=9)


class TestPublishedSettings:
    def test_known_pairs(self):
        expected = {"cat_weight": 15, "cam_resolution": 2, "normalize": False}
        assert published_settings("resnet32x4", "resnet8x4") == expected
        assert published_settings("WRN-40-2", "ShuffleNetV1")["cat_weight"] == 80
        assert published_settings("resnet50_cifar", "mobilenetv2")["cat_weight"] == 40
        assert published_settings("resnet50", "mobilenetv2", "imagenet")["cat_weight"] == 10

    def test_unknown_pairs_take_the_defaults(self, student, teacher):
        assert published_settings("resnet50", "vgg8") == {}
        assert CATKD(student, teacher, **published_settings("resnet50", "vgg8")).cat_weight == 5

    def test_every_pair_is_a_valid_setting(self, student, teacher):
        for dataset, of_teacher, of_student in CAT_KD_PAIRS:
            settings = published_settings(of_teacher, of_student, dataset)
            assert CATKD(student, teacher, **settings).cat_weight == settings["cat_weight"] > 0
        assert CAT_ONLY[True].cat_weight == 300
