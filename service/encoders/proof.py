"""Whether an upstream serves the checkpoint: its vectors held against those that were recorded at export.

All probes at once take a moment and say how well it agrees; one of them, the canary, goes with every batch.
"""

import logging

import numpy as np

from service.encoders.base import Embeddings, TokenIds
from service.encoders.checkpoint import Checkpoint
from service.encoders.probes import MIN_COSINE, PROBES, Probes, read_probes
from service.encoders.upstream import Upstream, UpstreamFault
from service.errors import ConfigurationError

log = logging.getLogger(__name__)

# shorter ones say less about pooling, and the torch engine calculates them a precision higher, which takes longer
_MIN_CANARY_TOKENS = 5


class Proof:
    """What upstreams of one checkpoint are held against."""

    def __init__(self, checkpoint: Checkpoint, *, is_on_trust: bool) -> None:
        """Read what is recorded.

        Args:
            checkpoint: whose vectors are looked for.
            is_on_trust: where none are recorded, record those of the first upstream.
        Raises:
            ConfigurationError: none are recorded, and nobody said to trust.
        """
        self._checkpoint = checkpoint
        self._probes = _probes(checkpoint, is_on_trust=is_on_trust)
        lengths = [len(ids) for ids in self._probes.token_ids]
        long_enough = [length for length in lengths if length >= _MIN_CANARY_TOKENS]
        self._canary = lengths.index(min(long_enough, default=max(lengths)))

    @property
    def canary(self) -> TokenIds:
        """The probe that goes with every batch."""
        return self._probes.token_ids[self._canary]

    def check_canary(self, vector: Embeddings) -> None:
        """Hold the canary's embedding, of unit length, against its recorded one. Raises UpstreamFault."""
        _check(self._probes.texts[self._canary], float(vector @ self._probes.vectors[self._canary]))

    async def hold(self, upstream: Upstream, *, is_new: bool) -> float:
        """Embed all probes.

        Args:
            upstream: to be proven.
            is_new: whether it has to show how long texts may be, if it does not say so.
        Returns:
            The lowest cosine.
        Raises:
            UpstreamFault: it does not answer, or serves something else.
        """
        dimension, limit = self._checkpoint.dimension, self._checkpoint.max_length
        max_length = await upstream.describe()
        if max_length is not None and max_length < limit:
            raise UpstreamFault(
                "wrong",
                f"takes texts of {max_length} tokens, this service up to {limit}; start it with as many, or set "
                f"EOSEEK_ENCODER__MAX_LENGTH={max_length}",
            )
        encoded = unit_length(await upstream.embed(self._probes.token_ids, dimension=dimension))
        if not len(self._probes.vectors):
            self._probes = Probes(texts=self._probes.texts, token_ids=self._probes.token_ids, vectors=encoded)
        text, cosine = self._probes.worst(encoded)
        _check(text, cosine)
        if max_length is None and is_new:
            await self._show_length(upstream, limit)
        return cosine

    async def _show_length(self, upstream: Upstream, limit: int) -> None:
        """See that the longest text is taken whole."""
        longest = self._checkpoint.contract.documents([("", "a " * limit)], truncate=True).token_ids
        try:
            await upstream.embed(longest, dimension=self._checkpoint.dimension)
        except UpstreamFault as fault:
            if fault.kind != "refused":
                raise
            cause = f"{fault.cause}, for a text of {limit} tokens; set EOSEEK_ENCODER__MAX_LENGTH to what it takes"
            raise UpstreamFault("wrong", cause, words=fault.words) from fault


def unit_length(embeddings: Embeddings) -> Embeddings:
    """Rows scaled to unit length, whatever they had: direction is what probes prove. NaN where there is none."""
    rows = embeddings.astype(np.float64)  # the square of a large float32 would be infinite
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled: Embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _probes(checkpoint: Checkpoint, *, is_on_trust: bool) -> Probes:
    recorded = read_probes(checkpoint.contract, checkpoint.probes, dimension=checkpoint.dimension)
    if recorded.texts:
        return recorded
    if not is_on_trust:
        raise ConfigurationError(
            f"checkpoint {checkpoint.name} records no vectors in its eoseek.json, so nothing shows that upstreams "
            "serve it; `eoseek export` records them. EOSEEK_ENCODER__TRUST_URLS=true takes the first on trust"
        )
    log.warning("EOSEEK_ENCODER__TRUST_URLS is on: nothing shows that upstreams serve %s", checkpoint.name)
    token_ids = checkpoint.contract.documents([("", text) for text in PROBES], truncate=True).token_ids
    return Probes(texts=PROBES, token_ids=token_ids, vectors=np.empty((0, checkpoint.dimension), dtype=np.float32))


def _check(text: str, cosine: float) -> None:
    if not cosine >= MIN_COSINE:
        raise UpstreamFault(
            "wrong",
            f"embeds {text[:40]!r} with cosine {cosine:.3f} to the vector recorded with the checkpoint, below "
            f"{MIN_COSINE}: it serves another model, or pools otherwise",
        )
