"""The wire format: what requests may hold and what answers look like.

Types are strict (no `"3"` for 3) and unknown fields are refused, so that a typing error is seen rather than ignored.
Limits that depend on settings (`max_inputs`, `max_top_k`, ...) are checked by `service.api.limits`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.errors import InvalidInputError
from service.metrics import ReindexStage
from service.store.base import Document
from service.store.points import MAX_NAME_CHARS, NAME_PATTERN, check_name

MAX_ID_BYTES = 512
# pydantic keeps over a kilobyte for each error, whose number only a body's size would bound: it stops at a list's first
_LISTED = Field(min_length=1, fail_fast=True)
_MAX_FIELDS = 100


def _not_blank(text: str) -> str:
    if not text or text.isspace():
        raise ValueError("is empty; send at least one character that is not white space")
    return text


def _document_id(document_id: str) -> str:
    if not document_id:
        raise ValueError("is empty; an id has 1 to 512 bytes")
    if document_id in (".", ".."):
        raise ValueError(f"{document_id!r} is a step in a path, so that no URL can name it; choose another id")
    size = len(document_id.encode("utf-8"))
    if size > MAX_ID_BYTES:
        raise ValueError(f"{document_id[:40]!r}... has {size} bytes; the limit is {MAX_ID_BYTES} (UTF-8)")
    if any(character < " " or character == "\x7f" for character in document_id):
        raise ValueError(f"{document_id[:80]!r} has a control character; ids stand in URLs and logs, so leave them out")
    return document_id


def _collection_name(name: str) -> str:
    try:
        return check_name(name)
    except InvalidInputError as error:
        raise ValueError(error.detail) from None


def _is_list(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


def _openai_input(value: Any) -> str:
    if not isinstance(value, list):
        return "one"
    first = value[0] if value else None
    if isinstance(first, list):
        return "token_lists"
    return "tokens" if isinstance(first, int) and not isinstance(first, bool) else "list"


# tags of the unions below; error locations leave them out
UNION_TAGS = frozenset({"one", "list", "tokens", "token_lists"})

Text = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
DocumentId = Annotated[
    str,
    AfterValidator(_document_id),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES, "not": {"enum": [".", ".."]}}),
]
Texts = Annotated[Annotated[Text, Tag("one")] | Annotated[list[Text], _LISTED, Tag("list")], Discriminator(_is_list)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], _LISTED]
OpenAIInput = Annotated[
    Annotated[Text, Tag("one")]
    | Annotated[list[Text], _LISTED, Tag("list")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], _LISTED, Tag("token_lists")],
    Discriminator(_openai_input),
]
CollectionName = Annotated[
    str,
    AfterValidator(_collection_name),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_NAME_CHARS, "pattern": NAME_PATTERN}),
]
Kind = Literal["query", "document"]
ReindexAction = Literal["start", "pause", "resume", "compare", "switch", "rollback", "abort", "drop"]
EncodingFormat = Literal["float", "base64"]

_INSTRUCTION = (
    'Task sentence put before a query, or a name of one from `/info`; absent: the checkpoint\'s default, `""`: none.'
)
_TRUNCATE = "Cut texts over the model's length instead of refusing them; the answer says which."
_COLLECTION = "Absent: the service's default collection."
_DIMENSIONS = "Matryoshka: keep this many leading dimensions, then normalise again."


class Body(BaseModel):
    """A request body: strict types, unknown fields refused, finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        # an error for each unknown one, as for the items of a list
        if isinstance(value, dict) and len(value) > _MAX_FIELDS:
            raise ValueError(f"has {len(value):,} fields; the known ones are {', '.join(cls.model_fields)}")
        return value


class EmbedRequest(Body):
    """Texts to embed, all of one kind."""

    inputs: Texts = Field(description="A text or a list of texts.")
    kind: Kind = Field(description="Queries get the instruction, documents stay as they are.")
    instruction: str | None = Field(None, description=_INSTRUCTION)
    dimensions: int | None = Field(None, ge=1, description=_DIMENSIONS)
    truncate: bool = Field(False, description=_TRUNCATE)
    encoding_format: EncodingFormat = Field("float", description="`base64`: little-endian float32 bytes.")


