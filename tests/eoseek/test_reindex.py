"""`eoseek reindex` and the client's calls, against a service that plays a script."""

import json

import httpx
import pytest

from eoseek.client import Client
from eoseek.reindexing import wait_until_settled
from tests.eoseek.conftest import BlockingClient


def state(stage, remaining=0):
    return {"stage": stage, "documents": 10, "remaining": remaining}


class FakeReindex:
    """Answers each request with the next state; keeps what it was sent."""

    def __init__(self, *states):
        self.states, self.sent = list(states), []

    def transport(self):
        return httpx.MockTransport(self._respond)

    def _respond(self, request):
        body = json.loads(request.content) if request.content else None
        self.sent.append((request.method, request.url.path, body))
        return httpx.Response(202 if body else 200, json=self.states.pop(0))


@pytest.mark.parametrize("kind", [Client, BlockingClient])
def test_client_sends_the_action_and_only_what_was_given(kind):
    fake = FakeReindex(state("loading"), state("ready"))

    with kind(transport=fake.transport()) as client:
        assert client.reindex("a b", checkpoint="/models/next", share=None)["stage"] == "loading"
        assert client.describe_reindex("a b")["stage"] == "ready"

    assert fake.sent == [
        ("POST", "/collections/a b/reindex", {"action": "start", "checkpoint": "/models/next"}),
        ("GET", "/collections/a b/reindex", None),
    ]


def test_waiting_ends_when_nothing_is_left_to_encode():
    fake = FakeReindex(state("loading", 10), state("copying", 5), state("ready", 1), state("ready"))
    pauses = []

    with Client(transport=fake.transport()) as client:
        assert wait_until_settled(client, "docs", sleep=pauses.append) == state("ready")

    assert len(pauses) == 3


@pytest.mark.parametrize("stage", ["paused", "failed"])
def test_waiting_ends_where_nothing_moves(stage):
    with Client(transport=FakeReindex(state(stage, 5)).transport()) as client:
        assert wait_until_settled(client, "docs")["stage"] == stage


@pytest.mark.parametrize(
    ("arguments", "stage", "code", "body"),
    [
        (["start", "--checkpoint", "/m", "--share", "0.2", "--truncate"], "loading", 0,
         {"action": "start", "checkpoint": "/m", "share": 0.2, "truncate": True}),
        (["switch", "--query", "a", "--query", "b"], "switched", 0, {"action": "switch", "queries": ["a", "b"]}),
        (["resume"], "failed", 1, {"action": "resume"}),
        (["abort", "--wait"], "failed", 0, {"action": "abort"}),
        ([], "copying", 0, None),
    ],
)  # fmt: skip
def test_command_prints_how_it_stands(eoseek, monkeypatch, arguments, stage, code, body):
    fake = FakeReindex(state(stage))
    monkeypatch.setattr("eoseek.cli._client", lambda url, key: Client(url, api_key=key, transport=fake.transport()))

    found = eoseek("reindex", "docs", *arguments)

    assert (found[0], json.loads(found[1])) == (code, state(stage))
    assert [sent[2] for sent in fake.sent] == [body]
