"""Every engine on the same texts, in turn: the table of docs/performance.md, as JSON, and as a plot.

    python -m benchmarks.bench [--quick] [--works documents,queries] [--engines eoseek,vllm] [--json FILE] [--page FILE]

Environments of the engines are built under `.bench/` at first. Want an idle machine; `--quick` shows in minutes that
everything runs, and its figures say nothing. Works: {works}.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench import works
from benchmarks.bench.engines import EngineError
from benchmarks.bench.environments import FOLDER, OWN, PEERS
from benchmarks.bench.goals import goals
from benchmarks.bench.limit import flop_per_token
from benchmarks.bench.own import growth, prepared_store, search_and_parts, starts
from benchmarks.bench.report import MARKS, draw, tables, write_page
from benchmarks.bench.runner import LIMIT, Runner, progress
from benchmarks.bench.workload import QUICK, Sizes, Workload, make, read
from benchmarks.running import DATA, real_texts, write_json
from service.encoders.checkpoint import load_checkpoint

OWN_WORKS = ("growth", "start")
ALL_WORKS = (*works.WORKS, *OWN_WORKS)


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines are ended
    try:
        texts = workload(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    checkpoint = load_checkpoint(options.checkpoint)
    bench = works.Bench(checkpoint=checkpoint, workload=texts, reference={})
    number_format = works.own_format()
    chosen = works.as_multiplied(works.SPECS, number_format)
    specs = [spec for spec in chosen if spec.environment in options.engines]
    with tempfile.TemporaryDirectory(prefix="eoseek-bench-") as folder:
        found, runner = measure(bench, specs, options, Path(folder), number_format)
    flop = flop_per_token(json.loads((checkpoint.path / "config.json").read_text()))
    document = flop * bench.mean_tokens("documents")
    reached = goals(found, flop_per_document=document)
    limit = found.get("documents", {}).get(LIMIT, {}).get("medians", {}).get("GFLOP/s")
    names = [spec.name for spec in specs]
    said = conditions(options, bench, runner, limit, document)
    text = tables(found, reached, names, said)
    print(text)
    write_json(
        options.json,
        {
            "command": sys.argv[1:],
            "conditions": said,
            "workload": {"seed": texts.seed, "sha256": texts.fingerprint},
            "flop_per_token": flop,
            "versions": runner.versions,
            "works": found,
            "goals": [vars(each) for each in reached],
        },
    )
    if not works.WORKS.keys().isdisjoint(found):
        draw(found, names, options.json.with_suffix(".svg"), documents_limit=limit and limit * 1e9 / document)
    if options.page:
        write_page(options.page, text)
    return 1 if any("not run" in lines.get(works.OURS.name, {}) for lines in found.values()) else 0


def parse() -> argparse.Namespace:
    description = (__doc__ or "").format(works=", ".join(ALL_WORKS))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", type=_listed((OWN, *PEERS)), default=[OWN, *PEERS], help="comma-separated")
    parser.add_argument("--works", type=_listed(ALL_WORKS), default=list(ALL_WORKS), help="comma-separated")
    parser.add_argument("--rounds", type=int, help="3, quick: 1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--quick", action="store_true", help="a few texts and one round, to see that all runs")
    parser.add_argument("--stored", type=int, help="documents in the store that is searched; 10000, quick: 1000")
    parser.add_argument(
        "--workload", type=Path, help="texts of an earlier run, as it left them in .bench/workload.json"
    )
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--json", type=Path, default=FOLDER / "result.json", help="the plot goes beside it")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced, as docs/performance.md")
    options = parser.parse_args()
    options.rounds = (1 if options.quick else 3) if options.rounds is None else options.rounds
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads are at least 1")
    if options.page and not (options.page.is_file() and all(each in options.page.read_text("utf-8") for each in MARKS)):
        parser.error(f"{options.page} has no lines {' and '.join(map(repr, MARKS))}; the tables go between them")
    options.stored = options.stored or (1000 if options.quick else 10_000)
    return options


def _listed(allowed: tuple[str, ...]) -> Any:
    def split(text: str) -> list[str]:
        found = [each for each in text.split(",") if each]
        if unknown := [each for each in found if each not in allowed]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(allowed)}")
        return found

    return split


def workload(options: argparse.Namespace) -> Workload:
    """Made or read; kept where the next run finds it."""
    if options.workload:
        texts = read(options.workload)
        options.rounds = texts.num_rounds
        return texts
    real = real_texts() if DATA.exists() else ()
    texts = make(QUICK if options.quick else Sizes(), num_rounds=options.rounds, real=real)
    texts.write(FOLDER / "workload.json")
    return texts


def measure(
    bench: works.Bench, specs: list[works.Spec], options: argparse.Namespace, folder: Path, number_format: str
) -> tuple[dict[str, Any], Runner]:
    """All works that were asked for, one after the other."""
    store = folder / "store"
    runner = Runner(bench, threads=options.threads, store=store, number_format=number_format)
    runner.prepare(specs)
    found: dict[str, Any] = {}
    try:
        chosen = [works.WORKS[name] for name in options.works if name in works.WORKS]
        chosen = [work for work in chosen if work.name != "real" or "real" in bench.workload.sets]
        if chosen and (missing := runner.refer()):
            progress(f"no cosines: {missing}")
        if OWN in options.engines and any(work.side == "http" for work in chosen):
            prepared_store(bench, store, options.stored, options.threads)
        for work in chosen:
            if work.name == "search" and OWN in options.engines:
                found[work.name] = search_and_parts(runner, folder / "alone", options.stored, options.threads)
            else:
                found[work.name] = runner.run(work, specs)
        runner.stop()
        if OWN in options.engines and "start" in options.works:
            found["start"] = starts(bench, options.rounds, options.threads, store)
        for name, values in runner.servers.items():
            if name == OWN:  # its first start may have been a cold one; `starts` has warm ones
                values = {key: value for key, value in values.items() if key == "MiB when warm"}
            outcome = found.setdefault("start", {}).setdefault(name, {"medians": {}})
            outcome["medians"] = values | outcome.get("medians", {})
        if OWN in options.engines and "growth" in options.works:
            found["growth"] = growth(bench, folder / "growth", options.threads, is_quick=options.quick)
    finally:
        runner.stop()
    return found, runner


def conditions(
    options: argparse.Namespace,
    bench: works.Bench,
    runner: Runner,
    limit: float | None,
    document: float,
) -> list[str]:
    """What the figures were measured under."""
    minutes = (time.perf_counter() - runner.started) / 60
    memory = psutil.virtual_memory().total / 2**30
    versions = {f"{name} {version}" for known in runner.versions.values() for name, version in known.items()}
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, threads of every engine: {options.threads}, {memory:.0f} GiB; "
        f"rounds in turn: {options.rounds}, of which medians, {minutes:.0f} minutes in all"
        + (" (a quick run, whose figures say nothing)." if options.quick else "."),
        f"{len(bench.workload.all('documents'))} documents, {bench.mean_tokens('documents'):.0f} tokens in the mean; "
        f"{', '.join(sorted(versions)) or 'no engine was loaded in process'}.",
    ]
    if limit:
        lines.append(
            f"The machine's own {runner.number_format} matrix products of the model's shapes: {limit:.0f} GFLOP/s, "
            f"which would be {limit * 1e9 / document:.1f} documents/s."
        )
    return lines


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EngineError as error:
        sys.exit(f"the benchmark's own part failed: {error}")
