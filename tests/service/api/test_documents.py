import json

from service.encoders.worker import LocalEncoder
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, MAX_LENGTH

NDJSON = {"content-type": "application/x-ndjson"}
LONG = "x" * MAX_LENGTH


def index(client, *documents, status=200, **more):
    response = client.post("/documents", json={"documents": list(documents), **more})
    assert response.status_code == status, response.text
    return response.json()


def stream(client, *lines, query="", status=200):
    raw = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    response = client.post(f"/documents{query}", content=raw, headers=NDJSON)
    assert response.status_code == status, response.text
    return response.json()


def counts(report):
    return report["indexed"], report["unchanged"], len(report["failed"])


def num_documents(client, collection="default"):
    return client.get(f"/collections/{collection}").json()["documents"]


def test_document_comes_back_as_it_was_sent(client):
    document = {"id": "a", "title": "T", "text": "naïve 🙂", "metadata": {"n": [1, {"x": None}], "big": 2**63 - 1}}

    assert counts(index(client, document)) == (1, 0, 0)

    assert client.get("/documents/a").json() == document


def test_document_ids_may_hold_slashes_and_anything_printable(client):
    for document_id, path in [("a/b c", "a%2Fb%20c"), ("é?#%", "%C3%A9%3F%23%25"), ("x/../y", "x%2F..%2Fy")]:
        index(client, {"id": document_id, "text": "t"})

        assert client.get(f"/documents/{path}").json()["id"] == document_id
        assert client.delete(f"/documents/{path}").json() == {"deleted": 1}


def test_unchanged_documents_are_skipped_without_encoding(make_client):
    encoder = FakeEncoder(DIMENSION)
    client = make_client(encoder=LocalEncoder(encoder))
    first, second = {"id": "a", "text": "one"}, {"id": "b", "text": "two"}
    assert counts(index(client, first, second)) == (2, 0, 0)

    assert counts(index(client, first, {**second, "text": "changed"})) == (1, 1, 0)

    assert sum(map(len, encoder.batches)) == 3
    assert client.get("/documents/b").json()["text"] == "changed"


def test_changed_metadata_is_a_change(client):
    index(client, {"id": "a", "text": "one", "metadata": {"x": 1}})

    assert counts(index(client, {"id": "a", "text": "one", "metadata": {"x": 2}})) == (1, 0, 0)


def test_a_title_alone_is_a_document(client):
    assert counts(index(client, {"id": "a", "title": "T", "text": ""})) == (1, 0, 0)


def test_too_long_documents_are_cut_when_asked_and_named(client):
    report = index(client, {"id": "a", "text": "one"}, {"id": "b", "text": LONG}, truncate=True)

    assert counts(report) == (2, 0, 0)
    assert report["truncated"] == ["b"]
    assert client.get("/documents/b").json()["text"] == LONG


def test_one_too_long_document_leaves_all_unwritten(client):
    problem = index(client, {"id": "a", "text": "one"}, {"id": "b", "text": LONG}, status=422)

    assert problem["code"] == "text_too_long"
    assert num_documents(client) == 0


def test_collection_is_named_in_the_body_or_in_the_url(client):
    client.put("/collections/other")

    index(client, {"id": "a", "text": "t"}, collection="other")
    stream(client, {"id": "b", "text": "t"}, query="?collection=other")
    assert client.post("/documents?collection=other", json={"documents": [{"id": "c", "text": "t"}]}).is_success

    assert (num_documents(client, "other"), num_documents(client)) == (3, 0)


def test_stream_document_with_too_much_metadata_fails_alone(make_client):
    client = make_client(max_metadata_bytes=20)

    report = stream(client, {"id": "a", "text": "t", "metadata": {"x": "y" * 20}}, {"id": "b", "text": "t"})

    assert (report["indexed"], [each["line"] for each in report["failed"]]) == (1, [1])
    assert "EOSEEK_API__MAX_METADATA_BYTES" in report["failed"][0]["detail"]


def test_delete_by_id_counts_what_was_there(client):
    index(client, {"id": "a", "text": "t"}, {"id": "b", "text": "t"})

    assert client.post("/documents/delete", json={"ids": ["a", "none"]}).json() == {"deleted": 1}
    assert client.get("/documents/a").status_code == 404
    assert num_documents(client) == 1


