# SPDX-License-Identifier: Apache-2.0
"""What a guest does on each of several file systems in turn, with a clock: one program, run in the guest.

    python3 work.py SETTINGS          SETTINGS: JSON, see `main`
                                      writes a JSON object a line: {"round", "target", "work", "seconds"} or "failed"

It stands alone: only the standard library, and the programs find, tar, git, rm and fio of the guest's root.
Each round begins with another target: the first and the last ones of a guest's life were seen to be slower.
"""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

PAGE = 4096
WARM_UP = "/dev/shm/warm-up"
WORKS: dict[str, Callable[[Target], None]] = {}
COLD: set[str] = set()  # works before which the caches are dropped
_libc = ctypes.CDLL(None, use_errno=True)


class Target:
    """A mounted file system to work on; `tree` was made by the host, `place` is for what is made now."""

    def __init__(self, name: str, mountpoint: str, sizes: dict[str, int], supply: str) -> None:
        self.name = name
        self.mountpoint = mountpoint
        self.tree = os.path.join(mountpoint, "tree")
        self.place = os.path.join(mountpoint, "place")
        self.sizes = sizes
        self.supply = supply  # a directory in memory: archive.tar, repository/


def work(name: str, cold: bool = False) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    """Enter a function into WORKS, in the order of the file: later ones use what earlier ones made."""

    def enter(function: Callable[[Target], None]) -> Callable[[Target], None]:
        WORKS[name] = function
        if cold:
            COLD.add(name)
        return function

    return enter


