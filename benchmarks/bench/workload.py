"""The texts of a run: seeded, each of them sent to an engine once, kept in a file that another run can read.

Texts are made of common English words, about a token each, so that lengths in tokens come out as asked and depend on
neither a data set nor a Python version. Speed does not depend on what a text says. Real texts are a set of their own.
"""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INSTRUCTION = (
    "Given a question that a reader of the newspaper sent, find the one article of the last "
    "ten years that answers it best, whatever words it may use"
)
"""Thirty tokens of SmolLM2's tokenizer."""
MEAN_TOKENS, SPREAD, MAX_TOKENS = 131, 0.75, 900
LONG_TOKENS = (2048, 4096, 8000)
_WORDS = (
    "the of and to in is was for on that with as it by from at his an were are which this be has had first their "
    "one its new after but who not they have her she two been other when there all into more also during time he "
    "over such between city some state years can most only world war about part year then made known well where "
    "under many area than being through later before up would water three people several states name became used "
    "south team use no high him number these both each house second found film set band family game district early "
    "while including against until since system county music town river north began line won members same "
    "government place season west so company because common form large group population album small long show "
    "service called great public center school day national life home series land book end major law force station "
    "air east built party local power song development green very named church often death written best main four "
    "general late order old club white left work history language open building island black red field road light "
    "play lost art street free body region king country human son case point university story court village back "
    "office player police army study period "
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many texts of each kind; all but `documents` are for one round, which is a part of the documents."""

    documents: int = 256
    queries: int = 256
    instructed: int = 128
    single_queries: int = 32
    searches: int = 64
    paced_queries: int = 100
    ingested: int = 144
    real: int = 6
    long_tokens: tuple[int, ...] = LONG_TOKENS
    warm_up_tokens: tuple[int, ...] = (10,) * 16 + (40,) * 8 + (131,) * 4 + (600,)


QUICK = Sizes(
    documents=6,
    queries=16,
    instructed=16,
    single_queries=3,
    searches=6,
    paced_queries=25,
    ingested=4,
    real=1,
    long_tokens=(256, 512, 1024),
    warm_up_tokens=(10,) * 8 + (40,),
)


@dataclass(frozen=True)
class Workload:
    """Sets of texts by name, one list a round; `warm-up` has texts that no round has."""

    seed: int
    sets: dict[str, list[list[str]]]

    def texts(self, name: str, number: int) -> list[str]:
        """What set `name` has for a round, counted from 0."""
        return self.sets[name][number]

    def all(self, name: str) -> list[str]:
        """A set's texts over all rounds."""
        return [text for texts in self.sets[name] for text in texts]

    @property
    def num_rounds(self) -> int:
        return len(self.sets["documents"])

    @property
    def fingerprint(self) -> str:
        """sha256 over all texts: runs with equal ones did the same work."""
        return hashlib.sha256(json.dumps(self.sets, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Workload:
    """Raises ValueError for a file that is no workload."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Workload(seed=content["seed"], sets=content["sets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a workload ({error!r}); leave --workload out to make one") from None


def make(sizes: Sizes, *, num_rounds: int, seed: int = 11, real: Sequence[str] = ()) -> Workload:
    """A workload of as many rounds.

    Args:
        sizes: how many texts.
        num_rounds: rounds that it is for; no text occurs in two of them.
        seed: other seeds give other texts of the same lengths' distribution.
        real: texts to choose the set `real` from; none leaves it out.
    """
    lengths = document_lengths(sizes.documents, random.Random(f"{seed}/lengths"))
    short = {
        "queries": sizes.queries,
        "instructed": sizes.instructed,
        "not instructed": sizes.instructed,
        "single queries": sizes.single_queries,
        "searches": sizes.searches,
        "idle queries": sizes.paced_queries,
        "busy queries": sizes.paced_queries,
    }
    sets = {"documents": _texts(_dealt(lengths, num_rounds), f"{seed}/documents")}
    for name, count in short.items():
        sets[name] = _texts([_query_lengths(count)] * num_rounds, f"{seed}/{name}")
    for name in ("ingested", "ingested beside queries"):
        drawn = document_lengths(sizes.ingested * num_rounds, random.Random(f"{seed}/{name}"))
        sets[name] = _texts(_dealt(drawn, num_rounds), f"{seed}/{name}")
    sets["long"] = _texts([list(sizes.long_tokens)] * num_rounds, f"{seed}/long")
    sets["warm-up"] = _texts([list(sizes.warm_up_tokens)], f"{seed}/warm-up")
    if real:
        chosen = random.Random(f"{seed}/real").sample(list(real), sizes.real * num_rounds)
        sets["real"] = [chosen[start::num_rounds] for start in range(num_rounds)]
    return Workload(seed=seed, sets=sets)


def document_lengths(count: int, generator: random.Random) -> list[int]:
    """Log-normal, scaled so that the mean is `MEAN_TOKENS` whatever was drawn."""
    center = math.log(MEAN_TOKENS) - SPREAD**2 / 2
    drawn = [min(MAX_TOKENS, max(5, generator.lognormvariate(center, SPREAD))) for _ in range(count)]
    scale = MEAN_TOKENS * count / sum(drawn)
    return [min(MAX_TOKENS, max(5, round(length * scale))) for length in drawn]


def _query_lengths(count: int) -> list[int]:
    return [8 + index % 5 for index in range(count)]


def _dealt(lengths: list[int], num_rounds: int) -> list[list[int]]:
    """Parts of nearly the same distribution: by length, dealt out forth and back."""
    parts: list[list[int]] = [[] for _ in range(num_rounds)]
    for index, length in enumerate(sorted(lengths)):
        place = index % (2 * num_rounds)
        parts[min(place, 2 * num_rounds - 1 - place)].append(length)
    return parts


def _texts(lengths: list[list[int]], seed: str) -> list[list[str]]:
    """Shuffled within a round, as texts come in no order of length."""
    generator = random.Random(seed)
    rounds = [[_text(length, generator) for length in part] for part in lengths]
    for texts in rounds:
        generator.shuffle(texts)
    return rounds


def _text(num_tokens: int, generator: random.Random) -> str:
    """Sentences of about twelve words; a word or a full stop is a token, [EOS] the last one."""
    left = num_tokens - 1
    sentences = []
    while left > 0:
        size = min(left, generator.randint(9, 16))
        words = generator.choices(_WORDS.split(), k=max(1, size - 1))
        sentences.append(" ".join(words).capitalize() + ("." if size > 1 else ""))
        left -= size
    return " ".join(sentences)
