"""From texts to embeddings on the wire: the way that `/embed`, `/search` and `/v1/embeddings` share."""

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic_core import to_json

from service.api.services import Services
from service.encoders.base import Embeddings
from service.encoders.checkpoint import Checkpoint
from service.encoders.prompt import Tokenized
from service.ingest.served import ServedCheckpoint
from service.schemas import EncodingFormat, Kind

# of one text, tokenized on the event loop in 0.05 to 0.5 ms; a thread takes 0.2 to hand over to, and as much to come
# back from cold. Several texts go to the tokenizer's pool, where they wait for whatever large batch is in it
_FEW_CHARS = 512


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of some texts, what was cut, and where the time went (seconds)."""

    embeddings: Embeddings
    tokenized: Tokenized
    tokenize_seconds: float
    queue_seconds: float
    encode_seconds: float


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """A blocking call, and of how many texts and characters it is, what is put around each text included."""

    call: Callable[[], Tokenized]
    num_texts: int
    num_chars: int

    @property
    def is_short(self) -> bool:
        """Whether it takes less than a thread's hand-over."""
        return self.num_texts == 1 and self.num_chars <= _FEW_CHARS


def tokenizing(
    checkpoint: Checkpoint, texts: Sequence[str], kind: Kind, *, instruction: str | None, truncate: bool
) -> Tokenizing:
    """Of `texts`; an instruction may be one of the checkpoint's names."""
    contract, frame = checkpoint.contract, checkpoint.contract.frame
    sentence = None if instruction is None else checkpoint.instructions.get(instruction, instruction)
    if kind == "document":
        num_around = len(frame.document_prefix)
        call = partial(contract.documents, [("", text) for text in texts], truncate=truncate)
    else:
        num_around = len(frame.query_template) + len(frame.default_instruction if sentence is None else sentence)
        call = partial(contract.queries, texts, instruction=sentence, truncate=truncate)
    num_chars = sum(map(len, texts)) + num_around * len(texts)
    return Tokenizing(call=call, num_texts=len(texts), num_chars=num_chars)


async def embed(
    request: Request, services: Services, served: ServedCheckpoint, kind: Kind, work: Tokenizing
) -> Embedded:
    """Tokenize, then encode in the lane of `kind` before the request's deadline.

    Only queries come again: a document that did not change is not even sent here.
    """
    started = time.monotonic()
    tokenized = work.call() if work.is_short else await asyncio.to_thread(work.call)
    tokenize_seconds = time.monotonic() - started
    services.metrics.observe_stage("tokenize", tokenize_seconds)
    services.metrics.count_truncated(len(tokenized.truncated))
    if kind == "query":
        encoded = await served.queries.submit(tokenized.token_ids, deadline=request.state.deadline)
    else:
        encoded = await served.batcher.submit(tokenized.token_ids, lane=kind, deadline=request.state.deadline)
    return Embedded(
        embeddings=encoded.embeddings,
        tokenized=tokenized,
        tokenize_seconds=tokenize_seconds,
        queue_seconds=encoded.queue_seconds,
        encode_seconds=encoded.encode_seconds,
    )


def cut_dimensions(embeddings: Embeddings, dimensions: int | None) -> Embeddings:
    """Matryoshka: the leading `dimensions` of each row, scaled back to unit length. Shape (n, dimensions)."""
    if dimensions is None or dimensions == embeddings.shape[1]:
        return embeddings
    cut = embeddings[:, :dimensions]
    # a row whose leading part is all zero has no direction; it stays zero rather than become NaN
    norms = np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.ascontiguousarray(cut / norms, dtype=np.float32)


def on_wire(embeddings: Embeddings, encoding_format: EncodingFormat) -> list[Any]:
    """Each row for `vectors_response`: its numbers, or base64 of its little-endian float32 bytes."""
    if encoding_format == "float":
        return list(embeddings)
    return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in embeddings]


def json_response(content: Any) -> Response:
    """`content` as JSON by pydantic's writer, which takes whatever documents hold, integers of any size too."""
    return Response(to_json(content), media_type="application/json")


def vectors_response(content: Any) -> Response:
    """`content` with rows of `on_wire` as JSON, each number in the fewest digits that are this float32 and no other.

    orjson reads the rows where they lie: 3.3 ms for 256 x 576 numbers instead of 13 ms as lists by pydantic's writer.
    """
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