def run(*words: str) -> None:
    subprocess.run(
        words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@work("create files of 4 KiB")
def create(target: Target) -> None:
    data = b"x" * PAGE
    for number in range(target.sizes["files"]):
        if number % 100 == 0:
            os.makedirs(f"{target.place}/files/{number // 100}")
        with open(f"{target.place}/files/{number // 100}/{number}", "xb", buffering=0) as file:
            file.write(data)


@work("find and stat, cold", cold=True)
def find_cold(target: Target) -> None:
    run("find", target.tree, "-size", "+1000000k")


@work("find and stat, warm")
def find_warm(target: Target) -> None:
    run("find", target.tree, "-size", "+1000000k")


@work("read small files, cold", cold=True)
def read_cold(target: Target) -> None:
    run("tar", "cf", "/dev/zero", "-C", target.tree, ".")  # to /dev/null it would read none


@work("read small files, warm")
def read_warm(target: Target) -> None:
    run("tar", "cf", "/dev/zero", "-C", target.tree, ".")


@work("untar")
def untar(target: Target) -> None:
    os.mkdir(f"{target.place}/untar")
    run("tar", "xf", f"{target.supply}/archive.tar", "-C", f"{target.place}/untar")


@work("git clone")
def git_clone(target: Target) -> None:
    run("git", "clone", "-q", "--no-hardlinks", f"{target.supply}/repository", f"{target.place}/clone")


@work("git status, cold", cold=True)
def git_status_cold(target: Target) -> None:
    run("git", "-C", f"{target.place}/clone", "status", "--porcelain")


@work("git status, warm")
def git_status_warm(target: Target) -> None:
    run("git", "-C", f"{target.place}/clone", "status", "--porcelain")


@work("smallfile's mix")
def smallfile(target: Target) -> None:
    """The operations of smallfile, each on as many files: create, append, chmod, stat, read, rename, delete."""
    chance = random.Random(1)
    base = f"{target.place}/mix"
    os.mkdir(base)
    names = [f"{base}/{number % 10}/file{number}" for number in range(target.sizes["mix"])]
    for number in range(10):
        os.mkdir(f"{base}/{number}")
    data = b"y" * (64 << 10)
    for name in names:
        with open(name, "xb", buffering=0) as file:
            file.write(data[: chance.randint(1, len(data))])
    chance.shuffle(names)
    for name in names:
        with open(name, "ab", buffering=0) as file:
            file.write(b"appended")
    for name in names:
        os.chmod(name, 0o600)
    for name in names:
        os.stat(name)
    for name in names:
        with open(name, "rb", buffering=0) as file:
            file.read()
    for name in names:
        os.rename(name, name + ".renamed")
    for name in names:
        os.unlink(name + ".renamed")


@work("rm -rf")
def remove(target: Target) -> None:
    run("rm", "-rf", *(f"{target.place}/{name}" for name in ("files", "untar", "clone", "mix")))


@work("write sequentially, buffered, and close", cold=True)
def write(target: Target) -> None:
    data = os.urandom(1 << 20)
    with open(f"{target.place}/large", "wb", buffering=0) as file:
        for _ in range(target.sizes["mebibytes"]):
            file.write(data)


@work("fsync of that")
def synchronise(target: Target) -> None:
    fd = os.open(f"{target.place}/large", os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


@work("read sequentially, cold", cold=True)
def read_sequentially(target: Target) -> None:
    with open(f"{target.place}/large", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


@work("read sequentially, warm")
def read_again(target: Target) -> None:
    read_sequentially(target)


def fio(target: Target, *words: str) -> None:
    count = target.sizes["random"] * PAGE
    run(
        *(
            "fio",
            "--name=work",
            f"--filename={target.place}/large",
            f"--size={target.sizes['mebibytes']}M",
            "--bs=4k",
        ),
        *(f"--io_size={count}", "--randseed=7", "--minimal", *words),
    )


@work("read 4 KiB at random, cold", cold=True)
def random_reads(target: Target) -> None:
    fio(target, "--rw=randread", "--ioengine=psync", "--invalidate=0")


@work("write 4 KiB at random, buffered")
def random_writes(target: Target) -> None:
    fio(target, "--rw=randwrite", "--ioengine=psync", "--invalidate=0", "--end_fsync=0", "--fallocate=none")


@work("read a mapping at random, cold", cold=True)
def mapped_reads(target: Target) -> None:
    chance = random.Random(2)
    with (
        open(f"{target.place}/large", "rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as pages,
    ):
        for _ in range(target.sizes["random"] // 4):
            pages[chance.randrange(len(pages))]


def mount(settings: dict[str, str]) -> None:
    """mount(2), as a guest's root may have no mount program for every file system.  Raises `OSError`."""
    os.makedirs(settings["mountpoint"], exist_ok=True)
    words = [settings[name].encode() for name in ("source", "mountpoint", "type")]
    if _libc.mount(*words, ctypes.c_ulong(0), settings["options"].encode()):
        raise OSError(ctypes.get_errno(), f"{settings['name']}: {os.strerror(ctypes.get_errno())}")


def unmount(mountpoint: str) -> None:
    if _libc.umount2(mountpoint.encode(), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def drop_caches(mebibytes: int) -> None:
    """Forget all files, and use as much memory as the large file takes, twice.

    What was free for long, or held programs, takes an emulated processor many times as long to use as what was used a
    moment ago: whichever work came to it first would pay.
    """
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
    size = 2 * mebibytes << 20
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, PAGE):
            memory[offset] = 1


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def perform(target: Target, works: list[str], tell: Callable[..., None]) -> None:
    """All works on one target; `tell` takes work=, and seconds= or failed=."""
    shutil.rmtree(target.place, ignore_errors=True)
    os.mkdir(target.place)
    failed = False
    for name, do in WORKS.items():
        if name not in works:
            continue
        if name in COLD:
            drop_caches(target.sizes["mebibytes"])
        begin = time.perf_counter()
        try:
            do(target)
        except (OSError, subprocess.CalledProcessError) as error:
            words = getattr(error, "stderr", None) or str(error).encode()
            tell(work=name, failed=words.decode(errors="replace")[-300:])
            failed = True
            continue
        tell(work=name, seconds=time.perf_counter() - begin)
    if not failed:
        shutil.rmtree(target.place)
    os.sync()


def measure(settings: dict[str, str], number: int, plan: dict[str, object]) -> None:
    """All works on one target, mounted for it alone: what one leaves in memory does not burden the next."""
    target = Target(settings["name"], settings["mountpoint"], plan["sizes"], plan["supply"])  # type: ignore[arg-type]
    mount(settings)
    try:
        perform(target, plan["works"], functools.partial(say, round=number, target=target.name))  # type: ignore[arg-type]
    finally:
        unmount(settings["mountpoint"])


def warm_up(plan: dict[str, object]) -> None:
    """All works once in memory, so that the first target is not the one that waits for the programs to be read."""
    settings = {"name": "warm-up", "type": "tmpfs", "source": "tmpfs", "options": "", "mountpoint": WARM_UP}
    sizes = {"files": 10, "mix": 10, "mebibytes": 8, "random": 100}
    target = Target(settings["name"], WARM_UP, sizes, plan["supply"])  # type: ignore[arg-type]
    mount(settings)
    try:
        os.mkdir(target.tree)
        run("tar", "xf", f"{target.supply}/archive.tar", "-C", target.tree)
        perform(target, plan["works"], lambda **_: None)  # type: ignore[arg-type]
    finally:
        unmount(WARM_UP)


def main() -> int:
    """SETTINGS: {"targets": [{name, type, source, options, mountpoint}], "works": [name], "rounds": N, "sizes":
    {"files", "mix", "mebibytes", "random"}, "supply": directory}."""
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    os.makedirs("/tmp", exist_ok=True)
    os.environ |= {"HOME": "/tmp", "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "1"}
    warm_up(plan)
    for number in range(plan["rounds"]):
        start = number * len(plan["targets"]) // plan["rounds"]
        for settings in plan["targets"][start:] + plan["targets"][:start]:
            try:
                measure(settings, number, plan)
            except OSError as error:
                say(round=number, target=settings["name"], work="", failed=str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
