"""Limits that are settings, so they cannot stand in the schema: each refusal names field, value, limit and way out."""

from collections.abc import Sequence

from service.errors import InvalidInputError
from service.settings import ApiSettings


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


def check_page(top_k: int, offset: int, settings: ApiSettings) -> None:
    """Refuse to go deeper into the results than `max_top_k`."""
    if top_k + offset > settings.max_top_k:
        raise InvalidInputError(
            f"top_k: {top_k:,} with offset {offset:,} asks for more than the first {settings.max_top_k:,} results; "
            "ask for fewer, or raise EOSEEK_API__MAX_TOP_K."
        )


def check_dimensions(dimensions: int | None, dimension: int) -> None:
    """Refuse to keep more dimensions than the checkpoint has."""
    if dimensions is not None and dimensions > dimension:
        raise InvalidInputError(
            f"dimensions: {dimensions:,}; this checkpoint has {dimension:,}. Ask for 1 to {dimension:,}."
        )
