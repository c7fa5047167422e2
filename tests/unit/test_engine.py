"""The engine's thread, with the real demo family."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import TypeVar

import pytest
import torch

from serving.engine import (
    Began,
    Decoded,
    Denoised,
    Dropped,
    Engine,
    EngineClosed,
    Event,
    FramesReady,
    Saved,
    Snapshot,
    Stepped,
    Yielded,
)
from serving.models.demo import demo_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import CheckpointPolicy
from tests.jobs import spec

WAIT_S = 60
E = TypeVar("E")


class Driver:
    """An engine, and what it said so far."""

    def __init__(self, policy: CheckpointPolicy) -> None:
        self.family = WanFamily(
            demo_pipeline(), device=torch.device("cpu"), prompt_tokens=16, fingerprint="print"
        )
        self._said: queue.Queue[Event] = queue.Queue()
        self.engine = Engine(self.family, self._said.put, policy)
        self.engine.start()

    def any(self) -> Event:
        return self._said.get(timeout=WAIT_S)

    def next(self, kind: type[E]) -> E:
        """The next event of this kind, whatever comes before it."""
        while not isinstance(event := self.any(), kind):
            pass
        return event

    def until_end(self) -> list[Event]:
        events = [self.any()]
        while not isinstance(events[-1], Decoded | Dropped | Yielded):
            events.append(self.any())
            if isinstance(events[-1], Denoised):
                self.engine.kept(events[-1].run_id)
        return events


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    marker = request.node.get_closest_marker("policy")
    driver = Driver(marker.args[0] if marker else CheckpointPolicy(every_s=3600))
    yield driver
    assert driver.engine.close(WAIT_S)


def test_the_events_of_an_undisturbed_run(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=3))
    events = driver.until_end()
    kinds = [type(event) for event in events]
    assert kinds == [Began, *[Stepped] * 3, Denoised, *[FramesReady] * 3, Decoded]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3]
    assert sum(len(event.frames) for event in events if isinstance(event, FramesReady)) == 8


def test_decoding_waits_until_the_final_latents_are_kept_and_others_run_meanwhile(
    driver: Driver,
) -> None:
    driver.engine.submit("a", spec(steps=1))
    driver.engine.submit("b", spec(steps=1))
    assert driver.next(Denoised).run_id == "a"
    assert driver.next(Denoised).run_id == "b"
    driver.engine.kept("b")
    assert driver.next(Decoded).run_id == "b"
    driver.engine.kept("a")
    assert driver.next(Decoded).run_id == "a"


@pytest.mark.policy(CheckpointPolicy(every_s=3600, every_steps=2))
def test_snapshots_come_on_schedule_one_at_a_time(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=7))
    assert driver.next(Saved).snapshot.step == 2
    # The first one is not kept yet, so there is no second.
    rest = [driver.any()]
    while not isinstance(rest[-1], Denoised):
        rest.append(driver.any())
    assert not any(isinstance(event, Saved) for event in rest)
    assert rest[-1].snapshot.step == 7


def test_a_yield_resumes_to_the_same_bits(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=6))
    expected = next(event for event in driver.until_end() if isinstance(event, Denoised))
    driver.engine.submit("b", spec(steps=6))
    driver.next(Stepped)
    driver.engine.yield_("b")
    yielded = driver.next(Yielded)
    assert isinstance(yielded.snapshot, Snapshot)
    assert 1 <= yielded.snapshot.step < 6
    driver.engine.submit("b", spec(steps=6), yielded.snapshot)
    events = driver.until_end()
    assert isinstance(events[0], Began)
    assert events[0].step == yielded.snapshot.step
    resumed = next(event for event in events if isinstance(event, Denoised))
    assert torch.equal(resumed.snapshot.tensors["latents"], expected.snapshot.tensors["latents"])


def test_a_run_that_resumes_behind_its_last_step_only_decodes(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=2))
    denoised = next(event for event in driver.until_end() if isinstance(event, Denoised))
    driver.engine.submit("b", spec(steps=2), denoised.snapshot)
    kinds = [type(event) for event in driver.until_end()]
    assert kinds == [Began, *[FramesReady] * 3, Decoded]


def test_a_run_yielded_before_its_turn_keeps_what_it_came_with(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=3))
    snapshot = driver.next(Denoised)
    driver.engine.submit("long", spec(steps=2000))
    driver.next(Stepped)
    driver.engine.submit("fresh", spec(steps=3))
    driver.engine.submit("resumed", spec(steps=3), snapshot.snapshot)
    assert driver.engine.close(WAIT_S)
    ends: dict[str, Snapshot | None] = {}
    while len(ends) < 4:
        event = driver.next(Yielded)
        ends[event.run_id] = event.snapshot
    assert ends["fresh"] is None
    assert ends["resumed"] is snapshot.snapshot


def test_a_dropped_run_leaves_without_a_trace(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=2000))
    driver.next(Stepped)
    driver.engine.drop("a")
    assert isinstance(driver.until_end()[-1], Dropped)
    driver.engine.submit("a", spec(steps=1))
    assert isinstance(driver.until_end()[-1], Decoded)


def test_a_closed_engine_takes_nothing(driver: Driver) -> None:
    assert driver.engine.close(WAIT_S)
    with pytest.raises(EngineClosed):
        driver.engine.submit("a", spec())


def test_an_idle_engine_is_not_busy(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=1))
    driver.next(Denoised)
    assert driver.engine.alive
    driver.engine.kept("a")
    driver.next(Decoded)
    assert driver.engine.close(WAIT_S)
    assert driver.engine.busy_s == 0
