"""Three lines around every form of distiller that people have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import FeaturePairNet, LogitsAndFeaturesNet, TinyConvNet, logit_kl
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.nested import leaves
from tmkd_plugin.randomness import forked_random_state

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
LABELS = torch.tensor([0, 1, 2, 3, 1])


def images(seed: int = 0) -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


class Base(nn.Module):
    """A user's distiller: any module with a student and a teacher. Notes what its teacher told it."""

    network: type[nn.Module] = TinyConvNet
    has_logit_kl = True

    def __init__(self) -> None:
        super().__init__()
        self.student = self.network(width=5, seed=1)
        self.teacher = self.network(width=7, seed=2)
        self.heard: list[Tensor] = []

    def losses(self, student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.heard.append(teacher)
        return {"ce": F.cross_entropy(student, labels), "kl": logit_kl(student, teacher)}


class OurDict(Base):
    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        student = self.student(images)
        terms = self.losses(student, self.teacher(images), labels)
        return {"loss": sum(terms.values()), "output": student, **terms}


class LogitsAndTerms(Base):
    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        student = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        return student, self.losses(student, teacher, labels)


class Scalar(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return sum(self.losses(self.student(images), self.teacher(images), labels).values())


class InferenceMode(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            teacher = self.teacher(images)
        return sum(self.losses(self.student(images), teacher.clone(), labels).values())


class CallsTwice(Base):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.teacher(images), self.teacher(images)
        self.heard.append(second)
        return sum(self.losses(self.student(images), first, labels).values())


class UnpacksFeatures(Base):
    network = LogitsAndFeaturesNet

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        student, _ = self.student(images)
        teacher, features = self.teacher(images)
        assert features.shape[:2] == (5, 7)
        return sum(self.losses(student, teacher, labels).values())


class UnpacksFeatureDict(Base):
    network = FeaturePairNet

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        student, _ = self.student(images)
        teacher, extras = self.teacher(images)
        # Fusing pooled features and fusing logits agree, since the classifier is affine.
        torch.testing.assert_close(self.teacher.fc(extras["pooled_feat"]), teacher)
        torch.testing.assert_close(extras["feats"][-1].mean((2, 3)), extras["pooled_feat"])
        return student, self.losses(student, teacher, labels)


class OtherNames(nn.Module):
    has_logit_kl = True

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({"small": TinyConvNet(width=5, seed=1), "big": TinyConvNet(width=7, seed=2)})
        self.heard: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        teacher = self.nets["big"](images)
        self.heard.append(teacher)
        return F.cross_entropy(self.nets["small"](images), labels) + logit_kl(self.nets["small"](images), teacher)


class CallsForwardFeatures(Base):
    """As timm's feature distillation does."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.teacher.forward_features(images)
            pooled = self.teacher.forward_head(features, pre_logits=True)
        student_features = self.student.forward_features(images)
        student = self.student.forward_head(student_features)
        self.heard.append(self.teacher.fc(pooled))
        return F.cross_entropy(student, labels) + 0.1 * student_features.square().mean()


FORMS = [OurDict, LogitsAndTerms, Scalar, InferenceMode, CallsTwice, UnpacksFeatures, UnpacksFeatureDict]


def wrap(distiller: object, **arguments: object) -> TMKDEnhancer:
    return TMKDEnhancer(distiller, class_names=NAMES, text=TEXT, **arguments)


def check(enhancer: TMKDEnhancer, heard: list[Tensor], labels: Tensor = LABELS) -> None:
    """What holds for every wrapped distiller."""
    enhancer.train()
    student, teacher = enhancer.student, enhancer.teacher
    before = copy.deepcopy(teacher.state_dict())
    out = enhancer(images(), labels)

    # the fused teacher really was used
    per_view = enhancer.views_forward(images())
    table = enhancer.fusion_table().detach()
    weights = table[labels] if labels.ndim == 1 else labels @ table
    fused = sum(per_view.outputs[v].logits * weights[:, v, None] for v in range(3))
    assert heard
    for logits in heard:
        torch.testing.assert_close(logits, fused)
        assert not logits.requires_grad
    assert not torch.allclose(fused, per_view.outputs[0].logits)

    # the terms add up; the output is the student's
    terms = [value for name, value in out.items() if name not in ("loss", "output")]
    torch.testing.assert_close(out["loss"], sum(terms))
    assert out["output"].shape == (5, 4)

    # WeightNet learns from the feature KL alone, the student from the loss, the teacher from nothing
    weight_net = list(enhancer.heads.weight_net.parameters())
    own = sum(value for name, value in out.items() if name not in ("loss", "output", "feature_kl"))
    assert all(g is None for g in torch.autograd.grad(own, weight_net, allow_unused=True, retain_graph=True))
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in weight_net)
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())

    # at test time the student is the bare network with these weights
    bare = type(student)(width=5)
    bare.load_state_dict(student.state_dict())
    with torch.no_grad():
        answers = [leaves(network.eval()(images())) for network in (student, bare)]
    assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))

    # the teacher is as it was; the checkpoint does without it; nothing stays on the networks
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    teacher_tensors = {value.data_ptr() for value in teacher.state_dict().values()}
    assert not any(value.data_ptr() in teacher_tensors for value in enhancer.state_dict().values())
    for network in (student, teacher):
        assert "forward" not in vars(network)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_distillers(form: type[Base]) -> None:
    distiller = form()
    check(wrap(distiller), distiller.heard)


@pytest.mark.parametrize("form", [OurDict, LogitsAndTerms])
@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_and_mixed_labels(form: type[Base], smoothing: float) -> None:
    distiller = form()
    labels = F.one_hot(LABELS, 4).float() * (1 - smoothing) + smoothing * F.one_hot(LABELS.flip(0), 4)
    check(wrap(distiller), distiller.heard, labels)


@pytest.mark.parametrize("as_names", [True, False])
def test_networks_under_other_names(as_names: bool) -> None:
    distiller = OtherNames()
    small, big = ("nets.small", "nets.big") if as_names else (distiller.nets["small"], distiller.nets["big"])
    enhancer = wrap(distiller, student=small, teacher=big)
    check(enhancer, distiller.heard)
    assert not any("big" in name for name in enhancer.state_dict())


def test_a_function_closed_over_its_networks() -> None:
    student, teacher, heard = TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2), []

    def step(batch: Tensor, labels: Tensor) -> Tensor:
        heard.append(teacher(batch))
        return F.cross_entropy(student(batch), labels) + logit_kl(student(batch), heard[-1])

    enhancer = wrap(step, student=student, teacher=teacher, logit_weight=0.0)
    check(enhancer, heard)
    trained = {id(parameter) for parameter in enhancer.trainable_parameters()}
    assert {id(parameter) for parameter in student.parameters()} < trained


def test_a_distiller_that_calls_forward_features_only() -> None:
    distiller = CallsForwardFeatures()
    check(wrap(distiller), distiller.heard)


@pytest.mark.parametrize("change", ["crop", "order", "size", "flip"])
def test_other_images_than_the_batch_ask_for_their_labels(change: str) -> None:
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "crop": lambda x: F.pad(x[..., 2:, 2:], (0, 2, 0, 2)),
        "order": lambda x: x.flip(0),
        "size": lambda x: F.interpolate(x, size=24),
        "flip": lambda x: x.flip(3),
    }

    class Changed(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return sum(self.losses(self.student(batch), self.teacher(changes[change](batch)), labels).values())

    distiller = Changed()
    enhancer = wrap(distiller)
    with pytest.raises(InputError, match="teacher_labels="):
        enhancer(images(), LABELS)
    teacher_labels = LABELS.flip(0) if change == "order" else LABELS
    if change == "order":
        with pytest.raises(InputError, match=r"not the same images.*feature_weight=0"):
            enhancer(images(), LABELS, teacher_labels=teacher_labels)
        enhancer = wrap(distiller, feature_weight=0.0, logit_weight=0.0)
    enhancer(images(), LABELS, teacher_labels=teacher_labels)["loss"].backward()
    per_view = enhancer.views_forward(changes[change](images()))
    torch.testing.assert_close(distiller.heard[-1], enhancer.fuse(per_view, teacher_labels))


def test_more_images_than_labels_ask_for_their_labels() -> None:
    class Doubled(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            teacher = self.teacher(torch.cat([batch, batch.flip(3)]))
            return sum(self.losses(self.student(batch), teacher[:5], labels).values())

    with pytest.raises(InputError, match="teacher_labels="):
        wrap(Doubled())(images(), LABELS)
    enhancer = wrap(Doubled(), feature_weight=0.0, logit_weight=0.0)
    enhancer(images(), LABELS, teacher_labels=LABELS.repeat(2))["loss"].backward()


def test_the_same_pixels_in_another_tensor_are_the_batch() -> None:
    class Copies(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return sum(self.losses(self.student(batch), self.teacher(batch.clone()), labels).values())

    distiller = Copies()
    check(wrap(distiller), distiller.heard)


def test_a_distiller_that_never_calls_its_teacher_is_an_error() -> None:
    class Forgetful(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.student(batch), labels)

    with pytest.raises(InputError, match=r"never called its teacher \(TinyConvNet\)"):
        wrap(Forgetful())(images(), LABELS)


def test_a_distiller_that_does_not_say_whether_it_has_a_logit_kl_is_noticed() -> None:
    class Silent(OurDict):
        has_logit_kl = None

    with pytest.warns(TmkdNotice, match="has_logit_kl"):
        assert wrap(Silent()).heads.logit_weight == 0
    assert wrap(Silent(), logit_weight=0.7).heads.logit_weight == 0.7

    class Without(OurDict):
        has_logit_kl = False

    assert wrap(Without()).heads.logit_weight == 1


class Extra(OurDict):
    """Takes more arguments and trains more parameters than its student's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, labels: Tensor, index: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        assert index.shape == labels.shape
        assert epoch == 3
        out = super().forward(images, labels)
        return {**out, "loss": out["loss"] * self.scale, "ce": out["ce"] * self.scale, "kl": out["kl"] * self.scale}


def test_further_arguments_and_parameters_are_kept() -> None:
    distiller = Extra()
    enhancer = wrap(distiller)
    enhancer(images(), LABELS, torch.arange(5), epoch=3)["loss"].backward()
    assert any(parameter is distiller.scale for parameter in enhancer.trainable_parameters())


@pytest.mark.parametrize(
    ("distiller", "arguments", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, "has no module 'student'.*student="),
        (lambda: OtherNames(), {"student": "nets.smal", "teacher": "nets.big"}, "no module 'nets.smal'.*nets"),
        (lambda: OtherNames(), {"student": "nets.big", "teacher": "nets.big"}, "same module"),
        (lambda: OtherNames(), {"student": 3, "teacher": "nets.big"}, "student= must be"),
        (lambda: 7, {}, "can't be called"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(distiller: Callable[[], object], arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrap(distiller(), **arguments)


class ReturnsNonsense(Base):
    def forward(self, images: Tensor, labels: Tensor) -> list[str]:
        _ = self.student(images), self.teacher(images)
        return ["loss"]


def test_a_return_that_is_no_loss_is_described() -> None:
    with pytest.raises(InputError, match=r"returned a list of str\. Expected a dict with 'loss'"):
        wrap(ReturnsNonsense())(images(), LABELS)


def test_the_student_at_test_time_is_the_bare_network() -> None:
    distiller = OurDict()
    bare = copy.deepcopy(distiller.student).eval()
    enhancer = wrap(distiller).eval()
    assert enhancer.student is distiller.student
    assert type(enhancer.student) is TinyConvNet
    assert torch.equal(enhancer.student(images()), bare(images()))
    TinyConvNet(width=5).load_state_dict(enhancer.student.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_losses_with_compiled_networks(form: type[Base]) -> None:
    expected = wrap(form())(images(), LABELS)
    distiller = form()
    # Dynamo's tracing is what could miss a hook or the interception; the code generator behind it is tested below.
    distiller.student = torch.compile(distiller.student, backend="eager")
    distiller.teacher = torch.compile(distiller.teacher, backend="eager")
    out = wrap(distiller)(images(), LABELS)
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks_give_the_same_losses(in_place: bool) -> None:
    expected = wrap(OurDict())(images(), LABELS)
    distiller = OurDict()
    if in_place:
        distiller.student.compile()
        distiller.teacher.compile()
    else:
        distiller.student = torch.compile(distiller.student)
        distiller.teacher = torch.compile(distiller.teacher)
    enhancer = wrap(distiller)
    for _ in range(2):
        out = enhancer(images(), LABELS)
        enhancer.set_extra_state(torch.tensor(0))  # the same noise again
        for name, value in expected.items():
            torch.testing.assert_close(out[name], value, msg=lambda text, name=name: f"{name}: {text}")
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in enhancer.trainable_parameters())


def test_an_error_inside_the_distiller_leaves_the_teacher_untouched() -> None:
    class Fails(Base):
        def forward(self, batch: Tensor, labels: Tensor) -> Tensor:
            self.teacher(batch)
            raise RuntimeError("out of memory, say")

    distiller = Fails()
    enhancer = wrap(distiller)
    with pytest.raises(RuntimeError, match="out of memory"):
        enhancer(images(), LABELS)
    assert "forward" not in vars(distiller.teacher)
    assert not any(module._forward_hooks for module in distiller.modules())


def test_the_students_own_trial_run_without_gradient_is_not_mistaken_for_its_step() -> None:
    class LooksFirst(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                self.student(images * 0.5)
            return super().forward(images, labels)

    distiller = LooksFirst()
    enhancer = wrap(distiller)
    out = enhancer(images(), LABELS)
    added = out["feature_kl"] + out["text_contrast"]
    assert all(grad is not None for grad in torch.autograd.grad(added, list(distiller.student.parameters())[:4]))


def test_a_student_without_gradient_is_refused() -> None:
    class NoGradient(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                return super().forward(images, labels)

    enhancer = wrap(NoGradient())
    with pytest.raises(InputError, match="ran without gradient"):
        enhancer(images(), LABELS)
    enhancer.eval()(images(), LABELS)
    with torch.no_grad():
        enhancer.train()(images(), LABELS)


def test_a_student_called_on_other_rows_is_refused() -> None:
    class TwoCrops(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            student = self.student(torch.cat([images, images.flip(3)]))
            return sum(self.losses(student[:5], self.teacher(images), labels).values())

    with pytest.raises(InputError, match="called its student on 10 images first, but the batch has 5 labels"):
        wrap(TwoCrops())(images(), LABELS)


def test_the_batch_counts_even_if_the_teacher_sees_another_crop_first() -> None:
    class CropFirst(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.teacher(images.flip(3))
            return super().forward(images, labels)

    plain, cropped = wrap(OurDict()), wrap(CropFirst())
    expected = plain(images(), LABELS)["feature_kl"]
    torch.testing.assert_close(cropped(images(), LABELS, teacher_labels=LABELS)["feature_kl"], expected)


@pytest.mark.parametrize("pre_logits", [False, True])
def test_logit_source_rgb_holds_for_forward_head_too(pre_logits: bool) -> None:
    class Heads(Base):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            head = self.teacher.forward_head(self.teacher.forward_features(images), pre_logits=pre_logits)
            self.heard.append(head)
            return F.cross_entropy(self.student(images), labels)

    distiller = Heads()
    enhancer = wrap(distiller, logit_source="rgb")
    enhancer(images(), LABELS)
    rgb = distiller.teacher.forward_head(distiller.teacher.forward_features(images()), pre_logits=pre_logits)
    assert torch.equal(distiller.heard[0], rgb) == (not pre_logits)


def test_a_container_that_the_teacher_reuses_is_fused() -> None:
    class Reuses(TinyConvNet):
        def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
            self.__dict__.setdefault("kept", []).clear()
            self.kept.append(self.forward_features(images))
            return self.forward_head(self.kept[0]), self.kept

    class Keeps(Base):
        network = Reuses

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            teacher, features = self.teacher(images)
            torch.testing.assert_close(self.teacher.forward_head(features[0]), teacher)
            return sum(self.losses(self.student(images)[0], teacher, labels).values())

    distiller = Keeps()
    check(wrap(distiller), distiller.heard)


def test_hooks_on_the_teacher_itself_run_once_and_those_inside_end_with_the_rgb_view() -> None:
    bare, distiller = OurDict(), OurDict()
    inside = []
    bare.teacher.eval()
    for each in (bare, distiller):
        each.teacher.register_forward_hook(lambda module, args, output: output * 2)
    distiller.teacher.fc.register_forward_hook(lambda module, args, output: inside.append(output))
    enhancer = TMKDEnhancer(
        distiller, NAMES, text=TEXT[:1], views=("rgb",), feature_weight=0, contrast_weight=0, logit_weight=0
    )
    assert torch.equal(enhancer(images(), LABELS)["loss"], bare(images(), LABELS)["loss"])

    inside.clear()
    three_views = wrap(distiller)
    three_views(images(), LABELS)
    assert torch.equal(inside[-1] * 2, distiller.teacher(images()))


def test_a_bound_methods_own_parameters_are_trained_and_saved() -> None:
    class Trainer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.big = TinyConvNet(width=5, seed=1), TinyConvNet(width=7, seed=2)
            self.adapter = nn.Linear(4, 4)

        def step(self, images: Tensor, labels: Tensor) -> Tensor:
            logits = self.adapter(self.small(images))
            return F.cross_entropy(logits, labels) + logit_kl(logits, self.big(images))

    trainer = Trainer()
    enhancer = wrap(trainer.step, student=trainer.small, teacher=trainer.big, logit_weight=0.0)
    trained = {id(parameter) for parameter in enhancer.trainable_parameters()}
    assert {id(parameter) for parameter in trainer.adapter.parameters()} < trained
    assert not any("big" in name for name in enhancer.state_dict())
    enhancer(images(), LABELS)["loss"].backward()
    assert trainer.adapter.weight.grad is not None


def test_figures_for_the_log_are_not_taken_for_terms() -> None:
    class Logs(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = super().forward(images, labels)
            return {**out, "accuracy": (out["output"].argmax(1) == labels).float().mean()}

    out = wrap(Logs())(images(), LABELS)
    assert "accuracy" not in out
    torch.testing.assert_close(out["loss"], sum(v for k, v in out.items() if k not in ("loss", "output")))


def test_loss_and_logs_are_not_taken_for_logits_and_terms() -> None:
    class LossAndLogs(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            out = super().forward(images, labels)
            return out["loss"], {"ce": out["ce"].detach()}

    with pytest.raises(InputError, match=r"For \(loss, logs\) return the loss alone"):
        wrap(LossAndLogs())(images(), LABELS)


def test_numbers_among_the_terms_and_predictions_in_eval_mode() -> None:
    class Warm(LogitsAndTerms):
        def forward(self, images: Tensor, labels: Tensor) -> object:
            if not self.training:
                return self.student(images)
            logits, terms = super().forward(images, labels)
            return logits, {**terms, "warm_up": 0.0}

    enhancer = wrap(Warm())
    enhancer(images(), LABELS)["loss"].backward()
    with pytest.raises(InputError, match=r"never called its teacher|distiller\.student\(images\)"):
        enhancer.eval()(images(), LABELS)


def test_crops_in_a_list_are_refused() -> None:
    with pytest.raises(InputError, match="images are a list"):
        wrap(OurDict())([images(), images()], LABELS)


def test_logit_source_rgb_holds_for_a_teacher_that_is_called_for_its_features() -> None:
    """Where the logits stand in the answer depends on the call, not on the probe's."""

    class Featured(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, 4)

        def forward(self, images: Tensor, is_feat: bool = False) -> Any:
            feature_map = self.conv(images).relu()
            pooled = feature_map.mean((2, 3))
            logits = self.fc(pooled)
            return ([feature_map, pooled], logits) if is_feat else logits

    seen: list[Any] = []
    with forked_random_state(0, "featured"):
        student, teacher = Featured(5), Featured(6)

    def distiller(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = student(images)
        seen.append(teacher(images, is_feat=True))
        return {"loss": (logits - seen[-1][1].detach()).square().mean(), "output": logits}

    text = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    enhancer = TMKDEnhancer(
        distiller,
        list("abcd"),
        student=student,
        teacher=teacher,
        text=text,
        logit_source="rgb",
        logit_weight=0,
        input_size=16,
    )
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    enhancer(images, torch.arange(6) % 4)
    (feature_map, pooled), logits = seen[0]
    own = teacher(images, is_feat=True)
    assert torch.equal(logits, own[1])
    assert feature_map.shape == own[0][0].shape
    assert not torch.equal(pooled, own[0][1])
