"""``tmkd bench --teacher-cache``: the way through the command, what is refused, and what a run's identity says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tmkd_plugin.bench.arms import ArmSpec
from tmkd_plugin.bench.configuration import configure
from tmkd_plugin.bench.run_record import identity_of
from tmkd_plugin.cli import main

CACHED = ["--teacher-cache", "--augmentation-variants", "2", "--set", "training.epochs=3", "--seeds", "1"]


def identity(**flags) -> dict:
    configuration = configure({"dataset": "digits", **flags}, {})
    return identity_of(configuration, ArmSpec("kd"), 0, dataset={"name": "digits"}, teacher_sha256="f", text=None)


def test_what_a_runs_identity_says():
    assert identity(teacher_cache=True) == identity()
    assert "augmentation_variants" not in identity()
    assert identity(augmentation_variants=4) == {**identity(), "augmentation_variants": 4}


def histories(out: Path) -> dict[str, list[dict]]:
    found = {path.parent.parent.name: path for path in out.glob("*/seed0/history.jsonl")}
    return {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in found.items()}


def test_a_comparison_from_kept_answers(tiny_bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    words = [*tiny_bench, "--baseline", "kd,rkd,tekap", *CACHED]
    words.remove("--quiet")
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "images in rgb, edge, high_frequency: asking the teacher" in printed
    files = sorted(path.name for path in (tmp_path / "cache" / "teacher-answers").iterdir())
    assert len(files) == 2 * 3, "two variants in three views"

    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    assert "asking the teacher" not in capsys.readouterr().out
    for name in ("kd", "kd+tmkd", "rkd", "rkd+tmkd", "tekap", "tekap+tmkd"):
        for file in ("student.safetensors", "history.jsonl", "run.json"):
            both = [(tmp_path / out / name / "seed0" / file).read_bytes() for out in ("out", "again")]
            assert both[0] == both[1], f"{name}: {file}"

    without = [word for word in words if word != "--teacher-cache"]
    assert main([*without, "--out", str(tmp_path / "without")]) == 0
    kept, ran = histories(tmp_path / "out"), histories(tmp_path / "without")
    assert kept.keys() == ran.keys()
    for name, records in ran.items():
        for first, second in zip(kept[name], records, strict=True):
            assert first["losses"]["loss"] == pytest.approx(second["losses"]["loss"], rel=1e-3), name
    capsys.readouterr()
    # The cache decides no result: a comparison without it takes the runs that were made with it.
    assert main([*without, "--out", str(tmp_path / "out")]) == 0
    assert "holds the results of this very comparison" in capsys.readouterr().out


def test_arms_in_groups_share_the_files(tiny_bench, tmp_path, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    words = [*tiny_bench, "--baseline", "kd", *CACHED]
    assert main([*words, "--out", str(tmp_path / "together")]) == 0
    assert main([*words, "--arms-at-once", "1", "--out", str(tmp_path / "alone")]) == 0
    for name in ("kd", "kd+tmkd"):
        both = [(tmp_path / out / name / "seed0" / "student.safetensors").read_bytes() for out in ("together", "alone")]
        assert both[0] == both[1], name


def test_the_control_arms_teacher_has_answers_of_its_own(tiny_bench, tmp_path, monkeypatch):
    monkeypatch.setenv("TMKD_CACHE", str(tmp_path / "cache"))
    words = [*tiny_bench, "--baseline", "kd", "--controls", *CACHED]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    files = list((tmp_path / "cache" / "teacher-answers").iterdir())
    assert len(files) == 2 * (3 + 1), "two variants: three views of the one teacher, RGB of the other"


MINE = '''
from torch import nn
import torch, torch.nn.functional as F

class Attention(nn.Module):
    """Uses the feature map of its teacher."""
    has_logit_kl = False
    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher
    def forward(self, images, labels):
        logits = self.student(images)
        with torch.no_grad():
            attention = self.teacher.forward_features(images).square().mean(1)
        loss = F.cross_entropy(logits, labels) + 0 * attention.mean()
        return {"loss": loss, "output": logits, "all": loss}
'''


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher-cache"], "Either give --augmentation-variants K .*or leave --teacher-cache out"),
        (["--baseline", "kd,sp", *CACHED], "SP can't be trained with --teacher-cache.*the teacher's last feature map"),
        (["--baseline", "catkd", *CACHED], "CAT-KD can't be trained with --teacher-cache.*feature map"),
        (
            ["--baseline", "mine:Attention", *CACHED],
            "Attention can't be trained with --teacher-cache.*forward_features",
        ),
        (["--set", "augmentation_variants=0"], "augmentation_variants: .*1"),
    ],
)
def test_what_is_refused_before_any_student_is_trained(words, message, tiny_bench, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    assert main([*tiny_bench, "--out", str(out), *words]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not list(out.glob("*/seed0/history.jsonl"))
