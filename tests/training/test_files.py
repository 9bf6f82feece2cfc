from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tmkd_plugin.training import files


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_of_a_write_leaves_the_old_file_alone(tmp_path, error):
    target = tmp_path / "results.json"
    files.write_json(target, {"old": True})
    before = content(tmp_path)

    def write_half():
        with files.atomic_file(target) as file:
            file.write(b'{"half": ')
            file.flush()
            raise error

    with pytest.raises(error):
        write_half()
    assert content(tmp_path) == before


def test_an_exception_in_a_first_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="object"):
        files.write_json(tmp_path / "results.json", {"bad": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "results.json", {"bad": float("nan")})
    assert content(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_the_old_file_and_its_rest_is_removed_later(tmp_path):
    target = tmp_path / "results.json"
    files.write_json(target, 1)
    before = content(tmp_path)
    child = os.fork()
    if child == 0:
        with files.atomic_file(target) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert target.read_bytes() == before["results.json"]
    assert len(content(tmp_path)) == 2  # what a killed process can't clean up, under another name
    files.remove_temporary_files(tmp_path)
    assert content(tmp_path) == before


def test_json_is_sorted_and_its_floats_read_back_exactly(tmp_path):
    @dataclass
    class Score:
        top1: float
        path: Path

    values = {"b": [0.1 + 0.2, 1e-300, 100.0], "a": Score(97.5, Path("runs/kd")), "ü": (1, None)}
    files.write_json(tmp_path / "x.json", values)
    files.write_json(tmp_path / "y.json", dict(reversed(values.items())))
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == (tmp_path / "y.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": {"path": "runs/kd", "top1": 97.5}, "b": [0.1 + 0.2, 1e-300, 100.0], "ü": [1, None]}


def test_jsonl_grows_line_by_line(tmp_path):
    for epoch in range(3):
        files.append_jsonl(tmp_path / "history.jsonl", {"loss": epoch / 3, "epoch": epoch})
    assert (tmp_path / "history.jsonl").read_text().splitlines()[0] == '{"epoch": 0, "loss": 0.0}'
    assert files.read_jsonl(tmp_path / "history.jsonl")[2] == {"epoch": 2, "loss": 2 / 3}


def test_tensors_of_any_layout_come_back_and_tied_ones_twice(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"tied.1": base, "tied.2": base, "transposed": base.t(), "count": torch.tensor(7), "half": base.half()}
    files.save_tensors(tmp_path / "x.safetensors", tensors, epoch=3)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"epoch": "3"}


WRITE_TENSORS = """
import sys, torch
from tmkd_plugin.training.files import save_predictions, save_tensors
names = sorted((f"layer{i}" for i in range(20)), key=hash)
save_tensors(sys.argv[1] + "/t", {name: torch.full((2,), float(name[5:])) for name in names}, epoch=1)
save_predictions(sys.argv[1] + "/p", torch.arange(3), torch.arange(3), torch.ones(3, 2))
"""


def test_the_bytes_of_tensors_do_not_depend_on_the_process(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "here")])
    exec(WRITE_TENSORS, {})
    subprocess.run([sys.executable, "-c", WRITE_TENSORS, tmp_path / "there"], check=True)
    assert content(tmp_path / "here") == content(tmp_path / "there")


def test_no_tensors_make_a_valid_empty_file(tmp_path):
    files.save_tensors(tmp_path / "heads.safetensors", {})
    assert load_file(tmp_path / "heads.safetensors") == {}


def test_predictions_are_a_plain_npz(tmp_path):
    logits = torch.tensor([[1.5, -2.0], [1e6, -1e6]])
    files.save_predictions(tmp_path / "predictions.npz", torch.tensor([5, 3]), torch.tensor([1, 0]), logits)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as loaded:
        assert sorted(loaded) == ["index", "label", "logits", "predicted"]
        assert loaded["index"].tolist() == [5, 3]
        assert loaded["label"].dtype == np.int64
        assert loaded["logits"].dtype == np.float16
        assert loaded["logits"].tolist() == [[1.5, -2.0], [65504.0, -65504.0]]


def test_predicted_classes_are_from_before_the_rounding(tmp_path):
    logits = torch.tensor([[1.0, 1.0 + 1e-5], [7e4, 8e4]])
    files.save_predictions(tmp_path / "predictions.npz", torch.arange(2), torch.arange(2), logits)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as loaded:
        assert loaded["logits"].argmax(1).tolist() == [0, 0]  # float16 ties
        assert loaded["predicted"].tolist() == [1, 1]
        assert loaded["predicted"].dtype == np.int64


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_of_file(tmp_path / "x").startswith("ba7816bf8f01cfea")
