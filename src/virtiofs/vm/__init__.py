# SPDX-License-Identifier: Apache-2.0
"""Throw-away guests to try a share in: a stock Linux in QEMU, booted from a RAM disk made on the fly.

In: the sockets of running vhost-user-fs devices, where the guest shall mount them, and commands to run.
Out: what the commands wrote, and their exit statuses.  This room imports no other room: it knows nothing of
ours about FUSE or vhost-user, so any daemon can be tried in its guests.

Open `guest.py` first (the guest as a caller sees it), then `ramdisk.py` (what runs inside).  `kernel.py`,
`modules.py` and `cpio.py` make the RAM disk; `qemu.py`, `accelerator.py`, `process.py` and `qmp.py` drive QEMU;
`stream.py` finds a command's output in what the guest sends.  `kata.py` is a sandbox as Kata
makes it, `container.py` an OCI container in a guest.
"""
