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
from torch import Tensor, nn

from tmkd_plugin.adapters.mdistiller import enhance
from tmkd_plugin.contrast_memory import MemoryBank
from tmkd_plugin.cross_modal_teacher import fused_logits
from tmkd_plugin.enhancer_base import TeacherEnhancer
from tmkd_plugin.errors import InputError, TmkdNotice
from tmkd_plugin.sample_ids import tell_samples

METHODS = list(md.METHODS)
DOCS = Path(__file__).parents[2] / "docs" / "adapters" / "mdistiller.md"


def enhanced(name: str, seed: int = 1, kind: str = "tmkd", **arguments: object) -> md.Distiller:
    return enhance(md.build(name, seed=seed), NAMES, **{**GIVEN[kind], **arguments})


def arguments_of(name: str, batch: int = 0) -> dict[str, object]:
    image, target, *rest = md.batches(name)[batch]
    names = ("index", "contrastive_index") if name == "CRD" else ("index",)
    return {"image": image, "target": target, "epoch": 3, **dict(zip(names, rest, strict=True))}


def unadapted(name: str, kind: str = "tmkd", **arguments: object) -> TeacherEnhancer:
    """The enhancer around the same distiller, without the adapter."""
    distiller = md.build(name).train()
    others = {key: value for key, value in arguments_of(name).items() if key not in ("image", "target")}
    return unhosted(
        kind,
        lambda images, labels: distiller.forward_train(image=images, target=labels, **others),
        student=distiller.student,
        teacher=distiller.teacher,
        logit_weight=0.0 if name in ("KD", "DKD") else usual_logit_weight(kind),
        **arguments,
    )


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_unadapted_enhancer(name: str, kind: str) -> None:
    distiller, enhancer = enhanced(name, kind=kind).train(), unadapted(name, kind)
    given = arguments_of(name)
    for _ in range(2):  # the noise is another one in the second step, and the queue is no longer empty
        logits, terms = distiller(**given)
        expected = enhancer(given["image"], given["target"])
        assert torch.equal(logits, expected["output"])
        added = {"tmkd": {"feature_kl", "text_contrast"}, "richkd": {"feature_contrast"}}[kind]
        assert set(terms) == {"loss_ce", "loss_kd"} | added | (set() if name in ("KD", "DKD") else {"logit_kl"})
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
def test_richkd_fuses_the_logits_and_leaves_the_features_as_they_are(name: str) -> None:
    distiller = enhanced(name, kind="richkd", alpha=0.6).train()
    given = arguments_of(name)
    distiller(**given)
    logits, features = distiller.heard[0]
    with torch.no_grad():
        own_logits, own_features = distiller.teacher(given["image"])
    torch.testing.assert_close(logits, fused_logits(own_logits, asked_clip(given["image"]), 0.6, 20.0))
    assert not torch.allclose(logits, own_logits)
    assert torch.equal(features["pooled_feat"], own_features["pooled_feat"])
    for key in ("feats", "preact_feats"):
        assert all(map(torch.equal, features[key], own_features[key]))


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_trains_the_heads_and_everything_that_the_distiller_trains(name: str, kind: str) -> None:
    distiller = enhanced(name, kind=kind)
    learnable = distiller.get_learnable_parameters()
    own = md.build(name)
    assert len(learnable) == len({id(p) for p in learnable})
    assert len(learnable) == len(own.get_learnable_parameters()) + len(list(distiller.enhancer.heads.parameters()))
    heads = sum(p.numel() for p in distiller.enhancer.heads.parameters())
    assert distiller.get_extra_parameters() == own.get_extra_parameters() + heads
    before = [p.detach().clone() for p in learnable]
    teacher, clip = (copy.deepcopy(network.state_dict()) for network in (distiller.teacher, CLIP))
    trainer = md.Trainer(nn.DataParallel(distiller), md.batches(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in (1, 2):
            trainer.train_epoch(epoch)
    learned = distiller.enhancer.heads if kind == "richkd" else distiller.enhancer.heads.weight_net
    assert all(p.grad is not None and p.grad.any() for p in learned.parameters())
    assert not any(torch.equal(p, old) for p, old in zip(learnable, before, strict=True))
    assert all(torch.equal(value, clip[key]) for key, value in CLIP.state_dict().items())
    assert all(torch.equal(value, teacher[key]) for key, value in distiller.teacher.state_dict().items())
    assert not any(module.training for module in distiller.teacher.modules())


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", METHODS)
def test_what_people_do_with_the_distiller_keeps_working(name: str, kind: str) -> None:
    plain = md.build(name)
    distiller = enhance(plain, NAMES, **GIVEN[kind])
    assert distiller is plain
    assert isinstance(distiller, md.METHODS[name])
    assert name == distiller.cfg.NAME
    image = arguments_of(name)["image"]
    bare = md.build(name).eval()
    assert torch.equal(distiller.eval()(image=image), bare(image=image))
    assert torch.equal(distiller.forward_test(image), bare.forward_test(image))
    again = copy.deepcopy(distiller).train()
    assert again.enhancer.student is again.student
    given = arguments_of(name)
    first, second = (sum(t.mean() for t in d.train()(**given)[1].values()) for d in (distiller, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("off", OFF, ids=["disabled", "tmkd", "richkd"])
def test_switched_off_every_loss_is_the_same_bit_for_bit(name: str, off: dict[str, object]) -> None:
    if name == "OFD" and "enabled" not in off:
        pytest.skip("OFD leaves its teacher in training mode, TMKD never does")
    losses = []
    for distiller in (md.build(name), enhance(md.build(name), NAMES, **off)):
        trainer = md.Trainer(nn.DataParallel(distiller), md.batches(name))
        trainer.train_epoch(1)
        trainer.train_epoch(2)
        losses.append(trainer.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ENHANCERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_the_trainer_resumes_it_exactly(name: str, kind: str, tmp_path: Path) -> None:
    def trainer(seed: int, heads_seed: int) -> md.Trainer:
        distiller = enhanced(name, seed=seed, kind=kind)
        with torch.no_grad():
            for parameter in distiller.enhancer.heads.parameters():
                parameter.add_(heads_seed)
        return md.Trainer(nn.DataParallel(distiller), md.batches(name))

    whole = trainer(1, 0)
    whole.train_epoch(1)
    whole.save(tmp_path / "latest")
    keys = torch.load(tmp_path / "latest")["model"]
    own_keys = {f"module.{key}" for key in md.build(name).state_dict()}
    assert {key for key in keys if not key.startswith(f"module.{kind}.")} == own_keys
    ours = {key.removeprefix(f"module.{kind}.") for key in keys} - set(keys)
    assert ("heads.memory.cursor" in ours) == (kind == "richkd")
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
    with pytest.raises(InputError, match="called with epoch, but the enhancer needs the images as image="):
        enhanced("KD").train()(epoch=1)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        enhanced("KD")._replicate_for_data_parallel()
    with pytest.raises(InputError, match=r"call forward_train of that\."):
        enhanced("KD").tmkd(*md.batches("KD")[0][:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enhancer": "richdk", "clip": CLIP}, "Unknown enhancer 'richdk'. Did you mean 'richkd'.*Known: richkd, tmkd"),
        ({"enhancer": "tmkd,richkd"}, "Unknown enhancer"),
        ({"clip": CLIP}, "clip= was given, but enhancer='tmkd' takes text= and no clip=.*enhancer='richkd'"),
        ({"enhancer": "richkd", "text": TEXT}, "text= was given, but enhancer='richkd' takes clip=.*enhancer='tmkd'"),
        ({**RICHKD, "views": ("rgb",)}, "Unknown setting of RichKDEnhancer 'views'"),
        ({"text": TEXT, "alpha": 0.5}, "Unknown setting of TMKDEnhancer 'alpha'"),
        ({"enhancer": "richkd", "clip": "small_clip"}, "needs CLIP's image encoder"),
    ],
)
def test_each_enhancer_takes_its_own_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        enhance(md.build("KD"), NAMES, **arguments)


def test_one_enhancer_in_a_host() -> None:
    with pytest.raises(InputError, match="enhanced already"):
        enhance(enhanced("KD"), NAMES, **RICHKD)
    with (
        pytest.warns(TmkdNotice, match=r"nothing of RichKD \(no key richkd\.\*\)"),
        pytest.raises(RuntimeError, match="tmkd"),
    ):
        enhanced("KD", kind="richkd").load_state_dict(enhanced("KD").state_dict())


@pytest.mark.parametrize("has_bank", [False, True])
def test_clip_s_kept_answers_need_a_trainer_that_gives_the_index(has_bank: bool) -> None:
    labels, ids = torch.arange(12) % 4, torch.arange(12)
    answers = {"clip": clip_answers(), "negatives": 3}
    distiller, enhancer = enhanced("CRD", kind="richkd", **answers).train(), unadapted("CRD", "richkd", **answers)
    if has_bank:
        for each in (distiller, enhancer):
            tell_samples(each, labels, ids)
    assert isinstance(distiller.richkd.heads.memory, MemoryBank) == has_bank
    given = arguments_of("CRD")
    for _ in range(2):
        _, terms = distiller(**given)
        expected = enhancer(given["image"], given["target"], ids=given["index"])
        assert all(torch.equal(term.mean(), expected[key]) for key, term in terms.items())
    own_logits = distiller.teacher(given["image"])[0]
    expected_logits = fused_logits(own_logits, clip_answers().cosines[given["index"]], 0.7, 20.0)
    torch.testing.assert_close(distiller.heard[0][0], expected_logits)
    with pytest.raises(InputError, match=r"did not call forward_train with index=.*runs on every batch"):
        md.Trainer(nn.DataParallel(enhanced("KD", kind="richkd", **answers)), md.batches("KD")).train_epoch(1)


@pytest.mark.parametrize("kind", ENHANCERS)
def test_the_example_of_the_docs_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example, richkd = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    if kind == "richkd":  # takes the place of the call in the first example
        lines = example.splitlines(keepends=True)
        first, last = lines.index("distiller = enhance(\n"), lines.index(")\n")
        example = "".join([*lines[:first], richkd, *lines[last + 1 :]])
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
    if kind == "tmkd":
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
        "clip": CLIP,
    }
    exec(compile(example, str(DOCS), "exec"), names)
    distiller = made[0].distiller.module
    assert len(made[0].losses) == 2
    assert getattr(distiller, kind) is distiller.enhancer
    assert all(p.grad is not None for p in distiller.enhancer.heads.parameters())
