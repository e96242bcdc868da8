# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled modules: ordinary Python files, translated by Cython (pure Python mode).

`VIRTIOFS_DEBUG=1` builds with assertions, bounds checks and the address sanitiser (see `make debug`).
`VIRTIOFS_FUZZ=1` does so with clang and counts which branches are taken, in the rooms of plain Python too, and adds
the fuzzer's engine (see docs/fuzzing.md).
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
    "virtiofs.virtqueue.load",
    "virtiofs.fuse.request",
    "virtiofs.fuse.session",
    "virtiofs.fuse.waiting",
    "virtiofs.fuse.pool",
    "virtiofs.fuse.tracing",
    "virtiofs.fuse.serving",
    "virtiofs.fuse.loop",
    "virtiofs.fuse.readers",
    "virtiofs.fuse.devfuse",
    "virtiofs.fuse.notifying",
    "virtiofs.dax.fanotify",
    "virtiofs.client.hiprio",
    "virtiofs.client.carried",
    "virtiofs.client.relay",
    "virtiofs.client.versions",
    "virtiofs.client.pythonbench.bare",
    "virtiofs.client.pythonbench.calls",
    "virtiofs.metadata.journal",
    "virtiofs.metadata.table",
    "virtiofs.metadata.follower",
    "virtiofs.metadata.copy",
    "virtiofs.fs.filesystem",
    "virtiofs.fs.policy.known",
    "virtiofs.fs.policy.matcher",
    "virtiofs.fs.passthrough.slots",
    "virtiofs.fs.passthrough.account",
    "virtiofs.fs.passthrough.inodes",
    "virtiofs.fs.passthrough.removed",
    "virtiofs.fs.passthrough.known",
    "virtiofs.fs.passthrough.descriptors",
    "virtiofs.fs.passthrough.handles",
    "virtiofs.fs.passthrough.idmap",
    "virtiofs.fs.passthrough.xattrmap",
    "virtiofs.fs.passthrough.owners",
    "virtiofs.fs.passthrough.credentials",
    "virtiofs.fs.passthrough.attributes",
    "virtiofs.fs.passthrough.mappings",
    "virtiofs.fs.passthrough.names",
    "virtiofs.fs.passthrough.opening",
    "virtiofs.fs.passthrough.unopened",
    "virtiofs.fs.passthrough.files",
    "virtiofs.fs.passthrough.directories",
    "virtiofs.fs.passthrough.xattrs",
    "virtiofs.fs.passthrough.locks",
    "virtiofs.fs.passthrough.ioctls",
    "virtiofs.fs.passthrough.growth",
    "virtiofs.fs.passthrough.quota",
    "virtiofs.fs.passthrough.changes",
    "virtiofs.fs.passthrough.validity",
    "virtiofs.fs.passthrough.single",
    "virtiofs.fs.passthrough.ruled",
    "virtiofs.fs.passthrough.marks",
    "virtiofs.fs.passthrough.verdicts",
    "virtiofs.fs.passthrough.policynodes",
    "virtiofs.fs.passthrough.policynames",
    "virtiofs.fs.passthrough.policylistings",
    "virtiofs.fs.passthrough.policy",
    "virtiofs.fs.passthrough.audit",
    "virtiofs.fs.passthrough.versions",
    "virtiofs.fs.passthrough.trust",
    "virtiofs.fs.passthrough.share",
    *(
        f"virtiofs.fs.python.{name}"
        for name in (
            "replies",
            "packing",
            "calls",
            "names",
            "attributes",
            "files",
            "locks",
            "directories",
            "bridge",
        )
    ),
    "virtiofs.metadata.watch_calls",
    "virtiofs.sandbox.capabilities",
    "virtiofs.sandbox.landlock",
    "virtiofs.sandbox.namespaces",
    "virtiofs.sandbox.process",
]
# Plain Python that reads what a VMM or a worker sends: compiled only to be fuzzed, so that its branches are counted.
COUNTED = [
    *(
        f"virtiofs.vhostuser.{name}"
        for name in ("messages", "payloads", "regions", "rings", "device", "backend")
    ),
    "virtiofs.vhostuser.transport",
    "virtiofs.daemon.channel",
]
FUZZ = os.environ.get("VIRTIOFS_FUZZ") == "1"
DEBUG = FUZZ or os.environ.get("VIRTIOFS_DEBUG") == "1"


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


# The C declarations of the FUSE structures come from the same table that the client and the dispatcher use.
declarations = runpy.run_path(str(SOURCE / "virtiofs/fuse/abi.py"))["declarations"]
write_if_changed(SOURCE / "virtiofs/fuse/layout.pxd", declarations())

declarations = runpy.run_path(str(SOURCE / "virtiofs/metadata/layout.py"))["declarations"]
write_if_changed(SOURCE / "virtiofs/metadata/layout.pxd", declarations())

# The usual seccomp programs come from their table; without libseccomp here, they are made each time a daemon starts.
try:
    runpy.run_path(str(SOURCE / "virtiofs/sandbox/seccomp.py"))["store"]()
except OSError as error:
    print(f"no stored seccomp programs: {error}", file=sys.stderr)

if FUZZ:
    sanitizers = "-fsanitize=fuzzer-no-link,address,undefined"
    compile_args = ["-O1", "-g1", "-UNDEBUG", sanitizers, "-fno-sanitize=function", "-fno-omit-frame-pointer"]
    link_args = [sanitizers, "-shared-libasan"]
elif DEBUG:
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

directives = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": DEBUG,
    "warn.maybe_uninitialized": True,
}
build_dir = f"build/{'fuzz' if FUZZ else 'debug'}-c" if DEBUG else "build/c"
options = {"include_path": [str(SOURCE)], "build_dir": build_dir, "nthreads": os.cpu_count() or 1}
modules = cythonize(extensions, compiler_directives=directives, **options)
if FUZZ:
    # As Python means them: Cython's own meanings of annotations and of indexing are for the rooms written for it.
    plain = {"language_level": 3, "annotation_typing": False}
    counted = [
        Extension(
            name,
            [str(SOURCE / (name.replace(".", "/") + ".py"))],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
        for name in COUNTED
    ]
    engine = Extension(
        "fuzz_engine",
        ["fuzz/native/fuzz_engine.py"],
        extra_compile_args=["-O2", "-g1"],  # not counted itself
    )
    modules += cythonize(counted, compiler_directives=plain, **options)
    modules += cythonize([engine], compiler_directives={"language_level": 3}, **options)

setup(ext_modules=modules)
