"""What an experiment gives back, the table of all of them, and the arithmetic of both."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEADER = ("experiment", "what was done", "result", "goal", "held")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much is done. `checkpoint` None: a small one with random weights, so that encoding costs nothing."""

    data: Path
    directory: Path
    is_short: bool = False
    checkpoint: str | None = None
    minutes: float = 30.0
    num_documents: int = 5183
    seed: int = 20

    def pick(self, full: int, short: int) -> int:
        """The count of a full run, or of a short one."""
        return short if self.is_short else full


class Skipped(Exception):
    """What an experiment needs is not there; the message says what."""


@dataclass(frozen=True)
class Goal:
    """One promise: what was found, what it should be, and whether it is so."""

    found: str
    wanted: str
    is_held: bool


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment did, its goals, and the figures behind them for `--json`."""

    done: str
    goals: Sequence[Goal]
    figures: Mapping[str, Any] = field(default_factory=dict)
    is_skipped: bool = False

    @property
    def is_held(self) -> bool:
        """Whether no goal was missed; what was skipped has missed none."""
        return all(goal.is_held for goal in self.goals)

    def as_json(self) -> dict[str, Any]:
        """As written to the file."""
        return asdict(self) | {"is_held": self.is_held}


def zero(found: int, what: str) -> Goal:
    """The goal that there is none of something."""
    return Goal(f"{found} {what}", f"0 {what}", found == 0)


def at_most(found: float, limit: float, what: str, unit: str = "") -> Goal:
    """The goal that a figure does not pass its limit; NaN, where nothing was measured, does."""
    return Goal(f"{what} {found:.4g}{unit}", f"at most {limit:g}{unit}", found <= limit)


def at_least(found: float, floor: float, what: str, unit: str = "") -> Goal:
    """The goal that a figure reaches its floor; NaN, where nothing was measured, does not."""
    return Goal(f"{what} {found:.4g}{unit}", f"at least {floor:g}{unit}", found >= floor)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all are not above; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Least squares: by how much the value grows in a unit of time; 0 for a single moment."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - middle) ** 2 for time in times)
    if spread == 0:
        return 0.0
    return sum((time - middle) * (value - mean) for time, value in zip(times, values, strict=True)) / spread


def table(results: Mapping[str, Result]) -> str:
    """A line for each goal, in Markdown; what was done stands in an experiment's first line."""
    rows = [f"| {' | '.join(HEADER)} |", "| --- | --- | --- | --- | --- |"]
    for name, result in results.items():
        if result.is_skipped:
            rows.append(f"| {name} | {result.done} | | | skipped |")
        for index, goal in enumerate(result.goals):
            first = (name, result.done) if index == 0 else ("", "")
            cells = [*first, goal.found, goal.wanted, "held" if goal.is_held else "NOT HELD"]
            rows.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def exit_code(results: Mapping[str, Result]) -> int:
    """1 where a goal was missed."""
    return 0 if all(result.is_held for result in results.values()) else 1


def positive(text: str) -> float:
    """A number above zero, for argparse."""
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text}: a number above 0")
    return value
