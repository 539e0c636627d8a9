"""`/collections/{name}/reindex`: re-index a collection with another checkpoint while it serves, step by step."""

from typing import Annotated

from fastapi import APIRouter, Body
from fastapi.openapi.models import Example

from service.api.bodies import JsonRoute
from service.api.collections import Name
from service.api.limits import check_texts
from service.api.problems import problems
from service.api.services import Services, ServicesDep
from service.errors import InvalidInputError
from service.ingest.overlap import Query
from service.ingest.reindex_state import Progress
from service.schemas import OverlapOut, ReindexOut, ReindexRequest

router = APIRouter(route_class=JsonRoute, prefix="/collections", tags=["collections"])
_FIELDS = {
    "start": {"checkpoint", "share", "truncate"},
    "resume": {"share", "truncate"},
    "compare": {"queries"},
    "switch": {"queries"},
}
_EXAMPLES: dict[str, Example] = {
    "start": {"value": {"checkpoint": "/models/next", "share": 0.5}},
    "compare": {"value": {"action": "compare", "queries": ["merge two sorted lists"]}},
    "switch": {"value": {"action": "switch"}},
}


@router.post("/{name}/reindex", status_code=202, responses=problems(400, 404, 409, 413, 415, 422, 429, 500, 501, 503))
async def reindex(
    name: Name, body: Annotated[ReindexRequest, Body(openapi_examples=_EXAMPLES)], services: ServicesDep
) -> ReindexOut:
    """One step: `start`, `pause`, `resume`, `compare`; `switch` or `abort`; then `rollback` or `drop`.

    `start` returns at once, and GET tells how far it is. `abort` and `drop` answer with what they ended.
    """
    given = body.model_dump(exclude_none=True, exclude={"action"})
    if unknown := given.keys() - _FIELDS.get(body.action, set()):
        raise InvalidInputError(f"{min(unknown)}: the action {body.action} does not take it; leave it out.")
    check_texts(body.queries or [], services.settings.api, field="queries")
    return _out(await _act(services, name, body))


@router.get("/{name}/reindex", responses=problems(404, 422, 500, 503))
async def describe_reindex(name: Name, services: ServicesDep) -> ReindexOut:
    """How far it is; 404 where none was started or it is at its end."""
    return _out(await services.reindexer.describe(name))


async def _act(services: Services, name: str, body: ReindexRequest) -> Progress:
    reindexer = services.reindexer
    queries = [Query(text) for text in body.queries or []]
    match body.action:
        case "start":
            return await reindexer.begin(
                name, checkpoint=body.checkpoint, truncate=bool(body.truncate), share=body.share or 0.5
            )
        case "pause":
            return await reindexer.pause(name)
        case "resume":
            return await reindexer.resume(name, share=body.share, truncate=body.truncate)
        case "compare":
            return await reindexer.compare(name, queries)
        case "switch":
            return await reindexer.switch(name, queries)
        case "rollback":
            return await reindexer.roll_back(name)
    ended = await reindexer.describe(name)
    await (reindexer.abort if body.action == "abort" else reindexer.drop)(name)
    return ended


def _out(progress: Progress) -> ReindexOut:
    overlap = progress.overlap
    return ReindexOut(
        stage=progress.stage,
        source=progress.source,
        target=progress.target,
        documents=progress.num_documents,
        remaining=progress.num_remaining,
        encoded=progress.num_encoded,
        unchanged=progress.num_unchanged,
        removed=progress.num_removed,
        failed=progress.num_failed,
        failures=progress.failed,
        share=progress.share,
        truncate=progress.truncate,
        eta_seconds=progress.eta_seconds,
        detail=progress.detail,
        overlap=OverlapOut(queries=overlap.num_queries, mean=overlap.mean, lowest=overlap.lowest) if overlap else None,
    )
