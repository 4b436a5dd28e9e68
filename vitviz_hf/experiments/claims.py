"""What the papers claim, and by which numbers a result bears it out. Importing this imports nothing heavy."""

from collections.abc import Sequence

from vitviz_hf.experiments.verdict import (
    OPEN,
    Check,
    Claim,
    Found,
    Record,
    Verdict,
    all_or_one,
    count_images,
    fewest,
    interval_of,
    told,
)

_KEPT, _LOST, _LOCAL = 0.8, 0.9, -0.8
_SHARES = (0.5, 0.3, 0.1)
_WAYS = ("picture", "9 exemplars", "another's picture")


def _by_eye(found: Found) -> Verdict:
    return Verdict(OPEN, "no number of this result measures it; look at the pictures.")


def _agree(found: Found) -> Verdict:
    whole = [row for row in found.rows() if row.get("site") == "all"]
    spans = {way: interval_of(whole[0], way) for way in _WAYS} if whole else {}
    if not whole or None in spans.values():
        return Verdict(OPEN, "nothing to compare.")
    picture, nine, other = (spans[way] or (0.0, 0.0) for way in _WAYS)
    all_told = "; ".join(told(way, whole[0], way) for way in _WAYS)
    if float(whole[0]["9 exemplars"]) < 80 or other[1] > 60:
        return Verdict(OPEN, f"the measure is not valid here: {all_told}.")
    checks = [
        (f"the picture is above chance: {all_told}", picture[0] > 50, picture[1] <= 50),
        ("the picture is above another feature's", picture[0] > other[1], picture[1] < other[0]),
        ("nine exemplars are above the picture", nine[0] > picture[1], nine[1] < picture[0]),
    ]
    return all_or_one(checks)


