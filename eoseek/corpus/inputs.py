"""The files of a corpus: what they are, read once from end to end before anything is encoded, and cut into parts.

That reading finds bad lines and repeated ids in minutes rather than after days of encoding. It keeps a digest of each
id, about 100 bytes of memory a document, and is not repeated when a run is continued.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from eoseek.corpus.documents import BadDocumentError, Part, parse_document, raw_documents
from service.errors import ConfigurationError

_SHOWN_ERRORS = 10
_SURVEY_STEP = 1000


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file as it was read; the content decides, size and time spare the hashing."""

    path: str
    num_bytes: int
    modified_ns: int
    sha256: str
    num_documents: int

    def __str__(self) -> str:
        return f"{Path(self.path).name} ({self.num_bytes:,} bytes, sha256 {self.sha256[:12]})"


def survey(paths: Sequence[Path], *, progress: Callable[[int], object] = lambda _: None) -> list[InputFile]:
    """Read all files and check every document.

    Args:
        paths: `.jsonl`, `.jsonl.gz` or `.parquet`.
        progress: told documents checked so far.
    Raises:
        UnreadableError: a file that cannot be read to its end.
        BadDocumentError: names the first lines that are no documents, or whose id was there before.
        ConfigurationError: no document at all.
    """
    seen: set[bytes] = set()
    errors: list[str] = []
    files = []
    for path in paths:
        before, num_documents = _stat(path), 0
        for num_documents, (line, raw) in enumerate(raw_documents(path), start=1):
            try:
                document_id = parse_document(path, line, raw).document_id
                digest = hashlib.blake2b(document_id.encode(), digest_size=16).digest()
                if digest in seen:
                    raise BadDocumentError(f"{path}:{line}: duplicate_id: {document_id[:80]!r} was there before")
                seen.add(digest)
            except BadDocumentError as error:
                errors.append(error.detail if len(errors) < _SHOWN_ERRORS else "")
            if num_documents % _SURVEY_STEP == 1:
                progress(len(seen))
        files.append(replace(before, sha256=_sha256(path), num_documents=num_documents))
    if errors:
        more = f"\nand {len(errors) - _SHOWN_ERRORS:,} more" if len(errors) > _SHOWN_ERRORS else ""
        shown = "\n".join(errors[:_SHOWN_ERRORS])
        raise BadDocumentError(f"{len(errors):,} lines are no documents; correct or remove them:\n{shown}{more}")
    if not seen:
        raise ConfigurationError(f"{', '.join(map(str, paths))}: no document")
    return files


def recognize(paths: Sequence[Path], known: Sequence[InputFile]) -> list[InputFile] | None:
    """The same files again, wherever they are now, or None if their content is another."""
    if len(paths) != len(known):
        return None
    found = []
    for path, before in zip(paths, known, strict=True):
        now = _stat(path)
        is_untouched = (now.num_bytes, now.modified_ns) == (before.num_bytes, before.modified_ns)
        if not is_untouched and (now.num_bytes != before.num_bytes or _sha256(path) != before.sha256):
            return None
        found.append(replace(before, path=now.path, modified_ns=now.modified_ns))
    return found


def describe(paths: Sequence[Path]) -> str:
    """Files as they are now, for a message."""
    return ", ".join(str(replace(_stat(path), sha256=_sha256(path))) for path in paths)


def cut(files: Sequence[InputFile], *, part_size: int) -> Iterator[Part]:
    """Parts of `part_size` documents, in order; the last one of a file is shorter."""
    numbers = count()
    for file in files:
        for start in range(0, file.num_documents, part_size):
            stop = min(start + part_size, file.num_documents)
            yield Part(number=next(numbers), path=file.path, start=start, stop=stop)


def _stat(path: Path) -> InputFile:
    stat = path.stat()
    place = str(path.resolve())
    return InputFile(path=place, num_bytes=stat.st_size, modified_ns=stat.st_mtime_ns, sha256="", num_documents=0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
