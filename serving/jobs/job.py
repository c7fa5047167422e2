"""A job, its states, and which state may follow which."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from serving.plan.classes import ServiceClass, ServiceTier
from serving.plan.clip import ClipSpec
from serving.plan.spec import Spec, spec_of_json
from serving.plan.speech_spec import SpeechSpec


class State(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.EXPIRED})
ACTIVE = frozenset(State) - TERMINAL

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.IN_PROGRESS, State.CANCELLED, State.EXPIRED, State.FAILED}),
    # Back to queued is a yield, or a lease that ran out.
    State.IN_PROGRESS: frozenset(TERMINAL | {State.QUEUED}),
    **{state: frozenset() for state in TERMINAL},
}


class Phase(StrEnum):
    """What a replica is doing for a job that is in progress."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    SPEAK = "speak"
    UPSCALE = "upscale"
    STORE = "store"


class Kind(StrEnum):
    """What a job makes. Its id begins with it, and its user has a list of each."""

    VIDEO = "video"
    AUDIO = "audio"

    @property
    def noun(self) -> str:
        """What one is called, to whom it belongs."""
        return "video" if self is Kind.VIDEO else "generation"


def new_id(kind: Kind) -> str:
    """An id nobody can guess: a clip's address is not its protection, but need not help."""
    return f"{kind}_{secrets.token_hex(16)}"


def kind_of(job_id: str) -> Kind:
    """What the job of this id makes."""
    return Kind.AUDIO if job_id.startswith(f"{Kind.AUDIO}_") else Kind.VIDEO


def asked_text(alias: str, service_tier: ServiceTier, spec: Spec, traceparent: str = "") -> str:
    """What was asked for, as a job's hash keeps it: no script reads it, and each field costs.
    The traceparent is there only if there is one."""
    words = [alias, service_tier, spec.model_dump_json()]
    return " ".join([*words[:2], traceparent, words[2]] if traceparent else words)


def _asked(text: str) -> tuple[str, ServiceTier, str, Spec]:
    alias, service_tier, rest = text.split(" ", 2)
    traceparent, spec = ("", rest) if rest.startswith("{") else rest.split(" ", 1)
    return alias, ServiceTier(service_tier), traceparent, spec_of_json(spec)


@dataclass(frozen=True)
class Job:
    """One accepted request, as Redis holds it.

    Set at submission: ``id``, ``user``, ``pool`` (the model's id), ``alias`` (the name the
    caller used for it), ``spec``, ``est_device_ms``, ``created_ms``, ``seq`` (order of
    submission), ``service_tier`` (as asked), ``service_class``, ``paid_from`` (``allowance``,
    ``relaxed``: beyond it, at nobody's expense, or ``credits``), ``credits`` (held for
    it, in milli-credits; once it has ended, what it cost), ``traceparent`` (of the span of its
    submission, if that is recorded), ``queued_ms`` (since when it waits, or waited: when it was
    submitted or came back). Set by leases: ``seat`` (in the rank), ``fence``, ``attempts``,
    ``lease_until_ms``, ``replica``, ``started_ms`` (of the first lease), ``preempted`` (how
    often). Set by progress: ``phase``, ``step``, ``remaining_ms``,
    ``spent_ms`` (device time so far; of what it shared, its share); ``checkpoint`` and ``preview``
    (keys in the store) with ``checkpoint_step`` and ``preview_step``, which the end forgets;
    ``left_device_ms`` (work that the checkpoint does not save). Set at the end: ``finished_ms``,
    ``expires_ms`` (when it is forgotten), ``result`` or ``error``.
    Times are Redis's clock, in milliseconds since the epoch.
    """

    id: str
    user: str
    pool: str
    alias: str
    state: State
    spec: Spec
    est_device_ms: int
    created_ms: int
    seq: int
    service_tier: ServiceTier = ServiceTier.AUTO
    service_class: ServiceClass = ServiceClass.STANDARD
    paid_from: str = "allowance"
    credits: int = 0
    traceparent: str = ""
    queued_ms: int = 0
    seat: int = 0
    fence: int = 0
    attempts: int = 0
    lease_until_ms: int = 0
    replica: str = ""
    started_ms: int = 0
    phase: Phase | None = None
    step: int = 0
    remaining_ms: int = 0
    checkpoint: str = ""
    checkpoint_step: int = 0
    left_device_ms: int = 0
    spent_ms: int = 0
    preempted: int = 0
    preview: str = ""
    preview_step: int = 0
    finished_ms: int = 0
    expires_ms: int = 0
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def kind(self) -> Kind:
        return kind_of(self.id)

    @property
    def clip(self) -> ClipSpec:
        """What a video's job is asked to make; TypeError if it makes something else."""
        if not isinstance(self.spec, ClipSpec):
            raise TypeError(f"{self.id} makes no clip")
        return self.spec

    @property
    def speech(self) -> SpeechSpec:
        """What a job is asked to say; TypeError if it makes something else."""
        if not isinstance(self.spec, SpeechSpec):
            raise TypeError(f"{self.id} says nothing")
        return self.spec

    @property
    def progress(self) -> int:
        """Percent of the steps done; 100 only when the result can be downloaded."""
        if self.state is State.COMPLETED:
            return 100
        return min(99, 100 * self.step // self.spec.steps)

    @classmethod
    def from_hash(cls, raw: Mapping[str, str]) -> Self:
        """A job from the fields of its Redis hash, as the scripts write them."""
        alias, service_tier, traceparent, spec = _asked(raw["asked"])
        return cls(
            id=raw["id"],
            user=raw["user"],
            pool=raw["pool"],
            alias=alias,
            state=State(raw["state"]),
            spec=spec,
            est_device_ms=int(raw["est_device_ms"]),
            created_ms=int(raw["created_ms"]),
            seq=int(raw["seq"]),
            service_tier=service_tier,
            traceparent=traceparent,
            service_class=ServiceClass(raw["class"]),
            paid_from=raw["from"],
            credits=int(raw.get("credits", 0)),
            seat=int(raw.get("seat", 0)),
            queued_ms=int(raw.get("queued_ms", raw["created_ms"])),
            fence=int(raw.get("fence", 0)),
            attempts=int(raw.get("attempts", 0)),
            lease_until_ms=int(raw.get("lease_until_ms", 0)),
            replica=raw.get("replica", ""),
            started_ms=int(raw.get("started_ms", 0)),
            phase=Phase(raw["phase"]) if raw.get("phase") else None,
            step=int(raw.get("step", 0)),
            remaining_ms=int(raw.get("remaining_ms", 0)),
            checkpoint=raw.get("checkpoint", ""),
            checkpoint_step=int(raw.get("checkpoint_step", 0)),
            left_device_ms=int(raw.get("left_device_ms", raw["est_device_ms"])),
            spent_ms=int(raw.get("spent_ms", 0)),
            preempted=int(raw.get("preempted", 0)),
            preview=raw.get("preview", ""),
            preview_step=int(raw.get("preview_step", 0)),
            finished_ms=int(raw.get("finished_ms", 0)),
            expires_ms=int(raw.get("expires_ms", 0)),
            result=json.loads(raw.get("result") or "{}"),
            error=json.loads(raw.get("error") or "{}"),
        )
