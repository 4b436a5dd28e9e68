"""What the papers claim, and by which numbers a result bears it out. Importing this imports nothing heavy."""

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

_KEPT, _LOST, _LOCAL = 0.8, 0.9, -0.8
_SHARES = (0.5, 0.3, 0.1)


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


def _span(row: Record, name: str) -> Span | None:
    """Ends of the interval of a quantity, ours where the paper's stands beside it."""
    for key in (f"{name}, ours", name):
        low, high = row.get(f"{key} low"), row.get(f"{key} high")
        if isinstance(low, int | float) and isinstance(high, int | float) and math.isfinite(low + high):
            return float(low), float(high)
    return None


def _images(found: Found) -> int | None:
    n = found.facts.get("images")
    return n if isinstance(n, int) else None


def _fewest(kinds: Callable[[Record], bool] = lambda row: True) -> Callable[[Found], int | None]:
    """The smallest number of features in the rows of some kind."""
    return lambda found: min((int(row["features"]) for row in found.rows() if kinds(row)), default=0)


def _all_or_one(checks: Iterable[tuple[str, bool, bool]]) -> Verdict:
    """Holds if all do, does not if one surely does not.

    Args:
        checks: what is checked, whether it surely holds, and whether it surely does not.
    """
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


def _told(what: str, row: Record, name: str) -> str:
    """A quantity with its interval."""
    key = f"{name}, ours" if f"{name}, ours low" in row else name
    return f"{what} {row[key]:.2f} ({row[f'{key} low']:.2f} to {row[f'{key} high']:.2f})"


def _by_eye(found: Found) -> Verdict:
    return Verdict(OPEN, "no number of this result measures it; look at the pictures.")


