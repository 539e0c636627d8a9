"""Every route with no key, a wrong one and one of each role; and what a key may do beside its role."""

import asyncio
import json

import pytest

from service.api.access import ACCESS, path_of
from service.app import create_app
from service.settings import Settings
from tests.service.api.asgi import Exchange
from tests.service.api.conftest import client_factory

READ, WRITE, ADMIN, DOCS_ONLY, SLOW, WRONG = (f"{name}-{'0123456789' * 4}" for name in "rwadsx")
KEYS = json.dumps(
    [
        {"role": "read", "key": READ},
        {"role": "write", "key": WRITE},
        {"role": "admin", "key": ADMIN},
        {"role": "admin", "key": DOCS_ONLY, "collections": ["docs"]},
        {"role": "read", "key": SLOW, "requests_per_second": 2},
    ]
)
SENT = {"no key": None, "wrong": WRONG, "read": READ, "write": WRITE, "admin": ADMIN}
LET_THROUGH = None
# what is answered to each key, by the route's entry in the table
EXPECTED = {
    "open": dict.fromkeys(SENT, LET_THROUGH),
    "operations": dict.fromkeys(SENT, LET_THROUGH),
    "read": {"no key": 401, "wrong": 401, "read": LET_THROUGH, "write": LET_THROUGH, "admin": LET_THROUGH},
    "write": {"no key": 401, "wrong": 401, "read": 403, "write": LET_THROUGH, "admin": LET_THROUGH},
    "admin": {"no key": 401, "wrong": 401, "read": 403, "write": 403, "admin": LET_THROUGH},
}
# a good request for each route that reads a body; `collection` says where it names one
BODIES = {
    "/embed": {"inputs": "a", "kind": "query"},
    "/search": {"query": "a", "collection": None},
    "/v1/embeddings": {"input": "a", "model": "m"},
    "/documents": {"documents": [{"id": "d", "text": "t"}], "collection": None},
    "/documents/delete": {"ids": ["d"], "collection": None},
    "/collections/{name}/reindex": {"action": "pause"},
}
NDJSON = {"content-type": "application/x-ndjson"}


def routes():
    """Method and path of everything that the application answers, also of what no schema shows."""
    for route in create_app(Settings()).routes:
        for method in (getattr(route, "methods", None) or {"GET"}) - {"HEAD"}:
            yield method, path_of(route)


ROUTES = sorted(set(routes()))
# those that act on one collection
ON_COLLECTION = [
    (method, path)
    for method, path in ROUTES
    if "{name}" in path or "{document_id}" in path or (method == "POST" and "collection" in BODIES.get(path, {}))
]


def bearer(key):
    return {"authorization": f"Bearer {key}"} if key else {}


def send(client, method, path, key, collection):
    body = dict(BODIES.get(path, {})) if method == "POST" else {}
    if "collection" in body:
        body["collection"] = collection
    file = "swagger-ui.css" if path.startswith("/docs/") else "app.js"
    url = path.format_map({"document_id": "d", "name": collection, "file": file})
    params = {"collection": collection} if "{document_id}" in path else {}
    return client.request(method, url, params=params, json=body or None, headers=bearer(key))


@pytest.fixture(scope="module")
def keyed():
    with client_factory() as make:
        yield make(keys=KEYS)


def test_access_table_has_every_route_and_no_other():
    assert set(ACCESS) == set(ROUTES), "list each new route with its role in service/api/access.py"


@pytest.mark.parametrize("who", SENT)
@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[" ".join(each) for each in ROUTES])
def test_access_matrix(keyed, method, path, who):
    assert keyed.put("/collections/c", headers=bearer(ADMIN)).status_code == 200

    response = send(keyed, method, path, SENT[who], "c")

    expected = EXPECTED[ACCESS[method, path]][who]
    if expected is LET_THROUGH:
        assert response.status_code in (200, 202, 204, 404, 501), response.text
        return
    assert response.status_code == response.json()["status"] == expected
    assert response.json()["code"] == {401: "unauthorized", 403: "forbidden"}[expected]
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith('Bearer realm="eoseek"')


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[" ".join(each) for each in ROUTES])
def test_access_without_keys_everything_is_let_through(client, method, path):
    client.put("/collections/c")

    assert send(client, method, path, None, "c").status_code in (200, 202, 204, 404, 501)


@pytest.mark.parametrize("collection", ["c", "not-there"])
@pytest.mark.parametrize(("method", "path"), ON_COLLECTION, ids=[" ".join(each) for each in ON_COLLECTION])
def test_access_key_for_some_collections_gets_403_for_others_whether_they_exist_or_not(keyed, method, path, collection):
    keyed.put("/collections/c", headers=bearer(ADMIN))
    keyed.put("/collections/docs", headers=bearer(DOCS_ONLY))

    refused = send(keyed, method, path, DOCS_ONLY, collection)

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert collection in refused.json()["detail"]
    assert send(keyed, method, path, DOCS_ONLY, "docs").status_code in (200, 202, 204, 404, 501)


def test_access_key_for_some_collections_is_not_for_the_default_one(keyed):
    assert keyed.post("/search", json={"query": "a"}, headers=bearer(DOCS_ONLY)).status_code == 403
    line = b'{"id": "a", "text": "t"}\n'
    for url, status in (("/documents", 403), ("/documents?collection=docs", 200)):
        keyed.put("/collections/docs", headers=bearer(ADMIN))
        assert keyed.post(url, content=line, headers=bearer(DOCS_ONLY) | NDJSON).status_code == status


