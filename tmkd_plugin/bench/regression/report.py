"""The outcome of a regression check: as lines, as JUnit XML for CI servers, and as Markdown for GitHub's job page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from tmkd_plugin.bench.regression.measurements import ArmMeasurements
from tmkd_plugin.bench.regression.rules import Finding
from tmkd_plugin.bench.statistics import mean_and_sd

SUITE = "tmkd regress"


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        reference: The reference's name or file.
        findings: What each rule found.
        arms: What was measured.
        notices: What a reader has to know beside the findings.
        seconds: How long the check took.
    """

    reference: str
    findings: Sequence[Finding]
    arms: Sequence[ArmMeasurements]
    notices: Sequence[str]
    seconds: float

    @property
    def failed_runs(self) -> list[str]:
        """A line for each run that failed."""
        return [f"{arm.title}, seed {seed}: {why}" for arm in self.arms for seed, why in arm.failed.items()]

    @property
    def failed_rules(self) -> list[Finding]:
        """The rules that don't hold."""
        return [finding for finding in self.findings if not finding.passed]

    @property
    def headline(self) -> str:
        """The outcome in a sentence."""
        if self.failed_runs:
            return f"No answer: {len(self.failed_runs)} run(s) failed."
        if self.failed_rules:
            return f"Regression: {len(self.failed_rules)} of {len(self.findings)} rules failed."
        return f"No regression: all {len(self.findings)} rules hold."


def text_lines(report: Report) -> list[str]:
    """Returns the outcome for a terminal: the failed rules last, where they are seen."""
    ordered = sorted(report.findings, key=lambda finding: not finding.passed)
    lines = [f"{'ok    ' if finding.passed else 'FAILED'}  {finding.rule}: {finding.found}" for finding in ordered]
    lines += [f"note: {notice}" for notice in report.notices]
    lines += [f"run failed: {line}" for line in report.failed_runs]
    return [*lines, report.headline]


def junit_xml(report: Report) -> bytes:
    """Returns a JUnit test suite: a test case for each rule, and an error for each failed run."""
    suite = ET.Element(
        "testsuite",
        name=SUITE,
        tests=str(len(report.findings) + len(report.failed_runs)),
        failures=str(len(report.failed_rules)),
        errors=str(len(report.failed_runs)),
        skipped="0",
        time=f"{report.seconds:.3f}",
    )
    for finding in report.findings:
        case = ET.SubElement(suite, "testcase", classname=_xml(report.reference), name=_xml(finding.rule), time="0")
        if finding.passed:
            ET.SubElement(case, "system-out").text = _xml(finding.found)
        else:
            ET.SubElement(case, "failure", message=_xml(finding.found), type="regression").text = _xml(finding.found)
    for line in report.failed_runs:
        case = ET.SubElement(suite, "testcase", classname=_xml(report.reference), name=_xml(line), time="0")
        ET.SubElement(case, "error", message=_xml(line), type="failed run").text = _xml(line)
    if report.notices:
        ET.SubElement(suite, "system-out").text = _xml("\n".join(report.notices))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    document: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def markdown(report: Report) -> str:
    """Returns the outcome as GitHub-flavoured Markdown: the verdict, the rules with the failed ones first, the arms."""
    sign = "❌" if report.failed_rules or report.failed_runs else "✅"
    lines = [f"## {sign} {_md(report.headline)}", "", f"Reference: {_md(report.reference)}", ""]
    if report.findings:
        lines += ["| | rule | found |", "| --- | --- | --- |"]
        for finding in sorted(report.findings, key=lambda finding: finding.passed):
            lines.append(f"| {'✅' if finding.passed else '❌'} | {_md(finding.rule)} | {_md(finding.found)} |")
        lines.append("")
    lines += ["| test top-1, % | mean ± sd | seeds |", "| --- | ---: | --- |"]
    for arm in report.arms:
        lines.append(f"| {_md(arm.title)} | {_mean_and_sd(arm)} | {', '.join(map(str, arm.top1))} |")
    lines.append("")
    lines += [f"- run failed: {_md(line)}" for line in report.failed_runs]
    lines += [f"- {_md(notice)}" for notice in report.notices]
    return "\n".join(lines).rstrip() + "\n"


def _mean_and_sd(arm: ArmMeasurements) -> str:
    if not arm.top1:
        return "failed"
    mean, sd = mean_and_sd(list(arm.top1.values()))
    return f"{mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}")


def _xml(text: str) -> str:
    """Takes out the characters that XML 1.0 can't hold, which an error message of a program may contain."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _md(text: str) -> str:
    """Escapes what Markdown or HTML would read as markup, and keeps a cell of a table in one line."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped).replace("\r", " ").replace("\n", " ")
