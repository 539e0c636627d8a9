"""What a running app holds, and how a route gets at it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.encoders.base import AsyncEncoder
from service.encoders.checkpoint import Checkpoint
from service.ingest.reindex import Reindexer
from service.ingest.served import ServedCheckpoint, ServedCheckpoints
from service.metrics import Metrics
from service.settings import Settings
from service.store.base import Store
from service.store.points import check_fingerprint


@dataclass(frozen=True, kw_only=True)
class OpenCollection:
    """A collection as a request found it: also after a switch its embeddings go to where they belong, or nowhere."""

    name: str
    physical_name: str
    served: ServedCheckpoint


class CollectionGate:
    """Lets searches and writes through to collections whose checkpoint runs here.

    What was let through is remembered for a short time only: on a server another process may replace a collection.
    """

    def __init__(
        self,
        store: Store,
        served: ServedCheckpoints,
        *,
        ttl_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._served = served
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._known: dict[str, tuple[float, OpenCollection]] = {}

    async def check(self, name: str) -> OpenCollection:
        """The collection, if it is there and of a checkpoint that runs.

        Raises:
            NotFoundError: there is none; the message says how to create it.
            FingerprintMismatchError: another checkpoint's; the message names both and the way out.
        """
        looked_at, known = self._known.get(name, (float("-inf"), None))
        if known is None or looked_at + self._ttl_seconds < self._clock():
            self.forget(name)
            info = await self._store.describe_collection(name)
            served = self._served.find(info.fingerprint) or self._served.main
            check_fingerprint(info, served.checkpoint.fingerprint, served.checkpoint.dimension)
            known = OpenCollection(name=name, physical_name=info.physical_name, served=served)
            self._known[name] = (self._clock(), known)
        return known

    def forget(self, name: str) -> None:
        """Look again at the next use, after a change through this process."""
        self._known.pop(name, None)


@dataclass(kw_only=True)
class Services:
    """The parts of one running app; checkpoint and encoder are the configured ones."""

    settings: Settings
    served: ServedCheckpoints
    store: Store
    metrics: Metrics
    collections: CollectionGate
    reindexer: Reindexer

    @property
    def checkpoint(self) -> Checkpoint:
        """The configured one."""
        return self.served.main.checkpoint

    @property
    def encoder(self) -> AsyncEncoder:
        """Of the configured checkpoint."""
        return self.served.main.encoder

    def name_of(self, collection: str | None) -> str:
        """The name that a request gave, or that of the default collection."""
        return collection or self.settings.store.collection


async def services_of(request: Request) -> Services:
    """The services of the app that got `request`."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
