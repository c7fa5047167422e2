"""The ledger's entries as text: CSV with a row for each posting, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator

from quota.ledger import Entry, Ledger
from quota.pages import COLUMNS, PAGE, as_object


async def export_csv(ledger: Ledger) -> AsyncIterator[str]:
    """Lines, the first with the names of the columns."""
    yield _row("id", *COLUMNS, "account", "amount")
    async for entry in _entries(ledger):
        told = [getattr(entry, name) for name in COLUMNS]
        for account, amount in entry.postings.items():
            yield _row(entry.id, *told, account, amount)


async def export_json(ledger: Ledger) -> AsyncIterator[str]:
    """One object in each line."""
    async for entry in _entries(ledger):
        yield json.dumps(as_object(entry))


async def _entries(ledger: Ledger) -> AsyncIterator[Entry]:
    after = None
    while page := await ledger.entries(after=after, limit=PAGE):
        for entry in page:
            yield entry
        after = page[-1].id


def _row(*cells: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
