# SPDX-License-Identifier: Apache-2.0
"""fio writes blocks with checksums in them and reads them back; a case is a job of the table."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

from outcomes import FAILED, PASSED, SKIPPED, Outcome, Work, run, scratch

ENGINES = ("sync", "psync", "pvsync2", "mmap", "libaio", "io_uring")  # the first is left out when small
PATTERNS = ("write", "randwrite", "rw", "randrw")
ASYNCHRONOUS = ("libaio", "io_uring")
# One megabyte with blocks of all sizes by two processes, in one file each; libaio is asynchronous only with O_DIRECT.
MEGABYTES = 8
MORE = {
    "one file of two processes": (
        "--rw=randwrite",
        "--filename=shared",
        "--offset_increment=4m",
        "--size=4m",
    ),
    "append": ("--rw=write", "--file_append=1", "--bs=7777"),
    "fallocate and trim": ("--rw=randwrite", "--fallocate=native", "--bs=4k"),
    "fsync after each 8": ("--rw=randwrite", "--bs=4k", "--fsync=8", "--size=1m"),
    "O_SYNC": ("--rw=randwrite", "--bs=4k", "--sync=1", "--size=1m"),
    "many files": ("--rw=randwrite", "--bs=4k", "--nrfiles=100", "--openfiles=20"),
}


def cases(work: Work) -> Iterator[Outcome]:
    program = shutil.which("fio")
    if program is None:
        yield Outcome("fio", "all", SKIPPED, "no fio: install the Debian package")
        return
    jobs = {name: ["--ioengine=psync", *words] for name, words in MORE.items()}
    for engine, pattern in itertools.product(ENGINES[work.size == 1 :], PATTERNS):
        for direct in (0, 1):
            if direct and engine == "mmap":
                continue
            name = f"{engine} {pattern}{' direct' if direct else ''}"
            words = [f"--ioengine={engine}", f"--rw={pattern}", f"--direct={direct}"]
            words += [
                "--bsrange=4k-128k" if direct else "--bsrange=512-128k",
                "--blockalign=4k" if direct else "",
            ]
            words += ["--iodepth=16"] if engine in ASYNCHRONOUS else []
            jobs[name] = words
    for name in filter(work.wants, jobs):
        yield _job(work, program, name, jobs[name])


def _job(work: Work, program: str, name: str, words: list[str]) -> Outcome:
    with scratch(work.directory, "fio") as place:
        command = [
            program,
            "--name=job",
            f"--directory={place}",
            f"--size={MEGABYTES * work.size}m",
            "--numjobs=2",
        ]
        command += [
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--randrepeat=1",
            "--group_reporting",
        ]
        done = run([*command, *(word for word in words if word)], cwd=place)
    if "not supported" in done.text or "not loadable" in done.text:
        return Outcome("fio", name, SKIPPED, done.last_lines(3))
    bad = [
        line
        for line in done.text.splitlines()
        if "verify:" in line or ("error" in line and "err= 0" not in line)
    ]
    if done.status or bad:
        return Outcome("fio", name, FAILED, "\n".join(bad[:5]) or done.last_lines())
    return Outcome("fio", name, PASSED)
