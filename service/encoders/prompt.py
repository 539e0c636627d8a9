"""The token contract: from texts to complete token ids, the same for serving, training and export.

One place decides template, truncation and the closing [EOS]. Tokenizing happens once, here; everything behind takes
ids. Special tokens that a user writes into a text are ordinary text: only the tokenizer's own post-processor and a
checkpoint's template place special tokens, so [EOS] stands once, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from service.errors import ConfigurationError, InvalidInputError, TextTooLongError

DEFAULT_QUERY_TEMPLATE = "Instruct: {instruction}\nQuery: {query}"
# texts of every kind: plain, empty, spaces and line ends, other scripts, emoji, long
_PROBES = ("hello world", "", " ", "two\nlines\n", "检索 検索 검색", "naïve 🙂", "x" * 300, "a, b; c." * 40)


class MissingEosError(ConfigurationError):
    """A tokenizer that does not end every text in exactly one [EOS]."""


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Complete token ids of some texts, with the indices of those that were cut."""

    token_ids: list[list[int]]
    truncated: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens in all, after truncation."""
        return sum(map(len, self.token_ids))


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a checkpoint puts around a text before it is tokenized."""

    query_template: str = DEFAULT_QUERY_TEMPLATE
    default_instruction: str = ""
    document_prefix: str = ""
    lowercase: bool = False

    def query(self, text: str, instruction: str | None) -> str:
        """The prompt of a query; an instruction of None means the default, an empty one none.

        Raises:
            InvalidInputError: an instruction for a checkpoint whose template has no place for one.
        """
        chosen = self.default_instruction if instruction is None else instruction
        if "{instruction}" not in self.query_template:
            if instruction:
                raise InvalidInputError(
                    f"instruction {instruction[:80]!r}: this checkpoint frames queries as {self.query_template!r} "
                    "and takes no instruction; leave it out"
                )
            return self.query_template.replace("{query}", text)
        if not chosen:
            return text
        before, after = self.query_template.split("{query}", 1)
        # the query is inserted last, so that braces in either text are left alone
        return before.replace("{instruction}", chosen) + text + after.replace("{instruction}", chosen)

    def document(self, title: str, text: str) -> str:
        """The text of a document; a title stands above it."""
        return self.document_prefix + (f"{title}\n\n{text}" if title else text)


