"""Filters: Qdrant's JSON, checked strictly before any store sees it, and the evaluator of the exact store.

Keys address the document's metadata: `year`, `author.name`, `tags[]`, `authors[0].name`, `"a key with spaces"`;
`has_id` takes document ids. Stores keep metadata under `metadata` and ids as UUIDs: `stored_form` translates.
Evaluating is left to the Qdrant client's local mode, which follows the engine case by case; the price is that it is an
inner module of it, held to the engine by a property test.

Stricter than Qdrant where Qdrant accepts what cannot be meant: unknown keys, two conditions on one key in one object
(the engine ORs them), an empty condition, `has_id` inside `nested`. Geo, `has_vector` and `slice` are not supported.
`"is_null": false` beside a key is the negation of `true`; the engine asks whether some value of `key[]` is not null.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from qdrant_client.http import models
from qdrant_client.local import datetime_utils, payload_filters
from qdrant_client.local.json_path_parser import parse_json_path

from service.errors import InvalidFilterError
from service.store.base import Filter, point_id

MAX_DEPTH = 8  # filters inside filters; the engine recurses
# conditions and the words that they look for: each costs time for each document, and 10,000 over 2,000 documents held
# the embedded store for over 20 s
MAX_CONDITIONS = 256
MAX_VALUES = 10_000  # what conditions list: looked up in a table, whatever their number

_CLAUSES = ("must", "should", "must_not")
_BOUNDS = ("gt", "gte", "lt", "lte")
_ON_KEY = ("match", "range", "values_count", "is_empty", "is_null")
_ALONE = ("has_id", "is_empty", "is_null", "nested")
_UNSUPPORTED = ("geo_radius", "geo_bounding_box", "geo_polygon", "has_vector", "slice")
_TYPES: dict[type, str] = {int: "an integer", str: "a string"}
_MATCHES = ("value", "any", "except", "text", "text_any", "phrase", "prefix", "substring")
_BY_WORD = ("text", "text_any", "phrase")
_WORD = re.compile(r"[^\W_]+")


def check_filter(value: Any) -> Filter:
    """The filter, checked and in one spelling: clauses as lists, none empty, nulls dropped, datetimes in RFC 3339.

    An empty filter matches every document. An empty clause is none: the engine thinks so of a `should` or `min_should`,
    except inside `nested`, where no element would satisfy it.

    Args:
        value: parsed JSON.
    Raises:
        InvalidFilterError: the detail begins with the place, as in `must[1].range.gt: ...`.
    """
    return _Walk().filter(value, "", depth=1)


def has_empty_filter(filter: Filter) -> bool:
    """Whether a checked filter, or one inside it, has no condition and so may match every document."""
    conditions = [
        condition
        for value in filter.values()
        for condition in (value["conditions"] if isinstance(value, dict) else value)
    ]
    inner = [condition for condition in conditions if not condition.keys() & {"key", *_ALONE}]
    return not conditions or any(map(has_empty_filter, inner))


def matches(filter: Filter, metadata: Mapping[str, Any], document_id: str) -> bool:
    """Whether a document satisfies a checked filter, as the engine decides it.

    Numbers in a `range` are compared exactly here and as 64-bit floats by the engine: they may differ beyond 2**53.
    """
    return matcher(filter)(metadata, document_id)


def matcher(filter: Filter) -> Callable[[Mapping[str, Any], str], bool]:
    """`matches` of one checked filter, translated once for many documents."""
    model = filter_model(filter)

    def is_match(metadata: Mapping[str, Any], document_id: str) -> bool:
        return payload_filters.check_filter(model, {"metadata": metadata}, point_id(document_id), {})

    return is_match


def filter_model(filter: Filter) -> models.Filter:
    """A checked filter as the Qdrant client's model, over stored payloads."""
    return models.Filter.model_validate(stored_form(filter))


def stored_form(filter: Filter) -> dict[str, Any]:
    """A checked filter over stored payloads: keys under `metadata`, `has_id` with point ids."""
    stored: dict[str, Any] = {}
    for clause, value in filter.items():
        if clause == "min_should":
            stored[clause] = value | {"conditions": [_stored_condition(each) for each in value["conditions"]]}
        else:
            stored[clause] = [_stored_condition(each) for each in value]
    return stored


