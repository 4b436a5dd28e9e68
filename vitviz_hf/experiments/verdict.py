"""Claims that a result is held against, and verdicts. Importing this imports nothing heavy."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOLDS, FAILS, OPEN = "holds here", "does not hold here", "cannot be told"
Record = Mapping[str, Any]
"""A row of a table: an interval `x` has `x low` and `x high` beside it."""
Span = tuple[float, float]
Check = tuple[str, bool, bool]
"""What is checked, whether it surely holds, and whether it surely does not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a claim holds in a result."""

    says: str
    """`HOLDS`, `FAILS` or `OPEN`."""
    why: str

    def __str__(self) -> str:
        return f"{self.says[0].upper()}{self.says[1:]}: {self.why}"


@dataclass(frozen=True, slots=True)
class Found:
    """The numbers of a result."""

    tables: Mapping[str, Sequence[Record]]
    facts: Mapping[str, Any]
    """Its manifest."""

    def rows(self, name: str = "table") -> list[Record]:
        """Of a table; those of a control are left out."""
        return [row for row in self.tables.get(name, ()) if row.get("weights") in (None, "trained")]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a paper, and the criterion that a result is held against."""

    text: str
    source: str
    criterion: str
    judge: Callable[[Found], Verdict]
    count: Callable[[Found], int | None] = field(default=lambda _: None)
    """How many were measured; None if that is not known."""
    unit: str = "images"
    least: int = 0
    """From which number of them a result says anything."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """File of a figure -> what it shows."""

    def verdict(self, found: Found) -> Verdict:
        """By the criterion."""
        n = self.count(found)
        if self.least and n is None:
            return Verdict(OPEN, f"the result does not tell how many {self.unit} it is of; {self.least} are needed.")
        if n is not None and n < self.least:
            return Verdict(OPEN, f"a sample of {n} says nothing yet; {self.least} {self.unit} are needed.")
        return self.judge(found)

    def label(self, figure: str) -> str:
        """What a figure shows."""
        for name in sorted(self.figures, key=len, reverse=True):
            if figure == name or figure.startswith(f"{name}-"):
                return self.figures[name] + figure.removeprefix(name).replace("-", " ")
        return figure.replace("-", " ")

    def to_markdown(self, found: Found) -> str:
        """Claim, criterion and verdict."""
        return (
            f"**The papers say** ({self.source}): {self.text}\n\n**Criterion**: {self.criterion}\n\n"
            f"**{self.verdict(found)}**\n"
        )


def read_found(folder: Path, facts: Mapping[str, Any]) -> Found:
    """The numbers of a stored result, whose manifest is known."""
    return Found({path.stem: _read_csv(path) for path in sorted(folder.glob("*.csv"))}, facts)


def _read_csv(path: Path) -> list[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def interval_of(row: Record, name: str) -> Span | None:
    """Ends of the interval of a quantity, ours where the paper's stands beside it."""
    for key in (f"{name}, ours", name):
        low, high = row.get(f"{key} low"), row.get(f"{key} high")
        if isinstance(low, int | float) and isinstance(high, int | float) and math.isfinite(low + high):
            return float(low), float(high)
    return None


def count_images(found: Found) -> int | None:
    """How many images a result is of; None if it does not tell."""
    n = found.facts.get("images")
    return n if isinstance(n, int) else None


def fewest(kinds: Callable[[Record], bool] = lambda row: True) -> Callable[[Found], int | None]:
    """The smallest number of features in the rows of some kind."""
    return lambda found: min((int(row["features"]) for row in found.rows() if kinds(row)), default=0)


def all_or_one(checks: Iterable[Check]) -> Verdict:
    """Holds if all do, does not if one surely does not."""
    checks = list(checks)
    against = [what for what, _, no in checks if no]
    unsure = [what for what, yes, _ in checks if not yes]
    if against:
        return Verdict(FAILS, f"against it {'is' if len(against) == 1 else 'are'} {_listed(against)}.")
    if not checks or unsure:
        return Verdict(OPEN, f"not decided by the intervals: {_listed(unsure)}." if unsure else "nothing to compare.")
    return Verdict(HOLDS, f"so it is for {_listed([what for what, _, _ in checks])}.")


def _listed(names: list[str], most: int = 4) -> str:
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def told(what: str, row: Record, name: str) -> str:
    """A quantity with its interval."""
    key = f"{name}, ours" if f"{name}, ours low" in row else name
    return f"{what} {row[key]:.2f} ({row[f'{key} low']:.2f} to {row[f'{key} high']:.2f})"
