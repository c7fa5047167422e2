"""The engine's benchmark: its arithmetic, and that it finds outputs that agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from loadtest.engine import figures
from loadtest.engine.driver import Driver
from loadtest.engine.figures import TARGETS, Plan, bench_engine, judged
from loadtest.engine.timing import in_turns, share_of_laden, speed_up, step_cost, typical_s
from loadtest.engine.work import SHAPES, Bench, clip, mixed_clips
from serving.plan.catalog import CheckpointPolicy, Model, load_model

TINY = Plan(
    jobs=3,
    batch_tokens=(4,),
    alone_tokens=(4,),
    checkpoint_tokens=(4,),
    repeats=1,
    alone_repeats=1,
    alone_steps=2,
    laden_steps=6,
    laden_runs=1,
    yields=1,
)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model(Path("deployments/catalog/demo-wan.yaml"))


def test_measured_and_baseline_go_first_in_turn_after_a_run_that_does_not_count() -> None:
    calls: list[str] = []

    def call(name: str) -> int:
        calls.append(name)
        return len(calls)

    baseline, measured = in_turns(lambda: call("a"), lambda: call("b"), 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert (baseline, measured) == ([3, 6], [4, 5])


def test_a_speed_up_compares_neighbours_in_time() -> None:
    # A machine that is half as fast for the second pair changes nothing.
    found = speed_up([4.0, 8.0, 5.0], [1.0, 2.0, 2.0])
    assert (found["median"], found["min"], found["max"]) == (4.0, 2.5, 4.0)
    assert (found["baseline_s"], found["measured_s"]) == (4.0, 1.0)


def test_a_step_costs_what_the_best_repetition_shows_with_all_its_steps() -> None:
    assert typical_s([[1.0, 3.0], [9.0, 1.0]]) == 2.0
    assert step_cost([[1.0, 1.0]], [[1.0, 2.0], [5.0, 5.0]]) == 1.5


def test_the_clips_have_the_tokens_they_stand_for(shipped: Model) -> None:
    for tokens in SHAPES:
        assert clip(tokens, steps=1).tokens(shipped) == tokens
    clips = mixed_clips(4, 16)
    assert {each.steps for each in clips} == set(range(4, 13))
    assert len({each.guidance_scale for each in clips}) > 4
    assert len({(each.prompt, each.seed) for each in clips}) == 16


def test_targets_are_judged_where_there_is_a_figure() -> None:
    value: dict[str, Any] = {
        name: {} if isinstance(each, dict) else 6.0 for name, each in TARGETS.items()
    }
    value["vs_raw_loop"] = {4: 6.0, 32: 3.4}
    value["checkpoint_slowdown"] = {320: 0.021}
    verdicts = judged(value)
    assert {name: verdict["met"] for name, verdict in verdicts.items()} == {
        "vs_raw_loop at 4 tokens": True,
        "vs_raw_loop at 32 tokens": False,
        "checkpoint_slowdown at 320 tokens": False,
        "yield_ms_beyond_step": False,
    }


def test_a_small_run_finds_outputs_that_agree(shipped: Model) -> None:
    said: list[str] = []
    value = bench_engine(shipped, TINY, said.append)
    assert value["outputs"]["agree"], value["outputs"]
    assert 0 < value["outputs"]["max_abs_difference"] < 1e-4
    for name in ("vs_raw_loop", "overhead_ratio_b1", "lone_job_ratio"):
        assert value[name][4] > 0
    assert value["yield_ms_beyond_step"] > 0
    assert value["mode"]["rows"] == shipped.batch.rows
    assert len(said) == 6, "one line for each figure"


def test_a_run_in_the_engine_is_as_long_as_its_steps(shipped: Model) -> None:
    bench = Bench(shipped)
    spec = clip(4, steps=3)
    assert len(bench.by_hand(spec)) == 3
    with Driver.of(bench.family()) as driver:
        assert len(driver.steps_s(spec)) == 3


def test_steps_that_carry_a_snapshot_are_told_from_those_that_do_not(shipped: Model) -> None:
    policy = CheckpointPolicy(every_s=3600, every_steps=2)
    with Driver.of(Bench(shipped).family(), policy) as driver:
        steps = driver.timed_steps(clip(4, steps=7))
    assert [laden for _, laden in steps] == [False, False, True, False, True, False, True]


def test_the_share_of_what_is_carried_is_judged_between_neighbours() -> None:
    drifting = [(1.0, False), (1.65, True), (2.0, False), (2.75, True), (3.0, False), (9.0, True)]
    assert share_of_laden([drifting]) == pytest.approx(0.1)


def test_the_command_prints_one_json_value_and_fails_if_outputs_disagree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deployments.cli.main import app

    threads = torch.get_num_threads()
    monkeypatch.setattr(Plan, "quick", classmethod(lambda cls: TINY))
    try:
        value = _json(["bench", "engine", "--quick", "--json"], app, exit_code=0)
        assert value["outputs"]["agree"] is True
        assert value["vs_raw_loop"].keys() == {"4"}
        monkeypatch.setattr(figures, "TOLERANCE", 0.0)
        assert not _json(["bench", "engine", "--quick", "--json"], app, 1)["outputs"]["agree"]
        table = CliRunner().invoke(app, ["bench", "engine", "--quick"])
        assert "DISAGREE" in table.stdout
    finally:
        torch.set_num_threads(threads)


def _json(arguments: list[str], app: Any, exit_code: int) -> Any:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)
