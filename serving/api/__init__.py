"""HTTP: the OpenAI-shaped routes, who may call them, and how they fail.

Knows jobs, the artifact store and the catalog; never torch, models or Ray. Stateless: any
ingress replica answers any request, because all it knows is in Redis and the store.
"""

from serving.api.app import Services, create_app
from serving.api.settings import ApiSettings

__all__ = ["ApiSettings", "Services", "create_app"]
