"""RepDistiller's loop, enhanced, trains as the enhancer does on its own."""

from __future__ import annotations

import copy
import re
import sys
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import standins_repdistiller as rd
import torch
import torch.nn.functional as F
from enhancer_cases import (
    CLIP,
    ENHANCERS,
    GIVEN,
    NAMES,
    OFF,
    RICHKD,
    TEXT,
    asked_clip,
    clip_answers,
    unhosted,
    usual_logit_weight,
)
from torch import Tensor

from tmkd_plugin.adapters.repdistiller import EnhancedLoop, enhance
from tmkd_plugin.contrast_memory import MemoryBank
from tmkd_plugin.cross_modal_teacher import fused_logits
from tmkd_plugin.enhancer_base import TeacherEnhancer
from tmkd_plugin.errors import InputError
from tmkd_plugin.sample_ids import tell_samples

DOCS = Path(__file__).parents[2] / "docs" / "adapters" / "repdistiller.md"


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    rd.HEARD.clear()
    rd.LOSSES.clear()


def enhanced(run: SimpleNamespace, kind: str = "tmkd", **arguments: object) -> EnhancedLoop:
    arguments = {"class_names": NAMES, **GIVEN[kind], **arguments}
    return enhance(rd.train_distill, run.module_list, run.optimizer, run.opt, **arguments)


def epoch(train: object, run: SimpleNamespace, number: int = 1) -> list[float]:
    rd.LOSSES.clear()
    train(number, run.train_loader, run.module_list, run.criterion_list, run.optimizer, run.opt)
    return list(rd.LOSSES)


def unadapted(run: SimpleNamespace, kind: str = "tmkd", **arguments: object) -> TeacherEnhancer:
    """The same loss as one function of a batch, wrapped by the enhancer itself."""
    student, teacher, opt = run.module_list[0], run.module_list[-1], run.opt
    cls, div, kd = run.criterion_list

    def step(x: Tensor, target: Tensor, index: Tensor | None = None, *contrast: Tensor) -> Tensor:
        preact = opt.distill == "abound"
        feat_s, logit_s = student(x, is_feat=True, preact=preact)
        feat_t, logit_t = teacher(x, is_feat=True, preact=preact)
        loss_div = div(logit_s, logit_t, target) if opt.tekap else div(logit_s, logit_t)
        loss_kd = {
            "kd": lambda: 0,
            "abound": lambda: 0,
            "similarity": lambda: sum(kd([feat_s[-2]], [feat_t[-2]])),
            "crd": lambda: kd(feat_s[-1], feat_t[-1], index, *contrast),
            "hint": lambda: kd(run.module_list[1](feat_s[1]), feat_t[1]),
        }[opt.distill]()
        return opt.gamma * cls(logit_s, target) + opt.alpha * loss_div + opt.beta * loss_kd

    weight = 0.0 if opt.alpha else usual_logit_weight(kind)
    return unhosted(kind, step, student=student, teacher=teacher, logit_weight=weight, **arguments)


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", rd.METHODS)
def test_losses_are_those_of_the_unadapted_enhancer(name: str, kind: str) -> None:
    run, own = rd.build(name), rd.build(name)
    for module in own.module_list[:-1]:
        module.train()
    enhancer = unadapted(own, kind)
    own.optimizer.add_param_group({"params": list(enhancer.heads.parameters())})
    expected = []
    for batch in own.train_loader:
        loss = enhancer(*batch)["loss"]
        own.optimizer.zero_grad()
        loss.backward()
        own.optimizer.step()
        expected.append(float(loss.detach()))
    assert epoch(enhanced(run, kind), run) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("has_bank", [False, True])
def test_clip_s_kept_answers_are_looked_up_by_the_index_of_the_loader(has_bank: bool) -> None:
    run, own = rd.build("kd"), rd.build("kd")
    given = {"clip": clip_answers(), "negatives": 3}
    train, enhancer = enhanced(run, "richkd", **given), unadapted(own, "richkd", **given).train()
    own.optimizer.add_param_group({"params": list(enhancer.heads.parameters())})
    if has_bank:
        for each in (train.enhancer, enhancer):
            tell_samples(each, torch.arange(12) % 4, torch.arange(12))
    assert isinstance(train.enhancer.heads.memory, MemoryBank) == has_bank
    expected = []
    for images, labels, index in own.train_loader:
        loss = enhancer(images, labels, ids=index)["loss"]
        own.optimizer.zero_grad()
        loss.backward()
        own.optimizer.step()
        expected.append(float(loss.detach()))
    assert epoch(train, run) == pytest.approx(expected, rel=1e-5)
    images, _, index = run.train_loader[0]
    with torch.no_grad():
        own_logits = run.module_list[-1](images)
    torch.testing.assert_close(rd.HEARD[0][1], fused_logits(own_logits, clip_answers().cosines[index], 0.7, 20.0))
    run.train_loader = [(images, target) for images, target, _ in run.train_loader]
    with pytest.raises(InputError, match=r"the loader gives none.*is_instance=True.*runs on every batch"):
        epoch(train, run)


