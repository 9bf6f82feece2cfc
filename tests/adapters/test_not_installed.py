"""A framework that is not installed: the message names the extra that brings it."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("adapter", "missing", "extra"),
    [
        ("timm_task", "timm.task", "timm"),
        ("torchdistill", "torchdistill", "torchdistill"),
        ("modelopt", "modelopt", "modelopt"),
    ],
)
def test_the_message_names_the_extra(adapter: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == missing or name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"tmkd_plugin.adapters.{adapter}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'tmkd-plugin\[{extra}\]'"):
        importlib.import_module(f"tmkd_plugin.adapters.{adapter}")