class TokenContract:
    """Tokenizer, frame and length limit of one checkpoint. Thread-safe; calls block."""

    def __init__(self, tokenizer: Tokenizer, frame: Frame, *, max_length: int, eos_ids: Sequence[int] | None) -> None:
        """Check the tokenizer and take it over.

        Args:
            tokenizer: with the post-processor that places the special tokens.
            frame: what stands around queries and documents.
            max_length: tokens of a text at most, special tokens included.
            eos_ids: one of them must end every text; None when pooling does not need it.
        Raises:
            MissingEosError: texts do not end in exactly one [EOS]; the message holds the cure.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = not _has_special_token(tokenizer, frame)
        self._tokenizer = tokenizer
        self.frame = frame
        self.max_length = max_length
        self.vocabulary_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._eos_id = None if eos_ids is None else self._check_eos(eos_ids)
        self._prefix, self._suffix = self._special_ids()
        if max_length <= len(self._prefix) + len(self._suffix):
            raise ConfigurationError(f"max_length {max_length} leaves no room for a text beside its special tokens")

    def limited_to(self, max_length: int) -> "TokenContract":
        """The same contract with another limit: training sets have lengths of their own."""
        return TokenContract(self._tokenizer, self.frame, max_length=max_length, eos_ids=None)

    def queries(self, texts: Sequence[str], *, instruction: str | None = None, truncate: bool = False) -> Tokenized:
        """Token ids of queries.

        Args:
            texts: the queries, without any frame.
            instruction: the user's task sentence; None is the checkpoint's default, "" none.
            truncate: cut what is too long instead of refusing it.
        Raises:
            TextTooLongError: a text over `max_length` without `truncate`.
            InvalidInputError: an instruction that the checkpoint has no place for.
        """
        return self._tokenize([self.frame.query(text, instruction) for text in texts], truncate)

    def documents(self, texts: Sequence[tuple[str, str]], *, truncate: bool = False) -> Tokenized:
        """Token ids of documents, given as (title, text). Raises as `queries`."""
        return self._tokenize([self.frame.document(title, text) for title, text in texts], truncate)

    def token_ids(self, ids: Sequence[Sequence[int]], *, truncate: bool = False) -> Tokenized:
        """Complete foreign token ids: adds the special tokens that are missing at either end.

        Raises:
            InvalidInputError: an id outside the vocabulary, or an [EOS] that would not be the only one, at the end.
            TextTooLongError: as `queries`.
        """
        for index, sequence in enumerate(ids):
            for token in sequence:
                if not 0 <= token < self.vocabulary_size:
                    raise InvalidInputError(
                        f"input {index}: token id {token} is outside the vocabulary of {self.vocabulary_size}"
                    )
        completed = [self._completed(list(sequence)) for sequence in ids]
        for index, sequence in enumerate(completed):
            if self._eos_id is not None and sequence.count(self._eos_id) != 1:
                raise InvalidInputError(
                    f"input {index}: token id {self._eos_id} is [EOS], which ends a text exactly once; leave it out"
                )
        return self._limit(completed, truncate)

    def _completed(self, ids: list[int]) -> list[int]:
        prefix, suffix = self._prefix, self._suffix
        head = [] if ids[: len(prefix)] == prefix else prefix
        tail = [] if suffix and ids[-len(suffix) :] == suffix else suffix
        return head + ids + tail

    def _tokenize(self, texts: Sequence[str], truncate: bool) -> Tokenized:
        if self.frame.lowercase:
            texts = [text.lower() for text in texts]
        # the _fast form skips offsets, which nothing here reads
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return self._limit([encoding.ids for encoding in encodings], truncate)

    def _limit(self, token_ids: list[list[int]], truncate: bool) -> Tokenized:
        limit = self.max_length
        too_long = [index for index, ids in enumerate(token_ids) if len(ids) > limit]
        if too_long and not truncate:
            index = too_long[0]
            raise TextTooLongError(
                f"input {index} has {len(token_ids[index])} tokens, the limit is {limit}; "
                "shorten it or set truncate: true"
                + (f" ({len(too_long)} inputs are too long)" if len(too_long) > 1 else ""),
                extra={"index": index, "num_tokens": len(token_ids[index]), "max_tokens": limit},
            )
        for index in too_long:
            token_ids[index] = token_ids[index][: limit - len(self._suffix)] + self._suffix
        return Tokenized(token_ids=token_ids, truncated=too_long)

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a text."""
        bare = self._tokenizer.encode("x", add_special_tokens=False).ids
        full = self._tokenizer.encode("x", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise ConfigurationError(
            "the tokenizer's post-processor changes the text itself; it cannot be truncated safely"
        )

    def _check_eos(self, eos_ids: Sequence[int]) -> int:
        """The id that ends every text."""
        closing = self._tokenizer.encode("x", add_special_tokens=True).ids[-1]
        eos_id = closing if closing in eos_ids else eos_ids[0]
        for probe in _PROBES:
            ids = self._tokenizer.encode(probe, add_special_tokens=True).ids
            if not ids or ids[-1] != eos_id or ids.count(eos_id) != 1:
                token = self._tokenizer.id_to_token(eos_id)
                raise MissingEosError(
                    f"the tokenizer ends {probe[:20]!r} with ids {ids[-3:]}, not with exactly one [EOS] ({token!r}, "
                    f"id {eos_id}), where the embedding is read. Write it into tokenizer.json, as a TemplateProcessing "
                    f"post-processor '$A {token}'; add_eos_token in tokenizer_config.json alone has no effect"
                )
        return eos_id


def _has_special_token(tokenizer: Tokenizer, frame: Frame) -> bool:
    around = frame.query_template + frame.document_prefix + frame.default_instruction
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return any(special in around for special in specials)
