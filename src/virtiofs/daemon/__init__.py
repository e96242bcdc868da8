# SPDX-License-Identifier: Apache-2.0
"""The processes that serve shares.

In: options and VMMs' connections.  Out: served guests.  The *supervisor* (`supervisor.py`, open it first)
speaks vhost-user and never reads guest memory; it has a port for each share (`port.py`).  A *worker*
(`worker.py`) maps guest memory, runs one compiled loop for each queue and never speaks to the VMM.
`device.py` is what the vhost-user back end drives: it turns each demand into a message to the worker over
`channel.py`.  `observed.py`, `control.py` and `metrics.py` are for whoever runs the daemon.
"""
