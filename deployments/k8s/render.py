"""What of an overlay follows from the catalog: the serve config, and the groups of workers.

An overlay says which models there are (``settings.env``, over that of ``base``), on what nodes
(``nodes.yaml``), and with what changes of the catalog (``catalog/``). The pods read the very same
files, so what is rendered here is what they find there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from autoscale.settings import AutoscaleSettings
from deployments.application import INGRESS_NODE_TYPE, serve_config, shutdown_s
from deployments.k8s.nodes import NodeGroup, load_nodes
from deployments.leaving import LINGER_S
from deployments.settings import ENV_PREFIX, StackSettings
from serving.plan.catalog import Model
from serving.plan.errors import ConfigError
from serving.plan.speech_model import SpeechModel

HEADER = """\
# Made by `reelserve k8s render` from settings.env, nodes.yaml and the catalog: change those.
"""
RULES_HEADER = """\
# Made by `reelserve k8s render` from alerts.yaml and autoscale/rules: change those.
"""
ALERTS = "alerts.yaml"
CATALOG_MOUNT = Path("/etc/reelserve/catalog")
"""Where pods find what the overlay has in ``catalog/``."""
ARTIFACTS_CLAIM = "reelserve-artifacts"
HTTP_PORT = 8000
STOP_S = 10.0
"""What Ray takes to end the processes of a node."""
DELETION_DELAY_S_MIN = 60
"""KubeRay's own default: for how long clients may go on with a connection to the old cluster."""
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def render(overlay: Path) -> str:
    """A patch of the RayService, as YAML. :class:`ConfigError` says what does not fit together."""
    variables = _variables(overlay)
    settings, scales = _settings(overlay, variables)
    models: list[Model | SpeechModel] = [
        *settings.catalog().models.values(),
        *settings.speech_catalog().models.values(),
    ]
    groups = load_nodes(overlay / "nodes.yaml")
    _check_placement(models, groups)
    _check_budget(scales, groups, overlay)
    written = json.dumps(variables, sort_keys=True).encode()
    # Pods read settings when they start: other settings are another cluster, rolled out as one.
    digest = {"reelserve.dev/settings": hashlib.sha256(written).hexdigest()[:12]}
    worker = yaml.safe_load((_base(overlay) / "worker.yaml").read_text())
    worker["metadata"]["annotations"].update(digest)
    if (store := urlsplit(settings.store_url)).scheme == "file":
        _mount(worker["spec"], ARTIFACTS_CLAIM, store.path)
    grace_s = {group.name: grace_period_s(models, group) for group in groups}
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},  # noqa: S104 - of a pod
        **serve_config(settings, scales=scales),
    }
    patch = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "reelserve"},
        "spec": {
            "rayClusterDeletionDelaySeconds": max(DELETION_DELAY_S_MIN, *grace_s.values()),
            "serveConfigV2": _Block(_yaml(config)),
            "rayClusterConfig": {
                "headGroupSpec": {"template": {"metadata": {"annotations": digest}}},
                "workerGroupSpecs": [
                    _worker_group(group, worker, grace_s[group.name]) for group in groups
                ],
            },
        },
    }
    return HEADER + _yaml(patch)


def render_rules(monitoring: Path) -> str:
    """The Prometheus operator's kind of the alerts in a folder, and of the recording rules that
    come with the code."""
    files = [*Path(str(package_files("autoscale") / "rules")).glob("*.yaml")]
    groups = [
        group
        for file in [*sorted(files), monitoring / ALERTS]
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "reelserve"},
        "spec": {"groups": groups},
    }
    return RULES_HEADER + _yaml(rule)


def grace_period_s(models: Sequence[Model | SpeechModel], group: NodeGroup) -> int:
    """How long a pod of the group may take to end: the longest any of its replicas may take to hand
    back its jobs, which is a step and what is written after it, and what is around that."""
    drains = [shutdown_s(each) for each in models if each.placement.node_type == group.node_type]
    return math.ceil(LINGER_S + max(drains, default=0.0) + STOP_S)


def _variables(overlay: Path) -> Mapping[str, str]:
    """What the pods' ConfigMap holds: the overlay's lines over those of base."""
    found: dict[str, str] = {}
    for file in (_base(overlay) / "settings.env", overlay / "settings.env"):
        for line in file.read_text().splitlines():
            if line and not line.startswith("#"):
                name, separator, value = line.partition("=")
                if not separator:
                    raise ConfigError(f"{file}: {line!r} is not NAME=VALUE")
                found[name] = value
    return found


