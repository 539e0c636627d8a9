"""`POST /embed`: texts to embeddings."""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example

from service.api.bodies import JsonRoute
from service.api.encoding import cut_dimensions, embed, on_wire, tokenizing, vectors_response
from service.api.limits import check_dimensions, check_instruction, check_texts
from service.api.problems import problems
from service.api.services import ServicesDep
from service.schemas import EmbedRequest, EmbedResponse

router = APIRouter(route_class=JsonRoute, tags=["embeddings"])
_EXAMPLES: dict[str, Example] = {
    "example": {
        "value": {
            "inputs": ["merge two sorted lists"],
            "kind": "query",
            "instruction": "Find the function that does this",
        }
    }
}


@router.post("/embed", response_model=EmbedResponse, responses=problems(400, 413, 415, 422, 429, 500, 503))
async def embed_texts(
    request: Request, body: Annotated[EmbedRequest, Body(openapi_examples=_EXAMPLES)], services: ServicesDep
) -> Response:
    """Embeddings of queries or documents, unit length, in input order."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_texts(texts, services.settings.api, field="inputs")
    check_instruction(body.instruction, services.settings.api)
    check_dimensions(body.dimensions, services.checkpoint.dimension)
    work = tokenizing(services.checkpoint, texts, body.kind, instruction=body.instruction, truncate=body.truncate)
    embedded = await embed(request, services, services.served.main, body.kind, work)
    embeddings = cut_dimensions(embedded.embeddings, body.dimensions)
    return vectors_response(
        {
            "embeddings": on_wire(embeddings, body.encoding_format),
            "model": services.checkpoint.name,
            "dimensions": embeddings.shape[1],
            "usage": {"tokens": embedded.tokenized.num_tokens},
            "truncated": embedded.tokenized.truncated,
        }
    )
