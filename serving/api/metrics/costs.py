"""What work costs, as metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.plan.costs import PoolCosts


class CostCollector(Collector):
    """What work costs, as learned, and how far predictions of it were off. There are at most 16
    devices to a model, and 32 shapes to a device."""

    def __init__(self, pools: Sequence[PoolCosts]) -> None:
        self._learned = [costs for pool in pools for costs in pool.learned.values()]

    def collect(self) -> Iterator[Metric]:
        where = ["model", "device", "stage"]
        predictions = CounterMetricFamily(
            "reelserve_cost_predictions",
            "Stages of jobs (encode, step, decode, upscale, deliver) that took what they took "
            "after the cost model had predicted it.",
            labels=where,
        )
        error = GaugeMetricFamily(
            "reelserve_cost_error_ratio",
            "Mean of |predicted - took| / took over the latest predictions.",
            labels=where,
        )
        bias = GaugeMetricFamily(
            "reelserve_cost_bias_ratio",
            "Mean of (predicted - took) / took over the latest predictions: above 0, they are "
            "too long.",
            labels=where,
        )
        step = GaugeMetricFamily(
            "reelserve_cost_step_seconds",
            "What a denoising step takes, learned, by latent tokens of a row and rows of the "
            "forward, for the shapes seen latest.",
            labels=["model", "device", "tokens", "rows"],
        )
        for costs in self._learned:
            labels = [costs.model.id, costs.device]
            for stage, accuracy in costs.accuracy().items():
                predictions.add_metric([*labels, stage], accuracy.predictions)
                error.add_metric([*labels, stage], accuracy.error)
                bias.add_metric([*labels, stage], accuracy.bias)
            for (tokens, rows), seconds in costs.learned_steps().items():
                step.add_metric([*labels, str(tokens), str(rows)], seconds)
        yield from (predictions, error, bias, step)
