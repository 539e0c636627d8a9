"""The table of what bad input gets: one problem document for each line of it."""

import json

import pytest

from tests.service.api.parts import DIMENSION, MAX_LENGTH

# ruff: noqa: E501 - a table reads best with a case a line
JSON = {"content-type": "application/json"}
LONG = "x" * MAX_LENGTH


def doc(document_id="a", text="some text", **more):
    return {"id": document_id, "text": text, **more}


def docs(*documents, **more):
    return {"documents": list(documents), **more}


# path, raw body, words that the detail must hold
UNREADABLE = {
    "empty": ("/embed", b"", "empty"),
    "not json": ("/embed", b"{inputs: 1}", "line 1 column 2"),
    "cut off": ("/search", b'{"query": "a', "EOF"),
    "second line": ("/search", b'{"query":\n bad}', "line 2 column 2"),
    "not utf-8": ("/embed", b'{"inputs": "\xff", "kind": "query"}', "column 13"),
    "latin-1": ("/documents", '{"documents": [{"id": "é", "text": "b"}]}'.encode("latin-1"), "column"),
    "utf-16": ("/embed", '{"inputs": "a", "kind": "query"}'.encode("utf-16"), "column 1"),
    "raw surrogate": ("/embed", b'{"inputs": "\xed\xa0\x80", "kind": "query"}', "column 13"),
    "escaped surrogate": ("/embed", b'{"inputs": "\\ud800", "kind": "query"}', "column"),
    "escaped surrogate, low": ("/search", b'{"query": "\\udc00"}', "column"),
    "surrogate in a key": (
        "/documents",
        b'{"documents": [{"id": "a", "text": "b", "metadata": {"\\ud800": 1}}]}',
        "column",
    ),
    "surrogate, openai": ("/v1/embeddings", b'{"input": "\\ud800", "model": "m"}', "column"),
    "nan": ("/search", b'{"query": "a", "score_threshold": NaN}', "column"),
    "infinity": ("/search", b'{"query": "a", "score_threshold": -Infinity}', "column"),
    "too deep": ("/embed", b"[" * 100_000, "recursion limit"),
    "too deep, objects": ("/search", b'{"a":' * 100_000, "recursion limit"),
    "huge number": ("/search", b'{"query": "a", "top_k": ' + b"9" * 5000 + b"}", "out of range"),
    "control character": ("/embed", b'{"inputs": "\x01", "kind": "query"}', "control character"),
    "trailing": ("/embed", b'{"inputs": "a", "kind": "query"} x', "trailing"),
    "byte order mark": ("/embed", b'\xef\xbb\xbf{"inputs": "a", "kind": "query"}', "column 1"),
}

