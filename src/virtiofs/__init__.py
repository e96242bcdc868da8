# SPDX-License-Identifier: Apache-2.0
"""virtio-fs in Python: share host directories with virtual machines.

What comes in: a directory and a VMM's vhost-user connection.  What goes out: file system replies, written
straight into the guest's memory.  Open `docs/architecture.md` first, then the rooms in the order of a
request: `vhostuser`, `virtqueue`, `fuse`, `fs`; `daemon` runs them, `client` is the other end of the wire,
`vm` starts guests to try it in.
"""

__version__ = "0.1.0"

# Imported when they are first asked for: what a daemon of a directory does not need costs it nothing.
_HOMES = {
    "Filesystem": "virtiofs.fs.python.filesystem",
    "DirectoryEntry": "virtiofs.fs.python.filesystem",
    "PathFilesystem": "virtiofs.fs.python.paths",
    "Attributes": "virtiofs.fs.python.replies",
    "Caller": "virtiofs.fs.python.replies",
    "Changes": "virtiofs.fs.python.replies",
    "Entry": "virtiofs.fs.python.replies",
    "Lock": "virtiofs.fs.python.replies",
    "Opened": "virtiofs.fs.python.replies",
    "Statistics": "virtiofs.fs.python.replies",
    "Owner": "virtiofs.fs.policy.rules",
    "Policy": "virtiofs.fs.policy.rules",
    "serve": "virtiofs.daemon.embedded",
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtiofs.daemon.embedded import serve as serve
    from virtiofs.fs.policy.rules import Owner as Owner
    from virtiofs.fs.policy.rules import Policy as Policy
    from virtiofs.fs.python.filesystem import DirectoryEntry as DirectoryEntry
    from virtiofs.fs.python.filesystem import Filesystem as Filesystem
    from virtiofs.fs.python.paths import PathFilesystem as PathFilesystem
    from virtiofs.fs.python.replies import Attributes as Attributes
    from virtiofs.fs.python.replies import Caller as Caller
    from virtiofs.fs.python.replies import Changes as Changes
    from virtiofs.fs.python.replies import Entry as Entry
    from virtiofs.fs.python.replies import Lock as Lock
    from virtiofs.fs.python.replies import Opened as Opened
    from virtiofs.fs.python.replies import Statistics as Statistics


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'virtiofs' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
