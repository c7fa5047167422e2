"""The policy as Ray Serve calls it: one object for all pools of the application.

Serve calls it in its controller, ten times a second, for every application in turn: so it never
raises, never waits, and decides once a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.serve.autoscaling_policy import PrometheusQueryMixin, PrometheusVector
from ray.serve.config import AutoscalingContext

from autoscale.policy import decide
from autoscale.scrape import Scraper
from autoscale.signals import SIGNALS, Reading, samples, servers_of, together
from autoscale.values import Budget, Decision, Memory, Pool, Replicas

log = logging.getLogger(__name__)

EVERY_S = 1.0
QUERY_EVERY_S = 2.0
FRESH_S = 15.0


@dataclass(frozen=True)
class Plan:
    """What there is to decide on: these pools, within this budget."""

    pools: Sequence[Pool]
    budget: Budget = field(default_factory=Budget)


class ReplicaPolicy(PrometheusQueryMixin):  # type: ignore[misc]
    """Each deployment that is named after a pool gets what :func:`autoscale.policy.decide` says. Of
    pools whose work a model server does, which Serve does not have, it is only published.

    ``plan`` is asked before each decision, so that an edit counts at once. The signals come from
    ``prometheus_url``, where ``matchers`` tell this cell's series from another's, else from the
    ingress's own ``exporter_url`` and the servers' ``server_urls``, of which none may be missing.
    ``publish`` is told what was decided. Both return at once.
    """

    def __init__(
        self,
        *,
        plan: Callable[[], Plan],
        publish: Callable[[Mapping[str, Decision], Plan], None],
        exporter_url: str,
        server_urls: Sequence[str] = (),
        prometheus_url: str | None = None,
        matchers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cell = dict(matchers or {})
        super().__init__(
            prometheus_address=prometheus_url,
            prometheus_queries=[signal.promql(cell) for signal in SIGNALS],
            fetch_interval_s=QUERY_EVERY_S,
            cache_ttl_s=FRESH_S,
        )
        self._plan = plan
        self._publish = publish
        self._clock = clock
        # RAY_PROMETHEUS_HOST names one, too.
        ours = None if self._prometheus_address else Scraper(exporter_url)
        self._scraper, self._servers = ours, [Scraper(url) for url in server_urls if ours]
        self._cell = cell if self._prometheus_address else {}
        self._memory = Memory()
        self._targets: dict[str, int] = {}
        self._there: dict[str, int] = {}
        self._decided_at: float | None = None

    def __call__(
        self, contexts: Mapping[Any, AutoscalingContext]
    ) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
        """Replicas by deployment. Whatever goes wrong, all keep what they have."""
        try:
            now = self._clock()
            if self._decided_at is None or now - self._decided_at >= EVERY_S:
                self._decided_at = now
                self._decide(contexts, now)
            targets = self._targets
        except Exception:
            log.exception("no decision; every pool keeps its replicas")
            targets = {}
        return {
            key: targets.get(each.deployment_name, each.target_num_replicas)
            for key, each in contexts.items()
        }, {}

    def _decide(self, contexts: Mapping[Any, AutoscalingContext], now_s: float) -> None:
        before, self._targets = self._targets, {}
        plan, readings = self._plan(), self._readings() or {}
        replicas = self._servers_there(plan.pools, readings) | {
            each.deployment_name: Replicas(each.target_num_replicas, len(each.running_replicas))
            for each in contexts.values()
        }
        pools = [pool for pool in plan.pools if pool.name in replicas]
        seen = samples(readings, pools, self._cell)
        outcome = decide(pools, seen, replicas, plan.budget, self._memory, now_s)
        self._memory = outcome.memory
        self._targets = {name: each.target for name, each in outcome.decisions.items()}
        for name, each in outcome.decisions.items():
            if each.target not in (each.before, before.get(name)):
                log.info("%s: %d → %d replicas: %s", name, each.before, each.target, each.why)
        self._publish(outcome.decisions, plan)

    def _servers_there(
        self, pools: Sequence[Pool], readings: Mapping[str, Reading]
    ) -> dict[str, Replicas]:
        """By pool, where servers do the work: as many as there are, or were when they were seen
        last. So one that is not heard of is not given up."""
        found = {}
        for pool in pools:
            if pool.server:
                if there := servers_of(pool.server, readings, self._cell):
                    self._there[pool.name] = there
                known = self._there.get(pool.name, 0)
                found[pool.name] = Replicas(target=known, ready=known)
        return found

    def _readings(self) -> Mapping[str, Reading] | None:
        if self._scraper is not None:
            ours = self._scraper.readings
            servers = [heard for each in self._servers if (heard := each.readings) is not None]
            if ours is None or len(servers) < len(self._servers):
                return ours  # without one of the servers, what waits is more than what is seen
            return together([ours, *servers])
        results = self.prometheus_results
        if results is None:
            return None
        return {
            signal.promql(self._cell): signal.answered(
                (each.labels, each.value) for each in vector.samples
            )
            for signal in SIGNALS
            if isinstance(vector := results.get(signal.promql(self._cell)), PrometheusVector)
        }
