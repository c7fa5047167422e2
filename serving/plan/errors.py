"""Every error this project raises on purpose.

    ReelserveError
    ├── RequestError              the caller can mend it; nothing was written
    │   ├── InvalidRequest        400  a field is wrong; ``param`` names it
    │   ├── NotAuthenticated      401  no key, or a key nobody knows
    │   ├── NotPermitted          403  a key, or a signed URL, that may not do this
    │   ├── NotFound              404  no such thing, or it belongs to somebody else
    │   ├── LedgerRefused         409  the credit ledger cannot book that; ``code`` says why
    │   ├── PayloadTooLarge       413  the body is larger than the limit
    │   ├── IdempotencyMismatch   422  the key was used before, with another body
    │   └── Refused               429  there is no room for it now; it says when there will be
    │       ├── RateLimited           too many submissions in a minute
    │       ├── QueueFull             the pool holds as many jobs as it may
    │       ├── TooManyQueued         this user has as many jobs waiting as the tier allows
    │       ├── TooManyStreams        this user listens to as many at once as may be
    │       └── InsufficientQuota     the allowance is used up; waiting a little does not help
    │           └── InsufficientCredits   credits were to pay for it, and cannot
    ├── NotOffered                501  the operator has not set it up
    ├── ServiceUnavailable        503  a part we need is away; try again
    │   ├── ModelServerLost           a model server is not reached, or the connection broke
    │   ├── ModelServerBusy           a model server has no room for it now
    │   └── ModelServerTimeout    504 a model server was given a time, and it has passed
    ├── GenerationError           ends a job as failed; never an HTTP error
    │   ├── ModelFailed           the model raised while it made this clip
    │   ├── OutOfMemory           the clip does not fit on the model's device
    │   ├── InvalidInput          a given picture or video cannot be used; ``param`` names it
    │   ├── InvalidOutput         the model made something that is not a picture
    │   ├── DeliveryFailed        the clip could not be encoded or stored
    │   ├── ReplicaLost           every attempt ended with the replica gone
    │   ├── Expired               it waited longer than the queue keeps a job
    │   └── Cancelled             its owner did not want it any more
    ├── CheckpointError           a checkpoint cannot be resumed from; the job starts over
    │   ├── CheckpointCorrupt     its bytes are not what was written
    │   └── CheckpointForeign     written by other weights, code or hardware, or another version
    ├── StaleLease                the job is no longer ours; drop it and write nothing
    └── ConfigError               a file or setting is wrong; it says which and how

An error knows its HTTP status, its stable ``code``, and whether the same request may
succeed later (``retryable``). Clients switch on ``code``; the message is for people.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Self


class ReelserveError(Exception):
    """Base of the tree. ``message`` says what happened and what to do about it."""

    status: ClassVar[int] = 500
    code: str = "internal_error"
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class RequestError(ReelserveError):
    """The caller can mend it: nothing was written."""

    status = 400
    kind = "invalid_request_error"


class InvalidRequest(RequestError):
    """A field is missing, unknown, or has a value that is not allowed."""

    code = "invalid_value"


class NotAuthenticated(RequestError):
    """No key was sent, or nobody knows the key."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class NotPermitted(RequestError):
    """The key is known and may not do this, or a signed URL is not valid (any more)."""

    status = 403
    code = "permission_denied"
    kind = "permission_error"


class NotFound(RequestError):
    """No such thing for this caller: somebody else's is reported the same way."""

    status = 404
    code = "not_found"


class LedgerRefused(RequestError):
    """An amount, a reference or a balance that does not fit. Nothing was booked."""

    status = 409
    code = "ledger_refused"


class PayloadTooLarge(RequestError):
    """The body is larger than the configured limit."""

    status = 413
    code = "request_too_large"


class IdempotencyMismatch(RequestError):
    """A key stands for one request. Clients do not repeat a 422, as they would a 409."""

    status = 422
    code = "idempotency_key_reused"


