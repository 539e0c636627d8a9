import os
import sys

import pytest
from prometheus_client import CollectorRegistry

from service.encoders.base import PrefixFigures
from service.metrics import Metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_metrics_two_apps_count_apart():
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())

    first.observe_request(route="/search", method="POST", status=200, seconds=0.02)

    assert value(first, "eoseek_requests_total", route="/search", method="POST", status="200") == 1
    assert value(first, "eoseek_request_seconds_bucket", route="/search", method="POST", le="0.025") == 1
    assert value(second, "eoseek_requests_total", route="/search", method="POST", status="200") is None


def test_metrics_a_batch_counts_tokens_texts_and_busy_time():
    metrics = Metrics(CollectorRegistry())

    metrics.observe_batch("document", tokens=300, texts=3, seconds=0.25)

    assert value(metrics, "eoseek_tokens_total", kind="document") == 300
    assert value(metrics, "eoseek_batch_texts_sum", lane="document") == 3
    assert value(metrics, "eoseek_encoder_busy_seconds_total", lane="document") == 0.25


def test_metrics_shared_openings_of_several_workers_add_up():
    metrics = Metrics(CollectorRegistry())

    metrics.note_prefixes(PrefixFigures(hits=3, misses=1, saved_tokens=90, held_tokens=30))
    metrics.note_prefixes(PrefixFigures(hits=1, evictions=2, saved_tokens=8, held_tokens=-10))

    assert value(metrics, "eoseek_prefix_lookups_total", outcome="hit") == 4
    assert value(metrics, "eoseek_prefix_lookups_total", outcome="miss") == 1
    assert value(metrics, "eoseek_prefix_evictions_total") == 2
    assert value(metrics, "eoseek_prefix_saved_tokens_total") == 98
    assert value(metrics, "eoseek_prefix_tokens") == 20


def test_metrics_documents_are_counted_by_outcome():
    metrics = Metrics(CollectorRegistry())

    metrics.count_documents(indexed=3, unchanged=2, failed=1)

    outcomes = {
        each: value(metrics, "eoseek_documents_total", outcome=each) for each in ("indexed", "unchanged", "failed")
    }
    assert outcomes == {"indexed": 3, "unchanged": 2, "failed": 1}


def test_metrics_an_index_build_is_shown_while_it_runs_and_timed_by_outcome():
    metrics = Metrics(CollectorRegistry())

    metrics.note_index_build(None, 0.0)
    assert value(metrics, "eoseek_index_building") == 1

    metrics.note_index_build("built", 90.0)
    assert value(metrics, "eoseek_index_building") == 0
    assert value(metrics, "eoseek_index_build_seconds_sum", outcome="built") == 90
    assert value(metrics, "eoseek_index_build_seconds_count", outcome="failed") == 0


def test_metrics_every_name_has_the_prefix_and_what_is_alerted_on_is_there_from_the_start():
    metrics = Metrics(CollectorRegistry())

    assert all(family.name.startswith(("eoseek_", "process_")) for family in metrics.registry.collect())
    assert value(metrics, "eoseek_queue_tokens", lane="query") == 0
    assert value(metrics, "eoseek_rejections_total", reason="queue_full") == 0
    assert value(metrics, "eoseek_worker_restarts_total", child="store") == 0


def test_metrics_ask_for_ages_and_readiness_at_each_scrape():
    metrics = Metrics(CollectorRegistry())
    levels = {"age": 1.5, "ready": True}
    metrics.watch_queue("query", lambda: levels["age"])
    metrics.watch_part("encoder", lambda: levels["ready"], lambda: None)
    assert value(metrics, "eoseek_queue_age_seconds", lane="query") == 1.5
    assert value(metrics, "eoseek_ready", part="encoder") == 1

    levels.update(age=0.0, ready=False)

    assert value(metrics, "eoseek_queue_age_seconds", lane="query") == 0
    assert value(metrics, "eoseek_ready", part="encoder") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="figures of processes come from /proc")
def test_metrics_tell_what_a_child_takes_while_there_is_one():
    metrics = Metrics(CollectorRegistry())
    pids = [None]
    metrics.watch_part("store", lambda: True, lambda: pids[-1])
    assert value(metrics, "eoseek_store_process_resident_memory_bytes") is None

    pids.append(os.getpid())

    assert value(metrics, "eoseek_store_process_resident_memory_bytes") > 2**20


def test_metrics_collections_beyond_a_hundred_are_one_series_and_a_dropped_one_is_gone():
    metrics = Metrics(CollectorRegistry())

    metrics.set_collections({f"c{number}": (number, 10) for number in range(103)})

    assert value(metrics, "eoseek_store_points", collection="c102") == 102
    assert value(metrics, "eoseek_store_points", collection="c2") is None
    assert value(metrics, "eoseek_store_points", collection="(other)") == 0 + 1 + 2
    assert value(metrics, "eoseek_store_bytes", collection="(other)") == 30

    metrics.set_collections({"c1": (1, None)})

    assert value(metrics, "eoseek_store_points", collection="c102") is None
    assert value(metrics, "eoseek_store_bytes", collection="c1") is None


def test_metrics_only_a_restart_counts_as_one():
    metrics = Metrics(CollectorRegistry())

    for event in ("died", "restart_failed", "restarted"):
        metrics.count_child_event("encoder", event)

    assert value(metrics, "eoseek_worker_restarts_total", child="encoder") == 1
