import io
import sys

import pytest

from eoseek.terminal import NowAndThen


class FakeStream(io.StringIO):
    is_terminal = False

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stderr(monkeypatch):
    stream = FakeStream()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def tell_at(seconds):
    now = [0.0]
    told = NowAndThen(seconds=30, clock=lambda: now[0])
    for now[0] in seconds:
        told.tell(f"at {now[0]}")


def test_now_and_then_notes_each_half_minute_where_no_bar_is_seen(stderr):
    tell_at([1, 29, 30, 45, 59, 61, 90, 91])

    assert stderr.getvalue() == "at 30\nat 61\nat 91\n"


def test_now_and_then_is_silent_on_a_terminal(stderr):
    stderr.is_terminal = True

    tell_at([31, 62])

    assert stderr.getvalue() == ""
