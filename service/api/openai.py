"""`POST /v1/embeddings`, `GET /v1/models`: OpenAI's shape, so that existing clients work by changing their base URL."""

import re
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example

from service.api.bodies import JsonRoute
from service.api.encoding import Tokenizing, cut_dimensions, embed, on_wire, tokenizing, vectors_response
from service.api.limits import check_count, check_dimensions, check_instruction, check_texts
from service.api.problems import problems
from service.api.services import ServicesDep
from service.errors import InvalidInputError
from service.schemas import Kind, OpenAIModel, OpenAIModels, OpenAIRequest, OpenAIResponse

router = APIRouter(route_class=JsonRoute, prefix="/v1", tags=["embeddings"])
_EXAMPLES: dict[str, Example] = {
    "example": {"value": {"input": ["merge two sorted lists"], "model": "default", "encoding_format": "float"}}
}
# clients that send OpenAI's fields and no others say it by the model's name: `default:query`, `default:query:code`
_QUERY_MODEL = re.compile(r".*?:query(?::(.*))?", re.DOTALL)


@router.post("/embeddings", response_model=OpenAIResponse, responses=problems(400, 413, 415, 422, 429, 500, 503))
async def create_embeddings(
    request: Request, body: Annotated[OpenAIRequest, Body(openapi_examples=_EXAMPLES)], services: ServicesDep
) -> Response:
    """OpenAI's embeddings call. `model` may be any name; the answer names the checkpoint that did the work.

    Texts are documents. They are queries with our fields `kind` or `instruction`, or where `model` ends in `:query`, or
    in `:query:` and an instruction.
    """
    kind, instruction = _kind_and_instruction(body)
    texts, token_ids = _split(body)
    check_texts(texts, services.settings.api, field="input")
    check_count(len(token_ids), services.settings.api.max_inputs, field="input", setting="EOSEEK_API__MAX_INPUTS")
    check_instruction(instruction, services.settings.api)
    check_dimensions(body.dimensions, services.checkpoint.dimension)
    if token_ids and (kind != "document" or instruction):
        raise InvalidInputError("input: token ids are complete already; kind and instruction go with texts only.")
    if token_ids:
        call = partial(services.checkpoint.contract.token_ids, token_ids, truncate=False)
        work = Tokenizing(call=call, num_texts=len(token_ids), num_chars=sum(map(len, token_ids)))
    else:
        work = tokenizing(services.checkpoint, texts, kind, instruction=instruction, truncate=False)
    embedded = await embed(request, services, services.served.main, kind, work)
    rows = on_wire(cut_dimensions(embedded.embeddings, body.dimensions), body.encoding_format)
    num_tokens = embedded.tokenized.num_tokens
    return vectors_response(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
            "model": services.checkpoint.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


@router.get("/models", responses=problems(422, 500, 503))
async def list_models(services: ServicesDep) -> OpenAIModels:
    """OpenAI's list of models: the one checkpoint that is served."""
    checkpoint = services.checkpoint
    return OpenAIModels(data=[OpenAIModel(id=checkpoint.name, max_model_len=checkpoint.max_length)])


def _kind_and_instruction(body: OpenAIRequest) -> tuple[Kind, str | None]:
    """What the texts are; the fields go before what the model's name says."""
    named = _QUERY_MODEL.fullmatch(body.model)
    instruction = body.instruction if body.instruction is not None or named is None else named[1]
    return body.kind or ("document" if named is None and instruction is None else "query"), instruction


def _split(body: OpenAIRequest) -> tuple[list[str], list[list[int]]]:
    """The texts or the token ids of `input`; the other one is empty."""
    texts: list[str] = []
    token_ids: list[list[int]] = []
    for item in [body.input] if isinstance(body.input, str) or isinstance(body.input[0], int) else body.input:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):
            token_ids.append([token for token in item if isinstance(token, int)])
    return texts, token_ids
