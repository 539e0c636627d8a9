"""What an experiment gives back, and the table and the file of all of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.running import write_json

HEADER = ("experiment", "what was done", "result", "goal", "held")
_HELD = {True: "held", False: "NOT HELD", None: "not judged"}


class SkippedError(Exception):
    """The experiment cannot be made here; the message says why."""


@dataclass(frozen=True)
class Goal:
    """One promise: what was found, what it should be, and whether it is so; None where that was not judged.

    `needs_calm`: a figure of speed or of growth, which says little after seconds and beside other work.
    """

    found: str
    wanted: str
    is_held: bool | None
    needs_calm: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment did, its goals, and the figures behind them; skipped where it has no goals."""

    done: str
    goals: Sequence[Goal] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """Whether no goal was missed; what was skipped has missed none."""
        return all(goal.is_held is not False for goal in self.goals)

    def in_short(self) -> Self:
        """Without judgement of what needs calm."""
        goals = [replace(goal, is_held=None) if goal.needs_calm else goal for goal in self.goals]
        return replace(self, goals=goals)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Self:
        """The result that was written to a file."""
        goals = [Goal(**goal) for goal in found["goals"]]
        return cls(done=found["done"], goals=goals, figures=found["figures"])


def holds(found: object, wanted: str, is_held: bool) -> Goal:
    """The goal that something is so."""
    return Goal(f"{found}", wanted, is_held)


def zero(found: int, what: str) -> Goal:
    """The goal that there is none of something."""
    return Goal(f"{found} {what}", f"0 {what}", found == 0)


def at_most(found: float, limit: float, what: str, unit: str = "", *, needs_calm: bool = True) -> Goal:
    """The goal that a figure does not pass its limit; NaN, where nothing was measured, does."""
    return Goal(f"{what} {found:.4g}{unit}", f"at most {limit:.4g}{unit}", found <= limit, needs_calm)


def at_least(found: float, floor: float, what: str, unit: str = "", *, needs_calm: bool = False) -> Goal:
    """The goal that a figure reaches its floor; NaN, where nothing was measured, does not."""
    return Goal(f"{what} {found:.4g}{unit}", f"at least {floor:.4g}{unit}", found >= floor, needs_calm)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table(results: Mapping[str, Result]) -> str:
    """A line for each goal, in Markdown; what was done stands in an experiment's first line."""
    rows = [f"| {' | '.join(HEADER)} |", "| --- | --- | --- | --- | --- |"]
    for name, result in results.items():
        if not result.goals:
            rows.append(f"| {name} | {result.done} | | | skipped |")
        for index, goal in enumerate(result.goals):
            first = (name, result.done) if index == 0 else ("", "")
            cells = [*first, goal.found, goal.wanted, _HELD[goal.is_held]]
            rows.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def read(path: Path | None) -> dict[str, Any]:
    """What runs before wrote to a file, by experiment."""
    return dict(json.loads(path.read_text())) if path and path.exists() else {}


def keep(path: Path | None, name: str, result: Result, **run: Any) -> None:
    """Writes one experiment's result into the file, beside those of the others; `run` says how it came about."""
    kept = asdict(result) | {"is_held": result.is_held} | run
    write_json(path, read(path) | {name: json.loads(json.dumps(kept, default=str))})
