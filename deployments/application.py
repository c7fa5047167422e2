"""The Ray Serve application: one ingress deployment, and one deployment per model.

It is always deployed from a serve config, on one machine as on Kubernetes: only then does Serve
know what changed, and replaces no replica because of another's number.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import ApplicationStatusOverview, ServeDeploySchema

from autoscale.settings import AutoscaleSettings
from deployments.autoscaling import POLICY
from deployments.connections import open_redis
from deployments.ingress import Ingress
from deployments.replica import ModelReplica
from deployments.settings import StackSettings
from deployments.speech_replica import SpeechReplica
from deployments.speech_worker import DRAIN_S
from serving.jobs import Cell, CostStore
from serving.plan.catalog import Model
from serving.plan.costs import CostModel
from serving.plan.drain import drain_s
from serving.plan.errors import ConfigError, ServiceUnavailable
from serving.plan.speech_model import SpeechModel

log = logging.getLogger(__name__)

APP_NAME = "reelserve"
INGRESS_ONGOING_MAX = 20_000
"""Idle clients (streams, long polls) count as ongoing; Serve's default of 5 would starve all."""
INGRESS_NODE_TYPE = "cpu-only"
NODE_SHARE = 0.001
"""What each replica asks of its node type, of which a node offers 1: it says where replicas go, and
never how many."""
POLL_S = 0.2
SHUTDOWN_MARGIN_S = 5
AUTOSCALING = {
    "min_replicas": 0,
    "max_replicas": 100_000,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "downscale_to_zero_delay_s": 0,
    "upscaling_factor": 1,
    "downscaling_factor": 1,
}
"""Our policy decides within the catalog's bounds, and Serve does at once what it says. With a
minimum of 0 the policy can take back a pool whose replicas fail to start: Serve, which gives a pool
up after three failures, then forgets them. ``initial_replicas`` is absent because Serve returns to
it whenever a deployment changes, in the middle of a spike too."""


def build(args: Mapping[str, str]) -> Application:
    """What the config's ``import_path`` names. Serve calls it in a process of the cluster."""
    settings = StackSettings.load()
    pools = [
        serve.deployment(name=name)(replica).bind(name)
        for replica, names in (
            (ModelReplica, settings.catalog().models),
            (SpeechReplica, settings.speech_catalog().models),
        )
        for name in names
    ]
    return serve.deployment(name="ingress")(serve.ingress()(Ingress)).bind(pools)


def serve_config(
    settings: StackSettings,
    learned: Mapping[str, Sequence[CostModel]] | None = None,
    scales: AutoscaleSettings | None = None,
) -> dict[str, Any]:
    """The serve config for these settings: how many replicas, and what each may take.

    ``learned`` is by model what earlier deployments found out about its work; ``scales`` is by
    default what the environment says.
    """
    learned = learned or {}
    models = [*settings.catalog().models.values()]
    speak = [*settings.speech_catalog().models.values()]
    scales = scales or AutoscaleSettings()
    ingress = {
        "name": "ingress",
        "num_replicas": settings.ingress_replicas,
        "max_ongoing_requests": INGRESS_ONGOING_MAX,
        "ray_actor_options": {
            "num_cpus": 0.1,
            "resources": {INGRESS_NODE_TYPE: NODE_SHARE},
            "runtime_env": _version_env(*models, *speak),
        },
    }
    pools = [
        *(
            _pool(
                model,
                leave_s=drain_s(model, learned.get(model.id, ())),
                scales=scales.enabled and model.scaling is not None,
            )
            for model in models
        ),
        *(_pool(model, leave_s=DRAIN_S, scales=False) for model in speak),
    ]
    app: dict[str, Any] = {
        "name": APP_NAME,
        "route_prefix": "/",
        "import_path": "deployments.application:build",
        "logging_config": logging_config(settings),
        "deployments": [ingress, *pools],
    }
    if scales.enabled and any(model.scaling for model in models):
        app["autoscaling_policy"] = {"policy_function": POLICY}
    return {"applications": [app]}


def logging_config(settings: StackSettings) -> dict[str, Any]:
    """How Serve writes its own lines. Of requests it would write one for every poll."""
    encoding = "JSON" if settings.logs == "json" else "TEXT"
    return {"encoding": encoding, "enable_access_log": False}


