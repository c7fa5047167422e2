"""`reelserve bench admission` and `bench queue`: the queue's scripts on a Redis of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import JsonOption, Output, reporting, table, verdicts

REDIS = (
    "The Redis is new, on a free port of 127.0.0.1 with production's settings, its log in a new "
    "folder under TMPDIR (a real disk, for a fair figure), which is removed."
)
FIGURES = ("p50_ms", "p95_ms", "p99_ms", "max_ms")


def admission(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer requests: seconds, wider errors.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure submissions against bare SETs, on one connection and on 50, in turns.

    A submission is the script that every POST runs: idempotency key, rate limit, the queue's and
    the user's bounds, allowance, and the job with its places. A SET stores the bytes of the job's
    specification. Both are written to disk before they are answered. client_share is how busy the
    client was: near 1, it was what held the rate down. Exit code 1: Redis refuses something.

    Examples:
      reelserve bench admission
      reelserve bench admission --quick --json | jq .admission_vs_set
    """
    with reporting(as_json) as out:
        from loadtest.queue.admission import Plan, bench_admission

        plan = Plan.quick() if quick else Plan.full()
        value = _measured(
            out,
            "reelserve bench admission" + (" --quick" if quick else ""),
            lambda url, tell: bench_admission(url, plan, tell),
        )
        out.result(value, *_admission_report(value))


def queue(
    jobs: Annotated[
        int | None, typer.Option(min=1000, max=5_000_000, help="That wait. [default: 1000000]")
    ] = None,
    tenants: Annotated[
        int | None, typer.Option(min=10, max=1_000_000, help="Whose they are. [default: 10000]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="20000 jobs of 500 tenants, and fewer leases.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure leases from a queue of a million jobs of 10,000 tenants in three classes.

    The jobs come by the script that a POST runs. Then replicas lease, heartbeat and finish them
    by production's scripts, while as many new ones come: first at the pace of 200 replicas whose
    jobs take five seconds; then four that never pause, so that Redis is as busy as it can be, which
    lease_p99_ms is of; then the same while Redis rewrites its log; then a single one, which shows
    how much of each call was inside Redis.
    A million jobs take minutes, 1.5 GB of memory and 5 of disk.
    Exit code 1: Redis refuses something.

    Examples:
      reelserve bench queue
      reelserve bench queue --quick --json | jq .lease_p99_ms
    """
    with reporting(as_json) as out:
        from dataclasses import replace

        from loadtest.queue.backlog import Plan, bench_queue

        plan = Plan.quick() if quick else Plan()
        plan = replace(plan, jobs=jobs or plan.jobs, tenants=tenants or plan.tenants)
        value = _measured(
            out,
            f"reelserve bench queue --jobs {plan.jobs} --tenants {plan.tenants}",
            lambda url, tell: bench_queue(url, plan, tell),
        )
        out.result(value, *_queue_report(value))


def _measured(
    out: Output,
    command: str,
    bench: Callable[[str, Callable[[str], None]], dict[str, Any]],
) -> dict[str, Any]:
    """The figures, and where they come from."""
    from loadtest.errors import LoadTestError
    from loadtest.summary import machine
    from serving.plan.errors import ReelserveError

    try:
        with _own_redis() as (url, version, folder):
            where = machine(folder)
            found = bench(url, lambda text: out.note(f"… {text}"))
    except (LoadTestError, ReelserveError, OSError) as error:
        raise CliError(f"the benchmark failed: {error}", code="benchmark_failed") from error
    return {
        "command": command,
        **found,
        "redis": f"redis-server {version}, appendfsync always",
        "machine": where,
    }


@contextmanager
def _own_redis() -> Iterator[tuple[str, str, Path]]:
    from deployments.redis_server import RedisServer, find_redis_server, server_version

    executable = find_redis_server()
    with TemporaryDirectory(prefix="reelserve-bench-") as name:
        folder = Path(name)
        server = RedisServer(folder / "redis", executable)
        # SIGTERM ends it in order, as Ctrl-C does: the log may have gigabytes.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield server.start(), ".".join(map(str, server_version(executable))), folder
        finally:
            server.stop()
            signal.signal(signal.SIGTERM, before)


def _admission_report(value: Mapping[str, Any]) -> Iterator[Any]:
    heads = ("per_s", "p50_ms", "p99_ms", "server_us", "client_share")
    for count, ratio in value["admission_vs_set"].items():
        least, most = value["admission_vs_set_spread"][count]
        yield table(
            f"{count} connection{'s' if count > 1 else ''}",
            *heads,
            rows=[
                (name, *(value[key][count][head] for head in heads))
                for name, key in (("submission", "admission"), ("SET", "set"))
            ],
        )
        yield f"a submission at {ratio} times the rate of a SET ({least} to {most})\n"
    yield verdicts(value["targets"])
    if value["client_bound"]:
        yield "The client was the bottleneck of: " + ", ".join(value["client_bound"])
    yield _where(value)


def _queue_report(value: Mapping[str, Any]) -> Iterator[Any]:
    mode = value["mode"]
    for title, key in (
        (f"{mode['fleet_replicas']:,} replicas, jobs of {mode['job_s']:g} s", "fleet"),
        (f"{mode['replicas']} replicas without a pause", "together"),
        (f"the same from when Redis rewrites its log, {value['rewrite_s']} s", "rewriting"),
    ):
        yield table(
            title,
            "calls",
            *FIGURES,
            rows=[
                (name, *(found[head] for head in ("calls", *FIGURES)))
                for name, found in value[key].items()
            ],
        )
        yield ""
    yield table(
        "one replica",
        "calls",
        *FIGURES,
        "p50 ms inside Redis",
        "share inside Redis",
        rows=[
            (
                name,
                *(found[head] for head in ("calls", *FIGURES)),
                found["redis_p50_ms"],
                f"{found['redis_share']:.0%}",
            )
            for name, found in value["alone"].items()
        ],
    )
    fleet, scripts = value["fleet_evalsha"], value["evalsha"]
    yield (
        f"\n{value['jobs']:,} jobs of {value['tenants']:,} tenants waited, "
        f"{value['bytes_per_job']:,} bytes each; {fleet['per_s']:,} scripts a second kept Redis "
        f"busy for {fleet['busy_share']:.0%}, {scripts['per_s']:,} of those that never pause for "
        f"{scripts['busy_share']:.0%}\n"
    )
    yield verdicts(value["targets"])
    yield _where(value)


def _where(value: Mapping[str, Any]) -> str:
    at = value["machine"]
    return "; ".join(
        [
            f"\n{value['command']}: {at['measured_at']}, {at['cores']} cores of {at['cpu']}",
            f"load {at['load_before']} before",
            f"fsync {at['fsync_p50_ms']} ms",
            value["redis"],
            f"Python {at['python']}",
        ]
    )
