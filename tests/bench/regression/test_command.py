"""``tmkd regress`` as it is called: exit codes, files, and a comparison that is really run."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET

import pytest
from regression_cases import REFERENCE_SEEDS, edited, write_comparison

from tmkd_plugin.bench.regression import source
from tmkd_plugin.cli import main

EPOCHS = {"training": {"epochs": 2}}


def regress(reference, *words) -> int:
    return main(["regress", "--reference", str(reference), *map(str, words)])


@pytest.fixture
def unchanged(tmp_path):
    return write_comparison(tmp_path / "unchanged", range(3), assignments=EPOCHS)


@pytest.fixture
def regressed(tmp_path):
    return write_comparison(tmp_path / "regressed", range(3), assignments=EPOCHS, tmkd=80.0)


def test_exit_codes(reference, unchanged, regressed, tmp_path, capsys):
    assert regress(reference, "--results", unchanged) == 0
    assert regress(reference, "--results", regressed) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("Regression: ")
    failed = write_comparison(tmp_path / "failed", range(3), assignments=EPOCHS, failed=[1])
    assert regress(reference, "--results", failed) == 3
    assert "run failed: KD + TMKD, seed 1: the loss is nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"assignments": {"training": {"epochs": 3}}}, "training.epochs: reference 2, results 3"),
        ({"assignments": EPOCHS | {"tmkd": {"contrast_weight": 2}}}, "tmkd.contrast_weight: reference 0.8, results 2"),
        ({"assignments": EPOCHS, "fingerprint": "0" * 64}, "(fingerprint 000000000000) is not that of the reference"),
    ],
)
def test_results_of_another_experiment_are_refused(reference, tmp_path, capsys, figures, message):
    results = write_comparison(tmp_path / "other", range(3), **figures)
    assert regress(reference, "--results", results) == 2
    assert message in capsys.readouterr().err


def test_results_without_an_arm_of_the_reference_are_refused(reference, unchanged, capsys):
    edited(unchanged, lambda content: content["arms"].pop())
    assert regress(reference, "--results", unchanged) == 2
    assert "have no arm kd+tmkd" in capsys.readouterr().err


def test_results_whose_arms_have_other_seeds_are_refused(reference, unchanged, capsys):
    edited(unchanged, lambda content: content["arms"][1]["seeds"].pop())
    assert regress(reference, "--results", unchanged) == 2
    assert "must have the same seeds, at least one: kd: 0, 1, 2; kd+tmkd: 0, 1." in capsys.readouterr().err
    edited(unchanged, lambda content: [arm["seeds"].clear() for arm in content["arms"]])
    assert regress(reference, "--results", unchanged) == 2
    assert "kd: none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--margin", "-1"], "--margin must be a number at least 0"),
        (["--seeds", "3", "--results", "r.json"], "--seeds and --results exclude each other"),
        (["--check-seeds", "3"], "--check-seeds goes with --update"),
        (["--update", "--strict"], "--update records and checks nothing"),
        (["--results", "missing.json"], "missing.json can't be read"),
        (["--seeds", "three"], "--seeds three: expected a number n"),
        (["--update", "--seeds", "3"], "a reference takes at least 20 seeds, got 3"),
        (["--referense", "x"], "Did you mean '--reference'"),
    ],
)
def test_unusable_arguments(reference, capsys, words, message):
    assert regress(reference, *words) == 2
    assert message in capsys.readouterr().err


def test_what_update_needs(tmp_path, capsys):
    assert main(["regress", "--update"]) == 2
    assert "--update needs a file to write" in capsys.readouterr().err
    assert regress(tmp_path / "new.json", "--update") == 2
    assert "tmkd bench --baseline kd --seeds 100-119" in capsys.readouterr().err


def test_reports_are_written(reference, regressed, tmp_path, monkeypatch):
    junit, summary = tmp_path / "out" / "regress.xml", tmp_path / "out" / "regress.md"
    assert regress(reference, "--results", regressed, "--junit", junit, "--summary", summary) == 1
    assert int(ET.parse(junit).find("testsuite").get("failures")) >= 1
    assert summary.read_text().startswith("## ❌ Regression")


def test_githubs_job_page_is_added_to(reference, unchanged, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    assert regress(reference, "--results", unchanged) == 0
    assert page.read_text().startswith("before\n## ✅ No regression")
    # A file of one's own is written instead.
    assert regress(reference, "--results", unchanged, "--summary", tmp_path / "own.md") == 0
    assert page.read_text().count("##") == 1


def test_notices(reference, tmp_path, capsys):
    elsewhere = write_comparison(
        tmp_path / "elsewhere",
        range(100, 103),
        assignments=EPOCHS,
        histories=False,
        timing={"torch": "2.9.0"},
        teacher="b" * 64,
    )
    assert regress(reference, "--results", elsewhere) == 0
    printed = capsys.readouterr().out
    assert "under other circumstances (torch 2.15.0 there, 2.9.0 here; its teacher has other weights)" in printed
    assert "the runs have no history of it: KD: loss, KD + TMKD: loss, KD + TMKD: text_contrast" in printed
    assert "Seeds 100, 101, 102 are in the reference too" in printed


@pytest.fixture
def stand_in(monkeypatch):
    """Puts figures in the place of training; ``calls`` holds the configurations that were to be run."""
    calls = []

    def run_comparison(configuration, out, **options):
        calls.append((configuration, options))
        seeds = configuration.resolved.experiment.seeds
        return json.loads(
            write_comparison(out, seeds, assignments=EPOCHS, fingerprint=given["fingerprint"]).read_text()
        )

    given = {"fingerprint": "f" * 64, "name": "digits"}
    monkeypatch.setattr(source, "run_comparison", run_comparison)
    monkeypatch.setattr(source, "prepare", lambda *arguments: type("Preparation", (), {"dataset": None}))
    monkeypatch.setattr(source, "describe_dataset", lambda dataset: given)
    return calls, given


def test_runs_the_references_configuration_and_takes_nothing_that_is_there(reference, stand_in, tmp_path):
    calls, _ = stand_in
    assert regress(reference, "--out", tmp_path / "runs") == 0
    ((configuration, options),) = calls
    assert configuration.resolved.experiment.seeds == (0, 1, 2)
    assert configuration.recipe("training").epochs == 2
    assert options["overwrite"]
    assert regress(reference, "--out", tmp_path / "runs", "--seeds", "4-7") == 0
    assert calls[1][0].resolved.experiment.seeds == (4, 5, 6, 7)


def test_other_images_are_refused_before_anything_is_trained(reference, stand_in, tmp_path, capsys):
    calls, given = stand_in
    given["fingerprint"] = "0" * 64
    assert regress(reference, "--out", tmp_path / "runs") == 2
    assert "is not that of the reference" in capsys.readouterr().err
    assert not calls


def test_update_runs_the_recorded_seeds_again_on_whatever_images_there_are(reference, stand_in, tmp_path):
    calls, given = stand_in
    given["fingerprint"] = "0" * 64
    assert regress(reference, "--update", "--out", tmp_path / "runs") == 0
    assert calls[0][0].resolved.experiment.seeds == tuple(REFERENCE_SEEDS)
    assert json.loads(reference.read_text())["dataset"]["fingerprint"] == "0" * 64
    assert regress(reference, "--update", "--seeds", "300-321", "--out", tmp_path / "runs") == 0
    assert json.loads(reference.read_text())["arms"]["kd"]["top1"]["n"] == 22


def test_strict_says_beforehand_how_many_seeds_it_takes(reference, stand_in, tmp_path, capsys):
    words = ["--strict", "--margin", "0.5", "--seeds", "0-1", "--out", tmp_path / "runs"]
    assert regress(reference, *words) in (0, 1)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("strict: KD + TMKD against KD: the lower 95 % bound is above -0.50 in 80 % of checks with ")
    needed = int(first.split("checks with ")[1].split(" seeds")[0])
    assert first.endswith(f"This check runs 2. Give --seeds {needed} for that.")


OWN = '''
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

class Hint(nn.Module):
    """Matches logits; written without knowing of tmkd."""

    has_logit_kl = False

    def __init__(self, student, teacher, strength=1.0):
        super().__init__()
        self.student, self.teacher, self.strength = student, teacher, strength

    def forward(self, images, labels):
        logits = self.student(images)
        hint = self.strength * mse_loss(logits, self.teacher(images))
        return logits, {"ce": cross_entropy(logits, labels), "hint": hint}
'''


def test_a_distiller_of_ones_own_is_recorded_checked_and_found_broken(tiny_bench, tmp_path, monkeypatch, capsys):
    """The whole way, trained: bench with 20 seeds, record, check on other seeds, break the distiller, check again."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "hint_module_of_a_user.py"
    module.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    seeds = tiny_bench.index("--seeds") + 1
    bench = [*tiny_bench, "--baseline", f"{module.stem}:Hint", "--out", "runs/recorded"]
    bench[seeds] = f"{REFERENCE_SEEDS[0]}-{REFERENCE_SEEDS[-1]}"
    assert main(bench) == 0
    assert regress("own.json", "--update", "--results", "runs/recorded/results.json") == 0
    assert main(["regress", "--reference", "own.json", "--quiet"]) == 0, capsys.readouterr().out
    assert "Hint is where it was: hint" in capsys.readouterr().out
    broken = OWN.replace("hint = self.strength *", "hint = -self.strength *")
    module.write_text(broken)
    del sys.modules[module.stem]
    assert main(["regress", "--reference", "own.json", "--quiet"]) == 1
    assert "FAILED  Hint is where it was: hint" in capsys.readouterr().out
