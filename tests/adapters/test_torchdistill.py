"""TMKD and RichKD inside torchdistill, with its own boxes, YAML, hooks, losses, optimiser and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enhancer_cases import CLIP, ENHANCERS, GIVEN, asked_clip, clip_answers, unhosted, usual_logit_weight
from framework_cases import CLASSES, MEAN, STD, TEXT, batch, gradients, networks, run_example
from torch import Tensor, nn

from tmkd_plugin import InputError, TmkdNotice
from tmkd_plugin.cross_modal_teacher import fused_logits

pytest.importorskip("torchdistill", reason="torchdistill is not installed")

import yaml
from torchdistill.common.main_util import load_ckpt, save_ckpt
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.forward_hook import ForwardHookManager

from tmkd_plugin.adapters.torchdistill import enhance

NORMALISATION = {"mean": MEAN, "std": STD}
SETTINGS = {"text": TEXT, **NORMALISATION}
KD = """
kd:
  criterion:
    key: KDLoss
    kwargs: {student_module_path: '.', student_module_io: output, teacher_module_path: '.', teacher_module_io: output,
             temperature: 4.0, alpha: 0.5, reduction: batchmean}
  weight: 1.0
"""
MAPS = """
maps:
  criterion: {key: MSELoss, kwargs: {}}
  criterion_wrapper:
    key: SimpleLossWrapper
    kwargs:
      input: {is_from_teacher: False, module_path: pool, io: input}
      target: {is_from_teacher: True, module_path: pool, io: input}
  weight: 2.0
