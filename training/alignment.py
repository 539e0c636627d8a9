"""The turn that lays a model's embeddings onto a teacher's vectors.

Shapes: N texts, D dimensions, K teacher's dimensions, R the smaller of both.
"""

import torch
from torch import Tensor, nn

_KEPT_SHARE = 0.98  # of what was gathered before a step: some 50 steps count


class Alignment(nn.Module):
    """Turns embeddings onto a teacher's vectors by the orthonormal map that fits the latest texts best.

    A free projection could fit the vectors while the embeddings themselves lie otherwise; this one only turns. It is
    solved (orthogonal Procrustes, doi:10.1007/BF02289451) rather than tuned, so it never lags behind the model.
    """

    cross_DK: Tensor

    def __init__(self, dimension: int, teacher_dimension: int) -> None:
        """Starts with nothing gathered."""
        super().__init__()
        self.register_buffer("cross_DK", torch.zeros(dimension, teacher_dimension))

    @torch.no_grad()
    def gather(self, embeddings_ND: Tensor, teacher_NK: Tensor) -> None:
        """Count these texts in, and those before a little less."""
        self.cross_DK.mul_(_KEPT_SHARE).add_(embeddings_ND.float().T @ teacher_NK.float())

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        """(N, teacher's dimension), float32; no gradient reaches the map, which is the best one already."""
        with torch.no_grad():
            left_DR, _, right_RK = torch.linalg.svd(self.cross_DK, full_matrices=False)
            turn_DK = left_DR @ right_RK
        turned_NK: Tensor = embeddings_ND.float() @ turn_DK
        return turned_NK