def _base(overlay: Path) -> Path:
    return overlay.parent.parent / "base"


class _AsWritten(BaseSettings):
    """As pods see it: nothing of this process's environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class _Stack(_AsWritten, StackSettings):
    pass


class _Scales(_AsWritten, AutoscaleSettings):
    pass


def _settings(
    overlay: Path, variables: Mapping[str, str]
) -> tuple[StackSettings, AutoscaleSettings]:
    try:
        settings = _Stack(**_fields(_Stack, ENV_PREFIX, variables))
        scales = _Scales(**_fields(_Scales, f"{ENV_PREFIX}AUTOSCALE_", variables))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{overlay}/settings.env: {where}: {first['msg']}") from error
    folders = [overlay / "catalog" if it == CATALOG_MOUNT else it for it in settings.catalog_dirs]
    return settings.model_copy(update={"catalog_dirs": folders}), scales


def _fields(kind: type[BaseSettings], prefix: str, variables: Mapping[str, str]) -> dict[str, Any]:
    named = {name: variables.get(f"{prefix}{name.upper()}") for name in kind.model_fields}
    return {
        name: json.loads(value) if value.startswith(("[", "{")) else value
        for name, value in named.items()
        if value
    }


def _check_placement(models: Sequence[Model | SpeechModel], groups: Sequence[NodeGroup]) -> None:
    if not any(group.node_type == INGRESS_NODE_TYPE and group.min for group in groups):
        raise ConfigError(
            f"no group of node type {INGRESS_NODE_TYPE} has pods always: nothing would answer HTTP"
        )
    for model in models:
        place = model.placement
        there = [group for group in groups if group.node_type == place.node_type]
        if not there:
            raise ConfigError(f"model '{model.id}': no group has node type {place.node_type}")
        if small := [
            group.name
            for group in there
            if place.num_gpus > group.gpus or place.num_cpus > group.cpus
        ]:
            raise ConfigError(
                f"model '{model.id}': a pod of group {small[0]} cannot hold a replica"
            )


def _check_budget(scales: AutoscaleSettings, groups: Sequence[NodeGroup], overlay: Path) -> None:
    """A budget beyond what the groups may come to would have replicas wait for pods for ever."""
    most = sum(group.max * group.gpus for group in groups)
    wanted = scales.gpus_max
    if scales.enabled and most and (not isinstance(wanted, float) or wanted > most):
        raise ConfigError(
            f"{overlay}/settings.env: REELSERVE_AUTOSCALE_GPUS_MAX must be {most} at most, which "
            "is what the groups of nodes.yaml come to"
        )


def _mount(pod: dict[str, Any], claim: str, path: str) -> None:
    """Clips on a volume, where there is no object store: every worker reads and writes them."""
    name = claim.removeprefix("reelserve-")
    pod["volumes"].append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
    pod["containers"][0]["volumeMounts"].append({"name": name, "mountPath": path})


def _worker_group(group: NodeGroup, worker: Mapping[str, Any], grace_s: int) -> dict[str, Any]:
    pod = copy.deepcopy(dict(worker))
    spec = pod["spec"]
    container = spec["containers"][0]
    sizes = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    gpus = {"nvidia.com/gpu": str(group.gpus)} if group.gpus else {}
    container["resources"] = {"requests": {**sizes, **gpus}, "limits": {**sizes, **gpus}}
    spec["terminationGracePeriodSeconds"] = grace_s
    if group.node_selector:
        spec["nodeSelector"] = group.node_selector
    tolerations = ([GPU_TOLERATION] if group.gpus else []) + group.tolerations
    if tolerations:
        spec["tolerations"] = tolerations
    pod["metadata"]["labels"]["reelserve.dev/node-type"] = group.node_type
    return {
        "groupName": group.name,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "replicas": group.min,
        "priority": group.priority,
        "idleTimeoutSeconds": group.idle_s,
        "resources": {group.node_type: "1"},
        "rayStartParams": {},
        "template": pod,
    }


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)


class _Block(str):
    """Text over several lines, written as such."""


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: what occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)
