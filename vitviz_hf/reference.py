"""Scores of real photographs, so that a score can be called high: measured once for a model, then stored."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256

import torch
from safetensors.torch import load, save
from torch import Tensor

from vitviz_hf.errors import OutputExistsError
from vitviz_hf.hub import cache_folder
from vitviz_hf.manifest import write_file
from vitviz_hf.maps import site_scores
from vitviz_hf.model import ModelView, list_sites, to_pixels
from vitviz_hf.recording import activations
from vitviz_hf.sites import Feature, Site, parse_site
from vitviz_hf.stream import Example, builtin_paths, builtin_photographs

Reference = Mapping[Site, Tensor]


def reference_scores(view: ModelView, progress: Callable[[int, int], None] | None = None) -> dict[Site, Tensor]:
    """Score of every feature of every site on each built-in photograph, {site: [N, F]}.

    One forward pass for each photograph. Kept in the cache folder.

    Args:
        progress: called with the photographs done and their number.
    """
    names = list(builtin_paths())
    sites = [s for s, _ in list_sites(view)]
    wanted = sha256(f"{names} {list(map(str, sites))}".encode()).hexdigest()[:8]
    path = cache_folder() / "reference" / f"{view.identity.key}-{wanted}.safetensors"
    if path.is_file():
        return {parse_site(k): v for k, v in load(path.read_bytes()).items()}
    scores = score_examples(view, builtin_photographs(), sites, progress, len(names))
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
            rows[site].append(site_scores(view, acts[site].float(), site)[0].cpu())
        if progress:
            progress(done, n)
    return {s: torch.stack(v) for s, v in rows.items()}


def best_photograph(reference: Reference, feature: Feature) -> tuple[str, float]:
    """The built-in photograph with the highest score for a feature, and that score."""
    column = reference[feature.site][:, feature.index]
    return list(builtin_paths())[int(column.argmax())], float(column.max())
