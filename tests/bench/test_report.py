"""The report: what it says, that nothing in it becomes markup, and how a browser shows it."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import re
from pathlib import Path

import browser
import pytest
from finished_runs import call, copied, make_run
from PIL import Image

from tmkd_plugin.bench.figures.finished_run import FinishedRun, load_images, read_run
from tmkd_plugin.bench.report.class_changes import ClassChange, changes_of
from tmkd_plugin.bench.report.command import render
from tmkd_plugin.bench.report.content import gather
from tmkd_plugin.bench.report.outcome import difference_rows
from tmkd_plugin.commands import report
from tmkd_plugin.data.file_split import FileSplit
from tmkd_plugin.errors import InputError

SCRIPT = "<script>window.hacked = 1</script>"
HOSTILE = [
    f"""'"><img src=x onerror="window.hacked = 1">{SCRIPT}""",
    "\u202e\u062f\u062c\u0627\u062c\u0629 {{ 7 * 7 }} &amp; $x^{2",
    "a_very_long_class_name_without_any_space_" * 8,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("run") / "finished", image_folder, text_file, cache)


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert call(report, str(finished), "--out", str(out), "--images", "3") == 0
    return out


def make_hostile(results):
    """Puts hostile text wherever a run can carry text of its own."""
    results["dataset"]["class_names"] = HOSTILE
    results["dataset"]["name"] = f"data{SCRIPT}"
    for arm in results["arms"]:
        arm["title"] += HOSTILE[0]
    results["arms"][1]["seeds"][1] |= {"best": None, "last": None, "error": HOSTILE[0]}
    results["config"]["text"] = {"value": HOSTILE[0], "source": HOSTILE[1]}
    results["config"][HOSTILE[0]] = {"value": HOSTILE[2], "source": "ours"}
    results["config"]["tmkd"][HOSTILE[0]] = {"value": HOSTILE[0], "source": HOSTILE[0]}
    results["teachers"][0]["source"] = HOSTILE[0]
    results["teachers"][0]["role"] = HOSTILE[0]
    results["notices"] = [HOSTILE[0]]


