# SPDX-License-Identifier: Apache-2.0
"""What the steps of all operations work on: the file system, and what is known of its guest."""

import time

import cython
from cython.cimports.virtiofs.fs.filesystem import Filesystem as Served
from cython.cimports.virtiofs.fs.python.packing import name_of
from cython.cimports.virtiofs.fuse.request import Request

from virtiofs.fuse import abi

TELL_AGAIN_SECONDS = 60.0
MOST_TOLD = 256
NAMES = {operation.opcode: operation.name for operation in abi.OPERATIONS}
# The method of an operation that has another name.
METHODS = {
    **{"rename2": "rename", "readdirplus": "readdir", "batch_forget": "forget", "setlkw": "setlk"},
    "copy_file_range_64": "copy_file_range",
}


@cython.cclass
class Calls(Served):
    """Calls of the methods of `fs`: their results awaited, their mistakes logged."""

    @cython.cfunc
    def result(self, found: object) -> object:
        """What a method returned, awaited if need be."""
        if self.awaiting is not None and (hasattr(found, "__await__") or hasattr(found, "__aiter__")):
            return self.awaiting.result(found)
        return found

    @cython.cfunc
    @cython.exceptval(-1)
    def tell(self, request: cython.pointer(Request), error: object) -> cython.int:
        """Log what went wrong; what keeps going wrong in the same way, only from time to time."""
        place = ""
        frame = error.__traceback__
        while frame is not None:
            where = frame.tb_frame.f_code
            if not where.co_filename.startswith("src/virtiofs/"):  # of a compiled module
                place = f" ({where.co_filename}:{frame.tb_lineno} in {where.co_name})"
            frame = frame.tb_next
        name = NAMES.get(request.header.opcode, "")
        key = (name, type(error), place)
        now = time.monotonic()
        if now - self.told.get(key, -TELL_AGAIN_SECONDS) < TELL_AGAIN_SECONDS:
            return 0
        if len(self.told) >= MOST_TOLD:
            self.told.clear()
        self.told[key] = now
        try:
            text = str(error)
        except Exception:
            text = "?"
        self.log(f"{self.describe(request)} failed: {type(error).__name__}: {text}{place}"[:1000])
        return 0

    @cython.cfunc
    def describe(self, request: cython.pointer(Request)) -> str:
        """The request, for people."""
        name = NAMES.get(request.header.opcode, "")
        details = [f"node {request.header.nodeid}"]
        entry = abi.BY_NAME[name]
        for i in range(len(entry.names)):
            details.append(repr(name_of(request, i)))
        return f"{METHODS.get(name, name)}({', '.join(details)})"
