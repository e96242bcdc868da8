# SPDX-License-Identifier: Apache-2.0
"""libFuzzer for Python: feeds byte strings to a function, and prefers those that take new branches of compiled code.

Every module compiled with `-fsanitize=fuzzer-no-link` announces its branch counters and comparisons when it is loaded
to the first library that takes them.  That must be libFuzzer: `fuzz/run` preloads it, and the address sanitiser, which
has empty functions of the same names, after it.
"""

import os
import sys
import traceback

import cython
from cython.cimports.libc.stdint import uint8_t
from cython.cimports.libc.stdlib import abort

target = None


@cython.cfunc
@cython.with_gil
@cython.exceptval(check=False)
def call(data: cython.pointer(cython.const[uint8_t]), size: cython.size_t) -> cython.int:
    """Run the target once.  What it raises is a finding: libFuzzer keeps the input when the process aborts."""
    try:
        target(cython.cast(cython.pointer(cython.const[cython.char]), data)[:size])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        abort()
    return 0


def run(function, arguments: list) -> None:
    """Fuzz `function`, which takes bytes.  `arguments` are libFuzzer's.  Ends the process: 0 without a finding.

    The command in $FUZZ_AGAIN is how it starts itself again, which only merging a corpus does.
    """
    global target
    target = function
    words = [os.fsencode(word) for word in [os.environ.get("FUZZ_AGAIN", "fuzz"), *arguments]]
    argv: cython.p_char[64]
    pointer: cython.pointer(cython.p_char) = argv
    count: cython.int = len(words)
    i: cython.int
    if count > 64:
        raise ValueError("too many arguments")
    for i in range(count):
        argv[i] = words[i]
    with cython.nogil:
        LLVMFuzzerRunDriver(cython.address(count), cython.address(pointer), call)
    os._exit(0)
