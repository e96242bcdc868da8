# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled modules: ordinary Python files, translated by Cython (pure Python mode).

`VIRTIOFS_DEBUG=1` builds with assertions, bounds checks and the address sanitiser (see `make debug`).
"""

import os
import runpy
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("src")
COMPILED = [
    "virtiofs.virtqueue.memory",
    "virtiofs.virtqueue.split",
    "virtiofs.virtqueue.driver",
    "virtiofs.fuse.request",
    "virtiofs.fuse.session",
    "virtiofs.fuse.waiting",
    "virtiofs.fuse.loop",
    "virtiofs.fs.filesystem",
    "virtiofs.fs.passthrough.slots",
    "virtiofs.fs.passthrough.inodes",
    "virtiofs.fs.passthrough.descriptors",
    "virtiofs.fs.passthrough.handles",
    "virtiofs.fs.passthrough.idmap",
    "virtiofs.fs.passthrough.xattrmap",
    "virtiofs.fs.passthrough.owners",
    "virtiofs.fs.passthrough.credentials",
    "virtiofs.fs.passthrough.attributes",
    "virtiofs.fs.passthrough.names",
    "virtiofs.fs.passthrough.files",
    "virtiofs.fs.passthrough.directories",
    "virtiofs.fs.passthrough.xattrs",
    "virtiofs.fs.passthrough.locks",
    "virtiofs.fs.passthrough.ioctls",
    "virtiofs.fs.passthrough.single",
    "virtiofs.fs.passthrough.share",
    "virtiofs.sandbox.capabilities",
    "virtiofs.sandbox.landlock",
    "virtiofs.sandbox.namespaces",
    "virtiofs.sandbox.process",
]
DEBUG = os.environ.get("VIRTIOFS_DEBUG") == "1"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


# The C declarations of the FUSE structures come from the same table that the client and the dispatcher use.
declarations = runpy.run_path(str(SOURCE / "virtiofs/fuse/abi.py"))["declarations"]
write_if_changed(SOURCE / "virtiofs/fuse/layout.pxd", declarations())

# The usual seccomp programs come from their table; without libseccomp here, they are made each time a daemon starts.
try:
    runpy.run_path(str(SOURCE / "virtiofs/sandbox/seccomp.py"))["store"]()
except OSError as error:
    print(f"no stored seccomp programs: {error}", file=sys.stderr)

if DEBUG:
    compile_args = ["-O1", "-g", "-UNDEBUG", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    link_args = ["-fsanitize=address,undefined"]
else:
    compile_args = ["-O2", "-g1", "-fno-semantic-interposition"]
    link_args = ["-Wl,-O1"]
compile_args += ["-Wno-unused-function", "-Wno-sign-compare"]

extensions = [
    Extension(
        name,
        [str(SOURCE / (name.replace(".", "/") + ".py"))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[("_GNU_SOURCE", "1"), ("CYTHON_CLINE_IN_TRACEBACK", "0")],
        include_dirs=[str(SOURCE / "virtiofs")],
    )
    for name in COMPILED
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=[str(SOURCE)],
        build_dir="build/debug-c" if DEBUG else "build/c",
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "warn.maybe_uninitialized": True,
        },
    ),
)
