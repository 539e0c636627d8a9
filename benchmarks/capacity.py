"""How many machines, and how long queries then wait: arithmetic, simulation, and the measurement that holds them.

    python -m benchmarks.capacity --plan [--documents 1e8 --queries-per-second 200 --quantization scalar ...]
    python -m benchmarks.capacity --measure [--seconds 60] [--shares 0.3 0.5 0.7] [--documents-per-second 0]

`--plan` prints the table of docs/capacity.md and the lines that lead to it. `--measure` starts a service, measures the
time of a batch by its tokens, and how much longer requests make it that come meanwhile, sends searches at random times
at shares of its capacity, and prints the p99 that the simulation of `benchmarks.queueing` gives for the same arrivals
beside the measured one. Loads come in slices between calibrations, as the speed of a machine drifts. Exit code 1 when a
p99 is over 25 % off.
"""

import argparse
import asyncio
import gzip
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.queueing import Arrival, Calibration, poisson, simulate
from benchmarks.running import DATA, Service, running_service, texts_of_lengths, write_json
from benchmarks.sizing import COMPONENT_BYTES, Load, plan, table
from service.encoders.checkpoint import Checkpoint, load_checkpoint

MAX_DEVIATION = 0.25
DOCUMENTS, QUERIES_PER_SECOND = (1e6, 1e8, 1e10), 200.0
_TEXTS_PER_BATCH = (1, 1, 1, 2, 4, 8, 16, 32)  # of one turn, one after the other
_CLIENTS, _QUERIES_PER_CLIENT = 24, 4  # of one turn
_FIRST_TURNS = 4
_TURNS_NEAR = 2  # on either side of a slice
_SLICE_SECONDS = 20.0  # short, as the speed of a machine that is shared drifts within minutes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--plan", action="store_true", help="print the arithmetic")
    what.add_argument("--measure", action="store_true", help="hold the simulation against a running service")
    add_plan_options(parser.add_argument_group("plan"))
    measured = parser.add_argument_group("measure")
    measured.add_argument("--seconds", type=float, default=60, help="of each load")
    measured.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="of the capacity")
    measured.add_argument("--documents-per-second", type=float, default=0, help="embedded beside the queries")
    measured.add_argument("--checkpoint", default="default")
    measured.add_argument("--threads", type=int, default=0, help="as EOSEEK_ENCODER__THREADS")
    measured.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.plan:
        return print_plan(parser, options)
    checkpoint = load_checkpoint(options.checkpoint)
    settings = {"encoder__checkpoint": options.checkpoint, "encoder__threads": str(options.threads)}
    with running_service(store__kind="memory", **settings) as service:
        results = asyncio.run(measure(service, checkpoint, options))
    write_json(options.json, results)
    return report(results)


def add_plan_options(group: Any) -> None:
    """One option a figure; those without a default of their own are asked for in a table of several."""
    for field in fields(Load):
        option = "--" + field.name.replace("_", "-")
        if field.name == "quantization":
            group.add_argument(option, choices=list(COMPONENT_BYTES), help="default: a row of each")
        elif field.name == "documents":
            group.add_argument(option, type=float, help="default: 1e6, 1e8 and 1e10")
        else:
            default = QUERIES_PER_SECOND if field.name == "queries_per_second" else field.default
            kind = int if isinstance(field.default, int) else float
            group.add_argument(option, type=kind, default=default, help=f"default: {default:,}")


def print_plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    given = {field.name: getattr(options, field.name) for field in fields(Load)}
    documents = [given["documents"]] if given["documents"] else list(DOCUMENTS)
    kinds = [given["quantization"]] if given["quantization"] else list(COMPONENT_BYTES)
    try:
        print(shown(Load(**given | {"documents": documents[0], "quantization": kinds[0]}), documents, kinds))
    except ValueError as error:
        parser.error(str(error))
    return 0


