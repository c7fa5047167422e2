"""`reelserve bench`: how fast the front door, the queue and the engine are, how soon speech is
heard, who goes first, and how many replicas there are."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.cli.bench_autoscale import autoscale
from deployments.cli.bench_engine import engine
from deployments.cli.bench_gpu import gpu
from deployments.cli.bench_policies import policies
from deployments.cli.bench_queue import admission, queue
from deployments.cli.bench_speech import speech
from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, Output, reporting, table
from serving.plan.errors import ReelserveError

if TYPE_CHECKING:
    from deployments.stack import LocalStack
    from serving.jobs import Cell

app = typer.Typer(
    help="Measure the front door, on a stack of its own, the queue, the engine, the order of jobs, "
    "the number of replicas.",
    no_args_is_help=True,
)
app.command("admission")(admission)
app.command("queue")(queue)
app.command("engine")(engine)
app.command("gpu")(gpu)
app.command("policies")(policies)
app.command("autoscale")(autoscale)
app.command("speech")(speech)

KEPT = frozenset({"REELSERVE_PROXY", "REELSERVE_INGRESS_REPLICAS"})
QUEUE_MAX = 1_000_000
STACK_ENVIRONMENT = (
    "The stack is new, on free ports of 127.0.0.1, its data in a new folder under TMPDIR (a short "
    "path on a real disk, for a fair figure), which is removed. Of the settings only "
    "REELSERVE_PROXY and REELSERVE_INGRESS_REPLICAS are heeded."
)
PAUSED = (
    "The model replica was stopped (SIGSTOP) meanwhile, as if it had a machine of its own, so the "
    f"jobs waited in the queue. REELSERVE_JOBS_QUEUE_MAX was {QUEUE_MAX:,}."
)
SECONDS_MAX = 15
"""Serve replaces a replica that misses three health checks of 10 s each."""
ANNOUNCED_S_MAX = 30

FIGURES = ("p50_ms", "p95_ms", "p99_ms", "max_ms")


@app.command("submit", epilog=STACK_ENVIRONMENT)
def submit(
    rate: Annotated[float, typer.Option(min=1, max=5000, help="Submissions a second.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=SECONDS_MAX, help="How long.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Measure how long a submission takes, and how many a second are possible.

    Open loop: submissions leave at their times whether or not earlier ones were answered, and
    latency counts from then. After that 32 connections, each as fast as it is answered, find
    per_s_max. GET /healthz by the same way is the baseline. Every acknowledged job is looked
    up in Redis afterwards. Exit code 1: an error, or a job that is not there.

    Examples:
      reelserve bench submit
      reelserve bench submit --rate 100 --seconds 5 --json | jq .p99_ms
    """
    from loadtest.submit import compare, measure_healthz, measure_submit
    from loadtest.summary import machine

    with reporting(as_json) as out, _own_failures():
        tell = told(out)
        with own_stack(out) as stack:
            at = machine(stack.settings.data_dir)
            replicas = asyncio.run(_replicas(stack))
            baseline = measure_healthz(stack.url, stack.api_key, rate, seconds, tell)
            with _paused(replicas):
                measured = measure_submit(stack.url, stack.api_key, rate, seconds, tell)
                states = asyncio.run(_states(stack, measured.ids))
        value = {
            "command": f"reelserve bench submit --rate {rate:g} --seconds {seconds:g}",
            **compare(measured, baseline),
            "acknowledged": len(measured.ids),
            "in_redis": dict(states),
            "errors": measured.errors + baseline.errors,
            "stack": {**described(stack), "note": PAUSED},
            "machine": at,
        }
        out.result(value, *_submit_report(value))
        if value["errors"] or states["missing"]:
            raise typer.Exit(1)


