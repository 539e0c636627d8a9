"""What of a re-index must outlast the process, in one small file: which checkpoints, which options, which target."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter

from service.errors import ConfigurationError, StoreError
from service.paths import write_json


class Record(BaseModel):
    """What a restart needs to know of a collection; all paths are of checkpoints, by fingerprint."""

    checkpoints: dict[str, str]
    source: str | None = None
    target: str | None = None  # of a re-index that is not at its end
    truncate: bool = False
    share: float = Field(0.5, gt=0, le=1)
    is_paused: bool = False


_RECORDS = TypeAdapter(dict[str, Record])


class Records:
    """Those of one service, by collection. A change that cannot be written is none."""

    def __init__(self, path: Path | None) -> None:
        """Empty until `read`; without a path they are kept in memory, as their store is."""
        self._path = path
        self._records: dict[str, Record] = {}

    @property
    def is_kept(self) -> bool:
        """Whether they outlast the process."""
        return self._path is not None

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._records))

    def __getitem__(self, name: str) -> Record:
        return self._records[name]

    def get(self, name: str) -> Record | None:
        """None where there is none."""
        return self._records.get(name)

    def fingerprints(self) -> set[str]:
        """Of all checkpoints that one of them names."""
        return {fingerprint for record in self._records.values() for fingerprint in record.checkpoints}

    def read(self) -> None:
        """What a process before left. Raises ConfigurationError: the file is damaged."""
        if self._path is None:
            return
        try:
            self._records = _RECORDS.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            self._records = {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self._path} is damaged; it says which checkpoints collections were re-indexed with: restore it, or "
                "delete it, which gives up re-indexes that are under way"
            ) from error

    def forget(self, name: str) -> None:
        """One whose collection is gone; the file follows with the next `save`."""
        del self._records[name]

    async def save(self, name: str, record: Record | None) -> None:
        """Set or, with None, remove one. Raises StoreError where the file cannot be written."""
        kept = {key: each for key, each in self._records.items() if key != name} | ({name: record} if record else {})
        if self._path is not None and kept != self._records:
            plain = {key: each.model_dump() for key, each in kept.items()}
            try:
                await asyncio.to_thread(write_json, self._path, plain)
            except OSError as error:
                raise StoreError(f"{self._path.name} cannot be written: {error.strerror}; make room") from error
        self._records = kept
