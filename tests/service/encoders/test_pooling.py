import torch

from service.encoders.pooling import pool

# two sequences, of two tokens and of one
HIDDEN = torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0]])


def test_pool_last_token_takes_each_sequence_end() -> None:
    torch.testing.assert_close(pool(HIDDEN, [2, 1], "last_token"), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_pool_cls_takes_each_sequence_start() -> None:
    torch.testing.assert_close(pool(HIDDEN, [2, 1], "cls"), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


def test_pool_mean_averages_then_normalizes() -> None:
    mean = torch.tensor([1.5, 3.0])
    torch.testing.assert_close(
        pool(HIDDEN, [2, 1], "mean"), torch.stack([mean / mean.norm(), torch.tensor([1.0, 0.0])])
    )


def test_pool_bfloat16_states_give_float32() -> None:
    assert pool(HIDDEN.bfloat16(), [2, 1], "mean").dtype == torch.float32
