# SPDX-License-Identifier: Apache-2.0
"""What a file system in Python costs, beside the same one written for pyfuse3 and for mfusepy.

In: nothing.  Out: calls per second of a program on /dev/fuse, all in one run.  Open first: `measure.py`; the file
systems are `ours.py`, `with_pyfuse3.py`, `with_mfusepy.py` and, without Python, `bare.py`; `calls.py` is the program.
"""
