"""The Dockerfile and the compose file, as far as they can be judged without an engine."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pytest
import yaml

from tests import tools
from tests.manifests import K8S, OVERLAYS, known_variables, named, overlay
from tests.tools import ROOT

TARGETS = ("cpu", "cuda", "triton")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]


@dataclass
class Stage:
    """One stage of the Dockerfile: what it begins with, and its (instruction, rest)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> Mapping[str, Stage]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base)
        else:
            stage.steps.append((instruction, rest.strip()))
    return found


def history(target: str) -> Sequence[tuple[str, str]]:
    """Every step that made a target, from its base image on."""
    all_stages = stages()
    stage = all_stages[target]
    before = history(stage.base) if stage.base in all_stages else []
    return [*before, *stage.steps]


def test_every_instruction_is_one_that_docker_knows() -> None:
    known = {
        *("ARG", "CMD", "COPY", "ENV", "EXPOSE", "HEALTHCHECK", "RUN", "USER", "VOLUME"),
        "WORKDIR",
    }
    assert {step for stage in stages().values() for step, _ in stage.steps} <= known


def test_bases_are_pinned() -> None:
    for stage in stages().values():
        assert stage.base in stages() or re.search(r":\d+\.\d+", stage.base), stage.base


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_not_root_says_whether_it_is_well_and_what_it_runs(target: str) -> None:
    steps = history(target)
    users = [rest for step, rest in steps if step == "USER"]
    assert int(users[-1].split(":")[0]) > 0
    assert any(step == "HEALTHCHECK" for step, _ in steps)
    assert steps[-1][0] in ("CMD", "COPY")
    assert any(step == "CMD" for step, _ in steps)


def test_shell_commands_are_shell() -> None:
    for stage in stages().values():
        for step, rest in stage.steps:
            if step == "RUN":
                subprocess.run(["sh", "-n", "-c", rest], check=True)


def ignored(path: str) -> bool:
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!")
        parts = path.split("/")
        names = parts if pattern.startswith("**/") else parts[:1]
        if any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_what_is_copied_is_there_and_reaches_the_engine() -> None:
    copied = set()
    for stage in stages().values():
        for step, rest in stage.steps:
            if step == "COPY" and not rest.startswith("--from"):
                copied.update(shlex.split(rest)[:-1])
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not ignored(name), name
    packages = {"serving", "quota", "autoscale", "deployments", "loadtest"}
    assert packages <= copied
    assert ignored(".git")
    assert ignored("tests")
    assert ignored("deployments/__pycache__")


def test_tags_are_those_that_overlays_pull() -> None:
    text = (ROOT / "Dockerfile").read_text()
    built = set(re.findall(r"--tag (\S+)", text))
    assert {tag.partition(":")[2].partition("-")[0] for tag in built} == {version("reelserve")}
    pulled = {
        f"{each['newName'].rpartition('/')[2]}:{each['newTag']}"
        for name in OVERLAYS
        for each in yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text())[
            "images"
        ]
        if each["name"].startswith("reelserve")
    }
    assert pulled == built


def test_the_users_of_the_image_and_of_the_pods_are_one() -> None:
    (user,) = {rest for step, rest in history("cpu") if step == "USER"}
    spec = named(overlay("dev"), "RayService", "reelserve")["spec"]["rayClusterConfig"]
    context = spec["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


# One box.


def variables(service: str) -> Mapping[str, str]:
    return SERVICES[service].get("environment", {})  # type: ignore[no-any-return]


def test_keys_are_those_of_the_specification() -> None:
    known = {
        *("build", "cap_drop", "command", "depends_on", "environment", "gpus", "healthcheck"),
        *("image", "init", "ports", "read_only", "restart", "security_opt", "shm_size"),
        *("stop_grace_period", "tmpfs", "ulimits", "user", "volumes"),
    }
    assert COMPOSE.keys() == {"name", "services", "volumes"}
    for name, service in SERVICES.items():
        assert service.keys() <= known, name
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_pinned_and_may_little(service: str) -> None:
    its = SERVICES[service]
    assert re.search(r":v?\d+\.\d+\.\d+", its["image"])
    assert its["read_only"] is True
    assert its["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in its["security_opt"]
    for port in its.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("service", SERVICES)
def test_secrets_are_asked_for_and_variables_known(service: str) -> None:
    for name, value in variables(service).items():
        assert name in known_variables() or name.startswith("GF_"), name
        if re.search("PASSWORD|ADMIN_KEY|REDIS_URL|AUTH", name):
            assert ":?" in value, name


def mounts() -> Iterator[tuple[str, str]]:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            yield source, target


def test_what_is_mounted_is_there() -> None:
    for source, _ in mounts():
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"], source


def test_the_boxes_prometheus_has_a_valid_configuration_and_scrapes_what_there_is() -> None:
    file = K8S / "compose/prometheus.yaml"
    done = subprocess.run(
        [tools.promtool(), "check", "config", "--syntax-only", file], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(file.read_text())
    ports = {
        "reelserve": {"8000", variables("reelserve")["REELSERVE_METRICS_PORT"]},
        "redis-exporter": {"9121"},
    }
    for job in config["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            service, _, port = target.partition(":")
            assert service in SERVICES
            assert port in ports[service]
    rules = [target for _, target in mounts() if target.startswith("/etc/prometheus/rules/")]
    assert len(rules) == 2
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yaml"]


def test_images_of_the_box_are_those_of_the_cluster() -> None:
    pulled = {
        image
        for manifest in overlay("dev")
        for image in re.findall(r"'image': '((?:redis|oliver006)\S+)'", str(manifest))
    }
    assert pulled == {SERVICES["redis"]["image"], SERVICES["redis-exporter"]["image"]}
