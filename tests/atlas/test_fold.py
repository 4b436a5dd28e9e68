"""Rankings and moments of features, over images of which some have values that are no numbers."""

import math

import numpy as np
import pytest
import torch

from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import N_BINS, N_SLOTS, NO_KEY, SiteFold
from vitviz_hf.atlas.search import count_positive, row_number, search
from vitviz_hf.errors import ConfigError
from vitviz_hf.stream import Row, open_source


def nowhere(features, images):
    """Places of strongest patches, of which a test says nothing."""
    return torch.zeros_like(features)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_image_without_finite_values_is_ranked_nowhere_though_all_others_are_negative(bad):
    scores = torch.tensor([[-3.0, -1.0], [bad, -9.0], [-2.0, -5.0]])
    fold = SiteFold.empty(2, 3, torch.device("cpu"))

    places = torch.arange(6).reshape(3, 2)
    finite, keys = scores.isfinite().all(1), torch.tensor([11, 12, 13])
    ranked = fold.update(scores, torch.full((3, 2), 0.5), scores + 0.5, lambda f, i: places[i, f], keys, finite)

    assert fold.top.keys.tolist() == [[13, 11, NO_KEY], [11, 13, NO_KEY]]
    assert fold.bottom.keys.tolist() == [[11, 13, NO_KEY], [13, 11, NO_KEY]]
    assert fold.top.values[:, :2].tolist() == [[-2, -3], [-1, -5]] and set(ranked.tolist()) == {11, 13, NO_KEY}
    assert fold.n == 2 and fold.mean.tolist() == [-2.5, -3] and fold.active.tolist() == [1, 1]
    assert fold.counts.sum(1).tolist() == [2, 2]
    assert fold.top.facts[:, :2].tolist() == [[[-1.5, 4], [-2.5, 0]], [[-0.5, 1], [-4.5, 5]]]
    assert fold.peak_mean.tolist() == [-2, -2.5] and fold.peak_squares.tolist() == [0.5, 8]


def test_places_are_asked_for_of_what_enters_a_ranking():
    fold = SiteFold.empty(3, 2, torch.device("cpu"))
    everything, asked = torch.ones(2).bool(), []

    def update(scores, places, keys):
        def of(features, images):
            asked.append(list(zip(features.tolist(), images.tolist(), strict=True)))
            return torch.tensor(places)[images, features]

        fold.update(
            torch.tensor(scores), torch.zeros(2, 3), torch.tensor(scores) + 1, of, torch.tensor(keys), everything
        )

    update([[1.0, 2, 3], [4, 5, 6]], [[0, 1, 2], [3, 4, 5]], [7, 8])
    update([[0.0, 9, 3], [-1, 1, 5]], [[10, 11, 12], [13, 14, 15]], [1, 9])
    update([[0.0, 0, 0], [0, 0, 0]], [[20, 21, 22], [23, 24, 25]], [2, 3])

    assert asked == [[(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)], [(1, 0), (2, 0), (2, 1)], []]
    assert fold.top.keys.tolist() == [[8, 7], [1, 8], [8, 9]]
    assert fold.top.facts.tolist() == [[[5, 3], [2, 0]], [[10, 11], [6, 4]], [[7, 5], [6, 15]]]


def test_values_beyond_the_last_bin_are_counted_in_it():
    fold = SiteFold.empty(1, 1, torch.device("cpu"))

    zeros = torch.zeros(3, 1)
    scores = torch.tensor([[5e3], [-2e9], [0.0]])
    fold.update(scores, zeros, zeros, nowhere, torch.arange(3), torch.ones(3).bool())

    assert fold.counts.nonzero()[:, 1].tolist() == [0, N_BINS, 2 * N_BINS]


def correlated(n, generator):
    """Scores [n, 40] that have much, little and nothing in common, far from zero; two do not vary."""
    common = torch.randn(n, 4, generator=generator)
    scores = common @ torch.randn(4, 40, generator=generator) + 2 * torch.randn(n, 40, generator=generator) + 5
    scores[:, 38], scores[:, 39] = 3, 0
    return scores


