# SPDX-License-Identifier: Apache-2.0
"""The guest's RAM disk: busybox, the kernel modules, and the init script that runs the commands.

The script talks with `guest.py` over four virtio serial ports, which carry bytes as they are:

    control   lines.  Guest: "boot ID", "stage WORDS", "ready", "failed WORDS", "status NONCE N", "halted".
              Host: "run NONCE LENGTH INPUT" and LENGTH bytes of shell, "halt", "reboot".
    stdin     what a command reads if INPUT is "stdin"; otherwise it reads /dev/null.
    stdout    what commands write.  Each command's output stands between "\\0NONCE<" and "\\0NONCE>"; NONCE is
    stderr    the host's random word for this run.  Two ports keep no order, so the end travels with the data.

A command does not write to the ports themselves but into FIFOs that `cat` copies there: a port can be opened
only once, so that `echo >/dev/stderr` would fail.

With a root file system of its own the share is moved over "/", and commands enter it by chroot: init keeps
its busybox below, so nothing needs to be in the share for this to work, and nothing is written to it.

With an init of that root file system's own, /init becomes that program, in the same way.  What listens on the
control port is a process of its own then; it is "ready" when the boot is over, as far as that init tells, and a halt
is the guest's own power-off.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtiofs.vm.cpio import Archive
from virtiofs.vm.errors import GuestError, MissingPart
from virtiofs.vm.kernel import NEEDED_MODULES, Kernel
from virtiofs.vm.modules import read_module
from virtiofs.vm.qemu import PORTS, Share

__all__ = ["ExtraFiles", "build", "find_busybox", "init_script", "init_words"]

ExtraFiles = Mapping[str, "bytes | str | os.PathLike[str]"]
"""Path in the guest -> its contents (an executable file), or a host path: a file or a whole directory."""

_BUSYBOX_PACKAGE = "install the Debian package busybox-static (or run `make testbed`)"
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "run",
    "mnt",
    "root",
    "etc",
    "usr/bin",
    "usr/sbin",
    "sbin",
    "modules",
    "newroot",
)
_ACCOUNTS = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"
    b"nobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": b"root:x:0:\ndaemon:x:1:\nuser:x:1000:\nnogroup:x:65534:\n",
}

_PROLOGUE = """\
#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
umask 022
root= mounted=

# Before the control port is open only the console can be told.
lost() { echo "virtiofs: $*"; poweroff -f; }
fail() { echo "failed $*" >&9; while :; do sleep 1000; done; }

# DIRECTORY: the file systems every init expects.
first_mounts() {
    [ -d "$1/proc" ] && mount -t proc proc "$1/proc"
    [ -d "$1/sys" ] && mount -t sysfs sysfs "$1/sys"
    [ -d "$1/dev" ] && mount -t devtmpfs devtmpfs "$1/dev"
}

# DIRECTORY: the file systems every program expects.
system_mounts() {
    first_mounts "$1" || return 0
    mkdir -p "$1/dev/pts" "$1/dev/shm"
    mount -t devpts devpts "$1/dev/pts"
    mount -t tmpfs tmpfs "$1/dev/shm"
    [ -e "$1/dev/fd" ] || ln -s /proc/self/fd "$1/dev/fd"
    [ -e "$1/dev/stdin" ] || ln -s /proc/self/fd/0 "$1/dev/stdin"
    [ -e "$1/dev/stdout" ] || ln -s /proc/self/fd/1 "$1/dev/stdout"
    [ -e "$1/dev/stderr" ] || ln -s /proc/self/fd/2 "$1/dev/stderr"
}

# TAG DIRECTORY OPTIONS NAME: mount a share; NAME is the directory as the user called it.
share() {
    if [ ! -d "$2" ] && ! mkdir -p "$2" 2>/dev/null; then
        fail "there is no directory $4 in the root file system to mount a share on"
    fi
    why=$(mount -t virtiofs -o "$3" "$1" "$2" 2>&1) || fail "cannot mount the share $1 at $4: $why"
    mounted="$2
$mounted"
}

# Everything written goes to the host before it hears "halted".  A share that is still in use after the sync
# (its last process is just dying) is detached.
settle() {
    IFS='
'
    kill -9 -1
    sync
    [ -z "$root" ] || { mount --move . /newroot && cd /; }
    for directory in $mounted; do umount "$directory" 2>/dev/null || umount -l "$directory"; done
}

