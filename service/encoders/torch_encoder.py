"""The torch encoder: runs anywhere, in the number format that the processor multiplies fastest, without padding.

A batch is cut into rows of about 512 tokens, sorted by length: larger rows fall out of the processor's caches. Rows of
a large enough batch run beside each other, a thread or a few each: they wait for each other once, where threads that
share a product wait after each (1.2 times faster on two cores), and a busy neighbour slows them by its share only. On
CUDA one row takes the whole batch.

A batch in the background has threads of low priority, so that the system's scheduler, and no one's patience, puts a
query before it; with fused layers it also pauses between two of them while there is a query.
"""

import logging
import math
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from service.encoders.base import Embeddings, Pooling, PrefixFigures, TokenIds
from service.encoders.fused import FusedDecoder
from service.encoders.packed import Model, Prefix, enable_packing, is_packed_only, packed_forward, padded_forward
from service.encoders.pooling import pool
from service.encoders.prefixes import MIN_TOKENS, PrefixCache
from service.errors import ConfigurationError, EncoderError

log = logging.getLogger(__name__)

CPU_ROW_TOKENS = 512
CUDA_ROW_TOKENS = 65536
DELICATE_TOKENS = 4
_SHARED_ROW_TOKENS = 256  # of a row that all threads share: in larger ones oneDNN's products round otherwise
_MIN_ROW_TOKENS = 128  # of rows beside each other; shorter ones are faster with all threads on one
_BACKGROUND_NICENESS = 10  # a tenth of a busy core's time: what is in the background goes on, whatever comes before it
_MAX_PAUSE_SECONDS = 0.05  # before each layer in the background: it goes on, whatever comes before it
_MIN_SELF_COSINE = {"float32": 0.99999, "int16": 0.999, "bfloat16": 0.995}


@dataclass(frozen=True)
class _Text:
    """A text of a row: what it continues from, or of how many first tokens it leaves the states for others."""

    ids: TokenIds
    prefix: Prefix | None = None
    num_kept: int = 0

    @property
    def rest(self) -> TokenIds:
        """What is calculated of it."""
        return self.ids[self.prefix.length :] if self.prefix else self.ids


