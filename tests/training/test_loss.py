import math

import pytest
import torch
from torch import nn

from training.alignment import Alignment
from training.config import DistillationConfig, LossConfig
from training.loss import Objective, Targets, info_nce, margin_mse, score_list_kl, symmetric_info_nce, vector_match

_EYE = torch.eye(2)


def test_info_nce_equal_scores_give_log_of_documents() -> None:
    q, d = torch.ones(3, 1), torch.ones(7, 1)
    loss = info_nce(q, d, targets_B=torch.tensor([0, 3, 6]), temperature=0.02)
    assert loss.item() == pytest.approx(math.log(7))


def test_info_nce_two_by_two_by_hand() -> None:
    # scores [[1, 0], [0, 1]]; each query: -log(e^2 / (e^2 + 1))
    loss = info_nce(_EYE, _EYE, targets_B=torch.tensor([0, 1]), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_info_nce_masked_document_does_not_count() -> None:
    q, d = torch.ones(2, 1), torch.ones(4, 1)
    masked = torch.tensor([[False, True, False, True], [False, False, False, False]])
    loss = info_nce(q, d, targets_B=torch.tensor([0, 1]), temperature=1.0, masked_BN=masked)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_info_nce_shared_target_answers_both_queries() -> None:
    q, d = torch.ones(2, 1), torch.ones(1, 1)
    assert info_nce(q, d, targets_B=torch.tensor([0, 0]), temperature=1.0).item() == pytest.approx(0.0)


def test_info_nce_low_precision_embeddings_give_float32_loss() -> None:
    loss = info_nce(_EYE.bfloat16(), _EYE.bfloat16(), targets_B=torch.tensor([0, 1]), temperature=0.5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "temperature", "masked", "reason"),
    [
        ([0, 2], 1.0, None, "misaligned"),
        ([0, -1], 1.0, None, "misaligned"),
        ([0, 1], 0.0, None, "temperature"),
        ([0, 1], 1.0, [[True, False], [False, False]], "own target is masked"),
    ],
)
def test_info_nce_wrong_arguments_are_refused(
    targets: list[int], temperature: float, masked: list[list[bool]] | None, reason: str
) -> None:
    masked_BN = None if masked is None else torch.tensor(masked)
    with pytest.raises(ValueError, match=reason):
        info_nce(_EYE, _EYE, targets_B=torch.tensor(targets), temperature=temperature, masked_BN=masked_BN)


def test_symmetric_info_nce_equal_scores_give_log_of_queries() -> None:
    loss = symmetric_info_nce(torch.ones(5, 1), torch.ones(9, 1), targets_B=torch.arange(5), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(5))


def test_symmetric_info_nce_leaves_out_queries_with_the_same_answer() -> None:
    # documents 0, 0, 1: the first two see themselves and the third, the third sees all
    loss = symmetric_info_nce(torch.ones(3, 1), torch.ones(2, 1), targets_B=torch.tensor([0, 0, 1]), temperature=1.0)
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


def test_symmetric_info_nce_leaves_out_queries_for_which_the_document_is_known() -> None:
    masked = torch.tensor([[False, True], [False, False]])  # document 1 also answers query 0
    loss = symmetric_info_nce(
        torch.ones(2, 1), torch.ones(2, 1), targets_B=torch.tensor([0, 1]), temperature=1.0, masked_BN=masked
    )
    assert loss.item() == pytest.approx((math.log(2) + 0.0) / 2)


def _kl(scores: list[list[float]], teacher: list[list[float]], masked: list[list[bool]] | None = None) -> float:
    scores_BN = torch.tensor(scores)
    masked_BN = torch.zeros_like(scores_BN, dtype=torch.bool) if masked is None else torch.tensor(masked)
    return score_list_kl(
        scores_BN, torch.tensor(teacher), temperature=1.0, teacher_temperature=1.0, masked_BN=masked_BN
    ).item()


def test_score_list_kl_equal_distributions_give_zero() -> None:
    assert _kl([[1.0, 2.0, 3.0]], [[11.0, 12.0, 13.0]]) == pytest.approx(0.0, abs=1e-6)


def test_score_list_kl_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert _kl([[0.0, 0.0]], [[math.log(3), 0.0]]) == pytest.approx(expected)


