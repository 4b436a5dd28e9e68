"""Tables of results: markdown for people, CSV and JSON for programs."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured number with its confidence interval."""

    value: float
    low: float
    high: float


Cell = float | int | str | Interval | None


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns and rows of cells; None is what does not exist."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """What a reader must know; below the table."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a row has another length than the columns"

    def to_markdown(self) -> str:
        """A table of GitHub's markdown, then the notes."""
        cells = [list(map(_escape, self.columns)), ["---"] * len(self.columns)]
        cells += [[_text(cell) for cell in row] for row in self.rows]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row; an interval becomes three values: x, x low, x high."""
        return [
            {key: value for name, cell in zip(self.columns, row, strict=True) for key, value in _values(name, cell)}
            for row in self.rows
        ]

    def to_csv(self) -> str:
        """With a header; empty where there is nothing."""
        records = self.records()
        names = list(dict.fromkeys(name for record in records for name in record)) or list(self.columns)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return buffer.getvalue()

    def to_json(self) -> str:
        """Records and notes."""
        return json.dumps({"rows": self.records(), "notes": list(self.notes)}, indent=1)


def paper_and_ours(
    names: Sequence[str], rows: Sequence[Sequence[Sequence[Cell]]]
) -> tuple[list[str], list[list[Cell]]]:
    """Header and cells where each quantity stands twice: from the paper, and ours; only ours if the paper has none.

    Args:
        rows: for each row (from the paper, ours), one of each for every name.
    """
    known = [any(paper[i] is not None for paper, _ in rows) for i in range(len(names))]
    header: list[str] = []
    cells: list[list[Cell]] = [[] for _ in rows]
    for i, (name, both) in enumerate(zip(names, known, strict=True)):
        header += [f"{name}, paper", f"{name}, ours"] if both else [name]
        for row, (paper, ours) in zip(cells, rows, strict=True):
            row += [paper[i], ours[i]] if both else [ours[i]]
    return header, cells


def _values(name: str, cell: Cell) -> Sequence[tuple[str, Any]]:
    if isinstance(cell, Interval):
        return (name, cell.value), (f"{name} low", cell.low), (f"{name} high", cell.high)
    return ((name, None if isinstance(cell, float) and math.isnan(cell) else cell),)


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case Interval(value, low, high):
            return f"{value:.2f} ({low:.2f} to {high:.2f})"
        case float():
            return f"{cell:.2f}"
    return _escape(str(cell))


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