"""
TMKD = """
ours: {criterion: {key: TMKDLoss, kwargs: {}}, weight: 0.5}
"""


def configuration(terms: str = KD, scheduler: bool = False) -> dict[str, Any]:
    model = {"forward_proc": "forward_batch_only", "forward_hook": {"input": ["pool"], "output": ["bn"]}}
    config = {
        "num_epochs": 2,
        "teacher": {"requires_grad": False, **model},
        "student": dict(model),
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": yaml.safe_load(terms)},
            "func2extract_model_loss": "extract_model_loss_dict",
        },
    }
    if scheduler:
        config["scheduler"] = {"key": "CosineAnnealingLR", "kwargs": {"T_max": 4}}
    return config


def box_of(config: dict[str, Any] | None = None, widths: tuple[int, int] = (5, 7)) -> Any:
    student, teacher = networks(*widths)
    teacher.eval()
    config = config or configuration()
    return get_distillation_box(teacher, student, {}, config, torch.device("cpu"), None, False, 1)


def step(box: Any, images: Tensor, labels: Tensor) -> Tensor:
    loss = box.forward_process(images, labels, {})
    box.post_forward_process(loss=loss)
    return loss.detach()


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("labels_kind", ["classes", "probabilities"])
def test_the_loss_and_the_gradients_are_those_of_the_enhancer_itself(labels_kind: str, kind: str) -> None:
    images, labels = batch()
    if labels_kind == "probabilities":
        labels = F.one_hot(labels, 4) * 0.7 + 0.3 / 4
    box = enhance(box_of(), CLASSES, **GIVEN[kind], **NORMALISATION)
    student, teacher = networks()

    def by_hand(images: Tensor, labels: Tensor) -> Tensor:
        logits = student(images)
        soft = F.kl_div((logits / 4).log_softmax(1), (teacher(images) / 4).softmax(1), reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * 4**2 * soft

    enhancer = unhosted(kind, by_hand, student=student, teacher=teacher, logit_weight=0.0, **NORMALISATION)
    for _ in range(2):  # the noise is another one in the second step, and the queue is no longer empty
        loss, expected = box.forward_process(images, labels, {}), enhancer(images, labels)["loss"]
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        for module, value in ((box.org_student_model, loss), (enhancer, expected)):
            module.zero_grad()
            value.backward()
    heads, student_gradients = gradients(enhancer.heads), gradients(student)
    ours = gradients(box.org_student_model)
    assert ours.keys() == student_gradients.keys() | {f"{kind}.heads.{name}" for name in heads}
    for name, value in [*student_gradients.items(), *((f"{kind}.heads.{name}", g) for name, g in heads.items())]:
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-7)
    learned = [
        value for name, value in ours.items() if f"{kind}.heads." in name and (kind == "richkd" or "weight_net" in name)
    ]
    assert learned
    assert all(value.abs().max() > 0 for value in learned)


def test_the_io_dict_of_the_teacher_holds_the_fused_tensors() -> None:
    images, labels = batch()
    box = enhance(box_of(), CLASSES, **SETTINGS)
    outputs, io_dict = box.get_teacher_output(images, labels, {})
    tmkd, teacher = box.org_student_model.tmkd, networks()[1].eval()
    weights = tmkd.fusion_table()[labels]
    views = tmkd.multi_view.views_of(images)

    def fused(part: Any) -> Tensor:
        return sum(weights[:, v].reshape(-1, *(1,) * (part(views[v]).ndim - 1)) * part(views[v]) for v in range(3))

    torch.testing.assert_close(outputs, fused(teacher))
    torch.testing.assert_close(io_dict["."]["output"], fused(teacher))
    torch.testing.assert_close(io_dict["pool"]["input"], fused(teacher.forward_features))
    torch.testing.assert_close(io_dict["bn"]["output"], fused(lambda view: teacher.bn(teacher.conv(view))))
    assert not outputs.requires_grad


def test_richkd_fuses_the_logits_wherever_a_hook_caught_them_and_no_feature() -> None:
    images, labels = batch()
    config = configuration()
    config["teacher"]["forward_hook"] = {"input": ["pool"], "output": ["fc"]}
    outputs, io_dict = enhance(box_of(config), CLASSES, **GIVEN["richkd"], **NORMALISATION).get_teacher_output(
        images, labels, {}
    )
    teacher = networks()[1].eval()
    expected = fused_logits(teacher(images), asked_clip(images, MEAN, STD), 0.7, 20.0)
    for logits in (outputs, io_dict["."]["output"], io_dict["fc"]["output"]):
        torch.testing.assert_close(logits, expected)
    assert torch.equal(io_dict["pool"]["input"], teacher.forward_features(images))


def test_a_term_in_yaml_gives_the_weight_and_without_one_it_is_one() -> None:
    images, labels = batch()
    losses = {}
    for name, terms in (("none", KD), ("half", KD + TMKD)):
        box = enhance(box_of(configuration(terms)), CLASSES, **SETTINGS)
        losses[name] = box.forward_process(images, labels, {})
    box = enhance(box_of(configuration(KD + TMKD.replace("0.5", "0.0"))), CLASSES, **SETTINGS)
    own = box.forward_process(images, labels, {})
    torch.testing.assert_close(losses["half"] - own, 0.5 * (losses["none"] - own))
    assert losses["half"] > own


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_logit_kl_is_added_where_no_term_has_one(kind: str) -> None:
    for terms, expected in ((KD, 0.0), (MAPS, usual_logit_weight(kind))):
        box = enhance(box_of(configuration(terms), (7, 7)), CLASSES, **GIVEN[kind], **NORMALISATION)
        assert box.org_student_model.get_submodule(kind).heads.logit_weight == expected


@pytest.mark.parametrize("kind", ENHANCERS)
def test_their_optimiser_trains_the_heads_under_their_scheduler(kind: str) -> None:
    box = enhance(box_of(configuration(scheduler=True)), CLASSES, **GIVEN[kind], **NORMALISATION)
    before = {name: p.clone() for name, p in box.student_model.named_parameters()}
    teacher_before = [p.clone() for p in box.teacher_model.parameters()]
    for epoch in range(2):
        box.pre_epoch_process(epoch=epoch)
        for seed in range(2):
            step(box, *batch(seed))
        box.post_epoch_process()
    assert all(not torch.equal(p, before[name]) for name, p in box.student_model.named_parameters())
    assert all(map(torch.equal, box.teacher_model.parameters(), teacher_before))
    assert len(box.optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", ENHANCERS)
def test_their_checkpoint_holds_the_heads_and_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    given = {**GIVEN[kind], **NORMALISATION}
    first, second = (enhance(box_of(configuration(scheduler=True)), CLASSES, **given) for _ in range(2))
    for seed in range(2):
        step(first, *batch(seed))
    path = str(tmp_path / "ckpt.pt")
    save_ckpt(first.student_model, first.optimizer, first.lr_scheduler, 0.0, None, path)
    load_ckpt(path, second.student_model, second.optimizer, second.lr_scheduler, strict=True)
    for seed in range(2, 4):
        assert torch.equal(step(first, *batch(seed)), step(second, *batch(seed)))
    saved = torch.load(path, weights_only=False)["model"]
    student = networks()[0]
    student.load_state_dict({key: value for key, value in saved.items() if not key.startswith(f"{kind}.")})
    assert not [key for key in saved if "tower" in key or f"{kind}.teacher" in key]


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_checkpoint_from_before_loads_with_a_notice(kind: str) -> None:
    box = enhance(box_of(), CLASSES, **GIVEN[kind], **NORMALISATION)
    plain = networks()[0]
    with torch.no_grad():
        plain.fc.bias += 1
    with pytest.warns(TmkdNotice, match=rf"no key {kind}\.\*"):
        box.student_model.load_state_dict(plain.state_dict())
    assert torch.equal(box.student_model.fc.bias, plain.fc.bias)


def test_it_stays_through_the_stages_of_a_box() -> None:
    stage = {**configuration(), "num_epochs": 1}
    box = enhance(box_of({"stage1": stage, "stage2": configuration(MAPS)}, (7, 7)), CLASSES, **SETTINGS)
    box.pre_epoch_process(epoch=0)
    step(box, *batch())
    box.post_epoch_process()
    assert box.stage_number == 2
    step(box, *batch())
    before = box.org_student_model.tmkd.heads.weight_net.hidden.weight.clone()
    step(box, *batch(1))
    assert not torch.equal(before, box.org_student_model.tmkd.heads.weight_net.hidden.weight)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_from_yaml_alone(kind: str) -> None:
    options = {"class_names": CLASSES, "mean": list(MEAN), "std": list(STD), **GIVEN[kind]}
    losses = []
    for by_yaml in (True, False):
        config = configuration(KD + TMKD)
        if by_yaml:
            config["pre_epoch_process"] = "tmkd_pre_epoch_process"
            config["criterion"]["kwargs"]["sub_terms"]["ours"]["criterion"]["kwargs"] = options
        box = box_of(config)
        if not by_yaml:
            enhance(box, **options)
        for epoch in range(2):
            box.pre_epoch_process(epoch=epoch)
            losses.append(step(box, *batch(epoch)))
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])


def test_a_hook_manager_has_the_terms_of_richkd_too() -> None:
    images, labels = batch()
    (student, teacher), (hand_student, hand_teacher) = networks(), networks()
    manager = ForwardHookManager(torch.device("cpu"))
    manager.add_hook(teacher, "pool")
    given = {**GIVEN["richkd"], **NORMALISATION, "logit_weight": 2.0}
    manager = enhance(manager, CLASSES, student=student, teacher=teacher, **given)
    enhancer = unhosted(
        "richkd",
        lambda x, y: {"loss": F.cross_entropy(hand_student(x), y), "t": hand_teacher(x).sum() * 0},
        student=hand_student,
        teacher=hand_teacher,
        logit_weight=2.0,
        **NORMALISATION,
    )
    for _ in range(2):
        teacher(images)
        logits = student(images)
        fused = manager.pop_io_dict(labels)["."]["output"]
        own_logits = hand_teacher.eval()(images)
        torch.testing.assert_close(fused, fused_logits(own_logits, asked_clip(images, MEAN, STD), 0.7, 20.0))
        loss = F.cross_entropy(logits, labels) + sum(manager.richkd.late_terms(labels).values())
        torch.testing.assert_close(loss, enhancer(images, labels)["loss"])
    loss.backward()
    assert all(gradient.abs().max() > 0 for gradient in gradients(manager.enhancer.heads).values())
    assert any(gradient.abs().max() > 0 for gradient in gradients(student).values())
    teacher(images)
    with pytest.raises(InputError, match=r"RichKD needs the labels: call pop_io_dict\(labels\)"):
        manager.pop_io_dict()


def test_a_hook_manager_fuses_when_the_labels_arrive() -> None:
    images, labels = batch()
    (student, teacher), (hand_student, hand_teacher) = networks(), networks()
    manager = ForwardHookManager(torch.device("cpu"))
    for network, path in ((student, "bn"), (teacher, "pool"), (teacher, "conv")):
        manager.add_hook(network, path)
    manager = enhance(manager, CLASSES, student=student, teacher=teacher, logit_weight=1.0, **SETTINGS)
    teacher(images)
    logits = student(images)
    io_dict = manager.pop_io_dict(labels)
    loss = F.cross_entropy(logits, labels) + sum(manager.tmkd.late_terms(labels).values())
    loss.backward()

    weights = manager.tmkd.fusion_table()[labels]
    views = manager.tmkd.multi_view.views_of(images)
    hand_teacher.eval()
    for path, part in ((".", hand_teacher), ("conv", hand_teacher.conv)):
        expected = sum(weights[:, v].reshape(-1, *(1,) * (part(views[v]).ndim - 1)) * part(views[v]) for v in range(3))
        torch.testing.assert_close(io_dict[path]["output"], expected)
    assert io_dict["bn"]["output"].shape == (6, 5, 16, 16)
    enhancer = unhosted(
        "tmkd",
        lambda x, y: {"loss": F.cross_entropy(hand_student(x), y), "t": hand_teacher(x).sum() * 0},
        student=hand_student,
        teacher=hand_teacher,
        logit_weight=1.0,
        **NORMALISATION,
    )
    torch.testing.assert_close(loss, enhancer(images, labels)["loss"])
    assert any("weight_net" in name and g.abs().max() > 0 for name, g in gradients(manager.tmkd.heads).items())
    student(images)  # before the teacher: what its hooks caught is kept
    teacher(images)
    assert manager.pop_io_dict(labels)["bn"]["output"].shape == (6, 5, 16, 16)
    teacher(images)
    with pytest.raises(InputError, match=r"pop_io_dict\(labels\)"):
        manager.pop_io_dict()
    with pytest.raises(InputError, match="enhanced once"):
        enhance(manager, CLASSES, student=student, teacher=teacher, **SETTINGS)


def test_switched_off_it_is_torchdistill_to_the_bit() -> None:
    losses = []
    for switch in (False, None):
        box = box_of()
        if switch is not None:
            assert enhance(box, CLASSES, enabled=switch, **SETTINGS) is box
        losses += [step(box, *batch(seed)) for seed in range(3)]
    assert all(torch.equal(losses[i], losses[i + 3]) for i in range(3))


def test_messages() -> None:
    images, labels = batch()
    with pytest.raises(InputError, match="get_distillation_box returns"):
        enhance(networks()[0], CLASSES, **SETTINGS)
    with pytest.raises(InputError, match=r"box is not enhanced.*enhance\(box"):
        box_of(configuration(KD + TMKD)).forward_process(images, labels, {})
    trained = configuration()
    trained["teacher"].pop("requires_grad")
    with pytest.raises(InputError, match="requires_grad: False"):
        enhance(box_of(trained), CLASSES, **SETTINGS)
    box = enhance(box_of(), CLASSES, **SETTINGS)
    with pytest.raises(InputError, match="enhanced already"):
        enhance(box, CLASSES, **SETTINGS)
    with pytest.raises(InputError, match="enhanced already"):
        enhance(box, CLASSES, **GIVEN["richkd"])
    with pytest.raises(InputError, match=r"ClipAnswers.*torchdistill passes images and labels alone\. Give clip="):
        enhance(box_of(), CLASSES, enhancer="richkd", clip=clip_answers())
    with pytest.raises(InputError, match=r"clip= was given, but enhancer='tmkd' takes text="):
        enhance(box_of(), CLASSES, clip=CLIP)
    box = box_of()
    box.student_model = nn.DataParallel(box.student_model)
    box.student_model.device_ids = [0, 1]
    with pytest.raises(InputError, match="one device"):
        enhance(box, CLASSES, **SETTINGS)


@pytest.mark.parametrize("block", [0, 2], ids=ENHANCERS)
def test_the_example_of_the_document_runs(block: int) -> None:
    student, teacher = networks()
    names = {
        "student": student,
        "teacher": teacher.eval(),
        "class_names": CLASSES,
        "mean": MEAN,
        "std": STD,
        "text": TEXT,
        "clip": CLIP,
    }
    names |= {"loader": [(*batch(), {})] * 2, "train_config": configuration(), "device": torch.device("cpu")}
    assert torch.isfinite(run_example("adapters/torchdistill.md", names, block)["loss"])


def test_the_loop_of_the_document_runs() -> None:
    student, teacher = networks()
    manager = ForwardHookManager(torch.device("cpu"))
    manager.add_hook(teacher, "pool")
    names = {"student": student, "teacher": teacher, "manager": manager, "class_names": CLASSES, "text": TEXT}
    names |= {"mean": MEAN, "std": STD, "loader": [batch()] * 2, "torch": torch, "F": F}
    with pytest.warns(TmkdNotice, match="logit_weight=1.0"):
        assert torch.isfinite(run_example("adapters/torchdistill.md", names, block=1)["loss"])
