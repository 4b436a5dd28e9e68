"""Scores of real photographs, so that a score can be called high: measured once for a model, then stored."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

import torch
from safetensors.torch import load, save
from torch import Tensor

from vitviz_hf.errors import ModelError, OutputExistsError
from vitviz_hf.manifest import cache_folder, write_file
from vitviz_hf.models.view import ModelView, list_sites, to_pixels
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import KINDS, Feature, Site
from vitviz_hf.stream import Example, builtin_paths, builtin_photographs

_PARTS = ("scores", "peaks", "places", "active")
Scores = Mapping[Site, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What every feature of a model does on some photographs: N rows, one for each."""

    names: tuple[str, ...]
    scores: Scores
    """{site: [N, F]}, mean over patches."""
    peaks: Scores
    """{site: [N, F]}, value at the patch where the feature fires most."""
    places: Scores
    """{site: [N, F]}, number of that patch, row by row from 0."""
    active: Scores
    """{site: [N, F]}, share of patches where the value is above 0."""


def load_reference(view: ModelView, progress: Callable[[int, int], None] | None = None) -> Reference:
    """Every feature of every site on each built-in photograph.

    One forward pass for each photograph. Kept in the cache folder.

    Args:
        progress: called with the photographs done and their number.

    Raises:
        ModelError: no photograph has finite scores at any site.

    Warns:
        RuntimeWarning: some have scores that are not finite.
    """
    names = tuple(builtin_paths())
    sites = [s for s, _ in list_sites(view)]
    wanted = sha256(f"{_PARTS} {names} {list(map(str, sites))}".encode()).hexdigest()[:8]
    path = cache_folder() / "reference" / f"{view.identity.key}-{wanted}.safetensors"
    if path.is_file():
        kept = load(path.read_bytes())
        found = Reference(names, *({s: kept[f"{s} {part}"] for s in sites} for part in _PARTS))
        _check_finite(view, found.scores)
        return found
    found = measure_examples(view, builtin_photographs(), sites, progress, len(names))
    _check_finite(view, found.scores)
    parts = zip(_PARTS, (found.scores, found.peaks, found.places, found.active), strict=True)
    with suppress(OutputExistsError):  # another process was faster
        write_file(path, save({f"{s} {part}": values[s] for part, values in parts for s in sites}))
    return found


def reference_at(view: ModelView, site: Site, kept: Callable[[ModelView], Reference] | None = None) -> Reference:
    """A reference that has the site.

    Of texts and labels only that site's, which nothing is kept of: visitors type any number of texts.

    Args:
        kept: gives that of all other sites; `load_reference` if None.
    """
    if site.kind in KINDS:
        return (kept or load_reference)(view)
    return measure_examples(view, builtin_photographs(), [site])


def reference_scores(view: ModelView, progress: Callable[[int, int], None] | None = None) -> dict[Site, Tensor]:
    """Score of every feature of every site on each built-in photograph, {site: [N, F]}, as in `load_reference`.

    Raises:
        ModelError: no photograph has finite scores at any site.

    Warns:
        RuntimeWarning: some have scores that are not finite.
    """
    return dict(load_reference(view, progress).scores)


def measure_examples(
    view: ModelView,
    examples: Iterable[Example],
    sites: list[Site],
    progress: Callable[[int, int], None] | None = None,
    n: int = 0,
) -> Reference:
    """Every feature of some sites on each picture, in float32 on the CPU."""
    names: list[str] = []
    parts: tuple[dict[Site, list[Tensor]], ...] = tuple({s: [] for s in sites} for _ in _PARTS)
    for done, example in enumerate(examples, 1):
        names.append(example.key)
        acts = activations(view, to_pixels(view, example.image), sites)
        for site in sites:
            own = acts[site].in_float32()
            peaks, places = own.patches[0].max(dim=0)
            active = (own.patches[0] > 0).float().mean(0)
            for rows, values in zip(parts, (own.scores()[0], peaks, places.to(torch.int16), active), strict=True):
                rows[site].append(values.cpu())
        if progress:
            progress(done, n)
    return Reference(tuple(names), *({s: torch.stack(v) for s, v in rows.items()} for rows in parts))


def best_photograph(reference: Scores, feature: Feature) -> tuple[str, float]:
    """The built-in photograph with the highest score for a feature, and that score.

    Photographs with a score at the site that is not finite are left out.

    Raises:
        ModelError: none is left.
    """
    scores = reference[feature.site]
    finite = scores.isfinite().all(1)
    if not finite.any():
        raise ModelError(f"no built-in photograph has finite scores at {feature.site}; check the model's weights.")
    column = scores[:, feature.index].where(finite, -math.inf)
    return list(builtin_paths())[int(column.argmax())], float(column.max())


def correlated_features(reference: Scores, feature: Feature, n: int) -> list[tuple[Feature, float]]:
    """The n features of the same site whose scores go most with one's over the photographs, with the correlation.

    Photographs with a score at the site that is not finite are left out, and features without a positive correlation,
    such as those that never move.
    """
    scores = reference[feature.site].double()
    scores = scores[scores.isfinite().all(1)]
    away = scores - scores.mean(0)
    moves = away.square().sum(0)
    r = (away[:, feature.index] @ away) / (moves * moves[feature.index]).sqrt().clamp_min(torch.finfo(moves.dtype).tiny)
    r[feature.index] = 0
    best = r.topk(min(n, len(r)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(Feature(feature.site, i), value) for i, value in pairs if value > 0]


def _check_finite(view: ModelView, scores: Scores) -> None:
    """Rows stay, so that they are those of the photographs; who reads them leaves out what is not finite."""
    finite = {s: v.isfinite().all(1) for s, v in scores.items()}
    where = [str(s) for s, rows in finite.items() if not rows.all()]
    if not where:
        return
    if not any(rows.any() for rows in finite.values()):
        raise ModelError(
            f"{name_precision(view)} gives non-finite scores at every site on every built-in photograph. Check its "
            "weights, or load it in float32."
        )
    bad = ~torch.stack(list(finite.values())).all(0)
    names = [name for name, is_bad in zip(builtin_paths(), bad.tolist(), strict=True) if is_bad]
    warnings.warn(
        f"{name_precision(view)} gives non-finite scores at {', '.join(where)} on {', '.join(names)}; they are left "
        "out there.",
        RuntimeWarning,
        stacklevel=3,
    )