class TokenUsage(BaseModel):
    """What was encoded."""

    tokens: int


class EmbedResponse(BaseModel):
    """Embeddings in input order."""

    embeddings: list[list[float] | str]
    model: str
    dimensions: int
    usage: TokenUsage
    truncated: list[int] = Field(description="Indices of the inputs that were cut.")


class SearchRequest(Body):
    """One query or several, and what to return for each."""

    query: Texts = Field(description="A query, or a list of queries that gives a list of result lists.")
    instruction: str | None = Field(None, description=_INSTRUCTION)
    top_k: int = Field(10, ge=1, description="Most results for a query.")
    collection: CollectionName | None = Field(None, description=_COLLECTION)
    filter: dict[str, Any] | None = Field(None, description="Qdrant's filter JSON; keys address metadata.")
    score_threshold: float | None = Field(None, description="Leave out lower cosines; an equal one stays.")
    offset: int = Field(0, ge=0, description="Results to skip.")
    with_text: bool = Field(True, description="Return texts; ids, scores, titles and metadata always come.")
    exact: bool = Field(False, description="Scan everything instead of using an index.")
    truncate: bool = Field(False, description=_TRUNCATE)


class SearchResult(BaseModel):
    """A found document; the score is the cosine."""

    id: str
    score: float
    title: str
    text: str
    metadata: dict[str, Any]


class StageTimes(BaseModel):
    """Milliseconds by stage; `search` is the store's."""

    tokenize: float
    queue: float
    encode: float
    search: float
    total: float


class SearchResponse(BaseModel):
    """Results by descending score; one list for each query where a list was sent."""

    results: list[SearchResult] | list[list[SearchResult]]
    model: str
    took_ms: StageTimes
    truncated: list[int] = Field(description="Indices of the queries that were cut.")


class DocumentIn(Body):
    """A document to index."""

    id: DocumentId = Field(description="Yours, 1 to 512 bytes; an existing document with this id is replaced.")
    text: str = Field(description="May be empty where there is a title.")
    title: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict, description="Anything that filters should see.")

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if not self.text.strip() and not self.title.strip():
            raise ValueError(f"text of {self.id[:80]!r} is empty; send at least one character that is not white space")
        return self

    def to_document(self) -> Document:
        """What stores and pipelines take."""
        return Document(id=self.id, text=self.text, title=self.title, metadata=self.metadata)


class DocumentsRequest(Body):
    """Documents to index."""

    documents: Annotated[list[DocumentIn], _LISTED]
    collection: CollectionName | None = Field(None, description=_COLLECTION)
    truncate: bool = Field(False, description=_TRUNCATE)


class FailedDocument(BaseModel):
    """A document that was not indexed, and why."""

    id: str | None
    line: int | None = Field(description="Its line, from 1; null in the JSON form.")
    code: str
    detail: str


class DocumentsResponse(BaseModel):
    """Durable when answered; indexed + unchanged + failed is what was sent."""

    indexed: int
    unchanged: int
    failed: list[FailedDocument]
    truncated: list[str] = Field(description="Ids of the documents that were cut.")


