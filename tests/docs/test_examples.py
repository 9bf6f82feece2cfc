"""The files that the docs show run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_my_distiller_runs_and_trains_its_heads(capsys) -> None:
    module = runpy.run_path(str(EXAMPLES / "my_distiller.py"))
    distiller = module["main"](epochs=1)
    assert "feature_kl" in capsys.readouterr().out
    weights = distiller.epoch_report()["fusion_weights"]
    assert abs(sum(weights.values()) - 1) < 1e-6
    assert all(torch.isfinite(parameter).all() for parameter in distiller.trainable_parameters())