@app.command("overhead", epilog=STACK_ENVIRONMENT)
def overhead(
    jobs: Annotated[int, typer.Option(min=1, max=1000, help="How many, one by one.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure what serving adds to a job on an idle stack.

    That is the time from submitting a job until its client sees it completed, without its
    stages: text encoding, denoising, decoding, encoding and storing. "By record" is the same
    by the server's clock. Small jobs of the demo model run one after another; exit code 1 if
    one does not complete.

    Examples:
      reelserve bench overhead
      reelserve bench overhead --jobs 5 --json | jq .p50_ms
    """
    from loadtest.overhead import bench_overhead, summarise
    from loadtest.summary import machine

    with reporting(as_json) as out, _own_failures():
        with own_stack(out) as stack:
            at = machine(stack.settings.data_dir)
            tell = told(out)
            times = bench_overhead(
                stack.url,
                stack.api_key,
                jobs=jobs,
                progress=lambda done: tell(f"{done} of {jobs} jobs") if done % 5 == 0 else None,
            )
        value = {
            "command": f"reelserve bench overhead --jobs {jobs}",
            **summarise(times),
            "stack": described(stack),
            "machine": at,
        }
        out.result(value, *_overhead_report(value))


@contextmanager
def own_stack(out: Output) -> Iterator[LocalStack]:
    """A stack with nothing in it, in a temporary folder, gone afterwards.

    SIGTERM ends it in order, as Ctrl-C does.
    """
    from deployments.settings import ENV_PREFIX, StackSettings
    from deployments.stack import LocalStack

    for name in [name for name in os.environ if name.startswith(ENV_PREFIX) and name not in KEPT]:
        del os.environ[name]  # they may name a Redis that others use
    os.environ["REELSERVE_JOBS_QUEUE_MAX"] = str(QUEUE_MAX)
    # A replica that starts amid it would take the cores that are measured.
    os.environ["REELSERVE_AUTOSCALE_ENABLED"] = "false"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with TemporaryDirectory(prefix="reelserve-bench-") as folder:
            settings = StackSettings.load(data_dir=Path(folder), port=0)
            with LocalStack(settings, told(out)) as stack:
                yield stack
    except ReelserveError as error:
        raise CliError(error.message, code=error.code) from None


@contextmanager
def _paused(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP for the model replicas of our own stack, and SIGCONT afterwards.

    Serve must not have noticed: a replica that it starts instead takes CPU, and jobs.
    """
    from ray import serve

    from loadtest.errors import LoadTestError

    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
        for app in serve.status().applications.values():
            if app.status != "RUNNING":
                raise LoadTestError("Serve replaced the stopped replica; try fewer --seconds")
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def _own_failures() -> Iterator[None]:
    """A benchmark that cannot go on becomes a message."""
    from loadtest.errors import LoadTestError

    try:
        yield
    except LoadTestError as error:
        raise CliError(f"the benchmark failed: {error}", code="benchmark_failed") from error


async def _replicas(stack: LocalStack) -> list[int]:
    """The processes of the model replicas, once each has announced itself."""
    from loadtest.errors import LoadTestError
    from serving.jobs import JobQueue

    models = stack.settings.catalog().models
    wanted = sum(model.placement.replicas for model in models.values())
    deadline = time.monotonic() + ANNOUNCED_S_MAX
    async with _cell(stack) as cell:
        while time.monotonic() < deadline:
            pools = await JobQueue(cell).pools(list(models))
            pids = [replica.pid for pool in pools.values() for replica in pool.replicas]
            if len(pids) == wanted:
                return pids
            await asyncio.sleep(0.2)
    raise LoadTestError(f"not every model replica was there within {ANNOUNCED_S_MAX} s")


async def _states(stack: LocalStack, ids: Sequence[str]) -> Counter[str]:
    """How many of these jobs Redis has in each state; "queued" only if it is in the queue too."""
    async with _cell(stack) as cell, cell.redis.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hmget(cell.key("job", job_id), "state", "pool")
        records = await pipe.execute()
        for job_id, (_, pool) in zip(ids, records, strict=True):
            pipe.zscore(cell.key("queued", pool or ""), job_id)
        places = await pipe.execute()
    return Counter(
        "missing" if state is None or (state == "queued" and place is None) else state
        for (state, _), place in zip(records, places, strict=True)
    )


@asynccontextmanager
async def _cell(stack: LocalStack) -> AsyncIterator[Cell]:
    from deployments.connections import open_redis
    from serving.jobs import Cell

    redis = open_redis(stack.settings)
    try:
        yield Cell(redis)
    finally:
        await redis.aclose()


def described(stack: LocalStack) -> dict[str, Any]:
    from deployments.haproxy import use_haproxy
    from deployments.redis_server import find_redis_server, server_version

    redis = ".".join(map(str, server_version(find_redis_server())))
    return {
        "proxy": "haproxy" if use_haproxy(stack.settings.proxy) else "serve",
        "ingress_replicas": stack.settings.ingress_replicas,
        "redis": f"redis-server {redis}, appendfsync always",
    }


def told(out: Output) -> Callable[[str], None]:
    return lambda text: out.note(f"… {text}")


def _submit_report(value: Mapping[str, Any]) -> Iterator[Any]:
    base = value["baseline"]
    states = ", ".join(f"{count:,} {state}" for state, count in value["in_redis"].items())
    heads = ("", *FIGURES, "per_s_max")
    rows = [
        ("POST /v1/videos", *(value[name] for name in heads[1:])),
        (base["request"], *(base[name] for name in heads[1:])),
        ("ratio", *(f"{value['ratio'].get(name, '-')} x" for name in heads[1:])),
    ]
    yield table(*heads, rows=rows)
    yield (
        f"\n{value['acknowledged']:,} jobs acknowledged; in Redis: {states}; "
        f"{value['errors']} errors; {_verdict(value)}"
    )
    yield from _errors(value)
    yield PAUSED
    yield where(value)


def _errors(value: Mapping[str, Any]) -> Iterator[str]:
    for phase in value["phases"].values():
        for loop in phase.values():
            yield from (f"{count} times: {error}" for error, count in loop["errors"].items())


def _overhead_report(value: Mapping[str, Any]) -> Iterator[Any]:
    base, rows = value["baseline"], value["rows"]
    labels = {
        "overhead": "overhead",
        "overhead_by_record": "  by record",
        "submit": "submission",
        "queued": "wait for a replica",
        "stages": "stages (not serving)",
    }
    yield table(
        "",
        *FIGURES,
        rows=[
            *((label, *(rows[name][f] for f in FIGURES)) for name, label in labels.items()),
            (base["request"], *(base[name] for name in FIGURES)),
            ("ratio", *(f"{value['ratio'].get(name, '-')} x" for name in FIGURES)),
        ],
    )
    yield f"\n{value['jobs']} jobs, one after another; {_verdict(value)}"
    yield where(value)


def _verdict(value: Mapping[str, Any]) -> str:
    target = value["target"]
    return f"target p50 {target['p50_ms']:g} ms: {'met' if target['met'] else 'missed'}"


def where(value: Mapping[str, Any]) -> str:
    at, stack = value["machine"], value["stack"]
    return "; ".join(
        [
            f"{value['command']}: {at['measured_at']}, {at['cores']} cores of {at['cpu']}",
            f"load {at['load_before']} before",
            f"fsync {at['fsync_p50_ms']} ms",
            f"{stack['ingress_replicas']} ingress replicas behind {stack['proxy']}",
            stack["redis"],
            f"Python {at['python']}",
            ", ".join(f"{name} {found}" for name, found in at["versions"].items()),
        ]
    )
