"""A stack started as a user starts it: ``reelserve up`` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S_MAX = 120
STOP_S_MAX = 90
REELSERVE = Path(sys.executable).with_name("reelserve")


@dataclass(frozen=True)
class Stack:
    """A running stack, and the variables a client of it needs."""

    process: subprocess.Popen[str]
    url: str
    api_key: str
    admin_key: str | None
    log_dir: Path

    @property
    def client_env(self) -> dict[str, str]:
        env = {**clean_env(), "REELSERVE_URL": self.url, "REELSERVE_API_KEY": self.api_key}
        if self.admin_key:
            env["REELSERVE_ADMIN_KEY"] = self.admin_key
        return env

    def processes(self) -> list[psutil.Process]:
        """Everything the stack runs, Redis and Ray included."""
        return psutil.Process(self.process.pid).children(recursive=True)

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
) -> Iterator[Stack]:
    """``reelserve up`` on a free port; stopped at the end if the test did not."""
    log = data_dir.parent / f"{data_dir.name}.log"
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [str(executable), "up", "--port", "0", "--data-dir", str(data_dir), "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd,
            env={**clean_env(), **(env or {})},
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


def _ready(process: subprocess.Popen[str], log: Path) -> Stack:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"reelserve up ended with {process.wait(STOP_S_MAX)}:\n{log.read_text()}"
    said = json.loads(line)
    return Stack(process, said["url"], said["api_key"], said["admin_key"], Path(said["log_dir"]))


def gone(processes: list[psutil.Process], seconds: float = 10) -> list[psutil.Process]:
    """Those of ``processes`` that still run after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return []
        time.sleep(0.1)
    return alive
