"""The embedded store's collections as Qdrant Edge shards; runs in a child process, because Edge's calls hold the GIL.

On disk: `collections/<physical>/collection.json`, which names the directory of the shard beside it, and `aliases.json`,
which maps public to physical names (those of standbys end in `:standby`). Each is replaced in one step: a directory
that it does not name is half made or half removed, and is cleared at open. A call that writes flushes before it
returns. No index is built here; a shard that was built elsewhere, from a copy, is taken in exchange: `adopt`,
`catch_up` as often as needed, `exchange`.
"""

import contextlib
import errno
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray
from pydantic import StringConstraints, TypeAdapter

from service.errors import ConfigurationError, StoreError
from service.paths import writable_bytes, write_json
from service.store.base import Filter, point_id
from service.store.edge_files import FIRST_SHARD, Described, check_segments, describe, described, lock, size_bytes
from service.store.edge_filters import edge_filter, optional_edge_filter
from service.store.edge_index import IndexFigures, figures, search_params
from service.store.points import PHYSICAL_PATTERN, physical_name, unknown_collection

_ALIASES = TypeAdapter(dict[str, Annotated[str, StringConstraints(pattern=PHYSICAL_PATTERN)]])
_WITHOUT_TEXT = ["id", "title", "metadata"]
_COPIES = 3  # of what is written: in the log, in the segment, and room for the next file of either
_STANDBY = ":standby"  # no collection can be called so


@dataclass(frozen=True)
class _Candidate:
    """A shard that was built to take the place of a collection's, in the directory beside it, and where it was."""

    directory: Path
    source: Path
    shard: edge.EdgeShard


def build(config: dict[str, Any]) -> "EdgeShards":
    """The handler of the child process; `config` has the store's `path`."""
    return EdgeShards(Path(config["path"]))


