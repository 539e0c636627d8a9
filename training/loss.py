"""The losses: InfoNCE in every form that training uses, and the terms that follow a teacher. All pure, all float32.

One `info_nce` serves plain, gradient-cached and cross-device training: it always sees the embeddings of the whole
batch. Documents are distinct texts in any order, so `targets_B` says which one answers a query, and `masked_BN` which
ones are no negatives of it (other known positives).

Shapes: B queries, N documents, D dimensions, K teacher's dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.alignment import Alignment
from training.config import DistillationConfig, LossConfig

_MASKED = float("-inf")


def info_nce(
    q_BD: Tensor,
    d_ND: Tensor,
    *,
    targets_B: Tensor,
    temperature: float,
    masked_BN: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE loss of each query against every document of the batch that is not masked for it.

    Args:
        q_BD: unit-length query embeddings.
        d_ND: unit-length document embeddings.
        targets_B: int64, the document that answers each query.
        temperature: divides the cosine scores; > 0. Smaller means sharper.
        masked_BN: True where a document must not count as a negative; a query's target never is.
    Returns:
        Scalar float32 in nats; log(N) when all scores are equal and nothing is masked.
    Raises:
        ValueError: temperature <= 0, a target outside the documents, or a masked target.
    Source: arXiv:1807.03748 eq. 4; in-batch form arXiv:2004.04906 sec. 3.2.
    """
    _check(d_ND, targets_B, temperature, masked_BN)
    logits_BN = q_BD.float() @ d_ND.float().T / temperature
    if masked_BN is not None:
        logits_BN = logits_BN.masked_fill(masked_BN, _MASKED)
    return functional.cross_entropy(logits_BN, targets_B)


def symmetric_info_nce(
    q_BD: Tensor, d_ND: Tensor, *, targets_B: Tensor, temperature: float, masked_BN: Tensor | None = None
) -> Tensor:
    """Mean InfoNCE loss of each query's document against all queries; other queries that it answers are left out.

    Arguments, result and errors as in `info_nce`; log(B) when all scores are equal and no document is shared.
    """
    _check(d_ND, targets_B, temperature, masked_BN)
    answers_BD = d_ND[targets_B]
    logits_BB = answers_BD.float() @ q_BD.float().T / temperature
    shared_BB = targets_B[:, None] == targets_B[None, :]
    if masked_BN is not None:
        shared_BB = shared_BB | masked_BN[:, targets_B].T
    own_BB = torch.eye(len(targets_B), dtype=torch.bool, device=targets_B.device)
    logits_BB = logits_BB.masked_fill(shared_BB & ~own_BB, _MASKED)
    return functional.cross_entropy(logits_BB, torch.arange(len(targets_B), device=targets_B.device))


def score_list_kl(
    scores_BN: Tensor, teacher_BN: Tensor, *, temperature: float, teacher_temperature: float, masked_BN: Tensor
) -> Tensor:
    """Mean KL divergence from the teacher's distribution over a query's documents to the student's.

    Args:
        scores_BN: the student's scores.
        teacher_BN: the teacher's, NaN where unknown; such documents are left out.
        temperature: divides the student's scores.
        teacher_temperature: divides the teacher's.
        masked_BN: documents to leave out.
    Returns:
        Scalar in nats, 0 when both agree; queries with fewer than two known documents are left out.
    """
    hidden_BN = teacher_BN.isnan() | masked_BN
    usable_B = (~hidden_BN).sum(dim=1) > 1
    if not bool(usable_B.any()):
        return scores_BN.sum() * 0.0
    hidden, student, teacher = (x[usable_B] for x in (hidden_BN, scores_BN, teacher_BN.nan_to_num()))
    log_p = (student / temperature).masked_fill(hidden, _MASKED).log_softmax(dim=1).masked_fill(hidden, 0.0)
    log_t = (teacher / teacher_temperature).masked_fill(hidden, _MASKED).log_softmax(dim=1)
    t = log_t.exp()
    return (t * (log_t.masked_fill(hidden, 0.0) - log_p)).sum(dim=1).mean()


def margin_mse(scores_BN: Tensor, teacher_BN: Tensor, *, targets_B: Tensor, masked_BN: Tensor) -> Tensor:
    """Mean squared difference of student's and teacher's margins between the target and each other document.

    Args:
        scores_BN: the student's scores, on the teacher's scale.
        teacher_BN: the teacher's, NaN where unknown; such documents are left out.
        targets_B: the document that answers each query.
        masked_BN: documents to leave out.
    Source: arXiv:2010.02666 eq. 1.
    """
    targets_B1 = targets_B[:, None]
    margins_BN = scores_BN.gather(1, targets_B1) - scores_BN
    teacher_margins_BN = teacher_BN.gather(1, targets_B1) - teacher_BN
    used_BN = ~(teacher_margins_BN.isnan() | masked_BN).scatter(1, targets_B1, True)
    squares_BN = torch.where(used_BN, margins_BN - teacher_margins_BN.nan_to_num(), 0.0).square()
    return squares_BN.sum() / used_BN.sum().clamp(min=1)


