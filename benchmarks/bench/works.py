"""What is measured: a function a work, each of which runs one engine through one round and says what came out.

A result is a number, or a list of them where rounds are put together before a quantile is taken.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.bench.engines import Embeddings, Offline, Server, Spec, from_base64
from benchmarks.bench.environments import has_gpu
from benchmarks.bench.load import Client, closed, ndjson, paced
from benchmarks.bench.workload import INSTRUCTION, Workload
from service.encoders.checkpoint import Checkpoint

CLIENTS = 8
TEXTS_A_REQUEST = 8
QUERIES_PER_SECOND = 5.0
EMBEDDINGS = "/v1/embeddings"
Result = dict[str, float | list[float]]

OURS = Spec("eoseek", "eoseek")
VLLM = Spec("vllm", "vllm", "bfloat16")
INFINITY, INFINITY_HALF = Spec("infinity", "infinity"), Spec("infinity bfloat16", "infinity", "bfloat16")
THEIRS = Spec("sentence-transformers", "sentence-transformers")
THEIRS_HALF = Spec("sentence-transformers bfloat16", "sentence-transformers", "bfloat16")
SPECS = (OURS, VLLM, INFINITY, INFINITY_HALF, THEIRS, THEIRS_HALF)
"""In the table's order; without a number format the engine chooses, which is float32 for Infinity on a processor and
for sentence-transformers everywhere."""


def own_format() -> str:
    """`bfloat16` where the machine multiplies it, else `float32`."""
    from service.encoders.torch_loading import choose_dtype

    return "bfloat16" if has_gpu() else str(choose_dtype("auto", "cpu")).removeprefix("torch.")


def as_multiplied(specs: Sequence[Spec], number_format: str) -> list[Spec]:
    """The specs as they run where `number_format` is what the machine multiplies.

    Where that is float32, bfloat16 is emulated and says nothing of an engine: each is compared in float32, and once.
    """
    if number_format == "bfloat16":
        return list(specs)
    whole = {INFINITY_HALF: INFINITY, THEIRS_HALF: THEIRS, VLLM: replace(VLLM, dtype=number_format)}
    return list(dict.fromkeys(whole.get(spec, spec) for spec in specs))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every work needs: the texts, how they are counted, and vectors to hold answers against."""

    checkpoint: Checkpoint
    workload: Workload
    reference: dict[str, Embeddings]  # prompt to its vector, float32, one text at a time; of some texts of each set

    def prompts(self, texts: Sequence[str], kind: str, instruction: str) -> list[str]:
        frame = self.checkpoint.contract.frame
        if kind == "query":
            return [frame.query(text, instruction) for text in texts]
        return [frame.document("", text) for text in texts]

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Of documents."""
        return self.checkpoint.contract.documents([("", text) for text in texts]).num_tokens

    def mean_tokens(self, name: str) -> float:
        texts = self.workload.all(name)
        return self.num_tokens(texts) / len(texts)

    def lowest_cosine(self, prompts: list[str], embeddings: Embeddings) -> Result:
        """To the reference, over the texts that it has; nothing when there is none."""
        # some engines scale to unit length in bfloat16
        rows = zip(prompts, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), strict=True)
        cosines = [float(row @ self.reference[text]) for text, row in rows if text in self.reference]
        return {"lowest cosine": min(cosines)} if cosines else {}


Measure = Callable[[Bench, Any, int], Result]
ENCODER_ALONE, STORE_ALONE = "encoder alone", "store alone"
"""What `/search` is held against."""


@dataclass(frozen=True)
class Work:
    """A line of the table and the engines that have one in it; `side` is how they are reached."""

    name: str
    side: str  # "offline", "http"
    specs: tuple[Spec, ...]
    measure: Measure


def offline_documents(name: str) -> Measure:
    """A round's share of a set of documents in one call."""

    def measure(bench: Bench, engine: Offline, number: int) -> Result:
        texts = bench.workload.texts(name, number)
        prompts = bench.prompts(texts, "document", "")
        encoded = engine.encode(texts if engine.spec.frames_prompts else prompts)
        return _documents(bench, name, texts, sum(encoded.seconds)) | bench.lowest_cosine(prompts, encoded.embeddings)

    return measure


def http_documents(bench: Bench, server: Server, number: int) -> Result:
    """The same by requests of several texts from several clients."""
    texts = bench.workload.texts("documents", number)
    prompts = bench.prompts(texts, "document", "")
    sent = texts if server.spec.frames_prompts else prompts
    parts = [sent[start : start + TEXTS_A_REQUEST] for start in range(0, len(sent), TEXTS_A_REQUEST)]
    loaded = closed(server.port, EMBEDDINGS, [server.body(part) for part in parts], clients=CLIENTS)
    result = _documents(bench, "documents", texts, loaded.seconds)
    return result | bench.lowest_cosine(prompts, vectors(loaded.answers))


def _documents(bench: Bench, name: str, texts: list[str], seconds: float) -> Result:
    """A round has its part of the lengths: its tokens/s, over the tokens of an average document of the whole set."""
    rate = bench.num_tokens(texts) / seconds
    return {"documents/s": rate / bench.mean_tokens(name), "tokens/s": rate}


def single_queries(bench: Bench, engine: Offline, number: int) -> Result:
    """One query after the other, in process."""
    texts = bench.workload.texts("single queries", number)
    prompts = bench.prompts(texts, "query", "")
    encoded = engine.encode(texts if engine.spec.frames_prompts else prompts, kind="query", one_by_one=True)
    return {"latencies": encoded.seconds} | bench.lowest_cosine(prompts, encoded.embeddings)


