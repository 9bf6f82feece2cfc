"""JUnit XML and Markdown of hostile names, well-formed and in one piece."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.report import Report, junit_xml, markdown, text_lines
from tmkd_plugin.bench.regression.rules import Finding

HOSTILE = 'A | <script>alert("&")</script> `x` *y*\nz \x00\x1b[31m ]]> é 😀'


def arm(title="KD", failed=None) -> ArmMeasurements:
    return ArmMeasurements("kd", title, "kd", None, None, {0: 90.0, 1: 91.0}, {}, failed or {})


def report(**changes) -> Report:
    values = {
        "reference": "digits",
        "findings": [Finding("one", True, "within."), Finding("two", False, "0.50 points below its band.")],
        "arms": [arm()],
        "notices": ["recorded elsewhere"],
        "seconds": 1.5,
    }
    return Report(**(values | changes))


def test_junit_counts_and_texts():
    suite = ET.fromstring(junit_xml(report(arms=[arm(failed={2: "the loss is nan"})]))).find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert cases["one"].find("failure") is None
    assert cases["two"].find("failure").get("message") == "0.50 points below its band."
    assert cases["KD, seed 2: the loss is nan"].find("error") is not None
    assert "recorded elsewhere" in suite.find("system-out").text
    names = [(case.get("classname"), case.get("name")) for case in suite.iter("testcase")]
    assert len(set(names)) == len(names)


def test_hostile_text_stays_text():
    hostile = report(
        reference=HOSTILE,
        findings=[Finding(HOSTILE, False, HOSTILE)],
        arms=[arm(HOSTILE, {7: HOSTILE})],
        notices=[HOSTILE],
    )
    suite = ET.fromstring(junit_xml(hostile)).find("testsuite")
    assert '<script>alert("&")</script>' in suite.find("testcase").get("name")
    text = markdown(hostile)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("| ❌")]
    assert len(rows) == 1
    assert rows[0].replace("\\|", "").count("|") == 4
    assert "\\`x\\` \\*y\\* z" in rows[0]


@pytest.mark.parametrize(
    ("changes", "headline", "sign"),
    [
        ({}, "Regression: 1 of 2 rules failed.", "❌"),
        ({"findings": [Finding("one", True, "within.")]}, "No regression: all 1 rules hold.", "✅"),
        ({"findings": [], "arms": [arm(failed={2: "x"})]}, "No answer: 1 run(s) failed.", "❌"),
    ],
)
def test_the_headline_comes_first_in_markdown_and_last_on_a_terminal(changes, headline, sign):
    made = report(**changes)
    assert markdown(made).startswith(f"## {sign} {headline}")
    assert text_lines(made)[-1] == headline


def test_markdown_shows_failed_rules_first_and_the_arms():
    lines = markdown(report()).splitlines()
    rules = [line for line in lines if line.startswith(("| ✅", "| ❌"))]
    assert rules == ["| ❌ | two | 0.50 points below its band. |", "| ✅ | one | within. |"]
    assert "| KD | 90.50 ± 0.71 | 0, 1 |" in lines
