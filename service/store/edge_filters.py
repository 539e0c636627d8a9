"""Checked filters in their stored form as Qdrant Edge's condition objects; runs in the store's child process."""

from typing import Any

import numpy as np
import qdrant_edge as edge

from service.store.base import Filter

_MATCHES = {
    "value": edge.MatchValue,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
}


def edge_filter(stored: Filter) -> edge.Filter:
    """A filter as `filters.stored_form` gives it."""
    clauses: dict[str, Any] = {}
    for clause, value in stored.items():
        if clause == "min_should":
            clauses[clause] = edge.MinShould([_condition(each) for each in value["conditions"]], value["min_count"])
        else:
            clauses[clause] = [_condition(each) for each in value]
    return edge.Filter(**clauses)


def optional_edge_filter(stored: Filter | None) -> edge.Filter | None:
    """`edge_filter`; None stays None."""
    return None if stored is None else edge_filter(stored)


def _condition(condition: dict[str, Any]) -> Any:
    match condition:
        case {"key": key, "match": match}:
            ((kind, value),) = match.items()
            # qdrant-edge-py 0.9 reads True as the integer 1, but numpy's boolean as a boolean
            return edge.FieldCondition(
                key=key, match=_MATCHES[kind](np.bool_(value) if isinstance(value, bool) else value)
            )
        case {"key": key, "range": bounds}:
            is_datetime = isinstance(next(iter(bounds.values())), str)
            return edge.FieldCondition(
                key=key, range=(edge.RangeDateTime if is_datetime else edge.RangeFloat)(**bounds)
            )
        case {"key": key, "values_count": bounds}:
            return edge.FieldCondition(key=key, values_count=edge.ValuesCount(**bounds))
        case {"has_id": ids}:
            return edge.HasIdCondition(set(ids))
        case {"is_empty": {"key": key}}:
            return edge.IsEmptyCondition(key)
        case {"is_null": {"key": key}}:
            return edge.IsNullCondition(key)
        case {"nested": {"key": key, "filter": inner}}:
            return edge.NestedCondition(key, edge_filter(inner))
        case _:
            return edge_filter(condition)
