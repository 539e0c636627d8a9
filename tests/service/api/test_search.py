import pytest

from tests.service.api.parts import MAX_LENGTH

DOCUMENTS = [
    {"id": "a", "title": "A", "text": "first", "metadata": {"year": 2001, "tags": ["x"]}},
    {"id": "b", "text": "second", "metadata": {"year": 2002}},
    {"id": "c", "text": "third", "metadata": {"year": 2003}},
]


@pytest.fixture
def filled(client):
    assert client.post("/documents", json={"documents": DOCUMENTS}).json()["indexed"] == 3
    return client


def search(client, query="second", **more):
    response = client.post("/search", json={"query": query, **more})
    assert response.status_code == 200, response.text
    return response.json()


def ids(results):
    return [result["id"] for result in results]


def test_search_finds_the_equal_text_first_and_sorts_by_score(filled):
    answer = search(filled)

    scores = [result["score"] for result in answer["results"]]
    assert answer["results"][0] == {
        "id": "b",
        "score": pytest.approx(1, abs=1e-6),
        "title": "",
        "text": "second",
        "metadata": {"year": 2002},
    }
    assert scores == sorted(scores, reverse=True)
    assert answer["model"] == "tiny"


def test_search_tells_the_time_of_each_stage(filled):
    took = search(filled)["took_ms"]

    assert set(took) == {"tokenize", "queue", "encode", "search", "total"}
    assert all(milliseconds >= 0 for milliseconds in took.values())
    assert took["total"] >= took["tokenize"] + took["search"]


def test_search_a_list_of_queries_gives_a_list_of_result_lists(filled):
    answer = search(filled, ["first", "third"], top_k=1)

    # "first" stands below its title, so only "third" equals a document's text
    assert ids(answer["results"][1]) == ["c"]
    single = [search(filled, each, top_k=1)["results"] for each in ("first", "third")]
    assert [ids(results) for results in answer["results"]] == [ids(results) for results in single]


def test_search_a_list_of_one_query_gives_a_list_of_one_list(filled):
    assert len(search(filled, ["first"])["results"]) == 1


def test_search_pages_by_top_k_and_offset(filled):
    whole = ids(search(filled)["results"])

    assert ids(search(filled, top_k=1)["results"]) == whole[:1]
    assert ids(search(filled, top_k=2, offset=1)["results"]) == whole[1:]
    assert ids(search(filled, offset=3)["results"]) == []


def test_search_filters_by_metadata(filled):
    recent = {"must": [{"key": "year", "range": {"gte": 2002}}]}

    assert set(ids(search(filled, filter=recent)["results"])) == {"b", "c"}
    assert ids(search(filled, filter={"must": [{"key": "tags", "match": {"value": "x"}}]})["results"]) == ["a"]


def test_search_score_threshold_leaves_out_what_is_below(filled):
    assert ids(search(filled, score_threshold=0.99)["results"]) == ["b"]


def test_search_without_text_leaves_texts_empty(filled):
    result = search(filled, with_text=False, top_k=1)["results"][0]

    assert (result["id"], result["text"]) == ("b", "")


def test_search_truncates_only_when_asked(filled):
    assert search(filled, ["a", "x" * MAX_LENGTH], truncate=True)["truncated"] == [1]


def test_search_an_empty_collection_finds_nothing(client):
    assert search(client)["results"] == []


def test_search_other_collections_are_apart(filled):
    filled.put("/collections/other")

    assert search(filled, collection="other")["results"] == []