def folded(scores, keys, finite, cut):
    """Two folds of the parts before and after `cut`, in batches, merged."""
    parts = []
    for rows in (range(cut), range(cut, len(scores))):
        fold = SiteFold.empty(scores.shape[1], 2, torch.device("cpu"))
        for some in torch.tensor(list(rows)).split(16):
            zeros = torch.zeros(len(some), scores.shape[1])
            fold.update(scores[some], zeros, zeros, nowhere, keys[some], finite[some])
        parts.append(fold)
    parts[0].merge(parts[1])
    return parts[0]


def test_correlations_are_exact_while_no_two_images_share_a_slot():
    generator = torch.Generator().manual_seed(1)
    scores, finite = correlated(400, generator), torch.rand(400, generator=generator) < 0.8
    keys = torch.arange(400) + N_SLOTS * torch.randint(0, 10**6, (400,), generator=generator)

    others, found = folded(scores, keys, finite, 150).neighbours(6)

    with np.errstate(invalid="ignore"):
        exact = np.nan_to_num(np.corrcoef(scores[finite].double().numpy().T), nan=-1)
    np.fill_diagonal(exact, -np.inf)
    np.testing.assert_array_equal(others[:38], np.argsort(-exact, 1, kind="stable")[:38, :6])
    np.testing.assert_allclose(found[:38], -np.sort(-exact, 1)[:38, :6], atol=1e-5)
    assert (found[38:] == -1).all() and not {38, 39} & set(others[:38].ravel())


def test_correlations_over_many_images_are_off_by_a_few_hundredths():
    generator = torch.Generator().manual_seed(2)
    scores = correlated(6000, generator)
    keys = torch.randint(0, 2**62, (6000,), generator=generator)

    others, found = folded(scores, keys, torch.ones(6000).bool(), 2500).neighbours(37)

    exact = np.corrcoef(scores[:, :38].double().numpy().T)
    error = found[:38] - np.take_along_axis(exact, others[:38], 1)
    assert error.std() < 0.06 and np.abs(error).max() < 0.25
    assert exact.std() > 0.2


def test_copies_of_an_image_do_not_add_up_in_one_slot():
    generator = torch.Generator().manual_seed(4)
    scores = correlated(500, generator)
    scores[440:] = scores[0]
    keys = torch.randint(0, 2**62, (500,), generator=generator)
    keys[440:] = keys[0]
    named = [row_number(Row(f"{i}", "", b"the same"), 0) for i in range(60)]
    fold, zeros = SiteFold.empty(40, 2, torch.device("cpu")), torch.zeros(500, 40)

    fold.update(scores, zeros, zeros, nowhere, keys, torch.ones(500).bool(), torch.arange(500))

    others, found = fold.neighbours(6)
    exact = np.corrcoef(scores[:, :38].double().numpy().T)
    np.testing.assert_allclose(found[:38], np.take_along_axis(exact, others[:38], 1), atol=1e-4)
    assert len(set(named)) == 60
    assert len({row_number(Row("", "", b"the same"), i) for i in range(60)}) == 60


@pytest.mark.parametrize("n_patches", [1, 254, 255, 256, 700])
def test_positive_patches_are_counted_beyond_what_a_byte_holds(n_patches):
    patches = torch.randn(2, n_patches, 3, generator=torch.Generator().manual_seed(3))
    patches[0, :, 0], patches[1, :, 0] = 1, 0
    patches[1, :, 1], patches[1, 0, 2] = -0.0, float("inf")

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.cat([patches, -patches], 1).to(dtype)[:, :n_patches]  # with gaps between the images
        assert count_positive(values).tolist() == (patches.numpy() > 0).sum(1).tolist()


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_process_that_is_none_of_them_is_told(rank, vit, labelled, tmp_path):
    with pytest.raises(ConfigError, match=rf"no process {rank} of 2; ranks are 0-1"):
        search(vit, open_source(str(labelled)), SearchConfig(), tmp_path / "s", rank=rank, n_ranks=2)
