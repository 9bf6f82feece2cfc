"""Finished comparisons for the teacher report: tiny images, two seeds."""

from __future__ import annotations

import pytest
from finished_runs import make_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, image_folder, text_file, cache):
    return make_run(tmp_path_factory.mktemp("run") / "finished", image_folder, text_file, cache)
