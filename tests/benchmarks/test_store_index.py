"""`python -m benchmarks.store_index`: its vectors, its arithmetic, and a run that is too small to say anything."""

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.store_index import QUERIES, Searches, clustered, measure, table


def test_recall_is_the_share_of_what_a_scan_finds():
    truth = Searches(found=[{"a", "b"}, {"c", "d"}])
    assert Searches(found=[{"a", "b"}, {"c", "x"}]).recall(truth) == 0.75


def test_vectors_are_of_unit_length_and_come_in_clusters():
    rows = clustered(2000, dimension=64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    cosines = rows @ rows.T - np.eye(len(rows))
    assert np.median(cosines.max(axis=1)) > 0.6 > 0.1 > abs(np.median(cosines))


def test_run_builds_the_index_and_its_table_has_every_line(tmp_path: Path):
    result = asyncio.run(measure(tmp_path, clustered(300 + QUERIES, dimension=32), 300, "scalar"))
    assert result["exact_is_the_same"]
    assert result["recall@10"] > 0.9
    assert [line.split(" | ")[0] for line in table(result).splitlines()[4:]] == [
        "| exact, before",
        "| throughout the build",
        "| indexed",
        "| exact, after",
    ]
