import numpy as np
import pytest

from service.encoders.torch_encoder import TorchEncoder
from training.encoding import CheckpointEmbedder
from training.evaluation import systems
from training.evaluation.base import by_instruction
from training.evaluation.beir import Query
from training.evaluation.systems import Bm25System, CheckpointSystem

CORPUS = [
    {"_id": "b", "title": "Merge", "text": "merging sorted lists"},
    {"_id": "q1", "title": "", "text": "merge two sorted lists"},
    {"_id": "a", "title": "", "text": "a tree " * 20},
    {"_id": "c", "title": "", "text": "sorted"},
]
QUERIES = [
    {"_id": "q1", "text": "merge two sorted lists"},
    {"_id": "q2", "text": "tree", "instruction": "Find trees"},
    {"_id": "q3", "text": "not judged"},
]
QRELS = "q1\tb\t1\nq2\ta\t1\nq4\ta\t1\n"


@pytest.fixture
def judged(write_set):
    return write_set(CORPUS, QUERIES, QRELS)


@pytest.fixture(scope="module")
def embedder(tiny_base):
    return CheckpointEmbedder(str(tiny_base), dtype="float32")


def test_checkpoint_system_gives_cosines_of_single_texts_in_blocks_or_not(judged, embedder, monkeypatch):
    whole = CheckpointSystem(embedder, name="tiny", top_k=10, instruction="Find it").search(judged)
    monkeypatch.setattr(systems, "_BLOCK_SIZE", 3)
    blocked = CheckpointSystem(embedder, name="tiny", top_k=10, instruction="Find it").search(judged)
    assert set(whole.run) == {"q1", "q2"}
    assert set(whole.run["q1"]) == {"a", "b", "c"}
    for query, own in (("q1", "Find it"), ("q2", "Find trees")):
        text = next(row["text"] for row in QUERIES if row["_id"] == query)
        vector = embedder.embed_queries([text], instruction=own).embeddings[0]
        for row in CORPUS:
            if row["_id"] != query:
                expected = float(vector @ embedder.documents([(row["title"], row["text"])])[0])
                assert whole.run[query][row["_id"]] == pytest.approx(expected, abs=1e-5)
        assert blocked.run[query] == pytest.approx(whole.run[query], abs=1e-6)


def test_checkpoint_system_counts_what_was_cut_and_reports_progress(judged, embedder):
    seen = []
    found = CheckpointSystem(embedder, name="tiny", top_k=10, progress=lambda *each: seen.append(each)).search(judged)
    # only `a` has more than 100 tokens, one a byte
    assert (found.num_truncated_documents, found.num_truncated_queries) == (1, 0)
    assert (found.max_length, found.fingerprint) == (100, embedder.fingerprint)
    assert seen == [(0, 4), (4, 4)]


@pytest.fixture
def count_documents(embedder, monkeypatch):
    """How many documents have been embedded."""
    counts, embed = [], embedder.embed_documents

    def counted(documents, **options):
        counts.append(len(documents))
        return embed(documents, **options)

    monkeypatch.setattr(embedder, "embed_documents", counted)
    return lambda: sum(counts)


def test_checkpoint_system_keeps_documents_for_another_instruction(judged, embedder, tmp_path, count_documents):
    first = CheckpointSystem(embedder, name="tiny", top_k=10, keep=tmp_path / "kept", instruction="Find it").search(
        judged
    )
    seen = []
    system = CheckpointSystem(
        embedder, name="tiny", top_k=10, keep=tmp_path / "kept", progress=lambda *each: seen.append(each)
    )
    second = system.search(judged)
    assert count_documents() == 4
    assert seen == [(0, 4), (4, 4)]
    assert second.num_truncated_documents == first.num_truncated_documents == 1
    assert second.run["q2"] == first.run["q2"]
    assert second.run["q1"] != first.run["q1"]


def test_checkpoint_system_embeds_anew_what_was_kept_badly_or_otherwise(
    judged, embedder, tiny_base, tmp_path, count_documents
):
    whole = CheckpointSystem(embedder, name="tiny", top_k=10, keep=tmp_path / "kept").search(judged)
    (block,) = (tmp_path / "kept").iterdir()
    block.write_bytes(block.read_bytes()[:-30])
    again = CheckpointSystem(embedder, name="tiny", top_k=10, keep=tmp_path / "kept").search(judged)
    assert (count_documents(), again.run) == (8, whole.run)
    shorter = CheckpointEmbedder(str(tiny_base), dtype="float32", max_length=15)
    cut = CheckpointSystem(shorter, name="tiny", top_k=10, keep=tmp_path / "kept").search(judged)
    assert cut.num_truncated_documents == 3


def test_checkpoint_system_own_document_does_not_take_a_place(judged, embedder):
    found = CheckpointSystem(embedder, name="tiny", top_k=3).search(judged)
    assert len(found.run["q1"]) == 3


def test_checkpoint_system_leaves_out_instructions_that_have_no_place_and_counts_them(judged, embedder, monkeypatch):
    plain = CheckpointSystem(embedder, name="tiny", top_k=3).search(judged)
    monkeypatch.setattr(CheckpointEmbedder, "takes_instruction", property(lambda self: False))
    found = CheckpointSystem(embedder, name="tiny", top_k=3).search(judged)
    assert found.num_ignored_instructions == 1
    assert found.run["q2"] != plain.run["q2"]


def test_embedder_encodes_pieces_of_similar_length_and_keeps_the_order(embedder, monkeypatch):
    lengths = []
    encode = TorchEncoder.encode
    monkeypatch.setattr("training.encoding._PIECE", 2)
    monkeypatch.setattr(
        TorchEncoder, "encode", lambda self, ids: lengths.append([len(each) for each in ids]) or encode(self, ids)
    )
    documents = [("", "x" * length) for length in (5, 30, 10, 20)]
    together = embedder.documents(documents)
    # one token a byte and [EOS]
    assert lengths == [[31, 21], [11, 6]]
    single = np.concatenate([embedder.documents([each]) for each in documents])
    np.testing.assert_allclose(together, single, atol=1e-5)


def test_bm25_system_finds_by_stem_drops_the_query_itself_and_what_shares_no_word(judged):
    found = Bm25System(top_k=10).search(judged)
    assert list(found.run["q1"]) == ["b", "c"]
    assert list(found.run["q2"]) == ["a"]


def test_by_instruction_tells_none_from_empty():
    given = ["I", None, "", "I"]
    queries = [Query(query_id=str(number), text="x", instruction=each) for number, each in enumerate(given)]
    assert sorted(by_instruction(queries), key=str) == [("", [2]), ("I", [0, 3]), (None, [1])]