# path, body, words that the detail must hold
REFUSED = {
    "unknown field": ("/embed", {"inputs": "a", "kind": "query", "input": "b"}, "input: unknown field"),
    "unknown field in a document": ("/documents", docs(doc(body="x")), "documents[0].body"),
    "missing field": ("/embed", {"inputs": "a"}, "kind: is missing"),
    "missing query": ("/search", {}, "query: is missing"),
    "not an object": ("/embed", ["a"], "body"),
    "null": ("/search", None, "body"),
    "number for text": ("/embed", {"inputs": 7, "kind": "query"}, "inputs"),
    "number among texts": ("/embed", {"inputs": ["a", 7], "kind": "query"}, "inputs[1]"),
    "null among texts": ("/search", {"query": [None]}, "query[0]"),
    "string for integer": ("/search", {"query": "a", "top_k": "3"}, "top_k"),
    "float for integer": ("/search", {"query": "a", "top_k": 3.5}, "top_k"),
    "bool for integer": ("/search", {"query": "a", "top_k": True}, "top_k"),
    "integer for bool": ("/search", {"query": "a", "with_text": 1}, "with_text"),
    "string for bool": ("/embed", {"inputs": "a", "kind": "query", "truncate": "true"}, "truncate"),
    "unknown kind": ("/embed", {"inputs": "a", "kind": "passage"}, "'query' or 'document'"),
    "unknown encoding_format": ("/embed", {"inputs": "a", "kind": "query", "encoding_format": "hex"}, "encoding_format"),
    "top_k 0": ("/search", {"query": "a", "top_k": 0}, "top_k"),
    "top_k negative": ("/search", {"query": "a", "top_k": -1}, "top_k"),
    "top_k over the limit": ("/search", {"query": "a", "top_k": 1001}, "1,000"),
    "results over the limit": ("/search", {"query": ["a"] * 10, "top_k": 500, "offset": 1}, "5,010; the limit is 5,000"),
    "top_k huge": ("/search", {"query": "a", "top_k": 2**70}, "1,000"),
    "offset over the limit": ("/search", {"query": "a", "offset": 995}, "1,000"),
    "offset negative": ("/search", {"query": "a", "offset": -1}, "offset"),
    "score_threshold overflows": ("/search", b'{"query": "a", "score_threshold": 1e999}', "score_threshold"),
    "score_threshold a string": ("/search", {"query": "a", "score_threshold": "0.5"}, "score_threshold"),
    "collection name": ("/search", {"query": "a", "collection": "a b"}, "collection"),
    "collection path": ("/documents", docs(doc(), collection="../../etc"), "collection"),
    "empty text": ("/embed", {"inputs": "", "kind": "query"}, "inputs: is empty"),
    "white space only": ("/search", {"query": " \n\t"}, "query: is empty"),
    "empty text among texts": ("/embed", {"inputs": ["a", ""], "kind": "document"}, "inputs[1]: is empty"),
    "empty list": ("/embed", {"inputs": [], "kind": "query"}, "inputs"),
    "empty list of queries": ("/search", {"query": []}, "query"),
    "empty list of documents": ("/documents", docs(), "documents"),
    "dimensions 0": ("/embed", {"inputs": "a", "kind": "query", "dimensions": 0}, "dimensions"),
    "dimensions over": ("/embed", {"inputs": "a", "kind": "query", "dimensions": DIMENSION + 1}, f"{DIMENSION}"),
    "too long": ("/embed", {"inputs": ["a", LONG], "kind": "document"}, f"{MAX_LENGTH + 1} tokens"),
    "too long query": ("/search", {"query": LONG}, f"limit is {MAX_LENGTH}"),
    "too long document": ("/documents", docs(doc(), doc("b", LONG)), f"documents[1] (id 'b') has {MAX_LENGTH + 1} tokens"),
    "too many inputs": ("/embed", {"inputs": ["a"] * 11, "kind": "query"}, "11 items; the limit is 10"),
    "too many queries": ("/search", {"query": ["a"] * 11}, "11 items; the limit is 10"),
    "too many documents": ("/documents", docs(*[doc(str(i)) for i in range(21)]), "21 items; the limit is 20"),
    "too many characters": ("/embed", {"inputs": "x" * 1001, "kind": "query"}, "1,001 characters"),
    "too many characters, instruction": ("/search", {"query": "a", "instruction": "x" * 1001}, "1,001 characters"),
    "too many characters, document": ("/documents", docs(doc(text="x" * 1001)), "documents[0].text"),
    "too many documents, counted first": ("/documents", docs(*range(21)), "21 items; the limit is 20"),
    "same id twice": ("/documents", docs(doc("a"), doc("b"), doc("a")), "documents[0] and documents[2]"),
    "id over 512 bytes": ("/documents", docs(doc("é" * 257)), "514 bytes"),
    "empty id": ("/documents", docs(doc("")), "documents[0].id: is empty"),
    "number for id": ("/documents", docs(doc(7)), "documents[0].id"),
    "control character in id": ("/documents", docs(doc("a\nb")), "control character"),
    "metadata a list": ("/documents", docs(doc(metadata=[1])), "documents[0].metadata"),
    "metadata a string": ("/documents", docs(doc(metadata="x")), "documents[0].metadata"),
    "metadata null": ("/documents", docs(doc(metadata=None)), "documents[0].metadata"),
    "metadata over 64 bit": ("/documents", docs(doc(metadata={"a": [{"b": 2**63}]})), "a[0].b"),
    "metadata under 64 bit": ("/documents", docs(doc(metadata={"a": -(2**63) - 1})), "64 bits"),
    "metadata too large": ("/documents", docs(doc(), doc("b", metadata={"a": "é" * 250})), "metadata of 'b': 508 bytes as JSON; the limit is 500"),
    "filter of too many conditions": ("/search", {"query": "a", "filter": {"should": [{"is_null": {"key": "x"}}] * 257}}, "should[256]: the filter has more than 256 conditions"),
    "metadata overflows": ("/documents", b'{"documents": [{"id": "a", "text": "b", "metadata": {"x": 1e999}}]}', "finite"),
    "empty document": ("/documents", docs(doc(text=" ")), "documents[0]"),
    "filter unknown clause": ("/search", {"query": "a", "filter": {"musst": []}}, "musst"),
    "filter without condition": ("/search", {"query": "a", "filter": {"must": [{"key": "x"}]}}, "must[0]"),
    "filter a list": ("/search", {"query": "a", "filter": []}, "filter"),
    "filter over 64 bit": ("/search", {"query": "a", "filter": {"must": [{"key": "x", "match": {"value": 2**80}}]}}, "64 bits"),
    "filter in delete": ("/documents/delete", {"filter": {"must": [{"key": "x", "rang": {}}]}}, "must[0]"),
    "delete nothing": ("/documents/delete", {}, "either ids or filter"),
    "delete both": ("/documents/delete", {"ids": ["a"], "filter": {}}, "either ids or filter"),
    "delete by an empty filter": ("/documents/delete", {"filter": {}}, "match every document"),
    "delete by an empty filter inside": ("/documents/delete", {"filter": {"must": [{"must": []}]}}, "match every document"),
    "delete by an empty alternative": (
        "/documents/delete",
        {"filter": {"should": [{"key": "x", "match": {"value": 1}}, {"must_not": []}]}},
        "match every document",
    ),
    "delete by no conditions to count": (
        "/documents/delete",
        {"filter": {"min_should": {"conditions": [], "min_count": 1}}},
        "match every document",
    ),
    "delete by empty conditions": ("/documents/delete", {"filter": {"must": []}}, "match every document"),
    "delete no ids": ("/documents/delete", {"ids": []}, "ids"),
    "openai without model": ("/v1/embeddings", {"input": "a"}, "model: is missing"),
    "openai empty": ("/v1/embeddings", {"input": "", "model": "m"}, "input: is empty"),
    "openai empty list": ("/v1/embeddings", {"input": [], "model": "m"}, "input"),
    "openai empty tokens": ("/v1/embeddings", {"input": [[]], "model": "m"}, "input[0]"),
    "openai mixed": ("/v1/embeddings", {"input": ["a", 1], "model": "m"}, "input[1]"),
    "openai unknown token": ("/v1/embeddings", {"input": [5, 10**6], "model": "m"}, "1000000"),
    "openai negative token": ("/v1/embeddings", {"input": [-1], "model": "m"}, "input[0]"),
    "openai huge token": ("/v1/embeddings", {"input": [2**80], "model": "m"}, "vocabulary"),
    "openai bool token": ("/v1/embeddings", {"input": [1, True], "model": "m"}, "input[1]"),
    "openai too long tokens": ("/v1/embeddings", {"input": [5] * (MAX_LENGTH + 1), "model": "m"}, "tokens"),
    "openai too many": ("/v1/embeddings", {"input": [[5]] * 11, "model": "m"}, "11 items"),
    "openai inner end of text": ("/v1/embeddings", {"input": [[5], [5, 256, 6]], "model": "m"}, "input 1: token id 256"),
    "openai end of text twice": ("/v1/embeddings", {"input": [5, 256, 256], "model": "m"}, "ends a text exactly once"),
    "openai instruction on tokens": ("/v1/embeddings", {"input": [5], "model": "m", "kind": "query"}, "token ids"),
}  # fmt: skip

