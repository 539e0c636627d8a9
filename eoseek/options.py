"""The options that several commands share, and what is read from options, files, stdin and the environment.

All of it raises ConfigurationError, with the value, for what is wrong.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from service.settings import Settings


def _read_key(option: str | None) -> str | None:
    if option is None or not option.startswith("@"):
        return option
    return readable_file(Path(option[1:])).read_text("ascii", errors="replace").strip()


URL = "http://127.0.0.1:8080"  # eoseek.client.DEFAULT_URL, which costs an import of httpx
Url = Annotated[str, typer.Option(envvar="EOSEEK_URL", help="Where the service listens.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="EOSEEK_API_KEY",
        callback=_read_key,
        show_default=False,
        help="Key of the service; @FILE reads it from there. Better by the variable: others see an option in `ps`.",
    ),
]
Collection = Annotated[str | None, typer.Option(help="Default: the service's own default collection.")]
Instruction = Annotated[str | None, typer.Option(help="The task in a sentence; default: the checkpoint's; '': none.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, max=10_000, help="Documents in one request.")]
Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")]
Truncate = Annotated[bool, typer.Option(help="Cut texts over the model's length instead of refusing them.")]


def read_settings() -> "Settings":
    """Those of EOSEEK_* variables."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_refused_setting, error.errors()))) from None  # the cause shows keys
    except SettingsError as error:
        raise ConfigurationError(str(error)) from error


def readable_file(path: Path) -> Path:
    """The same path, of a file that can be read."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{path}: not readable")
    return path


def json_object(text: str) -> dict[str, Any]:
    """That `--filter` gives."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--filter is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f'--filter must be a JSON object such as {{"must": [...]}}, not {text}')
    return value


def stdin_lines() -> Iterator[str]:
    """Without their ends; an empty one is refused."""
    number = 0
    try:
        for number, line in enumerate(sys.stdin, start=1):
            if not line.strip():
                raise ConfigurationError(f"stdin:{number}: the line is empty; every line is one text")
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"stdin: not UTF-8 after line {number:,}") from error


def _refused_setting(error: "ErrorDetails") -> str:
    """Variable, value and reason; not the value of a whole group, nor of what holds a key, nor under an unknown name,
    which may be a misspelt one of a key."""
    place = list(map(str, error["loc"]))
    is_unknown = error["type"] == "extra_forbidden"
    is_hidden = is_unknown or isinstance(error["input"], dict) or not {"keys", "api_key"}.isdisjoint(place)
    shown = "" if is_hidden else f"={error['input']!r}"
    reason = "there is no such setting" if is_unknown else error["msg"]
    return f"EOSEEK_{'__'.join(place).upper()}{shown}: {reason}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
