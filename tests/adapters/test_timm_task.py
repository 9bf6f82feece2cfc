"""TMKD and RichKD inside timm's training tasks, with timm's own optimiser factory, EMA, checkpoints and compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enhancer_cases import CLIP, ENHANCERS, GIVEN, asked_clip, clip_answers, unhosted, usual_logit_weight
from framework_cases import CLASSES, TEXT, batch, gradients, networks, run_example
from tiny_networks import TinyConvNet
from torch import Tensor, nn

from tmkd_plugin import InputError, TmkdNotice
from tmkd_plugin.cross_modal_teacher import fused_logits
from tmkd_plugin.pixels import from_pixels

pytest.importorskip("timm", minversion="1.0.27", reason="timm's training tasks can be adapted from timm 1.0.27 on")

import timm
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher, FeatureDistillationTask, LogitDistillationTask, TokenDistillationTask
from timm.utils import CheckpointSaver

from tmkd_plugin.adapters.timm_task import enhance

STUDENT = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
TEACHER = {"mean": (0.4, 0.45, 0.5), "std": (0.3, 0.2, 0.25)}


def task_of(kind: type = LogitDistillationTask, teacher_cfg: dict[str, Any] = TEACHER, **options: Any) -> Any:
    student, teacher = networks()
    for network, cfg in ((student, STUDENT), (teacher, teacher_cfg)):
        network.pretrained_cfg = dict(cfg)
        network.num_classes, network.num_features, network.head_hidden_size = (
            4,
            network.fc.in_features,
            network.fc.in_features,
        )
    if kind is LogitDistillationTask:
        options = {"temperature": 4.0, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(
            student,
            DistillationTeacher(teacher),
            nn.CrossEntropyLoss(),
            task_loss_weight=0.3,
            distill_loss_weight=0.6,
            verbose=False,
            **options,
        )


def train(task: Any, seeds: range, optimiser: Any = None) -> list[Tensor]:
    """Steps as timm's train.py makes them: the optimiser gets the trainable module."""
    optimiser = optimiser or create_optimizer_v2(task.get_trainable_module(), "sgd", lr=0.1, weight_decay=1e-3)
    task.get_trainable_module().train()
    losses = []
    for seed in seeds:
        optimiser.zero_grad()
        loss = task(*batch(seed))["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
@pytest.mark.parametrize("teacher_cfg", [STUDENT, TEACHER], ids=["one normalisation", "its own normalisation"])
@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_the_loss_and_the_gradients_are_those_of_the_enhancer_itself(
    kind: type, teacher_cfg: dict[str, Any], enhancer_name: str
) -> None:
    images, labels = batch()
    task, bare = enhance(task_of(kind, teacher_cfg), CLASSES, **GIVEN[enhancer_name]), task_of(kind, teacher_cfg)
    student, teacher = bare.get_eval_model(), bare.teacher.model
    logit_weight = usual_logit_weight(enhancer_name) * (kind is FeatureDistillationTask)
    enhancer = unhosted(
        enhancer_name, bare.forward, student=student, teacher=teacher, logit_weight=logit_weight, **teacher_cfg
    )
    for _ in range(2):  # the noise is another one in the second step, and the queue is no longer empty
        out, expected = task(images, labels), enhancer(images, labels, teacher_labels=labels)
        assert torch.equal(out["loss"], expected["loss"])
        for module, value in ((task, out["loss"]), (enhancer, expected["loss"])):
            module.zero_grad()
            value.backward()
    heads = gradients(getattr(task, enhancer_name).heads)
    assert all(torch.equal(heads[name], value) for name, value in gradients(enhancer.heads).items())
    learned = [g for name, g in heads.items() if enhancer_name == "richkd" or name.startswith("weight_net")]
    assert learned
    assert all(gradient.abs().max() > 0 for gradient in learned)
    ours = gradients(task.get_eval_model().module if kind is LogitDistillationTask else task.get_eval_model())
    assert all(torch.equal(ours[name], value) for name, value in gradients(student).items())


@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_the_terms_are_weighted_and_add_up(kind: type) -> None:
    task = enhance(task_of(kind), CLASSES, text=TEXT)
    images, labels = batch()
    out = task(images, labels)
    terms = {name: term for name, term in out.items() if name not in ("loss", "output")}
    torch.testing.assert_close(sum(terms.values()), out["loss"])
    torch.testing.assert_close(terms["task_loss"], 0.3 * F.cross_entropy(out["output"], labels))
    assert {"kd_loss", "feature_kl", "text_contrast"} <= terms.keys()
    assert ("logit_kl" in terms) is (kind is FeatureDistillationTask)


def test_the_teacher_sees_the_views_in_its_own_normalisation() -> None:
    task = enhance(task_of(), CLASSES, text=TEXT[:2], views=("rgb", "edge"))
    images, labels = batch()
    seen: list[Tensor] = []
    task.teacher.model.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task(images, labels)
    pixels = (images * torch.tensor(STUDENT["std"]).view(3, 1, 1) + torch.tensor(STUDENT["mean"]).view(3, 1, 1)) * 255
    edge, rgb = seen  # RGB runs last
    torch.testing.assert_close(rgb, from_pixels(pixels, TEACHER["mean"], TEACHER["std"]), rtol=1e-4, atol=1e-4)
    back = edge * torch.tensor(TEACHER["std"]).view(3, 1, 1) + torch.tensor(TEACHER["mean"]).view(3, 1, 1)
    assert -1e-5 < back.min() < back.max() < 1 + 1e-5


def test_images_of_a_third_normalisation_are_undone_too() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 16, 16), generator=generator)
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    task = enhance(task_of(), CLASSES, text=TEXT, **given)
    multi_view = task.tmkd.multi_view
    teacher_images = task.teacher.normalize_input(from_pixels(pixels, **given), task.student_mean, task.student_std)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (multi_view.mean, multi_view.std))
    torch.testing.assert_close((teacher_images * std + mean) * 255, pixels.float(), rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="Pass mean=, std="):
        enhance(task_of(), CLASSES, text=TEXT)(
            from_pixels(pixels * 0 + 255, (0.0,) * 3, (0.1,) * 3), torch.zeros(6).long()
        )


