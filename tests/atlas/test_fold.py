"""Rankings and moments of features, over images of which some have values that are no numbers."""

import math

import pytest
import torch

from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import N_BINS, NO_KEY, SiteFold
from vitviz_hf.atlas.search import search
from vitviz_hf.errors import ConfigError
from vitviz_hf.stream import open_source


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


def test_values_beyond_the_last_bin_are_counted_in_it():
    fold = SiteFold.empty(1, 1, torch.device("cpu"))

    fold.update(torch.tensor([[5e3], [-2e9], [0.0]]), torch.zeros(3, 1), torch.arange(3), torch.ones(3).bool())

    assert fold.counts.nonzero()[:, 1].tolist() == [0, N_BINS, 2 * N_BINS]


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_process_that_is_none_of_them_is_told(rank, vit, labelled, tmp_path):
    with pytest.raises(ConfigError, match=rf"no process {rank} of 2; ranks are 0-1"):
        search(vit, open_source(str(labelled)), SearchConfig(), tmp_path / "s", rank=rank, n_ranks=2)
