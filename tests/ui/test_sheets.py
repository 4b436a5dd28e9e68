"""Sheets of tiles, against tiles that are cut one by one."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.optimize.test_guides import best_of
from vitviz_hf import Feature, Site, VisualizeConfig, open_image, to_pixels, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.store import open_atlas
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.images import cover
from vitviz_hf.optimize.guides import guide_by_images
from vitviz_hf.reading.exemplars import crop_tile, list_exemplars
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.sites import file_stem
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui import sheets
from vitviz_hf.ui.sheets import COLUMNS, ROWS, TILE, AtlasTiles, Grid, Sheets, made_tiles, photograph_tiles
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import atlas_statistics, model_statistics

SITE = Site(1, "mlp_act")


@pytest.fixture(scope="module")
def grid(trained):
    reference = load_reference(trained)
    known = model_statistics(trained, reference, SITE)
    order = known.order("unusual")
    order = np.concatenate([order, order[::-1]])[:150]  # more than a sheet
    return Grid(known, order, photograph_tiles(Shelf("builtin"), trained, reference, SITE))


def tile(sheet, at):
    left, top = at % COLUMNS * TILE, at // COLUMNS * TILE
    return np.asarray(Image.open(io.BytesIO(sheet)).crop((left, top, left + TILE, top + TILE)), float)


def test_a_sheet_shows_the_strongest_patch_of_each_feature_in_order(trained, grid):
    shelf, reference, together = Shelf("builtin"), load_reference(trained), COLUMNS * ROWS
    kept = Sheets()
    key = kept.put(grid)

    for at in (0, 17, together, len(grid.order) - 1):
        feature = Feature(SITE, int(grid.order[at]))
        best = list_exemplars(trained, reference, feature, 1)[0]
        seen = shelf.photograph(trained, best.photograph)
        own = crop_tile(seen, trained.layers[1].patch_grid, best.patch, TILE)
        drawn = tile(kept.sheet(key, at // together), at % together)
        assert np.abs(drawn - np.asarray(own, float)).mean() < 12, at  # JPEG
    assert grid.n_sheets == -(-len(grid.order) // together)


def test_a_tile_is_cut_around_its_patch():
    seen = Image.new("RGB", (80, 80), "black")
    seen.paste("white", (40, 20, 50, 30))

    inside, corner = (np.asarray(crop_tile(seen, (8, 8), patch, 48)) for patch in ((2, 4), (0, 0)))

    assert inside[24, 24].min() > 250 and inside[4, 4].max() < 5
    assert corner.max() < 5


def test_nothing_is_drawn_that_no_page_was_shown(grid):
    kept = Sheets()
    key = kept.put(grid)

    assert kept.sheet("other", 0) == b"" and kept.grid("other") is None
    assert kept.sheet(key, -1) == kept.sheet(key, grid.n_sheets) == kept.sheet(key, 10**9) == b""
    assert kept.sheet(key, grid.n_sheets - 1)


def test_a_sheet_is_drawn_once_and_what_is_kept_has_a_limit(grid, monkeypatch):
    drawn = []
    plain = Grid.sheet
    monkeypatch.setattr(Grid, "sheet", lambda self, number: drawn.append(number) or plain(self, number))
    kept = Sheets()
    key = kept.put(grid)
    kept.sheet(key, 0)
    kept.sheet(key, 0)
    assert drawn == [0]

    monkeypatch.setattr(sheets, "_MOST_BYTES", 1000)
    small = Sheets()
    small.put(grid)
    assert small.sheet(key, 0) and small.sheet(key, 0) and drawn == [0, 0, 0]


def test_grids_of_other_orders_have_other_keys(grid):
    known = grid.statistics

    assert Grid(known, known.order("index"), grid.tiles).key != grid.key
    assert Grid(known, grid.order.copy(), grid.tiles).key == grid.key


def test_of_an_atlas_that_was_put_away_there_is_no_sheet(trained, tmp_path):
    make_atlas(trained, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2), tmp_path / "a")
    atlas = open_atlas(str(tmp_path / "a"))
    known, kept = atlas_statistics(atlas, SITE), Sheets()
    key = kept.put(Grid(known, known.order("index"), AtlasTiles(atlas, SITE)))
    shutil.rmtree(tmp_path / "a")

    assert kept.sheet(key, 0) == b""


def test_an_atlas_shows_its_own_peaks_and_optimized_pictures(trained, tmp_path):
    atlas = make_atlas(
        trained, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2), tmp_path / "a"
    )
    first, second = Feature(SITE, 3), Feature(SITE, 4)
    made = visualize(trained, [first], VisualizeConfig.preset("fast", steps=2, seed=0))[0]
    made.save(atlas.folder / "visualizations" / f"{file_stem(first)}.png")
    patches, pictures = AtlasTiles(atlas, SITE), AtlasTiles(atlas, SITE, made_tiles(atlas, SITE))

    drawn, optimized = patches.draw([4, 3]), pictures.draw([4, 3])

    hit = atlas.hits(second)[0]
    own = crop_tile(open_image(atlas.image(hit.row).jpeg), trained.layers[1].patch_grid, hit.place, TILE)
    assert drawn[0] == own == optimized[0] and drawn[1] != optimized[1]
    assert optimized[1] == cover(open_image(atlas.visualization(first)), (TILE, TILE))
    assert list(pictures.made) == [3] and patches.key != pictures.key
    assert patches.tell([4, 3]) == ["", ""] and pictures.tell([4, 3]) == ["", "optimized picture"]
    assert atlas_statistics(atlas, SITE).n_images == len(builtin_paths())


def test_a_tile_tells_what_real_images_went_in_and_strange_and_damaged_pictures_break_none(trained, tmp_path):
    atlas = make_atlas(
        trained, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2), tmp_path / "a"
    )
    aligned, strange, damaged = (Feature(SITE, i) for i in (5, 6, 7))
    photographs = torch.cat([to_pixels(trained, open_image(path)) for path in builtin_paths().values()])
    guide = guide_by_images(trained, aligned, best_of(trained, aligned, photographs, 3))
    made = visualize(trained, [aligned], VisualizeConfig.preset("aligned", steps=2), [guide])[0]
    folder = atlas.folder / "visualizations"
    made.save(folder / f"{file_stem(aligned)}.png")
    made.image.save(folder / f"{file_stem(strange)}.png")
    whole = visualize(trained, [damaged], VisualizeConfig.preset("fast", steps=1))[0].png()
    (folder / f"{file_stem(damaged)}.png").write_bytes(whole[: len(whole) - 500])

    tiles = AtlasTiles(atlas, SITE, made_tiles(atlas, SITE))
    drawn = tiles.draw([5, 6, 7])

    assert tiles.tell([4, 5, 6]) == ["", "optimized picture, made from 3 real images", ""]
    assert drawn[1] == AtlasTiles(atlas, SITE).draw([6])[0]
    assert drawn[2].getextrema() == ((128, 128),) * 3 != drawn[0].getextrema()


def test_a_picture_that_takes_the_place_of_another_is_drawn_anew(trained, tmp_path):
    atlas = make_atlas(
        trained, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=2), tmp_path / "a"
    )
    feature, keys = Feature(SITE, 3), []
    for seed in (0, 1):
        made = visualize(trained, [feature], VisualizeConfig.preset("fast", steps=1, seed=seed))[0]
        atlas.picture_path(feature).write_bytes(made.png())
        keys.append(AtlasTiles(atlas, SITE, made_tiles(atlas, SITE)).key)

    assert keys[0] != keys[1]
