"""A stack started as a user starts it: ``reelserve up`` in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_S_MAX = 120
STOP_S_MAX = 90
REELSERVE = Path(sys.executable).with_name("reelserve")


REDEPLOY = """
import sys
import ray
from deployments.application import deploy
from deployments.settings import StackSettings
ray.init(address=sys.argv[1], log_to_driver=False)
deploy(StackSettings.load(), timeout_s=90)
"""


@dataclass(frozen=True)
class Stack:
    """A running stack, and the variables a client of it needs."""

    process: subprocess.Popen[str]
    url: str
    api_key: str
    admin_key: str | None
    log_dir: Path
    ray_address: str
    engine_metrics_url: str

    @property
    def client_env(self) -> dict[str, str]:
        env = {**clean_env(), "REELSERVE_URL": self.url, "REELSERVE_API_KEY": self.api_key}
        if self.admin_key:
            env["REELSERVE_ADMIN_KEY"] = self.admin_key
        return env

    def processes(self) -> list[psutil.Process]:
        """Everything the stack runs, Redis and Ray included."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def named(self, text: str) -> list[psutil.Process]:
        """Those whose command line has ``text`` in it; Ray names its actors there."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def client(self) -> httpx.Client:
        """An HTTP client with the local user's key."""
        headers = {"authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def redeploy(self) -> None:
        """Deploy the application again, as the stack's settings and catalog are now."""
        replica = self.named("ray::ServeReplica")[0]
        env = {
            name: value
            for name, value in replica.environ().items()
            if name.startswith(("REELSERVE_", "RAY_AUTH", "RAY_SERVE", "PATH", "HOME"))
        }
        subprocess.run(
            [sys.executable, "-c", REDEPLOY, self.ray_address], env=env, check=True, timeout=120
        )

    def logged(self, deployment: str) -> list[dict[str, Any]]:
        """Every line of every replica of a deployment, since it was started."""
        files = (self.log_dir / "serve").glob(f"replica_reelserve_{deployment}_*.log*")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def interrupt(self) -> int:
        """Ctrl-C; the exit code once it is down."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_S_MAX)


def clean_env() -> dict[str, str]:
    """This process's environment without what would configure a stack or a client."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REELSERVE_", "RAY_", "AWS_", "OPENAI_"))
    }


@contextmanager
def up(
    data_dir: Path,
    *,
    executable: Path = REELSERVE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    port: int = 0,
    options: Sequence[str] = (),
) -> Iterator[Stack]:
    """``reelserve up``, on a free port unless one is given. Stopped at the end, if not before.

    With as many replicas as the catalog says, unless ``env`` says otherwise: what starts for the
    crowd of one test would take the cores of the next.
    """
    arguments = ["--port", str(port), "--data-dir", str(data_dir), "--json", *options]
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [str(executable), "up", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
            env={**clean_env(), "REELSERVE_AUTOSCALE_ENABLED": "false", **(env or {})},
            preexec_fn=_usual_limits,
        )
    try:
        yield _ready(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S_MAX)
        finally:
            process.kill()
            if process.stdout:
                process.stdout.close()


def _usual_limits() -> None:
    """What a login shell has: a stack must do with it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))


def _ready(process: subprocess.Popen[str], log: Path) -> Stack:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.strip() in ("", "{"):  # nothing, or an error over several lines
        said = line + process.stdout.read()
        raise AssertionError(f"reelserve up ended: {said}\n{log.read_text()}")
    said = json.loads(line)
    return Stack(
        process,
        said["url"],
        said["api_key"],
        said["admin_key"],
        Path(said["log_dir"]),
        said["ray_address"],
        said["engine_metrics_url"],
    )


def gone(processes: list[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Those of ``processes`` that still run after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return []
        time.sleep(0.1)
    return alive


def create(client: httpx.Client, **fields: Any) -> str:
    """Submit a small clip; its id."""
    body = {"prompt": "x", "seconds": 1, "steps": 2, **fields}
    answer = client.post("/v1/videos", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def wait_for(client: httpx.Client, video_id: str, seconds: float = 90) -> dict[str, Any]:
    """The video once it has ended. What hits the stack meanwhile may cost an answer or two."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = client.get(f"/v1/videos/{video_id}")
            answer.raise_for_status()
            video: dict[str, Any] = answer.json()
            if video["status"] not in ("queued", "in_progress"):
                return video
            last = video
        except httpx.HTTPError as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{video_id} has not ended: {last}")
