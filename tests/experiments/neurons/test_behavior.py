"""Attention, views, occlusion, scenes and grouping: against the models themselves and examples worked by hand."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.conftest import draw_noise
from vitviz_hf import open_image, to_pixels
from vitviz_hf.cli.main import main
from vitviz_hf.errors import ConfigError, DatasetError, ModelError
from vitviz_hf.experiments.config import GroupConfig, OccludeConfig, ViewsConfig, parse_variants
from vitviz_hf.experiments.neurons.clusters import MEASURES, embed_tokens, group_tokens, instances_to_patches
from vitviz_hf.experiments.neurons.filters import (
    brightness,
    filter_scores,
    global_view,
    mosaic,
    patch_filters,
    patch_views,
    responses,
    to_display,
    view_numbers,
)
from vitviz_hf.experiments.neurons.group import majority, run_group
from vitviz_hf.experiments.neurons.occlude import compare, look, run_occlude
from vitviz_hf.experiments.neurons.scenes import open_scenes, paste_scene, tile_scene
from vitviz_hf.experiments.neurons.views import run_views, shown_levels
from vitviz_hf.experiments.perturb import mask_to_model, occlude, owned_patches, patch_sources, salient_tiles, shuffle
from vitviz_hf.models.view import normalize
from vitviz_hf.reading.attention import attention_weights, joint_attention


def noise(view, batch=1, seed=0):
    return torch.rand(batch, 3, *view.input_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def normal(vit):
    """Normalized pixels of one picture, [3, H, W]."""
    return normalize(vit, noise(vit))[0]


# Attention


@pytest.mark.parametrize(
    ("family", "why"),
    [("swin", "several patch grids"), ("resnet", "no transformer layers"), ("timm-convit", "enters late")],
)
def test_models_without_one_attention_matrix_are_refused_with_the_reason(family, why, tiny_view):
    with pytest.raises(ConfigError, match=why):
        attention_weights(tiny_view(family), noise(tiny_view(family)))


def test_an_attention_that_cannot_be_opened_is_told(tiny_view):
    with pytest.raises(ModelError, match="cannot be read"):
        attention_weights(tiny_view("timm-xcit"), noise(tiny_view("timm-xcit")))


def test_joint_attention_is_the_product_of_the_layers_with_their_skips(vit):
    weights = attention_weights(vit, noise(vit))[:, 0]

    found = joint_attention(weights, 1)

    expected = torch.eye(17)
    for layer, (a, joint) in enumerate(zip(weights, found.joint, strict=True)):
        expected = (0.5 * a + 0.5 * torch.eye(17)) @ expected
        torch.testing.assert_close(joint, expected)
        assert torch.equal(found.views[layer + 1], joint[:, 1:])
    torch.testing.assert_close(found.joint.sum(-1), torch.ones(3, 17))
    assert torch.equal(found.views[0], torch.cat([torch.zeros(1, 16), torch.eye(16)]))
    torch.testing.assert_close(joint_attention(weights, 1, 0.0).joint[0], weights[0])
    with pytest.raises(ConfigError, match="residual must be a number from 0 to 1"):
        joint_attention(weights, 1, 1.5)


def test_identity_attention_keeps_level_0_and_uniform_attention_makes_all_tokens_alike():
    same = joint_attention(torch.eye(10).repeat(4, 1, 1), 1)
    flat = joint_attention(torch.full((8, 10, 10), 0.1), 1)

    assert all(torch.equal(a, b) for a, b in pairwise(same.views))
    spread = (flat.views[1:] - flat.views[1:, :1]).abs().amax((1, 2))
    assert all(b < a for a, b in pairwise(spread.tolist())) and spread[-1] < 0.01


# Filters and views


def test_neurons_are_the_sums_of_views_with_bias_and_position(vit, normal):
    filters = patch_filters(vit)
    embeddings = vit.module.vit.embeddings
    tokens = embeddings(normal[None])[0]

    for k in (0, 7, 15):
        views = patch_views(filters, normal, k, list(range(32)))
        neurons = views.sum((1, 2, 3)) + filters.bias + embeddings.position_embeddings[0, 1 + k]
        torch.testing.assert_close(neurons, tokens[1 + k], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(responses(filters, normal)[k], views.sum((1, 2, 3)), atol=1e-5, rtol=1e-4)


def test_a_mosaic_is_all_views_at_their_places(vit, normal):
    filters = patch_filters(vit)

    whole = mosaic(filters, normal, 5)

    for k in range(16):
        r, c = divmod(k, 4)
        tile = whole[:, r * 8 : (r + 1) * 8, c * 8 : (c + 1) * 8]
        torch.testing.assert_close(tile, patch_views(filters, normal, k, [5])[0])
    with pytest.raises(ConfigError, match="there are 32 filters"):
        mosaic(filters, normal, 32)


def test_global_views_equal_the_recursion_over_pictures(vit, normal):
    """V[l+1][t] = sum over tokens u of a[t, u] V[l][u], with pictures instead of weights."""
    filters, weights = patch_filters(vit), attention_weights(vit, noise(vit))[:, 0]
    whole = mosaic(filters, normal, 3)
    blocks = torch.eye(16).reshape(16, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pictures = torch.cat([torch.zeros(1, 3, 32, 32), blocks * whole])
    for a in weights:
        pictures = torch.einsum("tu,uchw->tchw", 0.5 * a + 0.5 * torch.eye(17), pictures)

    views = joint_attention(weights, 1).views

    for token in (0, 4, 16):
        row = views[-1, token].reshape(1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
        torch.testing.assert_close(row * whole, pictures[token], atol=1e-6, rtol=1e-5)
        shown = global_view(whole, views[-1, token], (4, 4))
        expected = (whole / whole.max()).clamp(0, 1) * row / views[-1, token].max()
        torch.testing.assert_close(shown, expected)


def test_display_is_relative_to_the_largest_and_negative_is_black(vit, normal):
    whole = mosaic(patch_filters(vit), normal, 0)

    shown = to_display(whole)

    assert shown.max() == 1 and (shown[whole <= 0] == 0).all()
    torch.testing.assert_close(shown[whole > 0], whole[whole > 0] / whole.max())
    assert to_display(-torch.ones(3, 2, 2)).sum() == 0 and global_view(whole, torch.zeros(16), (4, 4)).sum() == 0
    assert brightness(torch.arange(-5.0, 101)) == 100 and brightness(torch.arange(-5.0, 101), 50) == 50.5


def test_own_patch_stays_as_bright_while_it_weighs_most(vit, normal):
    whole = mosaic(patch_filters(vit), normal, 1)
    weights = torch.full((16,), 0.01)

    levels = []
    for own in (1.0, 0.6, 0.2):
        weights[5] = own
        levels.append(global_view(whole, weights.clone(), (4, 4))[:, 8:16, 8:16])

    assert torch.equal(levels[0], levels[1]) and torch.equal(levels[0], levels[2])


@pytest.mark.parametrize("family", ["pvt-v2", "siglip2", "levit", "resnet", "timm-xcit"])
def test_models_whose_patches_overlap_or_are_cut_elsewhere_have_no_filters(family, tiny_view):
    with pytest.raises(ConfigError, match="has no filters to show"):
        patch_filters(tiny_view(family))


def test_numbers_beside_views_are_those_of_the_rows():
    views = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.6, 0.2], [0.3, 0.3]]])

    found = view_numbers(views, 1, torch.tensor([True, False]))

    assert found["own weight"].tolist() == [[1, 1], [pytest.approx(0.6), pytest.approx(0.3)]]
    assert found["entropy"][1, 0] == pytest.approx(np.log(2)) and found["entropy"][0].tolist() == [0, 0, 0]
    cosine = (0.6 * 0.3 + 0.2 * 0.3) / np.hypot(0.6, 0.2) / np.hypot(0.3, 0.3)
    assert found["convergence"].tolist() == [0, pytest.approx(cosine)]
    assert found["object share from the object"].tolist() == [1, pytest.approx(0.75)]
    assert found["object share from elsewhere"].tolist() == [0, pytest.approx(0.5)]


def test_filters_are_ranked_by_the_area_under_the_curve(generator):
    values = torch.randn(30, 4, generator=generator)
    inside = torch.arange(30) < 11
    values[inside, 2] += 9
    values[inside, 3] -= 9

    found = filter_scores(values, inside)

    areas = [roc_auc_score(inside.numpy(), values[:, j].numpy()) for j in range(4)]
    np.testing.assert_allclose(found, [2 * abs(a - 0.5) for a in areas], atol=1e-6)
    assert found[2] == 1 and found[3] == 1


def test_without_a_mask_filters_are_ranked_by_otsu(generator):
    values = torch.randn(40, 3, generator=generator)
    values[:15, 1] += 8

    found = filter_scores(values)

    for j in range(3):
        v = values[:, j].double().numpy()
        cuts = np.sort(v)[:-1]
        between = max((v <= t).mean() * (v > t).mean() * (v[v <= t].mean() - v[v > t].mean()) ** 2 for t in cuts)
        assert found[j] == pytest.approx(between / v.var(), rel=1e-5)
    assert found[1] > 0.9 > found[0]


# Occlusion


@settings(max_examples=30)
@given(ratio=st.floats(0, 1), seed=st.integers(0, 5), mode=st.sampled_from(["random", "salient", "non-salient"]))
def test_as_many_tiles_are_blacked_out_as_the_ratio_says(ratio, seed, mode):
    pixels = np.full((28, 42, 3), 200, np.uint8)
    mask = np.zeros((28, 42), np.int64)
    mask[4:15, 6:20] = 2
    salient = salient_tiles(mask, 7)
    pool = {"random": 49, "salient": salient.sum(), "non-salient": (~salient).sum()}[mode]

    changed = occlude(pixels, mask, mode, ratio, 7, seed)

    assert len(changed.tiles) == int(ratio * pool)
    assert (changed.photo == 0).all(-1).sum() == changed.hidden.sum() == len(changed.tiles) * 4 * 6
    assert not changed.mask[changed.hidden].any() and (changed.mask == mask)[~changed.hidden].all()
    if mode != "random":
        assert (salient[changed.tiles] == (mode == "salient")).all()
    again = occlude(pixels, mask, mode, ratio, 7, seed)
    assert np.array_equal(again.tiles, changed.tiles) and (pixels == 200).all()


def test_chosen_tiles_are_blacked_out_and_bad_ones_told():
    pixels = np.ones((8, 8, 3), np.uint8)

    assert occlude(pixels, None, "random", grid=4, tiles=[5, 0]).hidden[[0, 2, 7], [0, 2, 7]].tolist() == [1, 1, 0]
    for options, why in [
        ({"tiles": [16]}, "numbered 0 to 15"),
        ({"mode": "some"}, "mode must be one of"),
        ({"ratio": 2}, "ratio must be"),
        ({"mode": "salient"}, "needs a mask"),
        ({"grid": 9}, "grid must be"),
    ]:
        with pytest.raises(ConfigError, match=why):
            occlude(pixels, None, **({"mode": "random", "grid": 4} | options))


@pytest.mark.parametrize("side", [2, 4, 8])
def test_shuffling_moves_picture_and_mask_together_and_can_be_undone(side):
    pixels = np.arange(16 * 24 * 3, dtype=np.uint64).astype(np.uint8).reshape(16, 24, 3)
    mask = np.arange(16 * 24).reshape(16, 24)

    changed = shuffle(pixels, mask, side, 1)

    flat = changed.mask.ravel()
    assert sorted(flat) == list(range(384)) and np.array_equal(
        pixels.reshape(-1, 3)[flat], changed.photo.reshape(-1, 3)
    )
    height, width = 16 // side, 24 // side
    for target, source in enumerate(changed.tiles):
        row, col = divmod(int(source), side)
        r, c = divmod(target, side)
        old = mask[row * height : (row + 1) * height, col * width : (col + 1) * width]
        assert np.array_equal(changed.mask[r * height : (r + 1) * height, c * width : (c + 1) * width], old)


def test_a_strip_that_tiles_do_not_cover_is_black_and_patches_know_where_they_came_from():
    pixels = np.full((14, 14, 3), 9, np.uint8)
    assert shuffle(pixels, None, 4).hidden.sum() == 14 * 14 - 12 * 12

    mask = np.kron(np.arange(16).reshape(4, 4), np.ones((8, 8), np.int64))
    changed = shuffle(np.zeros((32, 32, 3), np.uint8), mask, 2, 3)
    sources = patch_sources(changed, 2, (4, 4))
    assert np.array_equal(changed.mask[::8, ::8].ravel(), sources)
    assert patch_sources(changed, 8, (4, 4)) is None


def test_a_mask_goes_through_the_models_own_crop(builtin):
    picture = Image.new("RGB", (500, 380), "black")
    mask = np.zeros((380, 500), np.int64)
    for n, box in enumerate([(130, 60, 260, 150), (300, 200, 390, 330)], 1):
        picture.paste((255, 255, 255), box)
        mask[box[1] : box[3], box[0] : box[2]] = n
    mask[:40] = 255

    found = mask_to_model(builtin, mask)

    seen = to_pixels(builtin, picture)[0].mean(0).numpy() > 0.5
    assert found.shape == builtin.input_size and set(np.unique(found)) == {0, 1, 2}
    assert ((found > 0) != seen).sum() < 0.01 * seen.sum()


def test_patches_are_owned_from_two_fifths_on():
    for n, owned in [(102, False), (103, True)]:
        inside = np.zeros((32, 32), bool)
        inside[:16, :16].flat[:n] = False
        inside.reshape(2, 16, 2, 16)[0, :, 0] = (np.arange(256) < n).reshape(16, 16)
        assert owned_patches(inside, (2, 2)).tolist() == [owned, False, False, False]


def test_likeness_to_itself_is_complete_and_to_another_less(vit, photo):
    pixels = (to_pixels(vit, photo)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    clean, filters = look(vit, pixels, 0.5), patch_filters(vit)
    other = look(vit, occlude(pixels, None, "random", 0.5, 4).photo, 0.5)
    kept = np.ones(16, bool)

    same = compare(vit, filters, clean, clean, kept, None, 3, 0)
    less = compare(vit, filters, clean, other, kept, None, 3, 0)

    np.testing.assert_allclose(same, np.array([[1] * 3, [1] * 3, [1] * 3, [0] * 3]), atol=1e-5)
    assert (less[:3] < 0.9999).all() and (less[3] > 0.01).all()
    by_hand = torch.nn.functional.cosine_similarity(clean.tokens[1, 1:], other.tokens[1, 1:], dim=-1).mean()
    assert less[0, 1] == pytest.approx(float(by_hand))


# Scenes and groups


def test_scenes_have_exact_masks(generator):
    colors = ["red", "lime", "blue", "yellow", "white"]
    pictures = [(c, Image.new("RGB", (30 + 9 * i, 40), c)) for i, c in enumerate(colors)]

    for seed in range(5):
        pasted = paste_scene("s", pictures, np.random.default_rng(seed))
        tiled = tile_scene("s", pictures[:4], np.random.default_rng(seed))
        for scene, background in ((pasted, (255, 0, 0)), (tiled, None)):
            values = np.asarray(scene.image)
            assert 2 <= len(scene.names) <= 4 and scene.mask.max() == len(scene.names)
            for n, name in enumerate(scene.names, 1):
                assert (values[scene.mask == n] == Image.new("RGB", (1, 1), name).getpixel((0, 0))).all()
            if background:
                assert (values[scene.mask == 0] == background).all() and (scene.mask == 0).any()


def test_pascal_voc_is_read_with_all_names(tmp_path):
    for folder in ("JPEGImages", "SegmentationObject", "Annotations"):
        (tmp_path / folder).mkdir()
    draw_noise(0).save(tmp_path / "JPEGImages" / "a.jpg")
    mask = np.zeros((40, 48), np.uint8)
    mask[:20], mask[20:30], mask[30:32] = 1, 2, 255
    image = Image.fromarray(mask)
    image.putpalette([i for rgb in range(256) for i in (rgb, 0, 255 - rgb)])
    image.save(tmp_path / "SegmentationObject" / "a.png")
    names = "".join(f"<object><name>{n}</name></object>" for n in ("dog", "cat", "tiny"))
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{names}</annotation>")
    (tmp_path / "SegmentationObject" / "without.png").write_bytes(b"")

    scenes = list(open_scenes(str(tmp_path)))

    assert [s.name for s in scenes] == ["a"] and scenes[0].names == ("dog", "cat", "tiny")
    assert np.array_equal(scenes[0].mask, mask)


def test_a_datasets_column_of_masks_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw_noise(0).save(tmp_path / "p.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, :24], mask[10:30, 24:] = 1, 2
    Image.fromarray(mask).save(tmp_path / "m.png")
    row = {
        "image": {"bytes": (tmp_path / "p.png").read_bytes(), "path": "p.png"},
        "instance_mask": {"bytes": (tmp_path / "m.png").read_bytes(), "path": "m.png"},
        "classes": ["dog"],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation.parquet")

    scene = next(open_scenes(str(tmp_path / "validation.parquet"), compose="none"))

    assert np.array_equal(scene.mask, mask) and scene.names == ("dog", "object 2")
    with pytest.raises(DatasetError, match="has no instance masks"):
        open_scenes("builtin", compose="none")


def test_objects_that_are_too_small_do_not_count():
    mask = np.zeros((224, 224), np.int64)
    mask[:112, :112] = 1
    for n_pixels, counts in [(983, False), (984, True)]:
        mask[112:] = 0
        mask[112:160, :48].flat[:n_pixels] = 2
        assert (instances_to_patches(mask, (14, 14)) is not None) == counts
    mask[112:] = 0
    mask[112:128, 0:32], mask[128:140, 32:80] = 2, 2  # large enough, but two whole patches and three nearly whole
    assert instances_to_patches(mask, (14, 14))[2].tolist() == [98, 99, 114, 115, 116]
    mask[128:140] = 0
    assert instances_to_patches(mask, (14, 14), 0.005) is None


def test_a_patch_of_two_objects_belongs_to_the_larger_part():
    mask = np.zeros((32, 64), np.int64)
    mask[:, :19], mask[:, 19:] = 1, 2

    objects = instances_to_patches(mask, (4, 8), cover=0.2)

    assert 2 in objects[2] and 2 not in objects[1] and objects[1].tolist() == [0, 1, 8, 9, 16, 17, 24, 25]


def test_the_worked_example():
    tokens = np.array([(10, 0), (10, 1), (10, 2), (10, 3), (0, 10), (1, 10), (2, 10), (30, 10)], float)

    found = group_tokens(tokens, [np.arange(4), np.arange(4, 8)], ["a", "b"])

    assert found.eps == 5.5 and found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, -1]
    assert found.measures == pytest.approx(
        {
            "silhouette": 0.98236,
            "purity": 0.875,
            "in-cluster cosine": 0.98730,
            "in-object cosine": 0.84152,
            "unique-label rate": 1,
            "clusters per object": 1,
            "token ratio": 0.875,
            "one-to-one": 0.875,
            "between-object cosine": found.measures["between-object cosine"],
        },
        abs=5e-6,
    )
    same = group_tokens(tokens, [np.arange(4), np.arange(4, 8)], ["a", "a"])
    assert same.measures["unique-label rate"] == 1


def test_noise_and_one_cluster_have_their_own_values():
    far = np.array([(0, 1), (100, 3), (0, 1e3), (5e3, 1), (5e3, 1.1), (5e3, 1.2)], float)
    one = group_tokens(far, [np.array([3, 4, 5]), np.array([0, 1, 2])], ["a", "b"])
    apart = 10.0 ** np.arange(6)[:, None] * np.array([[1.0, 2.0]])
    none = group_tokens(apart, [np.array([5, 0, 4]), np.array([1, 3, 2])], ["a", "b"])

    assert one.labels.max() == 0 and one.measures["silhouette"] == 0
    if none.labels.max() < 0:
        values = none.measures
        assert (values["purity"], values["in-cluster cosine"], values["silhouette"]) == (0, -1, -1)
        assert values["unique-label rate"] == values["clusters per object"] == 0


def test_the_commonest_owner_of_a_patch():
    mask = np.zeros((4, 4), np.int64)
    mask[0, 0:2], mask[1, 0], mask[2:, 2:] = 3, 3, 1

    assert majority(mask, (2, 2)).tolist() == [3, 0, 0, 1]


def test_embedding_in_the_plane_is_repeatable(generator):
    tokens = torch.randn(20, 8, generator=generator).numpy()

    assert embed_tokens(tokens, 1).shape == (20, 2)
    assert np.array_equal(embed_tokens(tokens, 1), embed_tokens(tokens, 1))


# Whole runs


def square_mask(image):
    mask = np.zeros((image.height, image.width), np.int64)
    mask[: image.height // 2, : image.width // 2] = 1
    return mask


@pytest.mark.parametrize("family", ["vit", "siglip", "timm-deit"])
def test_views_of_a_picture(family, tiny_view, photo):
    view = tiny_view(family)

    found = run_views(view, photo, ViewsConfig(filters=(3, 1), patches=((0, 0), (2, 3))), square_mask(photo))

    assert ("class-attention" in found.figures) == (view.layers[0].n_prefix > 0)
    assert {"filters", "mosaics", "responses", "global-views"} <= set(found.figures)
    first, *_, last = found.tables["table"].records()
    assert (first["level"], last["level"]) == (0, len(view.layers))
    assert first["own weight, patch 2,3"] == 1 and "object share from the object" in last
    ranks = [r["rank"] for r in found.tables["table-filters"].records()]
    assert ranks[0] == 1 and len(ranks) == 16


def test_occlusion_of_a_picture(vit, photo):
    found = run_occlude(vit, photo, OccludeConfig(seeds=2, grid=4, tiles=(0, 1, 2)), square_mask(photo))

    rows = found.tables["table"].records()
    assert {r["variant"] for r in rows} == {"random", "salient", "non-salient", "shuffle"} and len(rows) == 29
    shuffled = {r["ratio, or tiles in a row"]: r for r in rows if r["variant"] == "shuffle"}
    assert shuffled[2]["kept tokens, cosine"] < 1 and shuffled[8]["kept tokens, cosine"] is None
    assert {"views", "figure"} == set(found.figures)
    bare = run_occlude(vit, photo, OccludeConfig(seeds=1, grid=4, shuffles=()))
    assert {r["variant"] for r in bare.tables["table"].records()} == {"random"}


def test_grouping_of_scenes(tiny_view, labelled):
    view = tiny_view("vit")
    config = GroupConfig(limit=3, variants=parse_variants("clean,shuffle 2,random 0.3"), compose="tiles")

    found = run_group(view, "x", open_scenes(str(labelled), compose="tiles"), config)

    rows = found.tables["table"].records()
    assert [r["layer"] for r in rows] == [1, 2, 3] and set(MEASURES) <= set(rows[0])
    assert {r["variant"] for r in found.data["curves"].records()} == {"clean", "shuffle 2", "random 0.3"}
    assert found.manifest["scenes"] == 3 and {"figure", "tsne"} == set(found.figures)
    fixed = run_group(view, "x", open_scenes(str(labelled), compose="tiles"), replace(config, limit=1, markers="fixed"))
    panels = [ax.get_title() for ax in fixed.figures["tsne"].axes]
    assert "after block 2, by joint attention" in panels and len(panels) == len(found.figures["tsne"].axes) + 1
    with pytest.raises(DatasetError, match="has two objects of at least"):
        run_group(view, "x", open_scenes(str(labelled), compose="tiles"), GroupConfig(min_area=0.9))


def test_the_commands_write_their_folders(tiny_folder, photo, labelled, tmp_path, capsys):
    photo.save(tmp_path / "p.png")
    Image.fromarray((square_mask(photo) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    model, common = str(tiny_folder("vit")), ["--device", "cpu", "--out"]
    picture = ["--image", str(tmp_path / "p.png"), "--mask", str(tmp_path / "m.png")]

    assert main(["views", model, *picture, *common, str(tmp_path / "views")]) == 0
    assert main(["occlude", model, *picture, "--seeds", "1", "--grid", "4", *common, str(tmp_path / "occlude")]) == 0
    options = ["--compose", "tiles", "--limit", "2", "--variants", "clean"]
    assert main(["group", model, str(labelled), *options, *common, str(tmp_path / "group")]) == 0

    for name in ("views", "occlude", "group"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["experiment"] == name and (name == "group" or manifest["image"] == "p.png")
        assert (tmp_path / name / "table.csv").is_file()
    capsys.readouterr()
    for arguments, message in [
        (["views", model, *picture, *common, str(tmp_path / "views")], "already exists"),
        (["views", model, *picture, "--patches", "9,9", *common, str(tmp_path / "x")], "outside the grid"),
        (["views", model, *picture, "--levels", "7", *common, str(tmp_path / "x")], "levels go from 0"),
        (["views", str(tiny_folder("swin")), *picture, *common, str(tmp_path / "x")], "several patch grids"),
        (["occlude", model, *picture, "--filter", "99", *common, str(tmp_path / "x")], "there are 32 filters"),
        (["group", model, str(labelled), "--compose", "none", *common, str(tmp_path / "x")], "no instance masks"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_mask_of_another_size_is_refused(tiny_folder, photo, tmp_path, capsys):
    photo.save(tmp_path / "p.png")
    Image.new("L", (5, 5)).save(tmp_path / "m.png")
    command = ["views", str(tiny_folder("vit")), "--image", str(tmp_path / "p.png"), "--mask", str(tmp_path / "m.png")]

    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    assert "the mask has 5x5 pixels, the picture 80x60" in capsys.readouterr().err


def test_levels_stand_where_they_do_in_twelve_layers():
    assert shown_levels(12) == [0, 4, 8, 11] and shown_levels(3) == [0, 1, 2, 3]


def test_opened_pictures_and_masks_come_from_strangers(tmp_path):
    (tmp_path / "m.png").write_bytes(b"no picture")
    draw_noise(1).save(tmp_path / "p.png")

    assert (
        main(
            [
                "views",
                "builtin",
                "--image",
                str(tmp_path / "p.png"),
                "--mask",
                str(tmp_path / "m.png"),
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 2
    )
    assert open_image(tmp_path / "p.png").size == (49, 40)
