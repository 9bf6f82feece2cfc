"""Whole tables over a bench that trains nothing: what is printed, written, resumed and said of failures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from fake_bench import FakeBench, figure_of

from tmkd_plugin.bench.paper_tables import command
from tmkd_plugin.bench.paper_tables.command import make_table
from tmkd_plugin.bench.paper_tables.formats import escape_latex, escape_markdown
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets.tables import TABLES

ENDINGS = ("md", "csv", "tex", "json")


def files(options, table=2):
    folder = options.out / f"table{table}"
    return {ending: (folder / f"table{table}.{ending}").read_bytes() for ending in ENDINGS}


def content(options, table=2):
    return json.loads(files(options, table)["json"])


def cell_of(data, row, column):
    (found,) = [cell for cell in data["cells"] if (cell["row"], cell["column"]) == (row, column)]
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_is_filled(table, bench, measured, options, capsys):
    given = options(table)
    assert make_table(given, run=bench.run, measure_arms=measured) == 0
    data = content(given, table)
    assert all(cell["mean"] is not None and not cell["missing"] for cell in data["cells"])
    printed = capsys.readouterr().out
    assert (given.out / f"table{table}" / f"table{table}.md").read_text() in printed
    assert "not the paper's data" in printed.lower()
    assert all(cell["notes"] for cell in data["cells"])  # every cell is marked: digits in place of the paper's data


def test_figures_differences_and_intervals(bench, measured, options):
    given = options(flags={"seeds": "3"})
    make_table(given, run=bench.run, measure_arms=measured)
    cell = cell_of(content(given), "catkd+ours", "resnet50-vgg8")
    before, after = ([figure_of(arm, seed, "vgg8", "top1") for seed in range(3)] for arm in ("catkd", "catkd+tmkd"))
    assert cell["mean"] == pytest.approx(np.mean(after), abs=1e-5)
    assert cell["sd"] == pytest.approx(np.std(after, ddof=1), abs=1e-5)
    differences = np.subtract(after, before)
    assert cell["delta"] == pytest.approx(differences.mean(), abs=1e-5)
    half = 4.302652729911275 * differences.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
    assert cell["ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half], abs=1e-5)
    assert (cell["paper"], cell["paper_delta"], cell["pairs"]) == (44.34, 4.49, 3)


def test_layout_of_table_2(bench, measured, options):
    given = options(pairs=["resnet50:vgg8"], baselines=["catkd"])
    make_table(given, run=bench.run, measure_arms=measured)
    lines = files(given)["md"].decode().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    data = content(given)
    mean = {row: cell_of(data, row, "resnet50-vgg8") for row in ("catkd", "catkd+ours")}
    assert table[0] == ["Data", "digits"]
    assert table[2] == ["Teacher", "ResNet50"]
    assert table[3] == ["Method / Student", "VGG8 [1]"]
    assert table[4][0] == "CATKD"
    assert table[4][1] == f"{mean['catkd']['mean']:.2f} ± {mean['catkd']['sd']:.2f} (39.85)"
    assert table[5][1].startswith(f"{mean['catkd+ours']['mean']:.2f} ± ")
    assert table[5][1].endswith("(44.34) [2]")
    assert table[6] == ["difference", f"{mean['catkd+ours']['delta']:+.2f} (+4.49)"]
    low, high = mean["catkd+ours"]["ci95"]
    assert table[7] == ["95 % interval", f"[{low:+.2f}, {high:+.2f}]"]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1  # reads well in a terminal
    assert lines[2] == "**Smoke scale: it shows that everything works, its figures mean nothing.**"
    assert lines[4] == "**Not the paper's data: digits in place of CUB-200.**"
    assert any("1.67 of the paper's 4.49 points" in line for line in lines)


def test_columns_with_a_difference_get_columns_of_their_own(bench, measured, options):
    given = options(3, datasets=["dtd"])
    make_table(given, run=bench.run, measure_arms=measured)
    head = next(line for line in files(given, 3)["md"].decode().splitlines() if line.startswith("| Dataset"))
    names = [cell.strip() for cell in head.strip("|").split("|")]
    expected = "Teacher,Student,KD,RKD,SP,CATKD,TeKAP,Ours (TeKAP+TMKD),difference,95 % interval"
    assert ",".join(names[1:]) == expected
    teacher = cell_of(content(given, 3), "dtd", "teacher")
    assert (teacher["mean"], teacher["sd"], teacher["paper"]) == (figure_of("teacher", "resnet50"), None, 68.83)
    assert cell_of(content(given, 3), "dtd", "ours")["paper_delta"] == 1.54


def test_our_rows_are_marked(bench, measured, options):
    given = options(6)
    make_table(given, run=bench.run, measure_arms=measured)
    text = files(given, 6)["md"].decode()
    assert "| ✓ fused (ours)" in text
    assert cell_of(content(given, 6), "fused", "accuracy")["paper"] is None


def test_a_part_of_a_data_set_is_marked(bench, measured, options, monkeypatch):
    """The bench of these tests has two classes, whatever the data set."""
    monkeypatch.setattr(command, "DataProblems", lambda: lambda dataset, settings: None)
    given = options(2, baselines=["kd"])
    make_table(given, run=bench.run, measure_arms=measured)
    text = files(given)["md"].decode()
    assert "**Not the paper's data: CUB-200 with 2 of 200 classes.**" in text
    assert "| part of CUB-200" in text
    assert content(given)["groups"][0]["other_data"] == "CUB-200 with 2 of 200 classes"
    # Without limits the numbers of images count too.
    full = dataclasses.replace(given, scale="paper", out=given.out / "paper")
    make_table(full, run=bench.run, measure_arms=measured)
    assert "2 of 200 classes and 60 of 5,994 training images and 20 of 5,794 test images." in files(full)["md"].decode()


def test_csv(bench, measured, options):
    given = options()
    make_table(given, run=bench.run, measure_arms=measured)
    rows = list(csv.DictReader(io.StringIO(files(given)["csv"].decode())))
    assert len(rows) == 50
    row = next(row for row in rows if (row["row"], row["column"]) == ("kd+ours", "resnet50-resnet18"))
    assert (row["arm"], row["dataset"], row["used_dataset"], row["n"]) == ("kd+tmkd", "cub200", "digits", "2")
    assert (float(row["paper"]), float(row["paper_difference"])) == (67.05, 1.85)
    assert float(row["mean"]) == cell_of(content(given), "kd+ours", "resnet50-resnet18")["mean"]


def test_latex_escapes_and_balances(bench, measured, options):
    given = options()
    bench.failing_arm = "rkd"
    make_table(given, run=bench.run, measure_arms=measured)
    text = files(given)["tex"].decode()
    assert r"the loss is nan | in step\_3" in text
    assert r"$\pm$" in text
    assert r"95 \% interval" in text
    assert not re.search(r"(?m)^ *\[", text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0])
    plain = re.sub(r"\\.", "", text)
    assert plain.count("{") == plain.count("}")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5 % of $x$ #1 {y}", r"a\_b \& 5 \% of \$x\$ \#1 \{y\}"),
        (r"C:\x~^<>", r"C:\textbackslash{}x\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"),
        ("1 ± 2 ✓ a -> b", r"1 $\pm$ 2 $\checkmark$ a $\to$ b"),
    ],
)
def test_escape_latex(text, expected):
    assert escape_latex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("`x` *y* ~z~ \\", r"\`x\` \*y\* \~z\~ \\"),
        ("<b>", "&lt;b>"),
        ("two\nlines", "two lines"),
        ("_x_ but a_b", r"\_x\_ but a_b"),
        ("a -> b", "a → b"),
    ],
)
def test_escape_markdown(text, expected):
    assert escape_markdown(text) == expected


@pytest.mark.parametrize(
    ("format_", "marks"),
    [
        ("csv", ["table,scale,row"]),
        ("latex", [r"\begin{tabular}"]),
        ("all", ["# Table 2", "table,scale", r"\begin{tabular}"]),
    ],
)
def test_what_is_printed(format_, marks, bench, measured, options, capsys):
    make_table(options(format=format_, quiet=True), run=bench.run, measure_arms=measured)
    printed = capsys.readouterr().out
    assert all(mark in printed for mark in marks)
    assert ("| Teacher" in printed) == (format_ == "all")


def test_a_finished_table_runs_nothing_again(bench, measured, options, capsys):
    given = options()
    make_table(given, run=bench.run, measure_arms=measured)
    before, calls, trained = files(given), len(bench.calls), len(bench.trained)
    assert make_table(given, run=bench.run, measure_arms=measured) == 0
    assert (len(bench.calls), len(bench.trained)) == (calls, trained)
    assert files(given) == before
    assert "100 runs, 100 done, 0 missing." in capsys.readouterr().out
    # More seeds run what is missing.
    more = dataclasses.replace(given, flags={"seeds": "3"})
    make_table(more, run=bench.run, measure_arms=measured)
    assert len(bench.trained) == trained + 50


def test_runs_of_another_version_are_refused_before_the_table_is_touched(bench, measured, options):
    given = options(4)
    make_table(given, run=bench.run, measure_arms=measured)
    before = files(given, 4)
    path = sorted(given.out.glob("table4/comparisons/*/config.json"))[0]
    there = json.loads(path.read_text())
    del there["config"]["tekap"]["noise_mix"]
    path.write_text(json.dumps(there))
    with pytest.raises(InputError, match=r"another version: tekap\.noise_mix was unknown, and is .*--out"):
        make_table(given, run=bench.run, measure_arms=measured)
    assert files(given, 4) == before


def test_tables_share_runs(bench, measured, options):
    make_table(options(2), run=bench.run, measure_arms=measured)
    trained = len(bench.trained)
    make_table(options(4), run=bench.run, measure_arms=measured)
    assert len(bench.trained) == trained
    make_table(options(6), run=bench.run, measure_arms=measured)
    assert len(bench.trained) == trained + 2 * 4  # the four variants


def test_interrupted_anywhere_it_ends_in_the_same_table(bench, measured, options, tmp_path):
    whole = options(pairs=["resnet50:vgg8", "vgg13:vgg8"])
    make_table(whole, run=bench.run, measure_arms=measured)
    for stop_after in (0, 1, 7, 25, 39):
        stopped = dataclasses.replace(whole, out=tmp_path / f"stopped{stop_after}")
        interrupted = FakeBench()
        interrupted.stop_after = stop_after
        with pytest.raises(KeyboardInterrupt):
            make_table(stopped, run=interrupted.run, measure_arms=measured)
        assert not (stopped.out / "table2" / "table2.md").exists()
        interrupted.stop_after = None
        assert make_table(stopped, run=interrupted.run, measure_arms=measured) == 0
        assert len(set(interrupted.trained)) == len(interrupted.trained) == 40  # none was made twice
        assert files(stopped) == files(whole)


def test_a_failing_group_does_not_stop_the_rest(bench, measured, options, capsys):
    given = options()
    bench.fails = lambda configuration: "No such | teacher." if configuration.experiment.teacher == "vgg13" else None
    assert make_table(given, run=bench.run, measure_arms=measured) == 3
    data = content(given)
    assert cell_of(data, "kd", "vgg13-vgg8")["mean"] is None
    assert cell_of(data, "kd", "resnet50-vgg8")["mean"] is not None
    assert any(note == "Failed: No such | teacher." for note in data["notes"])
    text = files(given)["md"].decode()
    assert r"Failed: No such \| teacher." in text
    assert "| failed (39.50)" in text
    # Repaired, the next start makes what is missing and no more.
    bench.fails = lambda configuration: None
    trained = len(bench.trained)
    assert make_table(given, run=bench.run, measure_arms=measured) == 0
    assert len(bench.trained) == trained + 20
    assert "failed" not in files(given)["md"].decode()


def test_a_failing_arm_is_shown_with_its_reason(bench, measured, options):
    given = options()
    bench.failing_arm = "rkd+tmkd"
    assert make_table(given, run=bench.run, measure_arms=measured) == 3
    cell = cell_of(content(given), "rkd+ours", "resnet50-vgg8")
    assert (cell["mean"], cell["missing"], cell["delta"]) == (None, 2, None)
    assert any("seed 0: the loss is nan" in content(given)["notes"][number - 1] for number in cell["notes"])


def test_dry_run_counts_and_runs_nothing(bench, measured, options, capsys):
    given = options(dry_run=True)
    assert make_table(given, run=bench.run, measure_arms=measured) == 0
    assert not bench.calls
    printed = capsys.readouterr().out
    # 100 runs of 10 s and 1 MB; two teachers of 60 s and 5 MB, for four pairs share one.
    assert "100 runs, 0 done, 100 missing: about 18.7 min on cpu" in printed
    assert "0.10 GB in" in printed
    assert "10.0 MB for teachers in" in printed
    assert not (given.out / "table2").exists()


def test_runs_that_groups_share_are_counted_once(bench, measured, options, capsys):
    """At smoke scale three groups of Table 3 are digits with the same networks."""
    make_table(options(3, dry_run=True), run=bench.run, measure_arms=measured)
    printed = capsys.readouterr().out
    assert "28 runs, 0 done, 28 missing" in printed  # two groups of 7 arms, two seeds
    assert printed.count("the runs of rafdb") == 2
    make_table(options(3), run=bench.run, measure_arms=measured)
    assert len(bench.trained) == 28


def test_what_can_not_be_measured_stops_nothing(bench, options, capsys):
    def measure(*_):
        from tmkd_plugin.errors import InputError

        raise InputError("no such network")

    assert make_table(options(dry_run=True), run=bench.run, measure_arms=measure) == 0
    printed = capsys.readouterr().out
    assert "time unknown, size unknown (can't be measured: no such network)" in printed
    assert "5 group(s) not counted" in printed


def test_a_folder_that_is_a_file_is_refused(bench, measured, options, tmp_path):
    file = tmp_path / "table.md"
    file.touch()
    with pytest.raises(InputError, match=r"table\.md can't be written to: .* Choose another one with --out"):
        make_table(options(dry_run=True, out=file), run=bench.run, measure_arms=measured)


def test_a_measurement_is_made_once(bench, measured, options):
    calls = []

    def measure(*arguments):
        calls.append(arguments)
        return measured(*arguments)

    for _ in range(2):
        make_table(options(dry_run=True), run=bench.run, measure_arms=measure)
    assert len(calls) == 5
