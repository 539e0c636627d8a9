import asyncio
import io
import sys
from collections.abc import Iterator

import pytest

from eoseek.cli import main
from eoseek.client import AsyncClient, Client
from tests.eoseek.fake_service import FakeService


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("EOSEEK_URL", raising=False)
    monkeypatch.delenv("EOSEEK_API_KEY", raising=False)


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


class BlockingClient:
    """An `AsyncClient` each of whose calls is made to its end."""

    def __init__(self, *arguments, sleep=None, **options):
        async def pause(seconds):
            sleep(seconds)

        self._client = AsyncClient(*arguments, sleep=pause if sleep else None, **options)
        self._runner = asyncio.Runner()

    def __getattr__(self, name):
        return lambda *arguments, **options: self._runner.run(getattr(self._client, name)(*arguments, **options))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
        self._runner.close()


@pytest.fixture
def url(service):
    with service.listening() as url:
        yield url


@pytest.fixture
def eoseek(capsys, monkeypatch):
    """Runs the command line in this process; gives exit code, stdout, stderr."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["eoseek", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return call
