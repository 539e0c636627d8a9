"""Collections: list, create, describe, drop. Reindexing does not exist yet and says so."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from service.api.access import CallerDep
from service.api.bodies import JsonRoute
from service.api.problems import problems
from service.api.services import ServicesDep
from service.errors import NotImplementedHereError
from service.schemas import CollectionName, CollectionOut, CollectionsResponse
from service.store.base import CollectionInfo

router = APIRouter(route_class=JsonRoute, prefix="/collections", tags=["collections"])
_NamePath = Annotated[
    CollectionName, Path(description="1 to 64 of `A-Z a-z 0-9 _ -`, without `--`.", examples=["docs"])
]


async def _allowed(name: _NamePath, caller: CallerDep) -> str:
    return caller.check(name)


Name = Annotated[str, Depends(_allowed)]


@router.get("", responses=problems(422, 500, 503))
async def list_collections(services: ServicesDep, caller: CallerDep) -> CollectionsResponse:
    """All collections by name that the key is for."""
    infos = await services.store.list_collections()
    return CollectionsResponse(collections=[_out(info) for info in infos if caller.may_use(info.name)])


@router.put("/{name}", responses=problems(409, 422, 500, 503))
async def create_collection(name: Name, services: ServicesDep) -> CollectionOut:
    """Create a collection for this checkpoint; one that is there already stays as it is."""
    services.collections.forget(name)
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
    services.collections.forget(name)
    await services.store.drop_collection(name)
    return Response(status_code=204)


@router.post("/{name}/reindex", status_code=202, responses=problems(404, 422, 500, 501, 503))
async def start_reindex(name: Name, services: ServicesDep) -> Response:
    """Not implemented yet: index again under another name, or drop and index again."""
    return await _no_reindex(name, services)


@router.get("/{name}/reindex", responses=problems(404, 422, 500, 501, 503))
async def describe_reindex(name: Name, services: ServicesDep) -> Response:
    """Not implemented yet."""
    return await _no_reindex(name, services)


async def _no_reindex(name: str, services: ServicesDep) -> Response:
    await services.store.describe_collection(name)
    raise NotImplementedHereError("Reindexing does not exist yet; drop the collection and send the documents again.")


def _out(info: CollectionInfo) -> CollectionOut:
    return CollectionOut(
        name=info.name,
        documents=info.num_documents,
        dimension=info.dimension,
        fingerprint=info.fingerprint,
        bytes=info.size_bytes,
    )
