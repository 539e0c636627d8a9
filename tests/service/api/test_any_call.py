"""Calls drawn from the OpenAPI document by schemathesis, all its checks: the service does what the document says.

EOSEEK_TEST_CASES is the number of random cases for each call, beside those that schemathesis always makes.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

from service.app import create_app
from service.encoders.worker import LocalEncoder
from service.settings import ApiSettings, Settings, StoreSettings
from service.store.memory import MemoryStore
from tests.fakes import FakeEncoder
from tests.service.api.parts import DIMENSION, tiny_checkpoint

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'eoseek[dev]'")
NUM_CASES = int(os.environ.get("EOSEEK_TEST_CASES", "10"))


APP = create_app(
    Settings(api=ApiSettings(), store=StoreSettings(kind="memory")),
    checkpoint=tiny_checkpoint(),
    encoder=LocalEncoder(FakeEncoder(DIMENSION)),
    store=MemoryStore(),
)


@schemathesis.serializer("application/x-ndjson")
def as_it_is(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


CONFIG = schemathesis.Config.from_dict(
    {"checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 501, 503]}}}  # each declared
)
API = schemathesis.openapi.from_asgi("/openapi.json", APP, config=CONFIG)


def excluded(case):
    # some limits are the checkpoint's (dimensions, token ids, length), some two fields' together (top_k and offset)
    checks = [schemathesis.checks.positive_data_acceptance]
    if case.operation.path == "/documents/delete":
        # a document may be called `delete`, so that GET and DELETE are answered as well
        checks.append(schemathesis.checks.allow_header_conformance)
    if case.media_type == "application/x-ndjson":
        # whatever is sent is a string; its bad lines come back in the answer, test_any_input.py has them
        checks.append(schemathesis.checks.negative_data_rejection)
    return checks


@API.parametrize()
@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_call_is_answered_as_the_document_says(case):
    case.call_and_validate(excluded_checks=excluded(case))
