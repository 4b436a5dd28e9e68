"""Words against hand computations."""

import numpy as np
import pytest
import torch

from vitviz_hf import Feature, classify, load_model, load_zero_shot, open_image, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.words import TEMPLATES, agreements, chance_agreement, name_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import ModelError
from vitviz_hf.stream import open_source


def test_agreements_are_means_over_each_features_images():
    deviations = torch.tensor([[1.0, 0.0, -4.0], [3.0, -2.0, 0.5], [10.0, 7.0, 2.0], [-6.0, 1.0, 0.0]])

    found = agreements(deviations, torch.tensor([[0, 1], [2, -1], [3, 2], [-1, -1]]))

    assert found.tolist() == [[2.0, -1.0, -1.75], [10.0, 7.0, 2.0], [2.0, 4.0, 1.0], [0.0, 0.0, 0.0]]


def test_chance_of_all_images_is_the_best_word_of_their_mean():
    deviations = torch.tensor([[1.0, 0.0], [3.0, -2.0], [2.0, 5.0]])

    assert chance_agreement(deviations, 3) == 2.0  # every set is all of them: means 2 and 1
    assert chance_agreement(deviations, 7) == 2.0  # fewer images than k
    assert chance_agreement(deviations, 1) == 5.0  # best words 1, 3, 5: the third of the sets is above 95 %


def test_chance_lies_above_95_of_100_sets():
    deviations = torch.stack([torch.arange(100.0), -torch.arange(100.0)], 1)

    assert 92 <= chance_agreement(deviations, 1) <= 97  # of 0..99; the other word is never the best
    pairs = (torch.arange(100.0)[:, None] + torch.arange(100.0)) / 2
    exact = pairs[~torch.eye(100, dtype=torch.bool)].quantile(0.95)
    assert abs(chance_agreement(deviations, 2) - float(exact)) < 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("some")
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 255, (4 + i % 3, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return folder


WORDS = ("cat", "dog", "bus", "a red bus")


def test_images_that_the_namer_cannot_read_count_as_absent(tiny_folder, tiny_view, pictures, tmp_path):
    view = tiny_view("clip")
    atlas = make_atlas(view, open_source(str(pictures)), SearchConfig(k=4, batch=5, layers=(1,)), tmp_path / "atlas")
    namer = load_model(str(tiny_folder("clip")), device="cpu")
    crops = [to_pixels(view, open_image(atlas.image(r).jpeg)) for r in range(atlas.manifest["n_stored_images"])]
    marks = {round(float(crops[r][0, 0, 0, 0]), 6) for r in (1, 4)}

    def spoil(_, args, kwargs):
        values = kwargs["pixel_values"].clone()
        raw = values[:, 0, 0, 0] * namer.std[0] + namer.mean[0]
        for i, x in enumerate(raw.tolist()):
            if any(abs(x - m) < 1e-5 for m in marks):
                values[i] = float("nan")
        return args, {**kwargs, "pixel_values": values}

    namer.module.register_forward_pre_hook(spoil, with_kwargs=True)
    with pytest.warns(RuntimeWarning, match=r"tiny/clip' in float32 gives non-finite similarities on 2 of \d+ images"):
        found = name_features(atlas, namer, WORDS)

    zero_shot = load_zero_shot(view, WORDS, TEMPLATES)
    similarity = np.stack([classify(view, c, zero_shot).logits[0].double().numpy() for c in crops])
    similarity[[1, 4]] = np.nan
    deviations = (similarity - np.nanmean(similarity, 0)) / np.nanstd(similarity, 0)
    checked = 0
    for index in range(64):
        rows = [h.row for h in atlas.hits(Feature(next(iter(atlas.sites)), index))]
        expected = np.nanmean(deviations[rows], 0)
        above = [i for i in np.argsort(-expected) if expected[i] > found.chance]
        got = atlas.feature_words(Feature(next(iter(atlas.sites)), index))
        assert [w for w, _ in got] == [WORDS[i] for i in above]
        np.testing.assert_allclose([x for _, x in got], expected[above], atol=2e-3)
        checked += len(above)
    assert checked > 0


def test_a_namer_that_can_read_none_is_refused(tiny_folder, tiny_view, pictures, tmp_path):
    atlas = make_atlas(
        tiny_view("clip"), open_source(str(pictures)), SearchConfig(k=2, layers=(1,)), tmp_path / "atlas"
    )
    namer = load_model(str(tiny_folder("clip")), device="cpu")
    for parameter in namer.module.parameters():
        parameter.data.fill_(float("nan"))

    with pytest.raises(ModelError, match=r"tiny/clip' in float32 gives non-finite similarities on \d+ of \d+ images"):
        name_features(atlas, namer, WORDS)
    assert atlas.words is None
