"""The benchmark for a GPU: its arithmetic, its report, and that all of it runs, on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from typer.testing import CliRunner

from loadtest.engine import outputs
from loadtest.engine.attention import BACKENDS, bench_attention
from loadtest.engine.driver import Driver, EngineFailed, Ran
from loadtest.engine.flops import WAN_1_3B, Shape, attention_flop, forward_flop, utilisation
from loadtest.engine.gpu import GpuPlan, agreement, bench_gpu, verdicts
from loadtest.engine.kernels import (
    PLAIN,
    Kernel,
    Variant,
    compiled_variants,
    eager_variants,
    figures,
    relative_difference,
)
from loadtest.engine.sections import Sections
from loadtest.engine.timing import taking_turns
from loadtest.engine.work import Bench, clip
from serving.engine import unpack
from serving.models.tiny import CPU, TRANSFORMER, as_loaded, random_pipeline
from serving.plan.catalog import BatchPolicy, Model, load_model

CATALOG = Path("deployments/catalog")
WEIGHTS = Path("deployments/demo_models/weights")
TINY = replace(
    GpuPlan.tiny(),
    backends=(),
    compiled=False,
    attention_repeats=1,
    large_steps=2,
    large_rounds=1,
    small_steps=3,
    small_rounds=1,
    batch_steps=3,
    batch_rounds=1,
    laden_steps=6,
    laden_steps_small=6,
    laden_runs_small=1,
    yields=1,
    output_steps=3,
    demo_steps=1,
)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(CATALOG / "demo-wan.yaml")


@pytest.fixture(scope="module")
def entry() -> Model:
    """What is measured, with prompts that a CPU reads in no time."""
    model = load_model(CATALOG / "wan2.1-t2v-1.3b.yaml")
    load = model.load.model_copy(update={"prompt_tokens": 16})
    return model.model_copy(update={"load": load})


# Arithmetic.


@pytest.mark.parametrize(
    ("shape", "tokens", "pflop"),
    [
        ("832x480x81", 32760, 0.283),
        ("832x480x33", 14040, 0.073),
        ("480x272x33", 4590, 0.0158),
        ("256x256x17", 1280, 0.0036),
    ],
)
def test_a_forward_is_as_much_arithmetic_as_it_is_known_to_be(
    shape: str, tokens: int, pflop: float
) -> None:
    found = Shape.of(shape)
    assert (found.name, found.tokens) == (shape, tokens)
    assert forward_flop(WAN_1_3B, tokens, 512) / 1e15 == pytest.approx(pflop, rel=0.01)


def test_most_of_a_long_clips_arithmetic_is_attention() -> None:
    attention = 30 * attention_flop(32760, heads=12, channels=128, rows=1)
    assert attention / forward_flop(WAN_1_3B, 32760, 512) == pytest.approx(0.7, abs=0.01)


def test_utilisation_is_a_share_of_the_peak() -> None:
    assert utilisation(989e12, 2.0, peak_tflops=989) == 0.5


@pytest.mark.parametrize(
    "text", ["832x480", "832x480xlong", "0x480x81", "830x480x81", "832x480x80"]
)
def test_a_shape_that_no_checkpoint_renders_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Shape.of(text)


def test_each_of_many_goes_first_and_last_in_turn() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    assert taking_turns(runs, 2) == {name: [None, None] for name in "abc"}
    assert calls == list("abccba")


def test_a_difference_is_relative_and_never_hides_what_is_no_number() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert relative_difference(wanted, wanted) == 0.0
    assert relative_difference(torch.tensor([3.0, 3.0]), wanted) == pytest.approx(0.2)
    assert relative_difference(torch.tensor([3.0, float("nan")]), wanted) == float("inf")


# Which kernels, and what is said of them.


def test_the_plain_library_and_the_entry_come_first_and_nothing_twice() -> None:
    cudnn = Kernel("_native_cudnn")
    plain = eager_variants(Kernel(), ["_native_cudnn"], by_hand=True)
    assert plain[:3] == [PLAIN, Variant("engine", Kernel()), Variant("hand", Kernel())]
    assert plain[3:] == [Variant("engine", cudnn), Variant("library", cudnn)]
    tuned = Kernel("_native_cudnn", compile=True)
    assert Variant("library", tuned) in eager_variants(tuned, [], by_hand=False)
    compiled = compiled_variants(["_native_cudnn"])
    assert compiled[:3] == [PLAIN, Variant("engine", tuned), Variant("library", tuned)]
    assert compiled[3:] == [Variant(way, Kernel(None, True)) for way in ("engine", "library")]


def test_a_kernels_figures_leave_the_first_step_out_and_compare_neighbours() -> None:
    def ran(*seconds: float) -> Ran:
        return Ran([(each, False) for each in seconds], torch.ones(4))

    engine = Variant("engine", Kernel())
    found = figures(
        Shape.of("32x32x5"),
        # The machine is half as fast in the second round.
        {PLAIN: [ran(2.0), ran(4.0)], engine: [ran(9.0, 1.0, 1.0), ran(9.0, 2.0, 2.0)]},
        transformer=TRANSFORMER,
        text_tokens=16,
        peak_tflops=1e-3,
    )
    ours = found["variants"]["engine, default eager"]
    assert (ours["step_s"], ours["over_library"]) == (1.5, 2.0)
    assert ours["seconds"] == [[9.0, 1.0, 1.0], [9.0, 2.0, 2.0]]
    assert (ours["relative_difference"], ours["agrees"]) == (0.0, True)
    flop = 2 * forward_flop(TRANSFORMER, 8, 16)
    assert ours["mfu"] == pytest.approx(flop / 1.5 / 1e9, abs=1e-4)
    assert found["engine_over_library"] == {"default eager": 2.0}
    assert found["engine_over_hand"] == {}


def test_attention_that_is_not_here_says_why() -> None:
    shape = Shape.of("32x32x5")
    found = bench_attention(TRANSFORMER, [shape], CPU, torch.float32, repeats=2)
    assert list(found) == list(BACKENDS)
    assert found["native"][shape.name]["median_s"] > 0
    assert len(found["native"][shape.name]["seconds"]) == 2
    assert "flash" in found["_flash_3"]["error"].lower()


def test_a_kernel_of_one_model_is_not_the_next_ones(entry: Model) -> None:
    load = entry.load.model_copy(update={"attention": "_native_math"})
    bench = Bench(entry.model_copy(update={"load": load}))
    backends = {
        block.attn1.processor._attention_backend for block in bench.library.transformer.blocks
    }
    assert [each.value for each in backends] == ["_native_math"]
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    assert _AttentionBackendRegistry._active_backend.value == "native"


# Targets and agreement.


def kernels(step_s: float, ratio: float) -> dict[str, Any]:
    return {
        "variants": {
            "library, default eager": {"step_s": 0.1, "mfu": 0.9},
            "engine, default eager": {"step_s": step_s, "mfu": 0.6, "over_library": 1.4},
        },
        "engine_over_library": {"default eager": ratio, "other": 1.2},
    }


def test_the_fastest_kernel_is_judged_and_the_worst_overhead() -> None:
    value = {
        "kernels at 832x480x81": kernels(1.5, 0.995),
        "compiled kernels at 832x480x81": kernels(0.9, 0.98),
        "checkpoints at 832x480x81": {"slowdown": 0.004},
        "batch at 256x256x17": {"relative": {"1": 1.0, "8": 2.4}},
        "yields": {"max_ms": 4.0},
    }
    found = {name: each["met"] for name, each in verdicts(value, GpuPlan()).items()}
    assert found == {
        "step_s at 832x480x81": True,
        "mfu at 832x480x81": True,
        "over_library at 832x480x81": True,
        "engine_over_library at 832x480x81": False,
        "checkpoint_slowdown at 832x480x81": True,
        "batch of 8 jobs at 256x256x17": False,
        "yield_ms_beyond_step": True,
    }
    assert verdicts({}, GpuPlan()) == {}


def test_outputs_that_were_not_compared_do_not_agree() -> None:
    checks = ("float32", "half_precision", "same_bits", "demo_model")
    value: dict[str, Any] = {name: {"agrees": True} for name in checks}
    assert agreement(value)["agree"]
    variants = {"engine, default eager": {"agrees": False}, "hand, default eager": {}}
    assert not agreement({**value, "compiled kernels at 1": {"variants": variants}})["agree"]
    assert not agreement({**value, "checkpoints at 1": {"agrees": False}})["agree"]
    del value["same_bits"]
    assert agreement(value)["checks"]["same_bits"] is False


# The report.


def test_a_report_is_kept_as_it_comes_whatever_fails(tmp_path: Path) -> None:
    out, seconds = tmp_path / "gpu.json", 0.0
    sections = Sections({}, lambda text: None, out=out, budget_s=10, clock=lambda: seconds)

    def fails() -> None:
        raise RuntimeError("no such kernel\nwith a long story")

    assert sections.run("first", lambda: {"s": 1}) == {"s": 1}
    assert json.loads(out.read_text())["first"] == {"s": 1}
    assert sections.run("second", fails) is None
    seconds = 10.0
    assert sections.run("third", lambda: {"s": 3}) is None
    found = json.loads(out.read_text())["sections"]
    assert found == {
        "first": {"state": "done", "took_s": 0.0},
        "second": {"state": "failed", "took_s": 0.0, "error": "RuntimeError: no such kernel"},
        "third": {"state": "skipped", "took_s": 0.0, "error": "no time left"},
    }
    assert list(tmp_path.iterdir()) == [out]


# The real thing, in small.


def test_random_weights_have_the_dtypes_of_loaded_ones(tmp_path: Path) -> None:
    made = random_pipeline(TRANSFORMER, dtype=torch.bfloat16).transformer
    whole = random_pipeline(TRANSFORMER).transformer
    whole.save_pretrained(tmp_path)
    loaded = WanTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    wanted = loaded.state_dict()
    for model in (made, as_loaded(whole, torch.bfloat16)):
        found = model.state_dict()
        assert {name: each.dtype for name, each in found.items()} == {
            name: each.dtype for name, each in wanted.items()
        }
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert made.dtype == torch.bfloat16


def test_a_crowd_is_timed_only_where_all_share_a_forward(demo: Model) -> None:
    policy = BatchPolicy(rows=8, reproducible="fast")
    with Driver.of(Bench(demo).family(policy)) as driver:
        assert len(driver.crowd_s([clip(4, number=n, steps=5) for n in range(3)])) in (4, 5)
        assert len(driver.crowd_s([clip(4, steps=5)])) == 5


def test_a_clip_that_left_goes_on_with_the_same_bits(demo: Model) -> None:
    spec = clip(4, steps=6)
    with Driver.of(Bench(demo).family()) as driver:
        whole = driver.run(spec)
        packed = driver.yielded(spec, 2)
        rest = driver.run(spec, unpack(packed, spec, driver.family.fingerprint))
        assert 1 <= len(rest.steps) <= 4
        assert torch.equal(rest.latents, whole.latents)
        with pytest.raises(EngineFailed, match="did not leave"):
            driver.yielded(spec.model_copy(update={"steps": 1}), 1)


def test_all_of_it_runs_and_finds_outputs_that_agree(
    entry: Model, demo: Model, tmp_path: Path
) -> None:
    said: list[str] = []
    out = tmp_path / "gpu.json"
    value = bench_gpu(entry, demo, WEIGHTS, TINY, CPU, said.append, out=out)
    assert {each["state"] for each in value["sections"].values()} == {"done"}, value["sections"]
    assert value["outputs"]["agree"], value["outputs"]
    assert value["left_out"] == {}
    for shape in (TINY.large.name, TINY.small.name):
        assert value[f"kernels at {shape}"]["engine_over_library"]["default eager"] > 0
        assert value[f"batch at {shape}"]["relative"].keys() == {"1", "2"}
        assert value[f"checkpoints at {shape}"]["resumed_after_step"] == 4
    assert value[f"kernels at {TINY.small.name}"]["engine_over_hand"]["default eager"] > 0
    assert value["half_precision"]["relative_difference"]["another seed"] > 0.5
    assert value["half_precision"]["standard_deviation"] > 0.1
    assert json.loads(out.read_text()) == json.loads(json.dumps(value))


def test_the_command_fails_if_outputs_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuPlan, "tiny", classmethod(lambda cls: TINY))
    monkeypatch.setattr(outputs, "TOLERANCE", 0.0)
    arguments = ["--device", "cpu", "--tiny", "--no-compile", "--shape", "64x64x5"]
    result = _command(*arguments)
    assert result.exit_code == 1, result.output
    assert "DISAGREE, or were not compared: float32" in result.stdout
    assert "kernels at 64x64x5" in result.stdout


def test_the_command_prints_one_json_value_and_what_it_had_no_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GpuPlan, "tiny", classmethod(lambda cls: TINY))
    monkeypatch.setattr(Sections, "expired", lambda self: True)
    result = _command("--device", "cpu", "--tiny", "--json")
    assert result.exit_code == 1, "nothing was compared"
    value = json.loads(result.stdout)
    assert {each["state"] for each in value["sections"].values()} == {"skipped"}
    assert value["targets"] == {}


def test_a_shape_or_a_device_that_is_not_there_ends_the_command() -> None:
    result = _command("--device", "cpu", "--shape", "832x480x80", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "invalid_shape"
    if not torch.cuda.is_available():
        result = _command("--json")
        assert json.loads(result.stdout)["error"]["code"] == "no_device"
        assert "no CUDA GPU" in result.stdout


def _command(*arguments: str) -> Any:
    from deployments.cli.main import app

    return CliRunner().invoke(app, ["bench", "gpu", *arguments])
