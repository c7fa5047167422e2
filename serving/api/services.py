"""What the routes work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from quota.packs import PackFile
from quota.payments.payments import Payments
from quota.payments.provider import Provider
from quota.redis_ledger import RedisLedger
from quota.settings import QuotaSettings
from quota.tiers import TierFile
from serving.api.keys import Keys
from serving.api.settings import ApiSettings
from serving.api.signing import UrlSigner
from serving.api.users import Users
from serving.jobs import CostReader, Decisions, InlineLeases, JobQueue
from serving.media import ArtifactStore
from serving.plan.catalog import Catalog, Model, ScalingPolicy
from serving.plan.classes import Offered
from serving.plan.errors import InvalidRequest, NotFound
from serving.plan.served import ModelServer, ServedPool
from serving.plan.speech import Speaker
from serving.plan.speech_model import SpeechCatalog, SpeechModel
from serving.tracing import NO_TRACER, Tracer


@dataclass(frozen=True)
class Speech:
    """What speaks: ``speakers`` has one for each model of the catalog, by id."""

    catalog: SpeechCatalog
    speakers: Mapping[str, Speaker]
    leases: InlineLeases


@dataclass(frozen=True)
class Services:
    """One ingress replica's connections. The first model of the catalog is the default one; without
    a ``provider`` nothing is sold; without ``autoscaling`` no model is scaled; without ``speech``
    nothing speaks."""

    queue: JobQueue
    store: ArtifactStore
    keys: Keys
    users: Users
    ledger: RedisLedger
    signer: UrlSigner
    tiers: TierFile
    packs: PackFile
    payments: Payments
    provider: Provider | None
    quota: QuotaSettings
    catalog: Catalog
    settings: ApiSettings
    costs: CostReader
    decisions: Decisions
    autoscaling: bool
    tracer: Tracer = NO_TRACER
    speech: Speech | None = None
    served: Mapping[str, ServedPool] = field(default_factory=dict)
    """What model servers do, which somebody else scales."""
    upscalers: Sequence[ModelServer] = ()
    """Those that ``upscale: 2`` needs."""

    @property
    def offered(self) -> Mapping[str, Offered]:
        """Every model, of whatever kind, by id."""
        return {**self.catalog.models, **(self.speech.catalog.models if self.speech else {})}

    def resolve(self, name: str) -> Model | SpeechModel:
        """A model of whatever kind, by id or alias; :class:`NotFound` if there is none."""
        if self.speech and name in self.speech.catalog:
            return self.speech.catalog.resolve(name)
        try:
            return self.catalog.resolve(name)
        except InvalidRequest as error:
            raise NotFound(error.message, code=error.code, param=error.param) from None

    @property
    def scaled(self) -> Mapping[str, ScalingPolicy]:
        """By pool, where the number of replicas, or of servers, is the autoscaler's to say."""
        if not self.autoscaling:
            return {}
        ours = {each.id: each.scaling for each in self.catalog.models.values() if each.scaling}
        return ours | {each.id: each.scaling for each in self.served.values()}


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