def vector_match(turned_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Mean of 1 - the product of turned embeddings and the teacher's vectors, all of unit length before.

    Under a map that only turns (see `training.alignment.Alignment`) it is 0 only where the embeddings are the teacher's
    vectors, turned, so that their scores are the teacher's scores too.
    """
    return 1.0 - (turned_NK * teacher_NK).sum(dim=-1).mean()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the loss knows about the texts of a whole batch; see `training.data.collator.Batch`."""

    targets_B: Tensor
    masked_BN: Tensor
    teacher_scores_BN: Tensor | None = None
    teacher_vectors: Tensor | None = None


class Objective:
    """The weighted sum of all terms that a run asks for."""

    def __init__(
        self, loss: LossConfig, distillation: DistillationConfig, *, alignment: Alignment | None = None
    ) -> None:
        """Take the weights; `alignment` turns embeddings onto the teacher's vectors."""
        self._loss = loss
        self._distillation = distillation
        self._alignment = alignment

    def __call__(self, q_BD: Tensor, d_ND: Tensor, targets: Targets) -> dict[str, Tensor]:
        """All terms by name, unweighted, and their weighted sum as `loss`.

        Args:
            q_BD: query embeddings of the whole batch, unit length.
            d_ND: document embeddings, likewise.
            targets: what is known about them.
        """
        terms = self._contrastive(q_BD, d_ND, targets)
        total = terms["info_nce"]
        if "symmetric" in terms:
            total = total + self._loss.symmetric_weight * terms["symmetric"]
        for name, weight, term in self._distilled(q_BD, d_ND, targets):
            terms[name] = term
            total = total + weight * term
        return terms | {"loss": total}

    def _contrastive(self, q_BD: Tensor, d_ND: Tensor, targets: Targets) -> dict[str, Tensor]:
        known = {"targets_B": targets.targets_B, "masked_BN": targets.masked_BN}
        temperature = self._loss.temperature
        views = list(_cuts(q_BD, d_ND, self._loss.matryoshka))
        terms = {"info_nce": _mean([info_nce(q, d, temperature=temperature, **known) for q, d in views])}
        if self._loss.symmetric_weight:
            symmetric = [symmetric_info_nce(q, d, temperature=temperature, **known) for q, d in views]
            terms["symmetric"] = _mean(symmetric)
        return terms

    def _distilled(self, q_BD: Tensor, d_ND: Tensor, targets: Targets) -> list[tuple[str, float, Tensor]]:
        config, terms = self._distillation, []
        teacher_BN = targets.teacher_scores_BN
        if teacher_BN is not None and (config.kl_weight or config.margin_mse_weight):
            scores_BN = q_BD.float() @ d_ND.float().T
            if config.kl_weight:
                divergence = score_list_kl(
                    scores_BN,
                    teacher_BN,
                    temperature=self._loss.temperature,
                    teacher_temperature=config.teacher_temperature,
                    masked_BN=targets.masked_BN,
                )
                terms.append(("kl", config.kl_weight, divergence))
            if config.margin_mse_weight:
                margins = margin_mse(scores_BN, teacher_BN, targets_B=targets.targets_B, masked_BN=targets.masked_BN)
                terms.append(("margin_mse", config.margin_mse_weight, margins))
        if config.vector_weight and targets.teacher_vectors is not None:
            assert self._alignment is not None
            embeddings = torch.cat([q_BD, d_ND])
            vectors = functional.normalize(targets.teacher_vectors.float(), dim=-1)
            self._alignment.gather(embeddings, vectors)
            terms.append(("vector", config.vector_weight, vector_match(self._alignment(embeddings), vectors)))
        return terms


def _check(d_ND: Tensor, targets_B: Tensor, temperature: float, masked_BN: Tensor | None) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    if bool((targets_B < 0).any()) or bool((targets_B >= len(d_ND)).any()):
        raise ValueError(f"a target lies outside the {len(d_ND)} documents: labels and documents are misaligned")
    if masked_BN is not None and bool(masked_BN.gather(1, targets_B[:, None]).any()):
        raise ValueError("a query's own target is masked")


def _cuts(q_BD: Tensor, d_ND: Tensor, dimensions: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The whole embeddings and their leading dimensions, unit length again."""
    cuts = [(q_BD, d_ND)]
    for size in dimensions:
        cut = tuple(functional.normalize(x[:, :size].float(), dim=-1) for x in (q_BD, d_ND))
        cuts.append((cut[0], cut[1]))
    return cuts


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
