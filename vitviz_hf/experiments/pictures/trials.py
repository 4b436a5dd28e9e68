"""Trials that ask a judge: which of two photographs does the feature like, if this is a picture of it?

A machine form of the two-alternative task of Borowski et al. 2021 (arXiv:2010.12606). The dataset is read once and
split in two by the images' keys. One half helps: exemplars come from it, and whatever else goes into a picture. The
other half is asked about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitviz_hf.atlas.fold import Ranking
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.pictures.judge import Judge
from vitviz_hf.experiments.registry import EXPERIMENTS
from vitviz_hf.images import bytes_to_image, bytes_to_pixels, encode, image_to_pixels, open_image, pixels_to_bytes
from vitviz_hf.models.view import ModelView, find_tap
from vitviz_hf.reading.batches import decoders, read_batches
from vitviz_hf.reading.recording import Acts, record_each
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import Source

N_QUERIES = 20
"""Best images of a feature that are asked about, and as many from the middle of its ranking."""
N_EXEMPLARS = 9
LEAST_IMAGES = EXPERIMENTS["agreement"].least_images
_NEAREST = 5
Floats = NDArray[np.float32]
Depths = tuple[str, ...]
"""Of the judge, whose values are compared together."""


@dataclass(slots=True)
class Photographs:
    """What was read of a dataset: N images, each once."""

    features: list[Feature]
    """Candidates: twice as many as wanted of each site, since some may be dead."""
    scores: Floats
    """[N, n_features]"""
    helps: NDArray[np.bool_]
    """[N] of the half that helps to make pictures; the others are asked about."""
    keys: list[int]
    embeddings: dict[str, Floats]
    """Depth of the judge -> [N, D], standardized over the images."""
    looks: Floats
    """[N, 8] mean and deviation of red, green, blue, then saturation and contrast, see `look_of`."""
    spectra: Floats
    """[N, R], see `spectrum_of`."""
    crops: dict[int, bytes]
    """Key -> JPEG of the best images of each half for each candidate."""
    moments: dict[Site, tuple[NDArray[np.float64], NDArray[np.float64]]]
    """Mean and deviation of every feature's score, [F] each."""
    centers: dict[str, tuple[Floats, Floats]]
    """Depth -> mean and deviation [D] of the judge's values."""

    def ranked(self, feature: Feature, helps: bool) -> NDArray[np.int64]:
        """Images of one half, the best for the feature first; ties by key, as those whose crops are kept."""
        own = np.flatnonzero(self.helps == helps)
        return own[np.lexsort((np.array(self.keys)[own], -self.scores[own, self.features.index(feature)]))]

    def score(self, i: int, feature: Feature) -> float:
        """Of a feature on an image."""
        return float(self.scores[i, self.features.index(feature)])

    def image(self, i: int) -> Image.Image:
        """The crop of an image that is among the best of its half."""
        return open_image(self.crops[self.keys[i]])

    def seen(self, depths: Depths) -> Floats:
        """What the judge compares of the images, [N, D] of length 1."""
        return _unit(np.concatenate([self.embeddings[d] for d in depths], 1))

    def compare(self, depths: Depths, values: Mapping[str, Tensor]) -> Floats:
        """The same of other pictures, from what `Judge.embed` gives of them."""
        parts = [(values[d].numpy() - self.centers[d][0]) / self.centers[d][1] for d in depths]
        return _unit(np.concatenate(parts, 1))


@dataclass(slots=True)
class _Reading:
    """What grows while the dataset is read."""

    scores: list[Tensor] = field(default_factory=list)
    embeddings: dict[str, list[Tensor]] = field(default_factory=dict)
    looks: list[Tensor] = field(default_factory=list)
    spectra: list[Tensor] = field(default_factory=list)
    keys: dict[int, None] = field(default_factory=dict)
    crops: dict[int, bytes] = field(default_factory=dict)


def draw_candidates(view: ModelView, sites: Sequence[Site], per_site: int, seed: int) -> list[Feature]:
    """Features drawn at random, twice as many as wanted of each site, in the order in which they are taken."""
    drawn: list[Feature] = []
    for site in sites:
        size = find_tap(view, site).size
        order = np.random.default_rng((seed, site.layer)).permutation(size)[: 2 * per_site]
        drawn += [Feature(site, int(i)) for i in order]
    return drawn


