# SPDX-License-Identifier: Apache-2.0
"""How requests travel: virtqueues in memory shared with a guest.

In: a ring's addresses and size, and the guest's memory as mapped descriptors.  Out: chains of checked pieces of that
memory (`split.SplitQueue`, the device end), or requests placed there (`driver.DriverQueue`, the driver end, and
`load.Load`, which drives it with many).
Open first: `memory.py` (what an address of the guest means), then `split.py`.

Everything here is compiled.  A guest may change any byte at any time, so each field of a ring is read once, into a
local, checked, and never read again.
"""