def test_score_list_kl_unknown_and_masked_documents_are_left_out() -> None:
    nan = float("nan")
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    scores, teacher = [[0.0, 9.0, 0.0, 9.0], [1.0, 1.0, 1.0, 1.0]], [[math.log(3), nan, 0.0, 5.0], [nan, 1.0, nan, nan]]
    masked = [[False, False, False, True], [False, False, False, False]]
    assert _kl(scores, teacher, masked) == pytest.approx(expected)


def test_score_list_kl_gradient_with_unknown_documents_is_finite() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[1.0, float("nan"), 0.0]])
    masked = torch.zeros(1, 3, dtype=torch.bool)
    score_list_kl(scores, teacher, temperature=1.0, teacher_temperature=1.0, masked_BN=masked).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_margin_mse_by_hand() -> None:
    # margins 0.5 and 0.2, the teacher's 1.0 and unknown, the last document masked
    scores, teacher = torch.tensor([[0.5, 0.0, 0.3, 0.0]]), torch.tensor([[2.0, 1.0, float("nan"), 0.0]])
    masked = torch.tensor([[False, False, False, True]])
    loss = margin_mse(scores, teacher, targets_B=torch.tensor([0]), masked_BN=masked)
    assert loss.item() == pytest.approx((0.5 - 1.0) ** 2)


def unit_rows(num_rows: int, dimension: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(num_rows, dimension, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("teacher_dimension", [4, 6])
def test_alignment_finds_the_turn_of_a_teachers_vectors(teacher_dimension: int) -> None:
    turn = torch.linalg.qr(torch.randn(teacher_dimension, 4, generator=torch.Generator().manual_seed(1)))[0].T
    embeddings = unit_rows(20, 4)
    alignment = Alignment(4, teacher_dimension)
    alignment.gather(embeddings, embeddings @ turn)
    new = unit_rows(5, 4, seed=2)
    assert vector_match(alignment(new), new @ turn).item() == pytest.approx(0.0, abs=1e-5)


def test_alignment_keeps_what_means_nothing_to_the_teacher_out_of_the_match() -> None:
    # the third direction would still change scores
    alignment = Alignment(3, 2)
    embeddings = torch.cat([unit_rows(20, 2), torch.zeros(20, 1)], dim=1)
    alignment.gather(embeddings, embeddings[:, :2])
    outside = torch.tensor([[0.0, 0.0, 1.0]])
    assert vector_match(alignment(outside), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1.0, abs=1e-5)


def test_alignment_follows_a_model_that_turns() -> None:
    alignment = Alignment(4, 4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    embeddings = unit_rows(20, 4)
    alignment.gather(embeddings, embeddings)
    for _ in range(200):
        alignment.gather(embeddings, embeddings @ turn)
    assert vector_match(alignment(embeddings), embeddings @ turn).item() == pytest.approx(0.0, abs=1e-3)


def test_objective_is_the_weighted_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    q, d = (nn.functional.normalize(torch.randn(count, 4), dim=-1) for count in (3, 5))
    targets = Targets(
        targets_B=torch.tensor([0, 1, 2]),
        masked_BN=torch.zeros(3, 5, dtype=torch.bool),
        teacher_scores_BN=torch.rand(3, 5),
        teacher_vectors=torch.randn(8, 6),
    )
    objective = Objective(
        LossConfig(temperature=0.1, symmetric_weight=0.5, matryoshka=(2,)),
        DistillationConfig(vectors="v", kl_weight=2.0, margin_mse_weight=3.0, vector_weight=4.0),
        alignment=Alignment(4, 6),
    )
    terms = {name: value.item() for name, value in objective(q, d, targets).items()}
    weights = {"info_nce": 1.0, "symmetric": 0.5, "kl": 2.0, "margin_mse": 3.0, "vector": 4.0}
    assert terms["loss"] == pytest.approx(sum(weight * terms[name] for name, weight in weights.items()), rel=1e-5)


def test_objective_matryoshka_averages_whole_and_cut_embeddings() -> None:
    q, d = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    targets = Targets(targets_B=torch.tensor([0]), masked_BN=torch.zeros(1, 2, dtype=torch.bool))
    objective = Objective(LossConfig(temperature=1.0, matryoshka=(1,)), DistillationConfig())
    # whole: scores 1 and 0.36 - 0.64; cut to one dimension both documents score 1
    whole = math.log(1 + math.exp(-0.28 - 1.0))
    assert objective(q, d, targets)["loss"].item() == pytest.approx((whole + math.log(2)) / 2)
