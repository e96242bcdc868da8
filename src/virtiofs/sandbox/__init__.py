# SPDX-License-Identifier: Apache-2.0
"""What the serving process may still touch.

In: a process that was just forked.  Out: one that can reach the shared directory and nothing else, that cannot
outlive its parent, and that may make the system calls of serving and no others.  Open first: `walls.py`, the
order in which the walls go up; then one module for each kind of wall.
"""
