"""The production overlay on a Ray cluster of several nodes, as near to Kubernetes as one machine
comes: its serve config by `serve deploy`, CPUs in place of GPUs, the demo's weights for all models.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deployments.demo_models import install
from deployments.haproxy import haproxy_environment
from deployments.k8s.render import render
from deployments.redis_server import RedisServer, free_port
from tests import tools
from tests.e2e.stacks import clean_env, create, wait_for
from tests.manifests import K8S, named, overlay

BIN = Path(sys.executable).parent
START_S_MAX = 150
SMALL, LARGE = "wan2.2-ti2v-5b", "wan2.2-t2v-a14b"
PLACES = {SMALL: "gpu-24gb", LARGE: "gpu-96gb", "ingress": "cpu-only"}
NODES = {"a": ["cpu-only", "gpu-24gb"], "b": ["gpu-24gb", "gpu-96gb"]}

pytestmark = pytest.mark.timeout(600)


@dataclass
class Cluster:
    """Nodes by name, each a ``ray start --block``."""

    folder: Path
    environment: Mapping[str, str]
    overlay: Path
    port: int
    admin_key: str
    api_key: str = ""
    head_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *options: str) -> None:
        # Those that nodes on machines of their own have in common.
        ports = ("--dashboard-agent-listen-port", "--metrics-export-port")
        apart = [f"{each}={free_port()}" for each in ports]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [
                    str(BIN / "ray"),
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    "--node-ip-address=127.0.0.1",
                    "--object-store-memory=80000000",
                    *options,
                    *apart,
                ],
                env=dict(self.environment),
                stdout=log,
                stderr=log,
            )

    def start_head(self) -> None:
        self.start(
            "head",
            "--head",
            f"--port={self.head_port}",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
            "--num-cpus=0",
            "--num-gpus=0",
        )

    def start_worker(self, name: str) -> None:
        offers = json.dumps(dict.fromkeys(NODES[name], 1))
        self.start(
            name, f"--address=127.0.0.1:{self.head_port}", "--num-cpus=4", f"--resources={offers}"
        )

    def kill(self, name: str) -> None:
        """As a power cut: everything of it, at once."""
        process = self.nodes.pop(name)
        children = psutil.Process(process.pid).children(recursive=True)
        for pid in [process.pid, *(child.pid for child in children)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for name in list(self.nodes):
            self.kill(name)

    def deploy(self) -> None:
        """The serve config as it is rendered now; only where the proxy is differs."""
        patch = yaml.safe_load(render(self.overlay))
        config = yaml.safe_load(patch["spec"]["serveConfigV2"])
        config["proxy_location"] = "HeadOnly"  # several HAProxies on one machine would collide
        config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        address = f"--address=http://127.0.0.1:{self.dashboard_port}"
        command = [str(BIN / "serve"), "deploy", str(file), address]
        subprocess.run(command, env=dict(self.environment), check=True, timeout=120)

    def application(self) -> Mapping[str, Any]:
        url = f"http://127.0.0.1:{self.dashboard_port}/api/serve/applications/"
        return httpx.get(url, timeout=10, trust_env=False).json()["applications"]["reelserve"]  # type: ignore[no-any-return]

    def replicas(self) -> dict[str, list[str]]:
        """Of each deployment, the resources of the node of each replica that runs."""
        offered = self.offered()
        return {
            name: sorted(
                offered.get(replica["node_id"], "gone")
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            )
            for name, deployment in self.application()["deployments"].items()
        }

    def offered(self) -> dict[str, str]:
        """By node, which of ours it is."""
        url = f"http://127.0.0.1:{self.dashboard_port}/api/v0/nodes?detail=1"
        rows = httpx.get(url, timeout=10, trust_env=False).json()["data"]["result"]["result"]
        kinds = {frozenset(types): name for name, types in NODES.items()}
        every = {each for types in NODES.values() for each in types}
        return {
            row["node_id"]: kinds.get(frozenset(every & row["resources_total"].keys()), "head")
            for row in rows
            if row["state"] == "ALIVE"
        }

    def client(self, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.api_key}"}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30, trust_env=False
        )

    def all_busy(self) -> bool:
        """Whether both replicas of the small model have a job."""
        return self.counted(f'reelserve_replicas{{model="{SMALL}",state="busy"}}') == 2

    def counted(self, metric: str) -> float:
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(metric))


def until(what: Any, seconds: float = START_S_MAX) -> None:
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if last := what():
                return
        except (httpx.HTTPError, KeyError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {last!r}")


def on_cpus(folder: Path) -> None:
    """Give the overlay's models the demo's weights and a CPU, and leave them where they go."""
    shutil.rmtree(folder / "catalog")
    (folder / "catalog").mkdir()
    for model, place in PLACES.items():
        if model != "ingress":
            entry = {
                "changes": "demo-wan",
                "id": model,
                "aliases": [],
                "placement": {"node_type": place, "slots": 4},
                "scaling": {"min_replicas": 2 if model == SMALL else 1, "max_replicas": 2},
            }
            (folder / "catalog" / f"{model}.yaml").write_text(yaml.safe_dump(entry))
    with (folder / "settings.env").open("a") as settings:
        settings.write(f"REELSERVE_MODELS={json.dumps([SMALL, LARGE])}\n")
        settings.write("REELSERVE_INGRESS_REPLICAS=1\nREELSERVE_SPEECH=[]\n")


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    with ExitStack() as exit_:
        there = Path(shutil.copytree(K8S, folder / "k8s")) / "overlays/production"
        on_cpus(there)
        install("demo-wan", folder / "models" / "demo-wan")
        server = RedisServer(folder / "redis", str(tools.redis_servers()["7"].path))
        exit_.callback(server.stop)
        # HAProxy's socket wants a short path.
        run_dir = Path(exit_.enter_context(TemporaryDirectory(prefix="rs-", dir="/tmp")))
        port, admin_key = free_port(), "rsk_admin_of_a_test_that_is_long_enough"
        pods = named(overlay("production"), "ConfigMap", "reelserve-settings")["data"]
        environment = {
            **clean_env(),
            **pods,
            "HOME": os.environ["HOME"],
            "PYTHONPATH": str(K8S.parent),
            "HF_HOME": str(folder / "models" / "hub"),
            "REELSERVE_MODELS": json.dumps([SMALL, LARGE]),
            "REELSERVE_CATALOG_DIRS": json.dumps([str(there / "catalog")]),
            "REELSERVE_DATA_DIR": str(folder / "data"),
            "REELSERVE_MODELS_DIR": str(folder / "models"),
            "REELSERVE_ARTIFACTS_URL": (folder / "artifacts").as_uri(),
            "REELSERVE_REDIS_URL": server.start(),
            "REELSERVE_LEAVE_DIR": "",
            "REELSERVE_TRITON_URL": "",
            "REELSERVE_SPEECH": "[]",
            "REELSERVE_ADMIN_KEY": admin_key,
            "REELSERVE_API_PUBLIC_URL": "",
            "REELSERVE_AUTOSCALE_EXPORTER_URL": f"http://127.0.0.1:{port}/metrics",
            **haproxy_environment(run_dir),
        }
        cluster = Cluster(folder, environment, there, port, admin_key)
        exit_.callback(cluster.end)
        cluster.start_head()
        until(
            lambda: httpx.get(f"http://127.0.0.1:{cluster.dashboard_port}/api/version").is_success
        )
        for name in NODES:  # one after another: each is slow to start, and gives up early
            cluster.start_worker(name)
            until(lambda name=name: name in cluster.offered().values())
        cluster.deploy()
        until(lambda: cluster.client(admin_key).get("/readyz").is_success)
        with cluster.client(admin_key) as admin:
            made = admin.post("/v1/admin/keys", json={"user": "ann"})
            made.raise_for_status()
            cluster.api_key = made.json()["key"]
            # As many at once as there is room for.
            admin.put("/v1/admin/users/ann", json={"tier": "unlimited"}).raise_for_status()
        until(lambda: len(cluster.replicas()[SMALL]) == 2 and len(cluster.replicas()[LARGE]) == 1)
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def submit(client: httpx.Client, jobs: int, steps: int) -> list[str]:
    return [create(client, model=SMALL, steps=steps) for _ in range(jobs)]


def completed(client: httpx.Client, ids: Sequence[str]) -> bool:
    return all(wait_for(client, each, seconds=200)["status"] == "completed" for each in ids)


def test_replicas_are_on_nodes_of_their_type(cluster: Cluster) -> None:
    assert cluster.replicas() == {"ingress": ["a"], SMALL: ["a", "b"], LARGE: ["b"]}
    with cluster.client() as client:
        ids = [create(client, model=model) for model in (SMALL, LARGE)]
        assert completed(client, ids)


def test_a_rollout_under_load_loses_no_job_and_redoes_at_most_a_step_of_each(
    cluster: Cluster,
) -> None:
    with cluster.client() as client:
        ids = submit(client, jobs=6, steps=300)
        until(cluster.all_busy)
        lost, redone = (
            cluster.counted("reelserve_steps_lost"),
            cluster.counted("reelserve_steps_redone"),
        )
        file = cluster.overlay / "catalog" / f"{SMALL}.yaml"
        entry = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**entry, "description": "Another version."}))
        before = {
            each["replica_id"] for each in cluster.application()["deployments"][SMALL]["replicas"]
        }
        cluster.deploy()
        assert completed(client, ids)

    def replaced() -> bool:
        now = cluster.application()["deployments"][SMALL]["replicas"]
        running = {each["replica_id"] for each in now if each["state"] == "RUNNING"}
        return len(running) == len(now) == 2 and not before & running

    until(replaced)
    yields = cluster.counted('reelserve_job_events_total{event="yielded"')
    assert yields > 0
    assert cluster.counted("reelserve_steps_lost") == lost
    assert cluster.counted("reelserve_steps_redone") - redone <= yields


def test_a_node_that_is_killed_loses_no_job(cluster: Cluster) -> None:
    """It goes as in a power cut; what it had begun goes on where there is still a replica."""
    with cluster.client() as client:
        ids = submit(client, jobs=6, steps=300)
        until(cluster.all_busy)
        cluster.kill("b")
        assert completed(client, ids)
        attempts = [client.get(f"/v1/videos/{each}").json()["attempts"] for each in ids]
    assert max(attempts) == 2, "the node had no job"
    assert set(cluster.replicas()[SMALL]) == {"a"}
