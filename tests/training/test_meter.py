from __future__ import annotations

import math

import pytest
import torch

from tmkd_plugin.distiller_return import read_return
from tmkd_plugin.training.meter import LossMeter


def returned(ce, kd, output=None):
    loss = torch.tensor(ce) + torch.tensor(kd)
    entries = {"loss": loss, "ce": torch.tensor(ce), "kd": torch.tensor(kd)}
    return read_return(entries if output is None else {**entries, "output": output})


def test_means_weigh_batches_by_their_images():
    meter = LossMeter()
    assert meter.add(returned(1.0, 0.5, torch.eye(4)[:3]), torch.tensor([0, 1, 1])) is None
    assert meter.add(returned(2.0, 0.0, torch.eye(4)[:1]), torch.tensor([0])) is None
    assert meter.means() == {"loss": 1.625, "ce": 1.25, "kd": 0.375}
    assert meter.top1() == 75.0


def test_a_term_that_appears_in_some_steps_only_is_a_mean_over_all_images():
    meter = LossMeter()
    meter.add(returned(1.0, 1.0), torch.zeros(2))
    meter.add(read_return({"loss": torch.tensor(1.0), "ce": torch.tensor(1.0)}), torch.zeros(2))
    assert meter.means() == {"loss": 1.5, "ce": 1.0, "kd": 0.5}


def test_without_logits_there_is_no_training_accuracy():
    meter = LossMeter()
    meter.add(returned(1.0, 1.0), torch.zeros(2))
    assert meter.top1() is None


def test_probabilities_count_by_their_largest_entry():
    meter = LossMeter()
    meter.add(returned(1.0, 1.0, torch.eye(2)), torch.tensor([[0.9, 0.1], [0.6, 0.4]]))
    assert meter.top1() == 50.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_non_finite_step_is_reported_with_every_term(bad):
    meter = LossMeter()
    assert meter.add(returned(1.0, 1.0), torch.zeros(2)) is None
    found = meter.add(returned(2.0, bad), torch.zeros(2))
    assert found is not None
    assert (found.step, found.terms["ce"]) == (2, 2.0)
    assert str(found.terms["kd"]) == str(bad)
    assert not math.isfinite(found.loss)


def test_on_a_gpu_steps_are_looked_at_in_groups(monkeypatch):
    """A device without a CPU's cheap look: stand-in by pretending that a step's loss is elsewhere."""
    meter = LossMeter()
    looks = []
    original = meter.flush
    monkeypatch.setattr(meter, "flush", lambda: (looks.append(len(meter._pending)), original())[1])
    monkeypatch.setattr("tmkd_plugin.training.meter.looked_at_once", lambda loss: False)
    found = [meter.add(returned(1.0, math.nan if step == 20 else 1.0), torch.zeros(2)) for step in range(1, 51)]
    assert looks == [50]
    assert found[:49] == [None] * 49
    assert found[49].step == 20