def shown(load: Load, documents: list[float], kinds: list[str]) -> str:
    """The table, and below it how the figures come about, for one row of each size."""
    loads = [replace(load, documents=number, quantization=kind) for number in documents for kind in kinds]
    parts = [table(loads)]
    for number in documents:
        row = replace(load, documents=number, quantization="scalar" if "scalar" in kinds else kinds[0])
        lines = "\n".join(f"- {line}" for line in plan(row).lines)
        parts.append(f"{number:,.0f} documents, quantization {row.quantization}:\n\n{lines}")
    return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one simulated user sends, and when."""

    arrival: Arrival
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's; moments in seconds of one clock."""

    num_tokens: int
    start: float
    end: float
    encode_seconds: float  # of the batch that it was in: the same number for all of one batch
    batcher_seconds: float  # this and the wait before it


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The answers of calls one at a time, and of those of several clients."""

    alone: list[Answer]
    together: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of a load: what was sent, how long it waited, and how many turns of calibration came before it."""

    share: float
    requests: list[Request]
    waits: list[float]
    num_turns: int


async def measure(service: Service, checkpoint: Checkpoint, options: argparse.Namespace) -> list[dict[str, float]]:
    """The loads in slices, one after the other, with a turn of calibration between any two."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
        await ask(client, checkpoint, seed=0)  # warms up
        turns = [await ask(client, checkpoint, seed=seed) for seed in range(1, 1 + _FIRST_TURNS)]
        highest = capacity(turns)
        slices = list[Slice]()
        for number, share in enumerate(options.shares * math.ceil(options.seconds / _SLICE_SECONDS)):
            rate, seconds = share * highest, min(_SLICE_SECONDS, options.seconds)
            requests = traffic(checkpoint, rate, options.documents_per_second, seconds, seed=number)
            print(f"{share:.0%} of {highest:.1f} queries/s: {len(requests)} requests", file=sys.stderr, flush=True)
            waits = await send(client, requests)
            slices.append(Slice(share=share, requests=requests, waits=waits, num_turns=len(turns)))
            turns.append(await ask(client, checkpoint, seed=len(turns) + 1))
        turns.append(await ask(client, checkpoint, seed=len(turns) + 1))
    # on a thread: its event loop is another one
    predicted = await asyncio.to_thread(predict, slices, turns)
    return [compared(share, share * highest, slices, predicted) for share in options.shares]


def predict(slices: list[Slice], turns: list[Asked]) -> list[list[float]]:
    """What the simulation says of each slice: with the speed of the turns around it, and what requests cost in all."""
    handling = calibrate(turns).handling_seconds
    predicted = []
    for each in slices:
        near = calibrate(turns[each.num_turns - _TURNS_NEAR : each.num_turns + _TURNS_NEAR])
        arrivals = [request.arrival for request in each.requests]
        predicted.append(simulate(arrivals, replace(near, handling_seconds=handling)))
    return predicted


def compared(
    share: float, queries_per_second: float, slices: list[Slice], predicted: list[list[float]]
) -> dict[str, float]:
    """Quantiles of the queries of one load, measured and predicted."""
    chosen = [(each, waits) for each, waits in zip(slices, predicted, strict=True) if each.share == share]
    is_query = [request.arrival.lane == "query" for each, _ in chosen for request in each.requests]
    if not any(is_query):
        sys.exit(f"{queries_per_second:.2g} queries/s for so short are none; raise --seconds or --shares")
    measured = [wait for each, _ in chosen for wait in each.waits]
    said = [wait for _, waits in chosen for wait in waits]
    return (
        {"share": share, "queries_per_second": queries_per_second, "queries": sum(is_query)}
        | {f"measured_{key}": value for key, value in quantiles(measured, is_query).items()}
        | {f"predicted_{key}": value for key, value in quantiles(said, is_query).items()}
    )


async def ask(client: httpx.AsyncClient, checkpoint: Checkpoint, *, seed: int) -> Asked:
    """Ask a service that serves nobody else: 1 to 32 queries at once, one call at a time, then several clients."""
    seed += 1000  # other texts than those of the loads
    texts = iter(query_texts(sum(_TEXTS_PER_BATCH) + _CLIENTS * _QUERIES_PER_CLIENT, seed=seed))
    alone = [await _answer(client, checkpoint, list(islice(texts, size))) for size in _TEXTS_PER_BATCH]
    pause_seconds = alone[-1].encode_seconds / 2  # so that the encoder seldom waits, and batches differ in size
    together = await _ask_together(client, checkpoint, list(texts), pause_seconds=pause_seconds, seed=seed)
    return Asked(alone=alone, together=together)


def calibrate(asked: Sequence[Asked]) -> Calibration:
    """What a batch takes by its tokens, from calls that were alone; what a request costs beside, from the others."""
    alone = [each for one in asked for each in one.alone]
    together = [each for one in asked for each in one.together]
    measured = np.array(sorted((each.num_tokens, each.encode_seconds) for each in alone))
    points = [np.median(part, axis=0) for part in np.array_split(measured, len(_TEXTS_PER_BATCH))]
    curve = Calibration(
        tokens=[float(tokens) for tokens, _ in points],
        seconds=[float(each) for each in np.maximum.accumulate([seconds for _, seconds in points])],
    )
    return replace(
        curve,
        handling_seconds=handling_seconds(together, curve),
        ratios=[each.encode_seconds / curve.batch_seconds(each.num_tokens) for each in alone],
        overheads=[each.end - each.start - each.batcher_seconds for each in together],
    )


def handling_seconds(answers: list[Answer], curve: Calibration) -> float:
    """By how much a request makes the batch longer that runs while it comes, on average.

    Measured, since it is several times the processor time of a request: an encoder's threads wait for one another, so
    each waits for what took one of their processors.
    """
    starts = np.sort([each.start for each in answers])
    longer, num_came = 0.0, 0
    for batch in _batches(answers):
        seconds, end = batch[0].encode_seconds, batch[0].end
        longer += seconds - curve.batch_seconds(sum(each.num_tokens for each in batch))
        num_came += int(np.subtract(*np.searchsorted(starts, [end, end - seconds])))
    return max(0.0, longer / num_came) if num_came else 0.0


def _batches(answers: list[Answer]) -> list[list[Answer]]:
    """Answers of one batch together, each the earliest first; two that took the same time end at least that apart."""
    batches = list[list[Answer]]()
    for each in sorted(answers, key=lambda answer: (answer.encode_seconds, answer.end)):
        last = batches[-1][-1] if batches else None
        if last and last.encode_seconds == each.encode_seconds and each.end - last.end < each.encode_seconds:
            batches[-1].append(each)
        else:
            batches.append([each])
    return batches


async def _ask_together(
    client: httpx.AsyncClient, checkpoint: Checkpoint, texts: list[str], *, pause_seconds: float, seed: int
) -> list[Answer]:
    """Clients that ask, read the answer and pause for a random time."""
    generator = random.Random(seed)

    async def one(texts: list[str]) -> list[Answer]:
        answers = []
        for text in texts:
            await asyncio.sleep(generator.expovariate(1 / pause_seconds))
            answers.append(await _answer(client, checkpoint, [text]))
        return answers

    found = await asyncio.gather(*(one(texts[number::_CLIENTS]) for number in range(_CLIENTS)))
    return [each for answers in found for each in answers]


async def _answer(client: httpx.AsyncClient, checkpoint: Checkpoint, queries: list[str]) -> Answer:
    start = time.perf_counter()
    response = await client.post("/search", json={"query": queries, "top_k": 1})
    end = time.perf_counter()
    took = response.raise_for_status().json()["took_ms"]
    return Answer(
        num_tokens=sum(map(len, checkpoint.contract.queries(queries, truncate=True).token_ids)),
        start=start,
        end=end,
        encode_seconds=took["encode"] / 1000,
        batcher_seconds=(took["encode"] + took["queue"]) / 1000,
    )


def capacity(asked: Sequence[Asked]) -> float:
    """Queries/s in batches of as many as were asked at once, one after the other, and handled meanwhile."""
    calibration, size = calibrate(asked), max(_TEXTS_PER_BATCH)
    num_tokens = size * statistics.mean(each.num_tokens for one in asked for each in one.together)
    return size / (calibration.batch_seconds(round(num_tokens)) + size * calibration.handling_seconds)


def traffic(
    checkpoint: Checkpoint, queries_per_second: float, documents_per_second: float, seconds: float, *, seed: int
) -> list[Request]:
    """Queries at random times, and documents of 80 words among them."""
    times = poisson(per_second=queries_per_second, seconds=seconds, seed=seed)
    texts = query_texts(len(times), seed=seed)
    lengths = map(len, checkpoint.contract.queries(texts, truncate=True).token_ids)
    requests = [
        Request(arrival=Arrival(seconds=at, num_tokens=length), text=text)
        for at, length, text in zip(times, lengths, texts, strict=True)
    ]
    if documents_per_second:
        times = poisson(per_second=documents_per_second, seconds=seconds, seed=seed + 100)
        texts = texts_of_lengths([80] * len(times), seed=seed + 100)
        lengths = map(len, checkpoint.contract.documents([("", text) for text in texts], truncate=True).token_ids)
        requests += [
            Request(arrival=Arrival(seconds=at, num_tokens=length, lane="document"), text=text)
            for at, length, text in zip(times, lengths, texts, strict=True)
        ]
    return sorted(requests, key=lambda each: each.arrival.seconds)


def query_texts(count: int, *, seed: int) -> list[str]:
    """Running text as long as SciFact's queries are, or of 6 to 18 words where they are not at hand."""
    path = DATA / "scifact" / "queries.jsonl.gz"
    words = list(range(6, 19))
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            words = [len(json.loads(line)["text"].split()) for line in lines]
    generator = random.Random(seed)
    return texts_of_lengths([generator.choice(words) for _ in range(count)], seed=seed)


