"""Seeded damage to files: what disks, networks and hostile people do to bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def flip_in_the_head(content: bytes, draw: random.Random) -> bytes:
    head = min(len(content), 256)
    return flip_bits(content[:head], draw) + content[head:]


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def remove_a_part(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.randrange(1, 64) :]


def insert_noise(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.randbytes(draw.randrange(1, 64)) + content[start:]


def repeat_a_part(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start : start + draw.randrange(1, 256)] * 2 + content[start:]


def zero_a_part(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    part = content[start : start + draw.randrange(1, 512)]
    return content[:start] + bytes(len(part)) + content[start + len(part) :]


def huge_length(content: bytes, draw: random.Random) -> bytes:
    """Formats that begin with a length are told that all the memory of the world follows."""
    return draw.choice([b"\xff" * 8, b"\xff\xff\xff\x7f\0\0\0\0", b"\0" * 8]) + content[8:]


def change_a_number(content: bytes, draw: random.Random) -> bytes:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return flip_bits(content, draw)
    match = draw.choice(numbers)
    other = draw.choice([b"-1", b"0", b"1e999", b"99999999999999999999", b"nan", b"0.5", b"true", b'"7"', b"[]"])
    return content[: match.start()] + other + content[match.end() :]


def change_a_word(content: bytes, draw: random.Random) -> bytes:
    words = list(re.finditer(rb"[A-Za-z_]{3,}", content))
    if not words:
        return flip_bits(content, draw)
    match = draw.choice(words)
    others = [b"", b"null", b"../../x", b"!!python/object/apply:os.system [id]", b"&a [*a]", b"\xff\xfe", b"{}", b"- -"]
    return content[: match.start()] + draw.choice(others) + content[match.end() :]


def another_file(content: bytes, draw: random.Random) -> bytes:
    del content
    return draw.choice(
        [
            b"",
            b"\0",
            b"{}",
            b"[]",
            b"null",
            b"{" * 2000,
            b"[" * 100_000,
            b"PK\x05\x06" + bytes(18),
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
            b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
            draw.randbytes(300),
        ]
    )


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_in_the_head,
    truncate,
    remove_a_part,
    insert_noise,
    repeat_a_part,
    zero_a_part,
    huge_length,
    change_a_number,
    change_a_word,
    another_file,
)


def mutated(content: bytes, seed: int) -> tuple[str, bytes]:
    """Returns the name of a mutation and what it made of the content; one of three times two of them."""
    draw = random.Random(seed)
    names = []
    for mutation in draw.sample(MUTATIONS, 2 if draw.random() < 1 / 3 else 1):
        content = mutation(content, draw)
        names.append(mutation.__name__)
    return "+".join(names), content
