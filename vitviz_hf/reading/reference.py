"""Scores of real photographs, so that a score can be called high: measured once for a model, then stored."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256

import torch
from safetensors.torch import load, save
from torch import Tensor

from vitviz_hf.errors import ModelError, OutputExistsError
from vitviz_hf.manifest import cache_folder, write_file
from vitviz_hf.models.view import ModelView, list_sites, to_pixels
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Feature, Site, parse_site
from vitviz_hf.stream import Example, builtin_paths, builtin_photographs

Reference = Mapping[Site, Tensor]


def reference_scores(view: ModelView, progress: Callable[[int, int], None] | None = None) -> dict[Site, Tensor]:
    """Score of every feature of every site on each built-in photograph, {site: [N, F]}.

    One forward pass for each photograph. Kept in the cache folder.

    Args:
        progress: called with the photographs done and their number.

    Raises:
        ModelError: no photograph has finite scores at any site.

    Warns:
        RuntimeWarning: some have scores that are not finite.
    """
    names = list(builtin_paths())
    sites = [s for s, _ in list_sites(view)]
    wanted = sha256(f"{names} {list(map(str, sites))}".encode()).hexdigest()[:8]
    path = cache_folder() / "reference" / f"{view.identity.key}-{wanted}.safetensors"
    if path.is_file():
        scores = {parse_site(k, view.kinds): v for k, v in load(path.read_bytes()).items()}
        _check_finite(view, scores)
        return scores
    scores = score_examples(view, builtin_photographs(), sites, progress, len(names))
    _check_finite(view, scores)
    with suppress(OutputExistsError):  # another process was faster
        write_file(path, save({str(k): v for k, v in scores.items()}))
    return scores


def score_examples(
    view: ModelView,
    examples: Iterable[Example],
    sites: list[Site],
    progress: Callable[[int, int], None] | None = None,
    n: int = 0,
) -> dict[Site, Tensor]:
    """Score of every feature of some sites on each picture, {site: [N, F]} in float32 on the CPU."""
    rows: dict[Site, list[Tensor]] = {s: [] for s in sites}
    for done, example in enumerate(examples, 1):
        acts = activations(view, to_pixels(view, example.image), sites)
        for site in sites:
            rows[site].append(acts[site].in_float32().scores()[0].cpu())
        if progress:
            progress(done, n)
    return {s: torch.stack(v) for s, v in rows.items()}


def best_photograph(reference: Reference, feature: Feature) -> tuple[str, float]:
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


def _check_finite(view: ModelView, scores: Reference) -> None:
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
