"""`POST /search`: the best documents for a query, or for each of several."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example

from service.api.access import CallerDep
from service.api.bodies import JsonRoute
from service.api.encoding import Embedded, embed, json_response, tokenizing
from service.api.limits import check_instruction, check_page, check_texts
from service.api.problems import problems
from service.api.services import ServicesDep
from service.ingest.overlap import Query
from service.schemas import SearchRequest, SearchResponse
from service.store.base import Hit, SearchOptions
from service.store.filters import check_filter

router = APIRouter(route_class=JsonRoute, tags=["search"])
_EXAMPLES: dict[str, Example] = {
    "example": {
        "value": {
            "query": "merge two sorted lists",
            "top_k": 3,
            "filter": {"must": [{"key": "module", "match": {"value": "heapq"}}]},
        }
    }
}


@router.post("/search", response_model=SearchResponse, responses=problems(400, 404, 409, 413, 415, 422, 429, 500, 503))
async def search(
    request: Request,
    body: Annotated[SearchRequest, Body(openapi_examples=_EXAMPLES)],
    services: ServicesDep,
    caller: CallerDep,
) -> Response:
    """Documents by descending cosine; a list of queries gives a list of result lists."""
    started = time.monotonic()
    texts = [body.query] if isinstance(body.query, str) else body.query
    check_texts(texts, services.settings.api, field="query")
    check_instruction(body.instruction, services.settings.api)
    check_page(body.top_k, body.offset, services.settings.api, num_queries=len(texts))
    options = _options(body)
    collection = await services.collections.check(caller.check(services.name_of(body.collection)))
    served = collection.served
    work = tokenizing(served.checkpoint, texts, "query", instruction=body.instruction, truncate=body.truncate)
    embedded = await embed(request, services, served, "query", work)
    search_started = time.monotonic()
    hits = await services.store.search_batch(collection.physical_name, embedded.embeddings, options)
    search_seconds = time.monotonic() - search_started
    services.metrics.observe_stage("search", search_seconds, collection=collection.name)
    services.reindexer.note_query(collection.name, [Query(text, body.instruction) for text in texts])
    results = [_results(each) for each in hits]
    return json_response(
        {
            "results": results[0] if isinstance(body.query, str) else results,
            "model": served.checkpoint.name,
            "took_ms": _took_ms(embedded, search_seconds, time.monotonic() - started),
            "truncated": embedded.tokenized.truncated,
        }
    )


def _options(body: SearchRequest) -> SearchOptions:
    return SearchOptions(
        top_k=body.top_k,
        offset=body.offset,
        filter=check_filter(body.filter) if body.filter is not None else None,
        score_threshold=body.score_threshold,
        with_text=body.with_text,
        exact=body.exact,
    )


def _results(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [
        {
            "id": hit.document.id,
            "score": hit.score,
            "title": hit.document.title,
            "text": hit.document.text,
            "metadata": hit.document.metadata,
        }
        for hit in hits
    ]


def _took_ms(embedded: Embedded, search_seconds: float, total_seconds: float) -> dict[str, float]:
    stages = {
        "tokenize": embedded.tokenize_seconds,
        "queue": embedded.queue_seconds,
        "encode": embedded.encode_seconds,
        "search": search_seconds,
        "total": total_seconds,
    }
    return {stage: round(seconds * 1000, 3) for stage, seconds in stages.items()}
