"""mdistiller's contract holds for an enhanced distiller, and TMKD does in it what it does on its own."""

from __future__ import annotations

import copy
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import standins_mdistiller as md
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmkd_plugin import TMKDEnhancer
from tmkd_plugin.adapters.mdistiller import enhance
from tmkd_plugin.errors import InputError, TmkdNotice

NAMES = ["heron", "tern", "wren", "jay"]
TEXT = F.normalize(torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(5)), dim=2)
METHODS = list(md.METHODS)
OFF = {"views": ("rgb",), "feature_weight": 0.0, "contrast_weight": 0.0, "logit_weight": 0.0, "fusion": "average"}
DOCS = Path(__file__).parents[2] / "docs" / "adapters" / "mdistiller.md"


def enhanced(name: str, seed: int = 1, **arguments: object) -> md.Distiller:
    return enhance(md.build(name, seed=seed), NAMES, text=TEXT, **arguments)


def arguments_of(name: str, batch: int = 0) -> dict[str, object]:
    image, target, *rest = md.batches(name)[batch]
    names = ("index", "contrastive_index") if name == "CRD" else ("index",)
    return {"image": image, "target": target, "epoch": 3, **dict(zip(names, rest, strict=True))}


def unadapted(name: str) -> TMKDEnhancer:
    """The enhancer around the same distiller, without the adapter."""
    distiller = md.build(name).train()
    others = {key: value for key, value in arguments_of(name).items() if key not in ("image", "target")}
    return TMKDEnhancer(
        lambda images, labels: distiller.forward_train(image=images, target=labels, **others),
        NAMES,
        text=TEXT,
        student=distiller.student,
        teacher=distiller.teacher,
        logit_weight=0.0 if name in ("KD", "DKD") else 1.0,
    )


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_unadapted_enhancer(name: str) -> None:
    logits, terms = enhanced(name).train()(**arguments_of(name))
    expected = unadapted(name)(*(arguments_of(name)[key] for key in ("image", "target")))
    assert torch.equal(logits, expected["output"])
    added = {"feature_kl", "text_contrast"} | (set() if name in ("KD", "DKD") else {"logit_kl"})
    assert set(terms) == {"loss_ce", "loss_kd"} | added
    for key, term in terms.items():
        assert torch.equal(term.mean(), expected[key]), key
    assert torch.equal(sum([term.mean() for term in terms.values()]), expected["loss"])


@pytest.mark.parametrize("name", METHODS)
def test_the_distiller_hears_the_fused_teacher_in_every_part_of_its_answer(name: str) -> None:
    distiller = enhanced(name).train()
    given = arguments_of(name)
    distiller(**given)
    logits, features = distiller.heard[0]
    weights = distiller.tmkd.fusion_table().detach()[given["target"]]
    with torch.no_grad():
        answers = [distiller.teacher(view) for view in distiller.tmkd.multi_view.views_of(given["image"])]

    def fused(parts: list[Tensor]) -> Tensor:
        shape = (-1, *[1] * (parts[0].ndim - 1))
        return sum(part * weights[:, v].reshape(shape) for v, part in enumerate(parts))

    torch.testing.assert_close(logits, fused([answer[0] for answer in answers]))
    assert not torch.allclose(logits, answers[0][0])
    torch.testing.assert_close(features["pooled_feat"], fused([answer[1]["pooled_feat"] for answer in answers]))
    for key in ("feats", "preact_feats"):
        for i, part in enumerate(features[key]):
            torch.testing.assert_close(part, fused([answer[1][key][i] for answer in answers]))


