"""The load: which jobs are submitted by whom, and production's calls that submit them."""

from __future__ import annotations

import hashlib
import random
import secrets
from dataclasses import dataclass

from loadtest.errors import LoadTestError
from loadtest.queue.wire import WireCell, bulk, parse, recorded
from serving.jobs import JobQueue, JobSettings, Kind, Limits, Wish, new_id
from serving.plan.clip import ClipSpec

POOL = "wan2.1-t2v-1.3b"
QUEUED_MAX = 10_000_000
PROMPT = (
    "A red ball rolls down a green hill in the evening sun, slow tracking shot from the side, "
    "shallow depth of field; the grass bends in the wind and a small dog runs after the ball."
)


def specification(width: int = 832, height: int = 480) -> ClipSpec:
    """A clip of a usual kind; some 400 bytes of JSON."""
    return ClipSpec(
        model=POOL,
        prompt=PROMPT,
        seconds=5,
        fps=16,
        width=width,
        height=height,
        render_width=width,
        render_height=height,
        steps=50,
        guidance_scale=5.0,
        seed=1234567890,
    )


@dataclass(frozen=True)
class Submission:
    """What differs between one submission and the next."""

    job_id: str
    user: str
    est_device_ms: int
    body_sha256: str
    idempotency_key: str

    @classmethod
    def drawn(cls, draw: random.Random, user: str) -> Submission:
        """A new one by this user: of 5 s to 2 min of device time, most of them short."""
        job_id = new_id(Kind.VIDEO)
        return cls(
            job_id,
            user,
            est_device_ms=round(5000 * 24 ** draw.random() ** 2),
            body_sha256=hashlib.sha256(job_id.encode()).hexdigest(),
            idempotency_key=secrets.token_hex(16),
        )


GAPS = Submission("<id>", "<user>", 123_456_789, "<body>", "<key>")


class Submit:
    """``JobQueue.submit`` as a request with gaps, so that a million are soon encoded.

    With ``keyed`` each has an idempotency key. That the same body is a retry is remembered for
    ``retry_window_s``.
    """

    def __init__(
        self,
        cell: WireCell,
        limits: Limits,
        spec: ClipSpec,
        *,
        keyed: bool,
        retry_window_s: float = 30,
    ) -> None:
        key = GAPS.idempotency_key if keyed else None
        queue = JobQueue(cell, JobSettings(queue_max=QUEUED_MAX))
        call = queue.submit(
            GAPS.job_id,
            user=GAPS.user,
            alias="sora-2",
            spec=spec,
            est_device_ms=GAPS.est_device_ms,
            limits=limits,
            wish=Wish(
                body_sha256=GAPS.body_sha256, idempotency_key=key, retry_window_s=retry_window_s
            ),
        )
        words = parse(recorded(call))
        self._gaps: list[tuple[int, str]] = []
        for name, gap in vars(GAPS).items():
            if words.count(str(gap)) == 1:
                self._gaps.append((1 + words.index(str(gap)), name))
            elif keyed or gap != GAPS.idempotency_key:
                raise LoadTestError(f"submit takes no {name} as an argument of its own any more")
        self._pieces = [b"*%d\r\n" % len(words), *map(bulk, words)]

    def encoded(self, new: Submission) -> bytes:
        """The request of this one."""
        pieces = self._pieces.copy()
        for index, name in self._gaps:
            pieces[index] = bulk(getattr(new, name))
        return b"".join(pieces)
