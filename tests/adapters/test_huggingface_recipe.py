"""The model for Hugging Face's Trainer in the documents, trained by the Trainer itself."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from enhancer_cases import RICHKD, clip_model
from framework_cases import ROOT, gradients, run_example
from torch import Tensor

from tmkd_plugin import RichKDEnhancer, TMKDEnhancer
from tmkd_plugin.baselines.kd import KD

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which transformers' Trainer needs, is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "examples" / "huggingface_trainer.py"))


@pytest.mark.parametrize("enhanced", [True, False], ids=["enhanced", "switched off"])
def test_each_step_of_the_trainer_is_that_of_a_loop(recipe: dict[str, Any], enhanced: bool, tmp_path: Path) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: Any, args: Any, output: Any) -> None:
        if type(module) is (TMKDEnhancer if enhanced else KD):
            seen.append((*args, output["loss"].detach()))

    handle = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        trainer = recipe["main"](enhanced=enhanced, folder=str(tmp_path), train_limit=96)
    finally:
        handle.remove()
    assert len(seen) == 3
    # The same steps without the Trainer, under the optimiser that it makes.
    distiller = recipe["build"](enhanced, train_limit=96)[1]
    trainer.model = trainer.model_wrapped = recipe["DistillationModel"](distiller)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.create_optimizer_and_scheduler(num_training_steps=3)
    for images, labels, expected in seen:
        loss = distiller(images, labels)["loss"]
        assert torch.equal(loss, expected)
        trainer.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    if enhanced:
        assert any("weight_net" in name and g.abs().max() > 0 for name, g in gradients(distiller.heads).items())


def test_its_checkpoint_resumes_to_the_bit_and_leaves_the_teacher_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    straight = recipe["main"](epochs=2, folder=str(tmp_path), train_limit=96)
    state = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert any("heads.weight_net" in key for key in state)
    assert not any("teacher" in key for key in state)
    resumed = recipe["main"](epochs=2, folder=str(tmp_path), checkpoint=str(tmp_path / "checkpoint-3"), train_limit=96)
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_richkd_resumes_from_its_checkpoint_to_the_bit(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    def build(enhanced: bool = True, train_limit: int | None = None) -> tuple[Any, RichKDEnhancer]:
        dataset, distiller = recipe["build"](False, train_limit)
        given = {name: value for name, value in RICHKD.items() if name != "enhancer"} | {
            "clip": clip_model(10),
            "queue_size": 50,
        }
        return dataset, RichKDEnhancer(distiller, dataset.class_names, mean=dataset.mean, std=dataset.std, **given)

    monkeypatch.setitem(recipe["main"].__globals__, "build", build)
    straight = recipe["main"](epochs=2, folder=str(tmp_path), train_limit=96)
    state = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert {"distiller.heads.memory.student", "distiller.heads.clip_projection.weight"} <= state.keys()
    assert not [key for key in state if "tower" in key or key.startswith("distiller.teacher")]
    resumed = recipe["main"](epochs=2, folder=str(tmp_path), checkpoint=str(tmp_path / "checkpoint-3"), train_limit=96)
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    assert straight.model.distiller.steps_done == 6
    fresh = build(train_limit=32)[1].heads.state_dict()
    assert all(
        not torch.equal(value, fresh[name]) for name, value in straight.model.distiller.heads.state_dict().items()
    )


def test_it_evaluates_and_the_student_saves_itself(recipe: dict[str, Any], tmp_path: Path) -> None:
    trainer = recipe["main"](folder=str(tmp_path), train_limit=96)
    assert 0 <= trainer.evaluate()["eval_top1"] <= 100
    student = trainer.model.distiller.student
    student.save_pretrained(tmp_path / "student")
    loaded = type(student).from_pretrained(tmp_path / "student")
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("block", [0, 1], ids=["tmkd", "richkd"])
def test_the_example_of_the_document_runs(recipe: dict[str, Any], block: int) -> None:
    dataset, distiller = recipe["build"](enhanced=False, train_limit=32)
    names = {"student": distiller.student, "teacher": distiller.teacher, "class_names": dataset.class_names}
    names |= {"mean": dataset.mean, "std": dataset.std, "text": recipe["toy_text_encoder"]}
    model = run_example("adapters/huggingface.md", names | {"clip": clip_model(10)}, block)["model"]
    items = recipe["items"](dataset.train, dataset)[:8]
    inputs = {name: torch.stack([item[name] for item in items]) for name in ("pixel_values", "labels")}
    out = model(**inputs)
    assert torch.isfinite(out["loss"])
    assert out["logits"].shape == (8, 10)
