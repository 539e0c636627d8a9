"""Where an interrupted ingest continues: one small file for each file on its way into a collection."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from eoseek.client import Client, EoseekClientError
from eoseek.ingest import Counts, IngestOptions, Watermark


class ResumeState:
    """The watermark of one file on its way into one collection, kept under the user's state directory."""

    def __init__(self, path: Path, *, url: str, options: IngestOptions) -> None:
        stat = path.stat()
        self._collection = options.collection
        self._identity = [
            *(url, options.collection, options.truncate),
            *(str(path.resolve()), stat.st_size, stat.st_mtime_ns),
        ]
        name = hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:32]
        self._file = state_dir() / "ingest" / f"{name}.json"

    def load(self, client: Client) -> Watermark:
        """The watermark of an interrupted run; the beginning if there is none.

        A collection dropped since then no longer holds the last stored document, so the run starts over.
        """
        try:
            state = json.loads(self._file.read_bytes())
            watermark = Watermark(**{**state, "counts": Counts(**state["counts"])})
        except (OSError, ValueError, KeyError, TypeError):
            return Watermark()
        if watermark.document_id is not None and _is_stored(client, self._collection, watermark.document_id):
            return watermark
        return Watermark()

    def save(self, watermark: Watermark) -> None:
        """Keeps the watermark; a crash leaves the old one or the new one. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(watermark)))
        part.replace(self._file)

    def clear(self) -> None:
        """Forgets it: the file was read to its end. Raises OSError."""
        self._file.unlink(missing_ok=True)


def state_dir() -> Path:
    """Where watermarks live: `$XDG_STATE_HOME/eoseek` or `~/.local/state/eoseek`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "eoseek"


def _is_stored(client: Client, collection: str | None, document_id: str) -> bool:
    try:
        client.get_document(document_id, collection=collection)
    except EoseekClientError as error:
        if error.status == 404:
            return False
        raise
    return True
