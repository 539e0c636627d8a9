"""Backups as the command line makes and restores them: in a file beside the last one until it was read back whole."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from eoseek.client import Client
from eoseek.terminal import NowAndThen
from service.errors import ConfigurationError
from service.store import backup


def save(client: Client, file: Path) -> backup.Manifest:
    """Fetch a backup into `file`, which is replaced in one step when its checksums were compared.

    Raises:
        ConfigurationError: `file` cannot be written, or what came is not whole; a file that was there is as it was.
        EoseekClientError: the service refuses, or was lost on the way.
    """
    told = NowAndThen()
    with _bar() as bar, _beside(file) as part:
        task = bar.add_task("backup", total=None)
        with part.open("wb") as target, client.backup() as blocks:
            for block in blocks:
                target.write(block)
                told.tell(f"backup: {target.tell():,} bytes")
                bar.update(task, advance=len(block))
            target.flush()
            os.fsync(target.fileno())
        bar.update(task, total=bar.tasks[task].completed)
        task = bar.add_task("check", total=backup.num_bytes(part))
        manifest = backup.check(part, _shown(bar, task, told))
        part.replace(file)
    return manifest


def restore(file: Path, store: Path, *, fingerprint: str | None) -> list[backup.SavedCollection]:
    """`service.store.backup.restore` behind a progress bar."""
    with _bar() as bar:
        task = bar.add_task("restore", total=backup.num_bytes(file))
        return backup.restore(file, store, fingerprint=fingerprint, on_read=_shown(bar, task, NowAndThen()))


def _shown(bar: Progress, task: TaskID, told: NowAndThen) -> backup.Progress:
    """What moves a bar on, and says so now and then where it is not seen."""

    def on_read(num_bytes: int) -> None:
        bar.update(task, advance=num_bytes)
        shown = bar.tasks[task]
        told.tell(f"{shown.description}: {shown.completed:,.0f} of {shown.total or 0:,.0f} bytes")

    return on_read


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A path in the same folder that is gone in the end."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.absolute().parent)
        os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from error
    try:
        yield Path(name)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}; no half file is left") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
