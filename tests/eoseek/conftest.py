from collections.abc import Iterator

import pytest

from eoseek.client import Client
from tests.eoseek.fake_service import FakeService


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("EOSEEK_URL", raising=False)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(service, pauses) -> Iterator[Client]:
    with Client(transport=service.transport(), sleep=pauses.append) as client:
        yield client
