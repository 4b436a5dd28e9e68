"""Every number and picture of occlude: against transformers' own hidden states, attention and probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from tests.conftest import square_mask
from tests.experiments.neurons.test_group import own_module, own_states
from tests.experiments.neurons.test_views import Own, corner_mask, drawn, pictures, same, to_stack
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import OccludeConfig
from vitviz_hf.experiments.neurons import occlude as module
from vitviz_hf.experiments.neurons.filters import patch_filters
from vitviz_hf.experiments.neurons.occlude import QUANTITIES, Seen, compare, look, run_occlude
from vitviz_hf.experiments.perturb import mask_to_model, occlude, salient_tiles, shuffle
from vitviz_hf.models.view import at_size, normalize, to_pixels


class Looked(Own):
    """One changed picture, and what a model makes of it."""

    def __init__(self, view, pixels):
        super().__init__(view, pixels)
        assert np.array_equal(self.crop, pixels)
        self.tokens_by_layer = own_states(view, pixels)
        self.probabilities = None
        if view.labels:
            logits = own_module(view.model_id)(pixel_values=normalize(view, to_stack(pixels))).logits
            self.probabilities = logits[0].softmax(0).numpy()


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def moved_patches(changed, side, grid):
    """For each patch the one that came there, found with the numbers of the patches as a picture."""
    height, width = changed.mask.shape
    if grid[0] % side or grid[1] % side:
        return None
    numbers = np.kron(np.arange(grid[0] * grid[1]).reshape(grid), np.ones((height // grid[0], width // grid[1]), int))
    rows, cols = height // side, width // side
    out = np.zeros_like(numbers)
    for target, source in enumerate(changed.tiles):
        (r, c), (y, x) = divmod(target, side), divmod(int(source), side)
        out[r * rows : (r + 1) * rows, c * cols : (c + 1) * cols] = numbers[
            y * rows : (y + 1) * rows, x * cols : (x + 1) * cols
        ]
    return out[:: height // grid[0], :: width // grid[1]].ravel()


def likeness(view, clean, other, kept, sources, patch, index):
    """The four quantities by layer."""
    n, found = view.layers[0].n_prefix, []
    whole = [x.mosaic(index) for x in (clean, other)]
    for layer in range(len(view.layers)):
        before, after = clean.tokens_by_layer[layer], other.tokens_by_layer[layer]
        first = before[n:] if sources is None else before[n:][sources]
        rows = [x.views[layer + 1, n + patch] for x in (clean, other)]
        views = [m * x.spread(row) for m, x, row in zip(whole, (clean, other), rows, strict=True)]
        found.append(
            [
                cosine(first, after[n:])[kept].mean() if kept.any() else np.nan,
                cosine(before[0], after[0]),
                stats.spearmanr(*rows).statistic,
                np.linalg.norm(views[1] - views[0]) / np.linalg.norm(views[0]),
            ]
        )
    return np.array(found)


def test_every_number_and_curve(model, cat, monkeypatch):
    monkeypatch.setattr(module, "RATIOS", (0.3, 0.5))
    if model.labels is None:  # of 64 patches two that rounding swaps in rank move a correlation by 4e-4, of 256 by 6e-6
        model = at_size(model, (224, 224))
    grid = model.layers[0].patch_grid
    mask = corner_mask(cat)
    side = 5  # tiles that cut patches
    config = OccludeConfig(seeds=2, seed=3, grid=side, shuffles=(2, 8), patch=(1, 2), filter=4)
    patch = grid[1] + 2

    found = run_occlude(model, cat, config, mask)

    pixels = (to_pixels(model, cat)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    seen_mask = mask_to_model(model, (mask > 0).astype(np.int64))
    clean = Looked(model, pixels)
    expected = {}
    for seed in (3, 4):
        for mode in ("random", "salient", "non-salient"):
            for ratio in (0.3, 0.5):
                changed = occlude(pixels, seen_mask, mode, ratio, side, seed)
                height, width = (s // g for s, g in zip(pixels.shape, grid, strict=False))
                blocks = changed.hidden[: grid[0] * height, : grid[1] * width].reshape(grid[0], height, grid[1], width)
                kept = ~blocks.any((1, 3)).ravel()
                other = Looked(model, changed.photo)
                expected.setdefault((mode, ratio), []).append(
                    (other, likeness(model, clean, other, kept, None, patch, 4))
                )
        for tiles in (2, 8):
            changed = shuffle(pixels, None, tiles, seed)
            sources = moved_patches(changed, tiles, grid)
            kept = np.full(grid[0] * grid[1], sources is not None)
            other = Looked(model, changed.photo)
            expected.setdefault(("shuffle", tiles), []).append(
                (other, likeness(model, clean, other, kept, sources, patch, 4))
            )
    rows = found.tables["table"].records()
    assert [(r["variant"], r["ratio, or tiles in a row"]) for r in rows] == list(expected)
    for row, draws in zip(rows, expected.values(), strict=True):
        values = np.mean([d[-1] for _, d in draws], 0)
        assert [row[q] for q in QUANTITIES] == [None if np.isnan(v) else pytest.approx(v, abs=2e-4) for v in values]
        if model.labels:
            best = clean.probabilities.argmax()
            kept = np.mean([100 * (o.probabilities.argmax() == best) for o, _ in draws])
            assert row["label kept, %"] == pytest.approx(kept)
            assert row["probability of the clean label, %"] == pytest.approx(
                np.mean([100 * o.probabilities[best] for o, _ in draws]), abs=1e-3
            )
        else:
            assert row["label kept, %"] is row["probability of the clean label, %"] is None
    if model.labels is None:  # a model that has learned something: no two columns and no two rows are alike
        table = np.array([[r[q] for q in QUANTITIES] for r in rows])
        assert len({tuple(c) for c in table.T.round(3)}) == 4 and len({tuple(r) for r in table.round(3)}) == len(rows)
        assert np.abs(table[:, 1]).min() < 0.9
    shown = {ax.get_title(): {line.get_label(): line for line in ax.lines} for ax in found.figures["figure"].axes}
    assert list(shown) == list(QUANTITIES)
    drawn_lines = {f"{m} {r:g}": draws for (m, r), draws in expected.items() if m == "shuffle" or r == 0.5}
    for q, quantity in enumerate(QUANTITIES):
        for name, draws in drawn_lines.items():
            values = np.stack([d[:, q] for _, d in draws])
            if not np.isnan(values).any():
                np.testing.assert_allclose(shown[quantity][name].get_ydata(), values.mean(0), atol=2e-4)
                assert shown[quantity][name].get_xdata().tolist() == list(range(1, len(model.layers) + 1))
    assert any("filter 4 from patch 1,2" in n for n in found.tables["table"].notes)


@pytest.mark.parametrize("source", [None, "clean", "chosen tiles"])
def test_every_picture_with_its_own_attention_or_that_of_one_row(model, cat, source, monkeypatch):
    monkeypatch.setattr(module, "RATIOS", ())
    n, grid = model.layers[0].n_prefix, model.layers[0].patch_grid
    mask = corner_mask(cat)
    config = OccludeConfig(
        seeds=1, grid=4, ratio=0.5, tiles=(*range(6), 9), shuffles=(2,), patch=(1, 2), filter=4, attention_from=source
    )

    found = run_occlude(model, cat, config, mask)

    pixels = (to_pixels(model, cat)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    seen_mask = mask_to_model(model, (mask > 0).astype(np.int64))
    rows = {"clean": pixels}
    for mode in ("random", "salient", "non-salient"):
        rows[f"{mode} 0.5"] = occlude(pixels, seen_mask, mode, 0.5, 4, 0).photo
    height, width = (s // 4 for s in pixels.shape[:2])
    rows["chosen tiles"] = pixels.copy()
    for tile in (0, 1, 2, 3, 4, 5, 9):
        r, c = divmod(tile, 4)
        rows["chosen tiles"][r * height : (r + 1) * height, c * width : (c + 1) * width] = 0
    rows["shuffle 2"] = shuffle(pixels, None, 2, 0).photo
    looked = {name: Looked(model, changed) for name, changed in rows.items()}
    top = max(x.mosaic(4).max() for x in looked.values())
    levels = [0, 4, 8, 11] if len(model.layers) == 12 else [0, 1, 2, 3]
    shown = pictures(found.figures["views"])
    labels = [ax.get_ylabel() for ax in found.figures["views"].axes][::5]
    assert labels == list(rows) and len(shown) == 5 * len(rows)
    for r, (name, own) in enumerate(looked.items()):
        caption, picture = shown[5 * r]
        assert np.array_equal(picture, rows[name])
        if model.labels:
            best = own.probabilities.argmax()
            assert caption == f"{model.labels[best]} {own.probabilities[best]:.0%}"
        for c, level in enumerate(levels, 1):
            caption, picture = shown[5 * r + c]
            weights = looked[source or name].views[level, n + grid[1] + 2]
            assert same(picture, drawn(own.mosaic(4) / top * own.spread(weights / weights.max()))), (name, level)
            assert caption.split(";")[0] == f"level {level}"
    notes = " ".join(found.tables["table"].notes)
    assert ("attention of the row" in notes) == bool(source) and "the largest of all rows" in notes


def test_the_label_is_that_of_the_clean_picture(vit):
    def seen(*probabilities):
        return Seen(None, None, None, torch.tensor(probabilities) if probabilities else None)

    clean, other = seen(0.2, 0.7, 0.1), seen(0.6, 0.3, 0.1)
    assert module._label(clean, other) == (0, pytest.approx(30)) and module._label(clean, clean)[0] == 100
    assert module._label(other, clean) == (0, pytest.approx(20)) and module._label(seen(), seen()) == (None, None)
    assert module._means([("a", 1, 100.0, None), ("a", 1, 0.0, None), ("b", 1, 3.0, 2.0)]) == (
        ("a", 1, 50.0, None),
        ("b", 1, 3.0, 2.0),
    )
    assert module._caption(vit, other) == "cat 60%" and module._caption(vit, seen()) == ""


def test_attention_from_a_row_that_is_not_there_is_told(vit, cat):
    with pytest.raises(ConfigError, match=r"rows clean, random 0\.2, shuffle 2, shuffle 8; got 'x'"):
        run_occlude(vit, cat, OccludeConfig(attention_from="x"))


def test_brightness_and_scale_are_told_and_drawn(vit, cat, monkeypatch):
    monkeypatch.setattr(module, "RATIOS", ())
    bright = run_occlude(vit, cat, OccludeConfig(seeds=1, shuffles=(2,), white=90))
    log = run_occlude(vit, cat, OccludeConfig(seeds=1, shuffles=(2,), scale="log"))

    captions = [c for c, _ in pictures(bright.figures["views"]) if c.startswith("level")]
    assert len(captions) == 12 and all("white from 90 %" in c for c in captions)
    assert any("percentile 90" in n for n in bright.tables["table"].notes)
    assert log.figures["views"].axes[-1].get_ylabel() == "weight of a patch"
    assert any("logarithmic scale" in n for n in log.tables["table"].notes)


def test_a_mask_without_an_object_is_refused(vit, cat):
    with pytest.raises(ConfigError, match="no object on more than 15 %"):
        run_occlude(vit, cat, OccludeConfig(), np.zeros((cat.height, cat.width), np.int64))


def test_object_tiles_are_those_with_more_than_fifteen_percent():
    for n, salient in ((15, False), (16, True)):
        mask = np.zeros((20, 20), np.int64)
        mask[:10, :10].flat[:n] = 7
        mask[:10, :10] = (np.arange(100) < n).reshape(10, 10) * 7
        assert salient_tiles(mask, 2).tolist() == [salient, False, False, False]


def test_a_strip_below_the_tiles_stays_as_it_is():
    pixels = np.full((11, 14, 3), 9, np.uint8)
    changed = occlude(pixels, None, "random", 1.0, 4)

    assert (changed.photo[:8, :12] == 0).all() and (changed.photo[8:] == 9).all() and (changed.photo[:, 12:] == 9).all()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (600, 411), (97, 131), (1000, 700), (224, 224)])
def test_a_mask_is_scaled_as_nearest_neighbors_are(vit, size):
    """The released code resizes the palette mask so."""
    view = replace(vit, input_size=(224, 224), preprocess=lambda image: squash(image, 224))
    rows, cols = np.mgrid[: size[1], : size[0]] % 200

    for mask in (rows, cols):
        own = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((224, 224), Image.Resampling.NEAREST))
        assert (mask_to_model(view, mask) != own).mean() < 0.01


def test_a_mask_is_scaled_and_cut_at_the_center(vit):
    view = replace(vit, input_size=(224, 224), preprocess=lambda image: squash(image, 256)[:, 16:240, 16:240])
    mask = np.mgrid[:375, :500][1] % 200

    own = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((256, 256), Image.Resampling.NEAREST))
    assert (mask_to_model(view, mask) != own[16:240, 16:240]).mean() < 0.01


def squash(image, side):
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


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


def test_occlusion_of_a_picture(vit, photo):
    found = run_occlude(vit, photo, OccludeConfig(seeds=2, grid=4, tiles=(0, 1, 2)), square_mask(photo))

    rows = found.tables["table"].records()
    assert {r["variant"] for r in rows} == {"random", "salient", "non-salient", "shuffle"} and len(rows) == 29
    shuffled = {r["ratio, or tiles in a row"]: r for r in rows if r["variant"] == "shuffle"}
    assert shuffled[2]["kept tokens, cosine"] < 1 and shuffled[8]["kept tokens, cosine"] is None
    assert {"views", "figure"} == set(found.figures)
    bare = run_occlude(vit, photo, OccludeConfig(seeds=1, grid=4, shuffles=()))
    assert {r["variant"] for r in bare.tables["table"].records()} == {"random"}
