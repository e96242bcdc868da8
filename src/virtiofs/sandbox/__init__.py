# SPDX-License-Identifier: Apache-2.0
"""What the serving process may still touch.

In: a process that was just forked.  Out: one that cannot outlive its parent, holds no groups it does not
need, and has the descriptors it will need.  Open first: `process.py`.
"""
