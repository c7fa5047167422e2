"""The API over a real Redis and a real store; the replica's part is played by the test."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from serving.api import Services
from serving.api.keys import DEFAULT_SCOPES, Scope
from serving.jobs import (
    Cell,
    CostReader,
    CostStore,
    JobQueue,
    Leases,
    Phase,
)
from serving.media import ArtifactStore, open_store
from serving.plan.catalog import Catalog, Model
from serving.plan.clip import ClipSpec
from serving.plan.costs import CostModel, output_pixels, rendered_pixels
from serving.plan.errors import ModelFailed, NotPermitted
from tests.api import ADMIN, error_of, services_over, serving
from tests.jobs import LEASE_MS, leased

pytestmark = pytest.mark.asyncio

CLIP = bytes(range(256)) * 4000


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store(tmp_path.as_uri())


@pytest.fixture
def services(redis: Redis, store: ArtifactStore, demo_model: Model) -> Services:
    return services_over(redis, store, demo_model)


@pytest_asyncio.fixture
async def anyone(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with serving(services) as client:
        yield client


@pytest_asyncio.fixture
async def ann(anyone: httpx.AsyncClient, services: Services) -> httpx.AsyncClient:
    """A client with ann's key."""
    _, key = await services.keys.create("ann")
    anyone.headers["authorization"] = f"Bearer {key}"
    return anyone


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/videos", json={"prompt": "a red ball", **fields})
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


async def complete(services: Services, leases: Leases) -> str:
    """Play the replica: lease the next job, store a clip, finish."""
    job = await leased(leases)
    artifacts = {
        "video": ("video.mp4", "video/mp4", CLIP),
        "thumbnail": ("thumbnail.jpg", "image/jpeg", b"thumb"),
        "spritesheet": ("spritesheet.jpg", "image/jpeg", b"sheet"),
    }
    result: dict[str, Any] = {"artifacts": {}, "stages": {}}
    for variant, (name, kind, data) in artifacts.items():
        key = f"{job.id}/{job.fence}/{name}"
        await services.store.put_bytes(key, data, kind)
        result["artifacts"][variant] = {"key": key, "content_type": kind, "size_bytes": len(data)}
    result["stages"] = {"encode_s": 0.1, "denoise_s": 0.2, "decode_s": 0.3, "store_s": 0.4}
    await leases.complete(job, result)
    return job.id


# Creating.


async def test_json_with_every_field(ann: httpx.AsyncClient) -> None:
    fields = {
        "model": "demo-wan",
        "seconds": 2,
        "size": "128x128",
        "seed": 5,
        "negative_prompt": "blur",
        "steps": 7,
        "guidance_scale": 2.5,
        "fps": 10,
    }
    video = await create(ann, **fields)
    assert {name: video[name] for name in fields} == {**fields, "seconds": "2"}
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert video["id"].startswith("video_")


@pytest.mark.parametrize("kind", ["multipart", "urlencoded"])
async def test_forms_carry_the_same_fields_as_text(ann: httpx.AsyncClient, kind: str) -> None:
    fields = {"prompt": "x", "seconds": "2", "seed": "5", "guidance_scale": "2.5"}
    if kind == "multipart":
        answer = await ann.post("/v1/videos", files={k: (None, v) for k, v in fields.items()})
    else:
        answer = await ann.post("/v1/videos", data=fields)
    video = answer.json()
    assert (video["seconds"], video["seed"], video["guidance_scale"]) == ("2", 5, 2.5)


async def test_a_bracketed_form_is_read_as_nested_and_named(ann: httpx.AsyncClient) -> None:
    form = {"prompt": (None, "x"), "input_reference[image_url]": (None, "https://x.example/a.png")}
    error = error_of(await ann.post("/v1/videos", files=form), 400)
    assert (error["code"], error["param"]) == ("unknown_parameter", "input_reference")


async def test_an_alias_is_echoed_as_the_model(ann: httpx.AsyncClient) -> None:
    assert (await create(ann, model="sora-2"))["model"] == "sora-2"
    assert (await create(ann))["model"] == "demo-wan"


async def test_a_seed_is_drawn_when_none_is_given(ann: httpx.AsyncClient) -> None:
    assert (await create(ann))["seed"] != (await create(ann))["seed"]


