"""Wait for a job with a progress bar. Shared by `submit` and `jobs download --wait`."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from deployments.cli.client import Client, Reply, patiently
from deployments.cli.errors import ApiError, CliError, Interrupted
from deployments.cli.output import Output, plain

Video = dict[str, Any]

# The wire's words: the command line may be older or newer than the server.
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})

# The server suggests what suits thousands of pollers; a person wants a bar that moves.
POLL_MIN_S, POLL_MAX_S = 0.25, 2.0


def wait(api: Client, reply: Reply, out: Output) -> Video:
    """The job of ``reply`` once it has ended, well or badly.

    Trouble with the connection is borne for a minute. After that, or on Ctrl-C, raises a
    :class:`CliError` whose hint says how to go on; the job itself keeps running.
    """
    video = reply.body
    video_id = video["id"]
    try:
        bar = Bar(out.stderr)
        bar.show(video)
        with bar:
            while video["status"] not in TERMINAL:
                time.sleep(min(max(reply.poll_after_s or 0.0, POLL_MIN_S), POLL_MAX_S))
                reply = patiently(lambda: api.get("v1", "videos", video_id), bar.notice)
                video = reply.body
                bar.show(video)
    except KeyboardInterrupt:
        raise told(Interrupted(f"Interrupted; {video_id} keeps running."), video) from None
    except CliError as error:
        raise told(error, video) from error
    return video


def told(error: CliError, video: Video) -> CliError:
    """``error``, knowing the job and what its owner can do about it."""
    error.video = video
    if isinstance(error, ApiError) and error.status == 404:
        return error
    commands = (
        (("download it", "jobs download {}"),)
        if video["status"] in TERMINAL
        else (
            ("wait for it", "jobs download {} --wait"),
            ("look at it", "jobs show {}"),
            ("cancel it", "jobs cancel {}"),
        )
    )
    error.hint = "\n".join(
        f"  {what:<13}reelserve {command.format(video['id'])}" for what, command in commands
    )
    return error


def describe(video: Video) -> str:
    """Where a job stands, in a few words."""
    if video["status"] == "queued":
        ahead = video["queue_position"]
        stands = f"queued, {ahead} ahead" if ahead else "queued, next in line"
    elif video["status"] != "in_progress":
        return str(video["status"])
    elif video["phase"] == "denoise":
        stands = f"denoise {video['step']}/{video['steps']}"
    else:
        stands = video["phase"] or "starting"
    # The first attempt is counted when a replica takes the job.
    again = f", attempt {video['attempts']}" if video["attempts"] > 1 else ""
    return stands + again


def time_left(video: Video) -> str:
    """The estimate, no finer than it deserves; empty when there is none."""
    seconds = video["eta_seconds"]
    if seconds is None:
        return ""
    if seconds < 100:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


class Bar:
    """A job's progress on stderr: a live bar for a person, a line per phase for a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=100, left="")
        self._phase: tuple[str, str | None] | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, video: Video) -> None:
        text, left = describe(video), time_left(video)
        self._progress.update(
            self._task, description=text, completed=video["progress"], left=left, refresh=True
        )
        phase = (video["status"], video["phase"])
        if not self._console.is_terminal and phase != self._phase:
            self.notice(f"{text}, {left}" if left else text)
        self._phase = phase

    def notice(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(plain(text), soft_wrap=True, markup=False)
