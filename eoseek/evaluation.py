"""What `eoseek evaluate` judges: a running service, and what runs offline by `training.evaluation.systems`."""

import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eoseek.client import Client
from eoseek.progress import EncodingBar
from eoseek.terminal import NowAndThen
from service.errors import ConfigurationError
from training.evaluation.base import Found, System, by_instruction
from training.evaluation.beir import JudgedSet
from training.evaluation.metrics import drop_self
from training.search import blocks

_BATCH_SIZE = 32
_RETRY_SECONDS = 120.0
_SERVICE_TOP_K = 100
_OFFLINE_TOP_K = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Which systems are judged and how; each is made when its turn comes, so one checkpoint is in memory at a time.

    Checkpoints are `NAME=DIRECTORY`, a directory or a hub name. `url` None means that no service is judged; `top_k`
    None is 100 for a service, which may refuse more than 1,000, and 1,000 offline.
    """

    checkpoints: Sequence[str] = ()
    uses_bm25: bool = False
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    collection: str | None = None
    instruction: str | None = None
    uses_own_instructions: bool = True
    top_k: int | None = None
    max_length: int | None = None
    dtype: str = "auto"
    keep: Path | None = None
    truncate: bool = False

    @property
    def names(self) -> list[str]:
        """What the systems are called, in their order."""
        names = [system_name(each) for each in self.checkpoints]
        return ["service"] * (self.url is not None) + names + ["bm25"] * self.uses_bm25

    def check(self, sets: Sequence[JudgedSet]) -> None:
        """Refuse what would be confused or ignored without a word. Raises ConfigurationError."""
        for kind, names in (("systems", self.names), ("sets", [each.name for each in sets])):
            name, count = Counter(names).most_common(1)[0]
            if count > 1:
                way_out = "give --checkpoint NAME=DIRECTORY" if kind == "systems" else "rename one of the folders"
                raise ConfigurationError(f"{count} {kind} are called {name}; {way_out}")
        if self.collection is not None and (self.url is None or len(sets) > 1):
            raise ConfigurationError(
                "--collection is where a service holds one set; with offline or several sets, leave it out"
            )
        offline = {"--max-length": self.max_length, "--dtype": self.dtype != "auto" or None, "--keep": self.keep}
        given = [name for name, value in offline.items() if value is not None]
        if given and not self.checkpoints:
            raise ConfigurationError(f"{' and '.join(given)}: for --checkpoint only; a service has its own settings")

    def systems(self) -> Generator[System]:
        """The systems, one after the other."""
        if self.url is not None:
            with Client(self.url, api_key=self.api_key, retry_seconds=_RETRY_SECONDS) as client:
                yield ServiceSystem(
                    client,
                    collection=self.collection,
                    top_k=self.top_k or _SERVICE_TOP_K,
                    instruction=self.instruction,
                    truncate=self.truncate,
                )
        for each in self.checkpoints:
            yield from self._checkpoint(each)
        if self.uses_bm25:
            from training.evaluation.systems import Bm25System

            yield Bm25System(top_k=self.top_k or _OFFLINE_TOP_K)

    def _checkpoint(self, given: str) -> Iterator[System]:
        from training.encoding import CheckpointEmbedder
        from training.evaluation.systems import CheckpointSystem

        embedder = CheckpointEmbedder(_place(given), max_length=self.max_length, dtype=self.dtype)
        with EncodingBar(system_name(given)) as bar:
            yield CheckpointSystem(
                embedder,
                name=system_name(given),
                top_k=self.top_k or _OFFLINE_TOP_K,
                instruction=self.instruction,
                keep=self.keep,
                progress=bar.show,
            )


def system_name(given: str) -> str:
    """What a checkpoint is called in tables and files: NAME, or the last part of its place."""
    name = given.partition("=")[0] if _is_named(given) else Path(given).expanduser().absolute().name
    return re.sub(r"[\s/]+", "_", name) or "checkpoint"


def _place(given: str) -> str:
    return given.partition("=")[2] if _is_named(given) else given


def _is_named(given: str) -> bool:
    return "=" in given and not Path(given).expanduser().exists()


class ServiceSystem:
    """The collection of a service that holds a set's corpus."""

    name = "service"

    def __init__(
        self,
        client: Client,
        *,
        collection: str | None = None,
        top_k: int = _SERVICE_TOP_K,
        instruction: str | None = None,
        truncate: bool = False,
    ) -> None:
        """Take over a client.

        Args:
            client: of the service.
            collection: where the corpus is; None is one of the set's name.
            top_k: depth of the run.
            instruction: for queries that bring none of their own; None means the checkpoint's default.
            truncate: cut queries over the model's length instead of failing.
        """
        self._client = client
        self._collection = collection
        self._top_k = top_k
        self._instruction = instruction
        self._truncate = truncate

    def search(self, judged: JudgedSet) -> Found:
        """Searches every judged query, one more than `top_k` deep, since its own document is dropped."""
        queries = judged.judged
        run: dict[str, dict[str, float]] = {}
        num_truncated = 0
        lines = NowAndThen()
        for own, indices in by_instruction(queries):
            for batch in blocks([queries[index] for index in indices], _BATCH_SIZE):
                answer = self._client.search_batch(
                    [query.text for query in batch],
                    collection=self._collection or judged.name,
                    instruction=self._instruction if own is None else own,
                    top_k=self._top_k + 1,
                    with_text=False,
                    truncate=self._truncate,
                )
                num_truncated += len(answer.truncated)
                for query, hits in zip(batch, answer.results, strict=True):
                    scores = {hit.id: hit.score for hit in hits}
                    run[query.query_id] = drop_self(scores, query.query_id, top_k=self._top_k)
                lines.tell(f"{judged.name}: {len(run):,} of {len(queries):,} queries")
        return Found(run=run, top_k=self._top_k, num_truncated_queries=num_truncated)
