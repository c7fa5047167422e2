"""`reelserve loadtest steady`: the users of the locustfile, for a while, and what they saw.

locust replaces the standard library's blocking calls with gevent's, so it runs in a process of
its own: ``python -m loadtest.steady USERS SECONDS`` prints a JSON value per line, first
``{"progress": …}`` every second, at last ``{"result": …}``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loadtest.errors import LoadTestError

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.stats import StatsEntry

PERCENTILES = {"p50_ms": 0.50, "p95_ms": 0.95, "p99_ms": 0.99}
STOP_S_MAX = 150
"""Users finish the clip they wait for, which takes at most locustfile.JOB_S_MAX."""
KILL_S = 10


def run(
    users: int, seconds: float, env: Mapping[str, str], progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run them in a process of its own; :class:`LoadTestError` when that one fails.

    ``env`` says where the stack is: REELSERVE_URL and REELSERVE_API_KEY.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "loadtest.steady", str(users), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,  # Ctrl-C is the caller's to handle
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101
            for line in process.stdout:
                said: dict[str, Any] = json.loads(line)
                if "result" in said:
                    result: dict[str, Any] = said["result"]
                    return result
                progress(said["progress"])
            raise LoadTestError(f"locust ended early, with exit code {process.wait(KILL_S)}")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)
            process.kill()


def main() -> None:
    users, seconds = int(sys.argv[1]), float(sys.argv[2])
    # Only here: importing locust patches the standard library, time.sleep among it.
    from locust.env import Environment

    from loadtest.locustfile import ClipMaker, Visitor

    environment = Environment(user_classes=[ClipMaker, Visitor], stop_timeout=STOP_S_MAX)
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    ends = time.monotonic() + seconds
    while (left_s := ends - time.monotonic()) > 0:
        time.sleep(min(left_s, 1))
        _say({"progress": _totals(environment)})
    runner.stop()
    _say({"result": _result(environment)})


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _totals(environment: Environment) -> dict[str, Any]:
    from loadtest.locustfile import JOB_NAME, JOB_TYPE, REFUSED, SUBMIT

    stats = environment.stats
    requests = [entry for key, entry in stats.entries.items() if key[1] != JOB_TYPE]
    submits, jobs = stats.get(SUBMIT, "POST"), stats.get(JOB_NAME, JOB_TYPE)
    submitted = submits.num_requests - submits.num_failures
    return {
        "requests": sum(entry.num_requests for entry in requests),
        "failures": sum(entry.num_failures for entry in requests)
        + sum(count for _, count in _exceptions(environment)),
        "refused": stats.get(REFUSED, "POST").num_requests,
        "jobs": {
            "submitted": submitted,
            "completed": jobs.num_requests - jobs.num_failures,
            "failed": jobs.num_failures,
            "unfinished": submitted - jobs.num_requests,
        },
    }


def _result(environment: Environment) -> dict[str, Any]:
    stats = environment.stats
    errors = [
        {"name": f"{each.method} {each.name}", "error": str(each.error), "count": each.occurrences}
        for each in stats.errors.values()
    ] + [
        {"name": "user", "error": what, "count": count} for what, count in _exceptions(environment)
    ]
    totals = _totals(environment)
    jobs = totals["jobs"]
    return {
        "ok": not (totals["failures"] or jobs["failed"] or jobs["unfinished"]),
        **totals,
        "entries": [_entry(each) for _, each in sorted(stats.entries.items()) if each.num_requests],
        "errors": errors,
    }


def _exceptions(environment: Environment) -> list[tuple[str, int]]:
    """What went wrong in a user's own code: no request failed, but the test did."""
    raised = environment.runner.exceptions if environment.runner else {}
    return [(str(each["msg"]), int(each["count"])) for each in raised.values()]


def _entry(entry: StatsEntry) -> dict[str, Any]:
    return {
        "method": entry.method,
        "name": entry.name,
        "requests": entry.num_requests,
        "failures": entry.num_failures,
        **{name: entry.get_response_time_percentile(at) for name, at in PERCENTILES.items()},
        "per_s": round(entry.total_rps, 2),
    }


if __name__ == "__main__":
    main()
