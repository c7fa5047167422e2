"""Credits set aside, taken and given back, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quota.ledger import Sums, Verified
from serving.plan.price import MILLI


class CreditCollector(Collector):
    """Of all users together, in credits; and whether the books were right when last looked at."""

    def __init__(self, sums: Sums, verified: Verified | None) -> None:
        self._sums = sums
        self._verified = verified

    def collect(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "reelserve_credits_held", "Credits set aside for jobs that have not ended."
        )
        captured = CounterMetricFamily(
            "reelserve_credits_captured", "Credits taken for clips that were stored."
        )
        released = CounterMetricFamily(
            "reelserve_credits_released",
            "Credits that were set aside and given back, because no clip was made or it cost less.",
        )
        held.add_metric([], self._sums.held / MILLI)
        captured.add_metric([], self._sums.captured / MILLI)
        released.add_metric([], self._sums.released / MILLI)
        differences = GaugeMetricFamily(
            "reelserve_ledger_differences",
            "Balances that were not what the ledger's entries say, when that was last verified.",
        )
        at = GaugeMetricFamily(
            "reelserve_ledger_verified_timestamp_seconds",
            "When that was, as a Unix time.",
        )
        if self._verified is not None:
            differences.add_metric([], self._verified.differences)
            at.add_metric([], self._verified.at_s)
        yield from (held, captured, released, differences, at)
