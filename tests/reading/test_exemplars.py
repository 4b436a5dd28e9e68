"""The places in photographs where a feature fires most, against maps that are made one by one."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf import Feature, Site, activation_map, activations, open_image, to_pixels
from vitviz_hf.errors import FeatureError, ModelError
from vitviz_hf.reading.exemplars import Exemplar, crop_exemplar, list_exemplars
from vitviz_hf.reading.reference import Reference, correlated_features, load_reference
from vitviz_hf.stream import builtin_paths


@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "swin"])
def test_exemplars_are_the_peaks_of_the_maps(tiny_view, family):
    view = tiny_view(family)
    reference = load_reference(view)
    again = load_reference(view)
    for feature in (Feature(Site(1, "mlp_act"), 5), Feature(Site(0, "resid"), 11)):
        peaks = []
        for name, path in builtin_paths().items():
            acts = activations(view, to_pixels(view, open_image(path)), [feature.site])[feature.site]
            values = activation_map(acts, feature)[0].float().numpy()
            row, col = np.unravel_index(values.argmax(), values.shape)
            peaks.append((float(values.max()), name, (int(row), int(col))))
        peaks.sort(key=lambda peak: -peak[0])

        found = list_exemplars(view, reference, feature, 4)

        assert [(e.photograph, e.patch) for e in found] == [
            (n, p) for v, n, p in peaks[:4] if v > 0 or v == peaks[0][0]
        ]
        assert [e.value for e in found] == pytest.approx([v for v, *_ in peaks[: len(found)]], abs=1e-5)
        assert list_exemplars(view, again, feature, 4) == found


def reference_of(view, values, grid_place=3):
    site, n = Site(0, "mlp_act"), len(values)
    peaks = torch.tensor(values)[:, None].expand(n, 64)
    return Reference(tuple("abcdef"[:n]), {}, {site: peaks}, {site: torch.full((n, 64), grid_place)}, {})


def test_photographs_where_nothing_fires_or_is_finite_are_left_out(vit):
    feature = Feature(Site(0, "mlp_act"), 2)

    found = list_exemplars(vit, reference_of(vit, [0.5, math.nan, -1.0, 2.0, 0.5, math.inf], 6), feature, 5)

    assert [e.photograph for e in found] == ["d", "a", "e"]
    assert found[0] == Exemplar("d", (1, 2), 2.0)
    assert [e.photograph for e in list_exemplars(vit, reference_of(vit, [-3.0, -1.0]), feature)] == ["b"]
    with pytest.raises(ModelError, match=r"no built-in photograph has finite values at 0\.mlp_act"):
        list_exemplars(vit, reference_of(vit, [math.nan]), feature)
    with pytest.raises(FeatureError):
        list_exemplars(vit, reference_of(vit, [1.0]), Feature(feature.site, 64))


def test_a_crop_shows_the_framed_patch_in_its_surroundings(tiny_view):
    view = tiny_view("vit")
    side = view.input_size[0]
    picture = np.zeros((side, side, 3), np.uint8)
    step = side // 4
    picture[step : 2 * step, 3 * step :] = (0, 200, 0)

    crop = crop_exemplar(view, Image.fromarray(picture), Feature(Site(0, "mlp_act"), 0), (1, 3))

    assert crop.size == (120, 120)
    shown = np.asarray(crop)
    inside = shown[40:50, 100:110].reshape(-1, 3)
    assert (inside[:, 1] > 150).all() and (inside[:, 0] < 60).all()
    assert (shown[30:33, 92:116] > 100).any() and shown[80:, :80].max() < 30


def test_active_is_the_share_of_patches_above_zero(vit):
    site = Site(1, "mlp_act")
    shares = []
    for path in builtin_paths().values():
        values = activations(vit, to_pixels(vit, open_image(path)), [site])[site].patches[0].numpy()
        shares.append((values > 0).mean(0))

    assert np.allclose(load_reference(vit).active[site].numpy(), shares, atol=1e-6)


def test_features_that_go_together_are_those_of_the_highest_correlation(trained):
    feature = Feature(Site(1, "mlp_act"), 7)
    scores = load_reference(trained).scores[feature.site].double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(scores.T)[7])
    r[7] = 0

    found = correlated_features(load_reference(trained).scores, feature, 5)

    assert [value for _, value in found] == pytest.approx(np.sort(r)[::-1][:5], abs=1e-6)
    assert [value for _, value in found] == pytest.approx([r[f.index] for f, _ in found], abs=1e-6)


def test_features_that_never_move_go_with_none():
    site = Site(0, "mlp_act")
    scores = torch.tensor([[1.0, 2, 0, 5, math.nan], [2.0, 4, 0, 4, 0], [3.0, 6, 0, 3, 0], [math.nan, 0, 0, 0, 0]])
    scores[:3, 4] = torch.tensor([3.0, 3.0, 4.0])

    def near(i):
        return [(f.index, round(r, 3)) for f, r in correlated_features({site: scores}, Feature(site, i), 9)]

    assert near(0) == [(1, 1.0), (4, 0.866)] and near(2) == [] and near(3) == []
