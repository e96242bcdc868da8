# SPDX-License-Identifier: Apache-2.0
"""Is a device right and robust?  Named checks over a connection to any vhost-user-fs device.

In: a socket, a directory to serve, or a daemon's command line.  Out: one outcome for each check, as text, JSON or
a table of several daemons.  Open first: `case.py` (what a check is), then `run.py`; the checks themselves are in
`handshake`, `rings`, `operations`, `errors` and `requests`, in the order in which they run.
"""
