"""Similarity and matches against computations by hand, on grids that are not square."""

import math

import pytest
import torch

from tests.inside.test_components import made, noise
from vitviz_hf.errors import ConfigError
from vitviz_hf.inside.similarity import Match, matches, similarity
from vitviz_hf.models.view import at_size
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Site

SITE = Site(1, "attn_k")


def cosine(a, b):
    return float(
        sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    )


def test_similarity_is_the_cosine_computed_by_hand(tiny_view):
    view = at_size(tiny_view("deit"), (32, 48))
    acts = activations(view, noise(view, 2), [SITE])[SITE]
    rows = acts.values.double().tolist()

    found = similarity(acts, [2 + 1 * 6 + 4])

    assert found.shape == (2, 4, 6)
    for picture in range(2):
        for r, c in ((0, 0), (1, 4), (3, 5)):
            expected = cosine(rows[0][2 + 10], rows[picture][2 + r * 6 + c])
            assert float(found[picture, r, c]) == pytest.approx(expected, abs=1e-6)
    assert found[0].argmax() == 10


def test_several_tokens_count_by_their_direction_and_not_their_length():
    acts = made(torch.tensor([[[100.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]]]), (1, 4))

    found = similarity(acts, [0, 1])

    torch.testing.assert_close(found, torch.tensor([[[0.5**0.5, 0.5**0.5, 1.0, 0.0]]]))


def test_a_token_is_asked_about_in_another_picture_of_another_grid():
    acts = made(torch.tensor([[[0.0, 2.0], [1.0, 0.0]]]), (1, 1), n_prefix=1)
    other = made(torch.tensor([[[1.0, 0.0], [0.0, -3.0], [3.0, 4.0]]]), (3, 1))

    torch.testing.assert_close(similarity(acts, [0], other), torch.tensor([[[0.0], [-1.0], [0.8]]]))


def test_matches_are_mutual_and_the_best_comes_first():
    first = made(torch.tensor([[[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]]]), (2, 2))
    second = made(torch.tensor([[[9.0, 9.0, 9.0], [0.0, 2.0, 0.0], [5.0, 0.0, 0.0]]]), (1, 2), n_prefix=1)

    found = matches(first, second)

    assert found == [Match((0, 0), (0, 1), 1.0), Match((1, 0), (0, 0), pytest.approx(1 / 1.04**0.5))]
    assert matches(first, second, 1) == found[:1]


def test_what_cannot_be_compared_is_told():
    acts, other = made(torch.ones(1, 4, 2), (2, 2)), made(torch.ones(2, 4, 3), (2, 2))

    for tokens in ([4], [-1], []):
        with pytest.raises(ConfigError, match=r"'1.resid' has tokens 0-3; got"):
            similarity(acts, tokens)
    with pytest.raises(ConfigError, match=r"'1.resid' has 2 features and '1.resid' 3: take one site"):
        similarity(acts, [0], other)
    with pytest.raises(ConfigError, match="matches takes two pictures; got 1 and 2"):
        matches(acts, other)