def _pool(model: Model | SpeechModel, *, leave_s: float, scales: bool) -> dict[str, Any]:
    """``leave_s``: how long a replica may take to leave; ``scales``: whether the policy says how
    many there are."""
    place = model.placement
    return {
        "name": model.id,
        **({"autoscaling_config": AUTOSCALING} if scales else {"num_replicas": place.replicas}),
        # The worker stops leasing in its drain hook, so Serve should get there at once.
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": leave_s + SHUTDOWN_MARGIN_S,
        "health_check_period_s": 2,
        "health_check_timeout_s": 10,
        "ray_actor_options": {
            "num_cpus": place.num_cpus,
            "num_gpus": place.num_gpus,
            "resources": {place.node_type: NODE_SHARE},
            "runtime_env": _version_env(model),
        },
    }


def shutdown_s(model: Model | SpeechModel) -> float:
    """After this, Serve kills a replica that was told to stop, before anything was learned."""
    leave_s = drain_s(model) if isinstance(model, Model) else DRAIN_S
    return leave_s + SHUTDOWN_MARGIN_S


def _version_env(*models: Model | SpeechModel) -> dict[str, Any]:
    """Serve replaces replicas whose options changed; this makes a model's change one of them."""
    return {"env_vars": {"REELSERVE_CATALOG_VERSION": " ".join(map(model_version, models))}}


def model_version(model: Model | SpeechModel) -> str:
    """What replicas of a model must be replaced for: anything but their number."""
    place = model.placement.model_copy(update={"replicas": 1})
    same = model.model_copy(update={"placement": place, "scaling": None})
    if isinstance(same, Model) and same.upscaler:
        seat = same.upscaler.model_copy(update={"scaling": None})
        same = same.model_copy(update={"upscaler": seat})
    text = f"{version('reelserve')} {same!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def deploy(settings: StackSettings, timeout_s: float) -> None:
    """Deploy on the Ray cluster this process is connected to, and wait until it runs, with the
    replicas that each pool always has.

    Raises :class:`ConfigError` with the reason when a deployment does not start.
    """
    from ray.serve.context import _get_global_client

    learned = asyncio.run(learned_costs(settings))
    config = ServeDeploySchema.model_validate(serve_config(settings, learned))
    _get_global_client().deploy_apps(config)
    floors = _floors(settings)
    deadline = time.monotonic() + timeout_s
    while True:
        app = serve.status().applications.get(APP_NAME)
        if app is not None and _runs(app, floors):
            return
        if time.monotonic() > deadline:
            raise ConfigError(f"the application did not start within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def _floors(settings: StackSettings) -> dict[str, int]:
    """How many replicas each scaled pool has when there is nothing to do."""
    if not AutoscaleSettings().enabled:
        return {}
    scaled = {name: each.scaling for name, each in settings.catalog().models.items()}
    return {name: each.min_replicas + each.buffer for name, each in scaled.items() if each}


def _runs(app: ApplicationStatusOverview, floors: Mapping[str, int]) -> bool:
    """Whether all of it does. The policy takes back what fails to start before Serve gives it up,
    so a failure shows in the message first."""
    if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        said = [d.message for d in app.deployments.values() if d.status == "DEPLOY_FAILED"]
        raise _did_not_start(said or [app.message])
    running = {
        name: deployment.replica_states.get("RUNNING", 0)
        for name, deployment in app.deployments.items()
    }
    missing = [name for name, floor in floors.items() if running.get(name, 0) < floor]
    said = [app.deployments[name].message for name in missing if name in app.deployments]
    if failed := [text for text in said if "failed to start" in text]:
        raise _did_not_start(failed)
    return app.status == "RUNNING" and not missing


def _did_not_start(messages: Sequence[str]) -> ConfigError:
    why = "; ".join(_last_error(text) for text in messages)
    return ConfigError(f"the application did not start: {why}")


async def learned_costs(settings: StackSettings) -> dict[str, Sequence[CostModel]]:
    """By model what its device classes learned; nothing when Redis is away: then the catalog's
    figures must do, as at the first start."""
    redis = open_redis(settings)
    store = CostStore(Cell(redis))
    try:
        pools = settings.catalog().models.values()
        return {model.id: [*(await store.load(model)).learned.values()] for model in pools}
    except ServiceUnavailable as error:
        log.warning("drain time-outs follow the catalog: %s", error)
        return {}
    finally:
        await redis.aclose()


def _last_error(message: str) -> str:
    """The line of a replica's traceback that says what is wrong, without the exception's path."""
    found = re.findall(r"^[\w.]+(?:Error|Exception): (.+)$", message, re.MULTILINE)
    return found[-1] if found else message