def test_richkd_fuses_the_logits_and_clip_sees_the_pixels_of_the_images() -> None:
    images, labels = batch()
    seen: list[Tensor] = []
    task = enhance(task_of(), CLASSES, **GIVEN["richkd"])
    own = task.teacher.forward
    task.teacher.forward = lambda *args, **kwargs: seen.append(own(*args, **kwargs)) or seen[-1]
    task(images, labels)
    bare = task_of()
    own_logits = bare.teacher.model(bare.teacher.normalize_input(images, bare.student_mean, bare.student_std))
    torch.testing.assert_close(seen[0], fused_logits(own_logits, asked_clip(images, **STUDENT), 0.7, 20.0))


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
def test_mixed_labels(enhancer_name: str) -> None:
    images, labels = batch()
    soft = F.one_hot(labels, 4) * 0.7 + 0.3 / 4
    out = enhance(task_of(), CLASSES, **GIVEN[enhancer_name])(images, soft)
    assert torch.isfinite(out["loss"])


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
def test_the_optimiser_of_timm_trains_the_heads_and_decays_what_it_decayed(enhancer_name: str) -> None:
    task = enhance(task_of(), CLASSES, **GIVEN[enhancer_name])
    task.get_eval_model().module.no_weight_decay = lambda: {"conv.weight"}
    optimiser = create_optimizer_v2(task.get_trainable_module(), "sgd", lr=0.1, weight_decay=1e-3)
    undecayed = {id(p) for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]}
    assert id(task.get_eval_model().module.conv.weight) in undecayed
    before = {name: p.clone() for name, p in task.named_parameters()}
    train(task, range(3), optimiser)
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("teacher."), name


def test_layer_decay_knows_the_students_layers() -> None:
    def real_task() -> Any:
        student = timm.create_model("resnet10t", num_classes=4)
        teacher = DistillationTeacher(networks()[1])
        return LogitDistillationTask(student, teacher, nn.CrossEntropyLoss(), verbose=False)

    def scales(task: Any) -> dict[str, float]:
        module = task.get_trainable_module()
        optimiser = create_optimizer_v2(module, "sgd", lr=0.1, layer_decay=0.5)
        of = {id(p): group["lr_scale"] for group in optimiser.param_groups for p in group["params"]}
        return {name.removeprefix("module."): of[id(p)] for name, p in module.named_parameters()}

    plain, ours = scales(real_task()), scales(enhance(real_task(), CLASSES, text=TEXT))
    assert len(set(plain.values())) > 2
    assert {name: ours[name] for name in plain} == plain
    assert {ours[name] for name in ours.keys() - plain.keys()} == {1.0}


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_clipping_and_averaging_take_what_they_took(kind: type, enhancer_name: str) -> None:
    plain, task = task_of(kind), task_of(kind)
    own = list(map(id, task.get_clip_parameters(exclude_head=True)))
    enhance(task, CLASSES, **GIVEN[enhancer_name])
    heads = list(map(id, task.enhancer.trainable_parameters()))
    assert list(map(id, task.get_clip_parameters(exclude_head=True))) == own + heads
    for each in (plain, task):
        each.setup_ema(decay=0.5)
        each.update_ema(step=1)
    state, expected = task.get_checkpoint_state(ema=True), plain.get_checkpoint_state(ema=True)
    assert state["state_dict_ema"].keys() == expected["state_dict_ema"].keys()
    assert enhancer_name not in state.get("task_state_ema", {})
    train(task, range(1))
    task.update_ema(step=2)
    student = task.get_eval_model().state_dict()
    averaged = task.get_eval_model(ema=True).state_dict()
    assert any(not torch.equal(averaged[name], student[name]) for name in averaged if name in student)


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_their_checkpoint_holds_the_heads_and_resumes_to_the_bit(
    kind: type, enhancer_name: str, tmp_path: Path
) -> None:
    first, second = (enhance(task_of(kind), CLASSES, **GIVEN[enhancer_name]) for _ in range(2))
    optimisers = [create_optimizer_v2(t.get_trainable_module(), "sgd", lr=0.1, momentum=0.9) for t in (first, second)]
    train(first, range(2), optimisers[0])
    saver = CheckpointSaver(
        first.get_trainable_module(),
        optimisers[0],
        task=first,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=1.0)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    assert saved["state_dict"].keys() == networks()[0].state_dict().keys()
    assert not [
        key for key in saved["task_state"][enhancer_name] if "tower" in key or not key.startswith(("heads.", "_extra"))
    ]
    second.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    optimisers[1].load_state_dict(saved["optimizer"])
    expected, resumed = train(first, range(2, 4), optimisers[0]), train(second, range(2, 4), optimisers[1])
    assert all(map(torch.equal, expected, resumed))


