# SPDX-License-Identifier: Apache-2.0
"""The processes that serve a share.

In: options and a VMM's connection.  Out: a served guest.  The *supervisor* (`supervisor.py`, open it first)
speaks vhost-user and never reads guest memory; the *worker* (`worker.py`) maps guest memory, runs one
compiled loop for each queue and never speaks to the VMM.  `device.py` is what the vhost-user back end drives:
it turns each demand into a message to the worker over `channel.py`.
"""
