# SPDX-License-Identifier: Apache-2.0
"""The guest's end in user space: speak to any virtio-fs device, without a guest.

In: the socket of a vhost-user device (ours, or any other daemon's).  Out: what it answers.
Open first: `device.py` (a connection, memory and rings: requests as bytes), then `session.py` (every operation of
FUSE as a method, each reply checked as Linux checks it) and `tree.py` (paths).  `hostile.py` writes rings that
break the rules, for tests of devices.  `devicemount.py` mounts a device on this host: `relay.py` carries the kernel's
FUSE messages to it, one thread for each queue, by what `carried.py` knows of them, and `hiprio.py` those of the hiprio
queue.  `check/` tells whether a device is right and robust.

The benchmark: `bench.py` (what is run, in which order), `workloads.py` and `traces.py` (the work, a table), `script.py`
(requests by name for the compiled loop), `peers.py` (the daemons), `scaling.py` (queues, inodes), `report.py` and
`page.py` (tables, a page with plots).
"""
