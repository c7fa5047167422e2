"""The engine's thread, with the real demo family."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
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
    Failed,
    FramesReady,
    Previewed,
    Saved,
    Snapshot,
    Stepped,
    Yielded,
)
from serving.engine.checkpoint import Copier
from serving.engine.run import Run
from serving.engine.saving import SaveSchedule
from serving.models.family import NO_INPUTS, Denoising, Frames
from serving.models.previews import Picture
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, CheckpointPolicy, PreviewPolicy
from serving.plan.clip import ClipSpec
from serving.plan.errors import InvalidOutput, OutOfMemory
from serving.plan.rank import Contender
from tests.jobs import spec

WAIT_S = 60
E = TypeVar("E")


class Poisonable(WanFamily):
    """The real family, except that prompts which say so break a step or its numbers, and that
    forwards with more than so many rows find no memory."""

    rows_that_fit = 256
    decodes_that_fail = 0

    def decode(self, run: Denoising) -> Iterator[Frames]:
        for index, frames in enumerate(super().decode(run)):
            if index == 1 and self.decodes_that_fail:
                self.decodes_that_fail -= 1
                torch.empty(2**60)
            yield frames

    def step(self, batch: Sequence[Denoising]) -> None:
        if any(run.spec.prompt == "raise" for run in batch):
            raise RuntimeError("out of luck")
        carried = sum(run.rows for run in batch)
        if self._buckets.rows(self._tokens(batch[0].latents), carried) > self.rows_that_fit:
            torch.empty(2**60)
        super().step(batch)
        for run in batch:
            if run.spec.prompt == "nan":
                run.latents = run.latents * float("nan")

    def preview(self, run: Denoising) -> Picture:
        if run.spec.prompt == "unseen":
            self.unseen += 1
            raise RuntimeError("no picture")
        return super().preview(run)

    unseen = 0


class Driver:
    """An engine, and what it said so far."""

    def __init__(
        self,
        policy: CheckpointPolicy,
        batch: BatchPolicy,
        previews: PreviewPolicy | None = None,
        *,
        decode_beside: bool = False,
    ) -> None:
        self.pipeline = tiny_pipeline()
        self.forwards: list[int] = []
        self.pipeline.transformer.register_forward_hook(
            lambda module, inputs, output: self.forwards.append(len(output[0]))
        )
        self.family = Poisonable(
            self.pipeline,
            device=torch.device("cpu"),
            prompt_tokens=16,
            fingerprint="print",
            batch=batch,
            decode_beside=decode_beside,
        )
        self._said: queue.Queue[Event] = queue.Queue()
        self.engine = Engine(self.family, self._said.put, policy, previews)

    def finish(self, runs: dict[str, ClipSpec]) -> dict[str, torch.Tensor | Exception]:
        """Everything that is waiting when the engine starts; final latents, or the error."""
        for run_id, each in runs.items():
            self.engine.submit(run_id, each)
        self.engine.start()
        ends: dict[str, torch.Tensor | Exception] = {}
        while len(ends) < len(runs):
            event = self.any()
            if isinstance(event, Denoised):
                ends[event.run_id] = event.snapshot.tensors["latents"]
                self.engine.kept(event.run_id)
            elif isinstance(event, Failed):
                ends[event.run_id] = event.error
        return ends

    def any(self) -> Event:
        return self._said.get(timeout=WAIT_S)

    def next(self, kind: type[E]) -> E:
        """The next event of this kind, whatever comes before it."""
        while not isinstance(event := self.any(), kind):
            pass
        return event

    def silent(self) -> bool:
        """Nothing more comes, although there would have been time for several steps."""
        time.sleep(0.3)
        return self._said.empty()

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
    policy, *previews = marker.args if marker else [CheckpointPolicy(every_s=3600)]
    driver = Driver(policy, BatchPolicy(), *previews)
    driver.engine.start()
    yield driver
    assert driver.engine.close(WAIT_S)


@pytest.fixture
def drivers() -> Iterator[Callable[..., Driver]]:
    """Makes engines that are not started yet, so that what is submitted begins together."""
    made: list[Driver] = []

    def make(**batch: Any) -> Driver:
        made.append(Driver(CheckpointPolicy(every_s=3600), BatchPolicy(**batch)))
        return made[-1]

    yield make
    for driver in made:
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
    # Until the first one is kept there is no second, and no final one either.
    steps = [driver.any() for _ in range(5)]
    assert [event.step for event in steps if isinstance(event, Stepped)] == [3, 4, 5, 6, 7]
    assert driver.silent()
    driver.engine.kept("a")
    assert driver.next(Denoised).snapshot.step == 7
    assert driver.silent(), "and no decoding before that is kept"
    driver.engine.kept("a")
    driver.next(Decoded)


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


def test_runs_that_are_stopped_end_the_step_that_they_are_in_and_make_no_other(
    drivers: Callable[..., Driver],
) -> None:
    driver = drivers(rows=4)
    names = {"a", "b"}
    for name in names:
        driver.engine.submit(name, spec(steps=2000))
    driver.engine.start()
    while driver.next(Stepped).rows < 4:
        pass
    steps = driver.engine.stop()
    with pytest.raises(EngineClosed):
        driver.engine.submit("late", spec())
    left = {event.run_id: event.snapshot for event in (driver.next(Yielded), driver.next(Yielded))}
    assert steps.keys() == left.keys() == names
    for name, snapshot in left.items():
        assert snapshot is not None
        assert snapshot.step - steps[name] in (0, 1)


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


# Batches.


def latents(end: torch.Tensor | Exception) -> torch.Tensor:
    """What a run ended with, which must not be an error."""
    assert isinstance(end, torch.Tensor), end
    return end


MIX = {
    "guided": spec(seed=1, steps=5),
    "unguided": spec(seed=2, steps=3, guidance_scale=1.0),
    "stronger": spec(seed=3, steps=4, guidance_scale=9.0, negative_prompt="blur"),
    "long": spec(seed=4, steps=7, prompt="a blue square"),
}


def test_unlike_jobs_share_every_forward_and_leave_one_by_one(
    drivers: Callable[..., Driver],
) -> None:
    driver = drivers(rows=8)
    driver.finish(MIX)
    # Seven rows, then fewer as jobs end; as many forwards as the longest job has steps.
    assert driver.forwards == [8] * 7


def test_one_run_of_a_forward_leads_it(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=8)
    for name, each in MIX.items():
        driver.engine.submit(name, each)
    driver.engine.start()
    leads = ended = 0
    while ended < len(MIX):
        match driver.any():
            case Stepped(leads=True, rows=rows):
                leads += 1
                assert rows <= 8
            case Denoised(run_id=run_id):
                ended += 1
                driver.engine.kept(run_id)
    assert leads == len(driver.forwards)


def test_a_jobs_bits_depend_on_neither_neighbours_nor_place(
    drivers: Callable[..., Driver],
) -> None:
    alone = {name: drivers(rows=8).finish({name: each})[name] for name, each in MIX.items()}
    for order in (list(MIX), list(MIX)[::-1], ["long", "unguided"]):
        together = drivers(rows=8).finish({name: MIX[name] for name in order})
        for name in order:
            assert torch.equal(latents(together[name]), latents(alone[name])), f"{name} in {order}"


def test_fast_takes_the_smallest_forward_that_holds_the_rows(
    drivers: Callable[..., Driver],
) -> None:
    driver = drivers(rows=8, reproducible="fast")
    driver.finish(MIX)
    # 7 rows for three steps, 6 without the unguided, 4 without the stronger, 2 for the long.
    assert driver.forwards == [8, 8, 8, 8, 4, 2, 2]


def test_a_full_forward_leaves_the_youngest_to_the_next(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=4)
    driver.finish({f"{i}": spec(seed=i, steps=2) for i in range(3)})
    assert driver.forwards == [4] * 4


def test_shapes_are_served_in_turn(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=8)
    ends = driver.finish({"a": spec(steps=2), "b": spec(steps=2, render_width=128)})
    assert len(driver.forwards) == 4
    assert all(isinstance(end, torch.Tensor) for end in ends.values())


@pytest.mark.parametrize("harm", ["raise", "nan"])
def test_a_poison_job_takes_no_neighbour_with_it(drivers: Callable[..., Driver], harm: str) -> None:
    alone = drivers(rows=8).finish({"guided": MIX["guided"]})["guided"]
    driver = drivers(rows=8)
    ends = driver.finish(
        {"before": spec(seed=9), "poison": spec(prompt=harm), "guided": MIX["guided"]}
    )
    assert torch.equal(latents(ends["guided"]), latents(alone))
    assert isinstance(ends["before"], torch.Tensor)
    assert isinstance(ends["poison"], RuntimeError if harm == "raise" else InvalidOutput)
    if harm == "nan":
        assert "after step 1 " in str(ends["poison"])
    assert driver.engine.alive


def test_buckets_are_powers_of_two_by_shape() -> None:
    policy = BatchPolicy(rows=16, rows_from_tokens={100: 8, 1000: 2})
    assert [policy.rows_max(tokens) for tokens in (4, 99, 100, 999, 1000)] == [16, 16, 8, 8, 2]
    assert policy.bucket(4, 3) == 16
    fast = policy.model_copy(update={"reproducible": "fast"})
    assert [fast.bucket(4, rows) for rows in (1, 2, 3, 5)] == [1, 2, 4, 8]
    for wrong in ({"rows": 6}, {"rows": 1}, {"rows_from_tokens": {5: 3}}):
        with pytest.raises(ValueError, match=r"rows|greater"):
            BatchPolicy.model_validate(wrong)


# Memory.


@pytest.mark.parametrize("reproducible", ["strict", "fast"])
def test_a_batch_that_finds_no_memory_is_split(
    drivers: Callable[..., Driver], reproducible: str
) -> None:
    driver = drivers(rows=8, reproducible=reproducible)
    driver.family.rows_that_fit = 4
    ends = driver.finish({f"{i}": spec(seed=i, steps=2) for i in range(4)})
    assert driver.forwards == [4] * 4
    # Forwards of four rows from the start give these bits.
    asked = drivers(rows=4, reproducible=reproducible)
    expected = asked.finish({f"{i}": spec(seed=i, steps=2) for i in range(4)})
    for name, end in ends.items():
        assert torch.equal(latents(end), latents(expected[name]))
    # And nobody takes its checkpoints for those of forwards of eight.
    assert driver.family.fingerprint != asked.family.fingerprint


def test_only_the_job_that_does_not_fit_alone_fails(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=4, reproducible="fast")
    driver.family.rows_that_fit = 1
    ends = driver.finish({"guided": spec(), "unguided": spec(guidance_scale=1.0)})
    assert isinstance(ends["guided"], OutOfMemory)
    assert isinstance(ends["unguided"], torch.Tensor)
    assert driver.engine.alive


def test_a_run_that_cannot_be_saved_on_the_way_goes_on(driver: Driver) -> None:
    driver.engine.close(WAIT_S)
    driver = Driver(CheckpointPolicy(every_s=3600, every_steps=1), BatchPolicy())
    copies = count()

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if next(copies) == 0:
            torch.empty(2**60)
        return tensor.clone()

    driver.engine._copy.__class__ = type("Failing", (Copier,), {"__call__": lambda _, t: copy(t)})
    driver.engine.start()
    driver.engine.submit("a", spec(steps=3))
    assert driver.next(Saved).snapshot.step == 2, "the first could not be made"
    driver.engine.kept("a")
    driver.engine.kept(driver.next(Denoised).run_id)
    driver.next(Decoded)
    assert driver.engine.close(WAIT_S)


def test_final_latents_are_safe_before_others_go_on(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=4)
    now_ms = int(time.monotonic() * 1000)
    driver.engine.submit("long", spec(steps=2), contender=Contender(now_ms, 600_000, 600_000))
    driver.engine.submit("short", spec(steps=20), contender=Contender(now_ms, 30_000, 30_000))
    driver.engine.start()
    before = []
    while not isinstance(event := driver.any(), Denoised):
        before.append(event)
    assert event.run_id == "long"
    assert sum(isinstance(each, Stepped) for each in before) == 4


def test_those_whom_a_poison_job_made_step_alone_share_again(
    drivers: Callable[..., Driver],
) -> None:
    driver = drivers(rows=8)
    jobs = {f"{i}": spec(seed=i, steps=6) for i in range(3)}
    driver.finish({**jobs, "poison": spec(prompt="raise")})
    # At most one forward each before the poison's turn came.
    assert len(driver.forwards) <= 6 + len(jobs)


@pytest.mark.parametrize("beside", [False, True])
def test_a_decode_that_found_no_memory_goes_on_where_it_was(beside: bool) -> None:
    clips = []
    for failures in (0, 1):
        driver = Driver(CheckpointPolicy(every_s=3600), BatchPolicy(), decode_beside=beside)
        driver.family.decodes_that_fail = failures
        driver.engine.start()
        driver.engine.submit("a", spec(steps=1))
        events = driver.until_end()
        assert isinstance(events[-1], Decoded)
        clips.append([event.frames for event in events if isinstance(event, FramesReady)])
        assert driver.family.decodes_that_fail == 0
        assert driver.engine.close(WAIT_S)
    expected, got = (np.concatenate(frames) for frames in clips)
    assert np.array_equal(got, expected)


def test_a_decode_that_never_fits_fails_its_job(driver: Driver) -> None:
    driver.family.decodes_that_fail = 2
    driver.engine.submit("a", spec(steps=1))
    driver.engine.kept(driver.next(Denoised).run_id)
    assert isinstance(driver.next(Failed).error, OutOfMemory)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lost_device_ends_the_engine(drivers: Callable[..., Driver]) -> None:
    driver = drivers()

    def lost(batch: Sequence[Denoising]) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    driver.family.step = lost  # type: ignore[method-assign]
    driver.engine.submit("a", spec())
    driver.engine.start()
    assert isinstance(driver.any(), Began)
    deadline = time.monotonic() + WAIT_S
    while driver.engine.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not driver.engine.alive


# Order.


def test_the_run_that_ranks_first_leads(drivers: Callable[..., Driver]) -> None:
    driver = drivers(rows=2)
    now_ms = int(time.monotonic() * 1000)
    works = {"long": 60_000, "short": 1_000, "middle": 20_000}
    for name, ms in works.items():
        driver.engine.submit(name, spec(steps=3), contender=Contender(now_ms, ms, ms))
    driver.engine.start()
    ended: list[str] = []
    while len(ended) < len(works):
        event = driver.any()
        if isinstance(event, Denoised):
            ended.append(event.run_id)
            driver.engine.kept(event.run_id)
    assert ended == ["short", "middle", "long"]


def test_a_short_run_goes_before_a_long_one_that_has_begun(driver: Driver) -> None:
    now_ms = int(time.monotonic() * 1000)
    driver.engine.submit("long", spec(steps=200), contender=Contender(now_ms, 60_000, 60_000))
    driver.next(Stepped)
    driver.engine.submit("short", spec(steps=3), contender=Contender(now_ms, 1_000, 1_000))
    driver.next(Began)
    steps = [driver.any() for _ in range(3)]
    assert [(type(event), event.run_id) for event in steps] == [(Stepped, "short")] * 3
    driver.engine.drop("long")
    driver.engine.kept(driver.next(Denoised).run_id)


# A second thread decodes.


def test_others_are_denoised_while_a_clip_is_decoded() -> None:
    driver = Driver(CheckpointPolicy(every_s=3600), BatchPolicy(), decode_beside=True)
    decoding, going_on = threading.Event(), threading.Event()
    decode = driver.family.decode

    def slow(run: Denoising) -> Iterator[Frames]:
        decoding.set()
        assert going_on.wait(WAIT_S)
        yield from decode(run)

    driver.family.decode = slow  # type: ignore[method-assign]
    driver.engine.start()
    driver.engine.submit("a", spec(steps=1))
    driver.engine.kept(driver.next(Denoised).run_id)
    assert decoding.wait(WAIT_S)
    driver.engine.submit("b", spec(steps=2, seed=2))
    assert driver.next(Denoised).run_id == "b"
    assert driver.engine.busy_s > 0
    going_on.set()
    driver.engine.drop("b")
    assert driver.next(Decoded).run_id == "a"
    assert driver.engine.close(WAIT_S)
    assert driver.engine.busy_s == 0


def test_memory_that_another_thread_holds_is_waited_for() -> None:
    driver = Driver(CheckpointPolicy(every_s=3600), BatchPolicy(), decode_beside=True)
    step, decode, stepping = driver.family.step, driver.family.decode, threading.Event()

    def hungry_step(batch: Sequence[Denoising]) -> None:
        stepping.set()
        time.sleep(0.02)
        step(batch)
        stepping.clear()

    def hungry_decode(run: Denoising) -> Iterator[Frames]:
        if stepping.wait(0.1):
            torch.empty(2**60)
        yield from decode(run)

    driver.family.step = hungry_step  # type: ignore[method-assign]
    driver.family.decode = hungry_decode  # type: ignore[method-assign]
    driver.engine.start()
    driver.engine.submit("long", spec(steps=500))
    driver.next(Stepped)
    now_ms = int(time.monotonic() * 1000)
    driver.engine.submit("a", spec(steps=1), contender=Contender(now_ms - 10**9, 0, 0))
    driver.engine.kept(driver.next(Denoised).run_id)
    assert driver.next(Decoded).run_id == "a"
    driver.engine.drop("long")
    assert driver.engine.close(WAIT_S)


def test_a_clip_leaves_between_two_chunks_of_its_decoding() -> None:
    driver = Driver(CheckpointPolicy(every_s=3600), BatchPolicy(), decode_beside=True)
    driver.engine.start()
    driver.engine.submit("a", spec(steps=1, seconds=4))
    driver.engine.kept(driver.next(Denoised).run_id)
    driver.next(FramesReady)
    driver.engine.yield_("a")
    left = driver.next(Yielded)
    assert left.snapshot
    assert left.snapshot.step == 1
    assert driver.engine.close(WAIT_S)


# Snapshots within a budget.


def test_snapshots_on_schedule_share_a_budget_of_bytes(driver: Driver) -> None:
    seconds = [0.0]
    policy = CheckpointPolicy(every_s=3600, every_steps=1, bytes_per_s=100)
    schedule = SaveSchedule(policy, clock=lambda: seconds[0])
    runs = []
    for name in "ab":
        run = Run(name, spec(), NO_INPUTS, None, Contender(0, 0, 0))
        run.state = driver.family.begin(run.spec)
        schedule.begins(run, step=0)
        run.state.step = 2
        runs.append(run)
    assert [schedule.is_due(run) for run in runs] == [True, True]
    schedule.saved(500)
    assert [schedule.is_due(run) for run in runs] == [False, False]
    seconds[0] = 4.9
    assert not schedule.is_due(runs[0])
    schedule.saved(200)  # one that had to be made
    seconds[0] = 6.9
    assert not schedule.is_due(runs[0])
    seconds[0] = 7.0
    assert schedule.is_due(runs[1])


EVERY_TWO_STEPS = PreviewPolicy(every_s=3600, every_steps=2)


@pytest.mark.policy(CheckpointPolicy(every_s=3600), EVERY_TWO_STEPS)
def test_previews_come_on_schedule_and_never_after_the_last_step(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=6))
    shown = [event for event in driver.until_end() if isinstance(event, Previewed)]
    assert [event.step for event in shown] == [2, 4]
    assert {event.picture.shape for event in shown} == {(12, 12, 3)}


@pytest.mark.policy(CheckpointPolicy(every_s=3600), PreviewPolicy(every_s=0.001))
def test_previews_come_when_their_time_has_passed(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=4))
    shown = [event for event in driver.until_end() if isinstance(event, Previewed)]
    assert [event.step for event in shown] == [1, 2, 3]


@pytest.mark.policy(CheckpointPolicy(every_s=3600), EVERY_TWO_STEPS)
def test_a_run_that_cannot_be_shown_goes_on_unseen(driver: Driver) -> None:
    driver.engine.submit("a", spec(steps=6, prompt="unseen"))
    events = driver.until_end()
    assert isinstance(events[-1], Decoded)
    assert not [event for event in events if isinstance(event, Previewed)]
    assert driver.family.unseen == 1
