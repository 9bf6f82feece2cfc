"""``tmkd table``: its words become options, and wrong ones are named."""

from __future__ import annotations

import pytest

from tmkd_plugin.commands import table
from tmkd_plugin.commands.parser import Parser


def parse(*words: str):
    parser = Parser(prog="tmkd")
    table.add_parser(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["table", *words])


@pytest.fixture
def given(monkeypatch):
    """The options that ``make_table`` is called with."""
    from tmkd_plugin.bench.paper_tables import command

    seen = []
    monkeypatch.setattr(command, "make_table", lambda options: seen.append(options) or 0)
    return seen


def test_words_become_options(given, tmp_path):
    words = ["3", "--scale", "small", "--datasets", "dtd,cifar100", "--baselines", "KD, sp", "--seeds", "0,4"]
    words += ["--data-dir", "/data", "--text", "clip/{dataset}.npz", "--device", "cuda", "--threads", "2", "--controls"]
    words += ["--set", "training.epochs=7", "--out", str(tmp_path), "--format", "all", "--dry-run", "--quiet"]
    arguments = parse(*words)
    assert arguments.run(arguments) == 0
    (options,) = given
    assert (options.table, options.scale, options.format, options.threads) == (3, "small", "all", 2)
    assert options.flags == {"seeds": "0,4", "data_dir": "/data", "text": "clip/{dataset}.npz", "device": "cuda"}
    assert options.assignments == {"training": {"epochs": 7}}
    assert options.selection.datasets == ["dtd", "cifar100"]
    assert options.selection.baselines == ["kd", "sp"]
    assert options.selection.pairs is None
    assert options.selection.controls
    assert options.dry_run
    assert options.quiet


def test_defaults(given):
    arguments = parse("2")
    arguments.run(arguments)
    (options,) = given
    assert (options.scale, options.flags, options.out, options.format) == ("smoke", {}, None, "markdown")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["7"], "invalid choice"),
        (["2", "--scale", "smal"], "Did you mean 'small'"),
        (["2", "--dry"], "Did you mean '--dry-run'"),
        (["2", "--threads", "0"], "a whole number of at least 1"),
        ([], "required"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
