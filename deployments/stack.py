"""A whole stack on one machine: Redis, Ray, the Serve application, and the end of all three."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import SecretStr

from deployments.connections import open_redis
from deployments.redis_server import RedisServer, free_port
from deployments.settings import StackSettings
from serving.api.keys import Keys
from serving.jobs.queue import CELL
from serving.plan.errors import ConfigError

LOCAL_USER = "local"


class LocalStack:
    """Start and stop everything in order. Use as a context manager.

    Ray reads the environment of the process that starts it, so a process has one stack at a
    time. ``progress`` is told each stage in a few words.
    """

    def __init__(
        self, settings: StackSettings, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._progress = progress
        self._exit = ExitStack()
        port = settings.port or free_port()
        self.settings = settings.model_copy(update={"port": port})
        self.url = f"http://{_connectable(settings.host)}:{port}"
        self.api_key = ""
        self.new_admin_key: str | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def _start(self) -> None:
        catalog = self.settings.catalog()
        self._lock_data_dir()
        self._check_port()
        if "demo-wan" in catalog.models:
            self._build_demo_model()
        if self.settings.redis_url is None:
            self._start_redis()
        self._start_keys()
        self._start_ray()
        self._start_serve()

    def _lock_data_dir(self) -> None:
        folder = self.settings.data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock: IO[str] = (folder / "lock").open("a+")
        except OSError as error:
            raise ConfigError(f"cannot use the data directory {folder}: {error}") from error
        self._exit.callback(lock.close)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ConfigError(
                f"the data directory {folder} is in use by process {lock.read().strip() or '?'}; "
                "stop that one, or choose another with --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.settings.host, self.settings.port))
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {self.settings.host}:{self.settings.port} "
                    f"({error.strerror}); choose another with --host or --port"
                ) from None

    def _build_demo_model(self) -> None:
        folder = self.settings.models_folder / "demo-wan"
        if (folder / "model_index.json").exists():
            return
        self._progress("making the demo model")
        from serving.models.demo import build_demo

        build_demo(folder)

    def _start_redis(self) -> None:
        self._progress("starting redis-server")
        server = RedisServer(self.settings.data_dir / "redis")
        self._exit.callback(server.stop)
        url = server.start()
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(url)})

    def _start_keys(self) -> None:
        self.new_admin_key, self.api_key = asyncio.run(self._make_keys())

    async def _make_keys(self) -> tuple[str | None, str]:
        """The admin key if one was made just now, and the local user's key, kept in a file."""
        file = self.settings.data_dir / "api-key"
        redis = open_redis(self.settings)
        try:
            keys = Keys(redis, CELL, self.settings.admin_key)
            admin_key = await keys.make_admin_key()
            if file.exists() and await keys.knows(text := file.read_text().strip()):
                return admin_key, text
            _, text = await keys.create(LOCAL_USER)
            file.touch(mode=0o600)
            file.write_text(text + "\n")
            return admin_key, text
        finally:
            await redis.aclose()

    def _start_ray(self) -> None:
        self._progress("starting Ray")
        # Read when ray is imported, and inherited by every process it starts.
        os.environ.update(self.settings.environment())
        os.environ.update(
            RAY_USAGE_STATS_ENABLED="0",
            RAY_SERVE_LOG_TO_STDERR="0",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),  # else Ray leaves one in the home folder
        )
        import ray

        placements = [model.placement for model in self.settings.catalog().models.values()]
        # Logical CPUs only place replicas: enough for what the catalog asks, plus the ingress.
        cpus = sum(place.replicas * place.num_cpus for place in placements)
        ray.init(
            address="local",
            num_cpus=int(cpus + self.settings.ingress_replicas) + 1,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            namespace="reelserve",
            _node_ip_address="127.0.0.1",
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._exit.callback(ray.shutdown)
        wanted = sum(place.replicas * place.num_gpus for place in placements)
        there = ray.cluster_resources().get("GPU", 0)
        if wanted > there:  # Serve would wait for them for ever
            raise ConfigError(
                f"the models {', '.join(self.settings.models)} need {wanted:g} GPU(s) "
                f"and this machine has {there:g}; serve fewer, or change placement.num_gpus"
            )

    def _start_serve(self) -> None:
        self._progress("loading " + ", ".join(self.settings.models))
        from ray import serve

        from deployments.application import APP_NAME, build

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            http_options={"host": self.settings.host, "port": self.settings.port},
            logging_config={"enable_access_log": False},
        )
        # Not serve.shutdown: it complains about the controller it has just ended.
        self._exit.callback(serve.delete, APP_NAME)
        try:
            serve.run(build(self.settings), name=APP_NAME, route_prefix="/")
        except RuntimeError as error:
            app = serve.status().applications[APP_NAME]
            why = [_last_error(d.message) for d in app.deployments.values() if d.message]
            raise ConfigError(
                f"the application did not start: {'; '.join(why) or error}\nLogs: {self.log_dir}"
            ) from error

    @property
    def log_dir(self) -> Path:
        """Where Ray keeps the logs of this stack's processes."""
        import ray

        return Path(ray._private.worker._global_node.get_logs_dir_path())


def _last_error(message: str) -> str:
    """The line of a replica's traceback that says what is wrong, without the exception's path."""
    found = re.findall(r"^[\w.]+(?:Error|Exception): (.+)$", message, re.MULTILINE)
    return found[-1] if found else message


def _connectable(host: str) -> str:
    """An address a client can use: the one that listens on all interfaces is none."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104
