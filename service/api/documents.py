"""Documents: index (JSON or a stream of lines), get, delete. An answer of 200 means durable."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request
from fastapi.openapi.models import Example

from service.api.access import CallerDep
from service.api.bodies import NDJSON, JsonRoute, NdjsonRoute, stream_body
from service.api.limits import check_chars, check_count, check_metadata
from service.api.problems import problems
from service.api.services import Services, ServicesDep
from service.errors import CollectionSwitchedError, InvalidInputError, NotFoundError
from service.ingest.lines import read_documents
from service.ingest.pipeline import Failure, IncomingDocument, IngestReport
from service.schemas import (
    CollectionName,
    DeleteRequest,
    DeleteResponse,
    DocumentIn,
    DocumentOut,
    DocumentsRequest,
    DocumentsResponse,
    FailedDocument,
)
from service.store.filters import check_filter, has_empty_filter
from service.store.points import check_document

stream_router = APIRouter(route_class=NdjsonRoute)
router = APIRouter(route_class=JsonRoute, prefix="/documents", tags=["documents"])
DocumentPath = Annotated[str, Path(description="May hold slashes.", examples=["heapq.merge"])]
CollectionQuery = Annotated[CollectionName | None, Query(description="Absent: the service's default collection.")]


async def _allowed(services: ServicesDep, caller: CallerDep, collection: CollectionQuery = None) -> str:
    return caller.check(services.name_of(collection))


Collection = Annotated[str, Depends(_allowed)]
TruncateQuery = Annotated[bool, Query(description="Cut documents over the model's length.")]
_EXAMPLES: dict[str, Example] = {
    "example": {
        "value": {
            "documents": [
                {
                    "id": "heapq.merge",
                    "title": "heapq.merge",
                    "text": "Merge multiple sorted inputs into a single sorted output.",
                    "metadata": {"module": "heapq"},
                }
            ]
        }
    }
}
_DELETE_EXAMPLES: dict[str, Example] = {
    "by id": {"value": {"ids": ["heapq.merge"]}},
    "by filter": {"value": {"filter": {"must": [{"key": "module", "match": {"value": "heapq"}}]}}},
}
_NDJSON_DOCS: dict[str, Any] = {
    "requestBody": {
        "content": {
            NDJSON: {
                "schema": {"type": "string", "description": "One document a line; BEIR's `_id` is taken for `id`."},
                "example": '{"id": "heapq.merge", "text": "Merge multiple sorted inputs."}\n',
            }
        }
    }
}


@stream_router.post("/documents", include_in_schema=False)
async def index_stream(
    request: Request, services: ServicesDep, collection: Collection, truncate: TruncateQuery = False
) -> DocumentsResponse:
    """One document a line; good lines are indexed, bad lines come back with their numbers."""
    opened = await services.collections.check(collection)
    limits = services.settings.api
    documents = read_documents(
        stream_body(request), max_line_bytes=limits.max_body_bytes, max_text_chars=limits.max_text_chars
    )
    checked = _within_limits(documents, services)
    return _out(await opened.served.pipeline.ingest(opened.physical_name, checked, truncate=truncate))


@router.post("", openapi_extra=_NDJSON_DOCS, responses=problems(400, 404, 409, 413, 415, 422, 429, 500, 503))
async def index_documents(
    request: Request,
    body: Annotated[DocumentsRequest, Body(openapi_examples=_EXAMPLES)],
    services: ServicesDep,
    caller: CallerDep,
    collection: CollectionQuery = None,
    truncate: TruncateQuery = False,
) -> DocumentsResponse:
    """Index documents, all checked before the first is written; unchanged ones cost nothing."""
    num_bytes = len(await request.body()) // len(body.documents)  # each one's share
    documents = [IncomingDocument(document=each.to_document(), num_bytes=num_bytes) for each in body.documents]
    _check(body.documents, services)
    # off the loop, since metadata is walked in Python
    await asyncio.to_thread(_check_storable, documents, services)
    if collection and body.collection and collection != body.collection:
        raise InvalidInputError(
            f"collection: {body.collection!r} in the body, {collection!r} in the URL; send one of them."
        )
    name = caller.check(services.name_of(body.collection or collection))
    truncate = body.truncate or truncate
    try:
        report = await _ingest(services, name, documents, truncate=truncate, deadline=request.state.deadline)
    except CollectionSwitchedError:  # once more, by the checkpoint that serves it now
        report = await _ingest(services, name, documents, truncate=truncate, deadline=request.state.deadline)
    return _out(report)


@router.post("/delete", responses=problems(400, 404, 413, 415, 422, 500, 503))
async def delete_documents(
    body: Annotated[DeleteRequest, Body(openapi_examples=_DELETE_EXAMPLES)], services: ServicesDep, caller: CallerDep
) -> DeleteResponse:
    """Delete by ids or by filter; ids that are not there are not counted."""
    name = caller.check(services.name_of(body.collection))
    if (body.ids is None) == (body.filter is None):
        raise InvalidInputError("Send either ids or filter: exactly one of them says what to delete.")
    if body.ids is not None:
        limit = services.settings.api.max_documents
        check_count(len(body.ids), limit, field="ids", setting="EOSEEK_API__MAX_DOCUMENTS")
        return DeleteResponse(deleted=await services.store.delete(name, body.ids))
    conditions = check_filter(body.filter)
    if has_empty_filter(conditions):
        raise InvalidInputError(
            "filter: without a condition, or with an empty filter inside, it may match every document; to delete them "
            "all, DELETE the collection."
        )
    return DeleteResponse(deleted=await services.store.delete_matching(name, conditions))


@router.get("/{document_id:path}", responses=problems(404, 422, 500, 503))
async def get_document(document_id: DocumentPath, services: ServicesDep, collection: Collection) -> DocumentOut:
    """One document; its id may hold slashes."""
    document = (await services.store.get(collection, [document_id]))[0]
    if document is None:
        raise NotFoundError(f"No document {document_id[:200]!r} in collection {collection!r}.")
    return DocumentOut(id=document.id, title=document.title, text=document.text, metadata=dict(document.metadata))


@router.delete("/{document_id:path}", responses=problems(404, 422, 500, 503))
async def delete_document(document_id: DocumentPath, services: ServicesDep, collection: Collection) -> DeleteResponse:
    """Delete one document."""
    if await services.store.delete(collection, [document_id]) == 0:
        raise NotFoundError(f"No document {document_id[:200]!r} in collection {collection!r}.")
    return DeleteResponse(deleted=1)


async def _ingest(
    services: Services, name: str, documents: Sequence[IncomingDocument], *, truncate: bool, deadline: float
) -> IngestReport:
    opened = await services.collections.check(name)
    pipeline = opened.served.pipeline
    return await pipeline.ingest(opened.physical_name, documents, truncate=truncate, deadline=deadline)


async def _within_limits(
    documents: AsyncIterator[IncomingDocument | Failure], services: Services
) -> AsyncIterator[IncomingDocument | Failure]:
    """`documents`; one that is over a limit fails alone."""
    async for each in documents:
        yield _checked(each, services) if isinstance(each, IncomingDocument) else each


def _checked(incoming: IncomingDocument, services: Services) -> IncomingDocument | Failure:
    try:
        check_metadata(incoming.document, services.settings.api)
    except InvalidInputError as error:
        return Failure(id=incoming.document.id, line=incoming.line, code=error.code, detail=error.detail)
    return incoming


def _check_storable(documents: Sequence[IncomingDocument], services: Services) -> None:
    for each in documents:
        check_document(each.document)
        check_metadata(each.document, services.settings.api)


def _check(documents: list[DocumentIn], services: Services) -> None:
    limits = services.settings.api
    first_at: dict[str, int] = {}
    for index, document in enumerate(documents):
        check_chars(document.title + document.text, limits.max_text_chars, field=f"documents[{index}].text")
        first = first_at.setdefault(document.id, index)
        if first != index:
            raise InvalidInputError(
                f"documents[{first}] and documents[{index}] have the same id {document.id[:80]!r}; send each once."
            )


def _out(report: IngestReport) -> DocumentsResponse:
    return DocumentsResponse(
        indexed=report.indexed,
        unchanged=report.unchanged,
        failed=[
            FailedDocument(id=each.id, line=each.line, code=each.code, detail=each.detail) for each in report.failed
        ],
        truncated=report.truncated,
    )
