"""The autoscaler's decisions as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.jobs import Decided

HOLD = "hold"
"""The bound of a decision without a fresh sample."""


class AutoscaleCollector(Collector):
    """The last decision about each of these models, where there ever was one."""

    def __init__(self, models: Iterable[str], decisions: Mapping[str, Decided]) -> None:
        self._decided = {model: decisions[model] for model in models if model in decisions}

    def collect(self) -> Iterator[Metric]:
        desired = _gauge(
            "desired_replicas",
            "Replicas that the pool would have without limits in time and without the budget.",
        )
        target = _gauge("target_replicas", "Replicas that the autoscaler asked for last.")
        holding = _gauge(
            "holding", "1 while the number is kept as it is because there are no fresh samples."
        )
        sample_age = _gauge(
            "sample_age_seconds",
            "For how long what the autoscaler sees of the pool had not changed at its last "
            "decision; absent before the first sample.",
        )
        decision_age = _gauge("decision_age_seconds", "Age of the last decision.")
        for model, decided in self._decided.items():
            desired.add_metric([model], decided.wanted)
            target.add_metric([model], decided.target)
            holding.add_metric([model], decided.bound == HOLD)
            if decided.sample_age_s is not None:
                sample_age.add_metric([model], decided.sample_age_s)
            decision_age.add_metric([model], decided.age_s)
        yield from (desired, target, holding, sample_age, decision_age)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"reelserve_autoscale_{name}", text, labels=["model"])