# method, path, body, status, code, words
ELSEWHERE = {
    "unknown path": ("GET", "/nothing", None, 404, "not_found", "/nothing"),
    "trailing slash": ("POST", "/embed/", {"inputs": "a", "kind": "query"}, 404, "not_found", "/embed/"),
    "wrong method": ("GET", "/embed", None, 405, "method_not_allowed", "POST"),
    "unknown method": ("BREW", "/embed", None, 405, "method_not_allowed", "POST"),
    "unknown document": ("GET", "/documents/none", None, 404, "not_found", "none"),
    "unknown document, delete": ("DELETE", "/documents/none", None, 404, "not_found", "none"),
    "empty document id": ("GET", "/documents/", None, 404, "not_found", ""),
    "unknown collection": ("GET", "/collections/none", None, 404, "not_found", "none"),
    "unknown collection, drop": ("DELETE", "/collections/none", None, 404, "not_found", "none"),
    "unknown collection, search": ("POST", "/search", {"query": "a", "collection": "none"}, 404, "not_found", "PUT /collections/none"),
    "unknown collection, write": ("POST", "/documents", docs(doc(), collection="none"), 404, "not_found", "PUT /collections/none"),
    "unknown collection, get": ("GET", "/documents/a?collection=none", None, 404, "not_found", "PUT /collections/none"),
    "unknown collection, delete": ("POST", "/documents/delete", {"ids": ["a"], "collection": "none"}, 404, "not_found", "none"),
    "collection name": ("PUT", "/collections/a%20b", None, 422, "invalid_input", "name"),
    "collection name too long": ("PUT", "/collections/" + "a" * 65, None, 422, "invalid_input", "name"),
    "collection name reserved": ("PUT", "/collections/a--b", None, 422, "invalid_input", "--"),
    "two collections": ("POST", "/documents?collection=b", docs(doc(), collection="a"), 422, "invalid_input", "URL"),
    "unknown parameter": ("POST", "/documents?colection=papers", docs(doc()), 422, "invalid_input", "colection: unknown query parameter; this call takes collection, truncate"),
    "unknown parameter, health": ("GET", "/health/live?x=1", None, 422, "invalid_input", "this call takes none"),
    "collection name reserved, search": ("POST", "/search", {"query": "a", "collection": "a--b"}, 422, "invalid_input", "--"),
    "reindex without a body": ("POST", "/collections/default/reindex", None, 400, "malformed_input", "empty"),
    "reindex by the same checkpoint": ("POST", "/collections/default/reindex", {}, 409, "fingerprint_mismatch", "already"),
    "reindex by no checkpoint": ("POST", "/collections/default/reindex", {"checkpoint": "/none"}, 422, "invalid_input", "/none"),
    "reindex, a field of another action": ("POST", "/collections/default/reindex", {"action": "pause", "share": 0.5}, 422, "invalid_input", "share"),
    "reindex, share": ("POST", "/collections/default/reindex", {"share": 1.5}, 422, "invalid_input", "share"),
    "reindex, unknown action": ("POST", "/collections/default/reindex", {"action": "stop"}, 422, "invalid_input", "pause"),
    "reindex that was not started": ("POST", "/collections/default/reindex", {"action": "switch"}, 404, "not_found", "start"),
    "reindex progress of none": ("GET", "/collections/default/reindex", None, 404, "not_found", "start"),
    "reindex of nothing": ("POST", "/collections/none/reindex", {}, 404, "not_found", "none"),
}  # fmt: skip


