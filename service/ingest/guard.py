"""Every write of the service passes here, so that a re-index misses none and none falls between two collections.

A write that has begun is waited for to its end, also when its caller gave up: it may still land, and its follower is
told only then. While a collection is switched the door is closed; a write of embeddings that waited there, and belongs
to the collection that is live no more, is refused.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from service.errors import CollectionSwitchedError
from service.store.base import Filter, Point, Store
from service.store.points import public_name

_T = TypeVar("_T")


class Follower(Protocol):
    """Who is told what may have changed in a collection, after it has."""

    def changed(self, document_ids: Sequence[str]) -> None:
        """Documents that were written or deleted, or may have been."""
        ...

    def matched(self, filter: Filter) -> None:
        """A filter whose documents were deleted, or may have been."""
        ...


@dataclass(kw_only=True)
class _Door:
    """Of one collection."""

    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)
    num_inside: int = 0
    live: str | None = None  # the physical name, once it was switched
    follower: Follower | None = None


class WriteGuard:
    """Wraps the writes of a `Store`; all else is the store's own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._doors: dict[str, _Door] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        """See `Store`. Raises CollectionSwitchedError: `collection` is the name of one that is live no more."""
        ids = [point.document.id for point in points]
        await self._write(
            collection, lambda: self._store.upsert(collection, points), lambda follower: follower.changed(ids)
        )

    async def delete(self, collection: str, document_ids: Sequence[str]) -> int:
        """See `Store`."""
        return await self._write(
            collection,
            lambda: self._store.delete(collection, document_ids),
            lambda follower: follower.changed(document_ids),
        )

    async def delete_matching(self, collection: str, filter: Filter) -> int:
        """See `Store`."""
        return await self._write(
            collection,
            lambda: self._store.delete_matching(collection, filter),
            lambda follower: follower.matched(filter),
        )

    def follow(self, name: str, follower: Follower | None, *, live: str | None) -> None:
        """Tell `follower` of every write that ends from now on, and refuse embeddings for others than `live`."""
        door = self._door(name)
        door.follower, door.live = follower, live
        self._forget_unused(name)

    @asynccontextmanager
    async def closed(self, name: str) -> AsyncIterator[None]:
        """No write to this collection is under way, and none begins. Cancel it by a timeout: a write may hang."""
        door = self._door(name)
        door.is_open.clear()
        try:
            await door.is_empty.wait()
            yield
        finally:
            door.is_open.set()

    async def _write(self, collection: str, write: Callable[[], Awaitable[_T]], tell: Callable[[Follower], None]) -> _T:
        name = public_name(collection)
        while not (door := self._door(name)).is_open.is_set():
            await door.is_open.wait()
        if door.live is not None and collection not in (name, door.live):
            raise CollectionSwitchedError(
                f"collection {name!r} was switched to another checkpoint while this was encoded; send it again",
                retry_after_seconds=1,
            )
        door.num_inside += 1
        door.is_empty.clear()
        writing = asyncio.ensure_future(write())

        def leave(ended: asyncio.Future[_T]) -> None:
            if not ended.cancelled():
                ended.exception()  # its caller may have gone
            if door.follower is not None:
                tell(door.follower)
            door.num_inside -= 1
            if door.num_inside == 0:
                door.is_empty.set()
                self._forget_unused(name)

        writing.add_done_callback(leave)
        return await asyncio.shield(writing)

    def _door(self, name: str) -> _Door:
        if name not in self._doors:
            self._doors[name] = door = _Door()
            door.is_open.set()
            door.is_empty.set()
        return self._doors[name]

    def _forget_unused(self, name: str) -> None:
        """Names come from requests: keep no door that says nothing."""
        door = self._doors.get(name)
        if door and door.follower is None and door.live is None and door.is_empty.is_set() and door.is_open.is_set():
            del self._doors[name]


def guarded(store: Store) -> tuple[Store, WriteGuard]:
    """`store` behind its guard, and the guard."""
    guard = WriteGuard(store)
    return cast(Store, guard), guard
