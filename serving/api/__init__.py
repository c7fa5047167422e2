"""HTTP: the OpenAI-shaped routes, who may call them, and how they fail.

Knows jobs, the artifact store and the catalog; never torch, models or Ray. Stateless: any
ingress replica answers any request, because all it knows is in Redis and the store.
"""

from serving.api.app import create_app
from serving.api.keys import Keys
from serving.api.services import Services
from serving.api.settings import ApiSettings
from serving.api.signing import UrlSigner
from serving.api.users import Users

__all__ = ["ApiSettings", "Keys", "Services", "UrlSigner", "Users", "create_app"]
