# SPDX-License-Identifier: Apache-2.0
"""What requests say: FUSE messages, from bytes a guest wrote to a checked `Request`, and back.

In: a chain of guest memory (from `virtqueue`), or what the host's own kernel asks over /dev/fuse.  Out: a call of
one handler (of `fs`), and its reply in the same chain, or written to /dev/fuse. Open first: `abi.py` (the tables), then
`request.py` (parsing and replying), `session.py` (INIT and dispatch), `serving.py` (what every loop does), `loop.py`
(one queue, served until told to stop) and `devfuse.py` (/dev/fuse; by how many threads says `readers.py`).
`mountpoint.py` is where the host mounts.  `tracing.py` writes requests down for those who look (`records.py`).  All but
`abi.py`, `mountpoint.py` and `records.py` is compiled.
"""
