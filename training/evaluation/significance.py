"""How sure a mean or a difference of means is: pure, on each query's values, seeded.

Three answers, because they assume different things: the t-test that differences are about normal, randomisation only
that the two systems could have changed places, the bootstrap that these queries stand for others like them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
LEVEL = 0.95
SEED = 17
_CELLS = 2_000_000  # values drawn at once, so that many queries take no more memory than few

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on the same queries; the difference is a - b, p-values are two-sided."""

    num_queries: int
    mean_a: float
    mean_b: float
    difference: float
    interval: tuple[float, float]
    t_test_p: float
    randomisation_p: float


def compare(a: Mapping[str, float], b: Mapping[str, float]) -> Comparison:
    """Compare each query's values of two systems.

    Args:
        a: `{query_id: value}`.
        b: of the same queries.
    Raises:
        ValueError: fewer than two queries, or not the same ones.
    """
    if a.keys() != b.keys() or len(a) < 2:
        raise ValueError(f"a comparison needs the same two or more queries on both sides, not {len(a)} and {len(b)}")
    values_a, values_b = (np.array([each[query_id] for query_id in sorted(a)]) for each in (a, b))
    differences = values_a - values_b
    return Comparison(
        num_queries=len(a),
        mean_a=float(values_a.mean()),
        mean_b=float(values_b.mean()),
        difference=float(differences.mean()),
        interval=bootstrap_interval(differences),
        t_test_p=paired_t_test(differences),
        randomisation_p=randomisation_test(differences),
    )


def bootstrap_interval(
    values: Sequence[float] | Values, *, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The percentile interval of the mean when queries are drawn again with replacement.

    Args:
        values: one a query, at least one.
        level: share of resampled means inside.
        num_resamples: drawn.
        seed: of the drawing.
    Source: Sakai 2006, doi:10.1145/1148170.1148261.
    """
    data = np.asarray(values, dtype=np.float64)

    def draw(generator: np.random.Generator, count: int) -> Values:
        means: Values = data[generator.integers(len(data), size=(count, len(data)))].mean(axis=1)
        return means

    means = _draws(draw, len(data), num_resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_t_test(differences: Sequence[float] | Values) -> float:
    """Two-sided p-value of a mean difference of 0; 1 where nothing differs, 0 where all differ by the same."""
    from scipy.stats import ttest_1samp

    data = np.asarray(differences, dtype=np.float64)
    if np.ptp(data) == 0:  # no variance to divide by
        return 1.0 if data[0] == 0 else 0.0
    return float(ttest_1samp(data, 0.0).pvalue)


def randomisation_test(
    differences: Sequence[float] | Values, *, num_flips: int = NUM_RESAMPLES, seed: int = SEED
) -> float:
    """Two-sided p-value: how often random signs give a mean difference at least as large, the observed one counted.

    Args:
        differences: a - b, one a query.
        num_flips: times all signs are drawn; the smallest p-value is 1 / (num_flips + 1).
        seed: of the drawing.
    Source: Smucker, Allan, Carterette 2007, doi:10.1145/1321440.1321528.
    """
    data = np.asarray(differences, dtype=np.float64)

    def draw(generator: np.random.Generator, count: int) -> Values:
        means: Values = (generator.integers(2, size=(count, len(data))) * 2 - 1) @ data / len(data)
        return means

    means = _draws(draw, len(data), num_flips, seed)
    # sums in another order differ in the last digit
    is_as_large = np.abs(means) >= abs(data.mean()) - 1e-12
    return float((1 + is_as_large.sum()) / (1 + num_flips))


def _draws(draw: Callable[[np.random.Generator, int], Values], size: int, count: int, seed: int) -> Values:
    generator = np.random.default_rng(seed)
    return np.concatenate([draw(generator, each) for each in _portions(count, max(1, _CELLS // size))])


def _portions(count: int, most: int) -> Iterator[int]:
    while count > 0:
        yield min(count, most)
        count -= most
