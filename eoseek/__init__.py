"""What users hold: the command line and the HTTP clients, `from eoseek import Client, AsyncClient`.

The names below are loaded when they are first asked for, so that `import eoseek` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eoseek.answers import EmbedAnswer, EoseekClientError, Hit, IngestAnswer, LineFailure, SearchAnswer
    from eoseek.client import AsyncClient, Client
    from eoseek.ingest import Counts, DocumentFailure, IngestReport

__all__ = [
    "AsyncClient",
    "Client",
    "Counts",
    "DocumentFailure",
    "EmbedAnswer",
    "EoseekClientError",
    "Hit",
    "IngestAnswer",
    "IngestReport",
    "LineFailure",
    "SearchAnswer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("eoseek.client"), name)
