"""The exact store: everything in this process, searched by one matrix product; the oracle of the others.

Nothing outlives the process. A search after a write stacks the embeddings again, which costs a copy of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.errors import NotImplementedHereError
from service.store.base import (
    CollectionInfo,
    Document,
    Embedding,
    Filter,
    Hit,
    Point,
    SearchOptions,
    Snapshot,
    point_id,
)
from service.store.filters import matcher
from service.store.points import (
    check_cursor,
    check_embeddings,
    check_fingerprint,
    check_name,
    check_points,
    check_standby,
    excluded_score,
    physical_name,
    public_name,
    stored_hash,
    unknown_collection,
)


class _Collection:
    """Points by document id, and their matrix while nothing has changed."""

    def __init__(self, info: CollectionInfo) -> None:
        self.info = info
        self.points: dict[str, Point] = {}
        self.hashes: dict[str, str] = {}
        self._rows: tuple[list[Document], Embedding] | None = None

    def put(self, points: dict[str, Point]) -> None:
        self.points |= points
        self.hashes |= {document_id: stored_hash(point) for document_id, point in points.items()}
        self._rows = None

    def remove(self, document_ids: Sequence[str]) -> int:
        present = set(document_ids) & self.points.keys()
        for document_id in present:
            del self.points[document_id], self.hashes[document_id]
        self._rows = None
        return len(present)

    def rows(self) -> tuple[list[Document], Embedding]:
        if self._rows is None:
            embeddings = [point.embedding for point in self.points.values()]
            matrix = np.array(embeddings, dtype=np.float32).reshape(len(embeddings), self.info.dimension)
            self._rows = [point.document for point in self.points.values()], matrix
        return self._rows

    def matching(self, filter: Filter | None) -> list[Document]:
        documents = [point.document for point in self.points.values()]
        if filter is None:
            return documents
        is_match = matcher(filter)
        return [each for each in documents if is_match(each.metadata, each.id)]

    def describe(self) -> CollectionInfo:
        return replace(self.info, num_documents=len(self.points))


class MemoryStore:
    """See `Store`; search is exact with or without `SearchOptions.exact`."""

    def __init__(self) -> None:
        self._collections: dict[str, _Collection] = {}
        self._standbys: dict[str, _Collection] = {}

    @property
    def is_ready(self) -> bool:
        """Always."""
        return True

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def create_collection(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`."""
        if check_name(name) in self._collections:
            return check_fingerprint(self._collections[name].describe(), fingerprint, dimension)
        self._collections[name] = _empty(name, fingerprint, dimension)
        return self._collections[name].info

    async def list_collections(self) -> list[CollectionInfo]:
        """See `Store`."""
        return [self._collections[name].describe() for name in sorted(self._collections)]

    async def describe_collection(self, name: str) -> CollectionInfo:
        """See `Store`."""
        return self._collection(name).describe()

    async def drop_collection(self, name: str) -> None:
        """See `Store`."""
        self._collection(name)
        del self._collections[name]
        await self.drop_standby(name)

    async def create_standby(self, name: str, *, fingerprint: str, dimension: int) -> CollectionInfo:
        """See `Store`."""
        check_standby(self._collection(name).info, fingerprint)
        if name not in self._standbys or self._standbys[name].info.fingerprint != fingerprint:
            self._standbys[name] = _empty(name, fingerprint, dimension)
        return self._standbys[name].describe()

    async def list_standbys(self) -> list[CollectionInfo]:
        """See `Store`."""
        return [self._standbys[name].describe() for name in sorted(self._standbys)]

    async def switch_collection(self, name: str, physical_name: str) -> None:
        """See `Store`."""
        live, wanted = self._collection(name), self._collection(physical_name)
        if wanted not in (live, self._standbys.get(name)):
            raise unknown_collection(name)
        if wanted is not live:
            self._collections[name], self._standbys[name] = wanted, live

    async def drop_standby(self, name: str) -> None:
        """See `Store`."""
        self._standbys.pop(name, None)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """See `Store`."""
        found = self._collection(collection)
        found.put(check_points(points, found.info.dimension))

    async def content_hashes(self, collection: str, document_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        hashes = self._collection(collection).hashes
        return {each: hashes[each] for each in document_ids if each in hashes}

    async def get(self, collection: str, document_ids: Sequence[str]) -> list[Document | None]:
        """See `Store`."""
        points = self._collection(collection).points
        return [points[each].document if each in points else None for each in document_ids]

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """See `Store`."""
        return self._collection(collection).remove(document_ids)

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """See `Store`."""
        found = self._collection(collection)
        return found.remove([each.id for each in found.matching(filter)])

    async def count(self, collection: str, filter: Filter | None = None) -> int:
        """See `Store`."""
        return len(self._collection(collection).matching(filter))

    async def search_batch(self, collection: str, embeddings: Embedding, options: SearchOptions) -> list[list[Hit]]:
        """See `Store`."""
        found = self._collection(collection)
        queries = check_embeddings(embeddings, found.info.dimension)
        documents, matrix = found.rows()
        is_match = matcher(options.filter or {})
        kept = [i for i, each in enumerate(documents) if is_match(each.metadata, each.id)]
        return [_best([documents[i] for i in kept], scores, options) for scores in queries @ matrix[kept].T]

    async def snapshot(self) -> Snapshot:
        """See `Store`."""
        raise NotImplementedHereError("The store in memory has no backup: it is gone at exit, as it was asked to be.")

    async def scroll(
        self, collection: str, *, after: str | None = None, batch_size: int = 256, filter: Filter | None = None
    ) -> tuple[list[Point], str | None]:
        """See `Store`; the order is that of the point ids."""
        found = self._collection(collection)
        cursor = check_cursor(after) or ""
        ids = {point_id(each.id): each.id for each in found.matching(filter)}
        page = sorted(each for each in ids if each >= cursor)[: batch_size + 1]
        points = [replace(found.points[ids[each]], content_hash=found.hashes[ids[each]]) for each in page[:batch_size]]
        return points, page[batch_size] if len(page) > batch_size else None

    def _collection(self, name: str) -> _Collection:
        if name in self._collections:
            return self._collections[name]
        for named in (self._collections, self._standbys):
            found = named.get(public_name(name))
            if found is not None and found.info.physical_name == name:
                return found
        raise unknown_collection(name)


def _empty(name: str, fingerprint: str, dimension: int) -> _Collection:
    info = CollectionInfo(
        name=name,
        physical_name=physical_name(name, fingerprint),
        fingerprint=fingerprint,
        dimension=dimension,
        num_documents=0,
        num_indexed=0,
        size_bytes=None,
    )
    return _Collection(info)


def _best(documents: list[Document], scores: Embedding, options: SearchOptions) -> list[Hit]:
    """Hits from the threshold on by descending score, the page asked for."""
    order = np.argsort(-scores, kind="stable")
    if options.score_threshold is not None:
        order = order[scores[order] > excluded_score(options.score_threshold)]
    page = order[options.offset : options.offset + options.top_k]
    return [
        Hit(document=documents[i] if options.with_text else replace(documents[i], text=""), score=float(scores[i]))
        for i in page
    ]
