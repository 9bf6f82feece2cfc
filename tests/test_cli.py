"""The command: exit codes, messages for people, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tmkd_plugin.cli import main
from tmkd_plugin.commands import bench, list_names
from tmkd_plugin.version import __version__


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tmkd_plugin", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("words", [["--help"], ["bench", "--help"], ["list", "--help"]])
def test_help_imports_nothing_heavy(words):
    heavy = "sorted({'torch', 'pydantic', 'rich', 'yaml'} & set(sys.modules))"
    code = f"import sys; from tmkd_plugin.cli import main; main({words!r}); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage: tmkd" in done.stdout


def test_help_names_every_option_its_default_and_examples(capsys):
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    for option in (
        "--baseline", "--enhancer", "--dataset", "--teacher", "--teacher-views", "--teacher-checkpoint", "--student", "--seeds",
        "--text", "--out", "--preset", "--set", "--controls", "--threads", "--quiet", "--overwrite", "--debug",
    ):  # fmt: skip
        assert f"  {option} " in text
    assert "(default: kd)" in text
    for enhancer in ("richkd", "tmkd,richkd", "tmkd+richkd", "none"):
        assert f"{enhancer}:" in text
    assert "examples:" in text
    assert "exit codes:" in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tmkd {__version__}\n"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("baselines", ["kd.temperature=4.0", "catkd.cat_weight=5.0", "tmkd.feature_weight=", "module:Class"]),
        ("networks", ["resnet8", "wrn_40_2", "timm/<name>"]),
        ("presets", ["digits", "image_folder", "cifar10_small"]),
        ("datasets", ["digits", "train/<class>/"]),
    ],
)
def test_lists(what, words, capsys):
    assert main(["list", what]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_a_typo_in_a_process_of_its_own():
    done = run("bench", "--baseline", "tekapp")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: Unknown baseline 'tekapp'. Did you mean 'tekap'? Known: all, catkd, kd, rkd, sp, tekap.\n"
    )
    assert done.stdout == ""


def test_the_reader_of_a_pipe_may_leave():
    command = f"{sys.executable} -m tmkd_plugin list networks | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bnech"], "Did you mean 'bench'?"),
        (["list", "preset"], "Did you mean 'presets'?"),
        (["bench", "--sedes", "3"], "Did you mean '--seeds'?"),
        (["bench", "--teacher_views", "rgb"], "Did you mean '--teacher-views'?"),
        (["bench", "--seed", "3"], "Did you mean '--seeds'?"),
        (["bench", "--seeds"], "expected one argument"),
        (["bench", "--threads", "two"], "expected a whole number of at least 1, got 'two'"),
        ([], "COMMAND"),
    ],
)
def test_misspelt_commands_and_options(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--help`" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "rdk"], "Did you mean 'rkd'?"),
        (["--baseline", "json:Nothing"], "Unknown class in json 'Nothing'"),
        (["--baseline", "no_such_module:Mine"], "no module 'no_such_module'"),
        (["--enhancer", "tmdk"], "Did you mean 'tmkd'?"),
        (["--enhancer", "none,richkd"], "every baseline is trained alone too; leave 'none' out, or give it alone"),
        (["--enhancer", "richkd,"], "--enhancer 'richkd,': a name is missing. Expected names with commas"),
        (["--enhancer", "tmkd+"], "--enhancer 'tmkd+': a name is missing"),
        (["--dataset", "digitz"], "Did you mean 'digits'?"),
        (["--dataset", "./no/such/folder"], "There is no folder"),
        (["--teacher", "resnet200"], "teacher: Unknown network 'resnet200'. Did you mean 'resnet20'?"),
        (["--student", "resnt8"], "student: Unknown network 'resnt8'. Did you mean 'resnet8'?"),
        (["--teacher-views", "al"], "teacher_views: expected one of 'rgb', 'all', got 'al'. Did you mean 'all'?"),
        (["--teacher-checkpoint", "nothing.pt"], "There is no checkpoint file 'nothing.pt'"),
        (["--seeds", "three"], "seeds: expected a number n"),
        (["--text", "small_clop"], "Unknown text teacher 'small_clop'. Did you mean 'small_clip'?"),
        (["--text", "nothing.npz"], "The text source nothing.npz does not exist"),
        (["--preset", "digit"], "Did you mean 'digits'?"),
        (["--preset", "cifar10_small"], "names no data set: give one with --dataset"),
        (["--set", "training.epoch=3"], "Did you mean 'training.epochs'?"),
        (["--set", "nonsense"], "expected key=value"),
        (["--set", "kd.temperature=0"], "KD: temperature must be a number above 0, but is 0"),
        (["--set", "tmkd.fusion=avg"], "KD + TMKD: Unknown fusion 'avg'. Did you mean 'average'?"),
        (["--set", "device=cuad"], "device='cuad' can't be used"),
        (["--out", "{file}"], "can't be written to"),
    ],
)
def test_unusable_values_stop_before_any_training(words, message, tmp_path, monkeypatch, capsys):
    from tmkd_plugin.bench import comparison, guide

    monkeypatch.setattr(guide, "train_small_clip", None)
    monkeypatch.setattr(comparison, "trained_teacher", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["bench", *(word.format(file=tmp_path / "file") for word in words)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not list(tmp_path.glob("runs/*/*"))


def raising(error: BaseException):
    def command(_):
        raise error

    return command


def test_an_unexpected_error_leaves_a_log_and_is_short(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(list_names, "run", raising(ZeroDivisionError("oh")))
    assert main(["list", "presets"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: unexpected ZeroDivisionError: oh")
    assert "Traceback" not in error
    (log,) = tmp_path.glob("tmkd-error-*.log")
    assert str(log) in error
    assert "ZeroDivisionError: oh" in log.read_text()


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", raising(ZeroDivisionError("oh")))
    assert main(["bench", "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    monkeypatch.setattr(list_names, "run", raising(KeyboardInterrupt()))
    assert main(["list", "presets"]) == 130
    assert "Interrupted" in capsys.readouterr().err