def _keeps(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        if row.get("accuracy, %") != "top-1" or row["model"] not in found.facts.get("transformers", ()):
            continue
        natural = interval_of(row, "natural")
        for way in ("isolating CLS", "patch average"):
            own = interval_of(row, way)
            if natural and own and natural[0] > 0:
                what = told(f"{row['model']}, {way}:", row, way)
                checks.append((what, own[0] >= _KEPT * natural[1], own[1] < _KEPT * natural[0]))
            else:
                checks.append(_unmeasured(f"{row['model']}, {way}"))
    return all_or_one(checks)


def _unmeasured(what: str) -> Check:
    return f"{what} is not there to be compared", False, False


def _pairs(rows: Sequence[Record], names: Sequence[str], found: Found, where: str = "") -> list[tuple[str, bool, bool]]:
    """Every transformer against every other network: whether each quantity is larger."""
    transformers = found.facts.get("transformers", ())
    checks = []
    for one in (row for row in rows if row["model"] in transformers):
        for other in (row for row in rows if row["model"] not in transformers):
            for name in names:
                if (own := interval_of(one, name)) and (theirs := interval_of(other, name)):
                    first = told(f"{name}{where}: {one['model']}", one, name)
                    what = f"{first} and {told(other['model'], other, name)}"
                    checks.append((what, own[0] > theirs[1], own[1] < theirs[0]))
                else:
                    checks.append(_unmeasured(f"{name}{where} of {one['model']} or {other['model']}"))
    return checks


def _more_of_both(found: Found) -> Verdict:
    return all_or_one(_pairs(found.rows(), ("top-5 foreground", "top-5 background"), found))


def _more_of_low(found: Found) -> Verdict:
    checks = []
    for r in _SHARES:
        rows = [row for row in found.rows("intervals") if row.get("mask") == "square" and row.get("r") == r]
        checks += _pairs(rows, ("relative, %",), found, f" at r = {r:g}") or [_unmeasured(f"r = {r:g}")]
    return all_or_one(checks)


def _falls(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        if row["model"] not in found.facts.get("transformers", ()):
            continue
        natural = interval_of(row, "natural")
        for way in ("positions zeroed", "tiles shuffled"):
            own = interval_of(row, way)
            if natural and own and natural[0] > 0:
                what = told(f"{row['model']}, {way}:", row, way)
                checks.append((what, own[1] < _LOST * natural[0], own[0] > _LOST * natural[1]))
            else:
                checks.append(_unmeasured(f"{row['model']}, {way}"))
    return all_or_one(checks)


def _object_counts(found: Found) -> Verdict:
    half = {
        (row["model"], row["change"]): row
        for row in found.rows()
        if row.get("change") in ("salient", "non-salient") and float(row.get("ratio, or tiles in a row") or 0) == 0.5
    }
    checks = []
    for (model, change), row in half.items():
        other = half.get((model, "non-salient"), {})
        if (
            change == "salient"
            and (on := interval_of(row, "relative, %"))
            and (off := interval_of(other, "relative, %"))
        ):
            what = f"{told(f'{model}: on the object', row, 'relative, %')}, {told('off it', other, 'relative, %')}"
            checks.append((what, on[1] < off[0], on[0] > off[1]))
    return all_or_one(checks)


def _stays(found: Found) -> Verdict:
    rows, name = found.rows(), "active, slope"
    spans = [interval_of(row, name) for row in rows]
    known = [(row, span) for row, span in zip(rows, spans, strict=True) if span]
    if len(known) < max(2, len(rows)):
        return Verdict(OPEN, "not every layer has a slope.")
    checks = []
    for row, (low, high) in known:
        local, not_local, last = high <= _LOCAL, low > _LOCAL, row is rows[-1]
        what = told(f"layer {int(row['layer'])}, slope", row, name)
        checks.append((what, not_local if last else local, local if last else not_local))
    return all_or_one(checks)


def _rougher(found: Found) -> Verdict:
    checks = []
    for row in found.rows():
        if row.get("") != "narrow":
            continue
        name = f"{int(row['layer'])}.{row['kind']}"
        if span := interval_of(row, "minus wide"):
            checks.append((told(name, row, "minus wide"), span[0] > 0, span[1] < 0))
        else:
            checks.append(_unmeasured(name))
    return all_or_one(checks)


def _gathers(found: Found) -> Verdict:
    clean = {row.get("measure"): row for row in found.rows("change") if row.get("variant") == "clean"}
    checks = []
    for measure in ("purity", "in-object cosine"):
        if span := interval_of(clean.get(measure, {}), "last minus first"):
            what = told(f"{measure}, last layer minus first", clean[measure], "last minus first")
            checks.append((what, span[0] > 0, span[1] < 0))
        else:
            checks.append(_unmeasured(measure))
    return all_or_one(checks)


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
    count_images,
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
    count_images,
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
    count_images,
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
    count_images,
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
    count_images,
    least=_MANY,
    figures={"figure": "Accuracy against the share of tiles that is blacked out: any, on the object, off it"},
)
SPATIAL = Claim(
    "In all layers but the last a feature's activation stays where its cause is in the picture.",
    f"{_VIT}, appendix F",
    f"The active patches that are left fall along a slope of {_LOCAL:g} or steeper in every layer but the last, and "
    f"along a flatter one in the last; -1 is exactly local.{_ENDS}",
    _stays,
    fewest(),
    "features in each layer",
    8,
    {"figure": "What is left of a feature against the share of its active patches that is blacked out"},
)
AGREEMENT = Claim(
    "Optimized pictures tell which photographs a feature likes (people: 82 % right), and natural exemplars tell more "
    "(92 %).",
    "Borowski et al. 2021, arXiv:2010.12606, for people and a CNN",
    "The measure is valid where nine exemplars reach 80 % and the interval of another feature's picture holds no more "
    "than 60 %. Then: by the picture more than 50 % are right and more than by another feature's picture, and by nine "
    f"exemplars more than by the picture.{_ENDS}",
    _agree,
    lambda found: max((int(row["features"]) for row in found.rows()), default=0),
    "features",
    30,
    {"figure": "Each feature's picture, and the four photographs it likes best among those that were asked about"},
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
    fewest(lambda row: row.get("") == "narrow"),
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
