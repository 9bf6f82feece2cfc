from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tmkd_plugin.data.dataset import ImageSplit
from tmkd_plugin.errors import InputError, NonFiniteLossError
from tmkd_plugin.training import trainer
from tmkd_plugin.training.arm import Arm, head_weights
from tmkd_plugin.training.metrics import evaluate
from tmkd_plugin.training.progress import SilentProgress
from tmkd_plugin.training.schedule import learning_rate
from tmkd_plugin.training.trainer import train_distiller, train_distillers

RUN_FILES = {"student.safetensors", "student_last.safetensors", "heads.safetensors", "predictions.npz", "history.jsonl"}


def content(folder):
    """All files but the log, which holds times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.jsonl"}


def history_of(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_the_same_seed_gives_the_same_bytes_in_every_file(small_distiller, dataset, settings, tmp_path):
    torch.manual_seed(1)
    first = train_distiller(small_distiller(), dataset, settings, seed=5, folder=tmp_path / "a")
    torch.manual_seed(2)  # the global generator must not matter, though the student has dropout
    second = train_distiller(small_distiller(), dataset, settings, seed=5, folder=tmp_path / "b")
    assert content(tmp_path / "a").keys() == RUN_FILES
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (first.best, first.last, first.history) == (second.best, second.last, second.history)
    train_distiller(small_distiller(), dataset, settings, seed=6, folder=tmp_path / "c")
    assert content(tmp_path / "a")["student.safetensors"] != content(tmp_path / "c")["student.safetensors"]


def test_training_leaves_the_global_generator_alone(small_distiller, dataset, settings, tmp_path):
    state = torch.get_rng_state()
    train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_arm_gives_the_same_bits_alone_and_beside_others(small_distiller, dataset, settings, tmp_path):
    alone = train_distiller(small_distiller(2), dataset, settings, seed=0, folder=tmp_path / "alone")
    folders = {name: tmp_path / name for name in ("one", "two")}
    arms = {"one": small_distiller(1), "two": small_distiller(2)}
    together = train_distillers(arms, dataset, settings, seed=0, folders=folders)
    assert content(tmp_path / "two") == content(tmp_path / "alone")
    assert content(tmp_path / "one") != content(tmp_path / "two")
    assert together["two"].best == alone.best
    assert list(together) == ["one", "two"]


def test_the_loop_equals_a_plain_one_written_here(small_distiller, dataset, settings, tmp_path):
    from tmkd_plugin.data.batches import training_batches

    train_distiller(small_distiller(dropout=0.0), dataset, settings, seed=3, folder=tmp_path)
    plain = small_distiller(dropout=0.0)
    optimiser = torch.optim.SGD(plain.trainable_parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    means = []
    for epoch in range(1, 5):
        plain.train()
        plain.teacher.eval()
        total, right = 0.0, 0
        batches = list(
            training_batches(
                dataset.train, dataset.augmentation, dataset.mean, dataset.std, batch_size=16, seed=3, epoch=epoch
            )
        )
        for step, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = learning_rate(settings, epoch, step, len(batches))
            terms = plain(batch.images, batch.labels)
            optimiser.zero_grad()
            terms["loss"].backward()
            optimiser.step()
            total += terms["ce"].item() * len(batch)
            right += int((terms["output"].argmax(1) == batch.labels).sum())
        means.append((total / 61, 100 * right / 61, optimiser.param_groups[0]["lr"]))
    last = load_file(tmp_path / "student_last.safetensors")
    for name, value in plain.student.state_dict().items():
        torch.testing.assert_close(last[name], value, rtol=0, atol=0)
    for record, (ce, top1, rate) in zip(history_of(tmp_path), means, strict=True):
        assert record["losses"]["ce"] == pytest.approx(ce, rel=1e-5)
        assert record["train_top1"] == pytest.approx(top1, abs=1e-3)
        assert record["learning_rate"] == pytest.approx(rate)


def test_the_history_has_a_deterministic_line_an_epoch(small_distiller, dataset, settings, tmp_path):
    result = train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    history = history_of(tmp_path)
    assert history == result.history
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    for record in history:
        assert record.keys() == {"epoch", "learning_rate", "losses", "train_top1", "val_top1", "fusion_weights"}
        assert record["fusion_weights"] == {"rgb": 0.5, "edge": 0.5}
        losses = record["losses"]
        assert losses.keys() == {"loss", "ce", "mse"}
        assert losses["loss"] == pytest.approx(losses["ce"] + losses["mse"], rel=1e-4)
    assert result.seconds > 0


def test_the_best_epoch_is_the_earliest_of_the_highest_validation_accuracies(
    small_distiller, dataset, settings, tmp_path, monkeypatch
):
    accuracies = iter([50.0, 70.0, 70.0, 60.0])
    monkeypatch.setattr(Arm, "_validation_top1", lambda self, dataset: next(accuracies))
    distiller = small_distiller()
    result = train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path)
    assert (result.best.epoch, result.best.val_top1) == (2, 70.0)
    assert (result.last.epoch, result.last.val_top1) == (4, 60.0)
    for name, epoch in (("student", "2"), ("heads", "2"), ("student_last", "4")):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert file.metadata() == {"epoch": epoch}
    best, last = load_file(tmp_path / "student.safetensors"), load_file(tmp_path / "student_last.safetensors")
    assert not torch.equal(best["6.weight"], last["6.weight"])
    assert torch.equal(distiller.student[6].weight, best["6.weight"])
    assert torch.equal(distiller.head.weight, load_file(tmp_path / "heads.safetensors")["head.weight"])


def test_the_files_hold_bare_networks_heads_and_predictions(small_distiller, dataset, settings, tmp_path):
    result = train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    bare = small_distiller(seed=9).student
    for name, scores in (("student", result.best), ("student_last", result.last)):
        bare.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        measured, _ = evaluate(bare, dataset.test, dataset.mean, dataset.std, 16)
        assert (measured.top1, measured.top5, measured.recall) == (scores.top1, scores.top5, scores.recall)
        validation, _ = evaluate(bare, dataset.validation, dataset.mean, dataset.std, 16)
        assert validation.top1 == scores.val_top1 == result.history[scores.epoch - 1]["val_top1"]
    assert load_file(tmp_path / "heads.safetensors").keys() == {"head.weight", "head.bias"}
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert predictions["index"].tolist() == dataset.test.ids.tolist()
        assert predictions["label"].tolist() == dataset.test.labels.tolist()
        right = predictions["predicted"] == predictions["label"]
        assert 100 * right.mean() == pytest.approx(result.best.top1, abs=1e-3)


def test_the_student_learns(small_distiller, dataset, settings, tmp_path):
    result = train_distiller(small_distiller(dropout=0.0), dataset, settings, seed=0, folder=tmp_path)
    assert result.history[-1]["losses"]["ce"] < result.history[0]["losses"]["ce"]
    assert result.best.top1 > 60


def test_the_test_split_is_evaluated_at_the_end_only(small_distiller, dataset, settings, tmp_path, monkeypatch):
    asked = []

    def watched(network, split, *args):
        asked.append((len(history_of(tmp_path)) if (tmp_path / "history.jsonl").exists() else 0, split is dataset.test))
        return evaluate(network, split, *args)

    monkeypatch.setattr(trainer, "evaluate", watched)
    monkeypatch.setattr("tmkd_plugin.training.arm.evaluate", watched)
    result = train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    of_test = [lines for lines, is_test in asked if is_test]
    assert of_test == [4] * (1 if result.best.epoch == 4 else 2)
    assert len(asked) - len(of_test) == 4


def test_the_teacher_stays_as_it_is_and_the_student_is_in_training_mode(small_distiller, dataset, settings, tmp_path):
    distiller = small_distiller()
    before = {name: value.clone() for name, value in distiller.teacher.state_dict().items()}
    modes = []
    hook = lambda module, *_: modes.append(  # noqa: E731
        (module.training, distiller.student.training, distiller.teacher[1].training)
    )
    distiller.register_forward_hook(hook)
    train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path)
    assert set(modes) == {(True, True, False)}
    assert all(torch.equal(value, before[name]) for name, value in distiller.teacher.state_dict().items())


class Foreign(nn.Module):
    """A user's distiller without our base class: returns a pair, has no ``trainable_parameters``."""

    def __init__(self, small):
        super().__init__()
        self.teacher, self.student, self.head = small.teacher, small.student, small.head

    def forward(self, images, labels):
        logits = self.student(images)
        return logits, {"ce": F.cross_entropy(logits, labels), "extra": 0.1 * self.head(logits).square().mean()}


