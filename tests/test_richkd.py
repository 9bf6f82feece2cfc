"""RichKD: equal to the official recording; the fused teacher in a step; CLIP's answers kept on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from richkd_cases import NAMES, SMALL, clip_model, enhanced, images, networks
from tiny_networks import FeaturePairNet, TinyConvNet
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.baselines.kd import KD
from tmkd_plugin.baselines.rkd import RKD
from tmkd_plugin.baselines.tekap import TeKAP
from tmkd_plugin.clip_teacher import ClipAnswers, ClipOutput
from tmkd_plugin.contrast_memory import ContrastBatch, MemoryBank, MemoryQueue
from tmkd_plugin.cross_modal_teacher import FusedClassifier, fused_logits
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.losses import kd_loss
from tmkd_plugin.model_output import ModelOutput
from tmkd_plugin.richkd import RichKDEnhancer
from tmkd_plugin.richkd_heads import RichKDHeads
from tmkd_plugin.richkd_settings import RichKDSettings
from tmkd_plugin.sample_ids import tell_samples, wants_ids

RECORDING = Path(__file__).parent / "recordings" / "contrastive" / "richkd_b8_c10.npz"
LABELS = torch.tensor([0, 1, 2, 3, 1])
IDS = torch.tensor([7, 3, 0, 9, 4])
TEXT = F.normalize(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(8)), dim=-1)


def answers() -> ClipAnswers:
    generator = torch.Generator().manual_seed(6)
    features = F.normalize(torch.randn(10, 6, generator=generator), dim=1)
    return ClipAnswers(features, torch.rand(10, 4, generator=generator), torch.arange(10).flip(0), "tiny")


def test_the_official_step() -> None:
    with np.load(RECORDING) as arrays:
        r = {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    heads = RichKDHeads(RichKDSettings(negatives=32, projection_width=16), 3.0, (32, 48, 24), seed=0).double()
    heads.know_samples(torch.arange(40) % 10)
    projections = {"s": heads.student_projection, "t": heads.teacher_projection, "c": heads.clip_projection}
    with torch.no_grad():
        for side, projection in projections.items():
            projection.weight.copy_(r[f"embed_{side}_weight"])
            projection.bias.copy_(r[f"embed_{side}_bias"])
    assert isinstance(heads.memory, MemoryBank)
    heads.memory.student.copy_(r["memory_student_init"])
    heads.memory.teacher.copy_(r["memory_teacher_init"])
    heads.memory.begin = lambda labels, ids, generator: ContrastBatch(labels, ids, r["contrast_index"])
    clip = ClipOutput(r["clip_features_all"][r["index"]], r["clip_logits_all"][r["index"]])
    fused = fused_logits(r["logits_teacher"], clip.cosines, r["alpha"].item())
    torch.testing.assert_close(fused, r["fused_logits"], rtol=1e-12, atol=0)
    logits, features = r["logits_student"].requires_grad_(), r["feat_student"].requires_grad_()
    of_teacher = r["feat_teacher"].requires_grad_()
    student, teacher = ModelOutput(logits, features, None), ModelOutput(fused, of_teacher, None)
    terms = heads.terms(student, teacher, clip, r["target"], r["index"], torch.Generator())
    torch.testing.assert_close(terms["logit_kl"], 3 * r["loss_kd_raw"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms["feature_contrast"], 0.8 * r["loss_crd_raw"], rtol=1e-9, atol=1e-12)
    total = F.cross_entropy(logits, r["target"]) + sum(terms.values())
    torch.testing.assert_close(total, r["total"], rtol=1e-9, atol=1e-12)
    total.backward()
    assert of_teacher.grad is None, "nothing is learned by the teacher"
    gradients = {"logits_student": logits.grad, "feat_student": features.grad}
    gradients |= {f"embed_{side}_weight": projection.weight.grad for side, projection in projections.items()}
    for name, gradient in gradients.items():
        expected = r[f"grad_{name}"]
        assert float((gradient - expected).abs().max()) <= 1e-7 * float(expected.abs().max()) + 1e-10, name


def test_the_distiller_learns_from_the_fused_logits() -> None:
    enhancer = enhanced(alpha=0.6, clip_logit_scale=20.0)
    out = enhancer(images(), LABELS)
    cosines = clip_model()((images() * 255).round().to(torch.uint8)).cosines
    fused = 0.6 * enhancer.teacher(images()) + 0.4 * 20 * cosines
    torch.testing.assert_close(out["logit_kl"], 0.9 * kd_loss(out["output"], fused, 4.0))
    assert set(out) == {"loss", "output", "cross_entropy", "logit_kl", "feature_contrast"}
    terms = [value for name, value in out.items() if name not in ("loss", "output")]
    torch.testing.assert_close(out["loss"], sum(terms))
    assert out["loss"].requires_grad


def test_the_variants() -> None:
    plain = KD(*networks())(images(), LABELS)
    only_logits = enhanced(variant="L")(images(), LABELS)
    assert "feature_contrast" not in only_logits
    assert not torch.equal(only_logits["logit_kl"], plain["logit_kl"])
    only_features = enhanced(variant="F")
    out = only_features(images(), LABELS)
    assert torch.equal(out["logit_kl"], plain["logit_kl"])
    assert out["feature_contrast"] > 0
    without = enhanced(feature_weight=0.0)
    assert without.heads.memory is None
    assert not list(without.heads.parameters())
    assert torch.equal(without(images(), LABELS)["loss"], only_logits["loss"])


def test_a_logit_kl_is_added_where_the_distiller_has_none() -> None:
    enhancer = enhanced(RKD(*networks()))
    assert enhancer.has_logit_kl
    out = enhancer(images(), LABELS)
    teacher = fused_logits(enhancer.teacher(images()), clip_model()((images() * 255).round().byte()).cosines, 0.7)
    torch.testing.assert_close(out["logit_kl"], 3.0 * kd_loss(out["output"], teacher, 3.0))
    own = RKD(*networks())(images(), LABELS)
    assert torch.equal(out["rkd"], own["rkd"]), "its features are the teacher's own"
    assert "logit_kl_of_RichKDEnhancer" in enhanced(logit_weight=1.0)(images(), LABELS)


@pytest.mark.parametrize(
    "distiller",
    [
        lambda: KD(*networks(), kd_weight=0),
        lambda: TeKAP(*networks(), tekap_weight=0),
        lambda: TMKDEnhancer(RKD(*networks()), NAMES, text=TEXT, logit_weight=0),
        lambda: TMKDEnhancer(KD(*networks(), kd_weight=0), NAMES, text=TEXT, logit_weight=0),
    ],
)
def test_a_logit_kl_is_added_where_the_distiller_s_own_has_no_weight(distiller: Callable[[], nn.Module]) -> None:
    enhancer = enhanced(distiller())
    assert enhancer.heads.logit_weight == 3.0
    assert [name for name in enhancer(images(), LABELS) if "logit_kl" in name] == ["logit_kl"]


def test_no_second_logit_kl_is_added_around_an_enhancer_with_one() -> None:
    for inner in (RKD(*networks()), KD(*networks())):
        assert enhanced(TMKDEnhancer(inner, NAMES, text=TEXT)).heads.logit_weight == 0
        assert enhanced(enhanced(inner)).heads.logit_weight == 0


@pytest.mark.filterwarnings("ignore:Silent does not say")
def test_what_nobody_knows_of_a_logit_kl_stays_unknown_around_an_enhancer() -> None:
    class Silent(RKD):
        has_logit_kl = None

    for inner in (TMKDEnhancer(Silent(*networks()), NAMES, text=TEXT), enhanced(Silent(*networks()))):
        assert inner.has_logit_kl is None
        with pytest.warns(TmkdNotice, match=f"{type(inner).__name__} does not say"):
            assert enhanced(inner).heads.logit_weight == 0
    student, teacher = networks()
    with pytest.warns(TmkdNotice, match="does not say"):
        enhanced(lambda x, y: F.cross_entropy(student(x), y) + teacher(x).sum() * 0, student=student, teacher=teacher)


def test_lambda_is_alpha_unless_it_is_given() -> None:
    losses = {
        name: enhanced(**given)(images(), LABELS)["feature_contrast"].item()
        for name, given in {
            "default": {},
            "same": {"lambda_": 0.7},
            "teacher": {"lambda_": 1.0},
            "alpha": {"alpha": 1.0},
        }.items()
    }
    assert losses["default"] == losses["same"]
    assert losses["teacher"] == losses["alpha"] != losses["default"]


def test_answers_computed_once_are_looked_up_by_id() -> None:
    kept = answers()
    enhancer = enhanced(clip=kept, feature_weight=0.0, logit_weight=0.0)
    assert wants_ids(enhancer)
    assert enhancer.epoch_report() == {"clip_images": "once"}
    out = enhancer(images(), LABELS, ids=IDS)
    fused = 0.7 * enhancer.teacher(images()) + 0.3 * kept.cosines[9 - IDS]
    torch.testing.assert_close(out["logit_kl"], 0.9 * kd_loss(out["output"], fused, 4.0))
    with pytest.raises(InputError, match=r"ids=batch\.ids"):
        enhancer(images(), LABELS)
    with pytest.raises(InputError, match="none for the image with id 11"):
        enhancer(images(), LABELS, ids=torch.tensor([0, 1, 11, 2, 3]))
    assert not wants_ids(enhanced(feature_weight=0.0))


def test_kept_answers_are_not_fused_with_other_images_logits() -> None:
    class Flipped(nn.Module):
        has_logit_kl = True

        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = networks()

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                self.heard = self.teacher(images.flip(0))
            return F.cross_entropy(self.student(images), labels)

    settings = {"variant": "L", "logit_weight": 0.0}
    with pytest.raises(InputError, match=r"differ from labels.*clip_images='augmented'"):
        enhanced(Flipped(), clip=answers(), **settings)(images(), LABELS, ids=IDS, teacher_labels=LABELS.flip(0))
    enhancer = enhanced(Flipped(), **settings)
    enhancer(images(), LABELS, teacher_labels=LABELS.flip(0))
    cosines = clip_model()((images().flip(0) * 255).round().byte()).cosines
    torch.testing.assert_close(enhancer.distiller.heard, fused_logits(enhancer.teacher(images().flip(0)), cosines, 0.7))


def test_every_part_trains_but_teacher_and_clip() -> None:
    enhancer = enhanced()
    clip = enhancer.multi_view.view.clip
    enhancer(images(), LABELS)["loss"].backward()
    trainable = enhancer.trainable_parameters()
    assert {id(p) for p in trainable} == {id(p) for p in [*enhancer.student.parameters(), *enhancer.heads.parameters()]}
    assert all(parameter.grad is not None for parameter in trainable)
    assert all(parameter.grad is None for parameter in [*enhancer.teacher.parameters(), *clip.parameters()])
    assert not [name for name in enhancer.state_dict() if "teacher." in name or "clip." in name or "tower" in name]
    assert not clip.train().training


@pytest.mark.parametrize("has_bank", [False, True])
def test_training_goes_on_exactly_from_a_checkpoint(has_bank: bool) -> None:
    def fresh() -> tuple[RichKDEnhancer, torch.optim.Optimizer]:
        enhancer = enhanced(clip=answers(), negatives=3)
        if has_bank:
            tell_samples(enhancer, torch.arange(10) % 4, torch.arange(10))
        assert isinstance(enhancer.heads.memory, MemoryBank if has_bank else MemoryQueue)
        return enhancer, torch.optim.SGD(enhancer.trainable_parameters(), lr=0.1)

    def step(enhancer: RichKDEnhancer, optimiser: torch.optim.Optimizer, seed: int) -> float:
        optimiser.zero_grad()
        loss = enhancer(images(seed=seed), IDS % 4, ids=IDS)["loss"]
        loss.backward()
        optimiser.step()
        return loss.item()

    whole = fresh()
    losses = [step(*whole, seed) for seed in range(4)]
    first = fresh()
    assert [step(*first, seed) for seed in range(2)] == losses[:2]
    resumed = fresh()
    resumed[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    assert [step(*resumed, seed) for seed in range(2, 4)] == losses[2:]
    assert resumed[0].steps_done == whole[0].steps_done == 4
    whole[0].eval()(images(), LABELS, ids=IDS)
    assert whole[0].steps_done == 4, "the draws of training do not depend on evaluations"


def test_tmkd_around_it_and_inside_it_give_the_distiller_the_same_logits() -> None:
    """Both are sums with weights that add up to 1; CLIP's answer is of the image, whatever the view."""
    text = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(8)), dim=2)
    seen = []
    for tmkd_is_outside in (True, False):
        kd = KD(*networks())
        if tmkd_is_outside:
            outer = TMKDEnhancer(enhanced(kd, clip=answers()), NAMES, text=text)
        else:
            outer = enhanced(TMKDEnhancer(kd, NAMES, text=text), clip=answers())
        assert wants_ids(outer)
        out = outer(images(), LABELS, ids=IDS)
        assert {"logit_kl", "feature_kl", "text_contrast", "feature_contrast"} <= set(out)
        terms = [value for name, value in out.items() if name not in ("loss", "output")]
        torch.testing.assert_close(out["loss"], sum(terms))
        seen.append(out["logit_kl"])
        assert type(kd.teacher).forward is TinyConvNet.forward
        assert "forward" not in kd.teacher.__dict__
    torch.testing.assert_close(*seen)
    assert not torch.allclose(seen[0], enhanced(clip=answers())(images(), LABELS, ids=IDS)["logit_kl"])