@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_trains_the_heads_and_everything_that_the_distiller_trains(name: str) -> None:
    distiller = enhanced(name)
    learnable = distiller.get_learnable_parameters()
    own = md.build(name)
    assert len(learnable) == len({id(p) for p in learnable})
    assert len(learnable) == len(own.get_learnable_parameters()) + len(list(distiller.tmkd.heads.parameters()))
    heads = sum(p.numel() for p in distiller.tmkd.heads.parameters())
    assert distiller.get_extra_parameters() == own.get_extra_parameters() + heads
    before = [p.detach().clone() for p in learnable]
    teacher = copy.deepcopy(distiller.teacher.state_dict())
    trainer = md.Trainer(nn.DataParallel(distiller), md.batches(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2):
            trainer.train_epoch(epoch)
    assert all(p.grad is not None and p.grad.any() for p in distiller.tmkd.heads.weight_net.parameters())
    assert not any(torch.equal(p, old) for p, old in zip(learnable, before, strict=True))
    assert all(torch.equal(value, teacher[key]) for key, value in distiller.teacher.state_dict().items())
    assert not any(module.training for module in distiller.teacher.modules())


@pytest.mark.parametrize("name", METHODS)
def test_what_people_do_with_the_distiller_keeps_working(name: str) -> None:
    plain = md.build(name)
    distiller = enhance(plain, NAMES, text=TEXT)
    assert distiller is plain
    assert isinstance(distiller, md.METHODS[name])
    assert name == distiller.cfg.NAME
    image = arguments_of(name)["image"]
    bare = md.build(name).eval()
    assert torch.equal(distiller.eval()(image=image), bare(image=image))
    assert torch.equal(distiller.forward_test(image), bare.forward_test(image))
    again = copy.deepcopy(distiller).train()
    assert again.tmkd.student is again.student
    given = arguments_of(name)
    first, second = (sum(t.mean() for t in d.train()(**given)[1].values()) for d in (distiller, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("off", [{"enabled": False}, OFF])
def test_switched_off_every_loss_is_the_same_bit_for_bit(name: str, off: dict[str, object]) -> None:
    if name == "OFD" and "enabled" not in off:
        pytest.skip("OFD leaves its teacher in training mode, TMKD never does")
    losses = []
    for distiller in (md.build(name), enhance(md.build(name), NAMES, text=TEXT[0], **off)):
        trainer = md.Trainer(nn.DataParallel(distiller), md.batches(name))
        trainer.train_epoch(1)
        trainer.train_epoch(2)
        losses.append(trainer.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_the_trainer_resumes_it_exactly(name: str, tmp_path: Path) -> None:
    def trainer(seed: int, heads_seed: int) -> md.Trainer:
        distiller = enhanced(name, seed=seed)
        with torch.no_grad():
            for parameter in distiller.tmkd.heads.parameters():
                parameter.add_(heads_seed)
        return md.Trainer(nn.DataParallel(distiller), md.batches(name))

    whole = trainer(1, 0)
    whole.train_epoch(1)
    whole.save(tmp_path / "latest")
    keys = torch.load(tmp_path / "latest")["model"]
    own_keys = {f"module.{key}" for key in md.build(name).state_dict()}
    assert {key for key in keys if not key.startswith("module.tmkd.")} == own_keys
    ours = {key.removeprefix("module.tmkd.") for key in keys} - set(keys)
    assert "_extra_state" in ours
    assert {key for key in ours if not key.startswith("heads.")} == {"_extra_state"}
    whole.train_epoch(2)
    resumed = trainer(9, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.resume(tmp_path / "latest")
    resumed.train_epoch(2)
    assert resumed.losses == whole.losses[2:]


def test_a_file_from_before_the_distiller_was_enhanced_loads_with_a_notice() -> None:
    saved = nn.DataParallel(md.build("FITNET", seed=8)).state_dict()
    wrapped = nn.DataParallel(enhanced("FITNET"))
    heads = copy.deepcopy(wrapped.module.tmkd.state_dict())
    with pytest.warns(TmkdNotice, match=r"no key module\.tmkd\.\*"):
        wrapped.load_state_dict(saved)
    assert all(torch.equal(wrapped.state_dict()[key], value) for key, value in saved.items())
    assert all(torch.equal(value, heads[key]) for key, value in wrapped.module.tmkd.state_dict().items())
    del saved["module.conv_reg.weight"]
    with (
        pytest.warns(TmkdNotice),
        pytest.raises(RuntimeError, match=r'Missing key\(s\).*"module.conv_reg.weight"\. $'),
    ):
        wrapped.load_state_dict(saved)


def test_trainers_that_read_terms_by_name_get_ours_in_the_one_that_is_named() -> None:
    given = arguments_of("KD")
    apart, together = enhanced("KD").train()(**given)[1], enhanced("KD", add_to="loss_kd").train()(**given)[1]
    assert set(together) == {"loss_ce", "loss_kd"}
    torch.testing.assert_close(together["loss_kd"], sum(apart.values()) - apart["loss_ce"])
    distiller = enhanced("KD", add_to="loss_kd")
    trainer = md.DOTTrainer(nn.DataParallel(distiller), md.batches("KD"))
    trainer.train_epoch(1)
    assert all(p.grad is not None and p.grad.any() for p in distiller.tmkd.heads.weight_net.parameters())
    with pytest.raises(InputError, match=r"add_to='loss_dk', but the terms of .* are loss_ce, loss_kd"):
        enhanced("KD", add_to="loss_dk").train()(**given)


def test_a_weak_and_a_strong_augmentation_are_fused_with_the_same_labels() -> None:
    networks = md.Network(width=5, seed=1), md.Network(width=7, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller = enhance(md.WeakAndStrong(*networks), NAMES, text=TEXT, logit_weight=0.0).train()
    weak, target, _ = md.batches("KD")[0]
    _, terms = distiller(image_weak=weak, image_strong=weak.flip(3), target=target, epoch=1)
    sum(terms.values()).backward()
    assert set(terms) == {"loss_ce", "loss_kd", "feature_kl", "text_contrast"}
    student = copy.deepcopy(distiller)
    per_view = [distiller.tmkd.views_forward(image) for image in (weak, weak.flip(3))]
    fused = [distiller.tmkd.fuse(views, target)[0] for views in per_view]
    expected = sum(
        md.logit_kl(student.student(image)[0], logits)
        for image, logits in zip((weak, weak.flip(3)), fused, strict=True)
    )
    torch.testing.assert_close(terms["loss_kd"], expected)


def test_a_fork_s_own_distiller_is_asked_whether_it_has_a_logit_kl() -> None:
    class Fork(md.SP):
        has_logit_kl = None

    class Unknown(md.Distiller):
        forward_train = md.SP.forward_train

    networks = md.Network(width=5, seed=1), md.Network(width=7, seed=2)
    with pytest.warns(TmkdNotice, match=r"Unknown is not one of mdistiller's own.*has_logit_kl"):
        assert enhance(Unknown(*networks), NAMES, text=TEXT).tmkd.heads.logit_weight == 0
    with pytest.warns(TmkdNotice, match="Fork is not one"):
        enhance(Fork(*networks), NAMES, text=TEXT)
    Fork.has_logit_kl = False
    assert enhance(Fork(*networks), NAMES, text=TEXT).tmkd.heads.logit_weight == 1

    class OfTheRepository(md.SP):
        """A subclass of one that is known."""

    assert enhance(OfTheRepository(*networks), NAMES, text=TEXT).tmkd.heads.logit_weight == 1
    assert enhance(OfTheRepository(*networks), NAMES, text=TEXT, logit_weight=0.3).tmkd.heads.logit_weight == 0.3


def test_what_is_no_distiller_with_a_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="Vanilla is no mdistiller distiller with a teacher: it has no teacher"):
        enhance(md.Vanilla(md.Network()), NAMES, text=TEXT)
    with pytest.raises(InputError, match=r"DataParallel .*Enhance it before DataParallel wraps it\."):
        enhance(nn.DataParallel(md.build("KD")), NAMES, text=TEXT)
    with pytest.raises(InputError, match="enhanced already"):
        enhance(enhanced("KD"), NAMES, text=TEXT)
    with pytest.raises(InputError, match="Did you mean 'feature_weight'"):
        enhanced("KD", feature_wieght=1.0)
    with pytest.raises(InputError, match="called with epoch, but TMKD needs the images as image="):
        enhanced("KD").train()(epoch=1)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        enhanced("KD")._replicate_for_data_parallel()


def test_the_example_of_the_docs_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    assert len(example.strip().splitlines()) <= 15
    made: list[md.Trainer] = []

    class ExampleTrainer(md.Trainer):
        def __init__(self, _: str, distiller: nn.Module, train_loader: list, val_loader: list, cfg: object) -> None:
            super().__init__(distiller, train_loader)
            made.append(self)

        def train(self) -> None:
            self.train_epoch(1)

    for name, contents in {
        "mdistiller": {},
        "mdistiller.distillers": {"distiller_dict": md.METHODS},
        "mdistiller.engine": {"trainer_dict": {"base": ExampleTrainer}},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    monkeypatch.setitem(enhance.__kwdefaults__, "text", TEXT)

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
    loader = type("Loader", (list,), {"dataset": types.SimpleNamespace(classes=NAMES)})()
    loader.extend(((image - mean) / std, *rest) for image, *rest in md.batches("KD"))
    cfg = types.SimpleNamespace(
        DISTILLER=types.SimpleNamespace(TYPE="KD"), SOLVER=types.SimpleNamespace(TRAINER="base")
    )
    names = {
        "model_student": md.Network(width=5, seed=1),
        "model_teacher": md.Network(width=7, seed=2),
        "train_loader": loader,
        "val_loader": [],
        "cfg": cfg,
        "experiment_name": "kd",
    }
    exec(compile(example, str(DOCS), "exec"), names)
    distiller = made[0].distiller.module
    assert len(made[0].losses) == 2
    assert all(p.grad is not None for p in distiller.tmkd.heads.parameters())
