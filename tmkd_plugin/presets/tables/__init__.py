"""The paper's tables and the scales at which they can be run, one YAML file each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
TABLES = (2, 3, 4, 5, 6)
SCALES = ("smoke", "small", "paper")
