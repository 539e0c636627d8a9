import json

import pytest

from service.app import create_app
from service.schemas import ReindexRequest
from service.settings import ApiSettings, Settings

DOCUMENT = create_app(Settings(api=ApiSettings(max_inputs=7, max_top_k=9))).openapi()
OPERATIONS = [
    (method.upper(), path, operation) for path, each in DOCUMENT["paths"].items() for method, operation in each.items()
]
CALLS = {
    "POST /embed", "POST /search", "POST /documents", "GET /documents/{document_id}",
    "DELETE /documents/{document_id}", "POST /documents/delete", "GET /collections", "PUT /collections/{name}",
    "GET /collections/{name}", "DELETE /collections/{name}", "POST /collections/{name}/reindex",
    "GET /collections/{name}/reindex", "POST /v1/embeddings", "GET /v1/models", "GET /health/live", "GET /health/ready",
    "GET /info", "GET /metrics", "POST /backup",
}  # fmt: skip


def bodies():
    for method, path, operation in OPERATIONS:
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield method, path, media_type, content


def test_openapi_lists_every_call_of_the_design():
    assert {f"{method} {path}" for method, path, _ in OPERATIONS} == CALLS


def test_openapi_references_all_lead_somewhere():
    text = json.dumps(DOCUMENT)

    for part in text.split('"#/components/schemas/')[1:]:
        assert part[: part.index('"')] in DOCUMENT["components"]["schemas"]


def test_openapi_errors_are_problem_documents_everywhere():
    for _, _, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"]
            if status in ("429", "503"):
                assert "Retry-After" in response["headers"]


def test_openapi_tells_the_limits_of_this_app():
    schemas = DOCUMENT["components"]["schemas"]

    assert schemas["EmbedRequest"]["properties"]["inputs"]["oneOf"][1]["maxItems"] == 7
    assert schemas["SearchRequest"]["properties"]["top_k"]["maximum"] == 9


def examples():
    for method, path, media_type, content in bodies():
        values = [each["value"] for each in content.get("examples", {}).values()] or [content["example"]]
        if path.endswith("/reindex"):  # steps of one that was started: test_reindex.py takes them
            continue
        for number, value in enumerate(values):
            yield pytest.param(method, path, media_type, value, id=f"{method} {path} {media_type} {number}")


@pytest.mark.parametrize(("method", "path", "media_type", "value"), list(examples()))
def test_openapi_examples_work(client, method, path, media_type, value):
    content = value if isinstance(value, str) else json.dumps(value)

    response = client.request(method, path, content=content, headers={"content-type": media_type})

    assert response.status_code == 200, response.text
    assert set(response.json()) == expected_members(path, method)


def test_openapi_examples_of_a_reindex_are_good_bodies():
    examples = DOCUMENT["paths"]["/collections/{name}/reindex"]["post"]["requestBody"]["content"]["application/json"]

    actions = [ReindexRequest.model_validate(each["value"]).action for each in examples["examples"].values()]

    assert actions == ["start", "compare", "switch"]


def expected_members(path, method):
    schema = DOCUMENT["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
    return set(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])
