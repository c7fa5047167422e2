"""What of the manifests follows from the catalog is made from it, and by nobody's hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autoscale.settings import AutoscaleSettings
from deployments.application import serve_config
from deployments.cli.main import app
from deployments.k8s.nodes import load_nodes
from deployments.k8s.render import grace_period_s, render
from deployments.settings import StackSettings
from serving.plan.drain import drain_s
from serving.plan.errors import ConfigError
from tests.manifests import K8S, OVERLAYS


@pytest.fixture
def k8s(tmp_path: Path) -> Path:
    return Path(shutil.copytree(K8S, tmp_path / "k8s"))


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_committed_is_what_is_rendered(name: str) -> None:
    folder = K8S / "overlays" / name
    assert (folder / "rendered.yaml").read_text() == render(folder), "run `reelserve k8s render`"


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_environment_of_who_renders_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REELSERVE_MODELS", '["nothing"]')
    monkeypatch.setenv("REELSERVE_AUTOSCALE_ENABLED", "false")
    folder = K8S / "overlays" / name
    assert (folder / "rendered.yaml").read_text() == render(folder)


def test_a_cluster_deploys_what_a_laptop_deploys() -> None:
    patch = yaml.safe_load((K8S / "overlays/dev/rendered.yaml").read_text())
    config = yaml.safe_load(patch["spec"]["serveConfigV2"])
    # The same laptop, with the same Triton, which adds sizes to what a model makes.
    laptop = StackSettings(triton_url="reelserve-triton:8001")
    local = serve_config(laptop, scales=AutoscaleSettings())
    assert config.pop("proxy_location") == "EveryNode"
    assert config.pop("http_options") == {"host": "0.0.0.0", "port": 8000}  # noqa: S104
    assert config == local


def test_a_model_that_is_added_is_served_and_placed(k8s: Path) -> None:
    overlay = k8s / "overlays/single-gpu"
    change(overlay / "settings.env", '"wan2.1-t2v-1.3b"', '"wan2.1-t2v-1.3b", "demo-wan"')
    spec = yaml.safe_load(render(overlay))["spec"]
    deployments = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"]
    names = [each["name"] for each in deployments]
    assert names == ["ingress", "wan2.1-t2v-1.3b", "demo-wan", "espeak"]
    assert deployments[2]["ray_actor_options"]["resources"] == {"cpu-only": 0.001}


def test_settings_that_change_make_another_cluster(k8s: Path) -> None:
    def pods(text: str) -> list[str]:
        cluster = yaml.safe_load(text)["spec"]["rayClusterConfig"]
        templates = [each["template"] for each in cluster["workerGroupSpecs"]]
        templates.append(cluster["headGroupSpec"]["template"])
        return [each["metadata"]["annotations"]["reelserve.dev/settings"] for each in templates]

    overlay = k8s / "overlays/production"
    before = pods(render(overlay))
    assert len(set(before)) == 1
    with (overlay / "settings.env").open("a") as file:
        file.write("REELSERVE_JOBS_QUEUE_MAX=50000\n")
    after = pods(render(overlay))
    assert len(set(after)) == 1
    assert after[0] != before[0]


def test_a_pod_has_the_time_that_its_longest_step_and_what_follows_takes() -> None:
    folder = K8S / "overlays/production"
    models = StackSettings(catalog_dirs=[folder / "catalog"]).model_copy(
        update={"models": ["wan2.2-ti2v-5b", "wan2.2-t2v-a14b"]}
    )
    served = [*models.catalog().models.values()]
    groups = {group.name: group for group in load_nodes(folder / "nodes.yaml")}
    by_type = {model.placement.node_type: drain_s(model) for model in served}
    for name, node_type in (("gpu-24gb-spot", "gpu-24gb"), ("gpu-96gb", "gpu-96gb")):
        grace_s = grace_period_s(served, groups[name])
        # The drain, Serve's margin, the lingering and Ray's own end.
        assert by_type[node_type] + 20 <= grace_s < by_type[node_type] + 21
    assert grace_period_s(served, groups["cpu"]) == 15


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        ("nodes.yaml", "node_type: gpu-24gb", "node_type: gpu-16gb", "no group has node type"),
        ("nodes.yaml", "gpus: 1", "gpus: 0", "cannot hold a replica"),
        ("nodes.yaml", "cpus: 4", "cpus: 1", "cannot hold a replica"),
        ("nodes.yaml", "node_type: cpu-only\n  min: 1", "node_type: cpu-only", "answer HTTP"),
        ("nodes.yaml", "memory_gib: 32", "memory: 32", "memory_gib: Field required"),
        ("nodes.yaml", "name: gpu", "name: cpu", "two groups are called cpu"),
        ("nodes.yaml", "min: 1\n  max: 1\n  cpus: 4", "min: 2\n  max: 1\n  cpus: 4", "more than"),
        ("settings.env", "wan2.1-t2v-1.3b", "wan2.1", "no model 'wan2.1'"),
        ("settings.env", "GPUS_MAX=1", "GPUS_MAX=2", "must be 1 at most"),
        ("settings.env", "GPUS_MAX=1", "GPUS_MAX=cluster", "must be 1 at most"),
        ("settings.env", "REPLICAS=2", "REPLICAS=none", "ingress_replicas"),
        ("settings.env", "REPLICAS=2", "REPLICAS", "is not NAME=VALUE"),
    ],
)
def test_what_does_not_fit_together_is_said(
    k8s: Path, file: str, before: str, after: str, said: str
) -> None:
    overlay = k8s / "overlays/single-gpu"
    change(overlay / file, before, after)
    with pytest.raises(ConfigError, match=said):
        render(overlay)


def test_check_writes_nothing_and_says_what_would_change(k8s: Path) -> None:
    overlay = k8s / "overlays/dev"
    run = CliRunner().invoke
    assert run(app, ["k8s", "render", str(overlay), "--check"]).exit_code == 0
    change(overlay / "settings.env", "REPLICAS=2", "REPLICAS=3")
    before = (overlay / "rendered.yaml").read_text()
    checked = run(app, ["k8s", "render", str(overlay), "--check"])
    assert (checked.exit_code, "would change" in checked.stdout) == (1, True)
    assert (overlay / "rendered.yaml").read_text() == before
    assert run(app, ["k8s", "render", str(overlay)]).exit_code == 0
    assert "num_replicas: 3" in (overlay / "rendered.yaml").read_text()
