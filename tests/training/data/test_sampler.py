from collections import Counter

import pytest

from training.data.sampler import Sampler


def _sampler(*, num_steps: int = 40, seed: int = 1) -> Sampler:
    return Sampler([20, 9], ratios=[3.0, 1.0], batch_size=4, num_steps=num_steps, seed=seed)


def test_sampler_ratios_hold_within_one_batch_at_every_step() -> None:
    sampler = _sampler()
    counts: Counter[int] = Counter()
    for step in range(40):
        counts[sampler.draw(step).set_index] += 1
        assert abs(counts[0] - 0.75 * (step + 1)) <= 1.5
    assert counts == {0: 30, 1: 10}


def test_sampler_step_is_a_function_of_the_seed() -> None:
    assert [_sampler().draw(step) for step in range(40)] == [_sampler().draw(step) for step in range(40)]
    assert [_sampler().draw(step) for step in range(40)] != [_sampler(seed=2).draw(step) for step in range(40)]


def test_sampler_step_can_be_drawn_alone() -> None:
    sampler = _sampler()
    in_order = [sampler.draw(step) for step in range(40)]
    assert [_sampler().draw(step) for step in (39, 0, 17)] == [in_order[39], in_order[0], in_order[17]]


def test_sampler_longer_plan_starts_with_the_same_steps() -> None:
    shorter, longer = _sampler(num_steps=10), _sampler(num_steps=40)
    assert [shorter.draw(step) for step in range(10)] == [longer.draw(step) for step in range(10)]


def test_sampler_epoch_draws_each_example_once_and_reshuffles() -> None:
    sampler = Sampler([20], ratios=[1.0], batch_size=4, num_steps=10, seed=1)
    epochs: dict[int, list[int]] = {0: [], 1: []}
    for step in range(10):
        draw = sampler.draw(step)
        epochs[draw.epoch] += draw.example_indices
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_sampler_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="fills no batch of 4"):
        Sampler([3], ratios=[1.0], batch_size=4, num_steps=1, seed=1)