class TorchEncoder:
    """An `Encoder` on a model of transformers' or on our own `Decoder`."""

    def __init__(
        self,
        model: Model,
        *,
        pooling: Pooling,
        dimension: int,
        row_tokens: int,
        prefix_cache_tokens: int = 0,
        in_integers: bool = False,
    ) -> None:
        """Take over a model in evaluation mode.

        Args:
            model: on its device, in its dtype.
            pooling: from token states to an embedding.
            dimension: length of an embedding.
            row_tokens: tokens of one packed row; a longer text gets a row of its own.
            prefix_cache_tokens: of shared openings whose states are kept, 0 for none. A token takes two vectors of all
                key heads a layer: layers * 2 * key heads * head size * 2 bytes in bfloat16, 23 KB for SmolLM2-135M.
            in_integers: products in 16-bit integers, where there are such for this model in float32.
        """
        self._model: Any = model
        self._pooling = pooling
        self._dimension = dimension
        self._row_tokens = row_tokens
        self._forward = packed_forward if enable_packing(model) else padded_forward
        self._fused = FusedDecoder.of(model, in_integers=in_integers) if pooling == "last_token" else None
        self._in_integers = in_integers and self._fused is not None
        is_kept = prefix_cache_tokens >= MIN_TOKENS and pooling == "last_token" and self._forward is packed_forward
        self._prefixes = PrefixCache(prefix_cache_tokens) if is_kept and _can_continue(model) else None
        self._num_threads = torch.get_num_threads() if model.device.type == "cpu" else 1
        self._is_quiet = threading.Event()
        self._is_quiet.set()
        # of rows that have one thread each
        self._threads = _threads(self._num_threads, is_background=False)
        self._background_threads = _threads(self._num_threads, is_background=True)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._dimension

    @property
    def dtype(self) -> str:
        """Number format of the products: `int16` for integers, else that of the weights."""
        if self._in_integers and self._fused is not None:
            return "int16"
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def has_background(self) -> bool:
        """See `BackgroundEncoder.has_background`: only Linux knows the priority of a thread, and a GPU none."""
        return bool(sys.platform == "linux" and self._model.device.type == "cpu")

    def encode_in_background(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `BackgroundEncoder.encode_in_background`."""
        with _threads(1, is_background=True) as alone:
            return alone.submit(self._encode, token_ids, is_background=True).result()

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """See `Encoder.encode`."""
        self._is_quiet.clear()
        try:
            return self._encode(token_ids, is_background=False)
        finally:
            self._is_quiet.set()

    def _let_pass(self) -> None:
        """Wait, in the background, while there is a batch that is not.

        Low priority alone let one query in twenty wait 100 to 200 ms, as threads wait awake, and for Python's lock.
        """
        self._is_quiet.wait(_MAX_PAUSE_SECONDS)

    def _encode(self, token_ids: Sequence[TokenIds], *, is_background: bool) -> Embeddings:
        embeddings = np.empty((len(token_ids), self._dimension), dtype=np.float32)
        texts = [_Text(ids) for ids in token_ids]
        by_length = sorted(range(len(token_ids)), key=lambda index: len(token_ids[index]))
        delicate = self._num_delicate([len(token_ids[index]) for index in by_length])
        self._encode_into(embeddings, texts, by_length[:delicate], is_background, is_widened=True)
        others = by_length[delicate:]
        if self._prefixes is not None:
            # first the texts whose openings are kept, so that the others continue from them
            openings = self._prefixes.learn(token_ids)
            texts = [_Text(ids, num_kept=openings.get(index, 0)) for index, ids in enumerate(token_ids)]
            self._encode_into(embeddings, texts, [index for index in others if index in openings], is_background)
            others = [index for index in others if index not in openings]
            for index, prefix in zip(others, self._prefixes.find([token_ids[i] for i in others]), strict=True):
                texts[index] = _Text(token_ids[index], prefix)
            others.sort(key=lambda index: (id(texts[index].prefix), len(texts[index].rest)))
        self._encode_into(embeddings, texts, others, is_background)
        if not np.isfinite(embeddings).all():
            raise EncoderError(
                "the model gave an embedding that is not finite; the checkpoint or the dtype does not fit"
            )
        return embeddings

    def _num_delicate(self, lengths: list[int]) -> int:
        """How many of these ascending lengths are so short that [EOS] may be about to become an attention sink.

        The first token of a text becomes one within a single layer; for [EOS] right behind it that layer may magnify a
        difference a thousandfold, and its state is the embedding. Of one-word texts on SmolLM2-135M, `HIV` came out of
        bfloat16 with cosine 0.81 to float32, and float32 vectors depended on their batch by 1e-4.
        """
        return bisect_right(lengths, DELICATE_TOKENS) if self._pooling == "last_token" else 0

    def _encode_into(
        self,
        embeddings: Embeddings,
        texts: list[_Text],
        order: list[int],
        is_background: bool,
        *,
        is_widened: bool = False,
    ) -> None:
        """Encode the texts of these indices, in rows of neighbours, on this thread or on others."""

        def encode_row(row: list[int]) -> Embeddings:
            return self._encode_row([texts[index] for index in row], is_background, is_widened=is_widened)

        lengths = [len(text.rest) for text in texts]
        num_beside = self._num_rows_beside([lengths[index] for index in order])
        if num_beside == 1 or any(texts[index].num_kept for index in order):  # what is kept is written by one thread
            is_fused = self._fused is not None and not is_widened
            for row in _rows(
                order, lengths, min(self._row_tokens, _SHARED_ROW_TOKENS) if is_fused else self._row_tokens
            ):
                embeddings[row] = encode_row(row)
            return

        threads_each = self._num_threads // num_beside

        def encode_beside(row: list[int]) -> Embeddings:
            torch.set_num_threads(threads_each)
            return encode_row(row)

        rows = _even_rows(order, lengths, self._row_tokens, num_beside)
        try:
            with ExitStack() as stack:
                threads = self._background_threads if is_background else self._threads
                if threads_each > 1:
                    threads = stack.enter_context(_threads(num_beside, is_background=is_background))
                for row, part in zip(rows, threads.map(encode_beside, rows), strict=True):
                    embeddings[row] = part
        finally:
            torch.set_num_threads(self._num_threads)  # threads that begin later would take the last that was set

    def _num_rows_beside(self, lengths: list[int]) -> int:
        """How many rows to calculate at a time: so many that none is short and no text is longer than its share."""
        if not lengths:
            return 1
        num_tokens = sum(lengths)
        return max(1, min(self._num_threads, num_tokens // _MIN_ROW_TOKENS, num_tokens // max(lengths)))

    def _encode_row(self, texts: list[_Text], is_background: bool, *, is_widened: bool = False) -> Embeddings:
        rests = [text.rest for text in texts]
        options: dict[str, Any] = {}
        if any(text.prefix is not None for text in texts):
            options["prefixes"] = [text.prefix for text in texts]
        kept = {index: Prefix(text.num_kept) for index, text in enumerate(texts) if text.num_kept}
        if kept:
            options["keep"] = kept
        try:
            with torch.inference_mode():
                if self._fused is not None and not is_widened:
                    before_layer = self._let_pass if is_background else None
                    last_ND = self._fused(rests, before_layer=before_layer, **options)
                    embeddings = pool(last_ND, [1] * len(rests), "last_token").numpy()
                else:
                    # next to integers the weights' own float32 is the wider format
                    is_wider = is_widened and not self._in_integers
                    hidden_TD = self._forward(self._model, rests, is_widened=is_wider, **options)
                    embeddings = pool(hidden_TD, [len(ids) for ids in rests], self._pooling).cpu().numpy()
            for index, prefix in kept.items():
                # states that are no numbers would spoil every text after this one
                if self._prefixes is not None and np.isfinite(embeddings[index]).all():
                    self._prefixes.keep(texts[index].ids, prefix)
            return cast(Embeddings, embeddings)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(texts) == 1:
                raise EncoderError(f"a text of {len(texts[0].ids)} tokens does not fit in memory") from error
        # outside the handler, whose traceback holds the tensors that did not fit
        half = len(texts) // 2
        parts = texts[:half], texts[half:]
        return np.concatenate([self._encode_row(each, is_background, is_widened=is_widened) for each in parts])

    def take_prefix_figures(self) -> PrefixFigures:
        """See `PrefixEncoder.take_prefix_figures`."""
        return PrefixFigures() if self._prefixes is None else self._prefixes.take_figures()

    def check(self, token_ids: list[list[int]]) -> None:
        """Contract check: one text alone, through the model's own attention == in a batch == from the prefix cache.

        Our own `Decoder` has packed attention only; `probes` hold it against what transformers' code gave. A family for
        which the fused layers are wrong falls back to the model's own, one for which packing is to padding, one that
        cannot continue from a prefix to whole texts, each with a warning.

        Args:
            token_ids: probe texts of different lengths.
        Raises:
            ConfigurationError: not even padded batches give the vectors of single texts.
        """
        prefixes, self._prefixes = self._prefixes, None
        self._check_packing(token_ids)
        if prefixes is not None and self._forward is not padded_forward and self._check_prefixes(token_ids, prefixes):
            self._prefixes = PrefixCache(prefixes.max_tokens)  # without what the check kept

    def _check_packing(self, token_ids: list[list[int]]) -> None:
        family = self._model.config.model_type
        fused, self._fused = self._fused, None
        forward = self._forward
        if is_packed_only(self._model) and fused is not None:
            single = np.concatenate([self.encode([ids]) for ids in token_ids])
            if self._check_fused(fused, token_ids, single):
                return
        in_integers, self._in_integers = self._in_integers, False
        packed = self.encode(token_ids)
        if is_packed_only(self._model):
            single = np.concatenate([self.encode([ids]) for ids in token_ids])
            if not self._agree(packed, single):
                raise _depends_on_batch(family, packed, single)
            return
        if forward is packed_forward:
            self._model.set_attn_implementation("sdpa" if self._model._supports_sdpa else "eager")
        self._forward = padded_forward
        single = np.concatenate([self.encode([ids]) for ids in token_ids])
        if self._agree(packed, single):
            self._forward = forward
            if forward is packed_forward:
                enable_packing(self._model)
            self._in_integers = in_integers
            self._check_fused(fused, token_ids, single)
            return
        if forward is packed_forward and self._agree(self.encode(token_ids), single):
            log.warning("%s: packing changes its vectors, so batches are padded", family)
            return
        raise _depends_on_batch(family, packed, single)

    def _check_fused(self, fused: FusedDecoder | None, token_ids: list[list[int]], single: Embeddings) -> bool:
        """Whether there are fused layers that give a batch the vectors of single texts; they are taken then."""
        if fused is None:
            return False
        cause = "change its vectors"
        try:
            self._fused = fused
            if self._agree(self.encode(token_ids), single):
                return True
        except Exception as error:  # a trial, as below
            cause = f"fail ({type(error).__name__}: {error})"
        self._fused, self._in_integers = None, False
        family = self._model.config.model_type
        log.warning("%s: the fused layers %s, so the model's own encode", family, cause)
        return False

    def _check_prefixes(self, token_ids: list[list[int]], prefixes: PrefixCache) -> bool:
        """Whether texts that continue from kept states get the vectors that they have alone."""
        opening = (max(token_ids, key=len)[:-1] * MIN_TOKENS)[: min(3 * MIN_TOKENS, prefixes.max_tokens)]
        texts = [opening + ids for ids in token_ids]
        cause = "changes its vectors"
        try:
            whole = np.concatenate([self.encode([ids]) for ids in texts])
            self._prefixes = prefixes
            self.encode(texts)
            if self._agree(self.encode(texts), whole):
                return True
        except Exception as error:  # a trial: what goes wrong here goes wrong nowhere else
            cause = f"fails ({type(error).__name__}: {error})"
        self._prefixes = None
        log.warning(
            "%s: continuing from a prefix %s, so every text is calculated whole", self._model.config.model_type, cause
        )
        return False

    def _agree(self, left: Embeddings, right: Embeddings) -> bool:
        return bool((left * right).sum(axis=1).min() >= _MIN_SELF_COSINE.get(self.dtype, 0.995))


def _depends_on_batch(family: str, packed: Embeddings, single: Embeddings) -> ConfigurationError:
    worst = float((packed * single).sum(axis=1).min())
    return ConfigurationError(
        f"contract check: a text's vector depends on its batch (cosine {worst:.5f}); "
        f"the family {family} is not supported"
    )


def _threads(count: int, *, is_background: bool) -> ThreadPoolExecutor:
    """Threads for rows. Those that share a product with others must end with their batch.

    OpenMP keeps the others of each thread that ever shared one, and once all these are more than cores, none of them
    waits awake for its next part any more: after one document in the background a query took 48 to 65 ms instead of 29.
    """
    name = "background" if is_background else "row"
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_give_way if is_background else None)


def _give_way() -> None:
    """Let this thread, and those that it starts for its products, run in what others leave."""
    if sys.platform == "linux":
        os.nice(_BACKGROUND_NICENESS)  # there of the thread, on other systems of the process


def _rows(order: list[int], lengths: Sequence[int], row_tokens: int) -> Iterator[list[int]]:
    row: list[int] = []
    tokens = 0
    for index in order:
        if row and tokens + lengths[index] > row_tokens:
            yield row
            row, tokens = [], 0
        row.append(index)
        tokens += lengths[index]
    if row:
        yield row


def _even_rows(order: list[int], lengths: Sequence[int], row_tokens: int, num_beside: int) -> list[list[int]]:
    """Neighbours in rows of about equal size, none over `row_tokens` but of one text; the longest texts come first.

    There are `num_beside` times a whole number of them, and a further one for each that would have been too long.
    """
    num_tokens = sum(lengths[index] for index in order)
    num_rows = math.ceil(num_tokens / (row_tokens * num_beside)) * num_beside
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    before = 0
    for index in order:
        middle = before + lengths[index] / 2
        rows[int(middle * num_rows / num_tokens)].append(index)
        before += lengths[index]
    return [part for row in reversed(rows) for part in reversed(list(_rows(row, lengths, row_tokens)))]


def _can_continue(model: Model) -> bool:
    """Whether the states of first tokens are the same whatever follows, as far as a model says so of itself."""
    if any(getattr(module, "is_causal", None) is False for module in model.modules()):
        return False
    # these rotate by the longest text of the row, so that states of one row do not fit into another
    rope = getattr(model.config, "rope_parameters", None) or {}
    kinds = {each.get("rope_type") for each in [rope, *rope.values()] if isinstance(each, dict)}
    return not kinds & {"dynamic", "longrope"}
