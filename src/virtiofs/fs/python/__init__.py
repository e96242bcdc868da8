# SPDX-License-Identifier: Apache-2.0
"""File systems written in Python.

In: checked requests of a guest (from `fuse`).  Out: calls of the methods of a class, and their results as replies.
Open first: `filesystem.py` (the class to derive from, a contract for each method), then `replies.py` (what methods
return), `paths.py` (the same by paths in place of node ids) and `bridge.py` (how a request becomes a call).
"""
