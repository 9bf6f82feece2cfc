"""TMKD and RichKD inside NVIDIA ModelOpt, with ModelOpt's own conversion, criteria, balancer, checkpoints and export."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from enhancer_cases import CLIP, ENHANCERS, GIVEN, asked_clip, clip_answers, unhosted
from framework_cases import CLASSES, MEAN, STD, TEXT, batch, gradients, networks, run_example
from tiny_networks import TinyConvNet
from torch import Tensor, nn

from tmkd_plugin import InputError
from tmkd_plugin.cross_modal_teacher import fused_logits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mtd = pytest.importorskip("modelopt.torch.distill", reason="nvidia-modelopt is not installed", exc_type=ImportError)

from tmkd_plugin.adapters.modelopt import enhance

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weights do not sum", "ignore:.*intermediate output stored", "ignore:reduction. .mean. divides"
)
NORMALISATION = {"mean": MEAN, "std": STD}
SETTINGS = {"text": TEXT, **NORMALISATION}


def converted(criterion: object = None, widths: tuple[int, int] = (5, 7), kd_weight: object = 0.5) -> nn.Module:
    student, teacher = networks(*widths)
    config = {
        "teacher_model": teacher,
        "criterion": criterion or mtd.LogitsDistillationLoss(temperature=4.0),
        "loss_balancer": mtd.StaticLossBalancer(kd_weight),
    }
    return mtd.convert(student, mode=[("kd_loss", config)])


def step(model: nn.Module, images: Tensor, targets: Tensor, **extra: object) -> Tensor:
    loss = model.compute_kd_loss(student_loss=F.cross_entropy(model(images), targets), **extra)
    model.zero_grad()
    loss.backward()
    return loss


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("labels_kind", ["classes", "probabilities"])
def test_the_loss_and_the_gradients_are_those_of_the_enhancer_itself(labels_kind: str, kind: str) -> None:
    images, labels = batch()
    if labels_kind == "probabilities":
        labels = F.one_hot(labels, 4) * 0.7 + 0.3 / 4
    model = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    student, teacher = networks()

    def by_hand(images: Tensor, labels: Tensor) -> Tensor:
        logits = student(images)
        kd = mtd.LogitsDistillationLoss(temperature=4.0)(logits, teacher(images))
        return kd * 0.5 + 0.5 * F.cross_entropy(logits, labels)

    enhancer = unhosted(kind, by_hand, student=student, teacher=teacher, logit_weight=0.0, **NORMALISATION)
    for _ in range(2):  # the noise is another one in the second step, and the queue is no longer empty
        expected = enhancer(images, labels)["loss"]
        enhancer.zero_grad()
        expected.backward()
        assert torch.equal(step(model, images, labels, labels=labels), expected)
    ours = gradients(model.loss_modules.get_submodule(kind).heads)
    assert ours.keys() == gradients(enhancer.heads).keys()
    assert all(torch.equal(ours[name], value) for name, value in gradients(enhancer.heads).items())
    assert all(torch.equal(model.get_parameter(name).grad, value) for name, value in gradients(student).items())
    learned = [value for name, value in ours.items() if kind == "richkd" or name.startswith("weight_net")]
    assert learned
    assert all(value.abs().max() > 0 for value in learned)


def test_the_criteria_get_the_fused_tensors_of_inner_layers_and_of_the_output() -> None:
    class Record(nn.modules.loss._Loss):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            self.seen.append(teacher)
            return F.mse_loss(student, teacher)

    pool, logits = Record(), Record()
    model = converted({("pool", "pool"): pool, ("", ""): logits}, (7, 7), [0.25, 0.25])
    model = enhance(model, CLASSES, **SETTINGS)
    images, labels = batch()
    step(model, images, labels, labels=labels)

    teacher = networks(7, 7)[1].eval()
    weights = model.loss_modules.tmkd.fusion_table()[labels]
    views = model.loss_modules.tmkd.multi_view.views_of(images)
    pooled = [teacher.pool(teacher.forward_features(view)) for view in views]
    torch.testing.assert_close(pool.seen[-1], sum(weights[:, v, None, None, None] * pooled[v] for v in range(3)))
    torch.testing.assert_close(logits.seen[-1], sum(weights[:, v, None] * teacher(views[v]) for v in range(3)))
    assert not pool.seen[-1].requires_grad


def test_richkd_fuses_the_logits_wherever_a_hook_caught_them_and_no_feature() -> None:
    seen: dict[str, Tensor] = {}

    class Record(nn.modules.loss._Loss):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            seen[self.name] = teacher
            return F.mse_loss(student, teacher)

    criteria = {("pool", "pool"): Record("pool"), ("fc", "fc"): Record("fc"), ("", ""): Record("output")}
    model = enhance(converted(criteria, (7, 7), [0.2] * 3), CLASSES, **GIVEN["richkd"], **NORMALISATION)
    images, labels = batch()
    step(model, images, labels, labels=labels)
    teacher = networks(7, 7)[1].eval()
    expected = fused_logits(teacher(images), asked_clip(images, MEAN, STD), 0.7, 20.0)
    torch.testing.assert_close(seen["output"], expected)
    torch.testing.assert_close(seen["fc"], expected)
    assert torch.equal(seen["pool"], teacher.pool(teacher.forward_features(images)))


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_logit_kl_is_added_where_no_criterion_has_one(kind: str) -> None:
    images, labels = batch()
    kl = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    features = enhance(converted({("pool", "pool"): nn.MSELoss()}, (7, 7)), CLASSES, **GIVEN[kind], **NORMALISATION)
    for model, expected in ((kl, False), (features, True)):
        model(images)
        assert ("logit_kl" in model.compute_kd_loss(labels=labels, skip_balancer=True)) is expected


def test_without_the_balancer_the_dict_holds_their_terms_and_ours() -> None:
    images, labels = batch()
    model = enhance(converted(), CLASSES, **SETTINGS)
    model(images)
    terms = model.compute_kd_loss(labels=labels, skip_balancer=True)
    assert set(terms) == {"LogitsDistillationLoss_0", "feature_kl", "text_contrast"}


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_optimiser_trains_the_heads_and_the_teacher_stays(kind: str) -> None:
    model = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for seed in range(3):
        images, labels = batch(seed)
        model.train()
        step(model, images, labels, labels=labels)
        optimiser.step()
        model.eval()  # an evaluation between two steps must not disturb them
        model(images)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("_teacher_model."), name
    assert not model.teacher_model.training


@pytest.mark.parametrize("kind", ENHANCERS)
def test_their_checkpoint_holds_the_heads_and_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    def run(model: nn.Module, seeds: range) -> Tensor:
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for seed in seeds:
            images, labels = batch(seed)
            loss = step(model, images, labels, labels=labels)
            optimiser.step()
        return loss

    first = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    run(first, range(2))
    torch.save(first.state_dict(), tmp_path / "model.pt")
    of_networks = ("_teacher_model", "tower", f"{kind}.teacher", f"{kind}.student")
    assert not [key for key in first.state_dict() if any(part in key for part in of_networks)]
    second = enhance(converted(), CLASSES, seed=9, **GIVEN[kind], **NORMALISATION)
    second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    second.loss_modules.get_submodule(kind).seed = 0
    assert torch.equal(run(first, range(2, 4)), run(second, range(2, 4)))


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_checkpoint_from_before_loads(kind: str) -> None:
    plain = converted()
    with torch.no_grad():
        plain.fc.bias += 1
    model = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.fc.bias, plain.fc.bias)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_export_gives_the_plain_student_and_the_plain_teacher(kind: str) -> None:
    model = enhance(converted(), CLASSES, **GIVEN[kind], **NORMALISATION)
    teacher = model.teacher_model
    images, labels = batch()
    step(model, images, labels, labels=labels)
    student = mtd.export(model)
    assert type(student) is TinyConvNet
    assert student.state_dict().keys() == networks()[0].state_dict().keys()
    assert not {"compute_kd_loss", "_tmkd", "forward"} & student.__dict__.keys()
    assert "forward" not in teacher.__dict__
    assert torch.equal(teacher(images), networks()[1].eval()(images))


def test_switched_off_it_is_modelopt_to_the_bit() -> None:
    losses = []
    for switch in (False, None):
        model = converted()
        if switch is not None:
            assert enhance(model, CLASSES, enabled=switch, **SETTINGS) is model
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(3):
            images, labels = batch(seed)
            losses.append(step(model, images, labels))
            optimiser.step()
    assert all(torch.equal(losses[i], losses[i + 3]) for i in range(3))


def test_messages() -> None:
    images, labels = batch()
    with pytest.raises(InputError, match=r"DistillationModel that mtd\.convert returns.*TinyConvNet"):
        enhance(networks()[0], CLASSES, **SETTINGS)
    model = enhance(converted(), CLASSES, **SETTINGS)
    with pytest.raises(InputError, match="enhanced already"):
        enhance(model, CLASSES, **SETTINGS)
    with pytest.raises(InputError, match="did not run since the last step"):
        model.compute_kd_loss(labels=labels)
    model(images)
    with pytest.raises(InputError, match="labels=labels"):
        model.compute_kd_loss()
    with pytest.raises(InputError, match="3 labels"):
        model.compute_kd_loss(labels=labels[:3])
    with torch.no_grad():
        model(images)
    with pytest.raises(InputError, match="ran without gradient"):
        model.compute_kd_loss(labels=labels, skip_balancer=True)
    with pytest.raises(
        InputError, match=r"ClipAnswers.*but ModelOpt passes images and labels alone\. Give clip= a CLIP"
    ):
        enhance(converted(), CLASSES, enhancer="richkd", clip=clip_answers())
    with pytest.raises(InputError, match=r"clip= was given, but enhancer='tmkd' takes text="):
        enhance(converted(), CLASSES, clip=CLIP)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_example_of_the_document_runs(kind: str) -> None:
    student, teacher = networks()
    images, labels = batch()
    names = run_example(
        "adapters/modelopt.md",
        {
            "student": student,
            "teacher": teacher,
            "class_names": CLASSES,
            "mean": MEAN,
            "std": STD,
            "loader": [(images, labels)] * 2,
            "text": TEXT,
            "clip": CLIP,
        },
        block=ENHANCERS.index(kind),
    )
    assert type(names["student"]) is TinyConvNet
    assert torch.isfinite(names["loss"])
