# SPDX-License-Identifier: Apache-2.0
"""What requests do: file systems that a guest can be given.

In: checked requests (from `fuse`).  Out: replies.  Open first: `filesystem.py` (what every file system is),
then `passthrough/share.py` (a host directory) or `python/filesystem.py` (a class in Python).
"""
