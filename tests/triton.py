"""A real Triton server with a repository of models, on ports of its own."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from deployments.redis_server import free_port
from tests.tools import ROOT, tritonserver

REPOSITORY = ROOT / "deployments" / "triton"
START_S_MAX = 200.0
STOP_S_MAX = 20.0


class TritonServer:
    """One server process. Started again after :meth:`kill` or :meth:`stop`, it has the same ports.

    ``models``: those of the repository to load; the fewer, the sooner it is ready.
    ``environment``: more variables, for it and its models.
    """

    def __init__(
        self,
        folder: Path,
        models: Sequence[str],
        *,
        repository: Path = REPOSITORY,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._models, self._repository = folder, list(models), repository
        self._options, self._environment = list(options), dict(environment or {})
        self._grpc, self._http, self._metrics = free_port(), free_port(), free_port()
        self._shared_memory = f"reelserve-test-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For gRPC: ``host:port``."""
        return f"127.0.0.1:{self._grpc}"

    @property
    def metrics_address(self) -> str:
        """Where Prometheus scrapes it: ``host:port``."""
        return f"127.0.0.1:{self._metrics}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "Triton is not started"
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it; return once every model answers, unless told not to wait."""
        self._folder.mkdir(parents=True, exist_ok=True)
        loads = [f"--load-model={name}" for name in self._models]
        with (self._folder / "triton.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    tritonserver(),
                    f"--model-repository={self._repository}",
                    "--model-control-mode=explicit",
                    *loads,
                    "--strict-readiness=true",
                    "--exit-timeout-secs=2",
                    f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
                    "--http-address=127.0.0.1",
                    f"--http-port={self._http}",
                    "--grpc-address=127.0.0.1",
                    f"--grpc-port={self._grpc}",
                    f"--metrics-port={self._metrics}",
                    "--allow-gpu-metrics=false",
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its models import ours from here.
                cwd=ROOT,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self._process is not None, "Triton is not started"
        deadline = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"Triton ended:\n{self.log()}"
            try:
                if httpx.get(
                    f"http://127.0.0.1:{self._http}/v2/health/ready", timeout=2
                ).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"Triton did not get ready:\n{self.log()}")

    def wait_until_ended(self) -> None:
        """For one that is to refuse what it was given."""
        assert self._process is not None, "Triton is not started"
        self._process.wait(START_S_MAX)

    def log(self) -> str:
        return (self._folder / "triton.log").read_text(errors="replace")[-4000:]

    def metric(self, name: str, model: str) -> float:
        """One of its counters, of one model; 0 if it has not begun."""
        text = httpx.get(f"http://{self.metrics_address}/metrics", timeout=5).text
        lines = re.findall(rf'^{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)$', text, re.MULTILINE)
        return sum(float(line) for line in lines)

    def kill(self) -> None:
        """As a crash of its machine ends it: SIGKILL, and so for the processes of its models."""
        if self._process is not None:
            self._end(self._process)

    def stop(self) -> None:
        """End it in order; kill it if it does not end."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S_MAX)
            self._end(self._process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # Its models' processes, in the same session, do not end when it is killed.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S_MAX)
        for region in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            region.unlink()
        self._process = None


@contextmanager
def triton(
    folder: Path,
    *models: str,
    repository: Path = REPOSITORY,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[TritonServer]:
    """A server that is ready, with these models."""
    server = TritonServer(
        folder, models, repository=repository, options=options, environment=environment
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


WITH_OURS = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
"""Before a model's code, it gives that our torch and transformers: its Python reads no PYTHONPATH.
Its own packages come first, since its backend takes no numpy as new as ours."""
