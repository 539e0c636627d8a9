from itertools import product
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from training.evaluation import significance
from training.evaluation.significance import bootstrap_interval, compare, paired_t_test, randomisation_test

A = {"q1": 0.9, "q2": 0.5, "q3": 0.7, "q4": 0.2}
B = {"q4": 0.1, "q3": 0.4, "q2": 0.6, "q1": 0.3}


def test_paired_t_test_by_hand_and_by_scipy_s_own_paired_form():
    # differences 0.6, -0.1, 0.3, 0.1: mean 0.225, sample variance 0.0891667
    differences = [A[query] - B[query] for query in A]
    t = 0.225 / sqrt(0.26750 / 3 / 4)
    assert paired_t_test(differences) == pytest.approx(2 * stats.t.sf(t, df=3))
    assert paired_t_test(differences) == pytest.approx(stats.ttest_rel(list(A.values()), [B[q] for q in A]).pvalue)


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0, 0.0], 1.0), ([0.5, 0.5], 0.0)])
def test_paired_t_test_without_variance_has_an_answer(differences, p):
    assert paired_t_test(differences) == p


def test_randomisation_test_comes_near_to_all_sign_flips_counted():
    differences = np.array([0.6, -0.1, 0.3, 0.1, 0.25, -0.05])
    means = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    exact = np.mean([each >= abs(differences.sum()) - 1e-12 for each in means])
    assert randomisation_test(differences) == pytest.approx(exact, abs=0.015)


def test_randomisation_test_equal_systems_give_one_and_the_least_is_one_in_all_flips():
    assert randomisation_test([0.0, 0.0]) == 1.0
    assert randomisation_test([1.0] * 100) == pytest.approx(1 / 10_001)


def test_bootstrap_interval_of_many_values_is_near_the_normal_one():
    values = np.random.default_rng(1).random(2000)
    half = 1.96 * values.std() / sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_interval_of_equal_values_is_that_value():
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_draws_are_the_same_at_every_call_however_they_are_portioned(monkeypatch):
    differences = [0.6, -0.1, 0.3, 0.1]
    whole = bootstrap_interval(differences), randomisation_test(differences)
    monkeypatch.setattr(significance, "_CELLS", 4 * 7)
    assert (bootstrap_interval(differences), randomisation_test(differences)) == whole


def test_compare_pairs_by_query_whatever_the_order():
    comparison = compare(A, B)
    assert (comparison.mean_a, comparison.mean_b) == pytest.approx((0.575, 0.35))
    assert comparison.difference == pytest.approx(0.225)
    assert comparison.interval[0] < 0.225 < comparison.interval[1]
    assert comparison.num_queries == 4


@pytest.mark.parametrize(("a", "b"), [({"q": 1.0}, {"q": 0.0}), ({"q": 1.0, "r": 1.0}, {"q": 1.0, "s": 1.0})])
def test_compare_needs_two_or_more_common_queries(a, b):
    with pytest.raises(ValueError, match="the same two or more queries"):
        compare(a, b)
