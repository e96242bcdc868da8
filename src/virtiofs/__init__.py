# SPDX-License-Identifier: Apache-2.0
"""virtio-fs in Python: share host directories with virtual machines.

What comes in: a directory and a VMM's vhost-user connection.  What goes out: file system replies, written
straight into the guest's memory.  Open `docs/architecture.md` first, then the rooms in the order of a
request: `vhostuser`, `virtqueue`, `fuse`, `fs`; `daemon` runs them, `client` is the other end of the wire,
`vm` starts guests to try it in.
"""

__version__ = "0.1.0"