def encode_searches(bench: Bench, engine: Offline, number: int) -> Result:
    """The queries of `searches`, in process."""
    return {"latencies": engine.encode(bench.workload.texts("searches", number), kind="query", one_by_one=True).seconds}


def http_queries(name: str, instruction: str) -> Measure:
    """Single queries from all clients at once."""

    def measure(bench: Bench, server: Server, number: int) -> Result:
        texts = bench.workload.texts(name, number)
        prompts = bench.prompts(texts, "query", instruction)
        sent = texts if server.spec.frames_prompts else prompts
        bodies = [server.body([text], kind="query", instruction=instruction) for text in sent]
        loaded = closed(server.port, EMBEDDINGS, bodies, clients=CLIENTS)
        result: Result = {"queries/s": len(texts) / loaded.seconds, "latencies": loaded.latencies}
        return result | bench.lowest_cosine(prompts, vectors(loaded.answers))

    return measure


def instructed_queries(bench: Bench, server: Server, number: int) -> Result:
    """Single queries with an instruction; of ours also their speed over that of as many others without, in the same
    seconds, as the machine's own speed changes within minutes."""
    instructed = http_queries("instructed", INSTRUCTION)
    if server.spec != OURS:
        return instructed(bench, server, number)
    both = [instructed, http_queries("not instructed", "")]
    order = both if number % 2 else both[::-1]
    results = {measure: measure(bench, server, number) for measure in order}
    result, without = (results[measure] for measure in both)
    return result | {"times without": result["queries/s"] / without["queries/s"]}


def searches(bench: Bench, server: Server, number: int) -> Result:
    """`/search` by one client that waits for each answer, and what the service says of its stages."""
    bodies = [_search(text) for text in bench.workload.texts("searches", number)]
    loaded = closed(server.port, "/search", bodies, clients=1)
    took = [json.loads(answer)["took_ms"] for answer in loaded.answers]
    stages: Result = {f"{stage} latencies": [each[stage] / 1000 for each in took] for stage in took[0]}
    return {"latencies": loaded.latencies} | stages


def ingestion(bench: Bench, server: Server, number: int) -> Result:
    """Paced searches alone, documents alone, and both at once."""
    idle = [_search(text) for text in bench.workload.texts("idle queries", number)]
    busy = [_search(text) for text in bench.workload.texts("busy queries", number)]
    alone = paced(server.port, "/search", idle, per_second=QUERIES_PER_SECOND, until=lambda: False)
    undisturbed = _ingest(bench, server, "ingested", number)
    with ThreadPoolExecutor(1) as pool:
        ingested = pool.submit(_ingest, bench, server, "ingested beside queries", number)
        beside = paced(server.port, "/search", busy, per_second=QUERIES_PER_SECOND, until=ingested.done)
    return {
        "idle latencies": alone,
        "busy latencies": beside,
        "documents/s alone": undisturbed,
        "documents/s beside queries": ingested.result(),
    }


def _ingest(bench: Bench, server: Server, name: str, number: int) -> float:
    """Documents/s of the usual length, from the first byte sent to the answer that says that they are durable."""
    texts = bench.workload.texts(name, number)
    body = ndjson([(f"{name} {number} {index}", text) for index, text in enumerate(texts)])
    start = time.perf_counter()
    answer = json.loads(Client(server.port).post("/documents", body, "application/x-ndjson"))
    seconds = time.perf_counter() - start
    assert answer["indexed"] == len(texts), answer
    return bench.num_tokens(texts) / seconds / bench.mean_tokens(name)


def long_documents(bench: Bench, engine: Offline, number: int) -> Result:
    """From short to long, one at a time, with the memory that each took."""
    texts = sorted(bench.workload.texts("long", number), key=len)
    prompts = bench.prompts(texts, "document", "")
    sent = texts if engine.spec.frames_prompts else prompts
    encoded = [engine.encode([text]) for text in sent]
    result = _documents(bench, "long", texts, sum(sum(each.seconds) for each in encoded))
    for text, each in zip(texts, encoded, strict=True):
        # to the thousand, so that the rounds' texts, some tokens longer or shorter, are the same line
        result[f"MiB at {round(bench.num_tokens([text]), -3)} tokens"] = (each.peak_bytes - each.memory_bytes) / 2**20
    return result | bench.lowest_cosine(prompts, np.concatenate([each.embeddings for each in encoded]))


# peers have a part where a goal names them, as a run should end within half an hour
WORKS = {
    work.name: work
    for work in (
        Work("documents", "offline", SPECS, offline_documents("documents")),
        Work("documents-http", "http", (OURS,), http_documents),
        Work("queries", "http", (OURS, VLLM, INFINITY_HALF), http_queries("queries", "")),
        Work("instructed", "http", (OURS, VLLM, INFINITY_HALF), instructed_queries),
        Work("single", "offline", SPECS, single_queries),
        Work("search", "http", (OURS,), searches),
        Work("ingestion", "http", (OURS,), ingestion),
        Work("long", "offline", (OURS, THEIRS_HALF), long_documents),
        Work("real", "offline", (OURS, VLLM, THEIRS_HALF), offline_documents("real")),
    )
}


def vectors(answers: Sequence[bytes]) -> Embeddings:
    """Of OpenAI's answers, in their order."""
    rows = [row["embedding"] for answer in answers for row in json.loads(answer)["data"]]
    return np.stack([from_base64(row) if isinstance(row, str) else np.asarray(row, np.float32) for row in rows])


def _search(text: str) -> bytes:
    return json.dumps({"query": text}).encode()