async def send(client: httpx.AsyncClient, requests: list[Request]) -> list[float]:
    """Send each at its time, whatever became of the others. Seconds from then to its answer; infinite for a refusal."""
    start = time.perf_counter()

    async def one(request: Request) -> float:
        due = start + request.arrival.seconds
        await asyncio.sleep(due - time.perf_counter())
        if request.arrival.lane == "query":
            response = await client.post("/search", json={"query": request.text, "top_k": 1})
        else:
            response = await client.post("/embed", json={"inputs": request.text, "kind": "document"})
        if response.status_code == 429:
            return math.inf
        response.raise_for_status()
        return time.perf_counter() - due

    return await asyncio.gather(*map(one, requests))


def quantiles(waits: list[float], is_query: list[bool]) -> dict[str, float]:
    chosen = [wait for wait, holds in zip(waits, is_query, strict=True) if holds]
    return {f"p{share}_ms": 1000 * float(np.quantile(chosen, share / 100)) for share in (50, 99)}


def report(results: list[dict[str, float]]) -> int:
    print(
        "| share of capacity | queries/s | queries | p50 ms | predicted | p99 ms | predicted | predicted / measured |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    ratios = []
    for each in results:
        ratios.append(each["predicted_p99_ms"] / each["measured_p99_ms"])
        print(
            f"| {each['share']:.0%} | {each['queries_per_second']:.1f} | {each['queries']} | "
            f"{each['measured_p50_ms']:.0f} | {each['predicted_p50_ms']:.0f} | "
            f"{each['measured_p99_ms']:.0f} | {each['predicted_p99_ms']:.0f} | "
            f"{ratios[-1]:.2f} |"
        )
    is_near = all(abs(ratio - 1) <= MAX_DEVIATION for ratio in ratios)
    print("PASS" if is_near else "FAIL", f"each predicted p99 within {MAX_DEVIATION:.0%} of the measured one")
    return 0 if is_near else 1


if __name__ == "__main__":
    sys.exit(main())
