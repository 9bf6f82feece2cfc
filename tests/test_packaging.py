"""What is installed is what is here: every package and data file of the tree is named in setup.cfg."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = {".yaml", ".json", ".html", ".css", ".j2", ".typed", ".txt"}


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(setup):
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "tmkd_plugin").rglob("__init__.py")
        if "__pycache__" not in path.parts
    }
    found |= {"tmkd_plugin.adapters", "tmkd_plugin.baselines"}
    assert set(setup["options"]["packages"].split()) == found


def test_every_data_file_is_listed(setup):
    listed = setup["options.package_data"]
    missing = []
    for path in (ROOT / "tmkd_plugin").rglob("*"):
        if path.suffix not in DATA or not path.is_file():
            continue
        packages = [parent for parent in path.parents if (parent / "__init__.py").exists()]
        name = ".".join(packages[0].relative_to(ROOT).parts)
        patterns = [pattern.strip() for pattern in listed.get(name, "").split(",") if pattern.strip()]
        inside = path.relative_to(packages[0])
        if not any(inside.match(pattern) and len(Path(pattern).parts) == len(inside.parts) for pattern in patterns):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing


def test_nothing_that_is_no_part_of_the_project(setup):
    assert (ROOT / "LICENSE").exists()
    for name in ("install_requires",):
        lines = [line for line in setup["options"][name].splitlines() if line.strip()]
        assert all(">=" in line for line in lines), "every dependency has a tested lower bound"
    for extra, lines in setup["options.extras_require"].items():
        bounded = [">=" in line or line.strip() == "types-PyYAML" for line in lines.splitlines() if line.strip()]
        assert all(bounded), extra
