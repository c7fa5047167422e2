"""The Kubernetes manifests as an API server would see them, and what it would say of them."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings
from ray.serve._private import constants as ray_serve
from ray.serve.schema import ServeDeploySchema

from autoscale.settings import AutoscaleSettings
from deployments.settings import StackSettings
from quota.payments.settings import PaymentSettings
from quota.settings import QuotaSettings
from serving.api import ApiSettings
from serving.jobs import JobSettings
from tests import tools
from tests.tools import ROOT

K8S = ROOT / "k8s"
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
KUBERNETES = "1.33"
"""The version whose schemas built-in kinds are held to: the oldest that is still maintained."""
OPEN_BY_DESIGN = frozenset({"user_config", "args", "runtime_env", "resources", "policy_kwargs"})
"""Keys of a serve config below which anything may stand."""

SETTINGS: tuple[type[BaseSettings], ...] = (
    StackSettings,
    ApiSettings,
    JobSettings,
    AutoscaleSettings,
    QuotaSettings,
    PaymentSettings,
)
OTHERS = {
    "HOME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "REDISCLI_AUTH",
    "MEMORY",
    "PASSWORD",  # of redis-server's own command line
    "REDIS_ADDR",
    "REDIS_PASSWORD",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_SERVE_LOG_TO_STDERR",
    "REELSERVE_URL",  # of the command line
}

Manifest = dict[str, Any]


@functools.cache
def _built(folder: Path) -> str:
    done = subprocess.run(
        [tools.kubectl(), "kustomize", folder], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr  # a warning, such as of what is deprecated
    return done.stdout


def build(folder: Path) -> list[Manifest]:
    """Every manifest of an overlay; they may be changed."""
    return [each for each in yaml.safe_load_all(_built(folder)) if each]


def overlay(name: str) -> list[Manifest]:
    return build(K8S / "overlays" / name)


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [
        each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def pods(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(whose, spec) of every pod that a manifest asks for."""
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "RayService":
            cluster = spec["rayClusterConfig"]
            yield f"{name}/head", cluster["headGroupSpec"]["template"]["spec"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name}/{group['groupName']}", group["template"]["spec"]
        case "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]["spec"]
        case "Deployment" | "StatefulSet" | "Job":
            yield name, spec["template"]["spec"]


def known_variables() -> set[str]:
    ours = {
        f"{kind.model_config['env_prefix']}{field}".upper()
        for kind in SETTINGS
        for field in kind.model_fields
    }
    return ours | OTHERS | {name for name in vars(ray_serve) if name.startswith("RAY_SERVE_")}


def schemas_folder() -> Path:
    """Where other projects' CustomResourceDefinitions are. Skips where they are not."""
    given = os.environ.get("REELSERVE_CRD_SCHEMAS")
    folder = Path(given) if given else ROOT.parent / "shared" / "schemas"
    if not (folder / "ray.io_rayservices.yaml").exists():
        pytest.skip(
            "no CustomResourceDefinitions: scripts/crd-schemas FOLDER fetches them; then set "
            "REELSERVE_CRD_SCHEMAS=FOLDER"
        )
    return folder


@functools.cache
def _custom(folder: Path) -> Mapping[tuple[str, str], Any]:
    """Strict schemas of custom kinds, by version and kind."""
    found = {}
    for file in folder.glob("*.yaml"):
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            kind = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            schema = version["schema"]["openAPIV3Schema"]
            # Kubernetes' own, which a definition does not list.
            schema["properties"]["metadata"] = {"type": "object"}
            found[kind] = _strict(schema)
    return found


def _strict(schema: Any) -> Any:
    """The same schema without room for what it does not name."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(value) for name, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and "type" in schema
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    if (
        closed
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        strict["additionalProperties"] = False
    return strict


def complaints(manifest: Manifest, schemas: Path) -> list[str]:
    """What is wrong with a manifest, by the schema of its kind; an unknown kind is wrong too."""
    kind = manifest.get("apiVersion", ""), manifest.get("kind", "")
    if schema := _custom(schemas).get(kind):
        validator = jsonschema.Draft202012Validator(schema)
        found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
        if kind[1] == "RayService" and not found:
            found += config_complaints(manifest["spec"]["serveConfigV2"])
            for whose, pod in pods(manifest):
                found += [f"{whose}: {text}" for text in _builtin(_as_pod(pod))]
        return found
    return _builtin(manifest)


def _as_pod(spec: Mapping[str, Any]) -> Manifest:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": dict(spec)}


def _builtin(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def config_complaints(text: str) -> list[str]:
    """Of a serve config: what Ray says, and the keys that Ray would overlook."""
    raw = yaml.safe_load(text)
    try:
        ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        return [f"serveConfigV2: {each['loc']}: {each['msg']}" for each in error.errors()]
    return [f"serveConfigV2: unknown key {name}" for name in _unknown(raw, ServeDeploySchema, "")]


def _unknown(raw: Any, kind: Any, path: str) -> Iterator[str]:
    if isinstance(raw, list):
        for each in raw:
            yield from _unknown(each, kind, path)
        return
    if not isinstance(raw, dict):
        return
    if not (models := list(_models_in(kind))):
        return
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    for key, value in raw.items():
        where = f"{path}.{key}".lstrip(".")
        if key not in fields:
            yield where
        elif key not in OPEN_BY_DESIGN:
            yield from _unknown(value, fields[key].annotation, where)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type such as ``list[Model] | None`` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)
