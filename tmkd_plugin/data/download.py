"""Files from the network: bounded, checked, and either whole or absent."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import secrets
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tmkd_plugin.errors import InputError

MAX_BYTES = 64 * 10**9  # for files whose size is not known beforehand
TIMEOUT_SECONDS = 30.0  # without a single byte
_BLOCK = 1 << 16
_UNKNOWN_TOTAL_STEP = 100 * 10**6
_ABANDONED_SECONDS = 24 * 3600.0


def _silent(line: str) -> None:
    """Says nothing."""


def fetch(
    url: str,
    target: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    say: Callable[[str], None] = _silent,
    opener: Callable[..., Any] = urllib.request.urlopen,
) -> Path:
    """Downloads a file, unless it lies there already with the right checksum.

    It appears under its name only when it is complete and its checksum is right: an interrupted download leaves nothing.

    Args:
        url: Where it is, ``http`` or ``https``.
        target: The file to write; its folder is made if it is missing.
        md5: Its MD5 in hexadecimal, where that is what the publisher gives.
        sha256: Its SHA-256 in hexadecimal.
        size: Its size in bytes.
        say: Called with a line at the start, at about each 10 %, and at the end.
        opener: Opens a request: ``opener(request, timeout=seconds)`` gives a response as ``urllib.request.urlopen`` does.

    Returns:
        The target.

    Raises:
        InputError: The server can't be reached or does not give this file. The message says how to put it there by hand.
    """
    by_hand = _by_hand(url, target, md5=md5, sha256=sha256, size=size)
    if not url.startswith(("http://", "https://")):
        raise InputError(f"The URL '{url}' can't be downloaded: expected http or https.")
    if target.is_file():
        fault = file_fault(target, md5=md5, sha256=sha256, size=size)
        if fault is None:
            return target
        say(f"'{target}' {fault}: downloading it again.")
    say(f"Downloading {url} to '{target}'.")
    with temporary_file(target) as temporary:
        with temporary.open("wb") as file:
            for block in _read_blocks(url, target.name, size, say, opener, by_hand):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        fault = file_fault(temporary, md5=md5, sha256=sha256, size=size)
        if fault is not None:
            raise InputError(f"What {url} gave {fault}. It was not kept. {by_hand}")
        temporary.replace(target)
    say(f"'{target}' is complete ({_megabytes(target.stat().st_size)}).")
    return target


def file_fault(path: Path, *, md5: str | None = None, sha256: str | None = None, size: int | None = None) -> str | None:
    """What is wrong with a file.

    Args:
        path: The file, which exists.
        md5: Its MD5 in hexadecimal, if it is known.
        sha256: Its SHA-256 in hexadecimal, if it is known.
        size: Its size in bytes, if it is known.

    Returns:
        Words that follow the file's name, such as ``has md5 ..., expected ...``; None if all that is known agrees.
    """
    actual_size = path.stat().st_size
    if size is not None and actual_size != size:
        return f"has {actual_size:,} bytes, expected {size:,}"
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        if expected is not None:
            actual = _digest(path, algorithm)
            if actual != expected.lower():
                return f"has {algorithm} {actual}, expected {expected}"
    return None


def bytes_fault(content: bytes, md5: str) -> str | None:
    """What is wrong with the content of a file, as :func:`file_fault` says it; None if its MD5 is right."""
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return None if actual == md5.lower() else f"has md5 {actual}, expected {md5}"


def known_checks(*, md5: str | None = None, sha256: str | None = None, size: int | None = None) -> str:
    """What is known of a file, in words for the user: ``md5 ..., 161 bytes``."""
    known = [("md5", md5), ("sha256", sha256), ("size", None if size is None else f"{size:,} bytes")]
    return ", ".join(f"{kind} {value}" for kind, value in known if value is not None) or "its checksum is not known"


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """A path beside the target that is free, and whatever lies there at the end of the block is removed.

    Leftovers of killed processes are removed too, once a day has passed since they were written to.

    Args:
        target: The file or folder that the temporary one is renamed to; its folder is made if it is missing.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder '{target.parent}' can't be made: {error.strerror or error}.") from error
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                _remove(leftover)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
    except OSError as error:
        raise InputError(f"'{target}' can't be written: {error.strerror or error}.") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _read_blocks(
    url: str, name: str, size: int | None, say: Callable[[str], None], opener: Callable[..., Any], by_hand: str
) -> Iterator[bytes]:
    """Yields the body; a body that is too long or ends early is an error."""
    bound = MAX_BYTES if size is None else size
    request = urllib.request.Request(url, headers={"User-Agent": "tmkd-plugin"})
    received = 0
    try:
        with opener(request, timeout=TIMEOUT_SECONDS) as response:
            declared = _declared_size(response)
            total = size if size is not None else declared
            while block := response.read(_BLOCK):
                _report(name, received, received + len(block), total, say)
                received += len(block)
                if received > bound:
                    raise InputError(f"{url} gives more than the {bound:,} bytes that were expected. {by_hand}")
                yield block
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{url} can't be downloaded: {_reason(error)}. {by_hand}") from error
    if declared is not None and received != declared:
        raise InputError(f"{url} ended after {received:,} of {declared:,} bytes. {by_hand}")


def _declared_size(response: Any) -> int | None:
    text = response.headers.get("Content-Length")
    return int(text) if text is not None and text.isdigit() else None


def _report(name: str, before: int, after: int, total: int | None, say: Callable[[str], None]) -> None:
    """Says how far it is whenever another tenth is done; without a known total, another 100 MB."""
    if total:
        if before * 10 // total != after * 10 // total and after < total:
            say(f"{name}: {after * 10 // total * 10} % of {_megabytes(total)}")
    elif before // _UNKNOWN_TOTAL_STEP != after // _UNKNOWN_TOTAL_STEP:
        say(f"{name}: {_megabytes(after)}")


def _reason(error: Exception) -> str:
    # URLError wraps the operating system's error; str() of a timeout is empty on some versions.
    reason = getattr(error, "reason", None)
    code = getattr(error, "code", None)
    text = str(reason or error) or type(error).__name__
    return f"the server answers {code} {text}" if code is not None else text


def _by_hand(url: str, target: Path, *, md5: str | None, sha256: str | None, size: int | None) -> str:
    return (
        f"Try again, or download {url} on another machine and put it at '{target}'"
        f" ({known_checks(md5=md5, sha256=sha256, size=size)}); then run the same command again."
    )


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
