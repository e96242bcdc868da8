# SPDX-License-Identifier: Apache-2.0
"""The commands.  In: a command line.  Out: an exit status.  Open first: `main.py`; each command is one file."""