def _keeps(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        natural = _span(row, "natural")
        for way in ("isolating CLS", "patch average"):
            if row.get("accuracy, %") == "top-1" and natural and (own := _span(row, way)):
                what = _told(f"{row['model']}, {way}:", row, way)
                checks.append((what, own[0] >= _KEPT * natural[1], own[1] < _KEPT * natural[0]))
    return _all_or_one(checks)


def _pairs(rows: Sequence[Record], names: Sequence[str], found: Found, where: str = "") -> list[tuple[str, bool, bool]]:
    """Every transformer against every other network: whether each quantity is larger."""
    transformers = found.facts.get("transformers", ())
    checks = []
    for one in (row for row in rows if row["model"] in transformers):
        for other in (row for row in rows if row["model"] not in transformers):
            for name in names:
                if (own := _span(one, name)) and (theirs := _span(other, name)):
                    first = _told(f"{name}{where}: {one['model']}", one, name)
                    what = f"{first} and {_told(other['model'], other, name)}"
                    checks.append((what, own[0] > theirs[1], own[1] < theirs[0]))
    return checks


def _more_of_both(found: Found) -> Verdict:
    return _all_or_one(_pairs(found.rows(), ("top-5 foreground", "top-5 background"), found))


def _more_of_low(found: Found) -> Verdict:
    checks = []
    for r in _SHARES:
        rows = [row for row in found.rows("intervals") if row.get("mask") == "square" and row.get("r") == r]
        checks += _pairs(rows, ("relative, %",), found, f" at r = {r:g}")
    return _all_or_one(checks)


def _falls(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        natural = _span(row, "natural")
        for way in ("positions zeroed", "tiles shuffled"):
            if natural and (own := _span(row, way)):
                what = _told(f"{row['model']}, {way}:", row, way)
                checks.append((what, own[1] < _LOST * natural[0], own[0] > _LOST * natural[1]))
    return _all_or_one(checks)


def _object_counts(found: Found) -> Verdict:
    half = {
        (row["model"], row["change"]): row
        for row in found.rows()
        if row.get("change") in ("salient", "non-salient") and float(row.get("ratio, or tiles in a row") or 0) == 0.5
    }
    checks = []
    for (model, change), row in half.items():
        other = half.get((model, "non-salient"), {})
        if change == "salient" and (on := _span(row, "relative, %")) and (off := _span(other, "relative, %")):
            what = f"{_told(f'{model}: on the object', row, 'relative, %')}, {_told('off it', other, 'relative, %')}"
            checks.append((what, on[1] < off[0], on[0] > off[1]))
    return _all_or_one(checks)


def _stays(found: Found) -> Verdict:
    rows, name = found.rows(), "active, slope"
    spans = [_span(row, name) for row in rows]
    known = [(row, span) for row, span in zip(rows, spans, strict=True) if span]
    if len(known) < max(2, len(rows)):
        return Verdict(OPEN, "not every layer has a slope.")
    checks = []
    for row, (low, high) in known:
        local, not_local, last = high <= _LOCAL, low > _LOCAL, row is rows[-1]
        what = _told(f"layer {int(row['layer'])}, slope", row, name)
        checks.append((what, not_local if last else local, local if last else not_local))
    return _all_or_one(checks)


def _rougher(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        if row.get("") == "narrow" and (span := _span(row, "minus wide")):
            what = _told(f"{int(row['layer'])}.{row['kind']}", row, "minus wide")
            checks.append((what, span[0] > 0, span[1] < 0))
    return _all_or_one(checks)


def _gathers(found: Found) -> Verdict:
    checks = []
    for row in found.rows("change"):
        if row.get("variant") == "clean" and row.get("measure") in ("purity", "in-object cosine"):
            span = _span(row, "last minus first")
            if span:
                what = _told(f"{row['measure']}, last layer minus first", row, "last minus first")
                checks.append((what, span[0] > 0, span[1] < 0))
    return _all_or_one(checks)


def _scenes(found: Found) -> int | None:
    n = found.facts.get("scenes")
    return n if isinstance(n, int) else None


_VIT = "Ghiasi et al. 2022, arXiv:2212.06727"
_MANY = 100
"""Images under which a bootstrap of an accuracy says little."""
_ENDS = " 95 % intervals decide."
TOKEN_MIXING = Claim(
    "Every patch token ends up with what the class token has, and the class token needs only the last layer for it.",
    f"{_VIT}, section 4",
    f"In each model the top-1 accuracy isolating CLS, and that of the patch average, is at least {_KEPT:g} of the "
    f"natural one.{_ENDS}",
    _keeps,
    _images,
    least=_MANY,
    figures={
        "figure": "Accuracy of the model's head on the token of each patch",
        "sweep": "Accuracy against the layers in which class token and patches are kept apart",
    },
)
BACKGROUND = Claim(
    "Vision transformers make better use of the foreground and of the background than convolutional networks.",
    f"{_VIT}, section 5",
    "Each transformer keeps a larger share of its top-5 accuracy than each other network, on the foreground alone and "
    f"on the background alone.{_ENDS}",
    _more_of_both,
    _images,
    least=_MANY,
    figures={
        "figure": "Share of the top-1 accuracy that is left on foreground and background alone",
        "masked-images": "Pictures, their foreground and their background by the boxes",
    },
)
LOW_PASS = Claim(
    "Vision transformers rely less on high frequencies than convolutional networks.",
    f"{_VIT}, appendix D",
    "Without the frequencies above r (square mask) each transformer keeps a larger share of its accuracy than each "
    f"other network, at r = {', '.join(f'{r:g}' for r in _SHARES)}.{_ENDS}",
    _more_of_low,
    _images,
    least=_MANY,
    figures={
        "figure": "Share of the accuracy that is left against the share of frequencies that is kept",
        "examples": "Pictures without their high frequencies",
    },
)
POSITION = Claim(
    "Without position embeddings, or with its tiles in another order, a picture is recognized much less often.",
    f"{_VIT}, released notes",
    f"In each model the accuracy falls below {_LOST:g} of the natural one, both ways.{_ENDS}",
    _falls,
    _images,
    least=_MANY,
    figures={"figure": "Accuracy as it is, with positions set to zero, and with shuffled tiles"},
)
OCCLUSION = Claim(
    "What the model knows of an object goes with the object's own patches, and stays without the others.",
    "What Neurons Tell and How Neurons Behave, arXiv:2210.07646, figure of dropped patches, which shows views; the "
    "accuracy is a measure of ours",
    "In each model half of the tiles on the object, blacked out, cost more of the accuracy than half of those off it."
    f"{_ENDS}",
    _object_counts,
    _images,
    least=_MANY,
    figures={"figure": "Accuracy against the share of tiles that is blacked out: any, on the object, off it"},
)
SPATIAL = Claim(
    "In all layers but the last a feature's activation stays where its cause is in the picture.",
    f"{_VIT}, appendix F",
    f"The active patches that are left fall along a slope of {_LOCAL:g} or steeper in every layer but the last, and "
    f"along a flatter one in the last; -1 is exactly local.{_ENDS}",
    _stays,
    _fewest(),
    "features in each layer",
    8,
    {"figure": "What is left of a feature against the share of its active patches that is blacked out"},
)
PROGRESSION = Claim(
    "From the first layer to the last, pictures go from edges and textures through patterns and parts to objects.",
    f"{_VIT}, Fig. 1 and 8",
    "By eye only.",
    _by_eye,
    figures={"figure": "Optimized pictures of neurons, a row for each layer"},
)
NARROW_SITES = Claim(
    "Pictures of narrow sites (queries, keys, values, inputs) look like noise of high frequency; those of the wide "
    "feed-forward activations do not.",
    f"{_VIT}, Fig. 4, 5 and 12",
    "In each layer the pictures of every narrow site have a larger share of high frequencies than those of the wide "
    f"one: 'minus wide' is above 0.{_ENDS}",
    _rougher,
    _fewest(lambda row: row.get("") == "narrow"),
    "features at each site",
    8,
    {"figure": "Optimized pictures of each site, a row for each"},
)
TRIPLETS = Claim(
    "An optimized picture shows what the most activating photograph has where the feature fires.",
    f"{_VIT}, Fig. 3, 6 and 9a",
    "By eye only.",
    _by_eye,
    figures={"figure": "Optimized picture, most activating photograph, and where the feature fires on it"},
)
CONCEPTS = Claim(
    "Features of CLIP stand for concepts that language has, such as 'before and after' or 'from above'.",
    f"{_VIT}, section 6",
    "By eye only.",
    _by_eye,
    figures={"figure": "Optimized picture and the seven most activating photographs of each feature"},
)
GROUP = Claim(
    "From layer to layer the patches of one object come together and become more alike.",
    "What Neurons Tell and How Neurons Behave, arXiv:2210.07646, curves over layers",
    "Purity of the clusters and cosine within an object are higher in the last layer than in the first, over scenes."
    f"{_ENDS}",
    _gathers,
    _scenes,
    "scenes",
    30,
    {
        "figure": "Measures of the grouping against the layers passed",
        "tsne": "Patches of one scene after some blocks, in the plane (t-SNE), colored by object",
    },
)
