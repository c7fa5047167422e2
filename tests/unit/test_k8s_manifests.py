"""The manifests, as far as they can be judged without a cluster: by every schema there is, and by
what the code reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private import constants as ray_serve

from deployments.k8s.render import ARTIFACTS_CLAIM, CATALOG_MOUNT, HTTP_PORT
from deployments.redis_server import CONFIG
from deployments.settings import StackSettings
from tests.manifests import (
    K8S,
    OVERLAYS,
    SETTINGS,
    Manifest,
    build,
    complaints,
    known_variables,
    named,
    overlay,
    pods,
    schemas_folder,
)
from tests.tools import ROOT

IMAGES = {"reelserve", "reelserve-triton", "redis", "redis_exporter"}

everywhere = pytest.mark.parametrize("name", OVERLAYS)


def containers(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for manifest in manifests:
        for whose, pod in pods(manifest):
            for each in [*pod.get("initContainers", []), *pod["containers"]]:
                yield f"{whose}/{each['name']}", each


# By schema.


@everywhere
def test_every_manifest_is_what_its_schema_allows(name: str) -> None:
    schemas = schemas_folder()
    manifests = overlay(name)
    assert sum(each["kind"] == "RayService" for each in manifests) == 1
    found = [f"{each['kind']}: {text}" for each in manifests for text in complaints(each, schemas)]
    assert found == []


def ray(manifest: Manifest) -> Any:
    return manifest["spec"]["rayClusterConfig"]


def config(change: Callable[[Any], None]) -> Callable[[Manifest], None]:
    def planted(manifest: Manifest) -> None:
        raw = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        change(raw["applications"][0])
        manifest["spec"]["serveConfigV2"] = yaml.safe_dump(raw)

    return planted


def move(mapping: dict[str, Any], before: str, after: str) -> None:
    mapping[after] = mapping.pop(before)


TYPOS: Mapping[str, tuple[str, str, Callable[[Manifest], None]]] = {
    "a field of the cluster": (
        "RayService",
        "reelserve",
        lambda it: move(ray(it), "enableInTreeAutoscaling", "enableInTreeAutoscaler"),
    ),
    "a field of a group": (
        "RayService",
        "reelserve",
        lambda it: move(ray(it)["workerGroupSpecs"][0], "maxReplicas", "maxReplica"),
    ),
    "a number as text": (
        "RayService",
        "reelserve",
        lambda it: ray(it)["workerGroupSpecs"][0].update(minReplicas="1"),
    ),
    "a value that is none": (
        "RayService",
        "reelserve",
        lambda it: ray(it)["autoscalerOptions"].update(version="v3"),
    ),
    "the version of the kind": (
        "RayService",
        "reelserve",
        lambda it: it.update(apiVersion="ray.io/v2"),
    ),
    "a field of a pod in a group": (
        "RayService",
        "reelserve",
        lambda it: move(
            ray(it)["workerGroupSpecs"][0]["template"]["spec"],
            "terminationGracePeriodSeconds",
            "terminationGracePeriod",
        ),
    ),
    "a field of a container in a group": (
        "RayService",
        "reelserve",
        lambda it: move(
            ray(it)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0],
            "envFrom",
            "envfrom",
        ),
    ),
    "a key of an application": (
        "RayService",
        "reelserve",
        config(lambda app: move(app, "autoscaling_policy", "autoscale_policy")),
    ),
    "a key of a deployment": (
        "RayService",
        "reelserve",
        config(
            lambda app: move(
                app["deployments"][1], "graceful_shutdown_timeout_s", "graceful_shutdown_timeout"
            )
        ),
    ),
    "a key of an actor's options": (
        "RayService",
        "reelserve",
        config(lambda app: move(app["deployments"][1]["ray_actor_options"], "num_cpus", "cpus")),
    ),
    "a key of the autoscaling": (
        "RayService",
        "reelserve",
        config(
            lambda app: move(
                app["deployments"][1]["autoscaling_config"], "upscale_delay_s", "upscale_delay"
            )
        ),
    ),
    "a type in the serve config": (
        "RayService",
        "reelserve",
        config(lambda app: app["deployments"][0].update(num_replicas="many")),
    ),
    "a probe": (
        "StatefulSet",
        "reelserve-redis",
        lambda it: move(
            it["spec"]["template"]["spec"]["containers"][0], "readinessProbe", "readynessProbe"
        ),
    ),
    "a security context": (
        "Deployment",
        "reelserve-triton",
        lambda it: move(
            it["spec"]["template"]["spec"]["containers"][0]["securityContext"],
            "readOnlyRootFilesystem",
            "readOnlyRootFileSystem",
        ),
    ),
    "a budget": (
        "PodDisruptionBudget",
        "reelserve-redis",
        lambda it: move(it["spec"], "maxUnavailable", "maxUnavailble"),
    ),
    "a network policy": (
        "NetworkPolicy",
        "redis",
        lambda it: move(it["spec"]["ingress"][0], "from", "form"),
    ),
    "a kind": ("CronJob", "reelserve-ledger-verify", lambda it: it.update(kind="Cronjob1")),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_planted_typo_is_noticed(typo: str) -> None:
    kind, name, plant = TYPOS[typo]
    manifest = named(overlay("production"), kind, name)
    assert complaints(manifest, schemas_folder()) == []
    plant(manifest)
    assert complaints(manifest, schemas_folder()) != []


# By what the code reads.


@everywhere
def test_every_variable_is_one_that_something_reads(name: str) -> None:
    manifests = overlay(name)
    written = set(named(manifests, "ConfigMap", "reelserve-settings")["data"])
    written |= {
        variable["name"] for _, each in containers(manifests) for variable in each.get("env", [])
    }
    assert written - known_variables() == set()


@everywhere
def test_settings_are_read_as_pods_read_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in named(overlay(name), "ConfigMap", "reelserve-settings")["data"].items():
        monkeypatch.setenv(variable, value)
    for kind in SETTINGS:
        kind()
    settings = StackSettings.load()
    assert settings.port == HTTP_PORT
    assert settings.catalog_dirs in ([], [CATALOG_MOUNT])


@everywhere
def test_images_are_pinned_and_those_that_there_are(name: str) -> None:
    for whose, each in containers(overlay(name)):
        image, _, tag = each["image"].rpartition(":")
        assert image.rpartition("/")[2] in IMAGES, whose
        assert re.search(r"\d+\.\d+", tag), f"{whose}: {each['image']}"
        if image.rpartition("/")[2].startswith("reelserve"):
            assert tag.split("-")[0] == version("reelserve"), whose


@everywhere
def test_ray_is_the_one_that_the_code_is_tested_with(name: str) -> None:
    cluster = ray(named(overlay(name), "RayService", "reelserve"))
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in pinned


@everywhere
def test_ports_are_those_that_something_listens_on(name: str) -> None:
    manifests = overlay(name)
    listening: dict[str, set[int]] = {}
    for whose, each in containers(manifests):
        ports = {port["containerPort"] for port in each.get("ports", [])}
        listening.setdefault(whose.split("/")[1], set()).update(ports)
    assert ray_serve.RAY_SERVE_HAPROXY_METRICS_PORT in listening["reelserve"]
    assert HTTP_PORT in listening["reelserve"]
    by_policy = {
        "ray": "reelserve",
        "redis": "reelserve-redis",
        "redis-gcs": "reelserve-redis-gcs",
        "triton": "reelserve-triton",
    }
    for policy, workload in by_policy.items():
        allowed = {
            port["port"]
            for rule in named(manifests, "NetworkPolicy", policy)["spec"]["ingress"]
            for port in rule.get("ports", [])
        }
        assert allowed <= listening[workload], policy
    for each in manifests:
        if each["kind"] == "Service":
            owner = listening[each["spec"]["selector"]["app.kubernetes.io/name"]]
            assert {port["port"] for port in each["spec"]["ports"]} <= owner


@everywhere
def test_addresses_in_settings_are_services(name: str) -> None:
    manifests = overlay(name)
    services = {
        f"{each['metadata']['name']}:{port['port']}"
        for each in manifests
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    services.add(f"reelserve-serve-svc:{HTTP_PORT}")  # KubeRay makes it
    written = [*named(manifests, "ConfigMap", "reelserve-settings")["data"].values()]
    for _, each in containers(manifests):
        written += [variable.get("value", "") for variable in each.get("env", [])]
    written.append(
        ray(named(manifests, "RayService", "reelserve"))["gcsFaultToleranceOptions"]["redisAddress"]
    )
    found = set(re.findall(r"reelserve-[a-z-]+:\d+", " ".join(written)))
    assert len(found) == 3
    assert found <= services


@everywhere
def test_what_pods_name_is_there(name: str) -> None:
    manifests = overlay(name)
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for manifest in manifests:
        for whose, pod in pods(manifest):
            assert ("ServiceAccount", pod["serviceAccountName"]) in there, whose
            for volume in pod.get("volumes", []):
                if claim := volume.get("persistentVolumeClaim"):
                    assert ("PersistentVolumeClaim", claim["claimName"]) in there, whose
                source = volume.get("configMap", {"optional": True})
                if not source.get("optional"):
                    assert ("ConfigMap", source["name"]) in there, whose
    for whose, each in containers(manifests):
        for source in each.get("envFrom", []):
            if "configMapRef" in source:
                assert ("ConfigMap", source["configMapRef"]["name"]) in there, whose


@everywhere
def test_policies_and_budgets_select_something(name: str) -> None:
    manifests = overlay(name)
    labels: list[Mapping[str, str]] = [{"ray.io/node-type": "redis-cleanup"}]  # KubeRay makes it
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] == "RayService":
            cluster = ray(each)
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            labels += [group["template"]["metadata"]["labels"] for group in groups]
        elif each["kind"] == "CronJob":
            labels.append(spec["jobTemplate"]["spec"]["template"]["metadata"]["labels"])
        elif "template" in spec:
            labels.append(spec["template"]["metadata"]["labels"])
    for each in manifests:
        if each["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = each["spec"].get("podSelector") or each["spec"].get("selector") or {}
            wanted = selector.get("matchLabels", {}).items()
            assert any(wanted <= those.items() for those in labels), each["metadata"]["name"]


# What a platform team asks first.


@everywhere
def test_no_secret_is_in_a_manifest(name: str) -> None:
    manifests = overlay(name)
    assert [each for each in manifests if each["kind"] == "Secret"] == []
    secret = re.compile(r"KEY|SECRET|PASSWORD|TOKEN|REDIS_URL")
    assert not any(map(secret.search, named(manifests, "ConfigMap", "reelserve-settings")["data"]))
    for whose, each in containers(manifests):
        for variable in each.get("env", []):
            if secret.search(variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], f"{whose}: {variable['name']}"


@everywhere
def test_nobody_is_root_or_may_become_it(name: str) -> None:
    for manifest in overlay(name):
        for whose, pod in pods(manifest):
            context = pod["securityContext"]
            assert context["runAsNonRoot"] is True, whose
            assert context["runAsUser"] > 0, whose
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, whose
            assert "hostNetwork" not in pod, whose
            for each in pod["containers"]:
                own = each["securityContext"]
                assert own["readOnlyRootFilesystem"] is True, whose
                assert own["allowPrivilegeEscalation"] is False, whose
                assert own["capabilities"] == {"drop": ["ALL"]}, whose


@everywhere
def test_every_container_says_what_it_takes_and_what_it_may(name: str) -> None:
    for whose, each in containers(overlay(name)):
        asked, allowed = each["resources"]["requests"], each["resources"]["limits"]
        assert {"cpu", "memory"} <= asked.keys() & allowed.keys(), whose
        if "ray" in each["name"] or each["name"] == "redis":
            # What is promised is there: who is over it is killed, and what it held lost.
            assert asked["memory"] == allowed["memory"], whose


@everywhere
def test_only_the_head_may_talk_to_kubernetes(name: str) -> None:
    manifests = overlay(name)
    head = named(manifests, "ServiceAccount", "reelserve-head")
    assert head["automountServiceAccountToken"] is True
    for manifest in manifests:
        for whose, pod in pods(manifest):
            if not whose.endswith("/head"):
                assert pod["automountServiceAccountToken"] is False, whose


@everywhere
def test_the_head_has_no_work_and_workers_only_where_their_models_go(name: str) -> None:
    cluster = ray(named(overlay(name), "RayService", "reelserve"))
    head = cluster["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in json.dumps(head)
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        has_gpus = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        tolerated = [each["key"] for each in spec.get("tolerations", [])]
        assert has_gpus == ("nvidia.com/gpu" in tolerated), group["groupName"]


def test_the_old_cluster_stays_until_the_slowest_pod_has_left() -> None:
    spec = named(overlay("production"), "RayService", "reelserve")["spec"]
    groups = spec["rayClusterConfig"]["workerGroupSpecs"]
    grace = [each["template"]["spec"]["terminationGracePeriodSeconds"] for each in groups]
    assert spec["rayClusterDeletionDelaySeconds"] >= max(grace)


def test_spot_is_asked_before_what_is_dear() -> None:
    groups = ray(named(overlay("production"), "RayService", "reelserve"))["workerGroupSpecs"]
    by_name = {group["groupName"]: group["priority"] for group in groups}
    for name, priority in by_name.items():
        if name.endswith("-spot"):
            assert priority > by_name[name.removesuffix("-spot")]


def test_redis_keeps_what_the_local_one_keeps() -> None:
    def directives(text: str) -> dict[str, str]:
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return dict(line.split(" ", 1) for line in lines)

    ours = directives((K8S / "base/redis.conf").read_text())
    renamed = {name.replace("listpack", "ziplist"): value for name, value in ours.items()}
    local = directives(CONFIG)
    of_the_machine = {"bind", "port", "requirepass", "dir", "logfile", "daemonize"}
    assert renamed.items() >= {k: v for k, v in local.items() if k not in of_the_machine}.items()


def test_clips_are_on_a_volume_where_there_is_no_object_store() -> None:
    for name in OVERLAYS:
        manifests = overlay(name)
        url = named(manifests, "ConfigMap", "reelserve-settings")["data"]["REELSERVE_ARTIFACTS_URL"]
        assert url.startswith("file:") == (ARTIFACTS_CLAIM in json.dumps(manifests)), name


def test_the_catalog_that_pods_find_is_the_overlays() -> None:
    there = named(overlay("production"), "ConfigMap", "reelserve-catalog")["data"]
    folder = K8S / "overlays/production/catalog"
    assert there == {file.name: file.read_text() for file in folder.iterdir()}


def test_tls_ends_at_the_edge_of_production_and_only_the_api_is_behind_it() -> None:
    edge = named(overlay("production"), "Ingress", "reelserve")
    hosts = {rule["host"] for rule in edge["spec"]["rules"]}
    assert set(edge["spec"]["tls"][0]["hosts"]) == hosts
    assert "cert-manager.io/cluster-issuer" in edge["metadata"]["annotations"]
    paths = [path["path"] for rule in edge["spec"]["rules"] for path in rule["http"]["paths"]]
    assert paths == ["/v1", "/checkout"]
    settings = named(overlay("production"), "ConfigMap", "reelserve-settings")["data"]
    assert settings["REELSERVE_API_PUBLIC_URL"] == f"https://{hosts.pop()}"


def test_a_redis_of_ones_own_takes_the_place_of_ours(tmp_path: Path) -> None:
    folder = shutil.copytree(K8S, tmp_path / "k8s") / "overlays" / "external"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        "resources: [../production]\ncomponents: [../../components/external-redis]\n"
    )
    manifests = build(folder)
    names = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    assert ("StatefulSet", "reelserve-redis") not in names
    assert ("StatefulSet", "reelserve-redis-gcs") in names
    assert [each for each in manifests if complaints(each, schemas_folder())] == []