@pytest.fixture(scope="module")
def hostile(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "run <b> & '\""
    copied(finished, folder, make_hostile)
    timing = json.loads((folder / "timing.json").read_text()) | {"host": HOSTILE[0]}
    (folder / "timing.json").write_text(json.dumps(timing))
    assert call(report, str(folder), "--images", "3") == 0
    return folder / "report.html"


class Reader(html.parser.HTMLParser):
    """Collects elements, attributes and text as a browser would see them."""

    def __init__(self, page: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


def test_says_what_was_found(finished, written):
    page = Reader(written)
    results = json.loads((finished / "results.json").read_text())
    entry = next(e for e in results["comparisons"] if e["metric"] == "top1" and e["selection"] == "last")
    words = re.sub(r"\s+", " ", page.text)
    assert "KD + TMKD against KD on colours" in words
    assert f"{entry['delta']:+.2f}".replace("-", "\u2212") in words
    for part in (
        "the interval says", "Sign-flip test", "Learning curves", "Where the students look", "How the students arrange",
        "class by class", "Fusion weights and accuracy", "Images that changed sides", "learning_rate", "command line",
        "Fingerprint of the images", results["dataset"]["fingerprint"], "Teacher resnet8, trained on colours",
    ):  # fmt: skip
        assert part in words, part
    for arm in results["arms"]:
        mean = sum(run["best"]["top1"] for run in arm["seeds"]) / 2
        assert f"{mean:.2f}" in words


def test_needs_nothing_from_outside(written):
    page = Reader(written)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object") or attributes.get("rel") == "icon", tag
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#")), (tag, attributes)
    text = written.read_text()
    assert not re.search(r"url\((?!#|\"?#)", text)
    assert not re.search(r"@import", text)


def test_is_the_same_each_time(finished, written, tmp_path):
    assert call(report, str(finished), "--out", str(tmp_path / "r.html"), "--images", "3") == 0
    assert (tmp_path / "r.html").read_bytes() == written.read_bytes()


@pytest.mark.parametrize("name", ["written", "hostile"])
def test_is_accessible_in_structure(name, request):
    page = Reader(request.getfixturevalue(name))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert charts
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 40 for attributes in charts)
    links = [attributes["href"][1:] for tag, attributes in page.elements if tag == "a"]
    assert links
    assert set(links) <= set(ids)


def test_hostile_text_stays_text(hostile):
    page = Reader(hostile)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert not [attributes for tag, attributes in page.elements if tag == "img" and attributes.get("src") == "x"]
    assert page.text.count(SCRIPT) >= 10
    assert "{{ 7 * 7 }}" in page.text
    assert "49 &amp;" not in page.text


def test_images_that_changed_sides_are_counted(finished):
    """Against a loop over images and seeds."""
    run = read_run(finished)
    (pair,) = run.pairs()
    changes = changes_of(run, pair, load_images(run))
    right = [[run.predictions(arm, seed).predicted == run.predictions(arm, seed).labels for seed in (0, 1)]
             for arm in pair.both]  # fmt: skip
    net = [sum(int(after[k]) - int(before[k]) for before, after in zip(*right, strict=True)) for k in range(12)]
    assert (changes.gained, changes.lost) == (sum(n > 0 for n in net), sum(n < 0 for n in net))
    assert [image.enhanced_right - image.baseline_right for image in changes.gains] == sorted(
        (n for n in net if n > 0), reverse=True
    )
    assert sum(change.delta * change.images for change in changes.classes) == pytest.approx(100 * sum(net) / 2)
    assert all(image.picture.startswith("data:image/png;base64,") for image in [*changes.gains, *changes.losses])


def test_files_are_named_and_their_names_escaped(finished, tmp_path):
    """A data set whose images stay in files, with names as people give them."""
    run = read_run(finished)
    (pair,) = run.pairs()
    dataset = load_images(run)
    names = [f"{SCRIPT.replace('/', ':')} \u202e{k} 'x' & \udcff.png" for k in range(12)]
    for name, pixels in zip(names, dataset.test.images, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / name)
    split = FileSplit(tmp_path, tuple(names), dataset.test.labels, dataset.test.ids, 16)
    changes = changes_of(run, pair, dataclasses.replace(dataset, test=split))
    shown = [*changes.gains, *changes.losses]
    assert shown
    assert {image.name for image in shown} <= set(names)
    content = gather(run)
    content = dataclasses.replace(content, pairs=[dataclasses.replace(content.pairs[0], changes=changes)])
    (tmp_path / "r.html").write_bytes(render(content).encode(errors="replace"))
    page = Reader(tmp_path / "r.html")
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert page.text.count(SCRIPT.replace("/", ":")) >= len(shown)


def test_many_classes_are_folded(finished, tmp_path):
    content = gather(read_run(finished), images=1)
    classes = [ClassChange(f"class {k}", 5, 50.0, 70.0 - k) for k in range(40)]
    changes = dataclasses.replace(content.pairs[0].changes, classes=classes)
    content = dataclasses.replace(content, pairs=[dataclasses.replace(content.pairs[0], changes=changes)])
    (tmp_path / "r.html").write_text(render(content))
    text = (tmp_path / "r.html").read_text()
    assert "The 16 classes between them" in text
    assert [text.count(f"<bdi>class {k}</bdi>") for k in range(40)] == [1] * 40


def test_a_verdict_names_the_controls(finished, tmp_path):
    """A gain over the baseline that is none over a control must not stand alone."""

    def with_control(results):
        control = json.loads(json.dumps(results["arms"][0])) | {"name": "kd+logit_kl", "control": "logit_kl"}
        results["arms"].append(control | {"title": "KD + logit KL"})
        entries = [dict(e, baseline="kd+logit_kl", delta=-1.25) for e in results["comparisons"]]
        for entry in results["comparisons"]:
            entry["delta"] = 0.75
        results["comparisons"] += entries

    run = copied(finished, tmp_path / "run", with_control)
    page = Reader(run / "report.html") if call(report, str(run), "--images", "1") == 0 else None
    words = re.sub(r"\s+", " ", page.text)
    assert "Against a control, KD + TMKD \u2212 (KD + logit KL): \u22121.25 [" in words
    assert "After the last epoch: +0.75 [" in words
    assert "There are no control arms here" not in words


def test_each_difference_has_its_own_sentence(finished):
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert all("sign_flip_p" in entry for entry in results["comparisons"]), "what else is known has a line of its own"
    results["arms"].append({**results["arms"][1], "name": "kd+richkd", "title": "KD + RichKD"})
    results["comparisons"] += [{**entry, "enhanced": "kd+richkd"} for entry in results["comparisons"]]
    rows = difference_rows(FinishedRun(finished, results))
    sentences = [row.sentence for row in rows if row.selection == "best"]
    assert [re.split(" against | is ", sentence)[0] for sentence in sentences] == ["KD + TMKD", "KD + RichKD"]


def test_what_is_missing_is_said(finished, tmp_path):
    """Without images the report is written all the same, and says why there are no pictures."""
    run = copied(finished, tmp_path / "run", lambda r: r["config"]["dataset"].update(value="/nowhere/at/all"))
    (run / "timing.json").unlink()
    assert call(report, str(run)) == 0
    page = Reader(run / "report.html")
    assert "No pictures, attention maps or features: " in page.text
    assert "Fusion weights and accuracy" in page.text
    assert "Where the students look" not in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_an_arm_alone_has_a_report(finished, tmp_path):
    def alone(results):
        results["arms"] = results["arms"][:1]
        results["comparisons"] = []

    assert call(report, str(copied(finished, tmp_path / "run", alone))) == 0
    assert "nothing to compare" in Reader(tmp_path / "run" / "report.html").text


def test_what_can_t_be_reported(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="No finished comparison lies below runs"):
        call(report)
    with pytest.raises(InputError, match="is a folder: give the name of a file"):
        call(report, str(finished), "--out", str(tmp_path))
    with pytest.raises(InputError, match="--seed 9"):
        call(report, str(finished), "--seed", "9")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        call(report, str(finished), "--out", str(tmp_path / "file" / "r.html"), "--images", "1")


@pytest.fixture(scope="module")
def chromium():
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.Browser() as started:
        yield started


@pytest.mark.parametrize("name", ["written", "hostile"])
def test_in_a_browser(chromium, name, request):
    page = request.getfixturevalue(name)
    for width in (360, 1280):
        for dark in (False, True):
            chromium.look(width=width, dark=dark)
            chromium.open(page)
            assert chromium.messages() == []
            assert chromium.evaluate("typeof window.hacked") == "undefined"
            assert chromium.evaluate("innerWidth") == width
            assert chromium.evaluate("document.documentElement.scrollWidth") <= width
            # Nothing sticks out of the page but what scrolls in a box of its own.
            out = chromium.evaluate(
                "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide > *') && e.checkVisibility()"
                " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
            )
            assert out == []
            assert chromium.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
            background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(21, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert chromium.evaluate("document.querySelectorAll('svg image').length") > 0
    assert chromium.printed().startswith(b"%PDF")


def test_a_browser_can_tell_a_bad_page(chromium, tmp_path):
    """The checks above can fail: a page with a missing image, an error and a line that is too long."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<p style='width: 2000px'>x</p><img src='none.png'><script>window.hacked = 1; undefinedName()</script>"
    )
    chromium.look(width=360)
    chromium.open(bad)
    assert "undefinedName" in " ".join(chromium.messages())
    assert chromium.evaluate("document.documentElement.scrollWidth") > 360
    assert chromium.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 1
    assert chromium.evaluate("typeof window.hacked") == "number"