def test_access_key_for_some_collections_sees_only_those(keyed):
    keyed.put("/collections/docs", headers=bearer(ADMIN))

    listed = keyed.get("/collections", headers=bearer(DOCS_ONLY)).json()["collections"]

    assert [each["name"] for each in listed] == ["docs"]


def test_access_stream_of_documents_wants_write(keyed):
    for key, status in ((None, 401), (READ, 403), (WRITE, 200)):
        assert keyed.post("/documents", content=b"", headers=bearer(key) | NDJSON).status_code == status


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", f"Basic {READ}", READ, f"Bearer {READ[:-1]}", "Bearer é"])
def test_access_header_without_a_known_key_is_401(keyed, header):
    response = keyed.get("/info", headers={"authorization": header.encode("latin-1")})

    assert response.status_code == 401
    assert READ[:10] not in response.text


def test_access_scheme_is_read_in_any_case(keyed):
    assert keyed.get("/info", headers={"authorization": f"bearer {READ}"}).status_code == 200


def test_access_refusal_names_the_role_that_is_wanted(keyed):
    response = keyed.delete("/collections/c", headers=bearer(WRITE))

    assert 'error="insufficient_scope", scope="admin"' in response.headers["www-authenticate"]
    assert "admin" in response.json()["detail"]
    assert "write" in response.json()["detail"]


def test_access_unknown_path_and_method_need_no_key(keyed):
    assert keyed.get("/no/such/path").status_code == 404
    assert keyed.get("/search").status_code == 405


def test_access_head_is_as_get(keyed):
    assert keyed.head("/collections").status_code == 401
    assert keyed.head("/collections", headers=bearer(READ)).status_code == 200


def test_access_refused_requests_count_under_their_route(keyed):
    keyed.delete("/documents/some-id")

    text = keyed.get("/metrics").text

    assert 'method="DELETE",route="/documents/{document_id:path}",status="401"' in text


def test_access_operations_closed_want_a_key(make_client):
    client = make_client(keys=KEYS, open_operations=False)

    for path in ("/health/live", "/health/ready", "/metrics"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers=bearer(READ)).status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/health/ready", headers=bearer(DOCS_ONLY)).status_code == 200
    assert client.get("/metrics", headers=bearer(DOCS_ONLY)).status_code == 403  # they name every collection


def test_access_refused_before_the_body_is_read(keyed):
    async def body():
        exchange = Exchange(keyed.app, "POST", "/documents", {"content-type": "application/json"})
        async with asyncio.timeout(5):
            await exchange.done  # nothing was fed
        assert exchange.status == 401

    asyncio.run(body())


def test_access_rate_spent_is_429_with_retry_after_and_others_are_served(keyed):
    statuses = [keyed.get("/collections", headers=bearer(SLOW)) for _ in range(20)]

    refused = [each for each in statuses if each.status_code == 429]
    assert {each.status_code for each in statuses} == {200, 429}
    assert refused[0].json()["code"] == "rate_limited"
    assert refused[0].headers["retry-after"] == "1"
    assert keyed.get("/collections", headers=bearer(READ)).status_code == 200


PAGE = {"origin": "https://page.example"}


def test_cors_is_off_by_default(client):
    response = client.options("/search", headers=PAGE | {"access-control-request-method": "POST"})

    assert response.status_code == 405
    assert not [name for name in client.get("/info", headers=PAGE).headers if name.startswith("access-control")]


def test_cors_listed_origin_may_call_and_reads_errors_too(make_client):
    client = make_client(keys=KEYS, cors_origins='["https://page.example"]')
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}

    preflight = client.options("/search", headers=PAGE | asked)
    refused = client.post("/search", json={"query": "a"}, headers=PAGE)

    assert (preflight.status_code, refused.status_code) == (200, 401)
    for response in (preflight, refused):
        assert response.headers["access-control-allow-origin"] == PAGE["origin"]
    other = client.get("/info", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        ("http://localhost:8080", "localhost:8080", 200),
        ("http://[::1]:8080", "[::1]:8080", 200),
        ("https://page.example", "127.0.0.1:8080", 403),
        ("null", "127.0.0.1:8080", 403),
        ("http://[::1", "[::1", 403),
        ("http://127.0.0.1:9999", "127.0.0.1:8080", 403),
        ("http://rebound.example", "rebound.example", 403),  # a name that was made to point at loopback
    ],
)
def test_origin_of_another_site_is_refused_where_there_are_no_keys(client, origin, host, status):
    headers = {"origin": origin, "host": host}

    # as a page may send it without a preflight: no content type
    assert client.post("/search", content=b'{"query": "a"}', headers=headers).status_code == status


def test_origin_listed_or_with_a_key_is_let_through(make_client, keyed):
    listed = make_client(cors_origins='["https://page.example"]')

    assert listed.post("/search", json={"query": "a"}, headers=PAGE).status_code == 200
    assert keyed.post("/search", json={"query": "a"}, headers=PAGE | bearer(READ)).status_code == 200


def test_openapi_shows_the_scheme_and_who_needs_it(keyed):
    document = keyed.get("/openapi.json").json()

    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = ACCESS[method.upper(), path] in ("open", "operations")
            assert operation["security"] == ([] if is_open else [{"key": []}])
            assert ("401" in operation["responses"]) is not is_open
