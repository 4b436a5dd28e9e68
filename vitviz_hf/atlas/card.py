"""The card of an atlas on the Hub."""

from dataclasses import dataclass
from typing import Any

from vitviz_hf import __version__
from vitviz_hf.atlas.fold import SKETCH_ERROR
from vitviz_hf.hub import ATLAS, Token, find_tagged, is_hub_id, write_card

_TAG = "vitviz-atlas"
_FOUND = _NAMED = 20
_TAGS = [_TAG, "vitviz", "interpretability", "feature-visualization", "vision-transformer"]


@dataclass(frozen=True, slots=True)
class Words:
    """How the features of an atlas were named, see words.py."""

    namer: str
    namer_revision: str | None
    n_words: int
    templates: tuple[str, ...]
    chance: float
    """The agreement that the best word of 95 % of random sets of k images stays below."""


def _about_words(manifest: dict[str, Any], words: Words) -> str:
    return f"""
`words` names each feature by {words.n_words:,} words in the eyes of `{words.namer}` (revision
{words.namer_revision or "-"}). Agreement: how many standard deviations the word's similarity to the feature's
{manifest["k"]} most activating images lies above its mean over all stored images. The best word of 95 % of random sets
of {manifest["k"]} images stays below {words.chance:.2f}.
"""


def _about_non_finite(manifest: dict[str, Any]) -> str:
    if not (n := manifest["n_non_finite"]):
        return ""
    worst, m = max(manifest["non_finite"].items(), key=lambda pair: pair[1])
    return f"""
{n:,} gave non-finite activations and were left out of the sites where they did (most at {worst}: {m:,})."""


def _about_texts(manifest: dict[str, Any]) -> str:
    """What the features of a site are called, where they have names."""
    told = ""
    for site, names in manifest.get("names", {}).items():
        first = ", ".join(f'"{" ".join(name.split())}"' for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED:,} more, see `names` in manifest.json" if len(names) > _NAMED else ""
        told += f"\nThe features of {site}, from 0: {first}{more}.\n"
    return told


def dataset_card(manifest: dict[str, Any], words: Words | None = None) -> str:
    """README.md of an atlas."""
    model, dataset = manifest["model_id"], manifest["dataset"]
    configs = [
        {"config_name": "features", "default": True, "data_files": "features/*.parquet"},
        {"config_name": "images", "data_files": "images/*.parquet"},
        {"config_name": "words", "data_files": "words/*.parquet"},
    ]
    metadata = {
        "pretty_name": f"Atlas of {model}",
        "tags": [*_TAGS, *([_of_model(model)] if _on_the_hub(model) else [])],
        "base_model": model if _on_the_hub(model) else None,
        "source_datasets": [dataset] if _on_the_hub(dataset) else None,
        "configs": configs if words else configs[:2],
    }
    return write_card(_text(manifest, words), metadata)


def find_atlases(model_id: str, token: Token = None) -> list[str]:
    """Ids of the atlases of a model on the Hub, as their cards' tags tell.

    Raises:
        AtlasError: the Hub failed.
    """
    return find_tagged(ATLAS, [_TAG, _of_model(model_id)], _FOUND, token) if _on_the_hub(model_id) else []


def _of_model(model_id: str) -> str:
    return f"base_model:{model_id}"


def _on_the_hub(name: str) -> bool:
    return is_hub_id(name) and "/" in name


def _text(manifest: dict[str, Any], words: Words | None) -> str:
    model, dataset = manifest["model_id"], manifest["dataset"]
    return f"""# Atlas of {model}

For every feature of {len(manifest["sites"])} sites of `{model}` (revision {manifest["revision"] or "-"}): the
{manifest["k"]} most and least activating of {manifest["n_images"]:,} images of `{dataset}`
(revision {manifest["dataset_revision"] or "-"}, split {manifest["split"] or "-"}), and the distribution of its scores.
Score of an image: {manifest["reduce"]} over patch tokens of the activation, prefix tokens left out.
{_about_texts(manifest)}
`features` has a row for each feature; `top_rows` and `bottom_rows` count rows of `images`, from 0. Quantiles come
from a sketch: each is within {100 * SKETCH_ERROR:.1f} % of its value, or within 0.0001; beyond 1000 only the side is
known. Rankings hold an image once, statistics count each of its copies.
{manifest["n_skipped"]} images could not be read and were left out.{_about_non_finite(manifest)}
The crops are what the model saw; the rights in them are those of the dataset.
{"" if words is None else _about_words(manifest, words)}
Made with vitviz_hf {__version__}: `vitviz search {model} {dataset}`; open it with
`vitviz page {model} {next(iter(manifest["sites"]))}:0 --atlas THIS`.
"""
