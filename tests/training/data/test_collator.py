from typing import Any

import pytest
import torch

from service.encoders.prompt import Frame, TokenContract
from tests.checkpoints import byte_tokenizer
from training.data.collator import Batch, Collator
from training.data.formats import DocumentText, Example
from training.data.mixture import TrainingSet, shared_positives
from training.data.sampler import Draw

_EOS = 2


@pytest.fixture(scope="module")
def contract() -> TokenContract:
    return TokenContract(byte_tokenizer(), Frame(), max_length=100, eos_ids=[_EOS])


def _example(query: str, positives: str, negatives: str = "") -> Example:
    return Example(
        query=query,
        positives=tuple(DocumentText("", each) for each in positives),
        negatives=tuple(DocumentText("", each) for each in negatives),
    )


def _set(examples: list[Example], **changes: Any) -> TrainingSet:
    options: dict[str, Any] = {
        "name": "set", "instructions": ("",), "ratio": 1.0, "in_batch_negatives": True, "follows_teacher": True,
        "num_negatives": 2,
        "query_length": 16, "document_length": 16,
    }  # fmt: skip
    return TrainingSet(examples=examples, shared_positives=shared_positives(examples), **(options | changes))


def _batch(contract: TokenContract, training_set: TrainingSet, *, epoch: int = 0, **options: Any) -> Batch:
    indices = tuple(range(len(training_set.examples)))
    return Collator([training_set], contract, seed=1, **options)(
        Draw(set_index=0, epoch=epoch, example_indices=indices)
    )


def test_collator_shared_positive_is_one_document(contract: TokenContract) -> None:
    batch = _batch(contract, _set([_example("a", "p"), _example("b", "p"), _example("c", "r")]))
    assert batch.targets_B.tolist() == [0, 0, 1]
    assert len(batch.documents) == 2
    assert not batch.masked_BN.any()


def test_collator_other_positive_of_the_query_is_masked(contract: TokenContract) -> None:
    batch = _batch(contract, _set([_example("a", "p"), _example("a", "r"), _example("c", "s")]))
    assert batch.masked_BN.tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_collator_foreign_documents_are_masked_without_in_batch_negatives(contract: TokenContract) -> None:
    training_set = _set([_example("a", "p", "n"), _example("b", "r", "m")], in_batch_negatives=False)
    batch = _batch(contract, training_set)
    assert batch.masked_BN.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_collator_uneven_negatives_are_taken_as_they_are(contract: TokenContract) -> None:
    batch = _batch(contract, _set([_example("a", "p"), _example("b", "r", "k"), _example("c", "s", "lmn")]))
    assert len(batch.documents) == 1 + 2 + 3
    assert batch.targets_B.tolist() == [0, 1, 3]


def test_collator_negatives_are_redrawn_each_epoch(contract: TokenContract) -> None:
    training_set = _set([_example("a", "p", "klmnoqrstu")])
    drawn = [_batch(contract, training_set, epoch=epoch).documents for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_collator_instruction_is_drawn_for_each_query(contract: TokenContract) -> None:
    examples = [_example(f"{index}", "p") for index in range(20)]
    batch = _batch(contract, _set(examples, instructions=("Find", ""), query_length=60))
    framed = [len(ids) > 5 for ids in batch.queries]
    assert any(framed)
    assert not all(framed)


def test_collator_instruction_of_the_line_wins(contract: TokenContract) -> None:
    example = Example(query="q", positives=(DocumentText("", "p"),), instruction="")
    batch = _batch(contract, _set([example], instructions=("Find",)))
    assert batch.queries == contract.queries(["q"], instruction="").token_ids


def test_collator_long_text_is_cut_counted_and_ends_in_eos(contract: TokenContract) -> None:
    batch = _batch(contract, _set([_example("a" * 50, "p")]))
    assert batch.num_truncated == 1
    assert len(batch.queries[0]) == 16
    assert batch.queries[0][-1] == batch.documents[0][-1] == _EOS


def test_collator_processes_share_one_batch(contract: TokenContract) -> None:
    training_set = _set([_example(f"{index}", "pqr"[index % 3], "kl") for index in range(5)])
    whole = _batch(contract, training_set)
    parts = [_batch(contract, training_set, process=process, num_processes=2) for process in (0, 1)]
    assert parts[0].queries + parts[1].queries == whole.queries
    assert parts[0].documents + parts[1].documents == whole.documents
    assert [len(part.queries) for part in parts] == parts[0].query_counts == [3, 2]
    assert torch.equal(parts[1].targets_B, whole.targets_B)
    assert torch.equal(parts[1].masked_BN, whole.masked_BN)


def test_collator_scores_of_the_data_stand_at_their_documents(contract: TokenContract) -> None:
    scored = Example(
        query="a", positives=(DocumentText("", "p"),), negatives=(DocumentText("", "n"),), positive_scores=(3.0,),
        negative_scores=(1.0,),
    )  # fmt: skip
    batch = _batch(contract, _set([scored, _example("b", "r")]))
    assert batch.teacher_scores_BN is not None
    assert batch.teacher_scores_BN[0, :2].tolist() == [3.0, 1.0]
    assert batch.teacher_scores_BN[0, 2:].isnan().all()
    assert batch.teacher_scores_BN[1].isnan().all()


def test_collator_set_that_follows_no_teacher_leaves_scores_of_the_data(contract: TokenContract) -> None:
    scored = Example(
        query="a", positives=(DocumentText("", "p"),), negatives=(DocumentText("", "n"),), positive_scores=(3.0,),
        negative_scores=(1.0,),
    )  # fmt: skip
    assert _batch(contract, _set([scored], follows_teacher=False)).teacher_scores_BN is None