def test_a_distiller_without_our_base_class_trains_too(small_distiller, dataset, settings, tmp_path):
    distiller = Foreign(small_distiller())
    before = [parameter.clone() for parameter in distiller.teacher.parameters()]
    result = train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path)
    assert result.history[0]["losses"].keys() == {"loss", "ce", "extra"}
    assert result.history[0]["train_top1"] is not None
    assert load_file(tmp_path / "heads.safetensors").keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(a, b) for a, b in zip(before, distiller.teacher.parameters(), strict=True))


def test_heads_are_found_by_identity_under_any_name(small_distiller):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight_net = inner, nn.Linear(2, 2)
            self.student, self.teacher = inner.student, inner.teacher

    outer = Outer(small_distiller())
    heads = head_weights(outer, outer.student)
    assert heads.keys() == {"inner.head.weight", "inner.head.bias", "weight_net.weight", "weight_net.bias"}


def test_a_compiled_students_weights_have_plain_names(small_distiller, dataset, settings, tmp_path):
    distiller = small_distiller()
    plain = distiller.student
    distiller.student = torch.compile(plain, backend="eager")
    train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path)
    assert load_file(tmp_path / "student.safetensors").keys() == plain.state_dict().keys()
    assert load_file(tmp_path / "heads.safetensors").keys() == {"head.weight", "head.bias"}


