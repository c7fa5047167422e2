"""Replicas of each pool, as metrics: what they do, and how they start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.jobs import PoolState, ReplicaStatus


class FleetCollector(Collector):
    """Each pool as of one moment."""

    def __init__(self, pools: Mapping[str, PoolState]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        read = GaugeMetricFamily(
            "reelserve_state_time_seconds",
            "When this was read, by the clock of Redis, in seconds since the epoch.",
        )
        if self._pools:
            read.add_metric([], min(pool.now_ms for pool in self._pools.values()) / 1000)
        yield read
        yield self._replicas()
        yield from self._starts()

    def _replicas(self) -> Metric:
        replicas = GaugeMetricFamily(
            "reelserve_replicas",
            "Replicas that announced themselves lately: that load their weights (starting), run "
            "nothing (idle) or something (busy), or hand their jobs back (draining).",
            labels=["model", "state"],
        )
        for model, pool in self._pools.items():
            for state in ReplicaStatus:
                count = sum(replica.state is state for replica in pool.replicas)
                replicas.add_metric([model, state], count)
        return replicas

    def _starts(self) -> Iterator[Metric]:
        starts = CounterMetricFamily(
            "reelserve_replica_starts",
            "Replicas that became ready, or failed to.",
            labels=["model", "outcome"],
        )
        failures = GaugeMetricFamily(
            "reelserve_replica_start_failures",
            "Replicas that failed to start since the last that became ready.",
            labels=["model"],
        )
        age = GaugeMetricFamily(
            "reelserve_replica_start_failure_age_seconds",
            "How long ago the last of these failed.",
            labels=["model"],
        )
        cold_start = GaugeMetricFamily(
            "reelserve_replica_cold_start_seconds",
            "What nine of ten of the latest replicas took at most to become ready.",
            labels=["model"],
        )
        for model, pool in self._pools.items():
            known = pool.starts
            starts.add_metric([model, "ready"], known.ready)
            starts.add_metric([model, "failed"], known.failed)
            failures.add_metric([model], known.failures)
            if known.failures:
                age.add_metric([model], known.failure_age_s)
            if known.cold_start_s is not None:
                cold_start.add_metric([model], known.cold_start_s)
        yield from (starts, failures, age, cold_start)
