"""Whatever is sent, the answer is one that the OpenAPI document declares, and never a fault of the service."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALID = {
    "/embed": {"inputs": ["a"], "kind": "query", "instruction": "b", "dimensions": 3, "truncate": False},
    "/search": {
        "query": "a", "top_k": 3, "collection": "default", "score_threshold": 0.1, "offset": 0, "with_text": True,
        "filter": {"must": [{"key": "x", "match": {"value": 1}}], "must_not": [{"key": "y", "range": {"lt": 2.5}}]},
    },
    "/documents": {"documents": [{"id": "a", "text": "b", "title": "c", "metadata": {"x": [1, {"y": None}]}}]},
    "/documents/delete": {"ids": ["a"]},
    "/collections/default/reindex": {"action": "compare", "share": 0.5, "truncate": True, "queries": ["a"]},
    "/v1/embeddings": {"input": [[5, 6]], "model": "m", "encoding_format": "base64", "user": "u"},
}  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30]),
    st.floats(allow_nan=False), st.text(max_size=20), st.sampled_from(["", " ", "\x00", "default", "must", "x" * 600]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


@st.composite
def mutated(draw, value):
    """`value` with one part of it, at any depth, replaced, left out or joined by a neighbour."""
    if not value or not isinstance(value, dict | list) or draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.integers(0, 5)):
            case 0:
                return {name: each for name, each in value.items() if name != key}
            case 1:
                return {**value, draw(st.text(max_size=8)): draw(VALUES)}
        return {**value, key: draw(mutated(value[key]))}
    index = draw(st.integers(0, len(value) - 1))
    return [*value[:index], draw(mutated(value[index])), *value[index + 1 :]]


def declared(client, path):
    operation = client.app.openapi()["paths"][path.replace("/default/", "/{name}/")]["post"]
    return {int(status) for status in operation["responses"]} - {500, 503}


def answer(client, path, content, media_type="application/json"):
    response = client.post(path, content=content, headers={"content-type": media_type})
    assert response.status_code in declared(client, path), (content, response.text)
    if response.status_code >= 400:
        assert response.json()["code"]
    return response


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_gets_a_declared_answer(small, path, data):
    answer(small, path, json.dumps(data.draw(mutated(VALID[path]))).encode())


@pytest.mark.parametrize("path", VALID)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_any_bytes_get_400_or_422(small, path, raw):
    assert answer(small, path, raw).status_code in (400, 422)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_stream_adds_up(small, data):
    whole = st.builds(json.dumps, mutated(VALID["/documents"]["documents"][0])).map(str.encode)
    lines = data.draw(st.lists(whole | st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")), max_size=6))

    response = answer(small, "/documents", b"\n".join(lines), "application/x-ndjson")

    report = response.json()
    num_lines = sum(1 for line in lines if line.strip())
    assert report["indexed"] + report["unchanged"] + len(report["failed"]) == num_lines


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(max_size=40))
def test_any_path_gets_an_answer(small, path):
    for method in ("GET", "DELETE"):
        assert small.request(method, quote(f"/documents/{path}")).status_code in (200, 404, 405)
        assert small.request(method, quote(f"/collections/{path}")).status_code in (200, 404, 405, 422)
