"""Rankings and moments of features, over images of which some have values that are no numbers."""

import math

import pytest
import torch

from vitviz_hf.search import NO_KEY, SiteFold


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_image_without_finite_values_is_ranked_nowhere_though_all_others_are_negative(bad):
    scores = torch.tensor([[-3.0, -1.0], [bad, -9.0], [-2.0, -5.0]])
    fold = SiteFold.empty(2, 3, torch.device("cpu"))

    ranked = fold.update(scores, torch.full((3, 2), 0.5), torch.tensor([11, 12, 13]), scores.isfinite().all(1))

    assert fold.top.keys.tolist() == [[13, 11, NO_KEY], [11, 13, NO_KEY]]
    assert fold.bottom.keys.tolist() == [[11, 13, NO_KEY], [13, 11, NO_KEY]]
    assert fold.top.values[:, :2].tolist() == [[-2, -3], [-1, -5]] and set(ranked.tolist()) == {11, 13, NO_KEY}
    assert fold.n == 2 and fold.mean.tolist() == [-2.5, -3] and fold.active.tolist() == [1, 1]
    assert fold.counts.sum(1).tolist() == [2, 2]
