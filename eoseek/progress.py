"""Progress of work on a corpus in this process, on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eoseek.terminal import NowAndThen


class EncodingBar:
    """A progress bar on stderr for each corpus that is read or encoded; without a terminal, a line now and then."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self._lines = NowAndThen()

    def __enter__(self) -> "EncodingBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def show(self, done: int, total: int | None) -> None:
        """Set the bar to `done` of `total` documents, or of nobody knows how many."""
        if self._bar is None:
            console = Console(stderr=True)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
            )
            self._bar.add_task(self._label)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        of = "" if total is None else f" of {total:,}"
        self._lines.tell(f"{self._label}: {done:,}{of} documents")
        if done == total:
            self.__exit__(None, None, None)
