"""``/v1/admin/tiers``: what each tier may do, as this ingress has it now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from quota.tiers import TierFile
from serving.api.auth import require_admin

router = APIRouter(prefix="/v1/admin", tags=["operation"])


def tier_file_of(request: Request) -> TierFile:
    file: TierFile = request.app.state.services.tiers
    return file


@router.get("/tiers", dependencies=[Depends(require_admin)])
async def show_tiers(file: Annotated[TierFile, Depends(tier_file_of)]) -> dict[str, Any]:
    """The tiers in force. ``error`` says why the file as it is now is not; null when it is."""
    tiers = file.current
    return {
        "object": "tiers",
        "file": str(file.file),
        "changed_at": int(file.changed_at),
        "error": file.error,
        **tiers.model_dump(mode="json", by_alias=True),
    }
