"""What is counted of a store's calls."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from service.errors import NotFoundError, NotImplementedHereError, StoreError
from service.metrics import Metrics
from service.store.memory import MemoryStore
from service.store.metered import metered


class BrokenStore(MemoryStore):
    error: Exception = StoreError("the disk is full")

    async def count(self, collection, filter=None):
        raise self.error


def sample(metrics, name, operation):
    return metrics.registry.get_sample_value(name, {"operation": operation})


def test_metered_store_answers_as_the_store_and_times_its_calls():
    metrics = Metrics(CollectorRegistry())
    store = metered(MemoryStore(), metrics)

    info = asyncio.run(store.create_collection("docs", fingerprint="f" * 64, dimension=8))

    assert (info.name, store.is_ready) == ("docs", True)
    assert sample(metrics, "eoseek_store_call_seconds_count", "create_collection") == 1
    assert sample(metrics, "eoseek_store_errors_total", "create_collection") == 0


@pytest.mark.parametrize("error", [StoreError("the disk is full"), RuntimeError("a fault")])
def test_metered_store_counts_its_failures_and_passes_them_on(error):
    metrics, broken = Metrics(CollectorRegistry()), BrokenStore()
    broken.error = error

    with pytest.raises(type(error)):
        asyncio.run(metered(broken, metrics).count("docs"))

    assert sample(metrics, "eoseek_store_errors_total", "count") == 1
    assert sample(metrics, "eoseek_store_call_seconds_count", "count") == 1


def test_metered_store_does_not_count_what_its_caller_did_wrong():
    metrics = Metrics(CollectorRegistry())

    with pytest.raises(NotFoundError):
        asyncio.run(metered(MemoryStore(), metrics).describe_collection("nothing"))

    assert sample(metrics, "eoseek_store_errors_total", "describe_collection") == 0


def test_metered_store_does_not_count_what_it_is_not_made_for():
    metrics = Metrics(CollectorRegistry())

    with pytest.raises(NotImplementedHereError):
        asyncio.run(metered(MemoryStore(), metrics).snapshot())

    assert sample(metrics, "eoseek_store_errors_total", "snapshot") == 0
