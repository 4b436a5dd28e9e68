"""Accuracy without positions and with shuffled tiles, against the same in plain transformers and torch."""

from dataclasses import replace

import pytest
import torch

from tests.by_hand import Model, interval, read_pictures, share
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.accuracy.paper import VALIDATION
from vitviz_hf.experiments.accuracy.position import PAPER, shuffle_tiles, tile_size
from vitviz_hf.experiments.config import PositionConfig
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.stream import open_source

WAYS = ("natural", "positions zeroed", "tiles shuffled")
SEED, TILE = 11, 16


def shuffled(picture):
    """Tiles in the order that torch draws from the picture's key."""
    n = 64 // TILE
    order = torch.randperm(n * n, generator=torch.Generator().manual_seed(picture.key ^ SEED)).tolist()
    moved = picture.pixels.copy()
    for place, origin in enumerate(order):
        (row, col), (old_row, old_col) = divmod(place, n), divmod(origin, n)
        moved[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE] = picture.pixels[
            old_row * TILE : (old_row + 1) * TILE, old_col * TILE : (old_col + 1) * TILE
        ]
    return moved


def test_every_column_is_that_of_a_model_and_pictures_changed_by_hand(trained, trained_other, shapes, tmp_path):
    views, config = [trained, trained_other], PositionConfig(tile=TILE, seed=SEED, batch=50)
    table = run_experiment("position", views, open_source(str(shapes)), config, tmp_path).tables["table"]
    rows, notes = table.records(), table.notes

    pictures = read_pictures(shapes)
    truth = [p.label for p in pictures]
    for view, row in zip(views, rows, strict=True):
        model, blind = Model(view.model_id), Model(view.model_id)
        blind.module.vit.embeddings.position_embeddings.data[:] = 0
        ranks = [
            model.ranks([p.pixels for p in pictures], truth),
            blind.ranks([p.pixels for p in pictures], truth),
            model.ranks([shuffled(p) for p in pictures], truth),
        ]
        for way, own in zip(WAYS, ranks, strict=True):
            assert row[way] == pytest.approx(share(own, 1))
            assert [row[f"{way} low"], row[f"{way} high"]] == pytest.approx(interval(own, 1), abs=1)
        assert len({round(row[way], 2) for way in WAYS}) == 3 and row["tile"] == f"{TILE} px"
    unknown = sum(name not in trained_other.labels for name in truth)
    told = f"{trained_other.model_id} does not know the class of {unknown} of the images"
    assert told in " ".join(notes) and "Left out" not in " ".join(notes)


def test_pictures_of_classes_that_a_model_does_not_know_are_left_out(trained_other, shapes, tmp_path):
    table = run_experiment("position", [trained_other], open_source(str(shapes)), PositionConfig(), tmp_path).tables[
        "table"
    ]
    unknown = sum(p.label not in trained_other.labels for p in read_pictures(shapes))
    assert unknown > 20 and f"Left out, {unknown:,} in all" in " ".join(table.notes)
    assert f"{len(read_pictures(shapes)) - unknown} images of" in table.notes[0]


@pytest.mark.parametrize(("tile", "printed"), [(32, PAPER["ViT-B/32"]), (16, (*PAPER["ViT-B/32"][:2], None))])
def test_the_papers_columns_are_for_tiles_of_32_px(tile, printed, trained, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(type(VALIDATION), "difference", lambda *_: "")
    monkeypatch.setattr("vitviz_hf.experiments.accuracy.paper._name", lambda _: "ViT-B/32")
    config = PositionConfig(tile=tile, limit=30)
    (row,) = run_experiment("position", [trained], open_source(str(shapes)), config, tmp_path).tables["table"].records()
    assert tuple(row.get(f"{way}, paper") for way in WAYS) == printed


def test_tiles_are_shuffled_and_none_is_lost():
    picture = torch.arange(3 * 8 * 12).reshape(3, 8, 12)

    shuffled = shuffle_tiles(picture, 4, 5)

    def tiles(p):
        return {tuple(p[:, r : r + 4, c : c + 4].flatten().tolist()) for r in (0, 4) for c in (0, 4, 8)}

    assert tiles(shuffled) == tiles(picture) and not torch.equal(shuffled, picture)
    assert torch.equal(shuffle_tiles(picture, 4, 5), shuffled)
    assert any(not torch.equal(shuffle_tiles(picture, 4, s), shuffled) for s in range(6, 10))


def test_tiles_divide_the_input_in_whole_patches(vit, tiny_view):
    assert vit.input_size == (32, 32) and tile_size(vit) == 16
    assert tile_size(vit, 8) == 8
    free = tiny_view("resnet")
    sides = {side: tile_size(replace(free, input_size=(side, side))) for side in (1056, 992, 510, 4)}
    assert sides == {1056: 32, 992: 32, 510: 30, 4: 2}  # 33 and 31 divide too; of 30 and 34 the smaller
    layers = [replace(vit.layers[0], patch_grid=(n, n)) for n in (9, 4)]
    assert tile_size(replace(vit, input_size=(36, 36), layers=tuple(layers))) == 12  # of 4 and 12, the whole patches
    for size in ((48, 64), (64, 48)):
        with pytest.raises(ConfigError, match="possible are 2, 4, 8, 16"):
            tile_size(replace(free, input_size=size), 24)
    with pytest.raises(ConfigError, match="possible are 2, 4, 8, 16"):
        tile_size(vit, 9)