@pytest.mark.parametrize("name", rd.METHODS)
def test_richkd_fuses_the_logits_and_leaves_the_features_as_they_are(name: str) -> None:
    run = rd.build(name)
    train = enhanced(run, "richkd")
    epoch(train, run)
    images = run.train_loader[0][0]
    with torch.no_grad():
        own_features, own_logits = run.module_list[-1](images, is_feat=True, preact=name == "abound")
    features, logits = rd.HEARD[0]
    torch.testing.assert_close(logits, fused_logits(own_logits, asked_clip(images), 0.7, 20.0))
    assert all(map(torch.equal, features, own_features))


@pytest.mark.parametrize("name", rd.METHODS)
def test_the_loop_hears_the_fused_teacher_in_every_part_of_its_answer(name: str) -> None:
    run = rd.build(name)
    train = enhanced(run)
    table = train.enhancer.fusion_table().detach()
    epoch(train, run)
    images, target = run.train_loader[0][:2]
    feats, logits = rd.HEARD[0]
    with torch.no_grad():
        views = train.enhancer.multi_view.views_of(images)
        answers = [run.module_list[-1](view, is_feat=True, preact=name == "abound") for view in views]

    def fused(parts: list[Tensor]) -> Tensor:
        shape = (-1, *[1] * (parts[0].ndim - 1))
        return sum(part * table[target][:, v].reshape(shape) for v, part in enumerate(parts))

    torch.testing.assert_close(logits, fused([answer[1] for answer in answers]))
    for i, part in enumerate(feats):
        torch.testing.assert_close(part, fused([answer[0][i] for answer in answers]))


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", rd.METHODS)
def test_the_optimiser_trains_the_heads_and_the_teacher_stays(name: str, kind: str) -> None:
    run = rd.build(name)
    before = copy.deepcopy(run.module_list[-1].state_dict())
    train = enhanced(run, kind)
    heads = list(train.enhancer.heads.parameters())
    old = [parameter.detach().clone() for parameter in heads]
    assert run.optimizer.param_groups[-1]["weight_decay"] == 5e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(train, run)
        epoch(train, run, 2)
    assert not any(torch.equal(p, o) for p, o in zip(heads, old, strict=True))
    teacher = run.module_list[-1]
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert "forward" not in vars(teacher)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.module_list.modules())


@pytest.mark.parametrize("name", rd.METHODS)
@pytest.mark.parametrize("off", OFF, ids=["disabled", "tmkd", "richkd"])
def test_switched_off_every_loss_is_the_same_bit_for_bit(name: str, off: dict[str, object]) -> None:
    plain, run = rd.build(name), rd.build(name)
    expected = epoch(rd.train_distill, plain) + epoch(rd.train_distill, plain, 2)
    train = enhance(rd.train_distill, run.module_list, run.optimizer, run.opt, NAMES, **off)
    assert epoch(train, run) + epoch(train, run, 2) == expected
    assert (train is rd.train_distill) == ("enabled" in off)


def test_gamma_scales_their_loss_alone() -> None:
    losses = []
    for gamma in (0.0, 0.5):
        run = rd.build("kd")
        run.opt.gamma = gamma
        losses.append(epoch(enhanced(run), run)[0])
        assert run.opt.gamma == gamma
    student, (images, target, _) = rd.build("kd").module_list[0], rd.batches("kd")[0]
    cross_entropy = F.cross_entropy(student.train()(images), target).detach()
    assert losses[1] - losses[0] == pytest.approx(0.5 * float(cross_entropy), rel=1e-4)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_logit_kl_is_added_where_the_loop_has_none(kind: str) -> None:
    for name, weight in (("kd", 0.0), ("crd", usual_logit_weight(kind))):
        assert enhanced(rd.build(name), kind).enhancer.heads.logit_weight == weight
    assert enhanced(rd.build("kd"), kind, logit_weight=0.4).enhancer.heads.logit_weight == 0.4


def test_logits_can_be_left_as_the_single_view_gives_them() -> None:
    run = rd.build("kd")
    epoch(enhanced(run, logit_source="rgb"), run)
    images = run.train_loader[0][0]
    with torch.no_grad():
        feats, logits = run.module_list[-1](images, is_feat=True)
    assert torch.equal(rd.HEARD[0][1], logits)
    assert not torch.allclose(rd.HEARD[0][0][-1], feats[-1])


