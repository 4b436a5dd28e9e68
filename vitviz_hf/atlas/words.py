"""Words for features: what their most activating images have in common in the eyes of CLIP or SigLIP.

After Oikarinen and Weng, CLIP-Dissect, arXiv:2204.10965, with another measure of agreement. The cosine of every stored
image with every word is put in standard deviations above that word's mean over all stored images, so that words
which fit everything win nothing; the agreement of a feature with a word is the mean of that over the feature's k most
activating images. Random sets of k images tell how far the best word of a meaningless feature comes.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vitviz_hf.atlas.card import Words, dataset_card
from vitviz_hf.atlas.store import Atlas
from vitviz_hf.errors import ModelError
from vitviz_hf.images import open_image
from vitviz_hf.manifest import check_absent, replace_file, write_dir
from vitviz_hf.models.view import ModelView, logits, to_pixels
from vitviz_hf.reading.classification import as_classifier, imagenet_labels, load_zero_shot
from vitviz_hf.reading.maps import name_precision
from vitviz_hf.sites import Feature, Site

TEMPLATES = ("{}", "a photo of {}")
_RANDOM_SETS = 1000
_WORDS_KEPT = 8
_IMAGES_AT_ONCE = 32


def vocabulary() -> tuple[str, ...]:
    """The classes of ImageNet and 667 common nouns, adjectives and prepositions."""
    common = (files("vitviz_hf.atlas") / "words.txt").read_text("utf-8").splitlines()
    return tuple(dict.fromkeys((*imagenet_labels(), *common)))


def name_features(
    atlas: Atlas,
    namer: ModelView,
    words: Sequence[str] | None = None,
    token: str | bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Words:
    """Find words for every feature of an atlas, from its stored crops, and keep them in it.

    Args:
        namer: any CLIP, MetaCLIP, SigLIP or AIMv2, often the atlas's own model.
        words: the vocabulary; `vocabulary()` if None.
        token: Hub token, as in `load_model`.
        progress: called with the images and texts read and their number.

    Returns:
        How they were found; the words themselves are then `atlas.feature_words(feature)`.

    Raises:
        OutputExistsError: the atlas has words already.
        NoClassifierError: the namer has no text tower.
        ConfigError: an empty vocabulary.
        ModelError: the namer's similarities are finite for no image.

    Warns:
        RuntimeWarning: they are not for some; these images count as absent.
    """
    check_absent(atlas.folder / "words")
    words = vocabulary() if words is None else tuple(dict.fromkeys(words))
    n_texts, n_images = len(words) * len(TEMPLATES), int(atlas.manifest["n_stored_images"])

    def show(done: int, before: int) -> None:
        if progress:
            progress(before + done, n_texts + n_images)

    zero_shot = load_zero_shot(namer, words, TEMPLATES, token, lambda done, _: show(done, 0))
    similarity = []
    for start in range(0, n_images, _IMAGES_AT_ONCE):
        rows = range(start, min(start + _IMAGES_AT_ONCE, n_images))
        pixels = torch.cat([to_pixels(namer, open_image(atlas.image(row).jpeg)) for row in rows])
        with torch.no_grad():  # not `classify`, which refuses them all if one is not finite
            similarity.append(logits(as_classifier(namer, zero_shot), pixels).float().cpu())
        show(rows.stop, n_texts)
    deviations, place = _finite_deviations(namer, torch.cat(similarity))
    best = {}
    for site in atlas.sites:
        ranked = torch.from_numpy(atlas.table(site).top_rows).long()
        agreement = agreements(deviations, place[ranked].where(ranked >= 0, -1))
        strengths, indices = agreement.topk(min(_WORDS_KEPT, len(words)), dim=1)
        best[site] = indices.numpy(), strengths.numpy()
    chance = chance_agreement(deviations, int(atlas.manifest["k"]))
    found = Words(namer.model_id, namer.revision, len(words), TEMPLATES, chance)
    write_words(atlas, found, words, best)
    return found


def agreements(deviations: Tensor, rows: Tensor) -> Tensor:
    """Mean over each feature's images of how far every word stands out in them.

    Args:
        deviations: [N, V], images by words.
        rows: [F, k] images of each feature, -1 where there are fewer.

    Returns:
        [F, V]
    """
    absent = len(deviations)
    table = torch.cat([deviations, torch.zeros(1, deviations.shape[1])])
    return functional.embedding_bag(rows.where(rows >= 0, absent), table, mode="mean", padding_idx=absent)


def chance_agreement(deviations: Tensor, k: int) -> float:
    """The agreement that the best word of 95 % of random sets of k images stays below."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randperm, len(deviations), generator=generator)
    rows = torch.stack([draw()[:k] for _ in range(_RANDOM_SETS)])
    return float(agreements(deviations, rows).amax(1).quantile(0.95))


def _finite_deviations(namer: ModelView, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations of the images with finite similarities [N, V], and the row of every image in them or -1."""
    finite = similarity.isfinite().all(1)
    n_bad = int((~finite).sum())
    if n_bad:
        text = f"{name_precision(namer)} gives non-finite similarities on {n_bad} of {len(finite)} images"
        if n_bad == len(finite):
            raise ModelError(f"{text}. Check its weights, or load it in float32.")
        warnings.warn(f"{text}; they count as absent.", RuntimeWarning, stacklevel=3)
    return _standardize(similarity[finite]), (finite.cumsum(0) - 1).where(finite, -1)


def _standardize(similarity: Tensor) -> Tensor:
    """Standard deviations of [N, V] above each word's mean over the images; 0 for a word that never moves."""
    std = similarity.std(0, correction=0)
    return (similarity - similarity.mean(0)) / torch.where(std > 1e-6, std, torch.inf)


def write_words(
    atlas: Atlas,
    words: Words,
    vocabulary: Sequence[str],
    best: Mapping[Site, tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> None:
    """Keep words in an atlas.

    Args:
        best: for each site, places in `vocabulary` and agreements, both [F, n], best first.

    Raises:
        OutputExistsError: it has words already.
    """
    schema = pa.schema(
        [("feature", pa.string()), ("words", pa.list_(pa.string())), ("agreement", pa.list_(pa.float32()))]
    )
    with write_dir(atlas.folder / "words") as folder:
        with pq.ParquetWriter(folder / "words.parquet", schema) as writer:
            for site in atlas.sites:
                indices, strengths = best[site]
                columns = [
                    [str(Feature(site, i)) for i in range(len(indices))],
                    [[vocabulary[i] for i in row] for row in indices.tolist()],
                    strengths.tolist(),
                ]
                writer.write_table(
                    pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
                )
        (folder / "manifest.json").write_text(json.dumps(asdict(words), indent=1), "utf-8")
        with replace_file(atlas.folder / "README.md") as part:
            part.write_text(dataset_card(atlas.manifest, words), "utf-8")
