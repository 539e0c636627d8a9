"""What encodes parts in one process, be it the command's own or an actor's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eoseek.corpus.documents import CorpusDocument, ForwardReader, Part
from eoseek.corpus.output import Output, Recipe
from service.encoders.base import Encoder
from service.encoders.checkpoint import load_checkpoint
from service.encoders.prompt import Tokenized
from service.errors import ConfigurationError, TextTooLongError
from training.encoding import encode_by_length


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process needs to know before its first part."""

    checkpoint: str
    recipe: Recipe
    output: str
    device: str = "auto"
    threads: int = 0


class PartEncoder:
    """A loaded checkpoint that turns parts of the input into files of the output."""

    def __init__(self, job: Job) -> None:
        """Load the checkpoint.

        Raises:
            ConfigurationError: it is not here, another one, or does not run in the number format of the recipe.
        """
        recipe = job.recipe
        self._recipe = recipe
        self._contract = load_checkpoint(job.checkpoint, max_length=recipe.max_length).contract
        self._encoder = _load(job)
        self._reader = ForwardReader()
        self._output = Output(Path(job.output))
        if self._encoder.dtype != recipe.dtype:
            raise ConfigurationError(f"the encoder runs in {self._encoder.dtype}, the others in {recipe.dtype}")

    def encode(self, part: Part, *, progress: Callable[[int], object] | None = None) -> None:
        """Encode a part and write it.

        Args:
            part: parts in ascending order are read fastest.
            progress: told how many more documents are done.
        Raises:
            UnreadableError: as `ForwardReader.read`.
            TextTooLongError: a document over the limit where nothing is to be cut; names file and line.
            EncoderError: the engine failed.
            OSError: the output cannot be written.
        """
        documents = self._reader.read(part)
        tokenized = self._tokenize(part, documents)
        embeddings = encode_by_length(self._encoder, tokenized.token_ids, progress=progress)
        self._output.write_part(part.number, [each.document_id for each in documents], embeddings, tokenized.truncated)

    def _tokenize(self, part: Part, documents: list[CorpusDocument]) -> Tokenized:
        pairs = [(each.title, each.text) for each in documents]
        try:
            return self._contract.documents(pairs, truncate=self._recipe.truncate)
        except TextTooLongError as error:
            found = error.extra
            raise TextTooLongError(
                f"{part.path}:{documents[found['index']].line}: {found['num_tokens']:,} tokens, the limit is "
                f"{found['max_tokens']:,}; shorten it, or cut all such texts with --truncate, which keeps what is done"
            ) from error


def _load(job: Job) -> Encoder:
    recipe = job.recipe
    options: dict[str, Any] = {"dtype": recipe.dtype, "max_length": recipe.max_length}
    options["fingerprint"] = recipe.fingerprint
    if recipe.backend == "torch":
        from service.encoders.torch_loading import load_encoder

        return load_encoder(job.checkpoint, device=job.device, threads=job.threads, **options)
    from service.encoders.vllm_encoder import load_encoder as load_by_vllm

    return load_by_vllm(job.checkpoint, **options)
