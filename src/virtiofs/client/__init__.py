# SPDX-License-Identifier: Apache-2.0
"""The guest's end in user space: speak to any virtio-fs device, without a guest.

In: the socket of a vhost-user device (ours, or any other daemon's).  Out: what it answers.
Open first: `device.py` (a connection, memory and rings: requests as bytes), then `session.py` (every operation of
FUSE as a method, each reply checked as Linux checks it) and `tree.py` (paths).  `hostile.py` writes rings that
break the rules, for tests of devices.  `bench.py` measures daemons against each other, with `peers.py` (starting
them) and `report.py` (tables).  `devicemount.py` mounts a device on this host: `relay.py` carries the kernel's FUSE
messages to it, one thread for each queue, and `hiprio.py` what goes to the hiprio queue.
"""
