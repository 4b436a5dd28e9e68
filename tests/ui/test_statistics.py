"""Statistics of a site, against numpy on scores of a model that has learned something."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitviz_hf import Feature, Site, activations, open_image, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import ConfigError, ModelError, SiteError
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui.cards import deviations, usual_values
from vitviz_hf.ui.made import UPLOADED
from vitviz_hf.ui.statistics import Statistics, atlas_statistics, model_statistics, tell_atlas

SITE = Site(1, "mlp_act")


@pytest.fixture(scope="module")
def values(trained):
    """[N, P, F] of the site on every built-in photograph."""
    photographs = [to_pixels(trained, open_image(path)) for path in builtin_paths().values()]
    return np.stack([activations(trained, p, [SITE])[SITE].patches[0].double().numpy() for p in photographs])


@pytest.fixture(scope="module")
def known(trained):
    return model_statistics(trained, load_reference(trained), SITE)


def test_they_are_those_of_the_scores_and_patches(known, values):
    scores = values.mean(1)

    assert known.n_images == len(builtin_paths()) and known.told == "the 19 built-in photographs"
    assert known.mean == pytest.approx(scores.mean(0), abs=1e-5)
    assert known.std == pytest.approx(scores.std(0, ddof=1), abs=1e-5)
    assert known.maximum == pytest.approx(scores.max(0), abs=1e-5)
    assert known.sparse == pytest.approx((values <= 0).mean((0, 1)), abs=1e-5)
    assert np.array_equal(known.fires, (values > 0).any((0, 1)))


def test_a_site_that_is_not_there_is_refused(trained):
    with pytest.raises(SiteError, match="has layers"):
        model_statistics(trained, load_reference(trained), Site(99, "mlp_act"))


def made(active):
    n = np.arange(len(active), dtype=float)
    return Statistics(SITE, 3, "3 photographs", n, n + 1, np.array([5.0, 9, 5, 1]), 1 - np.array(active))


def test_dead_features_stand_apart_in_every_order():
    some = made([0.5, 0.0, 0.25, 1e-9])

    assert some.order("index").tolist() == [0, 1, 2, 3]
    assert some.order("maximum").tolist() == [1, 0, 2, 3]  # equal ones by index
    assert some.order("unusual").tolist() == [0, 1, 2, 3]
    assert some.order("sparse").tolist() == [1, 3, 2, 0]
    assert some.order("sparse", True).tolist() == [3, 2, 0]
    assert some.order("sparse", False).tolist() == [1]
    with pytest.raises(ConfigError, match="sort must be one of index, maximum, unusual, sparse; got 'size'"):
        some.order("size")


def test_an_order_of_a_model_is_that_of_numpy(known, values):
    scores = values.mean(1)
    live = np.flatnonzero((values > 0).any((0, 1)))

    std = scores.std(0, ddof=1)
    far = ((scores.max(0) - scores.mean(0)) / np.maximum(std, 0.1 * np.median(std)))[known.order("unusual", True)]

    assert set(known.order("unusual", True)) == set(live)
    assert np.all(np.diff(far) <= 1e-3)


def test_the_unusual_is_that_of_a_card_of_the_same_photograph(trained, known, tmp_path):
    reference = load_reference(trained)
    scores = reference.scores[SITE].clone()
    scores[:, 5], scores[4, 5] = 0, 1e-4  # a feature that hardly ever moves
    reference = replace(reference, scores={**reference.scores, SITE: scores})
    known = model_statistics(trained, reference, SITE)
    atlas = made_atlas(trained, tmp_path)
    table = atlas.table(SITE)

    above = deviations(scores.max(0).values, usual_values(reference, None, SITE, False))
    in_atlas = deviations(torch.tensor(table.top_scores[:, 0]), usual_values(reference, atlas, SITE, False))

    assert known.unusual == pytest.approx(above.numpy(), rel=1e-3, abs=1e-4) and known.unusual[5] < 1
    assert atlas_statistics(atlas, SITE).unusual == pytest.approx(in_atlas.numpy(), rel=1e-3, abs=1e-4)


def test_photographs_that_are_not_finite_are_left_out_and_without_any_it_is_told(trained):
    reference = load_reference(trained)

    def with_scores(scores):
        return replace(reference, scores={**reference.scores, SITE: scores})

    spoiled = reference.scores[SITE].clone()
    spoiled[3, 0] = spoiled[4, 1] = math.nan
    assert model_statistics(trained, with_scores(spoiled), SITE).told == "the 17 built-in photographs"
    spoiled[1:] = math.nan
    one = model_statistics(trained, with_scores(spoiled), SITE)
    assert one.n_images == 1 and one.std.max() == one.unusual.max() == 0
    with pytest.raises(ModelError, match=r"no built-in photograph has finite values at 1\.mlp_act; check"):
        model_statistics(trained, with_scores(spoiled * math.nan), SITE)


def test_images_that_an_atlas_left_out_at_a_site_are_not_counted(trained, tmp_path):
    atlas, other = made_atlas(trained, tmp_path), Site(2, "mlp_act")
    part = replace(atlas, manifest=atlas.manifest | {"non_finite": {str(SITE): 3}})
    old = replace(atlas, manifest={k: v for k, v in atlas.manifest.items() if k != "non_finite"})

    told = atlas_statistics(part, SITE)

    assert (told.n_images, told.told) == (16, "16 photographs of builtin")
    assert usual_values(load_reference(trained), part, SITE, False).told == told.told
    assert tell_atlas(part, other) == tell_atlas(old, SITE) == "19 photographs of builtin"
    uploaded = replace(atlas, manifest=atlas.manifest | {"dataset": UPLOADED})
    assert tell_atlas(uploaded, SITE) == "19 uploaded photographs"


def made_atlas(view, folder):
    config = SearchConfig(layers=(1,), kinds=("mlp_act",), k=2)
    return make_atlas(view, open_source("builtin"), config, folder / "a")


def test_an_atlas_tells_its_own(trained, values, known, tmp_path):
    atlas = made_atlas(trained, tmp_path)

    told = atlas_statistics(atlas, SITE)

    assert told.told == "19 photographs of builtin" and told.n_images == 19
    for name in ("mean", "maximum", "sparse"):
        assert getattr(told, name) == pytest.approx(getattr(known, name), abs=1e-2)
    assert told.std * math.sqrt(19 / 18) == pytest.approx(known.std, abs=1e-2)
    assert np.array_equal(told.fires, known.fires)


def test_csv_and_npz_hold_every_column(known):
    rows = list(csv.DictReader(io.StringIO(known.to_csv())))
    arrays = np.load(io.BytesIO(known.to_npz()))

    assert [row["feature"] for row in rows] == [str(Feature(SITE, i)) for i in range(len(known.mean))]
    assert str(arrays["site"]) == "1.mlp_act" and str(arrays["images"]) == known.told
    assert set(rows[0]) == {"feature", "mean", "std", "maximum", "unusual", "sparse", "fires"}
    for name in ("mean", "std", "maximum", "unusual", "sparse"):
        assert np.array_equal([float(row[name]) for row in rows], getattr(known, name))
        assert np.array_equal(arrays[name], getattr(known, name))
    assert [row["fires"] == "True" for row in rows] == known.fires.tolist() == arrays["fires"].tolist()
