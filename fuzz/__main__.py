# SPDX-License-Identifier: Apache-2.0
"""Run one target.

    python -m fuzz TARGET --replay [FILE...]                        feed it its seeds and these files, or directories
    python -m fuzz TARGET [--writable=DIRECTORY...] ARGUMENT...     let libFuzzer take over, with its arguments

Replaying works with any build of the modules.  libFuzzer wants that of `tools/fuzz-build` (see `fuzz/run`); the seeds
are put into the corpus directory named first.  Exit status 77: the kernel allows no namespaces here.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

TARGETS = ("rings", "requests", "races", "vhostuser", "channel")


def files_of(words: list[str]) -> list[Path]:
    paths: list[Path] = []
    for word in words:
        path = Path(word)
        paths += sorted(path.iterdir()) if path.is_dir() else [path]
    return paths


def main() -> int:
    name, *arguments = sys.argv[1:]
    os.environ.pop("LD_PRELOAD", None)  # not for the program that turns addresses into names
    if name not in TARGETS:
        print(f"{name} is none of the targets {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    replay: list[bytes] | None = None
    if arguments[:1] == ["--replay"]:
        replay = [path.read_bytes() for path in files_of(arguments[1:])]
    else:
        fuzz_engine = importlib.import_module("fuzz_engine")
    from fuzz.walls import enclose

    writable = [
        Path(word.removeprefix("--writable=")).absolute() for word in arguments if "--writable=" in word
    ]
    arguments = [word for word in arguments if "--writable=" not in word]
    try:
        scratch = enclose(writable)
    except OSError as error:
        print(f"{error}; run it as root, or where users may make user namespaces", file=sys.stderr)
        return 77
    module = importlib.import_module(f"fuzz.{name}")
    target = module.Target(scratch)
    if replay is None:
        if arguments and Path(arguments[0]).is_dir() and not any("merge" in word for word in arguments):
            for number, seed in enumerate(module.SEEDS):
                Path(arguments[0], f"seed-{number:03}").write_bytes(seed)
        fuzz_engine.run(target, arguments)
    began = time.monotonic()
    for data in (replay or []) + module.SEEDS:
        target(data)
    took = time.monotonic() - began
    print(f"{name}: {len(replay or []) + len(module.SEEDS)} inputs in {took:.1f} s, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
