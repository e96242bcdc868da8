# SPDX-License-Identifier: Apache-2.0
"""The daemon's counters as text in the Prometheus exposition format (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from virtiofs.daemon.observed import Observed

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
    ("virtiofs_queue_depth", "gauge", "Chains in the ring that were not yet taken."),
    ("virtiofs_queue_waiting", "gauge", "Requests that wait for a lock."),
    ("virtiofs_queue_kicks_total", "counter", "Kicks that ended a sleep, since the VMM connected."),
    ("virtiofs_queue_sleeps_total", "counter", "Sleeps for lack of requests, since the VMM connected."),
    ("virtiofs_queue_looks_total", "counter", "Looks at the ring before a sleep, by what came of it."),
    ("virtiofs_queue_notifications_total", "counter", "Notifications of the guest, since the VMM connected."),
    ("virtiofs_quota_bytes", "gauge", "What the guest may add to the disk, where there is a quota."),
    ("virtiofs_quota_used_bytes", "gauge", "What it has added, less what it removed."),
    (
        "virtiofs_metadata_members",
        "gauge",
        "Processes that have the metadata table mapped, where there is one.",
    ),
    ("virtiofs_metadata_followers", "gauge", "Of those, the ones that follow its journal."),
    ("virtiofs_metadata_watched", "gauge", "Whether the host's changes enter it."),
    ("virtiofs_metadata_changes_total", "counter", "Records of its journal."),
    ("virtiofs_metadata_everything_total", "counter", "How often all that was known had to be dropped."),
    ("virtiofs_inodes", "gauge", "Files the guest knows."),
    ("virtiofs_handles", "gauge", "Files the guest has open."),
    ("virtiofs_descriptors", "gauge", "Descriptors kept for inodes."),
    ("virtiofs_evictions_total", "counter", "Descriptors taken from inodes, since the VMM connected."),
    ("virtiofs_pool_threads", "gauge", "Threads for requests that would block."),
    ("virtiofs_pool_busy", "gauge", "Threads of the pool that serve a request."),
    ("virtiofs_pool_jobs", "gauge", "Requests that the pool has: being served, or waiting for a thread."),
    ("virtiofs_pool_requests_total", "counter", "Requests the pool has taken, since the VMM connected."),
    ("virtiofs_pool_refused_total", "counter", "Requests it had no room for, since the VMM connected."),
    (
        "virtiofs_watcher_complete",
        "gauge",
        "Whether all that the host does enters the metadata table, by kind.",
    ),
    ("virtiofs_watcher_events_total", "counter", "Events that the kernel told the watcher of."),
    ("virtiofs_watcher_bumps_total", "counter", "Changes that it entered."),
    ("virtiofs_watcher_coalesced_total", "counter", "Changes that were the same as others at that time."),
    (
        "virtiofs_watcher_overflows_total",
        "counter",
        "Times that events were lost, so that everything counts as changed.",
    ),
    (
        "virtiofs_watcher_watches",
        "gauge",
        "File systems (fanotify) or directories (inotify) that are watched.",
    ),
    ("virtiofs_watcher_unwatched", "gauge", "Those that could not be."),
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
FROM_WATCHER = {
    "events": "virtiofs_watcher_events_total",
    "bumps": "virtiofs_watcher_bumps_total",
    "coalesced": "virtiofs_watcher_coalesced_total",
    "overflows": "virtiofs_watcher_overflows_total",
    "watches": "virtiofs_watcher_watches",
    "unwatched": "virtiofs_watcher_unwatched",
}
FROM_METADATA = {
    "members": "virtiofs_metadata_members",
    "followers": "virtiofs_metadata_followers",
    "watched": "virtiofs_metadata_watched",
    "changes": "virtiofs_metadata_changes_total",
    "everything": "virtiofs_metadata_everything_total",
}
FROM_QUEUE = {
    "depth": "virtiofs_queue_depth",
    "waiting": "virtiofs_queue_waiting",
    "kicks": "virtiofs_queue_kicks_total",
    "sleeps": "virtiofs_queue_sleeps_total",
    "notifications": "virtiofs_queue_notifications_total",
}
FROM_POOL = {
    "threads": "virtiofs_pool_threads",
    "busy": "virtiofs_pool_busy",
    "jobs": "virtiofs_pool_jobs",
    "taken": "virtiofs_pool_requests_total",
    "refused": "virtiofs_pool_refused_total",
}


def text(ports: Iterable[Observed]) -> str:
    """The counters of all shares."""
    samples: dict[str, list[str]] = {name: [] for name, _, _ in FAMILIES}
    for port in ports:
        labels = f'share="{escape(port.tag)}"'
        found: dict[str, list[str]] = {name: [] for name in samples}
        try:
            put_port(found, labels, port.status())
        except (LookupError, TypeError, ValueError, AttributeError):
            continue  # a worker that a guest has taken over says what it likes, and spoils it for itself only
        for operation, row in sorted(port.counters().items()):
            put_operation(found, f'{labels},operation="{operation}"', row)
        for name, lines in found.items():
            samples[name] += lines
    lines = []
    for name, kind, what in FAMILIES:
        if samples[name]:
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", *samples[name]]
    return "\n".join(lines) + "\n"


def put_port(samples: dict[str, list[str]], labels: str, status: dict[str, Any]) -> None:
    def put(name: str, value: int, more: str = "") -> None:
        samples[name].append(f"{name}{{{labels}{more}}} {int(value)}")

    put("virtiofs_connected", int(status["connected"] is not None))
    put("virtiofs_connections_total", status["connections"])
    if status["quota"]:
        put("virtiofs_quota_bytes", status["quota"]["bytes"])
        put("virtiofs_quota_used_bytes", status["quota"]["used"])
    if status["watcher"]:
        kind = status["watcher"]["kind"]
        put("virtiofs_watcher_complete", int(status["watcher"]["complete"]), f',kind="{kind}"')
        for key, name in FROM_WATCHER.items():
            put(name, status["watcher"][key])
    for key, name in FROM_METADATA.items():
        if status["metadata"]:
            put(name, int(status["metadata"][key]))
    for index, queue in sorted(status["queues"].items()):
        label = f',queue="{int(index)}"'
        put("virtiofs_queue_broken", int(bool(queue["broken"])), label)
        for key, name in FROM_QUEUE.items():
            put(name, queue[key], label)
        vain = queue["vain_looks"]
        put("virtiofs_queue_looks_total", vain, f'{label},result="nothing"')
        put("virtiofs_queue_looks_total", queue["looks"] - vain, f'{label},result="request"')
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
