from typing import Any

import pytest

from service.errors import InvalidFilterError
from service.store.base import point_id
from service.store.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, check_filter, matches, stored_form


def nested_filters(depth: int) -> dict[str, Any]:
    return {"must": [nested_filters(depth - 1)]} if depth > 1 else {"must": []}


def field(**condition: Any) -> dict[str, Any]:
    return {"must": [{"key": "a", **condition}]}


@pytest.mark.parametrize(
    ("filter", "place"),
    [
        ([], "filter: expected an object, got a list"),
        ("x", 'filter: expected an object, got "x"'),
        ({"most": []}, "most: unknown here; expected `must`"),
        ({"must": 1}, "must: expected a list of conditions, got 1"),
        ({"must": [1]}, "must[0]: expected a condition object"),
        ({"must": [{}]}, "must[0]: an empty condition"),
        ({"must": [{"kye": "a"}]}, "must[0].kye: unknown here"),
        ({"should": [{"key": "a"}]}, "should[0]: expected exactly one of"),
        ({"must": [{"key": None, "is_null": True}]}, "must[0].key: expected a key"),
        ({"must": [{"key": "a b", "is_null": True}]}, "must[0].key: 'a b' is no key"),
        ({"must": [{"key": "a[x]", "is_null": True}]}, "must[0].key: 'a[x]' is no key"),
        ({"must": [{"key": "", "is_null": True}]}, "must[0].key: '' is no key"),
        (field(match={"value": 1}, range={"gt": 1}), "must[0]: expected exactly one of"),
        (field(match={"value": 1.5}), "must[0].match.value: expected an integer or a string, got 1.5"),
        (field(match={"value": 2**63}), "must[0].match.value: the integer is beyond 64 bits"),
        (field(match={"value": None}), "must[0].match: expected exactly one of"),
        (field(match={"any": 1}), "must[0].match.any: expected a list, got 1"),
        (field(match={"any": [1, "a"]}), 'must[0].match.any[1]: expected an integer, got "a"'),
        (field(match={"except": ["a", 1]}), "must[0].match.except[1]: expected a string, got 1"),
        (field(match={"any": [True]}), "must[0].match.any[0]: expected an integer, got true"),
        (field(match={"text": 1}), "must[0].match.text: expected a string, got 1"),
        (field(range={}), "must[0].range: expected at least one of"),
        (field(range={"gt": "x"}), "must[0].range.gt: expected a number or a datetime"),
        (field(range={"gt": True}), "must[0].range.gt: expected a number"),
        (field(range={"gt": 1, "lt": "2024-01-01"}), "must[0].range.lt: expected a number"),
        (field(range={"gte": "2024-01-01", "lt": 1}), "must[0].range.lt: expected a number or a datetime"),
        (field(range={"gt": float("inf")}), "must[0].range.gt: the number is not finite"),
        (field(range={"gt": 10**400}), "must[0].range.gt: the number is not finite"),
        (field(range={"above": 1}), "must[0].range.above: unknown here"),
        (field(values_count={"gt": -1}), "must[0].values_count.gt: expected an integer of at least 0, got -1"),
        (field(values_count={"gt": 1.0}), "must[0].values_count.gt: expected an integer, got 1.0"),
        (field(is_empty=1), "must[0].is_empty: expected true or false, got 1"),
        (field(geo_radius={}), "must[0].geo_radius: this kind of condition is not supported"),
        ({"must": [{"has_vector": ""}]}, "must[0].has_vector: this kind"),
        ({"must_not": [{"has_id": "d"}]}, "must_not[0].has_id: expected a list"),
        ({"must": [{"has_id": [1]}]}, "must[0].has_id[0]: expected a string, got 1"),
        ({"must": [{"is_empty": "a"}]}, "must[0].is_empty: expected an object"),
        ({"must": [{"is_empty": {}}]}, "must[0].is_empty.key: is missing"),
        ({"must": [{"nested": {"key": "a"}}]}, "must[0].nested.filter: is missing"),
        (
            {"must": [{"nested": {"key": "a", "filter": {"must": [{"has_id": []}]}}}]},
            "must[0].nested.filter.must[0].has_id",
        ),
        ({"must": [{"is_null": {"key": "a"}, "has_id": ["d"]}]}, "must[0].is_null: unknown here"),
        ({"min_should": {"conditions": []}}, "min_should.min_count: is missing"),
        ({"min_should": {"conditions": [], "min_count": 0}}, "min_should.min_count: expected an integer of at least 1"),
        ({"must": [{"should": [{"must_not": [{"x": 1}]}]}]}, "must[0].should[0].must_not[0].x: unknown here"),
        (nested_filters(MAX_DEPTH + 1), "filters nest deeper"),
        (field(match={"any": [1] * (MAX_VALUES + 1)}), "must[0].match.any: the filter lists more than 10,000"),
        ({"should": [{"is_empty": {"key": "a"}}] * (MAX_CONDITIONS + 1)}, "should[256]: the filter has more than 256"),
        (field(match={"text": "a " * MAX_CONDITIONS}), "must[0].match.text: the filter has more than 256"),
        (field(match={"text": "a." * MAX_CONDITIONS}), "must[0].match.text: the filter has more than 256"),
    ],
)
def test_check_filter_bad_filter_is_refused_with_its_place(filter: Any, place: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        check_filter(filter)
    assert place in caught.value.detail
    assert "\n" not in caught.value.detail


def test_check_filter_brings_spellings_together() -> None:
    assert check_filter(
        {"must": {"key": "a", "match": {"value": True}, "range": None}, "should": None}
    ) == check_filter({"must": [{"key": "a", "match": {"value": True}}]})
    assert check_filter(field(is_null=True)) == check_filter({"must": [{"is_null": {"key": "a"}}]})
    assert check_filter(field(range={"gt": "2024-05-01"})) == field(range={"gt": "2024-05-01T00:00:00+00:00"})


def test_check_filter_of_a_checked_filter_changes_nothing() -> None:
    bounds = {"gt": "2024-05-01"}
    filter = {"must": [{"key": "a[].b", "is_empty": False}, {"key": "b", "range": bounds}, {"has_id": []}]}
    once = check_filter(filter | {"min_should": {"conditions": [{"has_id": []}], "min_count": 1}, "should": []})
    assert check_filter(once) == once


def test_check_filter_largest_allowed_passes() -> None:
    check_filter(nested_filters(MAX_DEPTH))
    check_filter(field(match={"any": [1] * MAX_VALUES}))
    check_filter({"should": [{"is_empty": {"key": "a"}}] * MAX_CONDITIONS})
    check_filter(field(match={"text": "a " * (MAX_CONDITIONS - 1)}))


def test_stored_form_prefixes_keys_but_not_those_inside_nested() -> None:
    inner = {"must": [{"key": "name", "match": {"value": "Ann"}}]}
    stored = stored_form(check_filter({"must": [{"nested": {"key": "authors", "filter": inner}}, {"has_id": ["d"]}]}))
    assert stored["must"][0] == {"nested": {"key": "metadata.authors", "filter": inner}}
    assert stored["must"][1] == {"has_id": [point_id("d")]}


METADATA = {
    "year": 2024,
    "price": 9.5,
    "tags": ["red", "blue"],
    "authors": [{"name": "Ann", "age": 30}, {"name": "Bob", "age": 50}],
    "day": "2024-05-01T12:00:00+02:00",
    "is_open": True,
    "nothing": None,
    "empty": [],
    "a key": {"b": 1},
    "title": "The quick brown fox",
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"key": "year", "match": {"value": 2024}}, True),
        ({"key": "year", "match": {"value": "2024"}}, False),
        ({"key": "is_open", "match": {"value": True}}, True),
        ({"key": "is_open", "match": {"value": 1}}, False),
        ({"key": "tags", "match": {"value": "red"}}, True),
        ({"key": "tags[]", "match": {"value": "red"}}, True),
        ({"key": "tags[1]", "match": {"value": "red"}}, False),
        ({"key": "tags", "match": {"any": ["green", "blue"]}}, True),
        ({"key": "tags", "match": {"any": []}}, False),
        ({"key": "tags", "match": {"except": ["red"]}}, True),
        ({"key": "tags", "match": {"except": ["red", "blue"]}}, False),
        ({"key": "missing", "match": {"except": ["red"]}}, False),
        ({"key": "title", "match": {"text": "FOX quick"}}, True),
        ({"key": "title", "match": {"text": "fo"}}, False),
        ({"key": "title", "match": {"phrase": "quick brown"}}, True),
        ({"key": "title", "match": {"phrase": "brown quick"}}, False),
        ({"key": "title", "match": {"prefix": "The q"}}, True),
        ({"key": "title", "match": {"substring": "row"}}, True),
        ({"key": "title", "match": {"text_any": "cow fox"}}, True),
        ({"key": "price", "range": {"gt": 9, "lte": 9.5}}, True),
        ({"key": "price", "range": {"lt": 9.5}}, False),
        ({"key": "is_open", "range": {"gte": 0}}, False),
        ({"key": "day", "range": {"gte": "2024-05-01T10:00:00Z", "lt": "2024-05-01T10:00:01Z"}}, True),
        ({"key": "day", "range": {"gt": "2024-05-02"}}, False),
        ({"key": "authors[].name", "match": {"value": "Bob"}}, True),
        ({"key": "authors.name", "match": {"value": "Bob"}}, False),
        ({"key": '"a key".b', "match": {"value": 1}}, True),
        ({"key": "tags", "values_count": {"gte": 2, "lt": 3}}, True),
        ({"key": "year", "values_count": {"gt": 1}}, False),
        ({"key": "missing", "is_empty": True}, True),
        ({"is_empty": {"key": "empty"}}, True),
        ({"is_empty": {"key": "nothing"}}, True),
        ({"is_null": {"key": "nothing"}}, True),
        ({"is_null": {"key": "missing"}}, False),
        ({"key": "year", "is_null": False}, True),
        ({"has_id": ["other", "d"]}, True),
        ({"has_id": ["other"]}, False),
        ({"should": []}, True),
        ({"nested": {"key": "authors", "filter": {"should": []}}}, True),
    ],
)
def test_matches_condition(condition: dict[str, Any], expected: bool) -> None:
    assert matches(check_filter({"must": [condition]}), METADATA, "d") is expected
    assert matches(check_filter({"must_not": [condition]}), METADATA, "d") is not expected


def test_matches_nested_wants_one_element_to_satisfy_all() -> None:
    both = [{"key": "name", "match": {"value": "Ann"}}, {"key": "age", "range": {"gt": 40}}]
    assert not matches(
        check_filter({"must": [{"nested": {"key": "authors", "filter": {"must": both}}}]}), METADATA, "d"
    )
    apart = [{"key": f"authors[].{each['key']}", **{k: v for k, v in each.items() if k != "key"}} for each in both]
    assert matches(check_filter({"must": apart}), METADATA, "d")


@pytest.mark.parametrize(("min_count", "expected"), [(1, True), (2, True), (3, False)])
def test_matches_min_should_counts(min_count: int, expected: bool) -> None:
    conditions = [{"key": "year", "match": {"value": year}} for year in (2023, 2024)] + [{"has_id": ["d"]}]
    filter = check_filter({"min_should": {"conditions": conditions, "min_count": min_count}})
    assert matches(filter, METADATA, "d") is expected