def _stored_condition(condition: dict[str, Any]) -> dict[str, Any]:
    if "key" in condition:
        return condition | {"key": f"metadata.{condition['key']}"}
    if "has_id" in condition:
        return {"has_id": [point_id(each) for each in condition["has_id"]]}
    for kind in ("is_empty", "is_null", "nested"):
        if kind in condition:  # keys inside `nested.filter` are relative to its elements
            return {kind: condition[kind] | {"key": f"metadata.{condition[kind]['key']}"}}
    return stored_form(condition)


class _Walk:
    """One pass over a filter that counts its conditions and values."""

    def __init__(self) -> None:
        self._num_conditions = 0
        self._num_values = 0

    def filter(self, value: Any, place: str, *, depth: int, is_nested: bool = False) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            _refuse(place, f"filters nest deeper than {MAX_DEPTH}")
        checked: dict[str, Any] = {}
        for clause, content in _fields(value, place, (*_CLAUSES, "min_should")).items():
            inside = _join(place, clause)
            if clause == "min_should":
                fields = _fields(content, inside, ("conditions", "min_count"), required=("conditions", "min_count"))
                conditions = self._conditions(fields["conditions"], f"{inside}.conditions", depth, is_nested)
                min_count = _integer(fields["min_count"], f"{inside}.min_count", least=1)
                if conditions:
                    checked[clause] = {"conditions": conditions, "min_count": min_count}
            else:
                conditions = [content] if isinstance(content, dict) else content
                if found := self._conditions(conditions, inside, depth, is_nested):
                    checked[clause] = found
        return checked

    def _conditions(self, value: Any, place: str, depth: int, is_nested: bool) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            _refuse(place, f"expected a list of conditions, got {_kind(value)}")
        return [self._condition(each, f"{place}[{i}]", depth, is_nested) for i, each in enumerate(value)]

    def _condition(self, value: Any, place: str, depth: int, is_nested: bool) -> dict[str, Any]:
        self._count_conditions(1, place)
        if not isinstance(value, dict):
            _refuse(place, f"expected a condition object, got {_kind(value)}")
        for name in _UNSUPPORTED:
            if name in value:
                _refuse(_join(place, name), "this kind of condition is not supported")
        if "key" in value:
            return self._field(value, place)
        kinds = [kind for kind in _ALONE if kind in value]
        if kinds:
            return {
                kinds[0]: self._alone(kinds[0], _fields(value, place, kinds[:1])[kinds[0]], place, depth, is_nested)
            }
        if not value:
            _refuse(
                place, f"an empty condition; expected `key` with one of {_names(_ON_KEY)}, or one of {_names(_ALONE)}"
            )
        return self.filter(value, place, depth=depth + 1, is_nested=is_nested)

    def _alone(self, kind: str, value: Any, place: str, depth: int, is_nested: bool) -> Any:
        inside = _join(place, kind)
        if kind == "has_id":
            if is_nested:
                _refuse(inside, "elements of a nested key have no ids; put it beside `nested`")
            return self._values(value, inside, (str,))
        allowed = ("key", "filter") if kind == "nested" else ("key",)
        fields = _fields(value, inside, allowed, required=allowed)
        checked: dict[str, Any] = {"key": _path(fields["key"], f"{inside}.key")}
        if kind == "nested":
            checked["filter"] = self.filter(fields["filter"], f"{inside}.filter", depth=depth + 1, is_nested=True)
        return checked

    def _field(self, value: dict[str, Any], place: str) -> dict[str, Any]:
        fields = _fields(value, place, ("key", *_ON_KEY))
        key = _path(fields.pop("key", None), f"{place}.key")
        if len(fields) != 1:
            _refuse(place, f"expected exactly one of {_names(_ON_KEY)} beside `key`, got {len(fields)}")
        ((kind, content),) = fields.items()
        inside = f"{place}.{kind}"
        if kind == "match":
            return {"key": key, kind: self._match(content, inside)}
        if kind == "range":
            return {"key": key, kind: _range(content, inside)}
        if kind == "values_count":
            bounds = _bounds(content, inside)
            return {"key": key, kind: {name: _integer(each, f"{inside}.{name}") for name, each in bounds.items()}}
        if not isinstance(content, bool):
            _refuse(inside, f"expected true or false, got {_kind(content)}")
        condition = {kind: {"key": key}}
        return condition if content else {"must_not": [condition]}

    def _match(self, value: Any, place: str) -> dict[str, Any]:
        fields = _fields(value, place, _MATCHES)
        if len(fields) != 1:
            _refuse(place, f"expected exactly one of {_names(_MATCHES)}, got {len(fields)}")
        ((kind, content),) = fields.items()
        inside = f"{place}.{kind}"
        if kind in ("any", "except"):
            is_text = isinstance(content, list) and bool(content) and isinstance(content[0], str)
            return {kind: self._values(content, inside, (str,) if is_text else (int,))}
        if kind == "value":
            return {kind: content if isinstance(content, bool) else _scalar(content, inside, (int, str))}
        text = _scalar(content, inside, (str,))
        if kind in _BY_WORD:
            self._count_conditions(max(len(text.split()), len(_WORD.findall(text))), inside)
        return {kind: text}

    def _values(self, value: Any, place: str, types: tuple[type, ...]) -> list[Any]:
        if not isinstance(value, list):
            _refuse(place, f"expected a list, got {_kind(value)}")
        self._count_values(len(value), place)
        return [_scalar(each, f"{place}[{i}]", types) for i, each in enumerate(value)]

    def _count_conditions(self, number: int, place: str) -> None:
        self._num_conditions += number
        if self._num_conditions > MAX_CONDITIONS:
            _refuse(
                place,
                f"the filter has more than {MAX_CONDITIONS} conditions and words to look for; list the values of a key "
                'in one condition, as in {"match": {"any": [...]}}, or ask several times',
            )

    def _count_values(self, number: int, place: str) -> None:
        self._num_values += number
        if self._num_values > MAX_VALUES:
            _refuse(place, f"the filter lists more than {MAX_VALUES:,} values; ask several times")


