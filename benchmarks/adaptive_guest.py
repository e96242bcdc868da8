#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `--cache adaptive` saves in a real guest, and how late it shows a change: beside `never` and `auto`.

    python benchmarks/adaptive_guest.py

One guest has a tree three times, from three daemons that differ in the mode, and this machine's own root for its
programs.  It compiles (cc1 looks at many headers), asks git for the status again and again, and then looks at a file
that the host changes.  What is told are requests, counted by the daemons, and the time until a change shows, seen by
the host.  Needs root, QEMU, gcc and git.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from virtiofs.cli.ctl import ask
from virtiofs.vm.guest import Guest, Share

MODES = {
    "never": ("--cache", "never"),
    "auto": ("--cache", "auto"),
    "adaptive": ("--metadata-table", "--cache", "adaptive"),
}
HEADERS, SOURCES, FILES, CHANGES = 60, 6, 600, 6
REST_SECONDS, MOST_SECONDS = 30, 70
WORKS = {
    "build": "for f in *.c; do gcc -c -Iinclude $f -o /dev/shm/x.o || exit 1; done",
    "build, again": "for f in *.c; do gcc -c -Iinclude $f -o /dev/shm/x.o || exit 1; done",
    "git status, 5 times": "for n in 1 2 3 4 5; do git --no-optional-locks status --porcelain; done",
    "the same, after 30 s of rest": "for n in 1 2 3 4 5; do git --no-optional-locks status --porcelain; done",
}
# Says a line whenever the file has another size.
LOOK = 's=; while :; do n=$(stat -c %s watched); [ $n = 0 ] && exit; [ $n = "$s" ] || echo $n; s=$n; done'


def make_tree(tree: Path) -> None:
    (tree / "include").mkdir(parents=True)
    for number in range(HEADERS):
        (tree / "include" / f"h{number}.h").write_text(f"#pragma once\nint f{number}(int);\n")
    includes = "".join(f'#include "h{number}.h"\n' for number in range(HEADERS))
    for number in range(SOURCES):
        (tree / f"s{number}.c").write_text(f"{includes}int g{number}(int x) {{ return f{number}(x); }}\n")
    for number in range(FILES):
        place = tree / "data" / str(number // 40)
        place.mkdir(parents=True, exist_ok=True)
        (place / str(number)).write_text(f"{number}\n" * 20)
    (tree / "watched").write_text("x")
    environ = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    for words in ("init -q", "add -A", "-c user.name=x -c user.email=x@localhost commit -qm all"):
        subprocess.run(["git", *words.split()], cwd=tree, check=True, env=environ, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def served(directory: str, socket: str, control: str, *options: str) -> Iterator[None]:
    ready, theirs = os.pipe()
    command = [sys.executable, "-m", "virtiofs", "serve", directory, "--socket", socket, "--control", control]
    daemon = subprocess.Popen([*command, "--ready-fd", str(theirs), *options], pass_fds=[theirs])
    os.close(theirs)
    os.read(ready, 1)
    os.close(ready)
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def requests(control: str) -> int:
    """What the daemon has answered so far."""
    (share,) = ask(control, {"do": "counters"})["result"]
    return sum(row[0] for row in share["operations"].values())


def delays(guest: Guest, tree: Path, mountpoint: str) -> list[float]:
    """Seconds from a change by the host until the guest shows it: the first after a long time, others soon after."""
    seen: dict[int, float] = {}
    news = threading.Event()

    def hear(data: bytes) -> None:
        for line in data.split():
            seen.setdefault(int(line), time.monotonic())
        news.set()

    found: list[float] = []

    def change() -> None:
        news.wait()
        for number in range(2, 2 + CHANGES):
            time.sleep(1.7)  # what nobody changed for a while is trusted for longer
            begin = time.monotonic()
            (tree / "watched").write_text("x" * number)
            while number not in seen and time.monotonic() - begin < MOST_SECONDS:
                news.wait(0.001)
            found.append(seen.get(number, float("inf")) - begin)
        os.truncate(tree / "watched", 0)

    thread = threading.Thread(target=change)
    thread.start()
    guest.run(f"cd {mountpoint}; {LOOK}", 300, stdout=hear)
    thread.join()
    (tree / "watched").write_text("x")
    return found


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="virtiofs-adaptive-") as name, contextlib.ExitStack() as stack:
        place = Path(name)
        place.chmod(0o755)
        make_tree(place / "tree")
        shares = [Share("root", str(place / "root.sock"), "/", True)]
        stack.enter_context(
            served("/", str(place / "root.sock"), str(place / "root"), "--readonly", "--cache", "always")
        )
        for mode, options in MODES.items():
            shutil.copytree(place / "tree", place / mode, symlinks=True)
            stack.enter_context(
                served(
                    str(place / mode), str(place / f"{mode}.sock"), str(place / f"{mode}.control"), *options
                )
            )
        guest = Guest(
            shares,
            rootfs=True,
            memory="1G",
            devices=[
                word
                for mode in MODES
                for word in (
                    "-chardev",
                    f"socket,id={mode},path={place}/{mode}.sock",
                    "-device",
                    f"vhost-user-fs-pci,chardev={mode},tag={mode},queue-size=1024",
                )
            ],
        )
        with guest:
            guest.run("mount -t tmpfs tmpfs /tmp; mkdir /dev/shm/tree")
            print(
                "| mode | "
                + " | ".join(f"{work}: requests" for work in WORKS)
                + " | the first change after a while shows after | more changes soon after that |"
            )
            print("|---|" + "--:|" * (len(WORKS) + 2))
            for mode in MODES:
                counts = []
                guest.run(f"mount -t virtiofs {mode} /dev/shm/tree")
                # What git notes of each file is the guest's from here on.
                guest.run("cd /dev/shm/tree && HOME=/tmp git -c safe.directory=* status --porcelain", 600)
                for work, script in WORKS.items():
                    if "rest" in work:
                        time.sleep(REST_SECONDS)
                    before = requests(f"{place}/{mode}.control")
                    environ = "export HOME=/tmp GIT_CONFIG_GLOBAL=/dev/null TMPDIR=/tmp PATH=/usr/bin:/bin"
                    done = guest.run(f"{environ}; cd /dev/shm/tree && {script}", 600)
                    if done.status:
                        print(done.errors.decode(errors="replace"), file=sys.stderr)
                        return 1
                    counts.append(requests(f"{place}/{mode}.control") - before)
                late = delays(guest, place / mode, "/dev/shm/tree")
                guest.run("umount /dev/shm/tree")
                print(
                    f"| {mode} | "
                    + " | ".join(f"{count:,}" for count in counts)
                    + f" | {late[0]:.2f} s | {statistics.median(late[1:]):.2f} s, at worst {max(late[1:]):.2f} s |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
