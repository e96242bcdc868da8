# SPDX-License-Identifier: Apache-2.0
"""The daemon's counters as text in the Prometheus exposition format (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from virtiofs.daemon.port import Port

FIRST_BUCKET_NS = 1024
HEAD = 3  # columns of a row of counters before its buckets: requests, errors, nanoseconds

# name, type, what it says
FAMILIES = (
    ("virtiofs_requests_total", "counter", "Requests served, by operation."),
    ("virtiofs_request_errors_total", "counter", "Requests that were answered with an error, by operation."),
    (
        "virtiofs_request_duration_seconds",
        "histogram",
        "Time from taking a request to its reply; one request in 17 is timed.",
    ),
    ("virtiofs_connected", "gauge", "Whether a VMM is connected."),
    ("virtiofs_connections_total", "counter", "Connections of VMMs."),
    ("virtiofs_queue_broken", "gauge", "Whether a queue is stopped because its ring breaks the rules."),
    ("virtiofs_quota_bytes", "gauge", "What the guest may add to the disk, where there is a quota."),
    ("virtiofs_quota_used_bytes", "gauge", "What it has added, less what it removed."),
    ("virtiofs_inodes", "gauge", "Files the guest knows."),
    ("virtiofs_handles", "gauge", "Files the guest has open."),
    ("virtiofs_descriptors", "gauge", "Descriptors kept for inodes."),
    ("virtiofs_evictions_total", "counter", "Descriptors taken from inodes, since the VMM connected."),
    ("virtiofs_pool_threads", "gauge", "Threads for requests that would block."),
    ("virtiofs_pool_busy", "gauge", "Threads of the pool that serve a request."),
    ("virtiofs_pool_jobs", "gauge", "Requests that the pool has: being served, or waiting for a thread."),
    ("virtiofs_pool_requests_total", "counter", "Requests the pool has taken, since the VMM connected."),
    ("virtiofs_pool_refused_total", "counter", "Requests it had no room for, since the VMM connected."),
    ("virtiofs_dax_mappings", "gauge", "Ranges of the DAX window that stand for pieces of files."),
    ("virtiofs_dax_evictions_total", "counter", "Ranges the guest took from files, since the VMM connected."),
    (
        "virtiofs_dax_cuts_total",
        "counter",
        "Times that others made a mapped file shorter, since the VMM connected.",
    ),
    ("virtiofs_dax_refused_total", "counter", "Files without DAX and mappings refused, by reason."),
)
FROM_STATISTICS = {
    "inodes": "virtiofs_inodes",
    "handles": "virtiofs_handles",
    "descriptors": "virtiofs_descriptors",
    "evictions": "virtiofs_evictions_total",
    "dax_mappings": "virtiofs_dax_mappings",
    "dax_evictions": "virtiofs_dax_evictions_total",
    "dax_cuts": "virtiofs_dax_cuts_total",
}
FROM_POOL = {
    "threads": "virtiofs_pool_threads",
    "busy": "virtiofs_pool_busy",
    "jobs": "virtiofs_pool_jobs",
    "taken": "virtiofs_pool_requests_total",
    "refused": "virtiofs_pool_refused_total",
}


def text(ports: Iterable[Port]) -> str:
    """The counters of all shares."""
    samples: dict[str, list[str]] = {name: [] for name, _, _ in FAMILIES}
    for port in ports:
        labels = f'share="{escape(port.tag)}"'
        put_port(samples, labels, port.status())
        for operation, row in sorted(port.counters().items()):
            put_operation(samples, f'{labels},operation="{operation}"', row)
    lines = []
    for name, kind, what in FAMILIES:
        if samples[name]:
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", *samples[name]]
    return "\n".join(lines) + "\n"


def put_port(samples: dict[str, list[str]], labels: str, status: dict[str, Any]) -> None:
    def put(name: str, value: int, more: str = "") -> None:
        samples[name].append(f"{name}{{{labels}{more}}} {value}")

    put("virtiofs_connected", int(status["connected"] is not None))
    put("virtiofs_connections_total", status["connections"])
    if status["quota"]:
        put("virtiofs_quota_bytes", status["quota"]["bytes"])
        put("virtiofs_quota_used_bytes", status["quota"]["used"])
    for index, queue in sorted(status["queues"].items()):
        put("virtiofs_queue_broken", int(bool(queue["broken"])), f',queue="{index}"')
    for key, value in status["filesystem"].items():
        if key in FROM_STATISTICS:
            put(FROM_STATISTICS[key], value)
    for key, value in status["pool"].items():
        put(FROM_POOL[key], value)
    for reason, count in sorted(status["filesystem"].get("dax_refused", {}).items()):
        put("virtiofs_dax_refused_total", count, f',reason="{escape(reason)}"')


def put_operation(samples: dict[str, list[str]], labels: str, row: list[int]) -> None:
    requests, errors, nanoseconds = row[:HEAD]
    samples["virtiofs_requests_total"].append(f"virtiofs_requests_total{{{labels}}} {requests}")
    samples["virtiofs_request_errors_total"].append(f"virtiofs_request_errors_total{{{labels}}} {errors}")
    name = "virtiofs_request_duration_seconds"
    buckets = row[HEAD:]
    if not any(buckets):
        return
    count = 0
    for index, value in enumerate(buckets[:-1]):
        count += value
        bound = (FIRST_BUCKET_NS << index) / 1e9
        samples[name].append(f'{name}_bucket{{{labels},le="{bound:.9g}"}} {count}')
    count += buckets[-1]
    samples[name].append(f'{name}_bucket{{{labels},le="+Inf"}} {count}')
    samples[name].append(f"{name}_sum{{{labels}}} {nanoseconds / 1e9:.9f}")
    samples[name].append(f"{name}_count{{{labels}}} {count}")


def escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
