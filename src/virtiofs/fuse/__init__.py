# SPDX-License-Identifier: Apache-2.0
"""What requests say: FUSE messages, from bytes a guest wrote to a checked `Request`, and back.

In: a chain of guest memory (from `virtqueue`).  Out: a call of one handler (of `fs`), and its reply in the
same chain. Open first: `abi.py` (the tables), then `request.py` (parsing and replying), `session.py` (INIT
and dispatch), `loop.py` (one queue, served until told to stop).  `mountpoint.py`: a place of the host where the
kernel's own client is mounted.  All but `abi.py` and `mountpoint.py` is compiled.
"""