def problem_of(response, status, code):
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    problem = response.json()
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"urn:eoseek:problem:{code}")
    assert problem["title"]
    assert problem["instance"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return problem


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_body_gets_400_saying_where(small, name):
    path, raw, words = UNREADABLE[name]

    response = small.post(path, content=raw, headers=JSON)

    assert words in problem_of(response, 400, "malformed_input")["detail"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_body_gets_422_naming_field_and_limit(small, name):
    path, body, words = REFUSED[name]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    response = small.post(path, content=raw, headers=JSON)

    problem = problem_of(response, 422, response.json()["code"])
    assert problem["code"] in ("invalid_input", "text_too_long", "invalid_filter")
    assert words in problem["detail"]


def test_refused_documents_leave_nothing_behind(small):
    for path, body, _ in REFUSED.values():
        if path == "/documents":
            small.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode(), headers=JSON)

    assert small.get("/collections/default").json()["documents"] == 0


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_refusals(small, name):
    method, path, body, status, code, words = ELSEWHERE[name]

    response = small.request(method, path, json=body)

    assert words in problem_of(response, status, code)["detail"]


def test_wrong_method_names_every_method_of_the_path(small):
    response = small.request("PATCH", "/collections/default")

    assert response.headers["allow"] == "DELETE, GET, HEAD, PUT"


def test_field_errors_are_listed_with_location_and_message(small):
    response = small.post("/search", json={"query": 1, "top_k": 0, "extra": True})

    errors = response.json()["errors"]
    assert {error["location"] for error in errors} == {"query", "top_k", "extra"}


def test_long_lists_of_field_errors_are_cut(small):
    response = small.post("/embed", json={"kind": "query", **{f"x{number}": 1 for number in range(30)}})

    problem = problem_of(response, 422, "invalid_input")
    assert len(problem["errors"]) == 20
    assert "and 28 more" in problem["detail"]


MANY = {
    "/embed": ({"inputs": [1] * 20_000, "kind": "query"}, "inputs[0]: "),
    "/search": ({"query": ["a", *[1] * 20_000]}, "query[1]: "),
    "/documents": ({"documents": [1] * 20}, "documents[0]: "),
    "/documents/delete": ({"ids": [1] * 20_000}, "ids[0]: "),
    "/v1/embeddings": ({"input": [[-1] * 20_000, [-1]], "model": "m"}, "input[0][0]: "),
}


@pytest.mark.parametrize("path", MANY)
def test_a_list_of_bad_items_is_refused_at_its_first(small, path):
    # each error takes over a kilobyte, so that a body of a few MB would take gigabytes
    body, place = MANY[path]

    problem = problem_of(small.post(path, json=body), 422, "invalid_input")

    assert [place.startswith(error["location"]) for error in problem["errors"]] == [True]
    assert problem["detail"].startswith(place)


def test_an_object_of_very_many_fields_is_refused_whole(small):
    fields = {f"x{number}": 1 for number in range(20_000)}
    bodies = {"/embed": fields, "/documents": docs(fields)}

    for path, body in bodies.items():
        problem = problem_of(small.post(path, json=body), 422, "invalid_input")
        assert len(problem["errors"]) == 1
        assert "has 20,000 fields; the known ones are " in problem["detail"]
    line = json.dumps(fields)
    report = small.post("/documents", content=line, headers={"content-type": "application/x-ndjson"}).json()
    assert [failure["detail"] for failure in report["failed"]] == [
        "body: has 20,000 fields; the known ones are id, text, title, metadata"
    ]


@pytest.mark.parametrize("path", ["/embed", "/search", "/documents", "/documents/delete", "/v1/embeddings"])
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "nonsense"]
)
def test_other_content_types_get_415(small, path, content_type):
    response = small.post(path, content=b"{}", headers={"content-type": content_type})

    assert "application/json" in problem_of(response, 415, "unsupported_media_type")["detail"]


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_compressed_bodies_get_415(small, content_type):
    headers = {"content-type": content_type, "content-encoding": "gzip"}

    response = small.post("/documents", content=b"\x1f\x8b", headers=headers)

    assert "uncompressed" in problem_of(response, 415, "unsupported_media_type")["detail"]