class Breaking(nn.Module):
    """Gives NaN in one of its terms from one step on."""

    def __init__(self, small, at):
        super().__init__()
        self.small, self.student, self.teacher, self.at, self.calls = small, small.student, small.teacher, at, 0

    def forward(self, images, labels):
        self.calls += 1
        terms = self.small(images, labels)
        if self.calls >= self.at:
            terms["mse"] = terms["mse"] * float("nan")
            terms["loss"] = terms["ce"] + terms["mse"]
        return terms


def test_a_non_finite_loss_stops_with_the_terms_and_keeps_the_best_weights(
    small_distiller, dataset, settings, tmp_path
):
    distiller = Breaking(small_distiller(), at=4 * 2 + 3)  # 4 batches an epoch
    with pytest.raises(
        NonFiniteLossError, match=r"kd, epoch 3, step 3 of 4.*loss is nan.*ce=\d.*mse=nan.*epoch \d, stay"
    ):
        train_distiller(distiller, dataset, settings, seed=0, folder=tmp_path, name="kd")
    assert distiller.calls == 11
    assert content(tmp_path).keys() == {"student.safetensors", "heads.safetensors", "history.jsonl"}
    assert len(history_of(tmp_path)) == 2
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "student.safetensors").values())
    assert all(tensor.isfinite().all() for tensor in distiller.student.state_dict().values())  # the step was not taken


