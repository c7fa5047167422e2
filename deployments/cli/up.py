"""`reelserve up`: the whole stack in the foreground."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.errors import CliError
from deployments.cli.output import reporting
from serving.plan.errors import ReelserveError


class Payments(StrEnum):
    NONE = "none"
    STRIPE = "stripe"
    SANDBOX = "sandbox"


SANDBOX_IS_ON = """\
The payment sandbox is on: credits are bought for play money. To try the shop:
  reelserve credits packs
"""


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the queue, clips and models are kept.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings.", exists=True, dir_okay=False)
    ] = None,
    payments: Annotated[
        Payments | None,
        typer.Option(help="Who takes the money for credits; the sandbox takes none."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object once ready.")
    ] = False,
) -> None:
    """Start Redis, Ray and the models on this machine; Ctrl-C stops them all.

    Without options it listens on http://127.0.0.1:8000, serves the demo model and keeps
    everything in ~/.local/share/reelserve, where the next start finds it again. Every setting
    can also be given as REELSERVE_… or in the YAML file: host, port, data_dir, redis_url,
    artifacts_url, models_dir, catalog_dirs, models, ingress_replicas, payments_provider, admin_key;
    the two secrets, redis_url and admin_key, only as variables. With an s3:// artifacts_url the
    usual AWS_… variables apply, and with --payments stripe REELSERVE_PAYMENTS_STRIPE_….

    Examples:
      reelserve up --port 9000 --data-dir ./data
      reelserve up --payments sandbox      (credits for play money, to try a shop)
    """
    from deployments.settings import StackSettings
    from deployments.stack import LocalStack

    def progress(message: str) -> None:
        print(f"… {message}", file=sys.stderr, flush=True)

    # A stop that is asked for while we start must undo what was started, like an error.
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    with reporting(as_json), _our_errors():
        settings = StackSettings.load(
            config, host=host, port=port, data_dir=data_dir, payments_provider=payments
        )
        with LocalStack(settings, progress) as stack:
            stopped = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            if as_json:
                ready = {
                    "url": stack.url,
                    "api_key": stack.api_key,
                    "admin_key": stack.new_admin_key,
                    "data_dir": str(stack.settings.data_dir),
                    "payments": stack.settings.payments_provider,
                    "log_dir": str(stack.log_dir),
                    "ray_address": stack.ray_address,
                    "engine_metrics_url": stack.engine_metrics_url,
                }
                print(json.dumps(ready), flush=True)
            else:
                sandbox = stack.settings.payments_provider == "sandbox"
                print(_welcome(stack.url, stack.api_key, stack.new_admin_key, sandbox), flush=True)
                print(f"Logs: {stack.log_dir}", flush=True)
            while not stopped.wait(1.0):
                stack.watch()
            progress("stopping: running jobs go back to the queue")
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C does not wait
    progress("stopped")


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except ReelserveError as error:
        raise CliError(error.message, code=error.code) from None


def _interrupt() -> None:
    raise KeyboardInterrupt


def _welcome(url: str, api_key: str, admin_key: str | None, sandbox: bool) -> str:
    admin = (
        f"Admin key (shown only now): {admin_key}\n  export REELSERVE_ADMIN_KEY={admin_key}\n"
        if admin_key
        else ""
    )
    return f"""\
reelserve ready at {url}
API key: {api_key}
{admin}{SANDBOX_IS_ON if sandbox else ""}
Try it:
  curl {url}/v1/videos -H 'Authorization: Bearer {api_key}' \\
    -H 'Content-Type: application/json' -d '{{"prompt": "a red ball moving right"}}'
or, in another terminal:
  export REELSERVE_URL={url} REELSERVE_API_KEY={api_key}
  reelserve submit "a red ball moving right"
Ctrl-C stops it; jobs and clips are kept."""
