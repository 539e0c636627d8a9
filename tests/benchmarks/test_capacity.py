"""The arithmetic and the simulation behind docs/capacity.md, against formulas, and the page against the program."""

import asyncio
import itertools
import re
import shlex
import statistics
from pathlib import Path

import pytest

from benchmarks.capacity import Answer, handling_seconds, main
from benchmarks.queueing import Arrival, Calibration, poisson, simulate
from benchmarks.sizing import Load, plan
from service.settings import BatchingSettings

PAGE = (Path(__file__).parents[2] / "docs" / "capacity.md").read_text(encoding="utf-8")
ONE_BY_ONE = BatchingSettings(max_batch_texts=1)


def test_poisson_arrives_at_its_rate_and_in_order():
    times = poisson(per_second=50, seconds=200, seed=1)
    assert times == sorted(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)  # as of an exponential


def test_simulation_without_batches_is_the_queue_of_the_textbook():
    """M/D/1: a mean wait of utilisation / (2 (1 - utilisation)) services before one's own."""
    seconds, per_second = 0.02, 25
    arrivals = [Arrival(seconds=at, num_tokens=10) for at in poisson(per_second=per_second, seconds=400, seed=2)]
    waits = simulate(arrivals, Calibration(tokens=[10], seconds=[seconds]), settings=ONE_BY_ONE)
    assert statistics.mean(waits) == pytest.approx(seconds * (1 + 0.5 / (2 * 0.5)), rel=0.05)


def test_simulation_of_an_idle_service_is_one_batch_and_the_overhead():
    calibration = Calibration(tokens=[10, 100], seconds=[0.02, 0.11], overheads=[0.003])
    (wait,) = simulate([Arrival(seconds=1.0, num_tokens=50)], calibration)
    assert wait == pytest.approx(0.02 + 40 * 0.001 + 0.003)


def test_simulation_batches_what_waits_as_the_service_does():
    """Three at once behind one that runs: they share a batch of 30 tokens, a tenth of the first one's time after it."""
    arrivals = [Arrival(seconds=at, num_tokens=10) for at in (0.0, 0.01, 0.01, 0.01)]
    waits = simulate(arrivals, Calibration(tokens=[10, 30], seconds=[0.1, 0.2]))
    assert waits == pytest.approx([0.1, 0.3, 0.3, 0.3])


def test_simulation_of_a_loaded_service_handles_requests_beside_batches():
    """Three come while the first one's batch runs, and make it longer; nobody comes during theirs."""
    arrivals = [Arrival(seconds=at, num_tokens=10) for at in (0.0, 0.01, 0.01, 0.01)]
    waits = simulate(arrivals, Calibration(tokens=[10, 30], seconds=[0.1, 0.2], handling_seconds=0.01))
    assert waits == pytest.approx([0.13, 0.33, 0.33, 0.33], rel=0.01)


def test_handling_is_by_how_much_a_batch_is_longer_for_each_request_that_came_meanwhile():
    """Two that were alone take what the curve says; the third one's batch takes 0.2 s more, and two came meanwhile."""
    curve = Calibration(tokens=[10, 30], seconds=[0.1, 0.2])
    moments = [(0.0, 0.11, 0.1), (1.0, 1.11, 0.1), (2.0, 2.31, 0.3), (2.1, 2.52, 0.2), (2.2, 2.52, 0.2)]
    answers = [
        Answer(num_tokens=tokens, start=start, end=end, encode_seconds=seconds, batcher_seconds=seconds)
        for (start, end, seconds), tokens in zip(moments, (10, 10, 10, 15, 15), strict=True)
    ]
    assert handling_seconds(answers, curve) == pytest.approx(0.2 / 2)


def test_simulation_lets_queries_pass_documents():
    documents = [Arrival(seconds=0.0, num_tokens=100, lane="document") for _ in range(20)]
    query = Arrival(seconds=0.01, num_tokens=10)
    waits = simulate([*documents, query], Calibration(tokens=[10, 100], seconds=[0.01, 0.1]))
    assert waits[-1] < 0.5 < max(waits)


def test_simulation_beyond_the_queue_is_refused_as_429():
    arrivals = [Arrival(seconds=0.0, num_tokens=10) for _ in range(5)]
    settings = BatchingSettings(max_queue_tokens=30)
    waits = simulate(arrivals, Calibration(tokens=[10], seconds=[0.1]), settings=settings)
    assert waits.count(float("inf")) == 2


def test_simulation_leaves_nothing_behind():
    simulate([Arrival(seconds=0.5, num_tokens=1)], Calibration(tokens=[1], seconds=[0.1]))
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_batch_seconds_go_on_beyond_the_last_measured_batch():
    calibration = Calibration(tokens=[10, 20, 40], seconds=[1.0, 2.0, 3.0])
    assert [calibration.batch_seconds(tokens) for tokens in (5, 15, 40, 60)] == [1.0, 1.5, 3.0, 4.0]


def test_plan_by_hand():
    """10 million documents of 100 tokens in one day at 1,000 tokens/s are 11.6 machines; the rest likewise."""
    made = plan(
        Load(
            documents=1e7, queries_per_second=90, tokens_per_document=100, bytes_per_document=1000, dimension=500,
            replicas=3, load_days=1, encoder_tokens_per_second=1000, encoder_queries_per_second=50, utilisation=0.5,
            documents_per_shard=1e6, search_ms=10, store_cores=4, store_memory_gib=100, store_memory_share=1,
        )
    )  # fmt: skip
    assert (made.load_encoders, made.query_encoders) == (12, 4)
    assert made.memory_bytes == 1e7 * (500 * 4 + 2 * 16 * 4) * 1.5 * 3
    assert made.disk_bytes == 1e7 * (500 * 4 + 2 * 16 * 4 + 1000) * 1.5 * 3
    assert made.stores == 5  # 90/s x 10 shards x 10 ms / 0.5 = 18 cores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 0}, "documents is 0"),
        ({"replicas": -1}, "replicas is -1"),
        ({"search_ms": float("nan")}, "search_ms is nan"),
        ({"utilisation": 1.5}, r"utilisation is 1\.5; it is a share"),
        ({"quantization": "half"}, "none, scalar, binary"),
    ],
)
def test_plan_refuses_what_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(Load(**{"documents": 1e6, "queries_per_second": 1} | changes))


def test_page_and_program_agree(monkeypatch, capsys):
    """Below each command of the page stands what it prints."""
    block = r"^```sh\npython -m benchmarks\.capacity (--plan.*?)\n```\n\n(.*?)\n\n## "
    found = re.findall(block, PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    for command, printed in found:
        monkeypatch.setattr("sys.argv", ["capacity", *shlex.split(command.replace("\\\n", " "))])
        assert main() == 0
        assert capsys.readouterr().out.strip() == printed.strip(), f"docs/capacity.md below {command!r} should read so"
