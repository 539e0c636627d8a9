"""One app with the exact store, a tiny tokenizer and a fake encoder, started with its lifespan."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import ApiSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.service.api.parts import HashEncoder, tiny_checkpoint

ClientFactory = Callable[..., TestClient]


@pytest.fixture
def make_client() -> Iterator[ClientFactory]:
    """Start an app; settings of the api group and parts may be given."""
    with ExitStack() as stack:

        def make(*, store=None, encoder=None, checkpoint=None, **api: object) -> TestClient:
            settings = Settings(api=ApiSettings(**api), store=StoreSettings(kind="memory"))
            app = create_app(
                settings,
                checkpoint=checkpoint or tiny_checkpoint(),
                encoder=encoder or HashEncoder(),
                store=store or MemoryStore(),
            )
            return stack.enter_context(TestClient(app))

        yield make


@pytest.fixture
def client(make_client: ClientFactory) -> TestClient:
    return make_client()
