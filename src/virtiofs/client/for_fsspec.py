# SPDX-License-Identifier: Apache-2.0
"""Any virtio-fs device as a file system of fsspec:

    fs = fsspec.filesystem("virtiofs", socket="/run/data.sock")
    fs.ls("/")
    with fs.open("/d/f", "wb") as file: ...

so that pandas, dask, zarr and whatever else takes an fsspec file system read what a guest would see.  An instance is
one front end of the device, and one thread at a time speaks to it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from virtiofs.client.device import Device
from virtiofs.client.session import Session
from virtiofs.client.tree import File, Tree

KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}
BLOCK = 1 << 20
FLAGS = {
    "rb": os.O_RDONLY,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "ab": os.O_WRONLY | os.O_CREAT,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


class VirtiofsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The share of the device that listens at the path `socket`.

    `close` ends the connection, for which another front end may be waiting.  Raises `TransportError` and
    `FrontEndError` (both OSError) if it can not be made.
    """

    protocol = "virtiofs"
    root_marker = "/"
    # Each instance is a connection, and a device has one: fsspec must not keep those that are closed.
    cachable = False

    def __init__(self, socket: str, **options: Any):
        super().__init__(**options)
        self._lock = threading.RLock()
        self._device = Device.connect(socket)
        self._tree = Tree(Session(self._device))

    def close(self) -> None:
        """Leave the device."""
        with self._lock:
            self._device.close()

    def __enter__(self) -> VirtiofsFileSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path).removeprefix("virtiofs://")
        return "/" + text.strip("/")

    def _describe(self, path: str, follow: bool = True) -> dict[str, Any]:
        found = self._tree.stat(path, follow_symlinks=False)
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
        info: dict[str, Any] = {"name": path, "islink": kind == "link"}
        if kind == "link":
            info["destination"] = self._tree.readlink(path)
            if follow and self._tree.exists(path):
                found = self._tree.stat(path)
                kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
        return info | {
            "type": kind,
            "size": found.st_size,
            "mode": found.st_mode,
            "uid": found.st_uid,
            "gid": found.st_gid,
            "ino": found.st_ino,
            "nlink": found.st_nlink,
            "mtime": found.st_mtime,
            "created": found.st_ctime,
        }

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        with self._lock:
            return self._describe(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        with self._lock:
            info = self._describe(path)
            if info["type"] != "directory":
                return [info] if detail else [path]
            names = [f"{path.rstrip('/')}/{name}" for name in sorted(self._tree.listdir(path))]
            return [self._describe(name) for name in names] if detail else names

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        with self._lock:
            if create_parents:
                self.makedirs(self._parent(path), exist_ok=True)
            self._tree.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._strip_protocol(path)
        with self._lock:
            if self._tree.exists(path):
                if not exist_ok:
                    raise FileExistsError(errno.EEXIST, "there is one already", path)
                return
            self.makedirs(self._parent(path), exist_ok=True)
            self._tree.mkdir(path)

    def rmdir(self, path: str) -> None:
        with self._lock:
            self._tree.rmdir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        with self._lock:
            if stat.S_ISDIR(
                self._tree.stat(path, follow_symlinks=False).st_mode
            ):  # `rm` comes here for these, too
                self._tree.rmdir(path)
            else:
                self._tree.unlink(path)

    def mv(
        self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_: Any
    ) -> None:
        with self._lock:
            self._tree.rename(self._strip_protocol(path1), self._strip_protocol(path2))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            while part := source.read(BLOCK):
                target.write(part)

    def created(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["created"], tz=UTC)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        with self._lock:
            if truncate or not self._tree.exists(path):
                with self._tree.open(path, FLAGS["wb"]) as file:
                    file.ftruncate(0)
            else:
                self._tree.utime(path)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        **options: Any,
    ) -> VirtiofsFile:
        return VirtiofsFile(
            self, path, mode, block_size or BLOCK, autocommit=autocommit, cache_type="readahead", **options
        )


class VirtiofsFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file of a device; what is written is there at once, and safe when it is closed."""

    def __init__(self, fs: VirtiofsFileSystem, path: str, mode: str, block_size: int, **options: Any):
        self._file: File | None = None
        if mode not in FLAGS:
            raise NotImplementedError(f"files are opened with {', '.join(FLAGS)}, not {mode}")
        if not options.get("autocommit", True):
            raise NotImplementedError("there are no transactions on a device")
        options.setdefault("cache_type", "readahead")
        with fs._lock:
            self._file = fs._tree.open(path, FLAGS[mode])
            size = self._file.fstat().st_size
            if size and "w" in mode:  # O_TRUNC is for the guest's kernel to do
                self._file.ftruncate(0)
            self._at = size if "a" in mode else 0
        super().__init__(fs, path, mode, block_size, **options)
        if "a" in mode:
            self.loc = self._at

    def _fetch_range(self, start: int, end: int) -> bytes:
        assert self._file is not None
        with self.fs._lock:
            return self._file.pread(end - start, start)

    def _initiate_upload(self) -> None:
        """The file is open."""

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._file is not None
        data = self.buffer.getvalue()
        with self.fs._lock:
            self._at += self._file.pwrite(data, self._at)
        return True

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()
        finally:
            file, self._file = self._file, None
            if file is not None:
                with self.fs._lock:
                    file.close()
