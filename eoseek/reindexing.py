"""Waiting for a re-index, with a progress bar on stderr."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eoseek.answers import Json
from eoseek.client import Client

_POLL_SECONDS = 1.0
_UNSETTLED = ("loading", "copying")


def wait_until_settled(client: Client, collection: str, *, sleep: Callable[[float], object] = time.sleep) -> Json:
    """How a re-index stands once nothing is left to encode, or it is paused or has failed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("re-indexing", total=None)
        while True:
            state = client.describe_reindex(collection)
            done = state["documents"] - state["remaining"]
            bar.update(task, total=state["documents"], completed=max(0, done), description=state["stage"])
            is_working = state["stage"] in _UNSETTLED or (
                state["stage"] in ("ready", "switched") and state["remaining"]
            )
            if not is_working:
                return state
            sleep(_POLL_SECONDS)
