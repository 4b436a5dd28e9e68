"""Accuracy under blacked out and shuffled tiles, against the same in plain transformers and numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.by_hand import Model, inside_box, interval, read_pictures, share
from vitviz_hf import classify, open_image, to_pixels
from vitviz_hf.experiments.accuracy.occlusion import RATIOS
from vitviz_hf.experiments.config import OcclusionConfig
from vitviz_hf.experiments.perturb import occlude
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source

GRID, SEED = 8, 3


def tiles_of(pixels, n):
    """[n * n, h, w, 3], row by row."""
    side = 64 // n
    return pixels.reshape(n, side, n, side, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, side, side, 3)


def joined(tiles, n):
    side = 64 // n
    return tiles.reshape(n, n, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)


def on_box(picture):
    """Which tiles have the box on more than 15 % of them."""
    return tiles_of(np.repeat(inside_box(picture)[..., None], 3, 2), GRID)[..., 0].mean((1, 2)) > 0.15


def changed(picture, change, amount):
    rng = np.random.default_rng(picture.key ^ SEED)
    if change == "shuffle":
        n = int(amount)
        return joined(tiles_of(picture.pixels, n)[rng.permutation(n * n)], n)
    own = on_box(picture)
    pool = np.flatnonzero({"random": own | True, "salient": own, "non-salient": ~own}[change])
    tiles = tiles_of(picture.pixels, GRID).copy()
    tiles[rng.permutation(pool)[: int(float(amount) * len(pool))]] = 0
    return joined(tiles, GRID)


def test_every_row_is_that_of_tiles_changed_by_hand(trained, trained_other, shapes, tmp_path):
    config = OcclusionConfig(grid=GRID, shuffles=(2, 4, 8), seed=SEED, batch=100)
    result = run_experiment("occlusion", [trained, trained_other], open_source(str(shapes)), config, tmp_path)

    pictures = read_pictures(shapes)
    truth = [p.label for p in pictures]
    rows = {(r["model"], r["change"], r["ratio, or tiles in a row"]): r for r in result.tables["table"].records()}
    assert len(rows) == 2 * (1 + 3 * len(RATIOS) + 3)
    for view in (trained, trained_other):
        model = Model(view.model_id)
        full = model.ranks([p.pixels for p in pictures], truth)
        for (model_id, change, amount), row in rows.items():
            if model_id != view.model_id:
                continue
            made = [p.pixels if change == "natural" else changed(p, change, amount) for p in pictures]
            ranks = model.ranks(made, truth)
            assert row["images"] == (full >= 0).sum()
            assert row["top-1, %"] == pytest.approx(share(ranks, 1)), (change, amount)
            assert row["relative, %"] == pytest.approx(share(ranks, 1, full)), (change, amount)
            assert [row["top-1, % low"], row["top-1, % high"]] == pytest.approx(interval(ranks, 1), abs=1)
            assert [row["relative, % low"], row["relative, % high"]] == pytest.approx(interval(ranks, 1, full), abs=1.5)
        by_mode = [
            tuple(rows[view.model_id, mode, f"{r:g}"]["top-1, %"] for r in RATIOS)
            for mode in ("random", "salient", "non-salient")
        ]
        assert len(set(by_mode)) == 3 and all(len(set(curve)) >= 3 for curve in by_mode)


def test_pictures_without_tiles_on_or_off_their_boxes_are_counted(trained, shapes, tmp_path):

    source = open_source(str(shapes))
    odd = {0: (0.0, 0.0, 63.0, 63.0), 1: (10.0, 10.0, 10.0, 10.0), 2: (9.0, 9.0, 11.0, 11.0)}

    def read(rank, n_ranks, position):
        for i, (row, mark) in enumerate(source.read(rank, n_ranks, position)):
            yield replace(row, boxes=(odd[i],) if i in odd else row.boxes), mark

    config = OcclusionConfig(grid=GRID, shuffles=(2,), limit=20)
    table = run_experiment("occlusion", [trained], replace(source, read=read), config, tmp_path).tables["table"]

    images = {r["change"]: r["images"] for r in table.records()}
    assert images == {"natural": 20, "random": 20, "salient": 18, "non-salient": 17, "shuffle": 20}
    notes = " ".join(table.notes)
    assert "Pictures whose boxes are too small for a tile, left out of salient and non-salient: 2." in notes
    assert "Pictures whose boxes are on all tiles, left out of non-salient: 1." in notes


def test_occlusion_counts_what_occluding_by_hand_gives(vit, labelled, tmp_path):
    source = open_source(str(labelled))
    config = OcclusionConfig(grid=4, shuffles=(4,))

    result = run_experiment("occlusion", [vit], source, config, tmp_path / "w")

    right = []
    for row, _ in source.read(0, 1, None):
        if row.label != "zebra":
            pixels = (to_pixels(vit, open_image(row.data))[0] * 255).round().byte().permute(1, 2, 0).numpy()
            changed = occlude(pixels, None, "random", 0.5, 4, row.key % 2**63).photo
            seen = torch.from_numpy(changed).permute(2, 0, 1)[None].float() / 255
            right.append(classify(vit, seen).top(1)[0][0][0] == row.label)
    rows = {(r["change"], r["ratio, or tiles in a row"]): r["top-1, %"] for r in result.tables["table"].records()}
    assert rows["random", "0.5"] == pytest.approx(100 * np.mean(right))
    assert rows["salient", "0.9"] is not None and rows["shuffle", "4"] is not None and len(rows) == 17
