"""The engine decides what a filter means: random documents and filters, every store against the evaluator.

EOSEEK_TEST_CASES is the number of random cases for each test.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.local import payload_filters

from service.store import open_store
from service.store.base import Document, Point, point_id
from service.store.filters import check_filter, filter_model, matches
from tests.service.store.conftest import settings_of
from tests.service.store.filter_strategies import FILTERS, METADATA

NUM_CASES = int(os.environ.get("EOSEEK_TEST_CASES", "60"))
Matching = Callable[[list[dict[str, Any]], list[Any]], list[set[str]]]


@pytest.fixture(scope="module", params=["memory", "edge", "qdrant-local"])
def matching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matching]:
    """Puts documents d0, d1, ... with these metadata into a store and says which of them each filter finds."""
    store = open_store(settings_of(request.param, tmp_path_factory.mktemp("store")))

    async def found(documents: list[Document], filters: list[Any]) -> list[set[str]]:
        await store.delete_matching("c", {})
        await store.upsert("c", [Point(document=each, embedding=np.ones(1, np.float32)) for each in documents])
        pages = [await store.scroll("c", filter=each) for each in filters]
        assert [await store.count("c", each) for each in filters] == [len(points) for points, _ in pages]
        return [{point.document.id for point in points} for points, _ in pages]

    def run(metadata: list[dict[str, Any]], filters: list[Any]) -> list[set[str]]:
        documents = [Document(id=f"d{i}", text="", metadata=each) for i, each in enumerate(metadata)]
        return runner.run(found(documents, filters))

    with asyncio.Runner() as runner:
        runner.run(store.start())
        runner.run(store.create_collection("c", fingerprint="f", dimension=1))
        yield run
        runner.run(store.stop())


EMPTY_CLAUSES = [
    check_filter({"must": [{"nested": {"key": "e", "filter": clause}}, {"has_id": ["d0", "d1"]}]} | clause)
    for clause in ({"should": []}, {"must_not": []}, {"min_should": {"conditions": [], "min_count": 1}})
]


@example(metadata=[{"e": [{}]}, {"e": []}], filters=EMPTY_CLAUSES)
@settings(max_examples=NUM_CASES, deadline=None, database=None, derandomize=True)
@given(
    metadata=st.lists(METADATA, min_size=1, max_size=6),
    filters=st.lists(FILTERS.map(check_filter), min_size=1, max_size=4),
)
def test_stores_find_what_the_evaluator_says(
    matching: Matching, metadata: list[dict[str, Any]], filters: list[Any]
) -> None:
    expected = [{f"d{i}" for i, each in enumerate(metadata) if matches(filter, each, f"d{i}")} for filter in filters]
    assert matching(metadata, filters) == expected


@settings(max_examples=NUM_CASES, deadline=None, database=None, derandomize=True)
@given(metadata=METADATA, filters=st.lists(FILTERS.map(check_filter), min_size=1, max_size=4))
def test_filter_model_survives_grpc(metadata: dict[str, Any], filters: list[Any]) -> None:
    """No server is at hand in every run; what the client sends one must still mean the same."""
    for filter in filters:
        received = GrpcToRest.convert_filter(RestToGrpc.convert_filter(filter_model(filter)))
        found = payload_filters.check_filter(received, {"metadata": metadata}, point_id("d0"), {})
        assert found == matches(filter, metadata, "d0")
