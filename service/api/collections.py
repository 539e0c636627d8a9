"""Collections: list, create, describe, drop."""

import contextlib
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from service.api.access import CallerDep
from service.api.bodies import JsonRoute
from service.api.problems import problems
from service.api.services import ServicesDep
from service.errors import FingerprintMismatchError, NotFoundError
from service.schemas import CollectionName, CollectionOut, CollectionsResponse
from service.store.base import CollectionInfo

router = APIRouter(route_class=JsonRoute, prefix="/collections", tags=["collections"])
_NamePath = Annotated[
    CollectionName, Path(description="1 to 64 of `A-Z a-z 0-9 _ -`, without `--`.", examples=["docs"])
]


async def allowed_name(name: _NamePath, caller: CallerDep) -> str:
    """The name in the path. Raises ForbiddenError if the key is not for this collection."""
    return caller.check(name)


Name = Annotated[str, Depends(allowed_name)]


@router.get("", responses=problems(422, 500, 503))
async def list_collections(services: ServicesDep, caller: CallerDep) -> CollectionsResponse:
    """All collections by name that the key is for."""
    infos = await services.store.list_collections()
    return CollectionsResponse(collections=[_out(info) for info in infos if caller.may_use(info.name)])


@router.put("/{name}", responses=problems(409, 422, 500, 503))
async def create_collection(name: Name, services: ServicesDep) -> CollectionOut:
    """Create a collection for this checkpoint; one that is there already stays as it is."""
    services.collections.forget(name)
    with contextlib.suppress(NotFoundError, FingerprintMismatchError):
        await services.collections.check(name)  # by whichever checkpoint serves it
        return _out(await services.store.describe_collection(name))
    info = await services.store.create_collection(
        name, fingerprint=services.checkpoint.fingerprint, dimension=services.checkpoint.dimension
    )
    return _out(info)


@router.get("/{name}", responses=problems(404, 422, 500, 503))
async def describe_collection(name: Name, services: ServicesDep) -> CollectionOut:
    """What a collection is and holds."""
    return _out(await services.store.describe_collection(name))


@router.delete("/{name}", status_code=204, responses=problems(404, 422, 500, 503))
async def drop_collection(name: Name, services: ServicesDep) -> Response:
    """Remove a collection with all its documents."""
    await services.reindexer.drop_collection(name)
    return Response(status_code=204)


def _out(info: CollectionInfo) -> CollectionOut:
    return CollectionOut(
        name=info.name,
        documents=info.num_documents,
        indexed=info.num_indexed,
        dimension=info.dimension,
        fingerprint=info.fingerprint,
        bytes=info.size_bytes,
    )
