"""One suite for every store: memory is the oracle, edge the default, qdrant in local mode and on a live server."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import FingerprintMismatchError, InvalidInputError, NotFoundError, NotImplementedHereError
from service.store.base import Document, Embedding, Hit, Point, SearchOptions, Store, point_id
from service.store.filters import check_filter
from service.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

FINGERPRINT = "f" * 64
AXES = np.eye(4, dtype=np.float32)
METADATA: dict[str, Any] = {"year": 2024, "tags": ["a", "ä"], "author": {"name": "Ann"}, "score": 1.5, "gone": None}


def point(document_id: str, embedding: Embedding = AXES[0], **fields: Any) -> Point:
    return Point(document=Document(id=document_id, text=f"text of {document_id}", **fields), embedding=embedding)


def unit_rows(num_rows: int, seed: int = 0) -> Embedding:
    rows = np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numbered(num_points: int) -> list[Point]:
    return [point(f"d{i}", row, metadata={"n": i}) for i, row in enumerate(unit_rows(num_points))]


def ids(hits: list[Hit]) -> list[str]:
    return [hit.document.id for hit in hits]


async def search(store: Store, collection: str, embedding: Embedding, options: SearchOptions) -> list[Hit]:
    (hits,) = await store.search_batch(collection, embedding[None], options)
    return hits


async def scroll_all(store: Store, collection: str, **options: Any) -> list[Point]:
    points, after = await store.scroll(collection, **options)
    while after is not None:
        page, after = await store.scroll(collection, after=after, **options)
        points += page
    return points


# collections


async def test_create_collection_again_with_same_fingerprint_returns_it(store: Store, collection: str) -> None:
    await store.upsert(collection, [point("d")])
    info = await store.create_collection(collection, fingerprint=FINGERPRINT, dimension=4)
    assert (info.name, info.fingerprint, info.dimension, info.num_documents) == (collection, FINGERPRINT, 4, 1)
    assert info.physical_name == f"{collection}--ffffffff"


async def test_create_collection_with_other_fingerprint_names_both(store: Store, collection: str) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"f{64}.*e{64}.*drop"):
        await store.create_collection(collection, fingerprint="e" * 64, dimension=4)


async def test_create_collection_at_once_makes_one(store: Store, collection: str) -> None:
    name = f"{collection}-race"
    await asyncio.gather(*(store.create_collection(name, fingerprint=FINGERPRINT, dimension=4) for _ in range(4)))
    assert [info.name for info in await store.list_collections()].count(name) == 1
    await store.drop_collection(name)


@pytest.mark.parametrize("name", ["", "a" * 65, "a--b", "a b", "a/b", "..", "ä", "a\n"])
async def test_create_collection_bad_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInputError, match="64"):
        await store.create_collection(name, fingerprint=FINGERPRINT, dimension=4)


async def test_list_collections_is_sorted(store: Store, collection: str) -> None:
    for suffix in ("z", "a"):
        await store.create_collection(f"{collection}-{suffix}", fingerprint=FINGERPRINT, dimension=2)
    names = [info.name for info in await store.list_collections()]
    assert names == sorted(names)
    assert {collection, f"{collection}-a", f"{collection}-z"} <= set(names)
    for suffix in ("z", "a"):
        await store.drop_collection(f"{collection}-{suffix}")


async def test_drop_collection_forgets_it_and_its_documents(store: Store, collection: str) -> None:
    await store.upsert(collection, [point("d")])
    await store.drop_collection(collection)
    with pytest.raises(NotFoundError):
        await store.describe_collection(collection)
    info = await store.create_collection(collection, fingerprint="e" * 64, dimension=4)
    assert (info.num_documents, info.fingerprint) == (0, "e" * 64)
    assert await store.get(collection, ["d"]) == [None]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("describe_collection", ()),
        ("drop_collection", ()),
        ("upsert", ([point("d")],)),
        ("content_hashes", (["d"],)),
        ("get", (["d"],)),
        ("delete", (["d"],)),
        ("delete_matching", ({},)),
        ("count", ()),
        ("search_batch", (AXES, SearchOptions())),
        ("scroll", ()),
    ],
)
async def test_unknown_collection_every_call_says_not_found(store: Store, method: str, arguments: tuple[Any]) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        await getattr(store, method)("nowhere", *arguments)


async def test_physical_name_leads_to_the_same_collection_and_to_no_other(store: Store, collection: str) -> None:
    await store.upsert(f"{collection}--ffffffff", [point("d")])

    assert await store.count(collection) == 1
    assert (await store.describe_collection(f"{collection}--ffffffff")).name == collection
    with pytest.raises(NotFoundError):
        await store.count(f"{collection}--eeeeeeee")


# standbys


@pytest.fixture
async def standby(store: Store, collection: str) -> str:
    """The physical name of a standby, of another dimension than its collection; both have a document."""
    try:
        info = await store.create_standby(collection, fingerprint="e" * 64, dimension=3)
    except NotImplementedHereError:
        pytest.skip("this store has none")
    await store.upsert(collection, [point("old")])
    axis = np.array([0.0, 0.0, 1.0], dtype=np.float32)
    await store.upsert(info.physical_name, [Point(document=Document(id="new", text="t"), embedding=axis)])
    return info.physical_name


async def test_standby_is_listed_apart_and_stays_when_it_is_created_again(
    store: Store, collection: str, standby: str
) -> None:
    again = await store.create_standby(collection, fingerprint="e" * 64, dimension=3)

    assert (again.name, again.physical_name, again.num_documents) == (collection, standby, 1)
    assert standby not in [info.physical_name for info in await store.list_collections()]
    assert standby in [info.physical_name for info in await store.list_standbys()]


async def test_standby_of_a_third_checkpoint_replaces_the_one_there(
    store: Store, collection: str, standby: str
) -> None:
    third = await store.create_standby(collection, fingerprint="d" * 64, dimension=5)

    assert third.num_documents == 0
    with pytest.raises(NotFoundError):
        await store.count(standby)


async def test_standby_of_the_same_checkpoint_is_refused(store: Store, collection: str, standby: str) -> None:
    assert standby != collection
    with pytest.raises(FingerprintMismatchError, match="already"):
        await store.create_standby(collection, fingerprint="f" * 64, dimension=4)


async def test_switch_exchanges_both_and_may_be_repeated_and_undone(
    store: Store, collection: str, standby: str
) -> None:
    live = f"{collection}--ffffffff"
    for _ in range(2):
        await store.switch_collection(collection, standby)
        assert await store.get(collection, ["old", "new"]) == [None, Document(id="new", text="t")]
        found = await store.search_batch(collection, np.eye(3, dtype=np.float32)[2:], SearchOptions())
        assert [hit.document.id for hit in found[0]] == ["new"]
        assert await store.count(live) == 1

    await store.switch_collection(collection, live)

    assert (await store.describe_collection(collection)).fingerprint == "f" * 64
    assert await store.count(standby) == 1
    with pytest.raises(NotFoundError):
        await store.switch_collection(collection, f"{collection}--00000000")


async def test_standby_goes_alone_or_with_its_collection(store: Store, collection: str, standby: str) -> None:
    await store.drop_standby(collection)
    await store.drop_standby(collection)
    assert await store.count(collection) == 1
    await store.create_standby(collection, fingerprint="e" * 64, dimension=3)

    await store.drop_collection(collection)

    for name in (collection, standby):
        with pytest.raises(NotFoundError):
            await store.count(name)


async def test_scroll_gives_back_the_content_hash_also_of_a_document_that_was_cut(
    store: Store, collection: str
) -> None:
    whole, cut = point("d"), replace(point("e"), content_hash="abc-cut-5")
    await store.upsert(collection, [whole, cut])

    hashes = {each.document.id: each.content_hash for each in await scroll_all(store, collection)}

    assert hashes == {"d": whole.document.content_hash(), "e": "abc-cut-5"}


# documents


async def test_get_returns_documents_as_stored_in_the_order_asked(store: Store, collection: str) -> None:
    first, second = point("d/1 ü", title="One", metadata=METADATA), point("2")
    await store.upsert(collection, [first, second])
    assert await store.get(collection, ["2", "missing", "d/1 ü", "2"]) == [
        second.document,
        None,
        first.document,
        second.document,
    ]


async def test_get_number_types_survive(store: Store, collection: str) -> None:
    metadata = {"int": 1, "float": 1.0, "big": 2**63 - 1, "small": -(2**63), "bool": True, "none": None}
    await store.upsert(collection, [point("d", metadata=metadata)])
    (document,) = await store.get(collection, ["d"])
    assert document is not None
    assert {key: (type(each), each) for key, each in document.metadata.items()} == {
        key: (type(each), each) for key, each in metadata.items()
    }


async def test_upsert_again_replaces_the_whole_document(store: Store, collection: str) -> None:
    await store.upsert(collection, [point("d", AXES[0], title="old", metadata={"old": 1})])
    await store.upsert(collection, [point("d", AXES[1], metadata={"new": 1})])
    (hit,) = await search(store, collection, AXES[1], SearchOptions())
    assert hit.document == point("d", metadata={"new": 1}).document
    assert hit.score == pytest.approx(1, abs=1e-5)


async def test_upsert_same_id_twice_last_wins(store: Store, collection: str) -> None:
    await store.upsert(collection, [point("d", title="first"), point("other"), point("d", title="last")])
    assert await store.count(collection) == 2
    assert await store.get(collection, ["d"]) == [point("d", title="last").document]


async def test_upsert_nothing_is_fine(store: Store, collection: str) -> None:
    await store.upsert(collection, [])
    assert await store.count(collection) == 0


@pytest.mark.parametrize(
    "bad",
    [
        point("bad", AXES[0][:3]),
        point("bad", np.ones((1, 4), np.float32)),
        point("bad", np.array([np.nan, 0, 0, 0], np.float32)),
        point("bad", np.array([np.inf, 0, 0, 0], np.float32)),
        point("bad", metadata={"x": float("nan")}),
        point("bad", metadata={"x": [2**63]}),
        point("bad", metadata={"x": {"y": "\ud800"}}),
        point("bad", title="\ud800"),
        point("bad\ud800"),
    ],
    ids=[
        "dimension",
        "shape",
        "nan",
        "inf",
        "nan metadata",
        "integer",
        "surrogate metadata",
        "surrogate",
        "surrogate id",
    ],
)
async def test_upsert_one_bad_point_stores_none_of_the_call(store: Store, collection: str, bad: Point) -> None:
    with pytest.raises(InvalidInputError):
        await store.upsert(collection, [point("good"), bad])
    assert await store.count(collection) == 0


async def test_upsert_deepest_metadata_is_kept_and_deeper_is_refused(store: Store, collection: str) -> None:
    metadata: Any = "leaf"
    for _ in range(15):
        metadata = {"a": metadata}
    await store.upsert(collection, [point("d", metadata=metadata)])
    assert await store.get(collection, ["d"]) == [point("d", metadata=metadata).document]
    with pytest.raises(InvalidInputError, match="16"):
        await store.upsert(collection, [point("e", metadata={"a": {"a": metadata}})])


async def test_upsert_many_calls_at_once_all_are_there(store: Store, collection: str) -> None:
    points = numbered(60)
    await asyncio.gather(*(store.upsert(collection, [each]) for each in points))
    assert await store.get(collection, [each.document.id for each in points]) == [each.document for each in points]


async def test_upsert_more_than_one_request_holds(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(700))
    assert await store.count(collection) == 700


async def test_content_hashes_are_those_of_the_stored_documents(store: Store, collection: str) -> None:
    stored = point("d", title="t", metadata=METADATA)
    await store.upsert(collection, [stored])
    assert await store.content_hashes(collection, ["d", "missing"]) == {"d": stored.document.content_hash()}


async def test_delete_returns_how_many_there_were(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(3))
    assert await store.delete(collection, ["d0", "missing", "d0"]) == 1
    assert await store.delete(collection, []) == 0
    assert await store.get(collection, ["d0", "d1"]) == [None, numbered(3)[1].document]


async def test_delete_matching_removes_only_matches(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(10))
    small = check_filter({"must": [{"key": "n", "range": {"lt": 4}}]})
    assert await store.delete_matching(collection, small) == 4
    assert await store.delete_matching(collection, small) == 0
    assert await store.count(collection) == 6


async def test_count_with_filter(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(10))
    assert await store.count(collection, check_filter({"must_not": [{"key": "n", "match": {"any": [1, 2]}}]})) == 8
    assert await store.count(collection, check_filter({"must": {"has_id": ["d3", "missing"]}})) == 1
    assert await store.count(collection, check_filter({})) == 10


# search


# local mode always scans everything, and says so
@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(),
        SearchOptions(top_k=7, offset=5),
        SearchOptions(top_k=100, offset=190),
        SearchOptions(offset=500),
        SearchOptions(top_k=1000, score_threshold=0.3),
        SearchOptions(score_threshold=1.5),
        SearchOptions(top_k=50, exact=True),
        SearchOptions(top_k=20, filter=check_filter({"must": [{"key": "n", "range": {"gte": 100}}]})),
        SearchOptions(filter=check_filter({"must": [{"key": "n", "match": {"value": -1}}]})),
    ],
)
async def test_search_batch_agrees_with_the_oracle(store: Store, collection: str, options: SearchOptions) -> None:
    oracle = MemoryStore()
    await oracle.create_collection(collection, fingerprint=FINGERPRINT, dimension=4)
    for each in (store, oracle):
        await each.upsert(collection, numbered(200))
    queries = unit_rows(3, seed=1)
    found, expected = [await each.search_batch(collection, queries, options) for each in (store, oracle)]
    for hits, right in zip(found, expected, strict=True):
        assert ids(hits) == ids(right)  # random embeddings: no ties
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in right], atol=1e-5)


async def test_search_ties_come_as_a_set_after_the_better_ones(store: Store, collection: str) -> None:
    tied = [point(f"tied{i}", AXES[1]) for i in range(5)]
    await store.upsert(collection, [*tied, point("best", AXES[0])])
    query = np.array([0.8, 0.6, 0, 0], np.float32)
    hits = await search(store, collection, query, SearchOptions())
    assert ids(hits)[0] == "best"
    assert set(ids(hits)[1:]) == {f"tied{i}" for i in range(5)}


async def test_search_returns_whole_documents_and_text_only_if_asked(store: Store, collection: str) -> None:
    stored = point("d", title="t", metadata=METADATA)
    await store.upsert(collection, [stored])
    (with_text,) = await search(store, collection, AXES[0], SearchOptions())
    (without,) = await search(store, collection, AXES[0], SearchOptions(with_text=False))
    assert with_text.document == stored.document
    assert without.document == replace(stored.document, text="")


async def test_search_threshold_itself_is_inside(store: Store, collection: str) -> None:
    await store.upsert(collection, [point("d", AXES[0])])
    assert ids(await search(store, collection, AXES[0], SearchOptions(score_threshold=1.0))) == ["d"]
    for above in (1.0001, 1e300):
        assert await search(store, collection, AXES[0], SearchOptions(score_threshold=above)) == []
    assert ids(await search(store, collection, AXES[0], SearchOptions(score_threshold=-1e300))) == ["d"]


async def test_search_empty_collection_finds_nothing(store: Store, collection: str) -> None:
    assert await store.search_batch(collection, AXES[:2], SearchOptions()) == [[], []]
    assert await store.search_batch(collection, AXES[:0], SearchOptions()) == []


@pytest.mark.parametrize("query", [AXES[0][:3], np.array([np.nan, 0, 0, 0], np.float32)])
async def test_search_bad_embedding_is_refused(store: Store, collection: str, query: Embedding) -> None:
    with pytest.raises(InvalidInputError):
        await search(store, collection, query, SearchOptions())


# scroll


async def test_scroll_is_complete_and_stable_and_brings_embeddings(store: Store, collection: str) -> None:
    points = numbered(25)
    await store.upsert(collection, points)
    first = await scroll_all(store, collection, batch_size=7)
    assert [each.document for each in first] == [
        each.document for each in sorted(points, key=lambda each: point_id(each.document.id))
    ]
    assert [each.document for each in await scroll_all(store, collection, batch_size=4)] == [
        each.document for each in first
    ]
    embeddings = {each.document.id: each.embedding for each in points}
    for each in first:
        assert each.embedding.dtype == np.float32
        np.testing.assert_allclose(each.embedding, embeddings[each.document.id], atol=1e-6)


async def test_scroll_last_page_that_is_full_has_no_next(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(6))
    _, after = await store.scroll(collection, batch_size=3)
    _, end = await store.scroll(collection, after=after, batch_size=3)
    assert end is None


async def test_scroll_goes_on_when_the_next_document_was_deleted(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(6))
    first, after = await store.scroll(collection, batch_size=3)
    everything = await scroll_all(store, collection)
    await store.delete(collection, [everything[3].document.id])
    rest, _ = await store.scroll(collection, after=after)
    assert [each.document for each in first + rest] == [each.document for each in everything[:3] + everything[4:]]


async def test_scroll_with_filter(store: Store, collection: str) -> None:
    await store.upsert(collection, numbered(20))
    odd = check_filter({"should": [{"key": "n", "match": {"value": n}} for n in (1, 3, 5)]})
    found = await scroll_all(store, collection, batch_size=2, filter=odd)
    assert {each.document.id for each in found} == {"d1", "d3", "d5"}


async def test_scroll_strange_cursor_is_refused(store: Store, collection: str) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        await store.scroll(collection, after="nonsense")