class DocumentOut(BaseModel):
    """A stored document."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any]


class DeleteRequest(Body):
    """What to delete: either `ids` or `filter`."""

    ids: Annotated[list[DocumentId], _LISTED] | None = None
    filter: dict[str, Any] | None = Field(None, description="Qdrant's filter JSON.")
    collection: CollectionName | None = Field(None, description=_COLLECTION)


class DeleteResponse(BaseModel):
    """How many documents there were."""

    deleted: int


class CollectionOut(BaseModel):
    """A collection and what it holds."""

    name: str
    documents: int
    indexed: int = Field(description="Of the documents, those in an index; searches scan the others.")
    dimension: int
    fingerprint: str
    bytes: int | None


class CollectionsResponse(BaseModel):
    """All collections by name."""

    collections: list[CollectionOut]


class ReindexRequest(Body):
    """A step of a re-index; the fields are those that the action takes."""

    action: ReindexAction = Field("start", description="`compare` measures the overlap, `drop` removes the old one.")
    checkpoint: str | None = Field(
        None, min_length=1, max_length=4096, description="`start`: a directory or hub name; absent: the configured one."
    )
    share: float | None = Field(
        None, gt=0, le=1, description="`start`, `resume`: part of the time that encoding may take; 0.5."
    )
    truncate: bool | None = Field(
        None, description="`start`, `resume`: cut documents that are too long for the new checkpoint; false."
    )
    queries: Annotated[list[Text], Field(max_length=1000, fail_fast=True)] | None = Field(
        None, description="`compare`, `switch`: what to measure the overlap on; absent: recent searches."
    )


class OverlapOut(BaseModel):
    """What old and new have in common among their ten best documents, 0 to 1."""

    queries: int
    mean: float
    lowest: float


class ReindexOut(BaseModel):
    """A re-index as it stands."""

    stage: ReindexStage
    source: str = Field(description="Fingerprint of the old checkpoint.")
    target: str = Field(description="Fingerprint of the new one.")
    documents: int = Field(description="In the collection that serves.")
    remaining: int = Field(description="That may still differ in the other one.")
    encoded: int = Field(description="Since this process began or the last switch; so the next two.")
    unchanged: int
    removed: int
    failed: int = Field(description="Too long for the other checkpoint.")
    failures: dict[str, str] = Field(description="The first ten of them by id.")
    share: float
    truncate: bool
    eta_seconds: float | None
    detail: str = Field(description="What went wrong last; empty while all is well.")
    overlap: OverlapOut | None


class OpenAIRequest(Body):
    """OpenAI's embeddings request; `kind` and `instruction` are ours."""

    input: OpenAIInput = Field(description="A text, texts, token ids, or lists of token ids.")
    model: str = Field(min_length=1, description="Any name; the answer names the checkpoint that did the work.")
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(None, ge=1, description=_DIMENSIONS)
    user: str | None = Field(None, description="Accepted and ignored.")
    kind: Kind | None = Field(
        None,
        description="Our extension. Absent: `query` where `instruction` is given or `model` ends in `:query`, or in "
        "`:query:` and an instruction; else `document`.",
    )
    instruction: str | None = Field(None, description=f"Our extension. {_INSTRUCTION}")


class OpenAIEmbedding(BaseModel):
    """One embedding of OpenAI's answer."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens as OpenAI counts them."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """OpenAI's embeddings answer."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """One model of OpenAI's list; `max_model_len` is vLLM's addition."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Always 0: a checkpoint does not say when it was made.")
    owned_by: str = "eoseek"
    max_model_len: int = Field(description="Tokens of a text at most, [EOS] included.")


class OpenAIModels(BaseModel):
    """OpenAI's list of models; `model` in a request may be any name all the same."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class Live(BaseModel):
    """The event loop runs."""

    status: Literal["live"]


class Ready(BaseModel):
    """All parts would work on a request now."""

    status: Literal["ready"]
    encoder: bool
    store: bool


class Limits(BaseModel):
    """What a request may hold."""

    max_body_bytes: int
    max_inputs: int
    max_documents: int
    max_text_chars: int
    max_top_k: int
    max_results: int
    max_metadata_bytes: int
    request_timeout_seconds: float


class Info(BaseModel):
    """What is running."""

    version: str
    model: str
    checkpoint: str = Field(description="The last part of its path.")
    fingerprint: str
    is_tuned: bool | None = Field(description="False: the bare language model; null: the checkpoint does not say.")
    dimension: int
    max_length: int = Field(description="Tokens of a text at most, [EOS] included.")
    pooling: str
    default_instruction: str
    instructions: dict[str, str] = Field(description="Names that `instruction` may hold instead of a sentence.")
    backend: str
    dtype: str
    store: str
    default_collection: str
    limits: Limits


class FieldError(BaseModel):
    """One field that was refused."""

    location: str
    message: str
    code: str


class OpenAIError(BaseModel):
    """A problem as OpenAI's clients read it: all that they show of it is the message."""

    message: str = Field(description="The problem's `detail`.")
    type: str = Field(description="The problem's `code`.")
    param: None = None
    code: str


class Problem(BaseModel):
    """RFC 9457 problem document, `application/problem+json`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; programs decide by it.")
    instance: str = Field(description="The request's id, `X-Request-Id`.")
    errors: list[FieldError] | None = None
    error: OpenAIError
