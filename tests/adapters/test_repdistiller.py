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
from torch import Tensor

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.adapters.repdistiller import EnhancedLoop, enhance
from tmkd_plugin.errors import InputError

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
OFF = {"views": ("rgb",), "feature_weight": 0.0, "contrast_weight": 0.0, "logit_weight": 0.0, "fusion": "average"}
DOCS = Path(__file__).parents[2] / "docs" / "adapters" / "repdistiller.md"


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    rd.HEARD.clear()
    rd.LOSSES.clear()


def enhanced(run: SimpleNamespace, **arguments: object) -> EnhancedLoop:
    arguments = {"class_names": NAMES, "text": TEXT, **arguments}
    return enhance(rd.train_distill, run.module_list, run.optimizer, run.opt, **arguments)


def epoch(train: object, run: SimpleNamespace, number: int = 1) -> list[float]:
    rd.LOSSES.clear()
    train(number, run.train_loader, run.module_list, run.criterion_list, run.optimizer, run.opt)
    return list(rd.LOSSES)


def unadapted(run: SimpleNamespace) -> TMKDEnhancer:
    """The same loss as one function of a batch, wrapped by the enhancer itself."""
    student, teacher, opt = run.module_list[0], run.module_list[-1], run.opt
    cls, div, kd = run.criterion_list

    def step(x: Tensor, target: Tensor, index: Tensor, *contrast: Tensor) -> Tensor:
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

    weight = 0.0 if opt.alpha else 1.0
    return TMKDEnhancer(step, NAMES, text=TEXT, student=student, teacher=teacher, logit_weight=weight)


@pytest.mark.parametrize("name", rd.METHODS)
def test_losses_are_those_of_the_unadapted_enhancer(name: str) -> None:
    run, own = rd.build(name), rd.build(name)
    for module in own.module_list[:-1]:
        module.train()
    enhancer = unadapted(own)
    own.optimizer.add_param_group({"params": list(enhancer.heads.parameters())})
    expected = []
    for batch in own.train_loader:
        loss = enhancer(*batch)["loss"]
        own.optimizer.zero_grad()
        loss.backward()
        own.optimizer.step()
        expected.append(float(loss.detach()))
    assert epoch(enhanced(run), run) == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize("name", rd.METHODS)
def test_the_optimiser_trains_the_heads_and_the_teacher_stays(name: str) -> None:
    run = rd.build(name)
    before = copy.deepcopy(run.module_list[-1].state_dict())
    train = enhanced(run)
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
@pytest.mark.parametrize("off", [{"enabled": False}, {**OFF, "text": TEXT[0]}])
def test_switched_off_every_loss_is_the_same_bit_for_bit(name: str, off: dict[str, object]) -> None:
    plain, run = rd.build(name), rd.build(name)
    expected = epoch(rd.train_distill, plain) + epoch(rd.train_distill, plain, 2)
    train = enhanced(run, **off)
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


def test_a_logit_kl_is_added_where_the_loop_has_none() -> None:
    for name, weight in (("kd", 0.0), ("crd", 1.0)):
        assert enhanced(rd.build(name)).enhancer.heads.logit_weight == weight
    assert enhanced(rd.build("kd"), logit_weight=0.4).enhancer.heads.logit_weight == 0.4


def test_logits_can_be_left_as_the_single_view_gives_them() -> None:
    run = rd.build("kd")
    epoch(enhanced(run, logit_source="rgb"), run)
    images = run.train_loader[0][0]
    with torch.no_grad():
        feats, logits = run.module_list[-1](images, is_feat=True)
    assert torch.equal(rd.HEARD[0][1], logits)
    assert not torch.allclose(rd.HEARD[0][0][-1], feats[-1])


def test_a_checkpoint_of_the_student_and_of_the_heads_resumes_exactly() -> None:
    run = rd.build("kd")
    train = enhanced(run)
    epoch(train, run)
    student, ours = (copy.deepcopy(m.state_dict()) for m in (run.module_list[0], train.enhancer))
    optimiser = copy.deepcopy(run.optimizer.state_dict())
    assert set(student) == set(rd.Network(width=5).state_dict())
    assert all(key == "_extra_state" or key.startswith("heads.") for key in ours)
    expected = epoch(train, run, 2)
    again = rd.build("kd")
    train = enhanced(again)
    again.module_list[0].load_state_dict(student)
    train.enhancer.load_state_dict(ours)
    again.optimizer.load_state_dict(optimiser)
    assert epoch(train, again, 2) == expected


def test_an_error_in_the_loop_leaves_the_networks_as_they_were() -> None:
    run = rd.build("kd")
    train = enhanced(run)
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
    run.train_loader = [(images, target + 1, index) for images, target, index in run.train_loader]
    with pytest.raises(InputError, match=r"outside 0\.\.3"):
        epoch(train, run)


def test_the_example_of_the_docs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert len(example.strip().splitlines()) <= 15
    helper, loops = types.ModuleType("helper"), types.ModuleType("helper.loops")
    loops.train_distill, loops.validate = rd.train_distill, None
    monkeypatch.setitem(sys.modules, "helper", helper)
    monkeypatch.setitem(sys.modules, "helper.loops", loops)
    monkeypatch.setitem(enhance.__kwdefaults__, "text", TEXT)
    run = rd.build("kd")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
    loader = type("Loader", (list,), {"dataset": SimpleNamespace(classes=NAMES)})()
    loader.extend(((images - mean) / std, *rest) for images, *rest in run.train_loader)
    run.train_loader, run.opt.epochs = loader, 2
    names = vars(run)
    exec(compile(example, str(DOCS), "exec"), names)
    assert len(rd.LOSSES) == 4
    assert all(p.grad is not None for p in names["train"].enhancer.heads.parameters())
