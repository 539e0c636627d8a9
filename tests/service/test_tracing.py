"""Tracing as far as it goes without OpenTelemetry."""

import sys

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings, StoreSettings
from service.tracing import Tracing, note_stage


def test_tracing_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    app = create_app(Settings(tracing=True, store=StoreSettings(kind="memory")))

    with pytest.raises(ConfigurationError, match=r"EOSEEK_TRACING.*eoseek\[otel\]"), TestClient(app):
        pass


def test_stages_of_one_request_are_bounded_and_nobody_else_s():
    tracing = Tracing(database="memory")
    note_stage("search", 1.0, ended=1.0)
    stages = tracing.begin()

    for _ in range(1500):
        note_stage("search", 1.0, ended=3.0)

    assert len(stages) == 1000
    assert (stages[0].started, stages[0].ended) == (2.0, 3.0)
