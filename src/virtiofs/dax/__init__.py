# SPDX-License-Identifier: Apache-2.0
"""File pages in the guest's address space: who maps what, and when not to.

In: what a guest asks (SETUPMAPPING, REMOVEMAPPING), and what happens to the sizes of files that are mapped. Out:
requests to the front end, which maps and unmaps pieces of files in the device's shared memory region 0, the window.

Open `window.py` first: the ranges a guest asked for, and the pieces that are mapped of each.  `channel.py` speaks to
the front end, in two dialects; `tail.py` is the last, partial page of a file, which no front end can map; `watch.py`
notices that others cut a file.  Plain Python, but for two calls of the kernel's in `fanotify.py`: one mapping costs
the front end a millisecond.  docs/dax.md says what is safe and what is refused.
"""
