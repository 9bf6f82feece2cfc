"""The argument parser of all commands: errors in one line, with the nearest known word."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from typing import Any, NoReturn

BAD_INPUT = 2


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest what may have been meant."""

    def __init__(self, **kwargs: Any) -> None:
        self._asked = False
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints the problem in one line, the nearest known word and where to look, and exits with 2."""
        if os.environ.get("RANK", "0") != "0":  # of several processes that torchrun has started, the first one speaks
            self.exit(BAD_INPUT)
        self.exit(BAD_INPUT, f"error: {message}.{self._suggestion(message)} See `{self.prog} --help`.\n")

    def _suggestion(self, message: str) -> str:
        known = [option for action in self._all_actions() for option in action.option_strings]
        given = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if invalid := re.search(r"invalid choice: '([^']*)'", message):
            given = [invalid[1]]
            known = [str(choice) for action in self._all_actions() for choice in action.choices or ()]
        elif not message.startswith("unrecognized"):
            return ""
        near = [match for word in given for match in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
        return f" Did you mean {' '.join(repr(word) for word in near)}?" if near else ""

    def parse_known_args(self, *arguments: Any, **keywords: Any) -> Any:
        """Parses, and remembers that this parser was asked: an unknown option is one of its command."""
        self._asked = True
        return super().parse_known_args(*arguments, **keywords)

    def _all_actions(self) -> list[argparse.Action]:
        """Returns the actions of this parser and of the sub-command that was given, whose unknown options are reported here."""
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    if parser._asked:
                        actions += parser._all_actions()
        return actions


def whole_number(text: str) -> int:
    """Reads an option that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def names(text: str) -> list[str]:
    """Reads an option that is names with commas."""
    found = [name.strip() for name in text.split(",")]
    if "" in found:
        raise argparse.ArgumentTypeError(f"expected names with commas such as this,that, got '{text}'")
    return found


def arms_at_once(text: str) -> str | int:
    """Reads an option that is ``auto`` or a whole number of at least 1."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 'auto' or a whole number of at least 1, got '{text}'")
    return int(text)


def seconds(text: str) -> float:
    """Reads an option that is a time in seconds, at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, at least 0, got '{text}'")
    return value