def test_delete_by_filter(client):
    index(client, {"id": "a", "text": "t", "metadata": {"x": 1}}, {"id": "b", "text": "t", "metadata": {"x": 2}})

    answer = client.post("/documents/delete", json={"filter": {"must": [{"key": "x", "match": {"value": 2}}]}})

    assert answer.json() == {"deleted": 1}
    assert client.get("/documents/b").status_code == 404


def test_stream_good_lines_are_indexed_and_bad_lines_come_back(client):
    report = stream(
        client,
        {"_id": "a", "title": "T", "text": "beir"},
        b"not json",
        {"id": "b"},
        b"",
        {"id": "c", "text": "plain"},
        {"id": "d", "text": "t", "metadata": []},
        {"id": "e", "text": LONG},
        {"id": "f" * 513, "text": "t"},
        b'{"id": "g", "text": "\xff"}',
        b'{"id": "h", "text": "\\ud800"}',
        {"id": "a", "text": "again"},
        b"[1]",
        {"id": "i", "text": " "},
    )

    assert counts(report) == (2, 0, 10)
    failed = {failure["line"]: (failure["code"], failure["id"]) for failure in report["failed"]}
    assert failed == {
        2: ("malformed_input", None),
        3: ("invalid_input", "b"),
        6: ("invalid_input", "d"),
        7: ("text_too_long", "e"),
        8: ("invalid_input", "f" * 512),
        9: ("malformed_input", None),
        10: ("malformed_input", None),
        11: ("duplicate_id", "a"),
        12: ("invalid_input", None),
        13: ("invalid_input", "i"),
    }
    details = {failure["line"]: failure["detail"] for failure in report["failed"]}
    assert "column 2" in details[2]
    assert "text: is missing" in details[3]
    assert f"{MAX_LENGTH + 1} tokens" in details[7]
    assert "line 1" in details[11]
    assert client.get("/documents/a").json()["text"] == "beir"


def nested(depth):
    return {"a": nested(depth - 1)} if depth > 1 else {}


def test_stream_a_line_that_no_store_could_keep_fails_alone(client):
    report = stream(
        client,
        {"id": "a", "text": "t"},
        {"id": "b", "text": "t", "metadata": nested(17)},
        {"id": "c", "text": "t", "metadata": nested(16)},
    )

    assert counts(report) == (2, 0, 1)
    assert (report["failed"][0]["id"], report["failed"][0]["line"]) == ("b", 2)
    assert "nests deeper than 16" in report["failed"][0]["detail"]


def test_document_that_no_store_could_keep_leaves_all_unwritten(client):
    documents = [{"id": str(number), "text": "t"} for number in range(700)]

    index(client, *documents, {"id": "deep", "text": "t", "metadata": nested(17)}, status=422)

    assert num_documents(client) == 0


def test_stream_again_changes_nothing(client):
    lines = [{"id": str(number), "text": f"text {number}"} for number in range(700)]

    assert counts(stream(client, *lines)) == (700, 0, 0)
    assert counts(stream(client, *lines, {"id": "new", "text": "t"})) == (1, 700, 0)
    assert num_documents(client) == 701


def test_stream_truncates_only_when_asked(client):
    report = stream(client, {"id": "a", "text": LONG}, query="?truncate=true")

    assert (counts(report), report["truncated"]) == ((1, 0, 0), ["a"])


def test_stream_empty_body_is_nothing(client):
    assert counts(stream(client)) == (0, 0, 0)


def test_stream_content_type_may_have_parameters(client):
    headers = {"content-type": "Application/X-NDJSON; charset=utf-8"}

    response = client.post("/documents", content=b'{"id": "a", "text": "t"}\r\n', headers=headers)

    assert counts(response.json()) == (1, 0, 0)


def test_stream_a_line_over_the_limit_fails_alone(make_client):
    client = make_client(max_body_bytes=100)

    report = stream(client, {"id": "a", "text": "t"}, b"x" * 101, {"id": "b", "text": "t"})

    assert counts(report) == (2, 0, 1)
    assert (report["failed"][0]["line"], report["failed"][0]["code"]) == (2, "line_too_long")


def test_stream_may_be_longer_than_a_body(make_client):
    client = make_client(max_body_bytes=100)

    report = stream(client, *[{"id": str(number), "text": "t"} for number in range(50)])

    assert counts(report) == (50, 0, 0)


def test_stream_unknown_collection_is_refused(client):
    problem = stream(client, {"id": "a", "text": "t"}, query="?collection=none", status=404)

    assert "PUT /collections/none" in problem["detail"]
