"""What the spike asks the server, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.spike_summary import Look

ANSWER_S_MAX = 30.0
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PAGE, PAGES_MAX = 100, 50
OBJECTIVES = "reelserve_slo_jobs"
READY = frozenset({"idle", "busy"})
"""States of replicas that lease, or did a moment ago; the others are starting or leaving."""
NOT_SUCH = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})


class Unanswered(Exception):
    """No answer, or not the one that was asked for."""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission: an id, or the code of a refusal (429)."""

    video_id: str
    refused: str | None = None


class SpikeServer:
    """Use it in an ``async with``. What it asks may raise :class:`Unanswered`, and is asked once.

    ``floor`` replicas stay when there is nothing to do: known once a look saw what the operator
    said.
    """

    def __init__(self, url: str, key: str, admin_key: str | None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            timeout=ANSWER_S_MAX,
            # A proxy meant for the internet cannot reach this machine's loopback interface.
            trust_env=httpx.URL(url).host not in LOOPBACK,
        )
        self._admin = {"authorization": f"Bearer {admin_key}"} if admin_key else None
        self.floor: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def model(self, name: str | None) -> dict[str, Any]:
        """The model of this id or alias; the server's first one if there is no name."""
        if name:
            return await self._get(f"/v1/models/{name}")
        models: list[dict[str, Any]] = (await self._get("/v1/models"))["data"]
        return models[0]

    async def newest_video(self) -> str | None:
        page = (await self._get("/v1/videos", limit=1))["data"]
        return page[0]["id"] if page else None

    async def videos(self, after: str | None) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """The user's videos, the oldest first, a page at a time; those after ``after``."""
        for _ in range(PAGES_MAX):
            given = {} if after is None else {"after": after}
            answer = await self._get("/v1/videos", limit=PAGE, order="asc", **given)
            if answer["data"]:
                yield answer["data"]
            if not answer["has_more"]:
                return
            after = answer["last_id"]

    async def submit(self, fields: Mapping[str, Any]) -> Submitted:
        answer = await self._ask("POST", "/v1/videos", json=fields)
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            return Submitted("", refused=answer.json()["error"]["code"])
        return Submitted(self._body(answer)["id"])

    async def look(self, model: str, clock: Callable[[], float]) -> Look:
        """How the pool is doing; what the autoscaler wants, as far as there is a key to ask it."""
        pool = (await self._get("/v1/status"))["pools"][model]
        look = Look(
            t_s=round(clock(), 2),
            ready=sum(each.get("state", "idle") in READY for each in pool["replicas"]),
            queued=pool["queued"],
            in_progress=pool["in_progress"],
        )
        decided = await self._decided(model)
        return look if decided is None else look.with_decision(decided)

    async def objectives(self, model: str) -> dict[str, dict[str, float]] | None:
        """How many jobs attained and missed their objectives so far, by objective; None where the
        server does not count them."""
        answer = await self._ask("GET", "/metrics")
        if answer.status_code != HTTPStatus.OK:
            raise Unanswered(f"GET /metrics was answered with {answer.status_code}")
        counted: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(answer.text):
            if family.name != OBJECTIVES:
                continue
            for sample in family.samples:
                labels = sample.labels
                if sample.name.endswith("_total") and labels["model"] == model:
                    outcomes = counted.setdefault(labels["objective"], {})
                    before = outcomes.get(labels["outcome"], 0)
                    outcomes[labels["outcome"]] = before + sample.value
        return counted or None

    async def _decided(self, model: str) -> dict[str, Any] | None:
        if self._admin is None:
            return None
        answer = await self._ask(
            "GET", "/v1/admin/autoscale", params={"model": model}, headers=self._admin
        )
        if answer.status_code in NOT_SUCH:  # the key is no operator's, or the server is older
            self._admin = None
            return None
        pool = self._body(answer)["pools"][0]
        if pool["scaling"] is None:
            return None
        self.floor = max(pool["scaling"]["min_replicas"], pool["scaling"]["buffer"])
        decision: dict[str, Any] | None = pool["decision"]
        return decision

    async def _get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._body(await self._ask("GET", path, params=params))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unanswered(f"{method} {path}: {type(error).__name__}: {error}") from error

    @staticmethod
    def _body(answer: httpx.Response) -> dict[str, Any]:
        asked = f"{answer.request.method} {answer.request.url.path}"
        if answer.status_code != HTTPStatus.OK:
            raise Unanswered(f"{asked} was answered with {answer.status_code}: {_message(answer)}")
        try:
            body: dict[str, Any] = answer.json()
        except ValueError as error:
            raise Unanswered(f"{asked} was not answered with JSON") from error
        return body


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return answer.text[:100]