def test_ids_reach_a_distiller_inside_that_wants_them() -> None:
    enhancer = enhanced(TeKAP(*networks(), feature_weight=1.0, **SMALL), feature_weight=0.0)
    assert not wants_ids(enhancer)
    tell_samples(enhancer, torch.arange(10) % 4, torch.arange(10))
    assert wants_ids(enhancer)
    assert "tekap_features" in enhancer(images(), IDS % 4, ids=IDS)


def test_forms_in_which_a_distiller_may_ask_its_teacher() -> None:
    expected = enhanced(feature_weight=0.0)
    fused = fused_logits(expected.teacher(images()), clip_model()((images() * 255).round().byte()).cosines, 0.7)
    seen: list[Tensor] = []

    def keep(student: nn.Module, ask: Callable[[Tensor], Tensor]) -> Callable:
        def distiller(batch: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                seen.append(ask(batch))
            answer = student(batch)
            return F.cross_entropy(answer[0] if isinstance(answer, tuple) else answer, labels)

        return distiller

    options = {"logit_weight": 0.0, "feature_weight": 0.8}
    student, teacher = networks()
    head = lambda batch: teacher.forward_head(teacher.forward_features(batch))  # noqa: E731
    pre = lambda batch: teacher.forward_head(teacher.forward_features(batch), pre_logits=True)  # noqa: E731
    for ask in (head, pre):
        out = enhanced(keep(student, ask), student=student, teacher=teacher, **options)(images(), LABELS)
        assert out["feature_contrast"] > 0
    torch.testing.assert_close(seen[0], fused)
    torch.testing.assert_close(seen[1], teacher.forward_head(teacher.forward_features(images()), pre_logits=True))
    pair = FeaturePairNet(width=7, seed=2)
    enhanced(keep(student, lambda batch: pair(batch)[0]), student=student, teacher=pair, **options)(images(), LABELS)
    torch.testing.assert_close(seen[2], fused)


def test_the_halves_are_the_whole_where_labels_come_late() -> None:
    whole, halves = enhanced(), enhanced()
    for step in range(2):
        batch = images(seed=step)
        expected = whole(batch, LABELS)["feature_contrast"]
        per_view = halves.views_forward(batch)
        fused = fused_logits(halves.teacher(batch), clip_model()((batch * 255).round().byte()).cosines, 0.7)
        torch.testing.assert_close(halves.fuse(per_view, LABELS), fused)
        with halves.student_reader.recording():
            halves.student(batch)
            student = halves.student_reader.recorded()
        assert torch.equal(halves.added_terms(student, per_view, LABELS)["feature_contrast"], expected)
    assert halves.steps_done == whole.steps_done == 2
    with pytest.raises(InputError, match=r"3 labels"):
        halves.fuse(per_view, LABELS[:3])
    with pytest.raises(InputError, match=r"ids=batch\.ids"):
        enhanced(clip=answers()).views_forward(images())


class FeaturesFirstNet(TinyConvNet):
    """Returns logits, or ([features], logits) when it is asked for both."""

    def forward(self, batch: Tensor, is_feat: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        features = self.forward_features(batch)
        logits = self.forward_head(features)
        return ([features.mean(dim=(2, 3))[:, :4]], logits) if is_feat else logits


def test_logits_are_found_wherever_the_teacher_returns_them() -> None:
    student, teacher = TinyConvNet(width=5, seed=1), FeaturesFirstNet(width=7, seed=2)
    seen: list[tuple[list[Tensor], Tensor]] = []

    def distiller(batch: Tensor, labels: Tensor) -> Tensor:
        seen.append(teacher(batch, is_feat=True))
        return F.cross_entropy(student(batch), labels)

    enhanced(distiller, student=student, teacher=teacher, logit_weight=0.0)(images(), LABELS)
    features, logits = teacher(images(), is_feat=True)
    cosines = clip_model()((images() * 255).round().byte()).cosines
    torch.testing.assert_close(seen[0][1], fused_logits(logits, cosines, 0.7))
    assert torch.equal(seen[0][0][0], features[0])


def test_soft_labels_and_eval_mode_leave_the_memory_alone() -> None:
    enhancer = enhanced()
    enhancer(images(), F.one_hot(LABELS, 4).float())
    memory = enhancer.heads.memory
    assert memory.labels[:5].tolist() == LABELS.tolist()
    before = copy.deepcopy(memory.state_dict())
    enhancer.eval()(images(seed=1), LABELS)
    assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


def test_a_fused_classifier_for_reports() -> None:
    _, teacher = networks()
    fused = FusedClassifier(teacher.eval(), clip_model(), mean=(0.5,) * 3, std=(0.2,) * 3, clip_logit_scale=10.0)
    batch = (images() - 0.5) / 0.2
    cosines = clip_model()((images() * 255).round().to(torch.uint8)).cosines
    torch.testing.assert_close(fused(batch), 0.7 * teacher(batch) + 0.3 * 10 * cosines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variant": "X"}, "Unknown variant 'X'.*Known: F, L, LF"),
        ({"alpha": 1.5}, "alpha must be a number at least 0 and at most 1"),
        ({"temprature": 2}, "Did you mean 'temperature'"),
        ({"clip_logit_scale": 0}, "clip_logit_scale must be"),
        ({"clip_images": "twice"}, "Unknown clip_images 'twice'"),
        ({"clip_images": "once"}, "'once' needs ClipAnswers"),
        ({"clip": 3}, "clip= must name a CLIP"),
        ({"clip": "small_clip"}, "needs CLIP's image encoder"),
        ({"clip": ClipAnswers.stand_in(torch.arange(3), 7)}, "CLIP tells 7 classes apart, but there are 4"),
    ],
)
def test_messages(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        enhanced(**given)
