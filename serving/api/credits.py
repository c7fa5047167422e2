"""``/v1/credits``: what the caller bought and what became of it; and the same for the operator, who
may give, take, verify and export.

On the wire an amount is in credits, with three decimals at most; inside it is in milli-credits.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from quota.archiver import KEEP_DAYS_MIN, Archiver
from quota.export import export_csv, export_json
from quota.ledger import Entry, Kind
from quota.pages import PAGE, read_page
from quota.verify import verify
from serving.api.auth import require_admin
from serving.api.body import body_docs, read_fields, validate
from serving.api.patience import patiently
from serving.api.schemas import Integer, Number, Text, milli
from serving.api.services import Services, ServicesDep
from serving.api.usage import MemberDep
from serving.api.users import check_user
from serving.plan.errors import InvalidRequest
from serving.plan.price import MILLI

router = APIRouter(prefix="/v1/credits", tags=["usage"])
operation = APIRouter(prefix="/v1/admin", tags=["operation"], dependencies=[Depends(require_admin)])

CREDITS_MAX = 10**9
"""In one change by hand."""
ENTRY_ID = r"^\d{1,18}-\d{1,18}$"
DaysQuery = Annotated[int, Query(ge=KEEP_DAYS_MIN, le=10_000)]
LimitQuery = Annotated[int, Query(ge=1)]


class CreditGrant(BaseModel):
    """Credits that were given at one time. ``left`` of ``amount`` may still be used."""

    ref: str
    kind: Kind
    amount: float
    left: float
    created_at: int
    expires_at: int | None = Field(description="Unix time; null: never")


class Credits(BaseModel):
    """``GET /v1/credits``."""

    object: Literal["credits"] = "credits"
    user: str
    balance: float = Field(description="what may be spent; nothing while there is a debt")
    held: float = Field(description="set aside for jobs that have not ended")
    debt: float = Field(description="owed, of payments taken back; new credits pay it first")
    grants: list[CreditGrant] = Field(description="in the order in which they are used")


class Change(BaseModel):
    """What an entry added to each, or took."""

    available: float
    held: float
    debt: float


class LedgerEntry(BaseModel):
    """One entry of the ledger, as it concerns its user."""

    id: str
    object: Literal["ledger_entry"] = "ledger_entry"
    type: str
    created_at: int
    ref: str | None = Field(description="of a payment, a refund or an adjustment")
    of: str | None = Field(description="the job, or the ref of what it is about")
    kind: Kind | None
    expires_at: int | None
    reason: str | None
    change: Change


class LedgerPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[LedgerEntry]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CreditChange(BaseModel):
    """``POST /v1/admin/credits/{user}``."""

    model_config = ConfigDict(extra="forbid")

    amount: Number = Field(
        ge=-CREDITS_MAX,
        le=CREDITS_MAX,
        allow_inf_nan=False,
        description="credits to give; below 0, to take from what may be spent",
    )
    reason: Text = Field(min_length=1, max_length=500)
    ref: Text | None = Field(
        None, description="the same change under the same ref is made once; made up if absent"
    )
    kind: Literal[Kind.PROMOTION, Kind.ADJUSTMENT] = Kind.ADJUSTMENT
    expires_at: Integer | None = Field(None, ge=1, le=10**11, description="Unix time")


@router.get("")
async def balance(caller: MemberDep, services: ServicesDep) -> Credits:
    """What the caller may spend, what is held for jobs, and the credits in the order of use."""
    return await _credits(services, caller.user)


@router.get("/ledger")
async def history(
    caller: MemberDep, services: ServicesDep, after: str | None = None, limit: LimitQuery = 20
) -> LedgerPage:
    """The caller's latest entries, the newest first; ``last_id`` is the next page's ``after``."""
    return await _history(services, caller.user, after, limit)


@operation.get("/ledger/users/{user:path}")
async def history_of(
    user: str, services: ServicesDep, after: str | None = None, limit: LimitQuery = 20
) -> LedgerPage:
    """As ``/v1/credits/ledger``, of any user."""
    return await _history(services, check_user(user), after, limit)


@operation.get("/credits/{user:path}")
async def balance_of(user: str, services: ServicesDep) -> Credits:
    """As ``/v1/credits``, of any user."""
    return await _credits(services, check_user(user))


@operation.post("/credits/{user:path}", openapi_extra=body_docs(CreditChange))
async def change(user: str, request: Request, services: ServicesDep) -> dict[str, Any]:
    """Give a user credits, or take some, for a reason."""
    check_user(user)
    wanted = validate(CreditChange, await read_fields(request))
    amount, ref = milli(wanted.amount, "amount"), wanted.ref or f"adj_{secrets.token_hex(12)}"
    if amount >= 0:
        entry = await services.ledger.grant(
            user,
            ref=ref,
            amount=amount,
            kind=wanted.kind,
            expires_ms=None if wanted.expires_at is None else 1000 * wanted.expires_at,
            reason=wanted.reason,
        )
    elif wanted.expires_at is not None or wanted.kind is not Kind.ADJUSTMENT:
        raise InvalidRequest("What is taken has no 'kind' and no 'expires_at'.", param="amount")
    else:
        entry = await services.ledger.take(user, ref=ref, amount=-amount, reason=wanted.reason)
    credits = await _credits(services, user)
    return {"object": "credit_change", "entry": entry, "ref": ref, "credits": credits}


@operation.post("/ledger/verify")
async def verify_ledger(services: ServicesDep) -> Response:
    """Make every balance again from the ledger's entries, and name each that differs."""
    return await patiently(_verification(services))


