"""What a running app holds, and how a route gets at it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.batching.batcher import Batcher
from service.encoders.base import AsyncEncoder
from service.encoders.checkpoint import Checkpoint
from service.ingest.pipeline import IngestPipeline
from service.metrics import Metrics
from service.settings import Settings
from service.store.base import Store
from service.store.points import check_fingerprint


class CollectionGate:
    """Lets searches and writes through to collections of this checkpoint only.

    What was let through is remembered for a short time only: on a server another process may replace a collection.
    """

    def __init__(
        self,
        store: Store,
        *,
        fingerprint: str,
        dimension: int,
        ttl_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._dimension = dimension
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._known: dict[str, float] = {}

    async def check(self, name: str) -> str:
        """`name`, if the collection is there and of this checkpoint.

        Raises:
            NotFoundError: there is none; the message says how to create it.
            FingerprintMismatchError: another checkpoint's; the message names both and the way out.
        """
        if self._known.get(name, float("-inf")) + self._ttl_seconds < self._clock():
            self.forget(name)
            info = await self._store.describe_collection(name)
            check_fingerprint(info, self._fingerprint, self._dimension)
            self._known[name] = self._clock()
        return name

    def forget(self, name: str) -> None:
        """Look again at the next use, after a change through this process."""
        self._known.pop(name, None)


@dataclass(kw_only=True)
class Services:
    """The parts of one running app."""

    settings: Settings
    checkpoint: Checkpoint
    encoder: AsyncEncoder
    batcher: Batcher
    store: Store
    pipeline: IngestPipeline
    metrics: Metrics
    collections: CollectionGate

    def name_of(self, collection: str | None) -> str:
        """The name that a request gave, or that of the default collection."""
        return collection or self.settings.store.collection


async def services_of(request: Request) -> Services:
    """The services of the app that got `request`."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
