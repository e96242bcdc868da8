# SPDX-License-Identifier: Apache-2.0
"""Exact system calls in a guest: builds the static program of probe.c, calls it, and reads what it prints.

A step is a tuple of words, `("open", "f", "notes", "rw,creat")`; probe.c has the table of them.  Its result is
None, an int, bytes or a list of names (bytes); of a call that failed it is the errno's name, "ENOENT".
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Word = str | bytes | int
Step = tuple[Word, ...]
Value = None | int | bytes | list[bytes] | str
SOURCE = Path(__file__).with_name("probe.c")


def build(directory: Path) -> Path:
    """Compile the program, linked statically so that it runs in any guest."""
    program = directory / "probe"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-static", "-o", program, SOURCE], check=True)
    return program


def arguments(program: str | Path, steps: Sequence[Step]) -> list[bytes]:
    """The argument vector that makes the steps.  A number is written in decimal: a mode is a word, "755"."""
    words = [os.fsencode(program)]
    for step in steps:
        words += [str(word).encode() if isinstance(word, int) else os.fsencode(word) for word in step] + [
            b"--"
        ]
    return words


def host(program: Path, *steps: Step) -> list[Value]:
    """The results of steps that are made on the host."""
    done = subprocess.run(arguments(program, steps), capture_output=True, check=True)
    return [value(line) for line in done.stdout.splitlines()]


def value(line: bytes) -> Value:
    """What a line of the program's output says."""
    mark, _, text = line.decode().partition(" ")
    if mark == "ok":
        return None
    if mark == "=":
        return int(text)
    if mark == ":":
        return bytes.fromhex(text)
    if mark == ",":
        return [bytes.fromhex(name) for name in text.split()]
    assert mark == "!", f"not an answer of the probe: {line!r}"
    return text


class Conversation:
    """The program's output as it comes: collects values, and answers each `("wait", WORD)` step.

    `answers`: what to do for a WORD before the program goes on.  `replies` is the program's standard input.
    """

    def __init__(self, answers: Mapping[str, Callable[[], object]], replies: int):
        self.values: list[Value] = []
        self._answers = answers
        self._replies = replies
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"? "):
                self._answers[line[2:].decode()]()
                os.write(self._replies, b"\n")
            else:
                self.values.append(value(line))
