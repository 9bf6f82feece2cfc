"""The GitHub Action: its script run by bash with a stand-in for ``tmkd``, and the example workflow against its inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tmkd_plugin.commands import regress
from tmkd_plugin.commands.parser import Parser

ROOT = Path(__file__).parents[3]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
INSTALL, CHECK = ACTION["runs"]["steps"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, as GitHub's runners have it")


def run_check(tmp_path, **inputs):
    """Runs the step with these inputs; returns the finished process, whose output is what ``tmkd`` was given."""
    stand_in = tmp_path / "bin" / "tmkd"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit "${TMKD_EXIT:-0}"\n')
    stand_in.chmod(0o755)
    given = {name: entry["default"] for name, entry in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    environment = {
        name: given[expression.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, expression in CHECK["env"].items()
    }
    environment |= {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "TMKD_EXIT": os.environ.get("TMKD_EXIT", "0")}
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", CHECK["run"]]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def parsed(words: list[str]):
    parser = Parser(prog="tmkd")
    regress.add_parser(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(words)


def test_the_defaults_are_a_command_that_tmkd_understands(tmp_path):
    ran = run_check(tmp_path)
    assert ran.returncode == 0
    arguments = parsed(ran.stdout.splitlines())
    assert (arguments.reference, arguments.margin, arguments.strict, arguments.seeds) == ("digits", 1.0, False, None)
    assert arguments.junit == Path("tmkd-regress.xml")


def test_every_input_arrives_and_nothing_in_it_is_run(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").touch()
    (tmp_path / "runs" / "b").touch()
    hostile = "my $(touch owned) `touch owned` reference; touch owned.json"
    ran = run_check(tmp_path, reference=hostile, strict="true", seeds="0-4", args="--quiet --out runs/*", margin="0.5")
    arguments = parsed(ran.stdout.splitlines())
    assert (arguments.reference, arguments.margin, arguments.strict, arguments.seeds) == (hostile, 0.5, True, "0-4")
    assert arguments.quiet
    assert arguments.out == Path("runs/*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "runs"]


def test_strict_takes_two_words(tmp_path):
    ran = run_check(tmp_path, strict="yes")
    assert ran.returncode == 2
    assert "strict: expected true or false, got 'yes'" in ran.stderr


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_exit_code_is_tmkds(tmp_path, monkeypatch, code):
    monkeypatch.setenv("TMKD_EXIT", str(code))
    assert run_check(tmp_path).returncode == code


def test_the_action_installs_this_repository():
    assert '"$GITHUB_ACTION_PATH"' in INSTALL["run"]
    assert (ROOT / "setup.cfg").is_file()


def test_the_example_uses_inputs_that_there_are():
    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "regress.yml").read_text())
    (step,) = [step for step in workflow["jobs"]["regress"]["steps"] if step.get("id") == "regress"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    # GitHub turns an expression that is a boolean into true or false, which the script expects.
    assert step["with"]["strict"] == "${{ github.event_name == 'schedule' }}"
    assert all("description" in entry for entry in ACTION["inputs"].values())