system_mounts ""
while read -r module; do insmod "$module"; done </modules/order
[ -d /sys/bus/virtio/drivers/virtio_console ] || lost "it has no virtio console (CONFIG_VIRTIO_CONSOLE)"
find_ports() {
    set -- /dev/vport*p@LAST@
    port=${1%p@LAST@}p
    [ -c "$1" ]
}
tries=0
until find_ports; do
    [ $((tries += 1)) -lt 500 ] || lost "its virtio console shows no ports"
    sleep 0.01
done
exec 9<>"${port}@CONTROL@"
echo "boot $(cat /proc/sys/kernel/random/boot_id)" >&9
cat </run/stdout >"${port}@STDOUT@" 2>/dev/null &
cat </run/stderr >"${port}@STDERR@" 2>/dev/null &
exec 6<"${port}@STDIN@" 7>/run/stdout 8>/run/stderr
grep -qw virtiofs /proc/filesystems || fail "no virtiofs"
"""

_COMMANDS = """\
commands() {
    echo ready >&9
    while :; do
        # A host that has gone away reads as an end of file.
        read -r verb nonce length input <&9 || lost "the host has gone away"
        case $verb in
        run)
            head -c "$length" <&9 >/run/command
            printf '\\0%s<' "$nonce" >&7
            printf '\\0%s<' "$nonce" >&8
            (
                [ "$input" = stdin ] || exec 6</dev/null
                exec 0<&6 1>&7 2>&8 6<&- 7>&- 8>&- 9>&-
                . /run/command
            )
            status=$?
            printf '\\0%s>' "$nonce" >&7
            printf '\\0%s>' "$nonce" >&8
            echo "status $nonce $status" >&9
            ;;
        halt)
            ask_init poweroff && continue
            settle
            echo halted >&9
            poweroff -f
            ;;
        reboot)
            ask_init reboot && continue
            settle
            reboot -f
            ;;
        esac
    done
}
"""

_INSTEAD_OF_INIT = """\
ask_init() { false; }
commands
"""

# systemctl --wait ends when the jobs of the boot are over; it is started once, as the boot needs the processor itself.
# Of another init nothing is known but that it is there.
_BESIDE_INIT = """\
ask_init() { chroot . /bin/sh -c "systemctl $1 || $1" </dev/null >/dev/null 2>&1; }

booted() {
    case $(chroot . systemctl is-system-running --wait 2>/dev/null) in
    running | degraded | maintenance | stopping) true ;;
    *) false ;;
    esac
}

chroot . /bin/sh -c '[ -x "$1" ]' sh @INIT@ ||
    fail "the root file system has no program" @INIT@ "to start, or no /bin/sh"
