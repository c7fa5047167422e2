"""What an operator sees of a pool's queue: who is next, and why a job waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from serving.jobs.job import State
from serving.plan.classes import ServiceClass

# Lua has one kind of table, so its empty list is encoded as {}.
_LIST = BeforeValidator(lambda value: [] if value == {} else value)


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class TenantTop(_View):
    """``counter_ms``: leased device time over weight. ``running`` counts jobs of all pools."""

    user: str
    counter_ms: float
    waiting: int
    running: int


class ClassTop(_View):
    """A class of one pool: ``jobs`` that wait, with ``ms`` of device time. It is owed while
    ``credit_ms`` is above 0. Of the ``ready`` tenants who may be leased a job, the first."""

    service_class: ServiceClass
    jobs: int
    ms: int
    credit_ms: float
    window_ms: float
    ready: int
    tenants: Annotated[Sequence[TenantTop], _LIST]


class PoolTop(_View):
    """``order``: classes that have jobs to lease, the one that goes first at the front."""

    order: Annotated[Sequence[ServiceClass], _LIST]
    classes: Sequence[ClassTop]


class Before(_View):
    """A job that goes before another: of a class that does, or with less urgency_ms in the same."""

    id: str
    service_class: ServiceClass
    user: str
    counter_ms: float
    urgency_ms: float
    left_ms: float


class Explanation(_View):
    """Why a job waits. Only the first five are known of a job that does not.

    Its class goes first or not by ``order``; its tenant is a candidate while ``counter_ms`` is
    within ``window_ms`` of ``least_ms``, and not ``parked`` for running as many jobs as its tier
    allows; among candidates the least ``urgency_ms`` goes first. ``own_before`` is how many jobs of
    the same tenant have less work. ``before`` lists the first of those that go first now.
    """

    id: str
    state: State
    pool: str
    service_class: ServiceClass
    user: str
    order: Annotated[Sequence[ServiceClass], _LIST] = ()
    credit_ms: float = 0
    window_ms: float = 0
    counter_ms: float = 0
    least_ms: float = 0
    seat: int = 0
    urgency_ms: float = 0
    parked: bool = False
    running: int = 0
    own_before: int = 0
    queued_ms: float = 0
    attempts: int = 0
    replicas: int = 0
    before: Annotated[Sequence[Before], _LIST] = ()
