"""Limits that are settings, so they cannot stand in the schema: each refusal names field, value, limit and way out."""

from collections.abc import Sequence

from pydantic_core import to_json

from service.errors import InvalidInputError
from service.settings import ApiSettings
from service.store.base import Document


def check_count(count: int, limit: int, *, field: str, setting: str) -> None:
    """Refuse more items than `limit`; `setting` is the name of the setting that raises it."""
    if count > limit:
        raise InvalidInputError(
            f"{field}: {count:,} items; the limit is {limit:,}. Send several requests, or raise {setting}."
        )


def check_texts(texts: Sequence[str], settings: ApiSettings, *, field: str) -> None:
    """Refuse too many texts, and texts too long to be worth tokenizing."""
    check_count(len(texts), settings.max_inputs, field=field, setting="EOSEEK_API__MAX_INPUTS")
    for index, text in enumerate(texts):
        check_chars(text, settings.max_text_chars, field=f"{field}[{index}]")


def check_chars(text: str, limit: int, *, field: str) -> None:
    """Refuse a text of more than `limit` characters."""
    if len(text) > limit:
        raise InvalidInputError(
            f"{field}: {len(text):,} characters; the limit is {limit:,}. Split it, or raise EOSEEK_API__MAX_TEXT_CHARS."
        )


def check_instruction(instruction: str | None, settings: ApiSettings) -> None:
    """Refuse an instruction longer than a text may be."""
    check_chars(instruction or "", settings.max_text_chars, field="instruction")


def check_page(top_k: int, offset: int, settings: ApiSettings, *, num_queries: int) -> None:
    """Refuse to go deeper into the results than `max_top_k`, or to hold more than `max_results` at once."""
    if top_k + offset > settings.max_top_k:
        raise InvalidInputError(
            f"top_k: {top_k:,} with offset {offset:,} asks for more than the first {settings.max_top_k:,} results; "
            "ask for fewer, or raise EOSEEK_API__MAX_TOP_K."
        )
    num_results = num_queries * (top_k + offset)
    if num_results > settings.max_results:
        raise InvalidInputError(
            f"top_k: {num_queries:,} queries of {top_k + offset:,} results each may give {num_results:,}; the limit is "
            f"{settings.max_results:,}. Send several requests, ask for fewer, or raise EOSEEK_API__MAX_RESULTS."
        )


def check_metadata(document: Document, settings: ApiSettings) -> None:
    """Refuse metadata that takes more than `max_metadata_bytes` as JSON; run `check_document` before."""
    size = len(to_json(document.metadata))
    if size > settings.max_metadata_bytes:
        raise InvalidInputError(
            f"metadata of {document.id[:80]!r}: {size:,} bytes as JSON; the limit is {settings.max_metadata_bytes:,}. "
            "Keep what filters need, or raise EOSEEK_API__MAX_METADATA_BYTES."
        )


def check_dimensions(dimensions: int | None, dimension: int) -> None:
    """Refuse to keep more dimensions than the checkpoint has."""
    if dimensions is not None and dimensions > dimension:
        raise InvalidInputError(
            f"dimensions: {dimensions:,}; this checkpoint has {dimension:,}. Ask for 1 to {dimension:,}."
        )
