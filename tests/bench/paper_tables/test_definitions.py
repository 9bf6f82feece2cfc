"""The tables as data: they hold the paper's figures, and what is wrong in a file is named."""

from __future__ import annotations

import re
import shutil

import pytest

from tmkd_plugin.bench.paper_tables.arms import ArmName, parse_arm
from tmkd_plugin.bench.paper_tables.definitions import load_scales, load_table, scale_named
from tmkd_plugin.errors import InputError
from tmkd_plugin.presets.tables import FOLDER, SCALES, TABLES

# The gains that the paper prints: by table, row and column.
PRINTED_GAINS = {
    2: {
        "kd+ours": [1.23, 1.85, 1.37, 1.19, 1.37],
        "rkd+ours": [0.57, 0.94, 1.39, 2.40, 0.56],
        "sp+ours": [0.85, 2.07, 0.96, 2.66, 0.54],
        "catkd+ours": [0.82, 3.87, 1.10, 4.49, 0.52],
        "tekap+ours": [0.84, 0.51, 0.18, 1.06, 0.59],
    },
    5: {
        "rgb_edge": [1.59], "rgb_high_frequency": [1.59], "edge_high_frequency": [0.40], "all": [2.82],
    },
    6: {"feature": [0.05], "contrast": [0.17], "all": [0.20]},
}  # fmt: skip


@pytest.mark.parametrize(("table", "figures"), [(2, 50), (3, 32), (4, 24), (5, 5), (6, 4)])
def test_every_figure_of_the_paper_is_there(table, figures):
    spec = load_table(table)
    found = [figure for row in spec.rows for figure in row.paper or ()]
    assert len(found) == figures
    assert None not in found
    assert f"Table {table}" in spec.source


@pytest.mark.parametrize("table", sorted(PRINTED_GAINS))
def test_gains_that_the_paper_prints_are_differences_of_its_figures(table):
    spec = load_table(table)
    by_arm = {row.arm: row for row in spec.rows}
    for row in spec.rows:
        if row.against is None or row.paper is None:
            continue
        gains = [after - before for after, before in zip(row.paper, by_arm[row.against].paper, strict=True)]
        assert gains == pytest.approx(PRINTED_GAINS[table][row.id], abs=0.005)


def test_figures_against_the_paper_cell_by_cell():
    """Some cells read from the paper by hand, one in each row of Table 2 and some of the others."""
    rows = {table: {row.id: row.paper for row in load_table(table).rows} for table in TABLES}
    assert rows[2]["catkd+ours"][3] == 44.34
    assert rows[2]["rkd"] == (38.76, 64.27, 63.53, 38.76, 51.74)
    assert rows[3]["dtd"][-1] == 68.29
    assert rows[4]["tekap"] == (65.38, 86.90, 65.46, 42.35, 68.80, 42.62)
    assert rows[5]["rgb"] == (41.52,)
    assert rows[6]["all"] == (65.40,)


@pytest.mark.parametrize("table", TABLES)
def test_what_the_paper_contradicts_stands_as_a_note(table):
    notes = " ".join(note.text for note in load_table(table).notes)
    for words in {2: ["Table 4", "4.49"], 3: ["62.40", "66.75", "86.96", "0.11"], 4: ["SP", "67.19"],
                  5: ["averaging", "1.67"], 6: ["67.05"]}[table]:  # fmt: skip
        assert words in notes


def test_scales_are_those_of_the_command():
    assert tuple(load_scales().scales) == SCALES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kd", ArmName("kd", "kd")),
        ("student", ArmName("student", None)),
        ("catkd+tmkd@rgb", ArmName("catkd+tmkd@rgb", "catkd", enhanced=True, variant="rgb")),
        ("rkd+logit_kl", ArmName("rkd+logit_kl", "rkd", control="logit_kl")),
        ("rkd@rgb_teacher", ArmName("rkd@rgb_teacher", "rkd", control="rgb_teacher")),
    ],
)
def test_names_of_arms(name, expected):
    assert parse_arm(name) == expected


def test_unknown_table_and_scale():
    with pytest.raises(InputError, match=r"Unknown table '7'.*Known: 2, 3, 4, 5, 6"):
        load_table(7)
    with pytest.raises(InputError, match="Did you mean 'smoke'"):
        scale_named(load_scales(), "smok")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("table2.yaml", "against: kd,", "againts: kd,", r"rows\.1: unknown key 'againts'. Did you mean 'against'"),
        ("table2.yaml", "title:", "titel:", "unknown key 'titel'. Did you mean 'title'"),
        ("table2.yaml", "group: resnet50-vgg8}", "group: resnet50-vgg}", "Did you mean 'resnet50-vgg8'"),
        ("table2.yaml", "[39.50, 65.20,", "[39.50,", "rows, kd: 4 figures of the paper for 5 columns"),
        ("table2.yaml", "39.50", "high", r"rows\.0\.paper\.0: .*'high'"),
        ("table2.yaml", "rows: [tekap]", "rows: [tekab]", r"notes\.2: Unknown row 'tekab'. Did you mean 'tekap'"),
        ("table2.yaml", "{id: kd, labels: [KD], arm: kd,", "{id: kd, labels: [KD],", "'kd' .* gives an arm"),
        ("table2.yaml", "id: rkd,", "id: kd,", "the id 'kd' stands twice"),
        ("table4.yaml", "arm: catkd, paper", "arm: catkd, metric: top1, paper", "both give 'metric'"),
        ("table4.yaml", "labels: [CATKD]", "labels: [CATKD, x]", "2 labels for 1 headers"),
        ("table5.yaml", "catkd+tmkd@rgb_edge,", "catkd+tmkd@rgb_edg,", "Unknown variant 'rgb_edg'. Did you mean 'rgb_edge'"),
        ("scales.yaml", "substitute: digits", "substitut: digits", "Did you mean 'substitute'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(tmp_path, file, old, new, message):
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_scales(tmp_path) if file == "scales.yaml" else load_table(int(re.sub(r"\D", "", file)), tmp_path)
    assert str(caught.value).startswith(f"{file} can't be used:")