class Refused(RequestError):
    """Not now: ``retry_after_s`` says when to ask again. ``should_retry`` is False where clients
    that repeat a refused request by themselves would do so in vain. ``allowance`` is what the user
    has left, as :mod:`serving.jobs.admission` has it."""

    status = 429
    kind = "rate_limit_error"
    retryable = True
    should_retry: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        allowance: object = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.allowance = allowance

    def explained(self, message: str, retry_after_s: float | None) -> Self:
        """The same refusal, in other words."""
        other = copy.copy(self)
        other.args, other.message, other.retry_after_s = (message,), message, retry_after_s
        return other


class RateLimited(Refused):
    """More submissions in a minute than the tier allows."""

    code = "rate_limit_exceeded"


class QueueFull(Refused):
    """The pool's queue is at its bound."""

    code = "queue_full"


class TooManyQueued(Refused):
    """The user's jobs that wait are as many as the tier allows."""

    code = "too_many_queued_jobs"


class TooManyStreams(Refused):
    """The user listens to as many clips as may be, while they are made."""

    code = "too_many_streams"


class InsufficientQuota(Refused):
    """The day's allowance is used up, and the tier has nothing beyond it."""

    code = "insufficient_quota"
    kind = "insufficient_quota"
    should_retry = False


class InsufficientCredits(InsufficientQuota):
    """Credits were to pay for it: it costs ``price`` and ``balance`` may be spent (milli-credits).
    ``reason``: ``credits`` (not enough), ``max_credits`` (more than the caller said), ``debt``."""

    code = "insufficient_credits"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        allowance: object = None,
        price: int = 0,
        balance: int = 0,
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s, allowance=allowance)
        self.price = price
        self.balance = balance


class NotOffered(ReelserveError):
    """This cell does not do that: whoever runs it has not set it up. No retry helps."""

    status = 501
    code = "not_offered"


class ServiceUnavailable(ReelserveError):
    """Something we depend on does not answer. Nothing was half written."""

    status = 503
    code = "service_unavailable"
    retryable = True


class ModelServerLost(ServiceUnavailable):
    """A model server is not reached, or the connection to it broke while it worked."""

    code = "model_server_unreachable"


class ModelServerBusy(ServiceUnavailable):
    """A model server has as many requests as it takes."""

    code = "model_server_overloaded"


class ModelServerTimeout(ServiceUnavailable):
    """A model server was given a time for this, and it has passed."""

    status = 504
    code = "model_server_timeout"


class GenerationError(ReelserveError):
    """Ends a job as failed. It is stored on the job and answered with status 200."""

    code = "generation_failed"
    kind = "generation_error"


class ModelFailed(GenerationError):
    """The model raised while it made this clip."""

    code = "model_failed"


class OutOfMemory(GenerationError):
    """The clip does not fit on the model's device, even alone."""

    code = "out_of_memory"


class InvalidInput(GenerationError):
    """A given picture or video is not one this model can start from. ``param`` names it."""

    code = "invalid_input"


class InvalidOutput(GenerationError):
    """The latents or the frames are not finite numbers."""

    code = "invalid_output"


class DeliveryFailed(GenerationError):
    """The clip was made and could not be encoded or stored."""

    code = "delivery_failed"


class ReplicaLost(GenerationError):
    """Every attempt ended with the replica gone."""

    code = "replica_lost"


class Expired(GenerationError):
    """It waited longer than the queue keeps a job."""

    code = "expired"


class Cancelled(GenerationError):
    """Its owner did not want it any more."""

    code = "cancelled"


class CheckpointError(ReelserveError):
    """A checkpoint cannot be resumed from; the job starts over. ``code`` is what is counted."""

    code = "checkpoint_missing"


class CheckpointCorrupt(CheckpointError):
    """Its bytes are not what was written."""

    code = "checkpoint_corrupt"


class CheckpointForeign(CheckpointError):
    """Written by other weights, code or hardware, or in another version of the format."""

    code = "checkpoint_foreign"


class StaleLease(ReelserveError):
    """The fence is old: the job was cancelled, deleted, or given to another replica."""

    code = "stale_lease"


class ConfigError(ReelserveError):
    """A file or a setting is wrong. The message names it and says what is allowed."""

    code = "config_error"
