import sys

from eoseek.terminal import NowAndThen, WaitNotes


def tell_at(seconds):
    now = [0]
    told = NowAndThen(seconds=30, clock=lambda: now[0])
    for now[0] in seconds:
        told.tell(f"at {now[0]}")


def test_now_and_then_notes_each_half_minute_where_no_bar_is_seen(capsys):
    tell_at([1, 29, 30, 45, 59, 61, 90, 91])

    assert capsys.readouterr().err == "at 30\nat 61\nat 91\n"


def test_now_and_then_is_silent_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    tell_at([31, 62])

    assert capsys.readouterr().err == ""


def test_wait_notes_come_at_once_and_then_each_ten_seconds(capsys):
    now = [0]
    notes = WaitNotes(seconds=10, clock=lambda: now[0])
    for now[0] in (0, 1, 9, 10, 19, 21):
        notes.tell(0.25, ValueError(f"full at {now[0]}"))

    assert capsys.readouterr().err.splitlines() == [f"trying again in 0.2 s: full at {each}" for each in (0, 10, 21)]
