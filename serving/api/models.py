"""``/v1/models``: what is served and what it can make."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from serving.api.auth import Scope, require
from serving.api.schemas import model_card
from serving.api.services import ServicesDep
from serving.api.speech_schemas import speech_card
from serving.plan.catalog import Model

users = Depends(require(Scope.GENERATE, Scope.READ))
router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[users])


@router.get("")
async def index(services: ServicesDep) -> dict[str, Any]:
    """Every model, with what it can be asked for."""
    cards = [model_card(model) for model in services.catalog.models.values()]
    if services.speech:
        cards += [speech_card(model) for model in services.speech.catalog.models.values()]
    return {"object": "list", "data": cards}


@router.get("/{name}")
async def retrieve(name: str, services: ServicesDep) -> dict[str, Any]:
    """One model, by id or alias."""
    model = services.resolve(name)
    return model_card(model) if isinstance(model, Model) else speech_card(model)
