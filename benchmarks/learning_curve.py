"""Draws how the held-out score of training runs grew, a line a run, and writes the numbers beside the picture.

    python -m benchmarks.learning_curve RUN... --output FILE.svg [--label NAME]... [--metric ndcg@10]

A run is the folder that `eoseek train` writes. Its TensorBoard events are read, and the log in its newest checkpoint,
which alone remains where only the checkpoint was kept. A FILE.json that this program wrote stands for its lines, under
the labels that they have.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.running import write_json
from training.saving import checkpoints

Curve = dict[int, float]  # step to score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help=".svg or .png; the numbers go to .json beside it")
    parser.add_argument("--label", action="append", help="of each run in turn; default: the names of their folders")
    parser.add_argument("--metric", default="ndcg@10", help="or that of one set, as questions/ndcg@10")
    arguments = parser.parse_args()
    folders = [run for run in arguments.runs if run.suffix != ".json"]
    labels = arguments.label or [run.name for run in folders]
    if len(labels) != len(folders) or len(set(labels)) != len(labels):
        parser.error(f"{len(folders)} runs need as many different labels, not {labels}; give each its --label")
    curves = {}
    for file in (run for run in arguments.runs if run.suffix == ".json"):
        curves |= from_file(file, arguments.metric)
    curves |= {label: curve(run, arguments.metric) for label, run in zip(labels, folders, strict=True)}
    empty = [label for label, points in curves.items() if not points]
    if empty:
        print(f"{', '.join(empty)}: no evaluation of {arguments.metric} yet", file=sys.stderr)
        return 2
    write_json(
        arguments.output.with_suffix(".json"),
        {"metric": arguments.metric, "runs": {label: list(points.items()) for label, points in curves.items()}},
    )
    draw(curves, arguments.metric, arguments.output)
    report(curves)
    return 0


def curve(run: Path, metric: str) -> Curve:
    """Scores of a run by step, in order of steps."""
    points = from_events(run, metric)
    for checkpoint in checkpoints(run)[-1:]:
        points |= from_state(checkpoint / "trainer_state.json", metric)
    return dict(sorted(points.items()))


def from_file(path: Path, metric: str) -> dict[str, Curve]:
    written = json.loads(path.read_text(encoding="utf-8"))
    if written["metric"] != metric:
        raise SystemExit(f"{path} holds {written['metric']}, not {metric}; name its metric with --metric")
    return {label: dict(points) for label, points in written["runs"].items()}


def from_state(path: Path, metric: str) -> Curve:
    history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    return {row["step"]: row[f"eval_{metric}"] for row in history if f"eval_{metric}" in row}


def from_events(run: Path, metric: str) -> Curve:
    """Of several starts, such as a run resumed, the newest says what a step scored."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: Curve = {}
    for folder in sorted({file.parent for file in run.glob("runs/*/events.out.tfevents.*")}):
        events = EventAccumulator(str(folder)).Reload()
        if f"eval/{metric}" in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(f"eval/{metric}")}
    return points


def draw(curves: dict[str, Curve], metric: str, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "eoseek"  # equal numbers give an equal file
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", markersize=3.5, label=label)
    axes.set(xlabel="step", ylabel=f"{metric} of the held-out part")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False)
    else:
        axes.set_title(next(iter(curves)))
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def report(curves: dict[str, Curve]) -> None:
    steps: Sequence[int] = sorted({step for points in curves.values() for step in points})
    print("| step | " + " | ".join(curves) + " |\n| ---: |" + " ---: |" * len(curves))
    for step in steps:
        cells = [f"{points[step]:.4f}" if step in points else "" for points in curves.values()]
        print(f"| {step} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
