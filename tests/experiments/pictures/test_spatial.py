"""The experiment `spatial`: a local feature is on the line, whatever its number of patches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vitviz_hf import activation_map, activations, open_atlas, open_image, parse_feature, to_pixels
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import SpatialConfig
from vitviz_hf.experiments.pictures.spatial import SHARES, Curves, measure
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.models.view import find_tap
from vitviz_hf.reading.recording import Acts
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import open_source

FEATURE = parse_feature("1.mlp_act:31")


class Local(nn.Module):
    """A network whose activation of a patch is the mean of its pixels, plus a share of the mean of the picture."""

    def __init__(self, leak):
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(float(leak)))

    def forward(self, pixels):
        patches = nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 8).flatten(1)
        return patches + self.leak * patches.mean(1, keepdim=True)


@pytest.fixture
def local(vit, monkeypatch):
    """A tiny view whose activations are those of `Local`."""

    def make(leak=0.0):
        module = Local(leak)

        def read(view, pixels, sites):
            values = module(pixels).detach()
            tokens = torch.cat([torch.zeros(len(pixels), 1), values], 1)
            return {s: Acts(tokens[..., None].expand(-1, -1, 64), find_tap(view, s), s) for s in sites}

        monkeypatch.setattr("vitviz_hf.experiments.pictures.spatial.activations", read)
        return vit

    return make


def picture(n_active, low=0.55):
    """A black picture with some bright patches, each of its own brightness above 0.5."""
    pixels = torch.zeros(3, 32, 32)
    for i in range(n_active):
        row, col = divmod((5 * i) % 16, 4)
        pixels[:, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = low + 0.025 * i
    return pixels


@pytest.mark.parametrize("n", [1, 2, 4, 7, 13])
def test_a_local_feature_is_on_the_line_whatever_its_number_of_active_patches(n, local):
    found = measure(local(), FEATURE, picture(n), 0.5, 1, torch.Generator().manual_seed(0))

    np.testing.assert_allclose(found.left, 1 - found.lost, atol=1e-6)
    np.testing.assert_allclose(found.control, 1, atol=1e-6)
    np.testing.assert_allclose(found.lost[0], [round(x * n) / n for x in SHARES], atol=1e-9)
    assert found.lost[:, 0].tolist() == [0, 0] and found.lost[:, -1].tolist() == [1, 1]


def test_too_few_active_patches_are_not_measured_but_counted(local):
    generator = torch.Generator().manual_seed(0)

    assert measure(local(), FEATURE, picture(0), 0.5, 1, generator) == 0
    assert measure(local(), FEATURE, picture(9), 0.5, 10, generator) == 9
    assert isinstance(measure(local(), FEATURE, picture(10), 0.5, 10, generator), Curves)


def test_a_feature_that_lives_on_its_surroundings_is_below_the_line_at_once(local):
    """Everything is bright enough only with the leak of the picture's mean, part of which the inactive patches give."""
    pixels = picture(12, low=0.41)
    pixels[pixels == 0] = 0.3
    view = local(0.2)

    found = measure(view, FEATURE, pixels, 0.5, 1, torch.Generator().manual_seed(0))

    active = Local(0.2)(pixels[None])[0] > 0.5
    black = pixels * active.reshape(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    before, after = (Local(0.2)(x[None])[0].detach() for x in (pixels, black))
    counts = [(v > 0.5).sum().item() for v in (before, after)]
    sums = [v[v > 0.5].sum().item() for v in (before, after)]
    assert counts[1] < counts[0]
    assert found.left[:, 0].tolist() == pytest.approx([counts[1] / counts[0], sums[1] / sums[0]])
    assert found.control[0, -1] < 1


def values_of(view, pixels):
    return activation_map(activations(view, pixels[None], [FEATURE.site])[FEATURE.site], FEATURE)[0].flatten()


def test_active_patches_are_blacked_out_one_by_one_and_others_as_the_control(vit):
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    threshold = float(values_of(vit, pixels).quantile(0.4))

    found = measure(vit, FEATURE, pixels, threshold, 3, torch.Generator().manual_seed(3), batch=3)

    natural, generator = values_of(vit, pixels), torch.Generator().manual_seed(3)
    orders = []
    for places in ((natural > threshold).nonzero()[:, 0], (natural <= threshold).nonzero()[:, 0]):
        orders.append(places[torch.randperm(len(places), generator=generator)].tolist())
    inside, outside = orders
    assert len(inside) > len(outside) > 3
    whole = (len(inside), float(natural[inside].sum()))
    for step, share in enumerate(SHARES):
        k = round(share * len(inside))
        for black, shown in ((inside[:k] + outside, found.left), (outside[:k], found.control)):
            changed = pixels.clone()
            for place in black:
                row, col = divmod(place, 4)
                changed[:, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = 0
            values = values_of(vit, changed)
            active = values > threshold
            expected = [int(active.sum()) / whole[0], float(values[active].sum()) / whole[1]]
            np.testing.assert_allclose(shown[:, step], expected, atol=1e-5)
        lost = [k / len(inside), float(natural[inside[:k]].sum()) / whole[1]]
        np.testing.assert_allclose(found.lost[:, step], lost, atol=1e-5)


def test_the_tables_are_means_and_fits_over_the_features_of_each_layer(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    config = SpatialConfig(per_layer=12, threshold=0.05, min_active=6, seed=2)

    result = run_experiment("spatial", [vit], source, config, tmp_path / "w")

    atlas = open_atlas(str(tmp_path / "w" / "atlas"))
    crops = {s.name: s.jpeg for s in map(atlas.image, range(20))}
    rows = [row for row, _ in source.read(0, 1, None)]
    images = [open_image(row.data) for row in rows]
    stored = [torch.from_numpy(np.array(open_image(crops[r.name]))).permute(2, 0, 1) / 255 for r in rows]
    rng = np.random.default_rng(2)
    cells = result.tables["table"].records()
    points = {(r["layer"], r["quantity"], r["dropped"]): r for r in result.data["curves"].records()}
    assert [r["layer"] for r in cells] == [0, 1, 2]
    for layer, row in enumerate(cells):
        site, few, found = Site(layer, "mlp_act"), [0, 0], []
        for i in np.sort(rng.choice(64, 12, replace=False)).tolist():
            scores = [activations(vit, to_pixels(vit, x), [site])[site].values[0, 1:, i].mean().item() for x in images]
            best = stored[int(np.argmax(scores))]
            generator = torch.Generator().manual_seed(2 * 1_000_003 + layer * 100_003 + i)
            one = measure(vit, Feature(site, i), best, 0.05, 6, generator)
            if isinstance(one, Curves):
                found.append(one)
            else:
                few[min(one, 1)] += 1
        assert (row["features"], row["none active"], row["too few active"]) == (len(found), *few)
        assert len(found) > 3
        for q, (name, title) in enumerate((("active", "active patches"), ("sum", "sum of activation"))):
            assert row[f"{name} at 0 %"] == pytest.approx(np.mean([c.left[q][0] for c in found]), abs=1e-4)
            away = np.mean([abs(c.left[q][j] + c.lost[q][j] - 1) for c in found for j in range(10)])
            assert row[f"{name}, off the line"] == pytest.approx(away, abs=1e-4)
            half = np.mean([np.interp(0.5, c.lost[q], c.left[q]) for c in found])
            assert points[layer, title, 0.5]["mean"] == pytest.approx(half, abs=1e-4)
            other = np.mean([np.interp(0.5, c.lost[0], c.control[q]) for c in found])
            assert row[f"{name}, 50 % of others"] == pytest.approx(other, abs=1e-4)
            x, y = (np.concatenate([getattr(c, n)[q][:10] for c in found]) for n in ("lost", "left"))
            slope, r2 = f"{name}, slope", f"{name}, R2"
            assert row[slope] == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-4)
            assert row[r2] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-4)
            assert row[f"{slope} low"] < row[slope] < row[f"{slope} high"] and row[f"{r2} low"] < row[f"{r2} high"]
        some = points[layer, "active patches when others are blacked out", 1.0]
        quartiles = np.quantile([c.control[0][-1] for c in found], (0.25, 0.75))
        assert [some["lower quartile"], some["upper quartile"]] == pytest.approx(quartiles.tolist(), abs=1e-4)


def test_a_threshold_below_zero_is_refused():
    with pytest.raises(ConfigError, match="threshold must be a number from 0"):
        replace(SpatialConfig(), threshold=-1)
