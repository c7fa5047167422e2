"""Any model of a real Triton server, which is slow, full, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serving.models.triton import TritonModel, TritonServer, strings
from serving.plan.errors import (
    ConfigError,
    InvalidInput,
    ModelFailed,
    ModelServerBusy,
    ModelServerLost,
    ModelServerTimeout,
    ServiceUnavailable,
)
from serving.plan.triton import Tensor, TritonModelSpec
from tests.slow_model import SLOW, noted, sleep, taken
from tests.tools import ROOT
from tests.triton import TritonServer as Process
from tests.triton import triton

TICKS = TritonModelSpec(
    model="ticks",
    inputs={
        "COUNT": Tensor(dtype="INT32", shape=(1,)),
        "EVERY_S": Tensor(dtype="FP32", shape=(1,)),
        "NOTES": Tensor(dtype="BYTES", shape=(1,)),
    },
    outputs={"TICK": Tensor(dtype="INT32", shape=(1,))},
    streaming=True,
)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("triton")
    with triton(folder, "slow", "ticks", repository=ROOT / "tests" / "triton_models") as server:
        yield server


@pytest_asyncio.fixture
async def server(process: Process) -> AsyncIterator[TritonServer]:
    server = TritonServer(process.url)
    yield server
    await server.close()


@pytest.fixture
def slow(server: TritonServer) -> TritonModel:
    return server.model(SLOW)


@pytest.fixture
def ticks(server: TritonServer) -> TritonModel:
    return server.model(TICKS)


def count(number: int, every_s: float, notes: Path) -> dict[str, Any]:
    return {
        "COUNT": np.array([number], np.int32),
        "EVERY_S": np.array([every_s], np.float32),
        "NOTES": strings([str(notes)]),
    }


@pytest.mark.asyncio
async def test_what_the_catalog_says_is_what_the_server_has(
    slow: TritonModel, ticks: TritonModel
) -> None:
    await slow.check()
    await ticks.check()
    assert await slow.ready()
    assert await ticks.ready()


@pytest.mark.asyncio
async def test_every_difference_is_named(server: TritonServer) -> None:
    other = TritonModelSpec(
        model="slow",
        inputs={
            "SECONDS": Tensor(dtype="FP16", shape=(-1, 1)),
            "HASTE": Tensor(dtype="FP32", shape=(-1, 1)),
        },
        outputs={"SLEPT": Tensor(dtype="FP32", shape=(-1, 2))},
        streaming=True,
    )
    with pytest.raises(ConfigError) as raised:
        await server.model(other).check()
    for difference in (
        "input SECONDS is FP32 [-1, 1] there and FP16 [-1, 1] in the catalog",
        "it has no input HASTE (it has NOTES, SECONDS)",
        "output SLEPT is FP32 [-1, 1] there and FP32 [-1, 2] in the catalog",
        "it needs an input NOTES, BYTES [-1, 1], that the catalog does not name",
        "it answers once, and the catalog says that it streams",
    ):
        assert difference in raised.value.message


@pytest.mark.asyncio
async def test_a_model_that_is_not_there_is_named(server: TritonServer) -> None:
    absent = server.model(SLOW.model_copy(update={"model": "absent"}))
    with pytest.raises((ConfigError, ServiceUnavailable), match="absent"):
        await absent.check()
    assert not await absent.ready()


@pytest.mark.asyncio
async def test_a_call_gives_what_the_model_gives(slow: TritonModel, tmp_path: Path) -> None:
    answer = await slow.infer(sleep(0.01, tmp_path / "notes"))
    assert answer["SLEPT"].item() == pytest.approx(0.01)


@pytest.mark.asyncio
async def test_what_a_model_does_not_take_is_said_before_it_is_sent(
    slow: TritonModel, tmp_path: Path
) -> None:
    given = sleep(0, tmp_path / "notes")
    with pytest.raises(InvalidInput, match=r"SECONDS is float64; the model takes FP32 \[-1, 1\]"):
        await slow.infer({**given, "SECONDS": np.array([[1.0]])})
    with pytest.raises(InvalidInput, match=r"SECONDS is \[1\]; the model takes FP32 \[-1, 1\]"):
        await slow.infer({**given, "SECONDS": np.array([1.0], np.float32)})


@pytest.mark.asyncio
async def test_a_model_that_raises_is_no_reason_to_try_again(
    slow: TritonModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelFailed, match="backwards") as raised:
        await slow.infer(sleep(-1, tmp_path / "notes"))
    assert not raised.value.retryable


@pytest.mark.asyncio
async def test_the_server_is_told_of_a_deadline(slow: TritonModel, tmp_path: Path) -> None:
    """The second waits behind the first, and is given up there, before its turn comes."""
    first, second = tmp_path / "first", tmp_path / "second"
    busy = asyncio.create_task(taken(slow, sleep(2.0, first)))
    await noted(first, "began")
    with pytest.raises(ModelServerTimeout) as raised:
        await slow.infer(sleep(0.01, second), timeout_s=0.1)
    assert (raised.value.code, raised.value.status) == ("model_server_timeout", 504)
    assert raised.value.retryable
    await busy
    await taken(slow, sleep(0.01, tmp_path / "third"))
    assert not second.exists()


@pytest.mark.asyncio
async def test_a_deadline_in_the_middle_of_the_work_ends_it(
    slow: TritonModel, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    with pytest.raises(ModelServerTimeout):
        await taken(slow, sleep(30, notes), timeout_s=0.1)
    assert "cancelled" in await noted(notes, "cancelled")


@pytest.mark.asyncio
async def test_a_cancelled_call_is_cancelled_there(slow: TritonModel, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    call = asyncio.create_task(taken(slow, sleep(30, notes)))
    await noted(notes, "began")
    call.cancel()
    assert "cancelled" in await noted(notes, "cancelled")


@pytest.mark.asyncio
async def test_a_server_that_is_full_says_so(slow: TritonModel, tmp_path: Path) -> None:
    first = tmp_path / "first"
    running = asyncio.create_task(taken(slow, sleep(1.0, first)))
    await noted(first, "began")
    # One may wait; the scheduler holds another that it has taken out already.
    more = [asyncio.create_task(slow.infer(sleep(0.01, tmp_path / "n"))) for _ in range(6)]
    ended = await asyncio.gather(*more, return_exceptions=True)
    refused = [each for each in ended if isinstance(each, Exception)]
    assert refused
    assert all(isinstance(each, ModelServerBusy) for each in refused), refused
    assert {each.code for each in refused if isinstance(each, ModelServerBusy)} == {
        "model_server_overloaded"
    }
    await running


@pytest.mark.asyncio
async def test_responses_of_a_stream_come_while_it_goes_on(
    ticks: TritonModel, tmp_path: Path
) -> None:
    began, came = time.monotonic(), []
    async with contextlib.aclosing(ticks.stream(count(4, 0.1, tmp_path / "notes"))) as responses:
        async for response in responses:
            came.append((response["TICK"].item(), time.monotonic() - began))
    assert [tick for tick, _ in came] == [0, 1, 2, 3]
    assert came[0][1] < came[-1][1] - 0.2


@pytest.mark.asyncio
async def test_a_stream_that_nobody_reads_on_is_cancelled_there(
    ticks: TritonModel, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    async with contextlib.aclosing(ticks.stream(count(10_000, 0.02, notes))) as responses:
        async for response in responses:
            if response["TICK"].item() == 2:
                break
    assert int(await noted(notes, "")) < 10_000


@pytest.mark.asyncio
async def test_a_stream_that_falls_silent_is_late(ticks: TritonModel, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with contextlib.aclosing(ticks.stream(count(2, 3.0, notes), timeout_s=0.2)) as responses:
        await anext(responses)
        with pytest.raises(ModelServerTimeout, match="silent"):
            await anext(responses)
    assert await noted(notes, "1") == "1"


@pytest.mark.asyncio
async def test_a_killed_server_is_lost_and_found_again(
    process: Process, server: TritonServer, slow: TritonModel, ticks: TritonModel, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    call = asyncio.create_task(taken(slow, sleep(30, notes)))
    await noted(notes, "began")

    async def listen() -> None:
        async with contextlib.aclosing(
            ticks.stream(count(10_000, 0.02, tmp_path / "t"))
        ) as responses:
            async for response in responses:
                if response["TICK"].item() == 1:
                    process.kill()

    for lost in await asyncio.gather(listen(), call, return_exceptions=True):
        assert isinstance(lost, ModelServerLost), lost
        assert (lost.code, lost.status, lost.retryable) == ("model_server_unreachable", 503, True)
    assert not await server.live()
    assert not await slow.ready()
    with pytest.raises(ModelServerLost):
        await slow.infer(sleep(0, notes))
    with pytest.raises(ModelServerLost):
        await slow.check()
    await asyncio.to_thread(process.start)
    async with asyncio.timeout(20):
        while not await slow.ready():
            await asyncio.sleep(0.1)
    await slow.check()
    assert (await slow.infer(sleep(0, notes)))["SLEPT"].item() == 0
