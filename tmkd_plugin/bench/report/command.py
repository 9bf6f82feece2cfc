"""The command ``tmkd report``: one HTML file of a finished comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tmkd_plugin.bench.figures.drawing import Drawing, inline_svg
from tmkd_plugin.bench.figures.finished_run import newest_run, read_run
from tmkd_plugin.bench.report.content import MOST_CLASSES, ReportContent, gather
from tmkd_plugin.errors import InputError
from tmkd_plugin.training.files import write_bytes

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportOptions:
    """What the command line says; see :func:`~tmkd_plugin.bench.report.content.gather` for the rest.

    Attributes:
        folder: The comparison; ``None`` for the newest finished one below ``runs``.
        out: The file to write; ``None`` for ``report.html`` in the comparison's folder.
        seed: ...
        images: ...
        arms: ...
        data_dir: ...
    """

    folder: Path | None = None
    out: Path | None = None
    seed: int | None = None
    images: int = 6
    arms: Sequence[str] | None = None
    data_dir: str | None = None


def report(options: ReportOptions) -> int:
    """Writes the report, prints where it is, and returns 0.

    Raises:
        InputError: The comparison can't be used, or the file can't be written.
    """
    run = read_run(options.folder or newest_run(Path("runs")))
    out = options.out or run.folder / "report.html"
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: give the name of a file, such as {out / 'report.html'}.")
    content = gather(run, seed=options.seed, images=options.images, arms=options.arms, data_dir=options.data_dir)
    page = render(content).encode(errors="replace")  # a file's name need not be UTF-8
    try:
        write_bytes(out, page)
    except OSError as error:
        raise InputError(f"The report {out} can't be written: {error}. Choose another file with --out.") from None
    for row in content.verdicts:
        print(row.sentence)
    for line in [*content.notices, *(line for pair in content.pairs for line in pair.missing)]:
        print(f"note: {line}")
    print(f"{out}: {len(page) / 1e6:.1f} MB, one file that needs no network")
    return 0


def render(content: ReportContent) -> str:
    """Returns the report as HTML; everything but our own charts is escaped by the template library."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tmkd_plugin.bench.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def chart(drawing: Drawing, prefix: str) -> Markup:
        # The one thing that is not escaped: an element that an XML library has written.
        return Markup(inline_svg(replace(drawing, name=f"{prefix}-{drawing.name}")))

    def signed(value: float) -> str:
        return f"{value:+.2f}".replace("-", "\u2212")

    environment.filters["signed"] = signed
    return environment.get_template(TEMPLATE).render(report=content, chart=chart, most_classes=MOST_CLASSES)
