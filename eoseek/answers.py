"""What the service answers, as both clients give it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class EoseekClientError(Exception):
    """An answer that is not a result, or none at all.

    Attributes:
        status: HTTP status; None when the service gave no answer.
        code: the problem document's stable code; `unreachable` when there was no answer.
        detail: one line for the user.
    """

    def __init__(self, status: int | None, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A found document; the score is the cosine, higher is better."""

    id: str
    score: float
    title: str = ""
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LineFailure:
    """A document that was not indexed; `line` counts from 1 within the request."""

    line: int
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class IngestAnswer:
    """What became of the documents of one request; those counted as indexed are durable."""

    indexed: int
    unchanged: int
    failed: list[LineFailure]
    num_truncated: int


@dataclass(frozen=True, kw_only=True)
class SearchAnswer:
    """Hits for each query, best first, and the indices of the queries that were cut."""

    results: list[list[Hit]]
    truncated: list[int]


@dataclass(frozen=True, kw_only=True)
class EmbedAnswer:
    """Unit-length embeddings in input order, and the indices of the inputs that were cut."""

    embeddings: list[list[float]]
    truncated: list[int]
