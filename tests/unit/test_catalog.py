"""The catalog says what it means, and says where it is wrong."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from autoscale.values import Scaling
from deployments.settings import StackSettings
from serving.plan.catalog import Catalog, Model, load_catalog, load_model
from serving.plan.classes import DEFAULT_POLICIES, ClassPolicy, ServiceClass
from serving.plan.errors import ConfigError, InvalidRequest

BUILTIN = Path(__file__).parents[2] / "deployments" / "catalog"


def entry(**changes: object) -> dict[str, object]:
    raw: dict[str, object] = yaml.safe_load((BUILTIN / "demo-wan.yaml").read_text())
    return {**raw, **changes}


def write(folder: Path, raw: object) -> Path:
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def test_every_shipped_entry_is_valid() -> None:
    catalog = load_catalog([BUILTIN])
    assert {"demo-wan", "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"} <= set(catalog.models)
    inputs = {name: dict(model.video.inputs) for name, model in catalog.models.items()}
    assert inputs["wan2.2-t2v-a14b"] == {}
    assert inputs["wan2.2-i2v-a14b"] == {"first_frame": "required", "last_frame": "optional"}
    assert inputs["wan2.1-flf2v-14b"] == {"first_frame": "required", "last_frame": "required"}


def test_an_alias_is_the_model(demo_model: Model) -> None:
    catalog = Catalog([demo_model])
    assert catalog.resolve("sora-2") is catalog.resolve("demo-wan")


def test_an_unknown_name_lists_the_known_ones(demo_model: Model) -> None:
    with pytest.raises(InvalidRequest, match="Models: demo-wan, sora-2") as caught:
        Catalog([demo_model]).resolve("sora-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"famly": "wan"}, "famly"),
        ({"family": "sora"}, "family"),
        ({"weights": {"path": 3}}, "weights"),
        ({"cost": {"encode_s": -1}}, "cost.encode_s"),
        ({"load": {"compile": True, "offload": "group"}}, "load: Value error, compile needs"),
        ({"video": {**entry()["video"], "inputs": {"sound": "optional"}}}, "video.inputs.sound"),  # type: ignore[dict-item]
        ({"video": {**entry()["video"], "sizes": {"100x100": None}}}, "size 100x100"),  # type: ignore[dict-item]
        ({"video": {**entry()["video"], "sizes": {"99x96": {"render": "96x96"}}}}, "even sides"),  # type: ignore[dict-item]
        ({"video": {**entry()["video"], "steps": {"default": 9, "min": 1, "max": 5}}}, "steps"),  # type: ignore[dict-item]
        ({"classes": {"burst": {"share": 0.9}}}, "shares add up to more than 1"),
        ({"classes": {"gold": {"share": 0.1}}}, "classes"),
        ({"scaling": {}}, "scaling.max_replicas"),
        ({"scaling": {"max_replicas": 0}}, "scaling.max_replicas"),
        ({"scaling": {"max_replicas": 2, "min_replicas": -1}}, "scaling.min_replicas"),
        ({"scaling": {"max_replicas": 2, "keep_alive_s": -1}}, "scaling.keep_alive_s"),
        ({"scaling": {"max_replicas": 2, "cold_start_s": 0}}, "scaling.cold_start_s"),
        ({"scaling": {"max_replicas": 2, "keepalive_s": 60}}, "scaling.keepalive_s"),
        (
            {"scaling": {"max_replicas": 2, "min_replicas": 3}},
            "min_replicas 3 and buffer 0 do not fit into max_replicas 2",
        ),
        (
            {"scaling": {"max_replicas": 2, "min_replicas": 1, "buffer": 2}},
            "min_replicas 1 and buffer 2 do not fit into max_replicas 2",
        ),
    ],
)
def test_a_mistake_names_the_file_and_the_field(
    tmp_path: Path, changes: dict[str, object], where: str
) -> None:
    file = write(tmp_path, entry(**changes))
    with pytest.raises(ConfigError) as caught:
        load_model(file)
    assert str(file) in caught.value.message
    assert where in caught.value.message


def test_a_model_scales_only_if_its_entry_says_so(tmp_path: Path) -> None:
    assert load_model(write(tmp_path, entry(scaling=None))).scaling is None
    scaling = load_model(write(tmp_path, entry(scaling={"max_replicas": 3}))).scaling
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas, scaling.buffer) == (0, 3, 0)
    # the policy's own defaults are the same
    assert asdict(Scaling(max_replicas=3)) == scaling.model_dump()


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text("id: [")
    with pytest.raises(ConfigError, match=r"model\.yaml: not YAML"):
        load_model(file)


def test_two_models_may_not_share_a_name(demo_model: Model) -> None:
    other = demo_model.model_copy(update={"id": "other"})
    with pytest.raises(ConfigError, match="'sora-2' is declared by both 'demo-wan' and 'other'"):
        Catalog([demo_model, other])


def test_an_operators_folder_replaces_a_shipped_entry(tmp_path: Path) -> None:
    write(tmp_path, entry(description="mine"))
    settings = StackSettings(catalog_dirs=[tmp_path])
    assert settings.catalog().models["demo-wan"].description == "mine"


def test_a_class_keeps_what_the_entry_does_not_say(tmp_path: Path) -> None:
    given = {"standard": {"first_step_s": 60}, "burst": {"share": 0.5}}
    classes = load_model(write(tmp_path, entry(classes=given))).classes
    assert classes[ServiceClass.STANDARD] == ClassPolicy(share=0.3, first_step_s=60)
    assert classes[ServiceClass.BURST] == ClassPolicy(share=0.5, first_step_s=30)
    assert classes[ServiceClass.RELAXED] == DEFAULT_POLICIES[ServiceClass.RELAXED]


def test_an_operators_entry_changes_fields_of_ours(tmp_path: Path) -> None:
    write(tmp_path, {"changes": "wan2.2-ti2v-5b", "scaling": {"max_replicas": 4}})
    ours, theirs = load_catalog([BUILTIN]), load_catalog([BUILTIN, tmp_path])
    before, after = ours.models["wan2.2-ti2v-5b"], theirs.models["wan2.2-ti2v-5b"]
    assert after.scaling is not None
    assert after.scaling.max_replicas == 4
    assert after.model_copy(update={"scaling": None}) == before
    assert theirs.models.keys() == ours.models.keys()


def test_what_changes_nothing_that_is_there_is_a_mistake(tmp_path: Path) -> None:
    file = write(tmp_path, {"changes": "wan9", "scaling": {"max_replicas": 4}})
    with pytest.raises(ConfigError, match=f"{file}: changes: no model 'wan9' before it"):
        load_catalog([BUILTIN, tmp_path])


def test_an_entry_that_needs_a_gpu_says_what_nodes_have_it() -> None:
    for model in load_catalog([BUILTIN]).models.values():
        assert model.placement.node_type.startswith("gpu-" if model.placement.num_gpus else "cpu-")