@pytest.mark.parametrize("kind", ENHANCERS)
def test_a_checkpoint_of_the_student_and_of_the_heads_resumes_exactly(kind: str) -> None:
    run = rd.build("kd")
    train = enhanced(run, kind)
    epoch(train, run)
    student, ours = (copy.deepcopy(m.state_dict()) for m in (run.module_list[0], train.enhancer))
    optimiser = copy.deepcopy(run.optimizer.state_dict())
    assert set(student) == set(rd.Network(width=5).state_dict())
    assert all(key == "_extra_state" or key.startswith("heads.") for key in ours)
    expected = epoch(train, run, 2)
    again = rd.build("kd")
    train = enhanced(again, kind)
    again.module_list[0].load_state_dict(student)
    train.enhancer.load_state_dict(ours)
    again.optimizer.load_state_dict(optimiser)
    assert epoch(train, again, 2) == expected


@pytest.mark.parametrize("kind", ENHANCERS)
def test_an_error_in_the_loop_leaves_the_networks_as_they_were(kind: str) -> None:
    run = rd.build("kd")
    train = enhanced(run, kind)
    run.criterion_list[1].forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        epoch(train, run)
    assert "forward" not in vars(run.module_list[-1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.module_list.modules())
    del run.criterion_list[1].forward
    assert len(epoch(train, run)) == 2


def test_unusable_input_is_refused() -> None:
    run, other = rd.build("kd"), rd.build("kd")
    with pytest.raises(InputError, match=r"holds 1 module.*after module_list.append\(model_t\)"):
        enhance(rd.train_distill, run.module_list[:1], run.optimizer, run.opt, NAMES, text=TEXT)
    train = enhanced(run)
    with pytest.raises(InputError, match="not the student and the teacher that enhance"):
        epoch(train, other)
    with pytest.raises(InputError, match="Did you mean 'feature_weight'"):
        enhanced(run, feature_wieght=1.0)
    with pytest.raises(InputError, match=r"text= was given, but enhancer='richkd' takes clip="):
        enhanced(run, **RICHKD)
    with pytest.raises(InputError, match="Unknown setting of RichKDEnhancer 'views'"):
        enhanced(run, "richkd", views=("rgb",))
    run.train_loader = [(images, target + 1, index) for images, target, index in run.train_loader]
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        epoch(train, run)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_example_of_the_docs_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example, richkd, _ = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    if kind == "richkd":  # takes the place of the call in the first example
        lines = example.splitlines(keepends=True)
        first, last = lines.index("train = enhance(\n"), lines.index(")\n")
        example = "".join([*lines[:first], richkd, *lines[last + 1 :]])
    assert len(example.strip().splitlines()) <= 15
    helper, loops = types.ModuleType("helper"), types.ModuleType("helper.loops")
    loops.train_distill, loops.validate = rd.train_distill, None
    monkeypatch.setitem(sys.modules, "helper", helper)
    monkeypatch.setitem(sys.modules, "helper.loops", loops)
    if kind == "tmkd":
        monkeypatch.setitem(enhance.__kwdefaults__, "text", TEXT)
    run = rd.build("kd")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
    loader = type("Loader", (list,), {"dataset": SimpleNamespace(classes=NAMES)})()
    loader.extend(((images - mean) / std, *rest) for images, *rest in run.train_loader)
    run.train_loader, run.opt.epochs = loader, 2
    names = vars(run) | {"clip": CLIP}
    exec(compile(example, str(DOCS), "exec"), names)
    assert len(rd.LOSSES) == 4
    assert all(p.grad is not None for p in names["train"].enhancer.heads.parameters())


def test_the_kept_answers_of_the_docs_are_those_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[2]
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path))
    monkeypatch.setattr("tmkd_plugin.clip_teacher.load_clip_teacher", lambda *_: CLIP)
    data = torch.randint(0, 256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    dataset = SimpleNamespace(data=data.numpy(), targets=list(range(4)) * 3, classes=NAMES)
    dataset_type = type("Dataset", (), {"__len__": lambda _: 12, **vars(dataset)})
    names = {"train_loader": SimpleNamespace(dataset=dataset_type())}
    exec(compile(example, str(DOCS), "exec"), names)
    torch.testing.assert_close(names["clip"].cosines, CLIP(data.permute(0, 3, 1, 2)).cosines)
    run = rd.build("kd")
    train = enhanced(run, "richkd", clip=names["clip"])
    tell_samples(train.enhancer, names["split"].labels, names["split"].ids)
    assert len(epoch(train, run)) == 2
