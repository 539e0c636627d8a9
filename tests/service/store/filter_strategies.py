"""Random metadata and random filters over the same few keys and values, so that they meet often."""

from typing import Any

from hypothesis import strategies as st

TEXTS = st.sampled_from(
    ["", "red", "Red", "red fox", "the red-fox runs", "blue", "föx", "2024-01-01", "2024-06-01T12:00:00Z"]
)
INTEGERS = st.sampled_from([-1, 0, 1, 2, 3, 2**53, 2**63 - 1])
FLOATS = st.sampled_from([-0.0, 0.5, 1.0, 2.0, 2.5, 1e300])
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXTS)
NAMES = st.sampled_from(["a", "b", "c d", "e"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
METADATA = st.dictionaries(NAMES, VALUES, max_size=4)
DOCUMENT_IDS = [f"d{i}" for i in range(6)]

_NAME = st.sampled_from(["a", "b", '"c d"', "e"])
_STEP = st.one_of(_NAME.map(lambda name: f".{name}"), st.sampled_from(["[]", "[0]", "[1]"]))
KEYS = st.builds(lambda first, steps: first + "".join(steps), _NAME, st.lists(_STEP, max_size=2))

_DATES = st.sampled_from(["2024-01-01", "2024-05-01T00:00:00Z", "2024-06-01T14:00:00+02:00"])


def _bounds(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), values, min_size=1, max_size=2)


def _lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=0, max_size=3)


MATCHES = st.one_of(
    st.fixed_dictionaries({"value": st.one_of(st.booleans(), INTEGERS, TEXTS)}),
    st.fixed_dictionaries({"any": st.one_of(_lists(INTEGERS), _lists(TEXTS))}),
    st.fixed_dictionaries({"except": st.one_of(_lists(INTEGERS), _lists(TEXTS))}),
    *(st.fixed_dictionaries({kind: TEXTS}) for kind in ("text", "text_any", "phrase", "prefix", "substring")),
)
_NUMBERS = st.one_of(st.sampled_from([-1, 0, 1, 2, 3, 2**53]), FLOATS)
_ON_KEY = st.one_of(
    st.fixed_dictionaries({"match": MATCHES}),
    st.fixed_dictionaries({"range": st.one_of(_bounds(_NUMBERS), _bounds(_DATES))}),
    st.fixed_dictionaries({"values_count": _bounds(st.integers(0, 3))}),
    st.fixed_dictionaries({"is_empty": st.booleans()}),
    st.fixed_dictionaries({"is_null": st.booleans()}),
)
FIELDS = st.builds(lambda key, rest: {"key": key} | rest, KEYS, _ON_KEY)
LEAVES = st.one_of(
    FIELDS,
    FIELDS,
    st.builds(lambda kind, key: {kind: {"key": key}}, st.sampled_from(["is_empty", "is_null"]), KEYS),
)
HAS_ID = st.fixed_dictionaries({"has_id": st.lists(st.sampled_from(DOCUMENT_IDS), min_size=0, max_size=4)})


def _filters(conditions: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    clause = st.lists(conditions, max_size=3)
    min_should = st.fixed_dictionaries({"conditions": clause, "min_count": st.integers(1, 3)})
    optional = {"must": clause, "should": clause, "must_not": clause, "min_should": min_should}
    return st.fixed_dictionaries({}, optional=optional).filter(bool)


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda key, filter: {"nested": {"key": key, "filter": filter}}, KEYS, _filters(inner))


# deferred: hypothesis would print the whole grammar as the repr of its parts
_LEAVES: st.SearchStrategy[dict[str, Any]] = st.deferred(lambda: LEAVES)
_SHALLOW: st.SearchStrategy[dict[str, Any]] = st.deferred(lambda: st.one_of(_LEAVES, HAS_ID))
CONDITIONS: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: st.one_of(_LEAVES, _LEAVES, HAS_ID, _nested(_LEAVES), _filters(_SHALLOW))
)
FILTERS: st.SearchStrategy[dict[str, Any]] = st.deferred(lambda: _filters(CONDITIONS))
