"""Loading as the command line shows it: a progress bar and the refused lines on stderr, and what came of it all."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eoseek import demo
from eoseek.client import Client
from eoseek.ingest import Counts, IngestOptions, Watermark, ingest_lines
from eoseek.lines import Line, read_lines
from eoseek.resume import ResumeState
from eoseek.terminal import NowAndThen, note, printable


@dataclass
class Loading:
    """Files, stdin or the demo into one collection; `counts` holds what is acknowledged, also after an interrupt."""

    client: Client
    options: IngestOptions
    is_resumable: bool = True

    def __post_init__(self) -> None:
        self.counts = Counts()
        self.num_resumed = 0
        self._console = Console(stderr=True, soft_wrap=True)

    def load_files(self, paths: Sequence[Path | None]) -> None:
        """Loads one file after the other; None is stdin, which cannot be resumed."""
        self._create_collection()
        for path in paths:
            state = self._state(path)
            start = state.load(self.client) if state else Watermark()
            lines = read_lines(path, sys.stdin.buffer)
            keep = self._keeper(state)
            self._load(lines, str(path or "stdin"), path.stat().st_size if path else None, start, keep)
            if state:
                with suppress(OSError):
                    state.clear()

    def load_demo(self) -> None:
        """Loads the standard library's docstrings."""
        self._create_collection()
        documents = demo.standard_library_documents()
        if not self._console.is_terminal:  # where a bar would show how many there are
            note(f"indexing {len(documents):,} documents of the standard library")
        lines = (
            Line(number, json.dumps(document.as_json()).encode(), number)
            for number, document in enumerate(documents, start=1)
        )
        self._load(lines, "standard library", len(documents), Watermark(), lambda _: None)

    def summary(self, seconds: float) -> str:
        """The closing line: counts, seconds, rate. Documents of an interrupted run count, but not for the rate."""
        counts = self.counts
        earlier = f" ({self.num_resumed:,} of them in an earlier run)" if self.num_resumed else ""
        parts = [f"{counts.read:,} read{earlier}", f"{counts.indexed:,} indexed", f"{counts.unchanged:,} unchanged"]
        parts += [f"{counts.failed:,} failed"]
        parts += [f"{counts.truncated:,} truncated"] if counts.truncated else []
        rate = (counts.read - self.num_resumed) / max(seconds, 1e-9)
        into = f"collection {self.options.collection}" if self.options.collection else "default collection"
        return f"{into}: {', '.join(parts)}; {seconds:.1f} s, {rate:,.1f} documents/s"

    def _create_collection(self) -> None:
        if self.options.collection:
            self.client.create_collection(self.options.collection)

    def _state(self, path: Path | None) -> ResumeState | None:
        if path is None or not self.is_resumable:
            return None
        return ResumeState(path, url=self.client.url, options=self.options)

    def _keeper(self, state: ResumeState | None) -> Callable[[Watermark], None]:
        """Saves watermarks; where that cannot be done, says so once and goes on without."""
        kept_by = state

        def keep(watermark: Watermark) -> None:
            nonlocal kept_by
            if kept_by is None:
                return
            try:
                kept_by.save(watermark)
            except OSError as error:
                kept_by = None
                self._print(f"an interrupted run will start over, since its place cannot be kept: {error}")

        return keep

    def _load(
        self, lines: Iterable[Line], name: str, total: int | None, start: Watermark, keep: Callable[[Watermark], None]
    ) -> None:
        before = replace(self.counts)
        self.num_resumed += start.counts.read
        told = NowAndThen()
        with self._bar() as bar:
            task = bar.add_task(name, total=total, completed=start.position, documents=start.counts.read)

            def on_progress(watermark: Watermark) -> None:
                self.counts = replace(before)
                self.counts.add(watermark.counts)
                bar.update(task, completed=watermark.position, documents=watermark.counts.read)
                told.tell(f"{name}: {watermark.counts.read:,} documents")
                keep(watermark)

            on_progress(start)
            ingest_lines(
                self.client, lines, self.options, on_failure=self._printer(name), on_progress=on_progress, start=start
            )
            bar.update(task, completed=total)

    def _printer(self, name: str) -> Callable[[int, str], None]:
        return lambda number, reason: self._print(f"{name}:{number}: {reason}")

    def _print(self, line: str) -> None:
        self._console.print(printable(line), markup=False, highlight=False, emoji=False)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[documents]:,} documents"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
