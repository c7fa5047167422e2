"""The autoscaling policy in this cluster: its plan from the catalog, its decisions to Redis.

Serve pickles this module by value when it deploys, so that what is here stays small. The policy
takes no arguments from the serve config: they are part of an application's code version, so every
replica would be replaced for each of their changes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray

from autoscale.adapter import Plan, ReplicaPolicy
from autoscale.settings import AutoscaleSettings
from autoscale.values import Budget, Decision, Pool, Scaling, Server
from deployments.connections import open_redis
from deployments.logs import set_up_logs
from deployments.settings import StackSettings
from serving.jobs import Cell, Decisions
from serving.plan.catalog import Model, ScalingPolicy
from serving.plan.classes import CLASSES
from serving.plan.clip import ClipSpec
from serving.plan.costs import CostModel
from serving.plan.errors import ConfigError, ServiceUnavailable
from serving.plan.price import price
from serving.plan.served import ServedPool

log = logging.getLogger(__name__)

POLICY = "deployments.autoscaling:ClusterPolicy"
"""As a serve config names it."""
RELAXED_S = 900.0
"""Jobs of a class without an objective begin within this, as far as replicas can help."""
LOOK_EVERY_S = 2.0
TRITON_METRICS_PORT = 8002


class ClusterPolicy(ReplicaPolicy):
    """What Serve makes in its controller, once for a deployment of the application."""

    def __init__(self) -> None:
        stack, settings = StackSettings.load(), AutoscaleSettings()
        set_up_logs(stack.logs, role="controller")
        publisher = Publisher(stack)
        super().__init__(
            plan=CatalogPlan(stack, settings).current,
            publish=publisher.publish,
            exporter_url=settings.exporter_url or f"{stack.url}/metrics",
            server_urls=settings.triton_exporter_urls or _exporters(stack),
            prometheus_url=settings.prometheus_url,
            matchers=settings.prometheus_matchers,
        )
        # A deployment makes a new policy, and nobody tells the old one.
        weakref.finalize(self, publisher.stop)


class CatalogPlan:
    """What the catalog says of each pool, as its files are now: an edit of ``scaling`` counts
    within seconds. Files that are wrong change nothing."""

    def __init__(
        self,
        stack: StackSettings,
        settings: AutoscaleSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stack, self._settings, self._clock = stack, settings, clock
        self._looked_s, self._seen = clock(), stack.catalog_identity()
        self._pools = self._read()
        self._plan = Plan(self._pools, self._budget())

    def current(self) -> Plan:
        """The plan that is in force."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s, before = now_s, self._seen
            self._seen = self._stack.catalog_identity()
            if self._seen != before:
                self._reread()
            self._plan = Plan(self._pools, self._budget())
        return self._plan

    def _reread(self) -> None:
        try:
            self._pools = self._read()
        except ConfigError as error:
            log.error("scaling stays as it was: %s", error)

    def _read(self) -> Sequence[Pool]:
        models = self._stack.catalog().models.values()
        ours = [pool_of(each, each.scaling) for each in models if each.scaling]
        return [*ours, *map(served_pool, self._stack.served_pools().values())]

    def _budget(self) -> Budget:
        gpus = self._settings.gpus_max
        if gpus == "cluster":
            gpus = ray.cluster_resources().get("GPU", 0.0)
        return Budget(gpus=gpus, cpus=self._settings.cpus_max)


class Publisher:
    """Writes the latest decisions, on a thread of its own. A Redis that is away misses some."""

    def __init__(self, stack: StackSettings) -> None:
        self._stack = stack
        self._latest: Mapping[str, Mapping[str, Any]] = {}
        self._new = threading.Event()
        self._stopped = False
        threading.Thread(target=self._run, name="autoscale-publish", daemon=True).start()

    def publish(self, decisions: Mapping[str, Decision], plan: Plan) -> None:
        """Returns at once; what was not written yet is superseded."""
        pools = {pool.name: pool for pool in plan.pools}
        self._latest = {
            name: {
                **asdict(each),
                "scaling": asdict(pools[name].scaling),
                "objectives_s": dict(pools[name].objectives_s),
                "budget": asdict(plan.budget),
            }
            for name, each in decisions.items()
        }
        self._new.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._new.set()

    def _run(self) -> None:
        asyncio.run(self._write_until_stopped())

    async def _write_until_stopped(self) -> None:
        redis = open_redis(self._stack)
        decisions, silent = Decisions(Cell(redis)), False
        while True:
            self._new.wait()  # nothing else runs on this loop
            if self._stopped:
                break
            self._new.clear()
            try:
                await decisions.write(self._latest)
                silent = False
            except ServiceUnavailable as error:
                if not silent:
                    log.warning("decisions are not written: %s", error)
                silent = True
        await redis.aclose()


def pool_of(model: Model, scaling: ScalingPolicy) -> Pool:
    """A catalog entry as the policy sees it."""
    return Pool(
        name=model.id,
        scaling=Scaling(**scaling.model_dump()),
        objectives_s={str(name): model.classes[name].first_step_s or RELAXED_S for name in CLASSES},
        gpus=model.placement.num_gpus,
        cpus=model.placement.num_cpus,
        price=price_per_s(model),
    )


def served_pool(served: ServedPool) -> Pool:
    """What a model server does, as the policy sees it. It takes nothing of what we share out."""
    return Pool(
        name=served.id,
        scaling=Scaling(**served.scaling.model_dump()),
        objectives_s={name: each or RELAXED_S for name, each in served.objectives_s.items()},
        server=Server(served.model, served.request_s, served.leased),
    )


def _exporters(stack: StackSettings) -> list[str]:
    """Where the servers' own metrics are, unless somebody moved them."""
    hosts = {served.url.rpartition(":")[0] for served in stack.served_pools().values()}
    return [f"http://{host}:{TRITON_METRICS_PORT}/metrics" for host in sorted(hosts)]


def price_per_s(model: Model) -> float:
    """Milli-credits for a second of a device, by the model's default clip."""
    spec = ClipSpec.resolve(model, prompt="x", seed=0)
    return price(model, spec) / CostModel(model).estimate(spec).device_s