(
    echo "stage waiting for the guest's services" >&9
    while [ /proc/1/exe -ef /proc/self/exe ]; do sleep 0.1; done
    case $(readlink /proc/1/exe) in
    */systemd)
        until [ -S run/systemd/private ]; do sleep 0.2; done
        until booted; do sleep 1; done
        ;;
    esac
    commands
) &
exec 6<&- 7>&- 8>&- 9>&-
exec env -i HOME=/ TERM=linux chroot . @INIT@ "$@"
"""


def build(
    kernel: Kernel,
    shares: Sequence[Share],
    rootfs: bool = False,
    extra_files: ExtraFiles | None = None,
    modules: Sequence[str] = (),
    init: str = "",
) -> bytes:
    """The RAM disk, uncompressed: the kernel unpacks that fastest.

    With `rootfs` the first share becomes the root file system, and the program `init` of it, if it is named, process 1;
    `modules` are loaded besides those it takes.
    Raises MissingPart without a static busybox,
    GuestError for a module that cannot be read, ValueError for extra files that clash, OSError for unreadable
    ones.
    """
    busybox = find_busybox()
    archive = Archive()
    for directory in _DIRECTORIES:
        archive.add_directory(directory)
    archive.add_directory("tmp", 0o1777)
    archive.add_node("dev/console", stat.S_IFCHR, 0o600, 5, 1)
    for stream in ("stdout", "stderr"):
        # Any user of the guest may open /dev/stdout again.
        archive.add_node(f"run/{stream}", stat.S_IFIFO, 0o666)
    archive.add_file("init", init_script(shares, rootfs, init), 0o755)
    archive.add_file("bin/busybox", busybox.read_bytes(), 0o755)
    _add_modules(archive, kernel, [*NEEDED_MODULES, *modules])
    for path, source in (extra_files or {}).items():
        _add_extra(archive, path, source)
    # What the caller brought along wins over an applet of the same name.
    for path, contents in _ACCOUNTS.items():
        if path not in archive:
            archive.add_file(path, contents)
    for applet in [f"bin/{name}" for name in _applets(busybox)] + ["usr/bin/env"]:
        if applet not in archive:
            archive.add_symlink(applet, "/bin/busybox")
    return archive.data()


def init_script(shares: Sequence[Share], rootfs: bool = False, init: str = "") -> bytes:
    """The text of /init for these shares.  Tags and mount points may hold any character but NUL."""
    script = _PROLOGUE.replace("@LAST@", str(len(PORTS)))
    for number, name in enumerate(PORTS, 1):
        script = script.replace(f"@{name.upper()}@", str(number))
    if shares:
        script += "echo stage mounting >&9\n"
    for index, share in enumerate(shares):
        place = "/newroot" if rootfs and index == 0 else ("/newroot" if rootfs else "") + share.mountpoint
        options = "ro" if share.read_only else "rw"
        script += (
            f"share {shlex.quote(share.tag)} {shlex.quote(place)} {options} {shlex.quote(share.mountpoint)}\n"
        )
    if rootfs:
        # "." is the share from now on, and the root of everything that enters it by chroot.
        script += f"{'first' if init else 'system'}_mounts /newroot\n"
        script += "cd /newroot && mount --move . / || fail 'cannot move the root file system'\nroot=yes\n"
    script += _COMMANDS + (_BESIDE_INIT.replace("@INIT@", shlex.quote(init)) if init else _INSTEAD_OF_INIT)
    return script.encode("utf-8", "surrogateescape")


def init_words(root: Share) -> str:
    """What to tell systemd on the kernel's command line; to other inits these words say nothing.

    Its terminals have nobody in front of them, or are ours to use.  What a service keeps in /var goes to memory where
    the root file system is read-only.
    """
    words = [f"systemd.mask=serial-getty@{terminal}.service" for terminal in ("ttyS0", "hvc0")]
    return " ".join([*words, "ro", "systemd.volatile=state"] if root.read_only else [*words, "rw"])


def find_busybox() -> Path:
    """A statically linked busybox of the host.  Raises MissingPart if there is none."""
    found = shutil.which("busybox", path=os.environ.get("PATH", "") + os.pathsep + "/bin:/usr/bin:/sbin")
    if found is None:
        raise MissingPart(f"no busybox for the guest: {_BUSYBOX_PACKAGE}")
    if b"/ld-" in Path(found).read_bytes()[:4096]:  # the name of a dynamic linker, in the PT_INTERP segment
        raise MissingPart(f"{found} is not linked statically: {_BUSYBOX_PACKAGE}")
    return Path(found)


def _applets(busybox: Path) -> list[str]:
    result = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    return [name for name in result.stdout.split() if name != "busybox"]


def _add_modules(archive: Archive, kernel: Kernel, names: Sequence[str]) -> None:
    order = b""
    if kernel.modules is not None:
        try:
            for path in kernel.modules.load_order(names):
                name = "/modules/" + path.name.partition(".ko")[0] + ".ko"
                archive.add_file(name, read_module(path))
                order += name.encode() + b"\n"
        except KeyError as error:
            raise GuestError(f"guest kernel {kernel.version} has no module {error.args[0]}") from None
        except (OSError, ValueError) as error:
            raise GuestError(f"cannot read a module of guest kernel {kernel.version}: {error}") from None
    archive.add_file("modules/order", order)


def _add_extra(archive: Archive, path: str, source: bytes | str | os.PathLike[str]) -> None:
    if isinstance(source, bytes):
        archive.add_file(path, source, 0o755)
        return
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        archive.add_symlink(path, os.readlink(source))
    elif stat.S_ISDIR(found.st_mode):
        archive.add_directory(path, stat.S_IMODE(found.st_mode))
        for entry in sorted(os.listdir(source)):
            _add_extra(archive, f"{path}/{entry}", Path(source, entry))
    elif stat.S_ISREG(found.st_mode):
        archive.add_file(path, Path(source).read_bytes(), stat.S_IMODE(found.st_mode))
    else:
        raise ValueError(f"{source}: only files, directories and symbolic links can be put in a RAM disk")
