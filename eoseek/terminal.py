"""What goes to the terminal: results on stdout, notes on stderr, texts from elsewhere without control sequences."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eoseek.client import Hit


def printable(text: str) -> str:
    """One line of a text that a stranger wrote: terminal control sequences in it have no effect."""
    return "".join(character if character.isprintable() else " " for character in text)


def note(text: str) -> None:
    """A note on stderr, of one line or more."""
    sys.stderr.write("\n".join(map(printable, text.split("\n"))) + "\n")
    sys.stderr.flush()


def print_json_lines(hits: "Sequence[Hit]") -> None:
    """Hits for a program, one JSON object a line."""
    for hit in hits:
        print(json.dumps(asdict(hit), ensure_ascii=False))


def print_hits(hits: "Sequence[Hit]") -> None:
    """Hits for a reader: rank, score, id, title, and the first line of the text."""
    width = len(str(len(hits)))
    for rank, hit in enumerate(hits, start=1):
        first_line = next(iter(hit.text.strip().splitlines()), "")
        title = f"  {hit.title}" if hit.title and hit.title != hit.id else ""
        print(printable(f"{rank:{width}}  {hit.score:.4f}  {hit.id}{title}"))
        if first_line:
            print(printable(f"{'':{width}}          {first_line[:160]}"))
    if not hits:
        note("nothing found")


class WaitNotes:
    """Says that a call is made again and why, at most once in ten seconds: under load ingestion waits all the time."""

    def __init__(self, *, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` pass between two notes, by `clock`."""
        self._seconds = seconds
        self._clock = clock
        self._told = float("-inf")

    def tell(self, pause: float, error: Exception) -> None:
        """Note a pause of so many seconds after `error`, if it is time for a note."""
        if self._clock() - self._told >= self._seconds:
            self._told = self._clock()
            note(f"trying again in {pause:.1f} s: {error}")


class NowAndThen:
    """Notes on how far long work is, where stderr is no terminal and so shows no bar: one each half minute."""

    def __init__(self, *, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Start counting; `seconds` pass between two notes, by `clock`."""
        self._seconds = seconds
        self._clock = clock
        self._told = clock()

    def tell(self, text: str) -> None:
        """Note `text`, if it is time for a note and nobody sees a bar."""
        if self._clock() - self._told >= self._seconds and not sys.stderr.isatty():
            self._told = self._clock()
            note(text)
