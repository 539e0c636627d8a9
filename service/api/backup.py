"""`POST /backup`: all collections of the embedded store as one file, as of one moment each, while it serves.

No GET, since it copies the store: a page of another site must not make a browser ask for it.
"""

import asyncio
import shutil
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.access import CallerDep
from service.api.bodies import StreamRoute
from service.api.problems import problems
from service.api.services import ServicesDep
from service.store import backup
from service.store.base import Snapshot

router = APIRouter(route_class=StreamRoute, tags=["operations"])  # a copy takes as long as the disk needs
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A backup", "content": {backup.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


class _Backup(StreamingResponse):
    """Packs a snapshot while it is sent, and discards it however that ends."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(
            backup.pack(snapshot.directory, snapshot.collections),
            media_type=backup.MEDIA_TYPE,
            headers={"Content-Disposition": 'attachment; filename="eoseek-backup.zip"'},
        )
        self._directory = snapshot.directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)


@router.post("/backup", response_class=StreamingResponse, responses=_FILE | problems(422, 500, 501, 503))
async def back_up(services: ServicesDep, caller: CallerDep) -> Response:
    """A zip file for `eoseek restore`. The embedded store only: a Qdrant server has snapshots of its own."""
    caller.check_all("A backup has the documents")
    return _Backup(await services.store.snapshot())
