"""Every number of an atlas against numpy on the model's own forward pass, at every feature and column."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.atlas.test_fold import nowhere
from vitviz_hf import Feature, load_model, open_image, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.fold import SKETCH_ERROR, SiteFold
from vitviz_hf.atlas.parquet import QUANTILES
from vitviz_hf.atlas.search import search
from vitviz_hf.atlas.state import open_crops
from vitviz_hf.atlas.store import open_atlas, unusual_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import AtlasError, FeatureError
from vitviz_hf.sites import Site
from vitviz_hf.stream import open_source

N, K = 60, 7
RESID, ACT = Site(1, "resid"), Site(2, "mlp_act")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 pictures whose brightness and colors differ as much as their patterns."""
    folder = tmp_path_factory.mktemp("sixty")
    for i in range(N):
        random = np.random.default_rng(i)
        low, high = sorted(random.integers(0, 256, 2))
        noise = random.integers(low, high + 1, (5, 6, 3), dtype=np.uint8)
        (folder / f"class-{i % 4}").mkdir(exist_ok=True)
        Image.fromarray(noise).resize((40 + i, 37), Image.Resampling.BICUBIC).save(
            folder / f"class-{i % 4}" / f"{i:02}.png"
        )
    return folder


@pytest.fixture(scope="module")
def patches(tiny_folder, folder):
    """Values of every picture at every patch, {site: [N, P, F]}, from the module itself, and the names."""
    view = load_model(str(tiny_folder("vit")), device="cpu")
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    found = {RESID: [], ACT: []}
    inside = view.module.get_submodule(view.layers[2].taps["mlp_act"].module)
    hook = inside.register_forward_pre_hook(lambda _, args: found[ACT].append(args[0][0, 1:].numpy()))
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (view.mean, view.std))
    with torch.no_grad():
        for name in names:
            pixels = (to_pixels(view, open_image(folder / name)) * 255).round() / 255
            states = view.module(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states
            found[RESID].append(states[2][0, 1:].numpy())
    hook.remove()
    return {site: np.stack(values).astype(np.float64) for site, values in found.items()}, names


def make(view, folder, out, **options):
    config = SearchConfig(**({"k": K, "batch": 8, "layers": (1, 2), "kinds": ("resid", "mlp_act")} | options))
    return make_atlas(view, open_source(str(folder)), config, out)


@pytest.fixture(scope="module", params=["mean", "max"])
def made(request, tiny_view, folder, patches, tmp_path_factory):
    """An atlas and what numpy says of it: scores [N, F] and patches [N, P, F] of each site."""
    atlas = make(tiny_view("vit"), folder, tmp_path_factory.mktemp("a") / "atlas", reduce=request.param)
    values, names = patches
    return atlas, {site: getattr(np, request.param)(v, axis=1) for site, v in values.items()}, values, names


def test_mean_and_deviation_are_of_all_scores(made):
    atlas, scores, _, _ = made

    for site, expected in scores.items():
        table = atlas.table(site)
        np.testing.assert_allclose(table.mean, expected.mean(0), atol=2e-6)
        np.testing.assert_allclose(table.std, expected.std(0), rtol=2e-5)
        assert len(np.unique(table.mean.round(5))) > 25 and len(np.unique(table.std.round(5))) > 25


def test_quantiles_are_within_their_error_of_all_scores(made):
    atlas, scores, _, _ = made

    for site, values in scores.items():
        exact = np.quantile(values, QUANTILES, axis=0, method="inverted_cdf").T
        error = np.abs(atlas.table(site).quantiles - exact)
        assert (error <= np.maximum(1.01e-4, 1.001 * SKETCH_ERROR * np.abs(exact))).all()
        assert (np.diff(exact, axis=1) > 0).any(0).all()  # every column says something else


def test_quantiles_are_unbiased_between_the_edges_of_the_bins(made):
    atlas, scores, _, _ = made

    for site, values in scores.items():
        exact = np.quantile(values, QUANTILES, axis=0, method="inverted_cdf").T
        large = np.abs(exact) > 1e-3
        ratio = (atlas.table(site).quantiles / exact)[large]
        assert abs(ratio.mean() - 1) < SKETCH_ERROR / 5


def test_sparsity_is_the_share_of_patches_that_are_not_positive(made):
    atlas, _, patches, _ = made

    for site, values in patches.items():
        expected = (values <= 0).mean((0, 1))
        np.testing.assert_allclose(atlas.table(site).sparsity, expected, atol=2e-3)
        assert len(np.unique(expected.round(3))) > 15


def test_active_shares_add_up():
    fold = SiteFold.empty(2, 1, torch.device("cpu"))
    shares = torch.tensor([[0.0, 0.25], [0.5, 0.25]])

    zeros = torch.zeros(2, 2)
    fold.update(zeros, shares, zeros, nowhere, torch.tensor([4, 5]), torch.tensor([True, True]))

    assert fold.active.tolist() == [0.5, 0.5] and fold.n == 2


@pytest.mark.parametrize("bottom", [False, True])
def test_ranked_images_and_their_scores_are_those_of_sorting(bottom, made):
    atlas, scores, _, names = made

    for site, values in scores.items():
        order = np.argsort(values if bottom else -values, axis=0)[:K]
        for index in range(values.shape[1]):
            hits = atlas.hits(Feature(site, index), bottom)
            assert [atlas.image(h.row).name for h in hits] == [names[i] for i in order[:, index]]
            np.testing.assert_allclose([h.score for h in hits], values[order[:, index], index], atol=3e-6)
            assert {atlas.image(h.row).label for h in hits} == {Path(names[i]).parent.name for i in order[:, index]}


def test_the_histogram_counts_every_score_in_its_bin(made):
    atlas, scores, _, _ = made
    growth = 1e7 ** (1 / 256)

    for site, values in scores.items():
        for index in (0, 5, 17, 31):
            centers, counts = atlas.histogram(Feature(site, index))
            column = values[:, index]
            steps = np.floor(np.log(np.maximum(np.abs(column), 1e-9) / 1e-4) / np.log(growth))
            ends = [(0.0, 1e-4) if s < 0 else (1e-4 * growth**s, 1e-4 * growth ** (s + 1)) for s in steps]
            # of all values with relative error e, the center of [a, b] that keeps it least is 2ab / (a + b)
            expected = [
                0.0 if a == 0 else np.sign(x) * 2 * a * b / (a + b) for x, (a, b) in zip(column, ends, strict=True)
            ]
            wanted, numbers = np.unique(np.round(expected, 12), return_counts=True)
            np.testing.assert_allclose(centers, wanted, rtol=1e-9)
            assert counts.tolist() == numbers.tolist() and counts.sum() == N


def test_neighbours_go_with_a_feature_over_the_images(made):
    atlas, scores, _, _ = made

    for site, values in scores.items():
        exact = np.corrcoef(values.T)
        for index in (0, 3, 30):
            found = atlas.neighbours(Feature(site, index), 5)
            others = [f.index for f, _ in found]
            assert len(set(others) - {index}) == 5 and {f.site for f, _ in found} == {site}
            # 60 images share 512 slots, so that few meet in one
            np.testing.assert_allclose([r for _, r in found], exact[index, others], atol=0.15)
            best = np.sort(np.delete(exact[index], index))[-5:]
            assert exact[index, others].min() > best[0] - 0.15
            assert [r for _, r in found] == sorted((r for _, r in found), reverse=True)


def test_strongest_patches_are_known_of_every_hit_and_of_all_images(made):
    atlas, _, patches, names = made

    for site, values in patches.items():
        table, peaks = atlas.table(site), values.max(1)
        np.testing.assert_allclose(table.peak_mean, peaks.mean(0), atol=2e-6)
        np.testing.assert_allclose(table.peak_std, peaks.std(0), rtol=2e-5)
        rows, cols = atlas.manifest["grids"][str(site)]
        assert rows * cols == values.shape[1]
        for index in range(values.shape[2]):
            for hit in atlas.hits(Feature(site, index)):
                own = values[names.index(atlas.image(hit.row).name), :, index].reshape(rows, cols)
                np.testing.assert_allclose(hit.peak, own.max(), atol=3e-6)
                np.testing.assert_allclose(own[hit.place], own.max(), atol=3e-6)
            assert {h.place for h in atlas.hits(Feature(site, index), bottom=True)} == {None}


def test_an_atlas_of_an_older_version_opens_without_what_it_lacks(made, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(made[0].folder, older)
    path = older / "features" / "features.parquet"
    file, since = (
        pq.ParquetFile(path),
        ["top_peaks", "top_places", "peak_mean", "peak_std", "neighbours", "correlations"],
    )
    groups = [file.read_row_group(i).drop_columns(since) for i in range(file.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    facts = json.loads((older / "manifest.json").read_text())
    del facts["grids"]
    (older / "manifest.json").write_text(json.dumps(facts))

    atlas, feature = open_atlas(str(older)), Feature(ACT, 3)

    assert [h.score for h in atlas.hits(feature)] == [h.score for h in made[0].hits(feature)]
    assert {h.place for h in atlas.hits(feature)} == {None} and atlas.neighbours(feature) == []
    assert atlas.table(ACT).peak_mean is None


def test_the_manifest_counts_rows_images_and_stored_crops(made):
    atlas, scores, _, _ = made

    stored = {i for v in scores.values() for x in (v, -v) for i in np.argsort(x, axis=0)[:K].ravel()}
    assert atlas.manifest["n_images"] == N and atlas.manifest["n_skipped"] == atlas.manifest["n_non_finite"] == 0
    assert atlas.manifest["non_finite"] == {} and atlas.manifest["skipped"] == []
    everywhere = {atlas.image(r).name for r in range(atlas.manifest["n_stored_images"])}
    assert len(everywhere) == atlas.manifest["n_stored_images"] >= len(stored)


def test_unusual_features_are_those_most_deviations_above_their_mean_and_finite(made):
    atlas, scores, _, _ = made
    given = {site: values[3].astype(np.float32) for site, values in scores.items()}
    given[ACT][5], given[ACT][6], given[RESID][2], given[RESID][4] = np.nan, np.inf, -np.inf, np.inf

    found = unusual_features(atlas, given, 200)

    expected = {}
    for site, values in scores.items():
        std = values.std(0)
        deviations = (given[site] - values.mean(0)) / np.maximum(std, 0.1 * np.median(std))
        expected |= {Feature(site, i): d for i, d in enumerate(deviations) if np.isfinite(given[site][i])}
    order = sorted(expected, key=lambda f: -expected[f])
    assert [f for f, _ in found[:12]] == order[:12] and len(found) == len(order)
    assert [f for f, _ in unusual_features(atlas, given, 1)] == order[:1]
    np.testing.assert_allclose([d for _, d in found], [expected[f] for f, _ in found], rtol=1e-3, atol=1e-4)


def test_a_feature_that_the_site_lacks_is_refused_by_every_question(made):
    atlas = made[0]

    for ask in (atlas.hits, atlas.histogram, atlas.neighbours):
        with pytest.raises(FeatureError, match=r"'1.resid' has 32 features; got 32"):
            ask(Feature(RESID, 32))


def test_an_atlas_made_anew_in_the_same_place_is_read_anew(tiny_view, folder, tmp_path):
    first = make(tiny_view("vit"), folder, tmp_path / "atlas", limit=30)
    before = first.table(ACT).mean, first.image(0)
    shutil.rmtree(tmp_path / "atlas")
    again = make(tiny_view("vit"), folder, tmp_path / "atlas")
    apart = make(tiny_view("vit"), folder, tmp_path / "apart")

    assert not np.array_equal(again.table(ACT).mean, before[0])
    assert np.array_equal(again.table(ACT).mean, apart.table(ACT).mean)
    assert [again.image(r) for r in range(9)] == [apart.image(r) for r in range(9)]


def test_an_atlas_of_before_images_were_checked_is_still_read(made, tmp_path):
    shutil.copytree(made[0].folder, tmp_path / "old")
    manifest = {k: v for k, v in made[0].manifest.items() if k not in ("n_non_finite", "non_finite")}
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))

    assert open_atlas(str(tmp_path / "old")).hits(Feature(ACT, 1)) == made[0].hits(Feature(ACT, 1))
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"n_non_finite": "<b>"}))
    with pytest.raises(AtlasError, match="n_non_finite is '<b>'"):
        open_atlas(str(tmp_path / "old"))
    for odd, message in (("<b>", "non_finite is '<b>'"), ({str(ACT): "x"}, f"'x' images are left out at {ACT}")):
        (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest | {"non_finite": odd}))
        with pytest.raises(AtlasError, match=message):
            open_atlas(str(tmp_path / "old"))


def test_the_crops_that_remain_are_those_of_ranked_images(tiny_view, folder, tmp_path):
    view, source = tiny_view("vit"), open_source(str(folder))

    state = search(
        view, source, SearchConfig(k=1, batch=3, layers=(1,), kinds=("resid",)), tmp_path, checkpoint_seconds=0
    )

    fold = state.folds[RESID]
    ranked = {*fold.top.keys[:, 0].tolist(), *fold.bottom.keys[:, 0].tolist()}
    with open_crops(tmp_path) as crops:
        assert {key for (key,) in crops.execute("SELECT key FROM crops")} == ranked
    assert len(ranked) < N
