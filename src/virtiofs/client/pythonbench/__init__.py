# SPDX-License-Identifier: Apache-2.0
"""What a file system in Python costs, beside the same one written for pyfuse3 and for mfusepy.

In: nothing.  Out: operations per second of programs on /dev/fuse, all in one run.  Open first: `measure.py`; the three
are `ours.py`, `with_pyfuse3.py` and `with_mfusepy.py`, each a program that mounts itself.
"""
