# SPDX-License-Identifier: Apache-2.0
"""What a timed run gives, how repeats become one row, and what they were measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20
US = 1e6


class Measurement(NamedTuple):
    """One timed run; what is per operation is a float."""

    operations: int
    seconds: float
    p50: float  # seconds, of one request with a reply
    p99: float
    cpu: float  # seconds of the daemon per operation
    kicks: float
    wakes: float  # of the driver
    interrupts: float  # eventfd writes of the device
    data: int = 0  # bytes moved


def summary(values: list[float]) -> dict[str, float]:
    """The median of some values, and how far they reach."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def row(runs: list[Measurement], unit: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "unit": unit,
        "operations_per_second": summary([run.operations / run.seconds for run in runs]),
        "p50_us": summary([run.p50 * US for run in runs]),
        "p99_us": summary([run.p99 * US for run in runs]),
        "cpu_us": summary([run.cpu * US for run in runs]),
        "kicks_per_operation": statistics.median(run.kicks for run in runs),
        "wakes_per_operation": statistics.median(run.wakes for run in runs),
        "interrupts_per_operation": statistics.median(run.interrupts for run in runs),
    }
    if runs[0].data:
        result["mib_per_second"] = summary([run.data / run.seconds / MIB for run in runs])
    return result


def machine() -> dict[str, Any]:
    """What this was measured on."""
    model = next(_fields("/proc/cpuinfo", "model name"), platform.processor() or platform.machine())
    hypervisor = any("hypervisor" in flags.split() for flags in _fields("/proc/cpuinfo", "flags"))
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "virtual": hypervisor,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _fields(path: str, name: str) -> Iterator[str]:
    try:
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                yield value.strip()
    except OSError:
        return
