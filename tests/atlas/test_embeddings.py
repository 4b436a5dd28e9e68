"""Classifiers made of words."""

import torch

from vitviz_hf import load_zero_shot, open_source
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.words import name_features
from vitviz_hf.atlas.write import make_atlas


def test_embeddings_of_several_labels_and_templates_are_not_mixed(tiny_view):
    view, labels, templates = tiny_view("clip"), ["cat", "red bus", "dog"], ["a {}.", "the {} is here."]

    together = load_zero_shot(view, labels, templates).embeddings

    alone = torch.cat([load_zero_shot(view, [label], templates).embeddings for label in labels])
    torch.testing.assert_close(together, alone)
    assert torch.pdist(together).min() > 1e-3


def test_progress_counts_texts_and_then_images(tiny_view, labelled, tmp_path):
    view, words = tiny_view("clip"), [f"w{i}" for i in range(250)]
    atlas = make_atlas(view, open_source(str(labelled)), SearchConfig(k=2, layers=(1,)), tmp_path / "atlas")
    n_images, told, texts = atlas.manifest["n_stored_images"], [], []

    name_features(atlas, view, words, progress=lambda *n: told.append(n))
    load_zero_shot(view, words, ["a {}.", "two {}."], progress=lambda *n: texts.append(n))

    whole = 500 + n_images
    assert texts == [(400, 500), (500, 500)]
    assert told == [(400, whole), (500, whole), (whole, whole)]