class EdgeShards:
    """All collections under one path, by public or physical name; arguments and results are plain values and arrays,
    filters are in stored form."""

    def __init__(self, path: Path) -> None:
        """Lock the path, clear what is half made and open all shards.

        Raises:
            ConfigurationError: the path is not writable, open elsewhere or damaged; one line with the way out.
        """
        self._path = path
        self._collections = path / "collections"
        self._shards: dict[str, edge.EdgeShard] = {}  # by physical name
        self._candidate: _Candidate | None = None
        try:
            self._collections.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
        except OSError as error:
            raise ConfigurationError(
                f"the store path {path} cannot be used: {error.strerror}; "
                f"make it a writable directory or set EOSEEK_STORE__PATH"
            ) from error
        try:
            self._aliases = self._read_aliases()
            for name, physical in self._aliases.items():
                self._shards[physical] = self._open(name)
            self._clear_unnamed()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Flush and close all shards and give the lock back."""
        self.abandon()
        for shard in self._shards.values():
            shard.flush()
            shard.close()
        self._shards.clear()
        os.close(self._lock)

    def create(self, name: str, fingerprint: str, dimension: int) -> dict[str, Any]:
        """Create a collection. One that is there, because a call is repeated after a crash, is left as it is."""
        if name not in self._aliases:
            self._make(name, name, fingerprint, dimension)
        return self.describe(name)

    def create_standby(self, name: str, fingerprint: str, dimension: int) -> dict[str, Any]:
        """Create a standby, or leave it as it is; one of another checkpoint is removed first."""
        self._shard(name)
        physical = physical_name(name, fingerprint)
        assert physical != self._aliases[name], "the collection itself is no standby"
        if self._aliases.get(name + _STANDBY) != physical:
            self.drop_standby(name)
            self._make(name + _STANDBY, name, fingerprint, dimension)
        return self.describe(physical)

    def standbys(self) -> list[str]:
        """The physical names of all standbys, sorted."""
        return sorted(physical for name, physical in self._aliases.items() if name.endswith(_STANDBY))

    def switch(self, name: str, physical: str) -> None:
        """Exchange a collection with its standby, unless that has been done."""
        self._shard(name)
        live, standby = self._aliases[name], self._aliases.get(name + _STANDBY)
        if physical not in (live, standby):
            raise unknown_collection(name)
        if physical != live:
            self._write_aliases(self._aliases | {name: physical, name + _STANDBY: live})

    def drop_standby(self, name: str) -> None:
        """Remove a standby, if there is one."""
        self._forget(name + _STANDBY)

    def _make(self, alias: str, name: str, fingerprint: str, dimension: int) -> None:
        self._check_room(0)
        physical = physical_name(name, fingerprint)
        if physical in self._shards:  # one that lost its name to a write that failed
            self._shards.pop(physical).close()
        directory = self._collections / physical
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        # unit vectors: the dot product is the cosine, and vectors come back as they were given
        vectors = edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Dot)
        shard = edge.EdgeShard.create(str(directory / FIRST_SHARD), edge.EdgeConfig(vectors=vectors))
        shard.flush()
        describe(directory, Described(name=name, fingerprint=fingerprint, dimension=dimension))
        self._shards[physical] = shard
        self._write_aliases(self._aliases | {alias: physical})

    def drop(self, name: str) -> None:
        """Remove a collection and its standby: the names first, so that a crash leaves directories without one."""
        self._shard(name)
        self._forget(name, name + _STANDBY)

    def names(self) -> list[str]:
        """All collections, sorted."""
        return sorted(name for name in self._aliases if not name.endswith(_STANDBY))

    def describe(self, name: str) -> dict[str, Any]:
        """The fields of `CollectionInfo`."""
        count = self.count(name, None)
        directory = self._directory(name)
        return described(directory).model_dump(exclude={"shard"}) | {
            "physical_name": directory.name,
            "num_documents": count,
            "num_indexed": count - self._figures(directory.name).num_outside,
            "size_bytes": size_bytes(directory),
        }

    def unindexed(self, threshold: int) -> list[str]:
        """The physical names of collections and standbys that want an index, or a new one; see `IndexFigures`."""
        return sorted(physical for physical in self._shards if self._wants_index(physical, threshold))

    def adopt(self, physical: str, source: str) -> str:
        """Open the shard of a collection that was copied to `source` beside the one it is to replace.

        Returns:
            Its name, by which `catch_up` and `exchange` know it. What was adopted before is given up.
        """
        self._shard(physical)
        self.abandon()
        directory = self._collections / physical / f"{FIRST_SHARD}-{uuid.uuid4().hex[:8]}"
        (Path(source) / described(Path(source)).shard).rename(directory)
        try:
            self._candidate = _Candidate(directory, Path(source), edge.EdgeShard.load(str(directory)))
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory.name

    def catch_up(self, physical: str, shard: str, document_ids: list[str], filters: list[Filter]) -> None:
        """Make the adopted shard equal to the collection in these documents, and where these filters deleted."""
        live, candidate = self._shard(physical), self._adopted(shard).shard
        for each in filters:
            candidate.update(edge.UpdateOperation.delete_points_by_filter(edge_filter(each)))
        ids: list[edge.PointId] = [point_id(each) for each in document_ids]
        records = live.retrieve(ids, with_payload=True, with_vector=True)
        points = [edge.Point(record.id, record.vector or [], record.payload) for record in records]
        vector_bytes = 4 * described(self._collections / physical).dimension
        self._check_room(sum(_num_bytes(point.payload or {}, vector_bytes) for point in points))
        if points:
            candidate.update(edge.UpdateOperation.upsert_points(points))
        if gone := {str(each) for each in ids} - {str(record.id) for record in records}:
            candidate.update(edge.UpdateOperation.delete_points(sorted(gone)))

    def exchange(self, physical: str, shard: str, document_ids: list[str], filters: list[Filter]) -> None:
        """Catch up for the last time and let the adopted shard take the place of the collection's.

        The old one goes to where the new one was built, and is the caller's to remove, as that takes a while. Done
        already where a call is repeated after a crash.
        """
        self._shard(physical)
        directory = self._collections / physical
        old = described(directory)
        if old.shard == shard:
            return
        self.catch_up(physical, shard, document_ids, filters)
        candidate = self._adopted(shard)
        candidate.shard.flush()
        try:
            describe(directory, old.model_copy(update={"shard": shard}))
        finally:
            if described(directory).shard == shard:  # a write that failed may have replaced it
                self._candidate = None
                retired, self._shards[physical] = self._shards[physical], candidate.shard
                retired.close()
                with contextlib.suppress(OSError):  # what is left is cleared at the next open
                    (directory / old.shard).rename(candidate.source / old.shard)

    def abandon(self) -> None:
        """Remove the adopted shard, if there is one."""
        if self._candidate is not None:
            candidate, self._candidate = self._candidate, None
            candidate.shard.close()
            shutil.rmtree(candidate.directory, ignore_errors=True)

    def upsert(self, name: str, payloads: list[dict[str, Any]], embeddings: NDArray[np.float32]) -> None:
        """Insert or replace points, one per payload and row, in one logged operation; durable at return.

        Raises StoreError: the disk has too little room; nothing was written.
        """
        self._check_room(sum(_num_bytes(each, row.nbytes) for each, row in zip(payloads, embeddings, strict=True)))
        points = [
            edge.Point(point_id(payload["id"]), row, payload)
            for payload, row in zip(payloads, embeddings.tolist(), strict=True)
        ]
        self._update(name, edge.UpdateOperation.upsert_points(points))

    def retrieve(self, name: str, document_ids: list[str], fields: list[str]) -> dict[str, dict[str, Any]]:
        """The named fields of the payloads that are there, by document id."""
        ids = {point_id(each): each for each in document_ids}
        records = self._shard(name).retrieve(list(ids), with_payload=fields, with_vector=False)
        return {ids[str(record.id)]: record.payload or {} for record in records}

    def delete(self, name: str, document_ids: list[str]) -> int:
        """Remove by id; returns how many there were."""
        present = self.retrieve(name, document_ids, ["id"])
        self._update(name, edge.UpdateOperation.delete_points([point_id(each) for each in present]))
        return len(present)

    def delete_matching(self, name: str, filter: Filter) -> int:
        """Remove by filter; returns how many matched."""
        num_matching = self.count(name, filter)
        self._update(name, edge.UpdateOperation.delete_points_by_filter(edge_filter(filter)))
        return num_matching

    def count(self, name: str, filter: Filter | None) -> int:
        """Exact number of documents that match."""
        num_matching: int = self._shard(name).count(edge.CountRequest(exact=True, filter=optional_edge_filter(filter)))
        return num_matching

    def search(
        self, name: str, embeddings: NDArray[np.float32], options: dict[str, Any]
    ) -> list[list[tuple[dict[str, Any], float]]]:
        """Payload and score of the best points for each row; `options` are the fields of `SearchOptions`."""
        shard = self._shard(name)
        params = search_params(options, num_points=shard.info().points_count)
        requests = [
            edge.QueryRequest(
                query=edge.Query.Nearest(row),
                limit=options["top_k"],
                offset=options["offset"],
                filter=optional_edge_filter(options["filter"]),
                score_threshold=options["score_threshold"],
                with_payload=[*_WITHOUT_TEXT, "text"] if options["with_text"] else _WITHOUT_TEXT,
                params=params,
            )
            for row in embeddings.tolist()
        ]
        found = shard.query_batch(edge.QueryBatchRequest(requests))
        return [[(point.payload or {}, point.score) for point in points] for points in found]

    def scroll(
        self, name: str, after: str | None, batch_size: int, filter: Filter | None
    ) -> tuple[list[dict[str, Any]], NDArray[np.float32], str | None]:
        """Payloads and embeddings of a page in the order of point ids, and the point id of the next page."""
        request = edge.ScrollRequest(
            offset=after, limit=batch_size, filter=optional_edge_filter(filter), with_payload=True, with_vector=True
        )
        records, following = self._shard(name).scroll(request)
        embeddings = np.array([record.vector for record in records], dtype=np.float32)
        return [record.payload or {} for record in records], embeddings, None if following is None else str(following)

    def _shard(self, name: str) -> edge.EdgeShard:
        physical = self._aliases.get(name, name)
        if physical not in self._shards:
            raise unknown_collection(name)
        return self._shards[physical]

    def _adopted(self, shard: str) -> "_Candidate":
        if self._candidate is None or self._candidate.directory.name != shard:
            raise StoreError("the shard that was built is not open any more; it is built again")
        return self._candidate

    def _wants_index(self, physical: str, threshold: int) -> bool:
        try:
            dimension = described(self._collections / physical).dimension
            return self._figures(physical).is_due(threshold=threshold, dimension=dimension)
        except (OSError, ValueError):  # damaged, which `describe` tells; the others are not
            return False

    def _figures(self, physical: str) -> IndexFigures:
        directory = self._collections / physical
        return figures(self._shards[physical], directory / described(directory).shard)

    def _forget(self, *names: str) -> None:
        """Remove those that are there."""
        gone = [self._aliases[name] for name in names if name in self._aliases]
        if gone:
            self._write_aliases({name: physical for name, physical in self._aliases.items() if name not in names})
        for physical in gone:
            if self._candidate is not None and self._candidate.directory.parent.name == physical:
                self.abandon()
            self._shards.pop(physical).close()
            # leftovers are cleared at the next open or create
            shutil.rmtree(self._collections / physical, ignore_errors=True)

    def _check_room(self, num_bytes: int) -> None:
        writable = writable_bytes(self._path)
        if num_bytes > writable:
            raise StoreError(
                f"The store's disk is full: {max(0, writable):,} bytes may still be written, this takes about "
                f"{num_bytes:,}. What was stored is there and is searched; make room, or drop a collection."
            )

    def _update(self, name: str, operation: edge.UpdateOperation) -> None:
        shard = self._shard(name)
        shard.update(operation)
        shard.flush()

    def _directory(self, name: str) -> Path:
        return self._collections / self._aliases.get(name, name)

    def _open(self, name: str) -> edge.EdgeShard:
        directory = self._directory(name)
        try:
            shard = directory / described(directory).shard
            check_segments(shard)
            return edge.EdgeShard.load(str(shard))
        except Exception as error:
            first_line = str(error).splitlines()[0]
            if f"os error {errno.ENOSPC}" in first_line or getattr(error, "errno", None) == errno.ENOSPC:
                raise ConfigurationError(
                    f"collection {name!r} at {directory} cannot be opened, as its disk is full: make room there, "
                    "beside the store and not in it; nothing is damaged by that"
                ) from error
            raise ConfigurationError(
                f"collection {name!r} at {directory} cannot be opened ({first_line:.300}); restore it from a backup, "
                f"or give it up: delete the directory and its entry in {self._path / 'aliases.json'}, and ingest again"
            ) from error

    def _read_aliases(self) -> dict[str, str]:
        """Physical by public names. Only a path without collections may lack the file: to take a lost one for an empty
        one would clear everything."""
        path = self._path / "aliases.json"
        if not path.exists() and not any(self._collections.iterdir()):
            write_json(path, {})
        try:
            return _ALIASES.validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path} is missing or damaged; it maps collection names to directories under collections/: write it "
                f'again, as in {{"name": "name--fingerprint8"}}, or move {self._path} away and ingest again'
            ) from error

    def _write_aliases(self, aliases: dict[str, str]) -> None:
        try:
            write_json(self._path / "aliases.json", aliases)
        finally:
            self._aliases = self._read_aliases()  # a write that failed may have replaced it

    def _clear_unnamed(self) -> None:
        for directory in self._collections.iterdir():
            if directory.name not in self._aliases.values():
                shutil.rmtree(directory)
                continue
            shard = described(directory).shard
            for each in directory.glob(f"{FIRST_SHARD}*"):
                if each.is_dir() and each.name != shard:
                    shutil.rmtree(each)


def _num_bytes(payload: dict[str, Any], vector_bytes: int) -> int:
    """About what a point takes on disk."""
    return _COPIES * (vector_bytes + len(payload.get("title", "")) + len(payload.get("text", "")))
