# SPDX-License-Identifier: Apache-2.0
"""How a VMM (the front end) and a device (the back end) meet: the vhost-user protocol.

In: bytes and descriptors of a connected AF_UNIX stream socket.
Out: calls of a `Device` (map this memory, run this queue, stop that one) and the bytes of the replies.

Open `messages.py` first: every message of the protocol is one row of a table there (`payloads.py` says what its
bytes mean).  Then `device.py`, what a daemon implements, and `backend.py`, which drives it, with what the front
end told of memory (`regions.py`) and of each queue (`rings.py`).  `frontend.py` is the driver's end,
`transport.py` the only file that touches a socket.  This room imports no other.
"""
