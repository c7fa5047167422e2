"""A real Prometheus server that scrapes what a test says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.redis_server import free_port
from tests.tools import TOOLS

START_S_MAX = 30
ROOT = Path(__file__).parents[1]
RULES = [
    *(ROOT / "autoscale" / "rules").glob("*.yaml"),
    ROOT / "k8s/components/monitoring/alerts.yaml",
]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    process: subprocess.Popen[bytes]
    url: str

    def query(self, promql: str) -> list[tuple[Mapping[str, str], float]]:
        """(labels, value) of each sample of an instant vector."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": promql}, timeout=10)
        answer.raise_for_status()
        found = answer.json()["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def names(self) -> frozenset[str]:
        """Of every metric that there is."""
        answer = httpx.get(f"{self.url}/api/v1/label/__name__/values", timeout=10)
        answer.raise_for_status()
        return frozenset(answer.json()["data"])

    def targets(self) -> list[str]:
        """What is scraped."""
        answer = httpx.get(f"{self.url}/api/v1/targets", timeout=10)
        answer.raise_for_status()
        return [each["scrapeUrl"] for each in answer.json()["data"]["activeTargets"]]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def prometheus(
    folder: Path, jobs: Mapping[str, Sequence[str]], relabelings: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Prometheus]:
    """Scrapes ``host:port`` targets by job name, once a second, with the rules we ship."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file) for file in sorted(RULES)],
        "scrape_configs": [
            {
                "job_name": name,
                "static_configs": [{"targets": list(targets)}],
                "relabel_configs": [*relabelings],
            }
            for name, targets in jobs.items()
        ],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                TOOLS / "bin" / "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    running = Prometheus(process, f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(running, folder / "prometheus.log")
        yield running
    finally:
        running.kill()


def _wait_until_ready(running: Prometheus, log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert running.process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{running.url}/-/ready", timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus did not get ready:\n{log.read_text()}")
