"""What goes to the terminal: notes on stderr, and texts from elsewhere without control sequences."""

import sys


def printable(text: str) -> str:
    """One line of a text that a stranger wrote: terminal control sequences in it have no effect."""
    return "".join(character if character.isprintable() else " " for character in text)


def note(text: str) -> None:
    """A note on stderr, of one line or more."""
    sys.stderr.write("\n".join(map(printable, text.split("\n"))) + "\n")
    sys.stderr.flush()