def test_a_checkpoint_from_before_loads_with_a_notice() -> None:
    state = task_of(FeatureDistillationTask).get_checkpoint_state()
    task = enhance(task_of(FeatureDistillationTask), CLASSES, text=TEXT)
    with pytest.warns(TmkdNotice, match="holds nothing of TMKD"):
        task.load_checkpoint_state(state["state_dict"], state["task_state"])


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_compiled_it_computes_the_same(kind: type, enhancer_name: str) -> None:
    images, labels = batch()
    plain, compiled = (enhance(task_of(kind), CLASSES, **GIVEN[enhancer_name]) for _ in range(2))
    torch.compiler.reset()  # what an earlier test compiled of the same class has the hooks of that one
    compiled.compile(backend="eager")
    torch.testing.assert_close(compiled(images, labels)["loss"], plain(images, labels)["loss"])
    assert compiled.get_checkpoint_state()["state_dict"].keys() == plain.get_checkpoint_state()["state_dict"].keys()
    torch.testing.assert_close(compiled.get_eval_model()(images), plain.get_eval_model()(images))


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
def test_token_distillation_of_a_vision_transformer(enhancer_name: str) -> None:
    student = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=4, img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2
    )
    teacher = networks()[1]
    teacher.pretrained_cfg = dict(TEACHER)
    task = TokenDistillationTask(student, DistillationTeacher(teacher), nn.CrossEntropyLoss(), verbose=False)
    task = enhance(task, CLASSES, input_size=16, **GIVEN[enhancer_name])
    images = from_pixels(torch.randint(0, 256, (6, 3, 16, 16)), *(student.pretrained_cfg[n] for n in ("mean", "std")))
    out = task(images, batch()[1])
    out["loss"].backward()
    added = {"tmkd": {"feature_kl", "text_contrast"}, "richkd": {"feature_contrast"}}[enhancer_name]
    assert {"task_loss", "distill_loss"} | added <= out.keys()
    assert gradients(task.enhancer.heads)


@pytest.mark.parametrize("kind", [LogitDistillationTask, FeatureDistillationTask])
def test_switched_off_it_is_timm_to_the_bit(kind: type) -> None:
    off, plain = task_of(kind), task_of(kind)
    assert enhance(off, CLASSES, enabled=False) is off
    assert all(map(torch.equal, train(off, range(3)), train(plain, range(3))))


def test_messages() -> None:
    with pytest.raises(InputError, match=r"distillation task of timm\.task.*TinyConvNet"):
        enhance(TinyConvNet(), CLASSES, text=TEXT)
    with pytest.raises(InputError, match="enhanced already"):
        enhance(enhance(task_of(), CLASSES, text=TEXT), CLASSES, text=TEXT)
    with pytest.raises(InputError, match=r"ClipAnswers.*a task of timm passes images and labels alone\. Give clip="):
        enhance(task_of(), CLASSES, enhancer="richkd", clip=clip_answers())
    with pytest.raises(InputError, match=r"text= was given, but enhancer='richkd' takes clip="):
        enhance(task_of(), CLASSES, enhancer="richkd", text=TEXT)
    task = task_of()
    task.setup_ema()
    with pytest.raises(InputError, match=r"Call enhance\(\) first"):
        enhance(task, CLASSES, text=TEXT)


@pytest.mark.parametrize("enhancer_name", ENHANCERS)
def test_the_example_of_the_document_runs(enhancer_name: str) -> None:
    bare = task_of()
    names = {"student": bare.get_eval_model(), "teacher": bare.teacher, "class_names": CLASSES, "text": TEXT}
    names |= {"clip": CLIP, "loader": [batch()] * 2}
    names = run_example("adapters/timm.md", names, block=ENHANCERS.index(enhancer_name))
    assert torch.isfinite(names["losses"]["loss"])
