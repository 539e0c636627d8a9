"""From the token states of packed sequences to one unit-length embedding each, in float32.

Shapes: T tokens of the row, N sequences, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.encoders.base import Pooling


def pool(hidden_TD: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """Embeddings of packed sequences.

    Args:
        hidden_TD: token states, sequences one after the other.
        lengths: tokens of each sequence, each > 0; they add up to T.
        pooling: `last_token` is the state at [EOS], `cls` the first, `mean` the average.
    Returns:
        (N, D), float32, rows of unit length.
    """
    lengths_N = torch.tensor(lengths, device=hidden_TD.device)
    ends_N = lengths_N.cumsum(0)
    if pooling == "last_token":
        pooled_ND = hidden_TD[ends_N - 1].float()
    elif pooling == "cls":
        pooled_ND = hidden_TD[ends_N - lengths_N].float()
    else:
        owner_T = torch.repeat_interleave(torch.arange(len(lengths), device=hidden_TD.device), lengths_N)
        sums_ND = hidden_TD.new_zeros((len(lengths), hidden_TD.shape[1]), dtype=torch.float32)
        pooled_ND = sums_ND.index_add(0, owner_T, hidden_TD.float()) / lengths_N[:, None]
    return torch.nn.functional.normalize(pooled_ND, dim=-1)
