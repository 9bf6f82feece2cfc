"""The Lightning module of the documents, trained by Lightning's own Trainer."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from enhancer_cases import RICHKD, clip_model
from framework_cases import ROOT, run_example
from torch import Tensor

from tmkd_plugin import RichKDEnhancer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lightning", reason="lightning is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and loggers


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "examples" / "lightning_module.py"))


def by_hand(recipe: dict[str, Any], enhanced: bool) -> tuple[Any, dict[str, Tensor]]:
    """One epoch without Lightning."""
    dataset, distiller = recipe["build"](enhanced, train_limit=96)
    optimiser = torch.optim.SGD(distiller.trainable_parameters(), lr=0.05, momentum=0.9)
    for images, labels in recipe["loader"](dataset.train, dataset, shuffle=True):
        losses = distiller(images, labels)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    return distiller, losses


@pytest.mark.parametrize("enhanced", [True, False], ids=["enhanced", "switched off"])
def test_lightning_trains_to_the_bit_what_a_loop_trains(recipe: dict[str, Any], enhanced: bool, tmp_path: Path) -> None:
    trainer, module = recipe["main"](enhanced=enhanced, folder=tmp_path, train_limit=96)
    distiller, losses = by_hand(recipe, enhanced)
    assert trainer.callback_metrics["loss"] == losses["loss"]
    assert ("feature_kl" in trainer.callback_metrics) is enhanced
    ours, expected = module.distiller.state_dict(), distiller.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    if enhanced:
        before = recipe["build"](train_limit=96)[1].heads.state_dict()
        assert all(not torch.equal(value, before[name]) for name, value in module.distiller.heads.state_dict().items())


def test_the_checkpoint_of_lightning_goes_on_and_leaves_the_teacher_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    trainer, module = recipe["main"](folder=tmp_path, train_limit=96)
    path = trainer.checkpoint_callback.best_model_path
    state = torch.load(path, weights_only=False)["state_dict"]
    assert any("heads.weight_net" in key for key in state)
    assert not any("teacher" in key for key in state)
    fresh = recipe["DistillationModule"](recipe["build"](train_limit=96)[1])
    fresh.load_state_dict(state)
    saved = module.distiller.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in fresh.distiller.state_dict().items())
    _, resumed = recipe["main"](epochs=2, folder=tmp_path, checkpoint=path, train_limit=96)
    assert int(resumed.distiller.get_extra_state()) == 6  # steps of both epochs


def test_richkd_goes_on_from_a_checkpoint_of_lightning(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = recipe["build"]

    def build(enhanced: bool = True, train_limit: int | None = None) -> tuple[Any, RichKDEnhancer]:
        dataset, distiller = plain(False, train_limit)
        given = {name: value for name, value in RICHKD.items() if name != "enhancer"} | {
            "clip": clip_model(10),
            "queue_size": 50,
        }
        return dataset, RichKDEnhancer(distiller, dataset.class_names, mean=dataset.mean, std=dataset.std, **given)

    monkeypatch.setitem(recipe["main"].__globals__, "build", build)
    monkeypatch.setitem(recipe, "build", build)
    trainer, module = recipe["main"](folder=tmp_path, train_limit=96)
    distiller, losses = by_hand(recipe, enhanced=True)
    assert trainer.callback_metrics["loss"] == losses["loss"]
    assert trainer.callback_metrics["feature_contrast"] > 0
    expected = distiller.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in module.distiller.state_dict().items())
    path = trainer.checkpoint_callback.best_model_path
    saved = torch.load(path, weights_only=False)["state_dict"]
    assert {"distiller.heads.memory.student", "distiller.heads.clip_projection.weight"} <= saved.keys()
    assert not [key for key in saved if "tower" in key or key.startswith("distiller.teacher")]
    _, resumed = recipe["main"](epochs=2, folder=tmp_path, checkpoint=path, train_limit=96)
    assert resumed.distiller.steps_done == 6
    assert int(resumed.distiller.heads.memory.cursor) == (2 * 96) % 50


@pytest.mark.parametrize("block", [0, 1], ids=["tmkd", "richkd"])
def test_the_example_of_the_document_runs(recipe: dict[str, Any], block: int) -> None:
    dataset, distiller = recipe["build"](enhanced=False, train_limit=64)
    names = {"distiller": distiller, "class_names": dataset.class_names, "mean": dataset.mean, "std": dataset.std}
    names |= {"text": recipe["toy_text_encoder"], "lightning": __import__("lightning"), "torch": torch}
    module = run_example("adapters/lightning.md", names | {"clip": clip_model(10)}, block)["module"]
    images, labels = next(iter(recipe["loader"](dataset.train, dataset, shuffle=False)))
    assert torch.isfinite(module.training_step((images, labels), 0))
