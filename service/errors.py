"""The errors a caller can see, and the one table from error to HTTP status.

Every message states the value, the limit and the way out. Child processes send an error as `(code, detail)`;
`error_from_code` builds it again on the other side.
"""

from typing import Any, ClassVar, Self


class EoseekError(Exception):
    """A fault of the service, and the base of all errors.

    `code` is stable and `detail` written for the caller; `remedy` says for docs/errors.md what to do about the kind.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    remedy: ClassVar[str] = "Report it with the answer's `instance`, by which the service's log has its traceback."

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
    """The service cannot start as configured; the command ends with one line and exit code 2."""

    code = "configuration"
    title = "Configuration error"
    remedy = "Correct the setting, option or file that the line names."


class InvalidInputError(EoseekError):
    """A well-formed request whose content is refused."""

    code = "invalid_input"
    status = 422
    title = "Invalid input"
    remedy = "Send what `detail` asks for; `errors` names each refused field. The same request fails again."


class MalformedInputError(EoseekError):
    """A body that cannot be read: not JSON, not UTF-8, a lone surrogate."""

    code = "malformed_input"
    status = 400
    title = "Malformed input"
    remedy = "Send JSON in UTF-8, with finite numbers and without lone surrogates."


class TextTooLongError(InvalidInputError):
    """A text over the model's length without `truncate: true`."""

    code = "text_too_long"
    title = "Text too long"
    remedy = "Split the text, or send `truncate: true` and read in the answer what was cut."


class InvalidFilterError(InvalidInputError):
    """A filter that Qdrant would refuse; the detail names the place in it."""

    code = "invalid_filter"
    title = "Invalid filter"
    remedy = "Correct the place that `detail` names; filters are Qdrant's JSON."


class ClientGoneError(MalformedInputError):
    """The client hung up before its body was complete; nobody reads the answer."""

    code = "client_gone"
    title = "Client gone"
    remedy = "Nothing, or a longer time limit in the client."


class UnsupportedMediaTypeError(EoseekError):
    """A content type or content encoding that the route does not read."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"
    remedy = "Send `application/json`, uncompressed; documents also as `application/x-ndjson`."


class BodyTooLargeError(EoseekError):
    """A request body over the limit."""

    code = "body_too_large"
    status = 413
    title = "Body too large"
    remedy = "Send several requests, documents as NDJSON, or raise `EOSEEK_API__MAX_BODY_BYTES`."


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
    remedy = "Send `Authorization: Bearer KEY`."


class ForbiddenError(AccessError):
    """A known caller who may not do this."""

    code = "forbidden"
    status = 403
    title = "Not allowed"
    remedy = "Use a key of the role, and for the collection, that `detail` names. List a page's origin for CORS."


class NotFoundError(EoseekError):
    """An unknown collection or document."""

    code = "not_found"
    status = 404
    title = "Not found"
    remedy = "Check the name or id; `GET /collections` lists what there is, `PUT /collections/{name}` makes one."


class FingerprintMismatchError(EoseekError):
    """A collection that belongs to another checkpoint."""

    code = "fingerprint_mismatch"
    status = 409
    title = "Collection belongs to another checkpoint"
    remedy = "Re-index it, start the checkpoint that encoded it, or use another collection."


class ReindexConflictError(EoseekError):
    """A step of a re-index that its state does not allow."""

    code = "reindex_conflict"
    status = 409
    title = "Not in this state of the re-index"
    remedy = "Ask `GET /collections/{name}/reindex` for its stage; `detail` names the step that is possible."


class OverloadedError(EoseekError):
    """Admission is full; `Retry-After` estimates when it is not."""

    code = "overloaded"
    status = 429
    title = "Overloaded"
    remedy = "Send it again after `Retry-After` seconds, with fewer requests at once."


class RateLimitedError(EoseekError):
    """A key's own rate is spent; `Retry-After` says when it is not."""

    code = "rate_limited"
    status = 429
    title = "Too many requests with this key"
    remedy = "Send it again after `Retry-After` seconds; the rate is the key's `requests_per_second`."


class NotReadyError(EoseekError):
    """A part is away, starting or ending; base of the errors that time may heal."""

    code = "not_ready"
    status = 503
    title = "Not ready"
    remedy = "Send it again after `Retry-After` seconds."


class CollectionSwitchedError(NotReadyError):
    """A write was encoded for a collection that was switched to another checkpoint since."""

    code = "collection_switched"
    title = "Collection was switched"
    remedy = "Send the document again; it is then encoded for the collection that serves."


class DeadlineExceededError(NotReadyError):
    """The request's deadline passed before its result was there."""

    code = "deadline_exceeded"
    title = "Deadline exceeded"
    remedy = "Send less at once, or wait longer: `X-Request-Timeout`, `EOSEEK_API__REQUEST_TIMEOUT_SECONDS`."


class EncoderError(NotReadyError):
    """The encoder failed or is away."""

    code = "encoder_unavailable"
    title = "Encoder unavailable"
    remedy = "Send it again after `Retry-After` seconds; where it stays: EoseekEncodeFailures in docs/operations.md."


class StoreError(NotReadyError):
    """The store failed or is away."""

    code = "store_unavailable"
    title = "Store unavailable"
    remedy = "Send it again after `Retry-After` seconds; where it stays: EoseekStoreErrors in docs/operations.md."


class NotImplementedHereError(EoseekError):
    """A call of the interface that this version does not answer yet."""

    code = "not_implemented"
    status = 501
    title = "Not implemented"
    remedy = "Use another store; `detail` says which way there is."


def _subclasses(cls: type[EoseekError]) -> list[type[EoseekError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _subclasses(child)]


def error_from_code(code: str, detail: str) -> EoseekError:
    """The error of the class that carries `code`; `EoseekError` itself for an unknown one."""
    for cls in _subclasses(EoseekError):
        if cls.code == code:
            return cls(detail)
    return EoseekError(detail)