def _fields(
    value: Any, place: str, allowed: tuple[str, ...] | list[str], required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields of an object that are not null."""
    if not isinstance(value, dict):
        _refuse(place, f"expected an object, got {_kind(value)}")
    for name in value:
        if name not in allowed:
            _refuse(_join(place, str(name)), f"unknown here; expected {_names(allowed)}")
    fields = {name: each for name, each in value.items() if each is not None}
    for name in required:
        if name not in fields:
            _refuse(_join(place, name), "is missing")
    return fields


def _range(value: Any, place: str) -> dict[str, Any]:
    bounds = _bounds(value, place)
    is_datetime = isinstance(next(iter(bounds.values())), str)
    bound = _datetime if is_datetime else _number
    return {name: bound(each, f"{place}.{name}") for name, each in bounds.items()}


def _bounds(value: Any, place: str) -> dict[str, Any]:
    bounds = _fields(value, place, _BOUNDS)
    if not bounds:
        _refuse(place, f"expected at least one of {_names(_BOUNDS)}")
    return bounds


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(place, f"expected a number (bounds are all numbers or all datetimes), got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if math.isfinite(number) else _refuse(place, "the number is not finite")


def _datetime(value: Any, place: str) -> str:
    moment = datetime_utils.parse(value) if isinstance(value, str) else None
    if moment is None:
        _refuse(place, f"expected a number or a datetime like 2024-05-01T12:00:00Z or 2024-05-01, got {_kind(value)}")
    return moment.isoformat()


def _integer(value: Any, place: str, least: int = 0) -> int:
    number: int = _scalar(value, place, (int,))
    return number if number >= least else _refuse(place, f"expected an integer of at least {least}, got {number}")


def _scalar(value: Any, place: str, types: tuple[type, ...]) -> Any:
    if isinstance(value, bool) or not isinstance(value, types):
        _refuse(place, f"expected {' or '.join(_TYPES[each] for each in types)}, got {_kind(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        _refuse(place, "the integer is beyond 64 bits")
    return value


def _path(value: Any, place: str) -> str:
    if not isinstance(value, str):
        _refuse(place, f"expected a key of the metadata, got {_kind(value)}")
    try:
        parse_json_path(value)
    except ValueError:
        _refuse(place, f'{value!r:.80} is no key; write `a.b`, `a[].b`, `a[0]`, or `"a key with other characters"`')
    return value


def _kind(value: Any) -> str:
    """How a message shows a value: short ones as JSON, long ones by type."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{json.dumps(value):.60}"


def _names(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _join(place: str, name: str) -> str:
    return f"{place}.{name:.60}" if place else f"{name:.60}"


def _refuse(place: str, problem: str) -> NoReturn:
    raise InvalidFilterError(f"{place or 'filter'}: {problem}")
