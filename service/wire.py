"""Strict JSON in, readable refusals out: used for whole bodies and for single lines of a stream."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from service.errors import MalformedInputError
from service.schemas import UNION_TAGS

MAX_LISTED_ERRORS = 20
_MAX_LOCATION_CHARS = 200  # names of fields are the sender's, and as long as a body may be


def parse_json(data: bytes) -> Any:
    """`data` as strict JSON: UTF-8, no NaN, no lone surrogates, at most 200 levels deep.

    Raises:
        MalformedInputError: with line and column of the place where it broke.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedInputError(f"Not JSON in UTF-8: {error}.") from error


def location(parts: Sequence[str | int]) -> str:
    """`documents[3].text` from pydantic's location; the leading `body` and the tags of unions left out."""
    text = ""
    for index, part in enumerate(parts):
        if (index == 0 and part == "body") or part in UNION_TAGS:
            continue
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text[:_MAX_LOCATION_CHARS] or "body"


def describe_errors(errors: Sequence[Any]) -> tuple[str, list[dict[str, str]]]:
    """A sentence for people and a list for programs from pydantic's errors; the first 20 are listed."""
    listed = [
        {"location": location(error["loc"]), "message": _message(error), "code": error["type"]}
        for error in errors[:MAX_LISTED_ERRORS]
    ]
    first = "; ".join(f"{error['location']}: {error['message']}" for error in listed[:3])
    num_more = len(errors) - len(listed[:3])
    return first + (f"; and {num_more} more" if num_more else ""), listed


def _message(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        return "unknown field; leave it out"
    if error["type"] == "missing":
        return "is missing"
    message, value = str(error["msg"]), error["input"]
    if isinstance(value, str):
        return f"{message}, got {value[:80]!r}"
    # an int over 4,300 digits cannot be printed, and never gets this far: the JSON reader refuses it
    return f"{message}, got {value}"[:200] if isinstance(value, int | float | None) else message
