"""The store contract: documents with one embedding each, in collections that belong to a checkpoint's fingerprint.

Three implementations are held to one test suite: `memory` (exact, the oracle), `edge` (embedded), `qdrant` (server).
A collection's public name points at a physical collection `name--fingerprint8`, and while it is re-indexed has a
second one, its standby, so that the two can be exchanged in one step.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Embedding = NDArray[np.float32]
Filter = Mapping[str, Any]  # Qdrant's JSON, already checked by `filters.check_filter`

# never change: point ids of all stores depend on it
_NAMESPACE = uuid.UUID("6f1c0f4e-6d0b-5a0e-9b57-0e05ee4e05ee")


def point_id(document_id: str) -> str:
    """The UUID under which a document is stored: uuid5 of its id (stores accept only integers and UUIDs)."""
    return str(uuid.uuid5(_NAMESPACE, document_id))


@dataclass(frozen=True, kw_only=True)
class Document:
    """The unit of retrieval, stored whole as one embedding."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def content_hash(self) -> str:
        """sha256 over title, text and metadata: equal hashes under one fingerprint mean nothing to do."""
        content = json.dumps([self.title, self.text, self.metadata], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Point:
    """A document with its unit-length float32 embedding, shape (dimension,).

    Stores keep `content_hash`, which tells what the embedding was made from, and `scroll` gives it back. None stands
    for the whole document's; who sets it has checked the document (`points.check_document`), which is not walked again.
    `num_bytes` is about what the document takes on the wire; 0 where that does not matter.
    """

    document: Document
    embedding: Embedding
    content_hash: str | None = None
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A found document; the score is the cosine, higher is better. `text` is empty when it was not asked for."""

    document: Document
    score: float


@dataclass(frozen=True, kw_only=True)
class CollectionInfo:
    """What a collection is and holds."""

    name: str
    physical_name: str
    fingerprint: str
    dimension: int
    num_documents: int
    num_indexed: int  # of them; searches scan the others
    size_bytes: int | None  # None where the store cannot tell


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What to return and from what: scores from the threshold on; `exact` scans all instead of using an index."""

    top_k: int = 10
    offset: int = 0
    filter: Filter | None = None
    score_threshold: float | None = None
    with_text: bool = True
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A directory with a subdirectory for each physical name, and what they are."""

    directory: Path
    collections: list[CollectionInfo]


class Store(Protocol):
    """All calls raise NotFoundError for an unknown collection and StoreError when the store is away.

    Writes are durable and visible to the next call when they return. All methods are safe to call concurrently.
    A `collection`, and the name that is described, may also be a physical name: whoever holds embeddings of one
    checkpoint names the collection that they belong to, whatever the public name points at by then.
    """

    @property
    def is_ready(self) -> bool:
        """Whether the store would answer now."""
        ...

    async def start(self) -> None:
        """Open the store. Raises ConfigurationError when it never can be (path not writable, opened elsewhere)."""
        ...

    async def stop(self) -> None:
        """Flush and close."""
        ...

    async def create_collection(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """Create a collection, or return it if it exists with this fingerprint.

        Raises:
            FingerprintMismatchError: it belongs to another checkpoint; the message names both and the way out.
            InvalidInputError: a name that is not 1-64 of `[A-Za-z0-9_-]` or that contains `--`.
        """
        ...

    async def list_collections(self) -> list[CollectionInfo]:
        """All collections by name."""
        ...

    async def describe_collection(self, name: str) -> CollectionInfo:
        """One collection."""
        ...

    async def drop_collection(self, name: str) -> None:
        """Remove a collection with all its documents, and its standby."""
        ...

    async def create_standby(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """A second physical collection behind a name, or the one that is there; one of a third checkpoint goes.

        Raises:
            FingerprintMismatchError: the collection itself has this fingerprint.
            NotImplementedHereError: this store has no standbys, nor what follows; the detail says what to do.
        """
        ...

    async def list_standbys(self) -> list[CollectionInfo]:
        """All standbys by name; no other call lists them, and no snapshot holds them."""
        ...

    async def switch_collection(self, name: str, physical_name: str) -> None:
        """Let the name point at `physical_name`, and make the other one its standby, in one step that may be repeated.

        After a StoreError `describe_collection` tells what holds. Raises NotFoundError if it is neither of the two.
        """
        ...

    async def drop_standby(self, name: str) -> None:
        """Remove a standby with all its documents, if there is one."""
        ...

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """Insert or replace whole documents; all or none of the call becomes visible.

        Of two points with the same id the last one wins. `qdrant` stores more than 256 points in several requests.

        Raises:
            InvalidInputError: an embedding of another dimension, or not finite.
        """
        ...

    async def content_hashes(self, collection: str, document_ids: Sequence[str]) -> dict[str, str]:
        """Content hash by id, of those that are stored."""
        ...

    async def get(self, collection: str, document_ids: Sequence[str]) -> list[Document | None]:
        """Documents in the order asked; None where there is none."""
        ...

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """Remove by id; returns how many there were."""
        ...

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """Remove by filter; returns how many matched."""
        ...

    async def count(self, collection: str, filter: Filter | None = None) -> int:
        """Exact number of documents that match."""
        ...

    async def search_batch(self, collection: str, embeddings: Embedding, options: SearchOptions) -> list[list[Hit]]:
        """Best documents by cosine, descending, for each row of `embeddings`, shape (num_queries, dimension)."""
        ...

    async def snapshot(self) -> Snapshot:
        """A copy of all collections on disk, each as of one moment; the caller discards it.

        Raises:
            NotImplementedHereError: only the embedded store has files of its own to copy; the detail says what to do.
        """
        ...

    async def scroll(
        self, collection: str, *, after: str | None = None, batch_size: int = 256, filter: Filter | None = None
    ) -> tuple[list[Point], str | None]:
        """A page of points in a fixed order and the cursor of the next page; None after the last."""
        ...
