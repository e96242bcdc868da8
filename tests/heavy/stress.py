# SPDX-License-Identifier: Apache-2.0
"""stress-ng's stressors of files and directories, two of each at a time, with --verify; a case is a stressor.

They are bounded by the number of operations, so that a slow machine does as much as a fast one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from outcomes import FAILED, PASSED, SKIPPED, Outcome, Work, run, scratch

# Operations of each, of about a second on a local file system.  Those of the class "filesystem" that are missing are
# not about the files of one directory (bind-mount, binderfs, eventfd, fanotify, ioprio, procfs).
STRESSORS = {
    "access": 300,
    "acl": 200,
    "chattr": 100,
    "chdir": 200,
    "chmod": 300,
    "chown": 500,
    "copy-file": 20,
    "dentry": 4000,
    "dir": 2000,
    "dirdeep": 500,
    "dirmany": 1000,
    "dnotify": 20,
    "dup": 200,
    "fallocate": 10,
    "fcntl": 2000,
    "fiemap": 100,
    "file-ioctl": 500,
    "filename": 500,
    "flock": 2000,
    "fpunch": 20,
    "fsize": 50,
    "fstat": 300,
    "getdent": 500,
    "handle": 1000,
    "hdd": 300,
    "inode-flags": 100,
    "inotify": 4,
    "io": 20,
    "iomix": 500,
    "lease": 200,
    "link": 2,
    "locka": 1000,
    "lockf": 1000,
    "lockofd": 1000,
    "metamix": 20,
    "mknod": 50,
    "mmap": 1,
    "mmapfork": 5,
    "open": 1000,
    "readahead": 50,
    "rename": 1000,
    "revio": 100,
    "seal": 20,
    "seek": 500,
    "sendfile": 200,
    "splice": 200,
    "symlink": 1,
    "sync-file": 20,
    "touch": 1000,
    "unlink": 50,
    "utime": 1000,
    "verity": 10,
    "xattr": 50,
}
# Those that write much by default, and how much they shall.
BOUNDS = {
    "chdir": ("--chdir-dirs", "64"),
    "copy-file": ("--copy-file-bytes", "128m"),
    "dirdeep": ("--dirdeep-dirs", "1", "--dirdeep-inodes", "500"),
    "fallocate": ("--fallocate-bytes", "16m"),
    "fiemap": ("--fiemap-bytes", "16m"),
    "hdd": ("--hdd-bytes", "16m", "--hdd-write-size", "64k"),
    "iomix": ("--iomix-bytes", "16m"),
    "mmap": ("--mmap-bytes", "8m", "--mmap-file"),
    "readahead": ("--readahead-bytes", "16m"),
    "revio": ("--revio-bytes", "16m"),
    "seek": ("--seek-size", "16m"),
    "sync-file": ("--sync-file-bytes", "16m"),
}
TIMED = {"fpunch": 3, "inode-flags": 2}  # seconds, as they do not heed a number of operations
LEFT_OUT_WHEN_SMALL = ("symlink", "iomix", "mmapfork", "seal", "sendfile", "splice")


def cases(work: Work) -> Iterator[Outcome]:
    program = shutil.which("stress-ng")
    if program is None:
        yield Outcome("stress", "all", SKIPPED, "no stress-ng: install the Debian package")
        return
    help = run([program, "--help"]).text
    for name, operations in STRESSORS.items():
        if not work.wants(name) or (work.size == 1 and name in LEFT_OUT_WHEN_SMALL):
            continue
        if not re.search(rf"--{name} N", help):
            yield Outcome("stress", name, SKIPPED, "this stress-ng does not know it")
            continue
        yield _stressor(work, program, name, operations * work.size)


def _stressor(work: Work, program: str, name: str, operations: int) -> Outcome:
    with scratch(work.directory, name) as place:
        words = [program, f"--{name}", "2", f"--{name}-ops", str(operations), *BOUNDS.get(name, ())]
        words += [
            "--verify",
            "--temp-path",
            str(place),
            "--no-rand-seed",
            "--oomable",
            "--timeout",
            str(TIMED.get(name, 60) * work.size),
        ]
        done = run(words, cwd=place)
    lines = [re.sub(r"^stress-ng: (\w+): +\[\d+\] ", r"\1: ", line) for line in done.text.splitlines()]
    trouble = [line for line in lines if line.startswith(("fail:", "error:"))]
    skipped = [line for line in lines if re.search(r"skip|not implemented|not supported", line)]
    if trouble or done.status not in (0, 3, 4):
        return Outcome("stress", name, FAILED, "\n".join(trouble[:5] or lines[-5:]))
    if done.status in (3, 4) or (skipped and not any("passed: 2" in line for line in lines)):
        return Outcome("stress", name, SKIPPED, "\n".join(skipped[:2] or lines[-2:]))
    return Outcome("stress", name, PASSED)
