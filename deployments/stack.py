"""A whole stack on one machine: Redis, Ray, the Serve application, and the end of all three."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Self

import httpx
from pydantic import SecretStr

from autoscale.settings import AutoscaleSettings
from deployments.audit import Follower
from deployments.connections import open_redis
from deployments.data_dir import AUDIT_COPY, REDIS, lock_data_dir
from deployments.demo_models import install
from deployments.haproxy import end_orphan, haproxy_environment, use_haproxy
from deployments.payments import SANDBOX_SECRET, check_sandbox, open_shop
from deployments.redis_server import RedisServer, free_port
from deployments.settings import StackSettings
from deployments.speech import those_that_speak
from deployments.tracing import check_traces
from quota.packs import load_packs
from quota.settings import QuotaSettings
from quota.tiers import load_tiers
from serving.api import Keys, Users
from serving.jobs import CELL, Cell, Upkeep
from serving.plan.errors import ConfigError

LOCAL_USER = "local"
LOCAL_TIER = "unlimited"
"""Of the local user when they are made: the machine is their own."""
START_S_MAX = 1800.0
"""Weights may have to be downloaded first."""
READY_S_MAX = 15.0
"""An ingress asks the model servers before it says that it is ready."""


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
        self.url = self.settings.url
        self.api_key = ""
        self.new_admin_key: str | None = None
        self._redis: RedisServer | None = None
        self._lock: IO[str] | None = None

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
        # What cannot speak here has no replicas either, and stops nothing else.
        speak = those_that_speak(self.settings)
        self.settings = self.settings.model_copy(update={"speech": speak})
        # A mistake shows here rather than in a replica.
        load_tiers(QuotaSettings().tiers_path)
        load_packs(QuotaSettings().packs_path)
        check_traces(self.settings)
        self._prepare_payments()
        self._lock_data_dir()
        self._check_port()
        if "demo-wan" in catalog.models:
            self._install_demo_model()
        if self.settings.redis_url is None:
            self._start_redis()
        self._open_redis()
        self._follow_ledger()
        self._start_ray()
        self._start_serve()

    def _lock_data_dir(self) -> None:
        self._lock = lock_data_dir(self.settings.data_dir)
        self._exit.callback(self._lock.close)
        self._clean_up_after_a_kill()

    def _clean_up_after_a_kill(self) -> None:
        note = self.settings.data_dir / "haproxy-run-dir"
        if note.exists():
            end_orphan(Path(note.read_text()))
            note.unlink()

    def _prepare_payments(self) -> None:
        """The sandbox is for a stack with everything of its own, on this machine: it gets a secret
        that nobody else has, and that ends with it."""
        if self.settings.payments_provider == "sandbox":
            if self.settings.redis_url is not None:
                raise ConfigError(
                    "the payment sandbox gives credits for nothing, so it runs only with the Redis "
                    "that `up` starts: unset REELSERVE_REDIS_URL, or choose another --payments"
                )
            check_sandbox(self.settings)
            os.environ[SANDBOX_SECRET] = secrets.token_hex(32)
            self._exit.callback(os.environ.pop, SANDBOX_SECRET, None)

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

    def _install_demo_model(self) -> None:
        folder = self.settings.models_folder / "demo-wan"
        if not (folder / "model_index.json").exists():
            install("demo-wan", folder)

    def _start_redis(self) -> None:
        self._progress("starting redis-server")
        holding = [self._lock.fileno()] if self._lock else []
        self._redis = RedisServer(self.settings.data_dir / REDIS, holding=holding)
        self._exit.callback(self._redis.stop)
        url = self._redis.start()
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(url)})

    def _open_redis(self) -> None:
        file = self.settings.data_dir / "api-key"
        kept = file.read_text().strip() if file.exists() else ""
        self.new_admin_key, self.api_key = asyncio.run(self._prepare_redis(kept))
        if self.api_key != kept:
            file.touch(mode=0o600)
            file.write_text(self.api_key + "\n")

    def _follow_ledger(self) -> None:
        """Into an audit copy, if it is our own Redis; others run `reelserve ledger follow`."""
        if self._redis is not None:
            file = self.settings.data_dir / AUDIT_COPY
            follower = Follower(self._redis.url, file, self._progress)
            follower.start()
            self._exit.callback(follower.stop)

    async def _prepare_redis(self, kept: str) -> tuple[str | None, str]:
        """The admin key if one was made just now, and the local user's key."""
        redis = open_redis(self.settings)
        try:
            if provider := open_shop(self.settings, Cell(redis)):
                await provider.aclose()  # it has what it needs, as every ingress will
            await Cell(redis).check_schema()
            if self._redis is not None:
                await Upkeep(Cell(redis)).recover()
            keys = Keys(redis, CELL, self.settings.admin_key)
            admin_key = await keys.make_admin_key()
            return admin_key, await local_key(Users(redis, CELL), keys, kept)
        finally:
            await redis.aclose()

    def _start_ray(self) -> None:
        self._progress("starting Ray")
        # Read when ray is imported, and inherited by every process it starts.
        os.environ.update(self.settings.environment())
        # Nobody adds a GPU to this machine: a replica beyond those there are would wait for ever.
        os.environ.setdefault("REELSERVE_AUTOSCALE_GPUS_MAX", "cluster")
        os.environ.update(
            RAY_USAGE_STATS_ENABLED="0",
            RAY_SERVE_LOG_TO_STDERR="0",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),  # else Ray leaves one in the home folder
        )
        if use_haproxy(self.settings.proxy):
            os.environ.update(haproxy_environment(self._run_dir()))
        import ray

        from deployments.application import INGRESS_NODE_TYPE

        # Before init: an interrupt half way through it must stop what it has started.
        self._exit.callback(ray.shutdown)

        models = self.settings.catalog().models.values()
        scales = AutoscaleSettings().enabled
        # Logical CPUs only place replicas: enough for what the catalog asks, plus the ingress.
        cpus = sum(
            (model.scaling.max_replicas if scales and model.scaling else model.placement.replicas)
            * model.placement.num_cpus
            for model in models
        )
        speak = self.settings.speech_catalog().models.values()
        cpus += sum(model.placement.replicas * model.placement.num_cpus for model in speak)
        placements = [*(each.placement for each in models), *(each.placement for each in speak)]
        node_types = {INGRESS_NODE_TYPE, *(each.node_type for each in placements)}
        ray.init(
            address="local",
            num_cpus=self.settings.logical_cpus or int(cpus + self.settings.ingress_replicas) + 1,
            num_gpus=self.settings.logical_gpus,
            # This one machine is a node of every type.
            resources=dict.fromkeys(node_types, 1),
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            namespace="reelserve",
            _node_ip_address="127.0.0.1",
            _metrics_export_port=self.settings.metrics_port,
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        there = ray.cluster_resources().get("GPU", 0)
        wanted = sum(
            (model.scaling.min_replicas if scales and model.scaling else model.placement.replicas)
            * model.placement.num_gpus
            for model in models
        )
        if wanted > there:  # Serve would wait for them for ever
            raise ConfigError(
                f"the models {', '.join(self.settings.models)} need {wanted:g} GPU(s) "
                f"and this machine has {there:g}; serve fewer, or change placement.num_gpus"
            )

    def _run_dir(self) -> Path:
        """A folder with a short path; the data directory remembers it, for after a kill."""
        note = self.settings.data_dir / "haproxy-run-dir"
        # Not in TMPDIR: HAProxy's socket lies 57 characters below and may have 97 in all.
        folder = TemporaryDirectory(prefix="rs-", dir="/tmp")
        run_dir = self._exit.enter_context(folder)
        note.write_text(run_dir)
        return Path(run_dir)

    def _start_serve(self) -> None:
        self._progress("loading " + ", ".join(self.settings.models))
        from ray import serve

        from deployments.application import APP_NAME, deploy, logging_config

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(
            http_options={"host": self.settings.host, "port": self.settings.port},
            logging_config=logging_config(self.settings),
        )
        # Not serve.shutdown: it complains about the controller it has just ended.
        self._exit.callback(serve.delete, APP_NAME)
        try:
            deploy(self.settings, START_S_MAX)
        except ConfigError as error:
            raise ConfigError(f"{error.message}\nLogs: {self.log_dir}") from None
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        """The proxy learns of new replicas a moment after Serve calls them running."""
        deadline = time.monotonic() + START_S_MAX
        told = found = f"nothing answers at {self.url}"
        while time.monotonic() < deadline:
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=READY_S_MAX, trust_env=False)
            except httpx.HTTPError:
                pass
            else:
                if answer.is_success:
                    return
                found = _why_not(answer) or found
            if found != told:
                self._progress(found)
                told = found
            time.sleep(0.1)
        raise ConfigError(f"{found}\nLogs: {self.log_dir}")

    def watch(self) -> None:
        """To be called every second or so: starts a redis-server that died again.

        It comes back at the same address with every acknowledged job, and the replicas, which
        went on working, find it there. Raises :class:`ConfigError` if it does not start.
        """
        if self._redis is not None and not self._redis.running:
            self._progress("redis-server died; starting it again")
            self._redis.start()

    @property
    def ray_address(self) -> str:
        """Where another process, with the same RAY_AUTH_TOKEN, joins this Ray cluster."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    @property
    def engine_metrics_url(self) -> str:
        """Where Ray exports what the engines of this machine's replicas counted."""
        import ray

        return f"http://127.0.0.1:{ray._private.worker._global_node.metrics_export_port}/metrics"

    @property
    def log_dir(self) -> Path:
        """Where Ray keeps the logs of this stack's processes."""
        import ray

        return Path(ray._private.worker._global_node.get_logs_dir_path())


async def local_key(users: Users, keys: Keys, kept: str) -> str:
    """The local user's key: the one that was kept, if it works, or a new one. The user is made
    if there is none; what the operator has set for them stays."""
    await users.introduce(LOCAL_USER, LOCAL_TIER)
    if await keys.knows(kept):
        return kept
    _, key = await keys.create(LOCAL_USER)
    return key


def _why_not(answer: httpx.Response) -> str | None:
    """What ``/readyz`` says; nothing while it is Serve that answers in its place."""
    try:
        return f"not ready: {answer.json()['error']['message']}"
    except (ValueError, LookupError, TypeError):
        return None
