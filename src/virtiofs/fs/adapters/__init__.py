# SPDX-License-Identifier: Apache-2.0
"""File systems that were written for others, served as they are.

In: an fsspec URL, or a class derived from `Operations` of pyfuse3 or mfusepy.  Out: a `virtiofs.Filesystem` or
`PathFilesystem` that asks it.  Open first: `foreign.py` (which is which), then `from_fsspec.py`, `from_pyfuse3.py`,
`from_mfusepy.py`.  Their libraries are imported only when one of them is served.
"""