async def _verification(services: Services) -> dict[str, Any]:
    found = await verify(services.ledger.cell)
    await services.ledger.note_verified(len(found.differences))
    return {
        "object": "verification",
        "entries": found.entries,
        "differences": list(found.differences),
        "archived": None if found.archived is None else asdict(found.archived),
        "books_sha256": found.books,
    }


class ArchiveKept(BaseModel):
    """``POST /v1/admin/ledger/archives``: what is in the file that was kept."""

    model_config = ConfigDict(extra="forbid")

    number: Integer = Field(ge=1)
    last: Text = Field(pattern=ENTRY_ID)
    sha256: Text = Field(pattern="^[0-9a-f]{64}$")


@operation.get("/ledger/archives/next")
async def next_archive(services: ServicesDep, keep_days: DaysQuery = 90) -> StreamingResponse:
    """The next archive's file, of the oldest entries that are older than so many days; empty if
    there are none. Nothing is trimmed."""
    made = await Archiver(services.ledger.cell).next(keep_days)
    lines = made.lines if made else ()

    async def text() -> AsyncIterator[str]:
        for first in range(0, len(lines), PAGE):
            yield "".join(lines[first : first + PAGE])

    return StreamingResponse(text(), media_type="application/x-ndjson; charset=utf-8")


@operation.post("/ledger/archives", openapi_extra=body_docs(ArchiveKept))
async def archive(request: Request, services: ServicesDep) -> Response:
    """Trim the entries that are in this archive, which is kept from now on. May be repeated."""
    kept = validate(ArchiveKept, await read_fields(request))
    return await patiently(_trimmed(services, kept))


async def _trimmed(services: Services, kept: ArchiveKept) -> dict[str, Any]:
    archived = await Archiver(services.ledger.cell).trim(kept.number, kept.last, kept.sha256)
    return {"object": "archive", **asdict(archived)}


@operation.get("/ledger/entries")
async def entries(
    services: ServicesDep,
    after: Annotated[str | None, Query(pattern=ENTRY_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
) -> dict[str, Any]:
    """The entries behind one, the oldest first and in milli-credits, for whoever keeps a copy.

    ``at`` is the entry ``after`` as it is now, null if it is not there; ``archived`` is the newest
    archive, which has all entries up to its ``last``.
    """
    page = await read_page(services.ledger.cell, after, limit)
    return {"object": "list", **page.as_object()}


@operation.get("/ledger/export")
async def export(
    services: ServicesDep, format: Literal["csv", "jsonl"] = "jsonl"
) -> StreamingResponse:
    """All entries, the oldest first, in milli-credits: as JSON lines, or as CSV with a row for each
    posting."""
    as_csv = format == "csv"
    lines = (export_csv if as_csv else export_json)(services.ledger)

    async def text() -> AsyncIterator[str]:
        async for line in lines:
            yield f"{line}\n"

    kind = "text/csv" if as_csv else "application/x-ndjson"
    return StreamingResponse(text(), media_type=f"{kind}; charset=utf-8")


async def _credits(services: Services, user: str) -> Credits:
    now = await services.ledger.balance(user)
    return Credits(
        user=user,
        balance=now.spendable / MILLI,
        held=now.held / MILLI,
        debt=now.debt / MILLI,
        grants=[
            CreditGrant(
                ref=grant.ref,
                kind=grant.kind,
                amount=grant.amount / MILLI,
                left=grant.left / MILLI,
                created_at=grant.created_ms // 1000,
                expires_at=_unix(grant.expires_ms),
            )
            for grant in now.grants
        ],
    )


async def _history(services: Services, user: str, after: str | None, limit: int) -> LedgerPage:
    if limit > services.settings.list_limit_max:
        raise InvalidRequest(
            f"'limit' must be from 1 to {services.settings.list_limit_max}.", param="limit"
        )
    found = await services.ledger.history(user, before=after, limit=limit + 1)
    data = [_entry(entry) for entry in found[:limit]]
    return LedgerPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def _entry(entry: Entry) -> LedgerEntry:
    def total(kind: str) -> float:
        return sum(n for name, n in entry.postings.items() if name.startswith(kind)) / MILLI

    return LedgerEntry(
        id=entry.id,
        type=entry.type,
        created_at=entry.at_ms // 1000,
        ref=entry.ref or None,
        of=entry.of or None,
        kind=entry.kind,
        expires_at=_unix(entry.expires_ms),
        reason=entry.reason or None,
        # A debt is an account below zero.
        change=Change(available=total("grant:"), held=total("hold:"), debt=0 - total("debt:")),
    )


def _unix(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000