def test_missing_content_type_is_taken_for_json(small):
    request = small.build_request("POST", "/embed", content=b'{"inputs": "a", "kind": "query"}')
    request.headers.pop("content-type", None)

    assert small.send(request).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "abc", "nan", "1e3", ""])
def test_bad_timeouts_get_422(small, seconds):
    response = small.get("/info", headers={"X-Request-Timeout": seconds})

    assert "X-Request-Timeout" in problem_of(response, 422, "invalid_input")["detail"]


@pytest.mark.parametrize(
    ("query", "timeout", "words"),
    [("?colection=papers", "1", "colection: unknown query parameter"), ("", "abc", "X-Request-Timeout")],
)
def test_stream_with_a_bad_parameter_or_timeout_gets_422(small, query, timeout, words):
    headers = {"content-type": "application/x-ndjson", "X-Request-Timeout": timeout}

    response = small.post(f"/documents{query}", content=b"", headers=headers)

    assert words in problem_of(response, 422, "invalid_input")["detail"]


def test_front_page_may_have_parameters_of_its_own(small):
    assert small.get("/?q=merge").status_code == 200


def test_documents_415_names_both_content_types(small):
    response = small.post("/documents", content=b"{}", headers={"content-type": "text/plain"})

    detail = problem_of(response, 415, "unsupported_media_type")["detail"]
    assert detail.endswith("send application/json or application/x-ndjson.")


@pytest.mark.parametrize("document_id", [".", ".."])
def test_ids_that_no_url_can_name_are_refused(small, document_id):
    response = small.post("/documents", json=docs(doc(document_id)))

    assert "no URL can name it" in problem_of(response, 422, "invalid_input")["detail"]


def test_long_names_of_unknown_fields_are_cut(small):
    response = small.post("/embed", json={"inputs": "a", "kind": "query", "x" * 10_000: 1})

    (error,) = problem_of(response, 422, "invalid_input")["errors"]
    assert error["location"] == "x" * 200
