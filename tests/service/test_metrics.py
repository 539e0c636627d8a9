from prometheus_client import CollectorRegistry

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


def test_metrics_documents_are_counted_by_outcome():
    metrics = Metrics(CollectorRegistry())

    metrics.count_documents(indexed=3, unchanged=2, failed=1)

    outcomes = {
        each: value(metrics, "eoseek_documents_total", outcome=each) for each in ("indexed", "unchanged", "failed")
    }
    assert outcomes == {"indexed": 3, "unchanged": 2, "failed": 1}


def test_metrics_every_name_has_the_prefix_and_queues_are_there_from_the_start():
    metrics = Metrics(CollectorRegistry())

    assert all(family.name.startswith("eoseek_") for family in metrics.registry.collect())
    assert value(metrics, "eoseek_queue_tokens", lane="query") == 0
