# SPDX-License-Identifier: Apache-2.0
"""Metadata without requests: a table in shared memory that says what changed in a tree, and when.

In: "I begin to change this inode", "I have changed it", from every worker that serves the tree and from whoever watches
the host.  Out: for each inode a word that is the same as long as nothing about the inode changed, so that whoever
remembers an answer and its word can tell by a load and a compare whether the answer still holds; and a journal of
changes to follow.

Open `table.py` first: slots and words, beginning and ending a change, what is left of the dead.  `layout.py` is the
file byte by byte, `journal.py` the ring of changes and those who follow it, `registry.py` where the file lies and who
has it mapped.  `watch.py` has the host's own changes enter, and `paths.py` finds where in the tree they are.
docs/metadata-table.md has the rules of readers and writers and the reasons, docs/events.md what the watcher sees.  A
daemon without a table loads `table.py` for the functions that are then never called, and nothing else.
"""
