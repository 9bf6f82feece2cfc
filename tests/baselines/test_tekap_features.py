"""TeKAP's feature level: equal to the official recording; reproducible; with a bank or a queue."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tmkd_plugin.baselines.tekap import TeKAP
from tmkd_plugin.baselines.tekap_features import ContrastSettings, TeKAPFeatures
from tmkd_plugin.contrast_memory import ContrastBatch, MemoryBank, MemoryQueue
from tmkd_plugin.errors import InputError
from tmkd_plugin.sample_ids import tell_samples, wants_ids

RECORDING = Path(__file__).parents[1] / "recordings" / "contrastive" / "tekap_feature_b8_n50_k32.npz"
SMALL = {"projection_width": 8, "negatives": 6, "queue_size": 16}


def test_two_official_steps() -> None:
    with np.load(RECORDING) as arrays:
        recorded = {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    settings = ContrastSettings(projection_width=16, negatives=32)
    head = TeKAPFeatures(64, 128, settings).double()
    head.know_samples(torch.arange(50) % 2)
    projections = {"s": head.student_projection, "t": head.teacher_projection}
    with torch.no_grad():
        for side, projection in projections.items():
            projection.weight.copy_(recorded[f"embed_{side}_weight"])
            projection.bias.copy_(recorded[f"embed_{side}_bias"])
    head.memory.student.copy_(recorded["memory_student_init"])
    head.memory.teacher.copy_(recorded["memory_teacher_init"])
    for step in range(2):
        now = {key.removeprefix(f"step{step}_"): value for key, value in recorded.items() if key[4] == str(step)}
        features = now["feat_student"].clone().requires_grad_()
        batch = ContrastBatch(torch.zeros_like(now["index"]), now["index"], now["contrast_index"])
        head.zero_grad()
        loss = head(features, now["feat_teacher"], batch, now["noise"])
        torch.testing.assert_close(loss, now["loss"], rtol=1e-9, atol=1e-12)
        loss.backward()
        gradients = {"feat_student": features.grad}
        for side, projection in projections.items():
            gradients |= {f"embed_{side}_weight": projection.weight.grad, f"embed_{side}_bias": projection.bias.grad}
        for name, gradient in gradients.items():
            expected = now[f"grad_{name}"]
            assert float((gradient - expected).abs().max()) <= 1e-7 * float(expected.abs().max()) + 1e-10, name
        for side, memory in enumerate(("student", "teacher")):
            torch.testing.assert_close(getattr(head.memory, memory), now[f"memory_{memory}_after"])
            torch.testing.assert_close(head.memory.normalisers[side], now[f"Z_{memory}"])


def test_off_by_default_and_added_with_its_weight(student, teacher, batch) -> None:
    images, labels = batch
    plain = TeKAP(copy.deepcopy(student), teacher)(images, labels)
    assert set(plain) == {"loss", "output", "cross_entropy", "tekap"}
    both = [TeKAP(copy.deepcopy(student), teacher, feature_weight=weight, **SMALL)(images, labels) for weight in (1, 3)]
    assert torch.equal(both[0]["tekap"], plain["tekap"])
    torch.testing.assert_close(3 * both[0]["tekap_features"], both[1]["tekap_features"])
    torch.testing.assert_close(both[1]["loss"], plain["loss"] + both[1]["tekap_features"])


def test_trains_its_projections_and_student_but_not_the_teacher(student, teacher, batch) -> None:
    distiller = TeKAP(student, teacher, ce_weight=0, tekap_weight=0, feature_weight=0.8, **SMALL)
    distiller(*batch)["loss"].backward()
    trained = {id(parameter) for parameter in distiller.trainable_parameters()}
    for projection in (distiller.features.student_projection, distiller.features.teacher_projection):
        assert id(projection.weight) in trained
        assert projection.weight.grad.abs().max() > 0
    assert student.conv.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_step_is_a_function_of_seed_and_step_and_goes_on_from_a_checkpoint(student, teacher, batch) -> None:
    images, labels = batch
    sample_labels = torch.arange(40) % 5
    sample_labels[:8] = labels

    def fresh(seed: int = 0) -> TeKAP:
        made = TeKAP(copy.deepcopy(student), teacher, feature_weight=1.0, seed=seed, **SMALL)
        tell_samples(made, sample_labels, torch.arange(40))
        return made

    def step(distiller: TeKAP) -> float:
        return distiller(images, labels, ids=torch.arange(8))["tekap_features"].item()

    first, again = fresh(), fresh()
    assert wants_ids(first)
    assert isinstance(first.features.memory, MemoryBank)
    values = [step(first), step(first), step(first)]
    assert step(again) == values[0]
    assert step(fresh(1)) != values[0]
    resumed = fresh()
    resumed.load_state_dict(again.state_dict())
    assert [step(resumed), step(resumed)] == values[1:]


def test_without_known_samples_there_is_a_queue_of_the_batches(student, teacher, batch) -> None:
    images, labels = batch
    distiller = TeKAP(student, teacher, feature_weight=1.0, **SMALL)
    assert not wants_ids(distiller)
    memory = distiller.features.memory
    assert isinstance(memory, MemoryQueue)
    distiller(images, F.one_hot(labels, 5).float())
    assert memory.labels.tolist() == labels.tolist() * 2  # both contrasts of the step
    before = memory.student.clone()
    distiller.eval()(images, labels)
    assert torch.equal(memory.student, before)


def test_messages(student, teacher, batch) -> None:
    distiller = TeKAP(student, teacher, feature_weight=1.0, **SMALL)
    tell_samples(distiller, torch.arange(20) % 5, torch.arange(20))
    with pytest.raises(InputError, match=r"ids=batch\.ids"):
        distiller(*batch)
    with pytest.raises(InputError, match="negatives must be a whole number at least 1"):
        TeKAP(student, teacher, negatives=0)
    with pytest.raises(InputError, match="feature_weight must be"):
        TeKAP(student, teacher, feature_weight=-1)
    head = TeKAPFeatures(4, 5, ContrastSettings(**SMALL))
    with pytest.raises(InputError, match="noise must be"):
        head(torch.zeros(2, 4), torch.zeros(2, 5), ContrastBatch(torch.zeros(2).long()), torch.zeros(2, 4))
