"""``make demo``: a whole stack, one prompt through the official OpenAI client, one clip; and then
credits are bought (:mod:`deployments.demo_shop`)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

from openai import DefaultHttpxClient, OpenAI
from openai.types import Video
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deployments.demo_shop import DemoFailed, prepare, shop
from deployments.settings import ENV_PREFIX, StackSettings
from deployments.stack import LocalStack
from serving.plan.errors import ConfigError

PROMPT = "a red ball moving right on a white background"
SEED = 1
STAGES = {
    "queued_s": "waiting in the queue",
    "encode_s": "text encoding",
    "denoise_s": "denoising",
    "decode_s": "decoding",
    "store_s": "encoding and storing",
    "total_s": "submission to clip",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo.mp4"), help="the clip's file")
    parser.add_argument("--prompt", default=PROMPT)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="reelserve-demo-") as folder:
            for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
                del os.environ[name]  # they may name a Redis that others use
            settings = StackSettings.load(data_dir=Path(folder), port=0, **prepare(Path(folder)))
            with LocalStack(settings, lambda text: console.print(f"[dim]… {text}")) as stack:
                console.print(f"ready at {stack.url} after {time.monotonic() - began:.1f} s")
                # The SDK marks its video methods as deprecated, since OpenAI's own service closed.
                warnings.simplefilter("ignore", DeprecationWarning)
                client = OpenAI(
                    base_url=f"{stack.url}/v1",
                    api_key=stack.api_key,
                    http_client=DefaultHttpxClient(trust_env=False),  # no proxy to this machine
                )
                ok = generate(client, console, arguments.prompt, arguments.out)
                if ok:
                    shop(stack, console)
                console.print("[dim]… stopping everything")
    except (ConfigError, DemoFailed) as error:
        console.print(f"[red]{escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("[red]interrupted; everything is stopped")
        return 130
    return 0 if ok else 1


def generate(client: OpenAI, console: Console, prompt: str, out: Path) -> bool:
    """Submit, wait with a bar, download and report; False if the job did not complete."""
    video = client.videos.create(
        model="sora-2", prompt=prompt, seconds="4", extra_body={"seed": SEED}
    )
    console.print(f"submitted {video.id}: {prompt!r}")
    with Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("queued", total=100)
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(client, video.id, bar, task, ended))
        watcher.start()
        try:
            video = client.videos.poll(video.id)
        finally:
            ended.set()
            watcher.join()
        bar.update(task, completed=video.progress, description=video.status)
    if video.status != "completed":
        console.print(f"[red]{video.status}: {video.error.message if video.error else 'no reason'}")
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    client.videos.download_content(video.id).write_to_file(out)
    _report(console, video, out)
    return True


def _watch(
    client: OpenAI, video_id: str, bar: Progress, task: TaskID, ended: threading.Event
) -> None:
    while not ended.wait(0.3):
        video = client.videos.retrieve(video_id)
        phase = (video.model_extra or {}).get("phase") or video.status
        bar.update(task, completed=video.progress, description=phase)


def _report(console: Console, video: Video, out: Path) -> None:
    extra = video.model_extra or {}
    console.print(
        f"\n[bold]{out}[/]: {video.seconds} s at {video.size}, {out.stat().st_size:,} bytes"
    )
    from deployments.demo_models.video.checker import frames_of, see

    console.print(f"  a checker sees [bold]{see(frames_of(out.read_bytes()))}")
    for name, label in STAGES.items():
        console.print(f"  {extra['timings'][name]:7.2f} s  {label}")


if __name__ == "__main__":
    sys.exit(main())
