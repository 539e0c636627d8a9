"""The errors a caller can see, and the one table from error to HTTP status.

Every message states the value, the limit and the way out. Child processes send an error as `(code, detail)`;
`error_from_code` builds it again on the other side.
"""

from typing import Any, ClassVar, Self


class EoseekError(Exception):
    """Base of all errors with a stable `code`; `detail` is written for the caller."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str, *, retry_after_seconds: float | None = None, extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}

    def copy(self) -> Self:
        """The same error for another caller, without a traceback. Not for `AccessError`, whose arguments differ."""
        return type(self)(self.detail, retry_after_seconds=self.retry_after_seconds, extra=self.extra)


class ConfigurationError(EoseekError):
    """The service cannot start as configured; the command ends with this line and exit code 2."""

    code = "configuration"
    title = "Configuration error"


class InvalidInputError(EoseekError):
    """A well-formed request whose content is refused."""

    code = "invalid_input"
    status = 422
    title = "Invalid input"


class MalformedInputError(EoseekError):
    """A body that cannot be read: not JSON, not UTF-8, a lone surrogate."""

    code = "malformed_input"
    status = 400
    title = "Malformed input"


class TextTooLongError(InvalidInputError):
    """A text over the model's length without `truncate: true`."""

    code = "text_too_long"
    title = "Text too long"


class InvalidFilterError(InvalidInputError):
    """A filter that Qdrant would refuse; the detail names the place in it."""

    code = "invalid_filter"
    title = "Invalid filter"


class ClientGoneError(MalformedInputError):
    """The client hung up before its body was complete; nobody reads the answer."""

    code = "client_gone"
    title = "Client gone"


class UnsupportedMediaTypeError(EoseekError):
    """A content type or content encoding that the route does not read."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


class BodyTooLargeError(EoseekError):
    """A request body over the limit."""

    code = "body_too_large"
    status = 413
    title = "Body too large"


class AccessError(EoseekError):
    """Base of the refusals that another key may heal; `challenge` says in `WWW-Authenticate` what is missing."""

    def __init__(self, detail: str, *, challenge: str = "") -> None:
        super().__init__(detail)
        self.challenge = ", ".join(filter(None, ('Bearer realm="eoseek"', challenge)))


class UnauthorizedError(AccessError):
    """No key, or one that is not known."""

    code = "unauthorized"
    status = 401
    title = "A key is needed"


class ForbiddenError(AccessError):
    """A known caller who may not do this."""

    code = "forbidden"
    status = 403
    title = "Not allowed"


class NotFoundError(EoseekError):
    """An unknown collection or document."""

    code = "not_found"
    status = 404
    title = "Not found"


class FingerprintMismatchError(EoseekError):
    """A collection that belongs to another checkpoint."""

    code = "fingerprint_mismatch"
    status = 409
    title = "Collection belongs to another checkpoint"


class ReindexConflictError(EoseekError):
    """A step of a re-index that its state does not allow."""

    code = "reindex_conflict"
    status = 409
    title = "Not in this state of the re-index"


class OverloadedError(EoseekError):
    """Admission is full; `retry_after_seconds` estimates when it is not."""

    code = "overloaded"
    status = 429
    title = "Overloaded"


class RateLimitedError(EoseekError):
    """A key's own rate is spent; `retry_after_seconds` says when it is not."""

    code = "rate_limited"
    status = 429
    title = "Too many requests with this key"


class NotReadyError(EoseekError):
    """Base of the errors that time may heal; answered with 503."""

    code = "not_ready"
    status = 503
    title = "Not ready"


class CollectionSwitchedError(NotReadyError):
    """A write was encoded for a collection that was switched to another checkpoint since."""

    code = "collection_switched"
    title = "Collection was switched"


class DeadlineExceededError(NotReadyError):
    """The request's deadline passed before its result was there."""

    code = "deadline_exceeded"
    title = "Deadline exceeded"


class EncoderError(NotReadyError):
    """The encoder failed or is away."""

    code = "encoder_unavailable"
    title = "Encoder unavailable"


class StoreError(NotReadyError):
    """The store failed or is away."""

    code = "store_unavailable"
    title = "Store unavailable"


class NotImplementedHereError(EoseekError):
    """A call of the interface that this version does not answer yet."""

    code = "not_implemented"
    status = 501
    title = "Not implemented"


def _subclasses(cls: type[EoseekError]) -> list[type[EoseekError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _subclasses(child)]


def error_from_code(code: str, detail: str) -> EoseekError:
    """The error of the class that carries `code`; `EoseekError` itself for an unknown one."""
    for cls in _subclasses(EoseekError):
        if cls.code == code:
            return cls(detail)
    return EoseekError(detail)