def test_a_non_finite_loss_in_the_first_epoch_says_that_nothing_was_kept(small_distiller, dataset, settings, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1 of 4.*No epoch was finished"):
        train_distiller(Breaking(small_distiller(), at=1), dataset, settings, seed=0, folder=tmp_path)
    assert content(tmp_path) == {}


def test_an_earlier_runs_files_do_not_survive_into_the_next(small_distiller, dataset, settings, tmp_path):
    train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    (tmp_path / ".student.safetensors.123.part").write_bytes(b"left by a killed process")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NonFiniteLossError):
        train_distiller(Breaking(small_distiller(), at=1), dataset, settings, seed=0, folder=tmp_path)
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_bad_input_is_refused_before_any_training(small_distiller, dataset, settings, tmp_path):
    from dataclasses import replace

    wide = small_distiller()
    wide.student[6] = nn.Linear(6, 4)
    with pytest.raises(InputError, match=r"4 outputs.*'colours' has 3 classes.*num_classes=3"):
        train_distiller(wide, dataset, settings, seed=0, folder=tmp_path)
    empty = ImageSplit(*(tensor[:0] for tensor in (dataset.test.images, dataset.test.labels, dataset.test.ids)))
    for name in ("train", "validation", "test"):
        with pytest.raises(InputError, match=f"The {name} split.*is empty"):
            train_distiller(small_distiller(), replace(dataset, **{name: empty}), settings, seed=0, folder=tmp_path)
    with pytest.raises(InputError, match="no network under the name 'student'"):
        train_distiller(nn.Linear(2, 2), dataset, settings, seed=0, folder=tmp_path)
    frozen = Foreign(small_distiller()).requires_grad_(False)
    with pytest.raises(InputError, match="no parameter to train"):
        train_distiller(frozen, dataset, settings, seed=0, folder=tmp_path)
    assert content(tmp_path) == {}


class Recorded(SilentProgress):
    def __init__(self):
        self.events = []

    def begin(self, arm, seed, epochs, steps_per_epoch):
        self.events.append(("begin", arm, seed, epochs, steps_per_epoch))

    def epoch(self, arm, epoch, loss, val_top1):
        self.events.append(("epoch", arm, epoch))
        if epoch == 3:
            raise KeyboardInterrupt

    def end(self, arm):
        self.events.append(("end", arm))


def test_ctrl_c_goes_through_and_the_progress_is_closed(small_distiller, dataset, settings, tmp_path):
    progress = Recorded()
    with pytest.raises(KeyboardInterrupt):
        train_distiller(small_distiller(), dataset, settings, seed=7, folder=tmp_path, name="kd", progress=progress)
    assert progress.events == [
        ("begin", "kd", 7, 4, 4),
        *[("epoch", "kd", epoch) for epoch in (1, 2, 3)],
        ("end", "kd"),
    ]
    assert len(history_of(tmp_path)) == 3


INTERRUPTED = """
    import sys, torch
    from pathlib import Path
    from tmkd_plugin.data.dataset import Augmentation, ImageSplit, make_dataset
    from tmkd_plugin.training.settings import TrainingSettings
    from tmkd_plugin.training.teachers import Classifier
    from tmkd_plugin.training.trainer import train_distiller
    from torch import nn

    torch.set_num_threads(1)
    images = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    split = ImageSplit(images, torch.arange(40) % 3, torch.arange(40))
    dataset = make_dataset("noise", ["a", "b", "c"], train=split, validation=split, test=split, augmentation=Augmentation())
    settings = TrainingSettings(epochs=100000, batch_size=20, learning_rate=1e-4, warmup_epochs=0, decay_epochs=())
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2000), nn.ReLU(), nn.Linear(2000, 3))
    train_distiller(Classifier(network), dataset, settings, seed=0, folder=Path(sys.argv[1]))
"""


def test_a_process_stopped_by_ctrl_c_leaves_whole_files_only(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path)]
    # A shell's background jobs ignore SIGINT, and so would this child if the tests ran in one.
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **listens)
    try:
        history = tmp_path / "history.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if history.exists() and history.read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert content(tmp_path).keys() == {"student.safetensors", "heads.safetensors", "history.jsonl"}
    assert len(history_of(tmp_path)) >= 3
    assert load_file(tmp_path / "student.safetensors")["1.weight"].shape == (2000, 192)


def test_a_line_of_the_history_has_sorted_keys_and_short_numbers(small_distiller, dataset, settings, tmp_path):
    train_distiller(small_distiller(), dataset, settings, seed=0, folder=tmp_path)
    line, *others = (tmp_path / "history.jsonl").read_text().splitlines()
    assert line.startswith(
        '{"epoch": 1, "fusion_weights": {"edge": 0.5, "rgb": 0.5}, "learning_rate": 0.1, "losses": {"ce": '
    )
    assert all(len(number) <= 9 for text in (line, *others) for number in re.findall(r"[0-9.]+", text))
