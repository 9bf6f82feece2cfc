"""TMKDEnhancer around KD-like distillers: total (Eq 12), gradients, determinism, bad input."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import TinyConvNet
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer, text_embeddings
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.losses import feature_kl_loss, kd_loss, text_contrast_loss
from tmkd_plugin.views import make_views

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
LABELS = torch.tensor([0, 1, 2, 3, 1])


def images(batch: int = 5, seed: int = 0) -> Tensor:
    # Whole grey levels, so that undoing the normalisation gives the pixels back exactly.
    levels = torch.randint(0, 256, (batch, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


def kd(**settings: float) -> KD:
    return KD(TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2), **settings)


def enhanced(distiller: nn.Module | None = None, **settings: object) -> TMKDEnhancer:
    settings = {"text": TEXT, **settings}
    return TMKDEnhancer(distiller or kd(), NAMES, **settings)


def test_every_term_is_its_equation_on_the_fused_teacher() -> None:
    enhancer = enhanced(logit_weight=0.5, feature_weight=2.0, noise_scale=0.0).double()
    batch = images().double()
    out = enhancer(batch, LABELS)

    student, teacher, heads = enhancer.student, enhancer.teacher, enhancer.heads
    weights = heads.weight_net(heads.text_embeddings)[LABELS]
    views = [view.double() / 255 for view in make_views((batch * 255).round().to(torch.uint8))]
    pooled = sum(weights[:, v, None] * teacher.forward_head(teacher.forward_features(views[v]), True) for v in range(3))
    logits = sum(weights[:, v, None] * teacher(views[v]) for v in range(3))
    student_logits = out["output"]
    student_pooled = student.forward_head(student.forward_features(batch), True)
    contrast = text_contrast_loss(
        heads.student_projection(student_pooled), heads.text_projection(heads.text_embeddings[0]), LABELS, 0.07
    )
    expected = {
        "cross_entropy": 0.1 * F.cross_entropy(student_logits, LABELS),
        "logit_kl": 0.9 * kd_loss(student_logits, logits, 4.0),
        "feature_kl": 2.0 * feature_kl_loss(heads.feature_projection(student_pooled), pooled, 4.0),
        "logit_kl_of_TMKDEnhancer": 0.5 * kd_loss(student_logits, logits, 4.0),
        "text_contrast": 0.8 * contrast,
    }
    assert set(out) == {"loss", "output", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(out["loss"], sum(expected.values()), rtol=1e-6, atol=1e-8)


def test_gradient_of_each_term_reaches_what_it_should_and_nothing_else() -> None:
    enhancer = enhanced(logit_weight=1.0)
    groups = {
        "student": list(enhancer.student.parameters()),
        "teacher": list(enhancer.teacher.parameters()),
        "weight_net": list(enhancer.heads.weight_net.parameters()),
        "feature_projection": list(enhancer.heads.feature_projection.parameters()),
        "student_projection": list(enhancer.heads.student_projection.parameters()),
        "text_projection": list(enhancer.heads.text_projection.parameters()),
    }
    out = enhancer(images(), LABELS)
    reached = {}
    for term, value in out.items():
        if term == "output":
            continue
        for group in groups.values():
            for parameter in group:
                parameter.grad = None
        value.backward(retain_graph=True)
        reached[term] = {
            name for name, group in groups.items() if any(p.grad is not None and p.grad.any() for p in group)
        }
    own = {"student"}
    assert reached.pop("feature_kl") == {"student", "weight_net", "feature_projection"}
    assert reached.pop("text_contrast") == {"student", "student_projection", "text_projection"}
    assert reached.pop("loss") == set(groups) - {"teacher"}
    assert all(groups_reached == own for groups_reached in reached.values()), reached


def test_a_distiller_that_runs_its_teacher_with_gradient_does_not_teach_weight_net_either() -> None:
    student, teacher = TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2)

    def distiller(batch: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = F.mse_loss(student(batch), teacher(batch))
        return {"loss": loss, "own": loss}

    enhancer = enhanced(distiller, student=student, teacher=teacher, logit_weight=0.0)
    own = enhancer(images(), LABELS)["own"]
    gradients = torch.autograd.grad(own, [*student.parameters(), *enhancer.heads.parameters()], allow_unused=True)
    count = len(list(student.parameters()))
    assert all(gradient is not None for gradient in gradients[:count])
    assert all(gradient is None for gradient in gradients[count:])


def test_one_view_and_no_added_term_is_the_bare_baseline_bit_for_bit() -> None:
    bare, wrapped = kd(), kd()
    enhancer = enhanced(
        wrapped, views=("rgb",), text=TEXT[:1], feature_weight=0.0, contrast_weight=0.0, logit_weight=0.0
    )
    optimisers = [
        torch.optim.SGD(bare.trainable_parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(enhancer.trainable_parameters(), lr=0.1, momentum=0.9),
    ]
    for step in range(4):
        losses = []
        for distiller, optimiser in zip((bare, enhancer), optimisers, strict=True):
            optimiser.zero_grad()
            loss = distiller(images(seed=step), LABELS)["loss"]
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        assert torch.equal(*losses)
    for name, value in bare.student.state_dict().items():
        assert torch.equal(value, enhancer.student.state_dict()[name]), name


def test_the_student_runs_once_a_step_and_the_teacher_once_a_view() -> None:
    enhancer = enhanced()
    calls = {"student": 0, "teacher": 0}
    for role in calls:

        def count(module: nn.Module, args: tuple[Tensor], role: str = role) -> None:
            calls[role] += 1

        getattr(enhancer, role).conv.register_forward_pre_hook(count)
    enhancer(images(), LABELS)
    assert calls == {"student": 1, "teacher": 3}


def test_the_rgb_view_is_the_given_tensor_and_the_others_are_normalised_pixels() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    enhancer = enhanced(mean=mean, std=std)
    pixels = images()
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    seen = enhancer.multi_view.views_of(normalised)
    assert seen[0] is normalised
    expected = make_views((pixels * 255).round().to(torch.uint8))
    for view, pixel_view in zip(seen[1:], expected[1:], strict=True):
        unnormalised = view * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        torch.testing.assert_close(unnormalised * 255, pixel_view, rtol=0, atol=1e-3)


def test_three_equal_views_give_the_single_view_teacher() -> None:
    enhancer = enhanced(edge_alpha=0.0, high_frequency_weight=0.0)
    per_view = enhancer.views_forward(images())
    fused = enhancer.fuse(per_view, LABELS)
    torch.testing.assert_close(fused, enhancer.teacher(images()))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities_as_labels_mix_the_rows_of_the_table(smoothing: float) -> None:
    enhancer = enhanced()
    soft = F.one_hot(LABELS, 4).float() * (1 - smoothing) + smoothing / 4
    per_view = enhancer.views_forward(images())
    table = enhancer.fusion_table().detach()
    expected = sum(per_view.returned[v] * (soft @ table)[:, v, None] for v in range(3))
    torch.testing.assert_close(enhancer.fuse(per_view, soft), expected)
    out = enhancer(images(), soft)
    if not smoothing:
        torch.testing.assert_close(out["loss"], enhanced()(images(), LABELS)["loss"])
    out["loss"].backward()


def test_logit_source_rgb_feeds_the_single_view_logits_alone() -> None:
    enhancer = enhanced(logit_source="rgb", logit_weight=1.0)
    per_view = enhancer.views_forward(images())
    assert torch.equal(enhancer.fuse(per_view, LABELS), enhancer.teacher(images()))
    out = enhancer(images(), LABELS)
    expected = kd_loss(out["output"], enhancer.teacher(images()), 4.0)
    assert any(torch.allclose(out[name], expected) for name in out if name.startswith("logit_kl"))


def test_plain_averaging_and_the_objectives_of_the_fusion() -> None:
    average = enhanced(fusion="average")
    torch.testing.assert_close(average.fusion_table(), torch.full((4, 3), 1 / 3))
    average(images(), LABELS)["loss"].backward()

    frozen = enhanced(fusion_objective="frozen")
    frozen(images(), LABELS)["loss"].backward()
    assert all(parameter.grad is None for parameter in frozen.heads.weight_net.parameters())

    supervised = enhanced(fusion_objective="labels")
    out = supervised(images(), LABELS)
    per_view = supervised.views_forward(images())
    weights = supervised.fusion_table()[LABELS]
    fused = sum(per_view.outputs[v].logits * weights[:, v, None] for v in range(3))
    torch.testing.assert_close(out["fusion_cross_entropy"], F.cross_entropy(fused, LABELS))
    grads = torch.autograd.grad(out["feature_kl"], supervised.heads.weight_net.parameters(), allow_unused=True)
    assert all(grad is None for grad in grads)


def test_noise_depends_on_seed_and_step_and_touches_no_global_generator() -> None:
    state = torch.random.get_rng_state()
    first, second = enhanced(seed=3), enhanced(seed=3)
    losses = [[float(e(images(), LABELS)["feature_kl"].detach()) for _ in range(2)] for e in (first, second)]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_checkpoint_holds_no_teacher_and_resumes_the_noise() -> None:
    enhancer = enhanced()
    enhancer(images(), LABELS)
    saved = copy.deepcopy(enhancer.state_dict())
    assert not any("teacher" in name for name in saved)
    assert any(name.startswith("distiller.student.") for name in saved)
    continued = enhancer(images(seed=1), LABELS)["loss"]
    resumed = enhanced(KD(TinyConvNet(width=5, seed=9), TinyConvNet(width=7, seed=2)), seed=0)
    assert resumed.load_state_dict(saved).missing_keys == []
    assert torch.equal(resumed(images(seed=1), LABELS)["loss"], continued)


def test_teacher_stays_frozen_in_eval_and_its_statistics_stay() -> None:
    enhancer = enhanced()
    enhancer.train()
    enhancer.distiller.teacher.train()  # somebody else's mistake
    before = copy.deepcopy(enhancer.teacher.state_dict())
    enhancer(images(), LABELS)["loss"].backward()
    assert not any(module.training for module in enhancer.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in enhancer.teacher.parameters())
    for name, value in enhancer.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert "forward" not in vars(enhancer.teacher)


def test_trainable_parameters_are_all_but_the_teachers() -> None:
    enhancer = enhanced()
    given = {id(parameter) for parameter in enhancer.trainable_parameters()}
    expected = [*enhancer.student.parameters(), *enhancer.heads.parameters()]
    assert given == {id(parameter) for parameter in expected}


def test_an_enhancer_nests() -> None:
    inner = enhanced()
    outer = TMKDEnhancer(inner, NAMES, text=TEXT, seed=1, logit_weight=1.0)
    out = outer(images(), LABELS)

    # Each of the inner views is shown to the teacher in the outer views; both fuse what they got.
    def fused(table: Tensor, per_view: list[Tensor]) -> Tensor:
        return sum(logits * table[LABELS][:, v, None] for v, logits in enumerate(per_view))

    outer_table, inner_table = outer.fusion_table().detach(), inner.fusion_table().detach()
    by_inner = []
    for view in inner.multi_view.views_of(images()):
        by_inner.append(fused(outer_table, [inner.teacher(v) for v in outer.multi_view.views_of(view)]))
    expected = fused(inner_table, by_inner)
    torch.testing.assert_close(out["logit_kl"], 0.9 * kd_loss(out["output"], expected, 4.0))
    # The outer one compares the student with its own fused answer to the batch.
    torch.testing.assert_close(out["logit_kl_of_TMKDEnhancer"], kd_loss(out["output"], by_inner[0], 4.0))
    terms = [value for name, value in out.items() if name not in ("loss", "output")]
    torch.testing.assert_close(out["loss"], sum(terms))
    assert sum(name.startswith("feature_kl") for name in out) == 2
    out["loss"].backward()
    for enhancer in (inner, outer):
        assert all(parameter.grad is not None for parameter in enhancer.heads.parameters())
    assert not any("teacher" in name for name in outer.state_dict())


def test_forgotten_heads_are_noticed_once() -> None:
    enhancer = enhanced()
    optimiser = torch.optim.SGD(enhancer.student.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        for step in range(5):
            optimiser.zero_grad()
            enhancer(images(seed=step), LABELS)["loss"].backward()
            optimiser.step()
    assert [notice.category for notice in notices] == [TmkdNotice]
    assert "trainable_parameters()" in str(notices[0].message)


def test_no_notice_when_the_heads_are_trained_or_steps_are_accumulated() -> None:
    for parameters_of, every in ((TMKDEnhancer.trainable_parameters, 1), (lambda e: e.student.parameters(), 99)):
        enhancer = enhanced()
        optimiser = torch.optim.SGD(parameters_of(enhancer), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(5):
                enhancer(images(seed=step), LABELS)["loss"].backward()
                if (step + 1) % every == 0:
                    optimiser.step()
                    optimiser.zero_grad()


def test_the_watch_sees_fused_optimisers_and_lets_heads_have_their_own() -> None:
    for heads_too in (False, True):
        enhancer = enhanced()
        optimisers = [torch.optim.AdamW(enhancer.student.parameters(), lr=1e-3, fused=True)]
        if heads_too:
            optimisers.append(torch.optim.AdamW(enhancer.heads.parameters(), lr=1e-3, fused=True))
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            for step in range(4):
                enhancer(images(seed=step), LABELS)["loss"].backward()
                for optimiser in optimisers:
                    optimiser.step()
                    optimiser.zero_grad()
        assert [notice.category for notice in notices] == ([] if heads_too else [TmkdNotice])


def test_text_embeddings_are_those_of_the_classes_and_views() -> None:
    text = text_embeddings(NAMES, TEXT)
    reordered = enhanced(text=text, views=("high_frequency", "rgb"))
    assert torch.equal(reordered.heads.text_embeddings, text.tensor[[2, 0]])
    with pytest.raises(InputError, match="of the classes heron, tern, wren, jay, but the class names are jay"):
        TMKDEnhancer(kd(), NAMES[::-1], text=text)


def test_labels_are_checked_when_the_halves_are_called_apart() -> None:
    enhancer = enhanced()
    per_view = enhancer.views_forward(images())
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        enhancer.fuse(per_view, torch.full((5,), -1))


def test_epoch_report_gives_the_mean_weight_of_each_view() -> None:
    enhancer = enhanced()
    weights = enhancer.epoch_report()["fusion_weights"]
    assert list(weights) == ["rgb", "edge", "high_frequency"]
    assert sum(weights.values()) == pytest.approx(1)


BAD_CALLS = [
    (lambda: (torch.rand(5, 3, 16), LABELS), r"\(5, 3, 16\)"),
    (lambda: (torch.rand(5, 1, 16, 16), LABELS), r"\(5, 1, 16, 16\)"),
    (lambda: (images().index_fill(0, torch.tensor([1]), float("nan")), LABELS), "(?i)nan|finite"),
    (lambda: (images() * 4 - 2, LABELS), "mean="),
    (lambda: ((images() * 255).to(torch.uint8), LABELS), "255"),
    (lambda: (images(), LABELS + 1), "4"),
    (lambda: (images(), LABELS.float()), "float32"),
    (lambda: (images(), LABELS[:3]), "3 labels"),
    (lambda: (images(), torch.full((5, 4), 0.5)), "sum"),
]


@pytest.mark.parametrize(("make", "message"), BAD_CALLS)
def test_unusable_batches_are_refused(make: object, message: str) -> None:
    enhancer = enhanced()
    with pytest.raises(InputError, match=message):
        enhancer(*make())
    assert "forward" not in vars(enhancer.teacher)


BAD_ARGUMENTS = [
    ({"class_names": NAMES[:3]}, "3.*4|4.*3"),
    ({"class_names": [*NAMES[:3], "heron"]}, "heron"),
    ({"class_names": [*NAMES[:3], ""]}, "empty"),
    ({"class_names": [*NAMES[:3], 7]}, "7"),
    ({"class_names": "heron"}, "heron"),
    ({"views": ("rgb", "edges")}, "Did you mean 'edge'"),
    ({"views": ()}, "views="),
    ({"views": ("rgb", "rgb")}, "twice"),
    ({"feature_wieght": 1.0}, "Did you mean 'feature_weight'"),
    ({"temperature": 0}, "temperature must be a number above 0, but is 0"),
    ({"feature_weight": -1}, "feature_weight must be a number at least 0, but is -1"),
    ({"noise_scale": float("nan")}, "noise_scale"),
    ({"fusion": "txt"}, "Did you mean 'text'"),
    ({"fusion_objective": "label"}, "Did you mean 'labels'"),
    ({"logit_source": "grb"}, "Known: fused, rgb"),
    ({"mean": (0.5, 0.5), "std": (1, 1, 1)}, "mean"),
    ({"std": (0.5, 0.5, 0.0), "mean": (0, 0, 0)}, "std"),
    ({"text": torch.rand(3, 5, 10)}, "5"),
    ({"text": "ViT-B-32-quikgelu/openai"}, "ViT-B-32-quickgelu"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_unusable_arguments_are_refused_before_training(arguments: dict[str, object], message: str) -> None:
    arguments = {"class_names": NAMES, "text": TEXT, **arguments}
    with pytest.raises(InputError, match=message):
        TMKDEnhancer(kd(), arguments.pop("class_names"), **arguments)


def test_networks_of_different_classes_are_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = TinyConvNet(3), TinyConvNet(4)

    with pytest.raises(InputError, match=r"the student .* has 3 and the teacher .* 4"):
        TMKDEnhancer(Pair(), NAMES, text=TEXT)


def test_gpu_free_moves_between_dtypes_keep_working() -> None:
    enhancer = enhanced().double()
    assert enhancer(images().double(), LABELS)["loss"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_gives_nearly_the_same_losses_in_float32(dtype: torch.dtype) -> None:
    whole = enhanced()(images(), LABELS)
    with torch.autocast("cpu", dtype=dtype):
        half = enhanced()(images(), LABELS)
    half["loss"].backward()
    for name in ("loss", "feature_kl", "text_contrast"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], whole[name], rtol=0.1, atol=0.05)