@pytest.mark.parametrize(
    ("fields", "code", "param", "says"),
    [
        ({"promptt": "x"}, "unknown_parameter", "promptt", "prompt, model, seconds"),
        ({"size": "1x1"}, "unsupported_size", "size", "1280x720"),
        ({"seconds": 5}, "unsupported_seconds", "seconds", "8, 12"),
        ({"model": "sora-9"}, "model_not_found", "model", "demo-wan"),
        ({"steps": 2001}, "out_of_range", "steps", "2000"),
        ({"prompt": "x" * 3000}, "string_too_long", "prompt", "2000"),
        ({"prompt": None}, "invalid_value", "prompt", "string"),
    ],
)
async def test_a_mistake_is_400_and_says_what_is_allowed(
    ann: httpx.AsyncClient, fields: dict[str, Any], code: str, param: str, says: str
) -> None:
    error = error_of(await ann.post("/v1/videos", json={"prompt": "x", **fields}), 400)
    assert (error["code"], error["param"]) == (code, param)
    assert says in error["message"]
    assert (await ann.get("/v1/videos")).json()["data"] == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff\xfe", b"[" * 50_000])
async def test_a_body_that_is_no_object_is_400(ann: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(await ann.post("/v1/videos", content=body, headers=headers), 400)
    assert error["code"] == "invalid_json"


async def test_a_file_says_that_no_model_takes_one(ann: httpx.AsyncClient) -> None:
    files = {"input_reference": ("a.png", b"png", "image/png")}
    error = error_of(await ann.post("/v1/videos", data={"prompt": "x"}, files=files), 400)
    assert (error["code"], error["param"]) == ("unsupported_parameter", "input_reference")


async def test_a_model_that_starts_from_a_picture_is_refused_at_once(
    services: Services, demo_model: Model
) -> None:
    limits = demo_model.video.model_copy(update={"inputs": {"first_frame": "required"}})
    still = demo_model.model_copy(update={"id": "still", "aliases": [], "video": limits})
    pictured = dataclasses.replace(services, catalog=Catalog([demo_model, still]))
    _, key = await services.keys.create("ann")
    async with serving(pictured) as client:
        client.headers["authorization"] = f"Bearer {key}"
        answer = await client.post("/v1/videos", json={"prompt": "x", "model": "still"})
    error = error_of(answer, 400)
    assert (error["code"], error["param"]) == ("unsupported_model", "model")
    assert "first frame" in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_body_over_the_limit_is_413(
    ann: httpx.AsyncClient, chunked: bool, kind: str
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        for _ in range(200):
            yield b"x" * 1000

    content = stream() if chunked else b"x" * 200_000
    answer = await ann.post("/v1/videos", content=content, headers={"content-type": kind})
    error = error_of(answer, 413)
    assert (error["code"], "100000 bytes" in error["message"]) == ("request_too_large", True)


async def test_a_full_queue_is_429_with_a_time_to_come_back(ann: httpx.AsyncClient) -> None:
    for _ in range(5):
        await create(ann)
    answer = await ann.post("/v1/videos", json={"prompt": "x"})
    assert error_of(answer, 429)["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) > 0


# Who may.


@pytest.mark.parametrize(
    "header", [None, "Bearer nonsense", "Bearer rsk_000000000000_" + "0" * 40, "Basic x"]
)
async def test_no_key_or_a_wrong_key_is_401(anyone: httpx.AsyncClient, header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    for method, path in (
        ("POST", "/v1/videos"),
        ("GET", "/v1/videos"),
        ("GET", "/v1/videos/video_x"),
        ("GET", "/v1/videos/video_x/content"),
        ("GET", "/v1/models"),
        ("GET", "/v1/status"),
        ("POST", "/v1/admin/keys"),
    ):
        error = error_of(await anyone.request(method, path, headers=headers), 401)
        assert error["type"] == "authentication_error"


async def test_another_users_video_is_404_everywhere(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann)
    video_id = await complete(services, leases)
    _, key = await services.keys.create("bob")
    bob = {"authorization": f"Bearer {key}"}
    for method, path in (
        ("GET", ""),
        ("GET", "/content"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        answer = await ann.request(method, f"/v1/videos/{video_id}{path}", headers=bob)
        assert error_of(answer, 404)["code"] == "video_not_found"
    assert (await ann.get("/v1/videos", headers=bob)).json()["data"] == []
    assert (await ann.get(f"/v1/videos/{video_id}")).json()["status"] == "completed"


async def test_keys_are_made_listed_and_revoked_by_the_admin_alone(
    ann: httpx.AsyncClient,
) -> None:
    assert error_of(await ann.post("/v1/admin/keys", json={"user": "x"}), 403)
    admin = {"authorization": f"Bearer {ADMIN}"}
    made = (await ann.post("/v1/admin/keys", json={"user": "carl"}, headers=admin)).json()
    carl = {"authorization": f"Bearer {made['key']}"}
    assert (await ann.get("/v1/videos", headers=carl)).status_code == 200
    listed = (await ann.get("/v1/admin/keys", headers=admin)).json()["data"]
    assert {key["user"] for key in listed} == {"ann", "carl"}
    assert made["key"] not in json.dumps(listed)
    by_text = await ann.delete(f"/v1/admin/keys/{made['key']}", headers=admin)
    assert made["key"] not in by_text.text
    assert error_of(by_text, 404)["code"] == "key_not_found"
    gone = await ann.delete(f"/v1/admin/keys/{made['id']}", headers=admin)
    assert gone.json() == {"object": "api_key.deleted", "id": made["id"], "deleted": True}
    assert (await ann.get("/v1/videos", headers=carl)).status_code == 401
    again = await ann.delete(f"/v1/admin/keys/{made['id']}", headers=admin)
    assert error_of(again, 404)["code"] == "key_not_found"
    bad = await ann.post("/v1/admin/keys", json={"user": "a b"}, headers=admin)
    assert error_of(bad, 400)["param"] == "user"


async def key_of(
    services: Services, user: str, *scopes: Scope, tier: str | None = None
) -> dict[str, str]:
    """The header with a new key of theirs."""
    _, key = await services.keys.create(user, scopes or DEFAULT_SCOPES, tier)
    return {"authorization": f"Bearer {key}"}


EVERYTHING = (
    ("POST", "/v1/videos", Scope.GENERATE),
    ("POST", "/v1/videos/video_x/cancel", Scope.GENERATE),
    ("DELETE", "/v1/videos/video_x", Scope.GENERATE),
    ("GET", "/v1/videos", Scope.READ),
    ("GET", "/v1/videos/video_x", Scope.READ),
    ("GET", "/v1/videos/video_x/content", Scope.READ),
    ("HEAD", "/v1/videos/video_x/content", Scope.READ),
    ("POST", "/v1/admin/keys", Scope.ADMIN),
    ("GET", "/v1/admin/keys", Scope.ADMIN),
    ("POST", "/v1/admin/keys/0123456789ab/rotate", Scope.ADMIN),
    ("DELETE", "/v1/admin/keys/0123456789ab", Scope.ADMIN),
    ("GET", "/v1/admin/users", Scope.ADMIN),
    ("GET", "/v1/admin/users/ann", Scope.ADMIN),
    ("PUT", "/v1/admin/users/ann", Scope.ADMIN),
)


@pytest.mark.parametrize("scope", [Scope.GENERATE, Scope.READ, Scope.ADMIN])
async def test_a_key_does_what_its_scope_says_and_no_more(
    anyone: httpx.AsyncClient, services: Services, scope: Scope
) -> None:
    headers = await key_of(services, "ann", scope)
    for method, path, needed in EVERYTHING:
        answer = await anyone.request(method, path, headers=headers, json={})
        assert (answer.status_code == 403) is (needed is not scope), (method, path)
        if needed is not scope and method != "HEAD":
            message = error_of(answer, 403)["message"]
            assert message == f"This needs a key with the scope {needed}; this one has {scope}."
    assert (await anyone.get("/v1/status", headers=headers)).status_code == 200
    models = await anyone.get("/v1/models", headers=headers)
    assert (models.status_code == 403) is (scope is Scope.ADMIN)


async def test_every_route_of_the_operator_asks_for_the_scope_admin(
    anyone: httpx.AsyncClient, services: Services
) -> None:
    described = (await anyone.get("/openapi.json")).json()["paths"]
    headers = await key_of(services, "ann", Scope.GENERATE, Scope.READ, Scope.ACT_AS)
    routes = [(m, path) for path, ms in described.items() if "/admin/" in path for m in ms]
    assert len(routes) >= 7
    for method, path in routes:
        assert error_of(await anyone.request(method, path, headers=headers), 403), path


async def test_the_admin_key_is_for_the_operator_alone(anyone: httpx.AsyncClient) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    assert error_of(await anyone.get("/v1/videos", headers=admin), 403)
    assert error_of(await anyone.get("/v1/models", headers=admin), 403)
    named = await anyone.get("/v1/videos", headers={**admin, "x-end-user": "ann"})
    assert "act-as" in error_of(named, 403)["message"]
    assert (await anyone.get("/v1/admin/keys", headers=admin)).status_code == 200


# Acting for end users.


async def test_each_end_user_of_a_service_sees_their_own_videos_alone(
    anyone: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    shop = await key_of(services, "shop", *DEFAULT_SCOPES, Scope.ACT_AS)
    other = await key_of(services, "other", *DEFAULT_SCOPES, Scope.ACT_AS)
    ann = {**shop, "x-end-user": "ann"}
    strangers = [
        {**shop, "x-end-user": "bob"},
        {**other, "x-end-user": "ann"},
        shop,
        await key_of(services, "ann"),
    ]
    answer = await anyone.post("/v1/videos", json={"prompt": "x"}, headers=ann)
    made = answer.json()["id"]
    assert await complete(services, leases) == made
    job = await services.queue.get(made, user="shop/ann")
    assert job.user == "shop/ann"

    for headers in strangers:
        for method, path in (
            ("GET", ""),
            ("GET", "/content"),
            ("HEAD", "/content"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answer = await anyone.request(method, f"/v1/videos/{made}{path}", headers=headers)
            assert answer.status_code == 404, (headers, method, path)
        assert (await anyone.get("/v1/videos", headers=headers)).json()["data"] == []

    (listed,) = (await anyone.get("/v1/videos", headers=ann)).json()["data"]
    assert listed["id"] == made
    content = await anyone.get(f"/v1/videos/{made}/content", headers=ann)
    assert content.content == CLIP
    ended = await anyone.post(f"/v1/videos/{made}/cancel", headers=ann)
    assert error_of(ended, 400)["code"] == "video_already_ended"
    gone = await anyone.delete(f"/v1/videos/{made}", headers=ann)
    assert gone.json()["deleted"] is True
    assert (await anyone.get("/v1/videos", headers=ann)).json()["data"] == []


async def test_naming_an_end_user_needs_a_key_that_may(ann: httpx.AsyncClient) -> None:
    for path in ("/v1/videos", "/v1/videos/video_x/content", "/v1/models", "/v1/status"):
        for name in ("bob", "", "a b"):
            error = error_of(await ann.get(path, headers={"x-end-user": name}), 403)
            assert "--scope act-as" in error["message"]
    wrong = {"authorization": "Bearer rsk_nobody", "x-end-user": "a b"}
    assert error_of(await ann.get("/v1/videos", headers=wrong), 401)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:jobs", "-a", "a, b", "x" * 65, "ä"])
async def test_an_end_user_who_is_no_name_is_400(
    anyone: httpx.AsyncClient, services: Services, name: str
) -> None:
    shop = await key_of(services, "shop", *DEFAULT_SCOPES, Scope.ACT_AS)
    headers = [(b"authorization", shop["authorization"].encode())]
    named = (b"x-end-user", name.encode("latin-1"))
    error = error_of(await anyone.get("/v1/videos", headers=[*headers, named]), 400)
    assert error["param"] == "X-End-User"
    assert "1 to 64 letters" in error["message"]


async def test_two_end_users_at_once_are_none(
    anyone: httpx.AsyncClient, services: Services
) -> None:
    shop = await key_of(services, "shop", *DEFAULT_SCOPES, Scope.ACT_AS)
    headers = [*shop.items(), ("x-end-user", "ann"), ("x-end-user", "bob")]
    assert error_of(await anyone.get("/v1/videos", headers=headers), 400)["param"] == "X-End-User"


# What the operator does.


async def test_a_key_is_rotated_under_its_id(ann: httpx.AsyncClient) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    fields = {"user": "carl", "scopes": ["read", "act-as"]}
    made = (await ann.post("/v1/admin/keys", json=fields, headers=admin)).json()
    assert (made["scopes"], made["previous_works_until"]) == (["read", "act-as"], None)
    url = f"/v1/admin/keys/{made['id']}/rotate"

    rotated = (await ann.post(url, headers=admin)).json()

    assert {**rotated, "key": None, "previous_works_until": None} == {**made, "key": None}
    assert rotated["previous_works_until"] >= made["created_at"] + 24 * 3600
    for key in (made["key"], rotated["key"]):
        bearer = {"authorization": f"Bearer {key}"}
        assert (await ann.get("/v1/videos", headers=bearer)).status_code == 200
    at_once = (await ann.post(url, json={"grace_s": 0}, headers=admin)).json()
    for key, status in ((made["key"], 401), (rotated["key"], 401), (at_once["key"], 200)):
        bearer = {"authorization": f"Bearer {key}"}
        assert (await ann.get("/v1/videos", headers=bearer)).status_code == status
    for grace_s in (-1, 30 * 24 * 3600 + 1, "soon", True):
        bad = await ann.post(url, json={"grace_s": grace_s}, headers=admin)
        assert error_of(bad, 400)["param"] == "grace_s"
    nowhere = "/v1/admin/keys/000000000000/rotate"
    assert error_of(await ann.post(nowhere, headers=admin), 404)["code"] == "key_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"user": "x", "scopes": ["write"]}, "scopes.0"),
        ({"user": "x", "scopes": []}, "scopes"),
        ({"user": "x", "scopes": ["act-as"]}, "scopes"),
        ({"user": "x/y"}, "user"),
        ({"user": "x", "tier": "gold"}, "tier"),
        ({"user": "x", "tier": ""}, "tier"),
    ],
)
async def test_a_mistake_makes_neither_key_nor_user(
    anyone: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    bad = await anyone.post("/v1/admin/keys", json=fields, headers=admin)
    assert error_of(bad, 400)["param"] == param
    assert (await anyone.get("/v1/admin/keys", headers=admin)).json()["data"] == []
    assert (await anyone.get("/v1/admin/users", headers=admin)).json()["data"] == []


async def test_users_are_listed_shown_and_given_tiers(anyone: httpx.AsyncClient) -> None:
    anyone.headers["authorization"] = f"Bearer {ADMIN}"
    users = "/v1/admin/users"
    await anyone.post("/v1/admin/keys", json={"user": "shop", "tier": "pro"})
    for user in ("shop/ann", "shop%2Fbob"):
        assert error_of(await anyone.get(f"{users}/{user}"), 404)["code"] == "user_not_found"
        answer = await anyone.put(f"{users}/{user}", json={"tier": "free"})
        assert answer.json()["tier"] == "free", answer.text
    assert (await anyone.get(f"{users}/shop/bob")).json()["object"] == "user"

    page = (await anyone.get(users, params={"limit": 2})).json()
    rest = (await anyone.get(users, params={"limit": 2, "after": page["last_id"]})).json()

    assert [user["id"] for user in page["data"] + rest["data"]] == ["shop", "shop/ann", "shop/bob"]
    assert [user["tier"] for user in page["data"] + rest["data"]] == ["pro", "free", "free"]
    assert (page["object"], page["has_more"], rest["has_more"]) == ("list", True, False)
    assert (page["first_id"], page["last_id"]) == ("shop", "shop/ann")
    default = (await anyone.put(f"{users}/shop/ann", json={"tier": None})).json()
    assert default == {**page["data"][1], "tier": None}
    for limit in (0, 101):
        assert error_of(await anyone.get(users, params={"limit": limit}), 400)["param"] == "limit"
    assert error_of(await anyone.get(users, params={"after": "nobody"}), 400)["param"] == "after"


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("ann", {}, "tier", "required"),
        ("ann", {"tier": "gold"}, "tier", "free, pro"),
        ("ann", {"tier": 3}, "tier", "string"),
        ("ann", {"tier": "pro", "limit": 3}, "limit", "Unknown"),
        ("a/b/c", {"tier": "pro"}, "user", "SERVICE/NAME"),
        ("a%20b", {"tier": "pro"}, "user", "letters"),
    ],
)
async def test_a_users_mistake_is_400_and_changes_nothing(
    anyone: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str, says: str
) -> None:
    anyone.headers["authorization"] = f"Bearer {ADMIN}"
    error = error_of(await anyone.put(f"/v1/admin/users/{path}", json=fields), 400)
    assert error["param"] == param
    assert says in error["message"]
    assert (await anyone.get("/v1/admin/users")).json()["data"] == []


async def test_what_an_operator_changes_is_logged_with_their_name(
    anyone: httpx.AsyncClient, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    info, key = await services.keys.create("olga", {Scope.ADMIN})
    headers = {"authorization": f"Bearer {key}"}
    with caplog.at_level("INFO", "serving.api.auth"):
        await anyone.get("/v1/admin/users", headers=headers)
        await anyone.put("/v1/admin/users/ann", json={"tier": "pro"}, headers=headers)
        await anyone.delete(f"/v1/admin/keys/{key}", headers=headers)
    assert caplog.messages == [
        f"admin: PUT '/v1/admin/users/ann' by olga, key {info.id}",
        f"admin: DELETE '/v1/admin/keys/rsk_{info.id}_…' by olga, key {info.id}",
    ]


# Looking.


async def test_a_running_video_shows_where_it_is(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann, steps=4, model="demo-wan")
    second = await create(ann)
    assert second["queue_position"] == 1
    costs = CostModel(services.catalog.resolve("demo-wan"))
    alone_s = costs.estimate(clip(services, steps=20)).total_s
    short_s = costs.estimate(clip(services, steps=4)).device_s
    assert second["eta_seconds"] == pytest.approx(short_s + alone_s, abs=0.2)
    job = await leased(leases)
    await leases.heartbeat(job, lease_ms=LEASE_MS, phase=Phase.DENOISE, step=2, remaining_ms=24_000)
    answer = await ann.get(f"/v1/videos/{job.id}")
    video = answer.json()
    assert (video["status"], video["progress"], video["phase"]) == ("in_progress", 50, "denoise")
    assert (video["eta_seconds"], answer.headers["openai-poll-after-ms"]) == (24.0, "2000")
    # The one behind waits for what runs, then for itself.
    behind = (await ann.get(f"/v1/videos/{second['id']}")).json()
    assert behind["queue_position"] == 0
    assert behind["eta_seconds"] == pytest.approx(24.0 + alone_s, abs=0.2)


async def test_a_failed_video_is_200_and_says_why(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann)
    job = await leased(leases)
    await leases.fail(job, ModelFailed("try fewer steps"))
    answer = await ann.get(f"/v1/videos/{job.id}")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == {"code": "model_failed", "message": "try fewer steps"}
    content = await ann.get(f"/v1/videos/{job.id}/content")
    assert error_of(content, 400)["code"] == "video_has_no_content"


async def test_a_completed_video_has_its_timings(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann)
    video = (await ann.get(f"/v1/videos/{await complete(services, leases)}")).json()
    assert (video["status"], video["progress"], video["size_bytes"]) == (
        "completed",
        100,
        len(CLIP),
    )
    assert video["completed_at"] >= video["created_at"]
    assert set(video["timings"]) == {
        "queued_s",
        "encode_s",
        "denoise_s",
        "decode_s",
        "upscale_s",
        "store_s",
        "total_s",
    }


async def test_listing_in_pages(ann: httpx.AsyncClient) -> None:
    ids = [(await create(ann))["id"] for _ in range(3)]
    page = (await ann.get("/v1/videos", params={"limit": 2})).json()
    assert [video["id"] for video in page["data"]] == ids[:0:-1]
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (ids[2], ids[1])
    rest = (await ann.get("/v1/videos", params={"limit": 2, "after": page["last_id"]})).json()
    assert ([video["id"] for video in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    ascending = (await ann.get("/v1/videos", params={"order": "asc"})).json()
    assert [video["id"] for video in ascending["data"]] == ids
    for limit in (0, 101):
        answer = await ann.get("/v1/videos", params={"limit": limit})
        assert error_of(answer, 400)["param"] == "limit"
    assert error_of(await ann.get("/v1/videos", params={"order": "x"}), 400)["param"] == "order"


async def test_models_say_what_they_can_make(ann: httpx.AsyncClient) -> None:
    (model,) = (await ann.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"]) == ("demo-wan", "model")
    assert "1280x720" in model["sizes"]
    assert 4 in model["seconds"]
    assert model["steps"] == {"default": 20, "min": 1, "max": 2000}
    assert (await ann.get("/v1/models/sora-2")).json() == model
    assert error_of(await ann.get("/v1/models/none"), 404)["code"] == "model_not_found"


# Content.


@pytest_asyncio.fixture
async def content_url(ann: httpx.AsyncClient, services: Services, leases: Leases) -> str:
    await create(ann)
    return f"/v1/videos/{await complete(services, leases)}/content"


async def test_three_variants_with_their_types(ann: httpx.AsyncClient, content_url: str) -> None:
    for variant, kind, data in (
        ("video", "video/mp4", CLIP),
        ("thumbnail", "image/jpeg", b"thumb"),
        ("spritesheet", "image/jpeg", b"sheet"),
    ):
        answer = await ann.get(content_url, params={"variant": variant})
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content == data
    assert error_of(await ann.get(content_url, params={"variant": "gif"}), 400)["param"]


async def test_ranges_and_revalidation(ann: httpx.AsyncClient, content_url: str) -> None:
    whole = await ann.get(content_url)
    etag = whole.headers["etag"]
    assert (whole.content, whole.headers["accept-ranges"]) == (CLIP, "bytes")
    part = await ann.get(content_url, headers={"range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, CLIP[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(CLIP)}"
    tail = await ann.get(content_url, headers={"range": "bytes=-5", "if-range": etag})
    assert (tail.status_code, tail.content) == (206, CLIP[-5:])
    changed = await ann.get(content_url, headers={"range": "bytes=-5", "if-range": '"other"'})
    assert (changed.status_code, changed.content) == (200, CLIP)
    outside = await ann.get(content_url, headers={"range": f"bytes={len(CLIP)}-"})
    assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{len(CLIP)}")
    same = await ann.get(content_url, headers={"if-none-match": etag})
    assert (same.status_code, same.content) == (304, b"")
    head = await ann.head(content_url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CLIP)))


async def test_content_before_the_end_is_refused(ann: httpx.AsyncClient) -> None:
    video = await create(ann)
    error = error_of(await ann.get(f"/v1/videos/{video['id']}/content"), 400)
    assert error["code"] == "video_not_ready"


async def test_a_running_video_has_a_preview_until_it_is_completed(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    video = await create(ann)
    url = f"/v1/videos/{video['id']}/content?variant=preview"
    assert video["preview_url"] is None
    assert error_of(await ann.get(url), 400)["code"] == "video_not_ready"
    job = await leased(leases)
    urls = []
    for step, data in ((2, b"\xff\xd8 two"), (4, b"\xff\xd8 four")):
        key = f"{job.id}/previews/{job.fence}.jpg"
        await services.store.put_bytes(key, data, "image/jpeg")
        await leases.preview(job, key, step)
        answer = await ann.get(url)
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["cache-control"] == "no-store"
        head = await ann.head(url)
        assert (head.headers["content-length"], head.content) == (str(len(data)), b"")
        urls.append((await ann.get(f"/v1/videos/{job.id}")).json()["preview_url"])
        signed = await ann.get(urls[-1], headers={"authorization": ""})
        assert (signed.status_code, signed.content) == (200, data)
    assert urls[0] != urls[1], "a page that shows it sees that there is a newer one"
    assert (await ann.get("/v1/videos")).json()["data"][0]["preview_url"] == urls[1]
    await leases.give_back(job)
    assert (await ann.get(url)).content == data
    video_id = await complete(services, leases)
    done = (await ann.get(f"/v1/videos/{video_id}")).json()
    assert (done["preview_url"], set(done["content_urls"])) == (
        None,
        {"video", "thumbnail", "spritesheet"},
    )
    gone = error_of(await ann.get(urls[1]), 400)
    assert (gone["code"], "thumbnail" in gone["message"]) == ("video_has_no_content", True)


async def test_a_preview_is_its_owners_and_may_be_missing(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann)
    job = await leased(leases)
    await leases.preview(job, f"{job.id}/previews/{job.fence}.jpg", 1)
    url = f"/v1/videos/{job.id}/content?variant=preview"
    assert error_of(await ann.get(url), 400)["code"] == "video_not_ready"
    _, key = await services.keys.create("bob")
    bob = {"authorization": f"Bearer {key}"}
    assert error_of(await ann.get(url, headers=bob), 404)["code"] == "video_not_found"
    signed = (await ann.get(f"/v1/videos/{job.id}")).json()["preview_url"]
    other = signed.replace("variant=preview", "variant=video")
    assert error_of(await ann.get(other), 403)["code"] == "invalid_signature"
    await ann.post(f"/v1/videos/{job.id}/cancel")
    assert error_of(await ann.get(url), 400)["code"] == "video_has_no_content"


async def test_a_signed_url_works_without_a_key_for_this_file_alone(
    ann: httpx.AsyncClient, content_url: str
) -> None:
    video = (await ann.get(content_url.removesuffix("/content"))).json()
    del ann.headers["authorization"]
    for variant, data in (("video", CLIP), ("thumbnail", b"thumb"), ("spritesheet", b"sheet")):
        assert (await ann.get(video["content_urls"][variant])).content == data
    url = video["content_urls"]["thumbnail"]
    part = await ann.get(url, headers={"range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, b"th")
    for forged in (
        url.replace("variant=thumbnail", "variant=video"),
        url.replace("expires=1", "expires=2"),
        url.partition("&expires")[0] + "&signature" + url.partition("&signature")[2],
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("/video_", "/video_0"),
    ):
        assert error_of(await ann.get(forged), 403)["code"] == "invalid_signature", forged
    assert error_of(await ann.get(content_url), 401)


async def test_a_signed_url_expires(services: Services) -> None:
    query = parse_qs(await services.signer.sign("video_x", "video", now_s=1000))
    expires, signature = int(query["expires"][0]), query["signature"][0]
    assert 1060 <= expires <= 1000 + 60 + 900
    await services.signer.check("video_x", "video", expires, signature, now_s=expires)
    with pytest.raises(NotPermitted, match="expired"):
        await services.signer.check("video_x", "video", expires, signature, now_s=expires + 1)


async def test_media_is_not_compressed(ann: httpx.AsyncClient, content_url: str) -> None:
    answer = await ann.get(content_url, headers={"accept-encoding": "gzip, deflate, br"})
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == str(len(CLIP))


async def test_pages_of_configured_origins_may_call(ann: httpx.AsyncClient) -> None:
    asks = {
        "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization, x-end-user, x-stainless-lang",
    }
    for origin, allowed in (("https://front.example", True), ("https://other.example", False)):
        preflight = await ann.options("/v1/videos", headers={"origin": origin, **asks})
        assert (preflight.status_code == 200) is allowed
        answer = await ann.get("/v1/videos", headers={"origin": origin})
        assert answer.status_code == 200
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
    exposed = (await ann.get("/v1/videos", headers={"origin": "https://front.example"})).headers
    assert "openai-poll-after-ms" in exposed["access-control-expose-headers"]


# Ending.


async def test_cancel_and_delete(
    ann: httpx.AsyncClient, services: Services, leases: Leases, store: ArtifactStore
) -> None:
    video_id = (await create(ann))["id"]
    for _ in range(2):
        video = (await ann.post(f"/v1/videos/{video_id}/cancel")).json()
        assert (video["status"], video["error"]["code"]) == ("cancelled", "cancelled")
    await create(ann)
    done = await complete(services, leases)
    late = await ann.post(f"/v1/videos/{done}/cancel")
    assert error_of(late, 400)["code"] == "video_already_ended"
    deleted = (await ann.delete(f"/v1/videos/{done}")).json()
    assert deleted == {"id": done, "object": "video.deleted", "deleted": True}
    assert [info.key async for info in store.list()] == []
    assert error_of(await ann.get(f"/v1/videos/{done}"), 404)
    again = await ann.delete(f"/v1/videos/{done}")
    assert again.json() == deleted, "a client that lost the answer tries again"


async def test_deleting_while_listing_reaches_every_page(ann: httpx.AsyncClient) -> None:
    ids = [(await create(ann))["id"] for _ in range(5)]
    seen, after = [], None
    while True:
        params = {"limit": "2", **({"after": after} if after else {})}
        page = (await ann.get("/v1/videos", params=params)).json()
        for video in page["data"]:
            seen.append(video["id"])
            assert (await ann.delete(f"/v1/videos/{video['id']}")).status_code == 200
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == ids[::-1]


# Operation.


async def test_probes_metrics_and_docs_need_no_key(anyone: httpx.AsyncClient) -> None:
    assert (await anyone.get("/healthz")).json() == {"status": "ok"}
    assert (await anyone.get("/readyz")).json() == {"status": "ready"}
    assert (await anyone.get("/docs")).status_code == 200
    paths = (await anyone.get("/openapi.json")).json()["paths"]
    for path in ("/v1/videos", "/v1/admin/keys"):
        body = paths[path]["post"]["requestBody"]["content"]
        assert set(body) == {"application/json", "multipart/form-data"}


async def test_metrics_count_what_happened(
    ann: httpx.AsyncClient, services: Services, leases: Leases
) -> None:
    await create(ann)
    await complete(services, leases)
    await create(ann)
    text = (await ann.get("/metrics")).text
    labels = 'class="standard",model="demo-wan"'
    assert f'reelserve_backlog_jobs{{{labels},state="queued"}} 1.0' in text
    assert f'reelserve_backlog_jobs{{{labels},state="in_flight"}} 0.0' in text
    assert 'reelserve_jobs_ended_total{model="demo-wan",status="completed"} 1.0' in text
    assert 'reelserve_prompt_cache_hits_total{model="demo-wan"} 0.0' in text


async def test_metrics_sum_up_what_replicas_counted(
    ann: httpx.AsyncClient, leases: Leases, cell: Cell
) -> None:
    other = Leases(cell, "demo-wan", "r2")
    await leases.tally({"prompt_cache_hits": 3, "prompt_cache_misses": 2})
    await other.tally({"prompt_cache_hits": 4, "prompt_cache_misses": 0})
    await other.retire()
    text = (await ann.get("/metrics")).text
    assert "# HELP reelserve_prompt_cache_hits_total Prompts whose" in text
    assert "# HELP reelserve_prompt_cache_misses_total Prompts that" in text
    assert 'reelserve_prompt_cache_hits_total{model="demo-wan"} 7.0' in text
    assert 'reelserve_prompt_cache_misses_total{model="demo-wan"} 2.0' in text


async def learn(services: Services, cell: Cell, device: str, factor: float) -> CostModel:
    """Play a replica to which everything takes ``factor`` times what the catalog says."""
    costs = CostModel(services.catalog.resolve("demo-wan"), device)
    expected = costs.estimate(job := clip(services))
    tokens = job.tokens(costs.model)
    for _ in range(3):
        costs.observe_encode(factor * expected.encode_s)
        costs.observe_step(tokens, 2, factor * expected.step_s)
        costs.observe_decode(rendered_pixels(costs.model, job), factor * expected.decode_s)
        costs.observe_deliver(output_pixels(job), factor * expected.deliver_s)
    await CostStore(cell).sync(costs)
    return costs


def clip(services: Services, **asked: Any) -> ClipSpec:
    return ClipSpec.resolve(
        services.catalog.resolve("demo-wan"), prompt="a red ball", seed=1, **asked
    )


async def test_what_replicas_learned_is_what_clients_and_the_queue_are_told(
    ann: httpx.AsyncClient, services: Services, cell: Cell
) -> None:
    by_table = CostModel(services.catalog.resolve("demo-wan")).estimate(clip(services))
    await learn(services, cell, "cpu", 10)
    video = await create(ann)
    assert video["eta_seconds"] == pytest.approx(10 * by_table.total_s, rel=0.01)
    job = await services.queue.get(video["id"], user="ann")
    assert job.est_device_ms == pytest.approx(10 * by_table.device_ms, rel=0.01)
    again = (await ann.get(f"/v1/videos/{video['id']}")).json()
    listed = (await ann.get("/v1/videos")).json()["data"][0]
    assert again["eta_seconds"] == listed["eta_seconds"] == video["eta_seconds"]


async def test_metrics_say_what_work_costs_and_how_far_off_predictions_were(
    anyone: httpx.AsyncClient, services: Services, cell: Cell
) -> None:
    costs = await learn(services, cell, 'the "new" device', 2)
    text = (await anyone.get("/metrics")).text
    labels = 'device="the \\"new\\" device",model="demo-wan",stage="encode"'
    for name, value in (("predictions_total", 3.0), ("error_ratio", 0.5), ("bias_ratio", -0.5)):
        assert f"reelserve_cost_{name}{{{labels}}} {value}" in text
    found = re.search(r'reelserve_cost_step_seconds{.*rows="\d+",tokens="324"} (\S+)', text)
    assert found
    assert float(found[1]) == pytest.approx(costs.step_s(324, 2))
    for name in ("predictions_total", "error_ratio", "bias_ratio", "step_seconds"):
        assert re.search(rf"# HELP reelserve_cost_{name} \w+", text)


async def test_status_says_how_far_off_predictions_were(
    ann: httpx.AsyncClient, services: Services, cell: Cell
) -> None:
    assert (await ann.get("/v1/status")).json()["pools"]["demo-wan"]["costs"] == {}
    await learn(services, cell, "cpu", 2)
    services = dataclasses.replace(services, costs=CostReader(CostStore(cell)))
    async with serving(services) as client:
        client.headers.update(ann.headers)
        costs = (await client.get("/v1/status")).json()["pools"]["demo-wan"]["costs"]
    assert set(costs["cpu"]) == {"encode", "step", "decode", "deliver"}
    assert costs["cpu"]["encode"] == {"predictions": 3, "error": 0.5, "bias": -0.5}


async def test_status_shows_each_pool(ann: httpx.AsyncClient) -> None:
    await create(ann)
    pool = (await ann.get("/v1/status")).json()["pools"]["demo-wan"]
    assert (pool["queued"], pool["in_progress"], pool["ended"]) == (1, 0, {})
    admin = {"authorization": f"Bearer {ADMIN}"}
    assert (await ann.get("/v1/status", headers=admin)).json()["pools"]["demo-wan"] == pool


async def test_every_answer_names_its_request(ann: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere", "/v1/videos/video_x"):
        answer = await ann.get(path)
        assert answer.headers["x-request-id"].startswith("req_")
    assert error_of(await ann.get("/nowhere"), 404)["code"] == "not_found"
    assert error_of(await ann.put("/v1/videos"), 405)["code"] == "method_not_allowed"


async def test_redis_away_is_503_and_not_ready(store: ArtifactStore, demo_model: Model) -> None:
    away: Redis = Redis(port=1, decode_responses=True)
    lost = services_over(away, store, demo_model)
    async with serving(lost) as client:
        headers = {"authorization": "Bearer rsk_000000000000_" + "0" * 40}
        for path in ("/readyz", "/metrics", "/v1/videos"):
            answer = await client.get(path, headers=headers)
            assert error_of(answer, 503)["code"] == "service_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        assert (await client.get("/healthz")).status_code == 200


async def test_a_defect_is_500_with_a_request_id_and_no_details(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: JobQueue) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(JobQueue, "ping", broken)
    async with serving(services) as client:
        answer = await client.get("/readyz")
    error = error_of(answer, 500)
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text
