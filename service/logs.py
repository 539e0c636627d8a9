"""What is written to stderr: lines for people, or one JSON object a line for whatever collects logs."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
REQUESTS = "eoseek.requests"  # a line for each request, too many for people: in text at level debug only
_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    """A line a message, whatever a caller put into it: a path may hold line ends and terminal control sequences."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with what does not print escaped."""
        return _escaped(super().formatMessage(record))

    def formatException(self, error: Any) -> str:
        """The traceback, indented: no line of an error's text can be taken for one of the log."""
        return "\n".join(f"  {_escaped(line)}" for line in super().formatException(error).split("\n"))


def _escaped(line: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


class JsonFormatter(logging.Formatter):
    """One object a line. What a record has as `fields` stands beside its message, a traceback under `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in ASCII, so that no terminal and no collector chokes on it."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def current_format() -> LogFormat:
    """What `configure` was told, for a child process to be told as well."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in handlers) else "text"


def configure(level: str, form: LogFormat) -> None:
    """Send the log to stderr, unless somebody set it up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # uvicorn's lines about its own start and httpx's about each call say nothing new
    quiet = ["uvicorn.error", "httpx"] if form == "json" else ["uvicorn.error", "httpx", REQUESTS]
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING if level != "debug" else logging.DEBUG)
