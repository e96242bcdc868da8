# SPDX-License-Identifier: Apache-2.0
"""A writer of cpio archives in the "newc" form, the one the Linux kernel unpacks as a RAM disk.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel tree.  We write archives
ourselves because a RAM disk of a throw-away guest is made of a few files that need not exist on the host as
they are in the guest (owners, device nodes, contents made in memory), and making them there would need root.
"""

from __future__ import annotations

import stat

__all__ = ["Archive"]

_MAGIC = b"070701"
_TRAILER = b"TRAILER!!!"
_LIMIT = 0xFFFFFFFF  # every number of a header is eight hexadecimal digits


class Archive:
    """A RAM disk being put together.  Everything in it belongs to root and has the time stamp 0.

    Paths are given as in the guest, with or without a leading "/"; missing parent directories are added with
    mode 0755, so entries may come in any order.  An entry given twice is refused with ValueError, except a
    directory.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._kinds: dict[bytes, int] = {}
        self._next_inode = 1

    def __contains__(self, path: str | bytes) -> bool:
        return _relative(path) in self._kinds

    def add_directory(self, path: str | bytes, mode: int = 0o755) -> None:
        """Add a directory with permission bits `mode`.  One that is there already is left as it is."""
        self._add(_relative(path), stat.S_IFDIR | mode, b"")

    def add_file(self, path: str | bytes, contents: bytes, mode: int = 0o644) -> None:
        """Add a regular file.  Raises ValueError for contents of 4 GiB or more."""
        if len(contents) > _LIMIT:
            raise ValueError(f"{path!r}: a RAM disk holds no file of 4 GiB or more")
        self._add(_relative(path), stat.S_IFREG | mode, contents)

    def add_symlink(self, path: str | bytes, target: str | bytes) -> None:
        """Add a symbolic link at `path` that points to `target`, kept as it is written."""
        self._add(_relative(path), stat.S_IFLNK | 0o777, _bytes(target))

    def add_node(self, path: str | bytes, kind: int, mode: int, major: int = 0, minor: int = 0) -> None:
        """Add a FIFO or device: `kind` is stat.S_IFIFO, S_IFCHR or S_IFBLK, `mode` its permission bits."""
        if kind not in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            raise ValueError(f"{path!r}: a node is S_IFIFO, S_IFCHR or S_IFBLK, not {kind:#o}")
        self._add(_relative(path), kind | mode, b"", (major, minor))

    def data(self) -> bytes:
        """The archive with its trailer, padded to 512 bytes.  Entries can still be added afterwards."""
        body = b"".join(self._pieces) + _entry(_TRAILER, 0, 0, 1, b"", (0, 0))
        return body + bytes(-len(body) % 512)

    def _add(self, path: bytes, mode: int, contents: bytes, device: tuple[int, int] = (0, 0)) -> None:
        kind = stat.S_IFMT(mode)
        if not path:
            if kind != stat.S_IFDIR:
                raise ValueError("the root of a RAM disk is a directory")
            return
        known = self._kinds.get(path)
        if known is not None:
            if known == kind == stat.S_IFDIR:
                return
            raise ValueError(f"{path!r} is in the RAM disk already")
        parent = path.rpartition(b"/")[0]
        if parent:
            if self._kinds.get(parent, stat.S_IFDIR) != stat.S_IFDIR:
                raise ValueError(f"{path!r}: {parent!r} is no directory in the RAM disk")
            self._add(parent, stat.S_IFDIR | 0o755, b"")
        self._kinds[path] = kind
        links = 2 if kind == stat.S_IFDIR else 1
        self._pieces.append(_entry(path, self._next_inode, mode, links, contents, device))
        self._next_inode += 1


def _bytes(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    if b"\0" in raw:
        raise ValueError(f"{text!r}: a path holds no NUL")
    return raw


def _relative(path: str | bytes) -> bytes:
    """`path` below the root, without empty and "." components; ".." is refused with ValueError."""
    parts = [part for part in _bytes(path).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError(f"{path!r}: '..' has no place in a RAM disk")
    return b"/".join(parts)


def _entry(name: bytes, inode: int, mode: int, links: int, contents: bytes, device: tuple[int, int]) -> bytes:
    """Header, name and contents of one entry, each padded to four bytes."""
    fields = (inode, mode, 0, 0, links, 0, len(contents), 0, 0, device[0], device[1], len(name) + 1, 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return header + bytes(-len(header) % 4) + contents + bytes(-len(contents) % 4)
