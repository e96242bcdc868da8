# SPDX-License-Identifier: Apache-2.0
"""A host directory as a file system for a guest, compiled, without the interpreter.

In: parsed requests.  Out: host system calls and their results.  Open first: `share.py` (the share and its
table of operations), then `inodes.py` (how node ids become files again).  `names.py`, `attributes.py`,
`opening.py`, `files.py`, `directories.py` and `xattrs.py` hold the operations; `credentials.py` acts as the
guest's user, `owners.py` says whose files are, `xattrmap.py` what attributes are called, and
`quota.py` counts what the guest adds to the disk.

The rules of every operation: objects are reached by descriptors of our own, never by paths; a name is one
component and was checked by `fuse`; symbolic links are never followed; nothing but a regular file or a
directory is ever opened.
"""
