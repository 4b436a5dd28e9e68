"""Classifiers made of words."""

import torch

from vitviz_hf import load_zero_shot


def test_embeddings_of_several_labels_and_templates_are_not_mixed(tiny_view):
    view, labels, templates = tiny_view("clip"), ["cat", "red bus", "dog"], ["a {}.", "the {} is here."]

    together = load_zero_shot(view, labels, templates).embeddings

    alone = torch.cat([load_zero_shot(view, [label], templates).embeddings for label in labels])
    torch.testing.assert_close(together, alone)
    assert torch.pdist(together).min() > 1e-3
