"""The Ray Serve application: one ingress deployment, and one deployment per model."""

from __future__ import annotations

from ray import serve
from ray.serve import Application

from deployments.ingress import Ingress
from deployments.replica import DRAIN_S, ModelReplica
from deployments.settings import StackSettings
from serving.plan.catalog import Model

APP_NAME = "reelserve"
INGRESS_ONGOING_MAX = 20_000
"""Idle clients (streams, long polls) count as ongoing; Serve's default of 5 would starve all."""


def build(settings: StackSettings) -> Application:
    """The application for these settings, ready for ``serve.run``."""
    pools = [_pool(model) for model in settings.catalog().models.values()]
    ingress = serve.deployment(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=INGRESS_ONGOING_MAX,
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(Ingress))
    return ingress.bind(pools)


def _pool(model: Model) -> Application:
    place = model.placement
    return serve.deployment(
        name=model.id,
        num_replicas=place.replicas,
        # The worker stops leasing in its drain hook, so Serve should get there at once.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=DRAIN_S + 5,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": place.num_cpus, "num_gpus": place.num_gpus},
    )(ModelReplica).bind(model.id)
