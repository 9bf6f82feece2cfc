"""How every figure is drawn and written: one style, the same bytes each time, a text alternative beside each file."""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmkd_plugin.training.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1d2129"
BASELINE, ENHANCED = "#3b82c4", "#c9571a"
VIEW_COLOURS = {"rgb": "#16907a", "edge": "#b0569c", "high_frequency": "#a8760b"}
CLASS_COLOURS = (
    "#3b82c4", "#c9571a", "#16907a", "#b0569c", "#a8760b", "#8a6fd1", "#d4504a", "#4c8f2f", "#7a8793", "#a36a3a",
)  # fmt: skip
"""Every colour has a contrast of at least 3 both on white and on the report's dark background."""

MARKERS = "os^DvPX<>p"
DOTS_PER_INCH = 160
NAME_WIDTH = 16

_STYLE: Any = {
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.parse_math": False,  # a class may be called "$5 note"
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # words stay words: smaller, searchable, in the reader's font
    "svg.hashsalt": "tmkd",
}
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f]")


@dataclass(frozen=True)
class Drawing:
    """A figure and what it says in words.

    Attributes:
        name: Of its files, without suffix.
        title: Its heading.
        caption: What is seen and how it was made.
        alternative: What it shows, for those who can't see it.
        figure: The drawing.
    """

    name: str
    title: str
    caption: str
    alternative: str
    figure: Figure


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """The style of all figures, for the block; matplotlib's own settings are as before afterwards."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A letter that the font lacks is shown as a box in the PNG; the SVG leaves it to the reader's fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, sides in inches; no window system and no list of open figures is involved."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def quiet_grid(axes: Axes) -> None:
    """Gives a plot faint horizontal lines, behind everything."""
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.set_axisbelow(True)


def whole_epochs(axes: Axes) -> None:
    """Labels the horizontal axis with whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def legend_below(axes: Axes, columns: int = 3) -> None:
    """Puts the legend under a plot, where no line runs through it, in as many columns as there is room for."""
    longest = max((len(label) for label in axes.get_legend_handles_labels()[1]), default=0)
    columns = max(1, min(columns, 56 // (longest + 4)))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, columnspacing=1.2, handlelength=1.6)


def shown_name(name: str, width: int = NAME_WIDTH) -> str:
    """Returns a name as it fits a figure: without control and direction characters, and cut at ``width`` letters."""
    plain = plain_text(_UNSEEN.sub("", name))
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def plain_text(text: str) -> str:
    """Returns text without what no file can hold: control characters, and the halves of letters that are not UTF-8."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text)


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Writes a figure as PNG and SVG, and its words as text; the same figure gives the same bytes.

    Returns:
        The files.
    """
    words = f"{drawing.title}\n\n{drawing.caption}\n\n{drawing.alternative}\n"
    contents = {".png": png(drawing), ".svg": svg(drawing), ".txt": words.encode(errors="replace")}
    files = []
    for suffix, content in contents.items():
        path = folder / f"{drawing.name}{suffix}"
        write_bytes(path, content)
        files.append(path)
    return files


def png(drawing: Drawing, dpi: int = DOTS_PER_INCH) -> bytes:
    """Returns the figure as PNG on white."""
    stream = io.BytesIO()
    with figure_style():
        drawing.figure.savefig(
            stream, format="png", dpi=dpi, metadata={"Software": None, "Description": plain_text(drawing.alternative)}
        )
    return stream.getvalue()


def svg(drawing: Drawing, *, transparent: bool = False) -> bytes:
    """Returns the figure as SVG."""
    stream = io.BytesIO()
    words = {"Title": plain_text(drawing.title), "Description": plain_text(drawing.alternative)}
    metadata = {"Date": None, "Creator": None, **words}
    with figure_style():
        drawing.figure.savefig(stream, format="svg", metadata=metadata, transparent=transparent, dpi=DOTS_PER_INCH)
    return stream.getvalue()


def inline_svg(drawing: Drawing) -> str:
    """Returns the figure as an ``svg`` element for an HTML page: its ink takes the text's colour, its names are its own.

    Everything is parsed and written again by an XML library, so that names in it can't become markup.
    """
    root = ET.fromstring(svg(drawing, transparent=True))
    width = float(root.attrib["viewBox"].split()[2])
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(_local(key), _own(value, _local(key), drawing.name))
    _drop_idle_ids(root)
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    root.attrib |= {
        "role": "img",
        "aria-label": plain_text(f"{drawing.title}. {drawing.alternative}"),
        # The rules that matplotlib gives all elements of a file; a <style> here would reach the whole page.
        "style": f"stroke-linejoin: round; stroke-linecap: butt; --natural-width: {width * 4 / 3:.0f}px",
    }
    return ET.tostring(root, encoding="unicode")


def _drop_idle_ids(root: ET.Element) -> None:
    """Removes ids that nothing refers to, and all but the first of equal ones (matplotlib names a mark by its shape)."""
    text = " ".join(value for element in root.iter() for key, value in element.attrib.items() if key != "id")
    needed = {first or second for first, second in re.findall(r"#([\w-]+)\)|#([\w-]+)", text)}
    for element in root.iter():
        if "id" in element.attrib and element.attrib["id"] not in needed:
            del element.attrib["id"]
        needed.discard(element.attrib.get("id", ""))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _own(value: str, key: str, prefix: str) -> str:
    """Returns an attribute of an inline figure: ids get a prefix, ink becomes the colour of the text around it."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    if key in ("style", "fill", "stroke", "clip-path"):
        return re.sub(r"url\(#", f"url(#{prefix}-", value).replace(INK, "currentColor")
    return value
