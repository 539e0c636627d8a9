"""A run in words and pictures: two tables in Markdown, a plot, and the page that keeps the tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.goals import Goal, Works

LINES = (
    ("documents/s, in process", "documents", "documents/s"),
    ("documents/s, over HTTP", "documents-http", "documents/s"),
    ("real documents/s, in process", "real", "documents/s"),
    ("long documents/s, in process", "long", "documents/s"),
    ("queries/s, over HTTP", "queries", "queries/s"),
    ("queries/s with an instruction, over HTTP", "instructed", "queries/s"),
    ("one query, in process, p50 ms", "single", "p50 ms"),
    ("one query, over HTTP, 8 clients, p99 ms", "queries", "p99 ms"),
    ("server: start to ready, s", "start", "start seconds"),
    ("server: MiB when ready", "start", "MiB when ready"),
    ("server: MiB when warm", "start", "MiB when warm"),
)
MARKS = "<!-- the tables of make bench -->", "<!-- end of the tables -->"


def tables(works: Works, goals: Sequence[Goal], names: Sequence[str], conditions: Sequence[str]) -> str:
    """All that is printed: conditions, figures by engine, goals, and why something was not run."""
    reasons = dict.fromkeys(
        f"{name}: {result['not run']}"
        for lines in works.values()
        for name, result in lines.items()
        if "not run" in result
    )
    parts = ["\n".join(conditions), figures(works, names), goal_table(goals)]
    if reasons:
        parts.append("Not run:\n\n" + "\n".join(f"- {reason}" for reason in reasons))
    return "\n\n".join(parts) + "\n"


def figures(works: Works, names: Sequence[str]) -> str:
    """A line a measure, a column an engine; in brackets the lowest cosine to float32, one text at a time."""
    rows = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for title, work, key in LINES:
        cells = [cell(works.get(work, {}).get(name), key) for name in names]
        if any(cells):
            rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def cell(result: dict[str, Any] | None, key: str) -> str:
    """Empty for an engine that has no part in a work."""
    if result is None:
        return ""
    if "not run" in result:
        return "not run"
    medians = result["medians"]
    if key not in medians:
        return ""
    value = medians[key]
    shown = f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    is_speed = key.endswith("/s") or key == "p50 ms"
    return f"{shown} ({medians['lowest cosine']:.4f})" if is_speed and "lowest cosine" in medians else shown


def goal_table(goals: Sequence[Goal]) -> str:
    verdicts = {True: "reached", False: "**missed**", None: "not measured"}
    rows = ["| goal | measured | wanted | |", "| --- | --- | --- | --- |"]
    rows += [f"| {each.name} | {each.measured} | {each.wanted} | {verdicts[each.reached]} |" for each in goals]
    return "\n".join(rows)


def write_page(page: Path, text: str) -> None:
    """Put the tables between the page's marks, which are there."""
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n\n{text.strip()}\n\n{MARKS[1]}{after}", encoding="utf-8")


def draw(works: Works, names: Sequence[str], path: Path, *, documents_limit: float | None) -> None:
    """A panel a line of speeds, a bar an engine; the dotted line is what the machine's matrix products allow."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "eoseek"  # equal numbers give an equal file
    panels = [
        (title, work, [(name, works[work][name]["medians"][key]) for name in names if _has(works, work, name, key)])
        for title, work, key in LINES
        if key.endswith("/s") and work in works
    ]
    if not panels:  # only works that are no speeds
        return
    bars = [1 + len(found) for _, _, found in panels]
    drawn = Figure(figsize=(8, 0.35 * sum(bars) + 0.5 * len(panels)), layout="constrained")
    grid = drawn.subplots(len(panels), squeeze=False, height_ratios=bars)
    for axes, (title, work, found) in zip(grid[:, 0], panels, strict=True):
        axes.barh([name for name, _ in found], [value for _, value in found], height=0.6)
        axes.set_ylim(-0.6, len(found) - 0.4)
        if work == "documents" and documents_limit:
            axes.axvline(documents_limit, linestyle=":", color="black")
        axes.set_title(title, loc="left", fontsize="medium")
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _has(works: Works, work: str, name: str, key: str) -> bool:
    return key in works[work].get(name, {}).get("medians", {})
