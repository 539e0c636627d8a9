"""One app with the exact store, a tiny tokenizer and a fake encoder, started with its lifespan."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.settings import ApiSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint

ClientFactory = Callable[..., TestClient]


@contextmanager
def client_factory() -> Iterator[ClientFactory]:
    """Start apps; settings of the api group and parts may be given."""
    with ExitStack() as stack:

        def make(*, store=None, encoder=None, checkpoint=None, **api: object) -> TestClient:
            settings = Settings(api=ApiSettings(**api), store=StoreSettings(kind="memory"))
            app = create_app(
                settings,
                checkpoint=checkpoint or tiny_checkpoint(),
                encoder=encoder or LocalEncoder(FakeEncoder(DIMENSION)),
                store=store or MemoryStore(),
            )
            return stack.enter_context(TestClient(app))

        yield make


@pytest.fixture
def make_client() -> Iterator[ClientFactory]:
    with client_factory() as make:
        yield make


@pytest.fixture(scope="module")
def small() -> Iterator[TestClient]:
    """Low limits; for tests that leave nothing behind."""
    with client_factory() as make:
        yield make(max_inputs=10, max_documents=20, max_text_chars=1000, max_results=5000, max_metadata_bytes=500)


@pytest.fixture
def client(make_client: ClientFactory) -> TestClient:
    return make_client()
