"""What all stores share about points: names, what may be stored, and the payload a document is stored as.

Payload: `id`, `title`, `text`, `metadata`, `content_hash`. What one store cannot keep, every store refuses.
"""

import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from service.errors import FingerprintMismatchError, InvalidInputError, NotFoundError
from service.store.base import CollectionInfo, Document, Embedding, Point

MAX_METADATA_DEPTH = 16  # protobuf readers stop at 100 messages; an object inside an object is three of them

NAME_PATTERN = r"^-?([A-Za-z0-9_]+-)*[A-Za-z0-9_]*$"  # without `--`: physical names have it
PHYSICAL_PATTERN = r"^[A-Za-z0-9_-]+$"  # of directories, so nothing that leads elsewhere
MAX_NAME_CHARS = 64
DOCUMENT_FIELDS = ["id", "title", "text", "metadata"]
"""Of a payload: what makes the document."""


def check_name(name: str) -> str:
    """The collection name. Raises InvalidInputError unless it is 1-64 of `[A-Za-z0-9_-]` without `--`."""
    if not re.fullmatch(NAME_PATTERN, name) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise InvalidInputError(
            f"collection name {name!r:.80} must be 1 to 64 letters, digits, `_` or `-`, without `--`"
        )
    return name


def physical_name(name: str, fingerprint: str) -> str:
    """Name of the physical collection that a public name points at."""
    return f"{name}--{fingerprint[:8]}"


def public_name(collection: str) -> str:
    """The public name of a collection that is named by this or by its physical name."""
    return collection.rpartition("--")[0] or collection


def check_fingerprint(info: CollectionInfo, fingerprint: str, dimension: int) -> CollectionInfo:
    """The collection, if it belongs to this checkpoint. Raises FingerprintMismatchError."""
    if info.fingerprint != fingerprint or info.dimension != dimension:
        raise FingerprintMismatchError(
            f"collection {info.name!r} holds vectors of checkpoint {info.fingerprint} (dimension {info.dimension}), "
            f"this service runs {fingerprint} (dimension {dimension}): start it with that checkpoint, use another "
            f"collection, re-index this one (POST /collections/{info.name}/reindex), or drop it "
            f"(DELETE /collections/{info.name}) and index again"
        )
    return info


def check_standby(live: CollectionInfo, fingerprint: str) -> None:
    """Raise FingerprintMismatchError if the standby of `live` would be of its checkpoint, or take its physical name."""
    if physical_name(live.name, fingerprint) == live.physical_name:
        raise FingerprintMismatchError(
            f"collection {live.name!r} belongs to checkpoint {live.fingerprint} already; name another checkpoint"
        )


def unknown_collection(name: str) -> NotFoundError:
    """What every call on a collection that is not there raises."""
    name = public_name(name)
    return NotFoundError(f"there is no collection {name!r:.80}; create it with PUT /collections/{name:.80}")


def check_embeddings(embeddings: Embedding, dimension: int) -> Embedding:
    """Embeddings of shape (n, dimension) as float32. Raises InvalidInputError for another shape, NaN or infinity."""
    array = np.asarray(embeddings, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise InvalidInputError(f"embeddings have shape {array.shape}, the collection's dimension is {dimension}")
    if not np.isfinite(array).all():
        raise InvalidInputError("an embedding holds NaN or infinity; nothing of the call was stored")
    return array


def excluded_score(threshold: float) -> float:
    """The highest float32 score below `threshold`: the engine leaves out a score that equals what it is given."""
    # cosines lie within; beyond float32 there is no number to step down from
    bounded = np.float32(min(max(threshold, -2.0), 2.0))
    return float(np.nextafter(bounded, np.float32(-np.inf)))


def check_points(points: Sequence[Point], dimension: int) -> dict[str, Point]:
    """Points by document id; of two with the same id the last one wins.

    Raises:
        InvalidInputError: an embedding or metadata that a store could not keep as it is.
    """
    for point in points:
        check_embeddings(point.embedding[None], dimension)
        if point.content_hash is None:  # else it has been, see `Point`
            check_document(point.document)
    return {point.document.id: point for point in points}


def check_cursor(after: str | None) -> str | None:
    """The cursor of a scroll: the point id that the page begins with. Raises InvalidInputError for any other text."""
    try:
        return None if after is None else str(uuid.UUID(after))
    except ValueError:
        raise InvalidInputError(f"{after!r:.80} is no cursor; take the one that the previous page gave") from None


def to_payload(point: Point) -> dict[str, Any]:
    """What is stored beside the embedding."""
    document = point.document
    return {
        "id": document.id,
        "title": document.title,
        "text": document.text,
        "metadata": dict(document.metadata),
        "content_hash": stored_hash(point),
    }


def stored_hash(point: Point) -> str:
    """The content hash that is stored with a point."""
    return point.document.content_hash() if point.content_hash is None else point.content_hash


def from_payload(payload: Mapping[str, Any]) -> Document:
    """The document of a payload; `text` is empty where it was not asked for."""
    return Document(
        id=payload["id"],
        title=payload.get("title", ""),
        text=payload.get("text", ""),
        metadata=payload.get("metadata", {}),
    )


def stored_point(payload: Mapping[str, Any], embedding: Embedding) -> Point:
    """The point of a whole payload and its embedding, shape (dimension,)."""
    return Point(document=from_payload(payload), embedding=embedding, content_hash=payload["content_hash"])


def check_document(document: Document) -> None:
    """Raise InvalidInputError for a document that a store could not keep as it is. Takes a while for large metadata."""
    try:
        for text in (document.id, document.title, document.text):
            text.encode("utf-8")
        _check_items(document.metadata.items(), depth=1)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"document {document.id!a:.80}: a lone surrogate is not text; remove it") from error
    except _UnstorableError as error:
        place = "".join(reversed(error.steps))
        raise InvalidInputError(f"document {document.id!a:.80}: metadata{place:.80}: {error}") from error


class _UnstorableError(Exception):
    """What a store cannot keep; collects the steps of its place, inner ones first, on its way out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.steps: list[str] = []


def _check_items(items: Iterable[tuple[Any, Any]], depth: int) -> None:
    """Raise for what JSON or a store cannot keep as it is; keys are strings, indices integers."""
    if depth > MAX_METADATA_DEPTH:
        raise _UnstorableError(f"nests deeper than {MAX_METADATA_DEPTH}")
    for key, value in items:
        try:
            if isinstance(key, str) and not key.isascii():
                key.encode("utf-8")
            if isinstance(value, str):
                if not value.isascii():
                    value.encode("utf-8")
            elif isinstance(value, int):
                if not -(2**63) <= value < 2**63:
                    raise _UnstorableError("an integer beyond 64 bits; send it as a string")
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise _UnstorableError(f"{value} is not a finite number; leave it out or send it as a string")
            elif isinstance(value, Mapping):
                _check_items(value.items(), depth + 1)
            elif isinstance(value, list | tuple):
                _check_items(enumerate(value), depth + 1)
        except _UnstorableError as error:
            error.steps.append(f".{key:.40}" if isinstance(key, str) else f"[{key}]")
            raise
