"""Whole comparisons on a tiny folder of images, through the command: files, results, failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tmkd_plugin.cli import main
from tmkd_plugin.zoo import build_network

FILES = {"student.safetensors", "student_last.safetensors", "heads.safetensors", "predictions.npz"}
FILES |= {"history.jsonl", "run.json"}
LOG = "log.jsonl"  # of times and memory, so of other bytes each time
SCORES = {"epoch", "val_top1", "top1", "top5", "recall"}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_comparison_and_the_same_again(tiny_bench, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*tiny_bench, "--out", str(first)]) == 0
    printed = capsys.readouterr().out
    assert "KD + TMKD" in printed
    assert "n = 2" in printed

    assert {path.name for path in first.iterdir() if path.name != ".lock"} == {
        "kd",
        "kd+tmkd",
        "config.json",
        "results.json",
        "timing.json",
    }
    for arm in ("kd", "kd+tmkd"):
        for seed in (0, 1):
            assert {path.name for path in (first / arm / f"seed{seed}").iterdir()} == {*FILES, LOG}
    build_network("resnet8", 3).load_state_dict(load_file(first / "kd+tmkd" / "seed1" / "student.safetensors"))

    results = read(first / "results.json")
    check_schema(results)
    history = [json.loads(line) for line in (first / "kd+tmkd" / "seed0" / "history.jsonl").read_text().splitlines()]
    assert {"feature_kl", "text_contrast", "loss"} <= history[0]["losses"].keys()
    assert sum(history[0]["fusion_weights"].values()) == pytest.approx(1)
    check_predictions(first, results)

    # Byte for byte, whether the teacher was trained or found in the cache.
    assert main([*tiny_bench, "--out", str(second)]) == 0
    assert (first / "results.json").read_bytes() == (second / "results.json").read_bytes()
    for arm in ("kd", "kd+tmkd"):
        for name in FILES:
            assert (first / arm / "seed0" / name).read_bytes() == (second / arm / "seed0" / name).read_bytes()
    check_rerun(tiny_bench, second, capsys)


def check_schema(results):
    assert results["schema_version"] == 1
    for name in ("training", "teacher_training", "tmkd", "kd"):
        assert all({"value", "source"} == set(entry) for entry in results["config"][name].values())
    config = results["config"]
    assert config["training"]["epochs"] == {"value": 1, "source": "command line"}
    assert config["kd"]["temperature"]["value"] == 4.0
    assert config["kd"]["temperature"]["source"].startswith("official code")
    assert config["teacher_views"] == {"value": "all", "source": "preset image_folder"}
    assert "rkd" not in config
    assert results["text"]["text_views"] == "per view"
    (teacher,) = results["teachers"]
    assert set(teacher["test_top1"]) == {"rgb", "edge", "high_frequency", "average"}
    assert [(arm["name"], arm["baseline"], arm["enhancer"]) for arm in results["arms"]] == [
        ("kd", "kd", None),
        ("kd+tmkd", "kd", "tmkd"),
    ]
    for arm in results["arms"]:
        assert [run["seed"] for run in arm["seeds"]] == [0, 1]
        for run in arm["seeds"]:
            assert set(run["best"]) == set(run["last"]) == SCORES
            assert 0 <= run["best"]["top1"] <= 100
    compared = {(entry["metric"], entry["selection"]) for entry in results["comparisons"]}
    assert compared == {(metric, selection) for metric in ("top1", "top5", "recall") for selection in ("best", "last")}
    for entry in results["comparisons"]:
        keys = {"baseline", "enhanced", "metric", "selection", "delta", "sd", "ci95", "n", "p_value"}
        keys |= {"sign_flip_p", "sign_flip_note", "bootstrap95"}
        assert set(entry) == keys | (
            {"test_set"} if (entry["selection"], entry["metric"]) == ("best", "top1") else set()
        )
        assert (entry["baseline"], entry["enhanced"], entry["n"]) == ("kd", "kd+tmkd", 2)
        runs = [[run[entry["selection"]][entry["metric"]] for run in arm["seeds"]] for arm in results["arms"]]
        assert entry["delta"] == pytest.approx(np.mean(np.subtract(runs[1], runs[0])), abs=1e-5)


def check_predictions(out, results):
    """The top-1 in the results is that of the predictions on disk."""
    arrays = np.load(out / "kd" / "seed1" / "predictions.npz")
    top1 = 100 * np.mean(arrays["predicted"] == arrays["label"])
    assert results["arms"][0]["seeds"][1]["best"]["top1"] == pytest.approx(top1, abs=1e-3)


def check_rerun(tiny_bench, out, capsys):
    """A finished folder is shown again, never trained again, and never mixed with another configuration."""
    before = (out / "results.json").read_bytes()
    stamp = (out / "kd" / "seed0" / "student.safetensors").stat().st_mtime_ns
    assert main([*[word for word in tiny_bench if word != "--quiet"], "--out", str(out)]) == 0
    assert "holds the results of this very comparison" in capsys.readouterr().out
    assert (out / "kd" / "seed0" / "student.safetensors").stat().st_mtime_ns == stamp
    assert main([*tiny_bench, "--set", "kd.temperature=2", "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "another configuration" in message
    assert "kd.temperature: there 4.0, now 2.0" in message
    assert (out / "results.json").read_bytes() == before
    assert main([*tiny_bench, "--seeds", "1", "--overwrite", "--out", str(out)]) == 0
    assert not (out / "kd" / "seed1").exists()
    assert read(out / "results.json")["comparisons"][0]["ci95"] is None


def test_a_failed_run_stops_no_other(tiny_bench, tmp_path, capsys):
    # The weight overflows float32, so the enhanced arm's first loss is infinite; the baseline has no such term.
    assert main([*tiny_bench, "--set", "tmkd.contrast_weight=1e39", "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr().out
    assert "2 run(s) failed" in printed
    assert "text_contrast=inf" in printed
    results = read(tmp_path / "out" / "results.json")
    baseline, enhanced = results["arms"]
    assert all(run["best"] for run in baseline["seeds"])
    assert all(
        (run["best"] is None and "infinite" in run["error"]) or "inf" in run["error"] for run in enhanced["seeds"]
    )
    assert results["comparisons"] == []
    assert (tmp_path / "out" / "kd+tmkd" / "seed0" / "error.txt").exists()


def test_all_baselines_with_controls(tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*tiny_bench, "--baseline", "all", "--controls", "--seeds", "1", "--out", str(out)]
    assert main(options) == 0
    results = read(out / "results.json")
    arms = [arm["name"] for arm in results["arms"]]
    expected = []
    for name in ("kd", "rkd", "sp", "catkd", "tekap"):
        expected += [name, f"{name}+tmkd"]
        expected += [f"{name}+logit_kl"] if name in ("rkd", "sp", "catkd") else []
        expected += [f"{name}@rgb_teacher"]
    assert arms == expected
    # The control's terms are the baseline's own and one KL more; it starts where the baseline starts.
    last = json.loads((out / "rkd+logit_kl" / "seed0" / "history.jsonl").read_text().splitlines()[-1])
    assert set(last["losses"]) == {"loss", "cross_entropy", "rkd", "logit_kl"}
    assert len({teacher["weights_sha256"] for teacher in results["teachers"]}) == 2
    assert "CAT-KD, RGB teacher" in capsys.readouterr().out


def test_a_distiller_of_ones_own_with_a_setting(tiny_bench, tmp_path, monkeypatch):
    (tmp_path / "my_distillers.py").write_text(
        "import torch.nn.functional as F\n"
        "from torch import nn\n"
        "class Mine(nn.Module):\n"
        "    has_logit_kl = True\n"
        "    def __init__(self, student, teacher, alpha: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.student, self.teacher, self.alpha = student, teacher, alpha\n"
        "    def forward(self, images, labels):\n"
        "        logits = self.student(images)\n"
        "        pull = self.alpha * F.mse_loss(logits, self.teacher(images).detach())\n"
        "        return logits, {'ce': F.cross_entropy(logits, labels), 'pull': pull}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = [*tiny_bench, "--baseline", "my_distillers:Mine", "--seeds", "1", "--set", "alpha=0.25"]
    assert main([*options, "--out", str(tmp_path / "out")]) == 0
    results = read(tmp_path / "out" / "results.json")
    assert results["config"]["Mine"]["alpha"] == {"value": 0.25, "source": "command line"}
    assert [arm["title"] for arm in results["arms"]] == ["Mine", "Mine + TMKD"]
    assert main([*options, "--set", "aplha=1", "--out", str(tmp_path / "other")]) == 2


def test_an_arm_gives_the_same_bits_alone_and_beside_others(tiny_bench, tmp_path):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    assert main([*tiny_bench, "--seeds", "1-1", "--enhancer", "none", "--baseline", "tekap", "--out", str(alone)]) == 0
    assert main([*tiny_bench, "--seeds", "0-1", "--baseline", "kd,tekap", "--out", str(beside)]) == 0
    one, other = (folder / "tekap" / "seed1" / "student_last.safetensors" for folder in (alone, beside))
    assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_comparison_goes_on(tiny_bench, tmp_path, monkeypatch, capsys):
    from tmkd_plugin.bench import cell

    out, trained = tmp_path / "out", []
    train = cell.train_distillers

    def interrupted(*args, **kwargs):
        if trained:
            raise KeyboardInterrupt
        trained.extend(kwargs["folders"].values())
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cell, "train_distillers", interrupted)
        assert main([*tiny_bench, "--out", str(out)]) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    stamps = [(folder / "student.safetensors").stat().st_mtime_ns for folder in trained]
    assert main([*tiny_bench, "--set", "training.epochs=2", "--out", str(out)]) == 2
    assert "training.epochs: there 1, now 2" in capsys.readouterr().err
    assert main([*tiny_bench, "--resume", "--out", str(out)]) == 0
    assert [(folder / "student.safetensors").stat().st_mtime_ns for folder in trained] == stamps
    assert main([*tiny_bench, "--out", str(tmp_path / "whole")]) == 0
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_more_seeds_and_arms_in_the_same_folder_train_only_what_is_new(tiny_bench, tmp_path, monkeypatch):
    from tmkd_plugin.bench import cell

    out, trained = tmp_path / "out", []
    train = cell.train_distillers

    def noted(*args, **kwargs):
        trained.extend(str(folder.relative_to(out)) for folder in kwargs["folders"].values())
        return train(*args, **kwargs)

    monkeypatch.setattr(cell, "train_distillers", noted)
    assert main([*tiny_bench, "--seeds", "1", "--enhancer", "none", "--out", str(out)]) == 0
    assert main([*tiny_bench, "--seeds", "2", "--baseline", "kd,sp", "--out", str(out)]) == 0
    rest = ["kd+tmkd/seed0", "sp/seed0", "sp+tmkd/seed0", "kd/seed1", "kd+tmkd/seed1", "sp/seed1", "sp+tmkd/seed1"]
    assert trained == ["kd/seed0", *rest]
    assert len(read(out / "results.json")["arms"]) == 4


def test_a_damaged_run_is_made_again_and_a_foreign_one_refused(tiny_bench, tmp_path, capsys):
    out = tmp_path / "out"
    talkative = [word for word in tiny_bench if word != "--quiet"]
    assert main([*tiny_bench, "--out", str(out)]) == 0
    whole = (out / "results.json").read_bytes()
    (out / "results.json").unlink()
    file = out / "kd" / "seed1" / "predictions.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main([*talkative, "--out", str(out)]) == 0
    assert "predictions.npz is missing or not what its record says" in capsys.readouterr().out
    assert (out / "results.json").read_bytes() == whole
    (out / "results.json").unlink()
    (out / "kd" / "seed0" / "run.json").write_bytes((out / "kd" / "seed1" / "run.json").read_bytes())
    assert main([*tiny_bench, "--out", str(out)]) == 2
    assert "it differs in: seed" in capsys.readouterr().err


def test_variants_of_the_enhancer_and_the_student_alone(tiny_bench, tmp_path):
    out = tmp_path / "out"
    variants = "variants={edges: {views: [edge, high_frequency]}, average: {fusion: average}}"
    options = [*tiny_bench, "--seeds", "1", "--set", variants, "--set", "student_alone=true"]
    assert main([*options, "--out", str(out)]) == 0
    results = read(out / "results.json")
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert list(arms) == ["student", "kd", "kd+tmkd", "kd+tmkd@edges", "kd+tmkd@average"]
    assert arms["kd+tmkd@edges"]["variant"] == "edges"
    edges = json.loads((out / "kd+tmkd@edges" / "seed0" / "history.jsonl").read_text().splitlines()[0])
    assert set(edges["fusion_weights"]) == {"edge", "high_frequency"}
    average = json.loads((out / "kd+tmkd@average" / "seed0" / "history.jsonl").read_text().splitlines()[0])
    assert average["fusion_weights"]["rgb"] == pytest.approx(1 / 3)
    alone = json.loads((out / "student" / "seed0" / "history.jsonl").read_text().splitlines()[0])
    assert set(alone["losses"]) == {"loss", "ce"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("{a: {veiws: [rgb]}}", "Did you mean 'variants.a.views'?"),
        ("{a: {views: rgb}}", "variants.a.views: expected a list"),
        ("{../a: {views: [rgb]}}", "expected a name of letters"),
        ("{a: 3}", "variants"),
    ],
)
def test_variants_that_can_not_be(tiny_bench, tmp_path, capsys, variants, message):
    assert main([*tiny_bench, "--set", f"variants={variants}", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
