"""How long it takes until one can begin: imports, ``tmkd --help``, and a text teacher from the cache."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tmkd_plugin.bench.perf.figure import Figure, judged_figure, plain_figure
from tmkd_plugin.bench.perf.scope import Conditions
from tmkd_plugin.bench.perf.timing import Times
from tmkd_plugin.errors import RunError
from tmkd_plugin.prompts import PROMPTS, prompts_for
from tmkd_plugin.randomness import generator_for
from tmkd_plugin.text_cache import StoredText, write_cache
from tmkd_plugin.text_encoder import DEFAULT_TEXT_MODEL, parse_model_and_tag

IMPORT_LIMIT, HELP_LIMIT, TEXT_LIMIT_MS = 1.1, 1.5, 100.0
_TEXT_CLASSES, _TEXT_WIDTH = 100, 512

STARTS = {
    "torch": ("-c", "import torch"),
    "package": ("-c", "import tmkd_plugin"),
    "enhancer": ("-c", "from tmkd_plugin import TMKDEnhancer"),
    "help": ("-m", "tmkd_plugin", "--help"),
}
"""Name -> arguments of the interpreter."""

_WARM_TEXT = """
import json, sys, time
from tmkd_plugin.text_teacher import text_embeddings
names = [f"class {number}" for number in range(int(sys.argv[1]))]
clock = time.process_time if sys.argv[3] == "cpu" else time.perf_counter
start = clock()
text_embeddings(names, cache_dir=sys.argv[2])
seconds = clock() - start
print(json.dumps([seconds, "open_clip" in sys.modules]))
"""

Start = Callable[[tuple[str, ...]], str]
"""Runs the interpreter with arguments and returns what it printed."""


def start_process(arguments: tuple[str, ...]) -> str:
    """Runs this interpreter in a fresh process and returns what it printed.

    Raises:
        RunError: It failed.
    """
    # Elsewhere than here: `python -c` and `-m` would look for packages in the current folder first.
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RunError(f"`python {' '.join(arguments[:2])}` failed: {lines[-1]}")
    return done.stdout


def startup_figures(conditions: Conditions, start: Start = start_process) -> list[Figure]:
    """Starts processes in turn and times them; then loads a warm text teacher in fresh ones."""
    rounds = conditions.scope.start_rounds
    times = conditions.times({name: functools.partial(start, words) for name, words in STARTS.items()}, rounds)
    with tempfile.TemporaryDirectory(prefix="tmkd-perf-") as folder:
        write_warm_text(Path(folder))
        words = ("-c", _WARM_TEXT, str(_TEXT_CLASSES), folder, "cpu" if conditions.cpu_time else "wall")
        texts = [json.loads(start(words)) for _ in range(conditions.rounds(rounds))]
    return judge_startup(times, [1000 * seconds for seconds, _ in texts], imports=any(found for _, found in texts))


def write_warm_text(folder: Path) -> None:
    """Puts embeddings of the default model into a cache, under the key by which the text teacher looks for them."""
    names = [f"class {number}" for number in range(_TEXT_CLASSES)]
    views = list(PROMPTS)
    key = parse_model_and_tag(DEFAULT_TEXT_MODEL).key() | {
        "prompts": [prompts_for(names, view) for view in views],
        "class_names": names,
        "views": views,
    }
    generator = generator_for(0, "measured text")
    rows = torch.randn(len(views), len(names), _TEXT_WIDTH, generator=generator)
    embeddings = torch.nn.functional.normalize(rows, dim=-1)
    write_cache(folder, StoredText(embeddings, names, views, key, DEFAULT_TEXT_MODEL))


def judge_startup(times: Times, text_ms: list[float], *, imports: bool) -> list[Figure]:
    """Turns seconds of the processes in ``STARTS`` and milliseconds of the text teacher into figures.

    Args:
        times: Seconds, one a round.
        text_ms: Milliseconds of each load.
        imports: Whether open_clip was imported in one of them.
    """

    def against_torch(name: str) -> list[float]:
        return [own / torch_alone for own, torch_alone in zip(times[name], times["torch"], strict=True)]

    note = "whole processes, the interpreter's own start included"
    return [
        judged_figure(
            "startup", "import tmkd_plugin / import torch", "x", against_torch("package"), "at most", IMPORT_LIMIT, note
        ),
        judged_figure(
            "startup",
            "from tmkd_plugin import TMKDEnhancer / import torch",
            "x",
            against_torch("enhancer"),
            "at most",
            IMPORT_LIMIT,
            note,
        ),
        judged_figure("startup", "tmkd --help / import torch", "x", against_torch("help"), "at most", HELP_LIMIT, note),
        plain_figure("startup", "import torch", "ms", [1000 * seconds for seconds in times["torch"]], note),
        judged_figure(
            "startup",
            "a warm text teacher: 100 classes from the cache",
            "ms",
            text_ms,
            "at most",
            TEXT_LIMIT_MS,
            "the first call in a fresh process that has imported tmkd_plugin.text_teacher",
        ),
        judged_figure("startup", "open_clip imported by a warm text teacher", "times", [float(imports)], "at most", 0),
    ]