def read_photographs(
    view: ModelView,
    judge: Judge,
    source: Source | Atlas,
    candidates: Sequence[Feature],
    limit: int | None,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> Photographs:
    """One pass over a dataset, or over the images that an atlas stores, of the model and the judge: both see the crop.

    Raises:
        DatasetError: the stream failed.
        ConfigError: fewer than `LEAST_IMAGES` different images.
    """
    sites = list(dict.fromkeys(f.site for f in candidates))
    own = {site: [f.index for f in candidates if f.site == site] for site in sites}
    reading = _Reading()
    rankings = [Ranking.empty(len(candidates), N_QUERIES, torch.device("cpu")) for _ in range(2)]
    sums = {site: torch.zeros(2, find_tap(view, site).size, dtype=torch.float64) for site in sites}
    batches = _stored(source, limit, batch) if isinstance(source, Atlas) else _streamed(view, source, limit, batch)
    for done, n, crops in batches:
        fresh = [(key, crop) for key, crop in crops.items() if key not in reading.keys]
        if fresh:
            stack = torch.from_numpy(np.stack([crop for _, crop in fresh]))
            pixels = bytes_to_pixels(stack.to(view.device))
            found: dict[Site, Tensor] = {}
            with torch.no_grad():
                record_each(view, pixels, sites, partial(_take_scores, found))
            for site in sites:
                sums[site] += torch.stack([found[site].double().sum(0), found[site].double().square().sum(0)])
            _take_in(reading, judge, pixels, torch.cat([found[s][:, own[s]] for s in sites], 1))
            _keep_best(reading, rankings, [key for key, _ in fresh], stack)
        if progress:
            progress(done, n)
    return _finished(reading, candidates, sums)


_Crops = dict[int, NDArray[np.uint8]]
"""Key -> [3, H, W] as the model sees it."""


def _streamed(view: ModelView, source: Source, limit: int | None, batch: int) -> Iterator[tuple[int, int, _Crops]]:
    """Rows so far, their number, and the images of each batch."""
    done = 0
    with decoders(view, 0) as submit:
        for rows in read_batches(source.read(0, 1, None), submit, batch, limit):
            done += len(rows.items)
            yield done, limit or source.n_rows or 0, {row.key: value for row, value in rows.usable}


def _stored(atlas: Atlas, limit: int | None, batch: int) -> Iterator[tuple[int, int, _Crops]]:
    """The same of an atlas."""
    n = min(atlas.manifest["n_stored_images"], limit or 10**9)
    for start in range(0, n, batch):
        rows = [atlas.image(row) for row in range(start, min(start + batch, n))]
        crops = {row.key: pixels_to_bytes(image_to_pixels(open_image(row.jpeg))).numpy() for row in rows}
        yield start + len(rows), n, crops


def _take_scores(found: dict[Site, Tensor], acts: Acts) -> None:
    found[acts.site] = acts.scores().cpu()


def _take_in(reading: _Reading, judge: Judge, pixels: Tensor, scores: Tensor) -> None:
    reading.scores.append(scores)
    for name, values in judge.embed(pixels).items():
        reading.embeddings.setdefault(name, []).append(values)
    reading.looks.append(look_of(pixels.cpu()))
    reading.spectra.append(spectrum_of(pixels.cpu()))


def _keep_best(reading: _Reading, rankings: Sequence[Ranking], keys: Sequence[int], stack: Tensor) -> None:
    """Crops of images that are among the best of their half for some candidate."""
    scores, places = reading.scores[-1], torch.tensor(keys)
    for half, ranking in enumerate(rankings):
        own = places % 2 == half
        if own.any():
            entered = set(ranking.update(scores[own].T, places[own].expand(scores.shape[1], -1)).tolist())
            for key, values in zip(keys, stack, strict=True):
                if key in entered:
                    reading.crops[key] = encode(bytes_to_image(values), "JPEG", quality=92)
    reading.keys.update(dict.fromkeys(keys))
    best = {int(key) for ranking in rankings for key in ranking.keys.unique()}
    reading.crops = {key: jpeg for key, jpeg in reading.crops.items() if key in best}


def _finished(reading: _Reading, candidates: Sequence[Feature], sums: Mapping[Site, Tensor]) -> Photographs:
    n = len(reading.keys)
    if n < LEAST_IMAGES:
        raise ConfigError(f"agreement needs at least {LEAST_IMAGES} different images; the dataset gave {n}.")
    raw = {name: torch.cat(values).numpy() for name, values in reading.embeddings.items()}
    centers = {name: (values.mean(0), np.maximum(values.std(0), 1e-6)) for name, values in raw.items()}
    moments = {}
    for site, (total, squares) in sums.items():
        mean = (total / n).numpy()
        moments[site] = mean, np.sqrt(np.maximum((squares / n).numpy() - mean**2, 0))
    keys = list(reading.keys)
    return Photographs(
        list(candidates),
        torch.cat(reading.scores).numpy(),
        np.array([key % 2 == 0 for key in keys]),
        keys,
        {name: (values - centers[name][0]) / centers[name][1] for name, values in raw.items()},
        torch.cat(reading.looks).numpy(),
        torch.cat(reading.spectra).numpy(),
        reading.crops,
        moments,
        centers,
    )


def live_features(photographs: Photographs, per_site: int) -> list[Feature]:
    """The first candidates of each site whose best score is above 0 and that tell images apart."""
    chosen: list[Feature] = []
    for site in dict.fromkeys(f.site for f in photographs.features):
        own = [(i, f) for i, f in enumerate(photographs.features) if f.site == site]
        live = [f for i, f in own if photographs.scores[:, i].max() > 0 and np.ptp(photographs.scores[:, i]) > 0]
        chosen += live[:per_site]
    return chosen


def exemplars(photographs: Photographs, feature: Feature, n: int = N_EXEMPLARS) -> NDArray[np.int64]:
    """The best images of the half that helps."""
    return photographs.ranked(feature, helps=True)[:n]


@dataclass(frozen=True, slots=True)
class Queries:
    """Images that are asked about for one feature."""

    best: NDArray[np.int64]
    """[20]"""
    middle: NDArray[np.int64]
    """[20] from the middle of the ranking."""
    alike: NDArray[np.int64]
    """[20, 5] for each of the best those of the middle half that are most like it in color and contrast."""


def queries(photographs: Photographs, feature: Feature, helps: bool = False, skip: int = 0) -> Queries:
    """What is asked about a feature.

    Args:
        helps: of the half that helps, as when the judge's depth is chosen.
        skip: best images left out, which serve as exemplars then.
    """
    ranked = photographs.ranked(feature, helps)
    n = len(ranked)
    best = ranked[skip : skip + N_QUERIES]
    start = n // 2 - N_QUERIES // 2
    between = ranked[n // 4 : n - n // 4]
    looks = photographs.looks[:, :6]
    looks = (looks - looks.mean(0)) / np.maximum(looks.std(0), 1e-6)
    apart = np.linalg.norm(looks[best][:, None] - looks[between][None], axis=2)
    return Queries(
        best, ranked[start : start + N_QUERIES], between[np.argsort(apart, axis=1, kind="stable")[:, :_NEAREST]]
    )


def share_right(reference: Floats, best: Floats, others: Floats) -> float:
    """How often a judge takes the best one for nearer to the reference, over all pairs; a tie is half.

    Args:
        reference: [n, D], several are asked together by their mean.
        best: [q, D]
        others: [m, D], or [q, m, D] for each of the best its own. All of length 1.
    """
    toward = reference.mean(0)
    own, rivals = best @ toward, others @ toward
    rivals = np.broadcast_to(rivals, (len(own), rivals.shape[-1]))
    wins = (own[:, None] > rivals) + 0.5 * (own[:, None] == rivals)
    return float(wins.mean())


@dataclass(frozen=True, slots=True)
class Shares:
    """Share of right choices."""

    plain: float
    """Between a best image and one from the middle of the ranking."""
    alike: float
    """The same where the two are alike in color and contrast."""


def ask(seen: Floats, asked: Queries, reference: Floats) -> Shares:
    """What the judge makes of references [n, D], if it sees the images as [N, D]."""
    best = seen[asked.best]
    return Shares(share_right(reference, best, seen[asked.middle]), share_right(reference, best, seen[asked.alike]))


def choose_depths(photographs: Photographs) -> dict[Depths, float]:
    """Share of right choices by nine exemplars at each depth of the judge, and at each two together; the best first.

    By natural images alone, of the half that helps, and not by those that are asked about later.
    """
    live = live_features(photographs, len(photographs.features))
    asked = {f: queries(photographs, f, helps=True, skip=N_EXEMPLARS) for f in live}
    names = list(photographs.embeddings)
    found: dict[Depths, float] = {}
    for depths in [(n,) for n in names] + list(pairwise(names)):
        seen = photographs.seen(depths)
        shares = [ask(seen, asked[f], seen[exemplars(photographs, f)]).plain for f in live]
        found[depths] = float(np.mean(shares))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def look_of(pixels: Tensor) -> Tensor:
    """Mean and deviation of each color, saturation (largest minus least color) and contrast (deviation of the gray).

    Args:
        pixels: [B, 3, H, W] in [0, 1].

    Returns:
        [B, 8]
    """
    flat = pixels.flatten(2)
    saturation = (flat.amax(1) - flat.amin(1)).mean(1)
    return torch.cat([flat.mean(2), flat.std(2), saturation[:, None], flat.mean(1).std(1)[:, None]], 1)


def spectrum_of(pixels: Tensor) -> Tensor:
    """Mean logarithm of the gray picture's power on rings of equal width, up to the highest frequency.

    Args:
        pixels: [B, 3, H, W] in [0, 1].

    Returns:
        [B, 32]
    """
    gray = pixels.mean(1)
    height, width = gray.shape[1:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    power = torch.fft.fft2((gray - gray.mean((1, 2), keepdim=True)) * window).abs().square()
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    ring = (radius * 64).round().long().clamp(max=32).flatten()
    logs = (power + 1e-8).log().flatten(1)
    total = torch.zeros(len(gray), 33).index_add_(1, ring, logs)
    return (total / torch.bincount(ring, minlength=33).clamp(min=1))[:, :32]


def _unit(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12), np.float32)
