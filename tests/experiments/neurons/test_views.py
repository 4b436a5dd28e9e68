"""Every number and picture of views: against transformers' own attention and the display rules written anew."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

from tests.conftest import square_mask
from tests.experiments.neurons.test_group import own_states
from vitviz_hf.cli.main import main
from vitviz_hf.errors import ConfigError
from vitviz_hf.experiments.config import OccludeConfig, ViewsConfig
from vitviz_hf.experiments.masks import read_object
from vitviz_hf.experiments.neurons.filters import FAINTEST, global_view, outshining, patch_filters, view_caption
from vitviz_hf.experiments.neurons.live import views_by_level
from vitviz_hf.experiments.neurons.occlude import look
from vitviz_hf.experiments.neurons.views import readable_patch, run_views, shown_levels
from vitviz_hf.experiments.perturb import mask_to_model
from vitviz_hf.models.view import normalize, to_pixels
from vitviz_hf.reading.attention import attention_weights, joint_attention


class Own:
    """What the pictures are made of, computed with loops from the convolution and transformers' own attention."""

    def __init__(self, view, image):
        stack = to_pixels(view, image) if isinstance(image, Image.Image) else to_stack(image)
        conv = next(m for m in view.module.modules() if isinstance(m, torch.nn.Conv2d))
        self.weight, self.side = conv.weight.detach().numpy(), conv.kernel_size[0]
        self.values = normalize(view, stack)[0].numpy()
        self.rows, self.cols = view.layers[0].patch_grid
        self.tokens = conv(normalize(view, stack))[0].flatten(1).T.detach().numpy() - conv.bias.detach().numpy()
        self.crop = (stack[0] * 255).round().byte().permute(1, 2, 0).numpy()
        _, joint = own_states(view, self.crop, attentions=True)
        n = view.layers[0].n_prefix
        first = np.concatenate([np.zeros((n, self.rows * self.cols)), np.eye(self.rows * self.cols)])
        self.views = np.stack([first, *(j[:, n:] for j in joint)])

    def patch(self, k):
        return self.side * (k // self.cols), self.side * (k % self.cols)

    def view(self, k, j):
        y, x = self.patch(k)
        return self.values[:, y : y + self.side, x : x + self.side] * self.weight[j]

    def mosaic(self, j):
        whole = np.zeros_like(self.values)
        for k in range(self.rows * self.cols):
            y, x = self.patch(k)
            whole[:, y : y + self.side, x : x + self.side] = self.view(k, j)
        return whole

    def spread(self, weights):
        """[P] as a picture [H, W]."""
        return np.kron(weights.reshape(self.rows, self.cols), np.ones((self.side, self.side)))


def to_stack(pixels):
    """Bytes [H, W, 3] as the model sees them -> [1, 3, H, W]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def drawn(values):
    """[3, H, W] in [0, 1] as bytes."""
    return (np.clip(values, 0, 1) * 255).transpose(1, 2, 0)


def large(tile):
    return np.asarray(Image.fromarray(tile.round().astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST))


def pictures(figure):
    """(caption, picture or None) of every place of a grid of pictures."""
    return [(ax.get_xlabel(), ax.images[0].get_array() if ax.images else None) for ax in figure.axes]


def same(picture, expected):
    return np.abs(np.asarray(picture, float) - np.asarray(expected, float)).max() <= 2


def corner_mask(image):
    mask = np.zeros((image.height, image.width), np.int64)
    mask[: image.height // 2, : image.width // 2] = 255
    return mask


def test_every_picture_by_the_papers_rules_unless_told_otherwise(model, cat):
    own, n = Own(model, cat), model.layers[0].n_prefix
    depth = len(model.layers)
    levels = [0, 1, depth]

    found = run_views(model, cat, ViewsConfig(filters=(3, 1), patches=((1, 2), (0, 3)), levels=(0, 1, depth)))

    row = own.cols + 2
    filters = pictures(found.figures["filters"])
    assert [c for c, _ in filters[1:3]] == ["filter 3", "filter 1"] and filters[3][0] == "patch 1,2"
    y, x = own.patch(row)
    assert same(filters[3][1], large(own.crop[y : y + own.side, x : x + own.side]))
    for i, j in enumerate((3, 1)):
        assert same(filters[1 + i][1], large(drawn(own.weight[j] / own.weight[j].max())))
        assert same(filters[4 + i][1], large(drawn(own.view(row, j) / own.view(row, j).max())))
        assert filters[4 + i][0] == f"sum {own.view(row, j).sum():.2f}"
    shown = pictures(found.figures["mosaics"])
    assert [c for c, _ in shown] == ["picture", "filter 3", "filter 1", "", "filter 3", "filter 1"]
    for place, j, sign in [(1, 3, 1), (2, 1, 1), (4, 3, -1), (5, 1, -1)]:
        whole = sign * own.mosaic(j)
        assert same(shown[place][1], drawn(whole / whole.max()))
    maps = [ax for ax in found.figures["responses"].axes if ax.get_title()]
    assert [ax.get_title() for ax in maps] == ["filter 3", "filter 1"]
    for ax, j in zip(maps, (3, 1), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array().ravel(), own.tokens[:, j], atol=1e-3)
    grid = pictures(found.figures["global-views"])
    assert len(grid) == 9 and grid[0][0] == "picture" and same(grid[0][1], own.crop)
    whole = own.mosaic(3)
    for r, token in enumerate([0, n + row, n + 3]):
        for c, level in enumerate(levels):
            caption, picture = grid[3 * r + c]
            weights = own.views[level, token]
            if r or c:
                assert same(picture, drawn(whole / whole.max() * own.spread(weights / weights.max())))
                assert caption.split(";")[0] == f"level {level}"
    attention = own.views[-1, 0]
    caption, picture = pictures(found.figures["class-attention"])[1]
    assert caption == "joint attention of the class token"
    strongest = np.abs(np.asarray(picture, float) - np.asarray(Image.fromarray(own.crop).convert("L"))[..., None]).max(
        -1
    )
    assert own.spread(attention)[strongest.argmax() // own.crop.shape[1], strongest.argmax() % own.crop.shape[1]] > 0
    notes = " ".join(found.tables["table"].notes)
    assert "own gain" in notes and "through filter 3" in notes and "Brightened" not in notes


def test_every_number_beside_the_pictures(model, cat):
    own, n = Own(model, cat), model.layers[0].n_prefix
    mask = corner_mask(cat)
    seen = mask_to_model(model, (mask > 0).astype(np.int64)).reshape(own.rows, own.side, own.cols, own.side)
    inside = seen.mean((1, 3)).ravel() >= 0.4

    found = run_views(model, cat, ViewsConfig(filters=(3,), patches=((1, 2), (0, 3))), mask)

    rows = found.tables["table"].records()
    assert [r["level"] for r in rows] == list(range(len(model.layers) + 1))
    for level, row in enumerate(rows):
        patches = own.views[level, n:]
        share = patches / patches.sum(1, keepdims=True)
        unit = patches / np.linalg.norm(patches, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
        expected = {
            "own weight, patch 1,2": patches[own.cols + 2, own.cols + 2],
            "own weight, patch 0,3": patches[3, 3],
            "entropy, mean": stats.entropy(share, axis=1).mean(),
            "convergence": cosines.mean(),
            "object share from the object": share[inside][:, inside].sum(1).mean(),
            "object share from elsewhere": share[~inside][:, inside].sum(1).mean(),
        }
        assert list(row) == ["level", *expected]
        assert list(row.values())[1:] == pytest.approx(list(expected.values()), abs=1e-4)
        assert level == 0 or len({round(x, 5) for x in expected.values()}) == len(expected)
    assert f"The object covers {inside.mean():.0%} of the patches." in found.tables["table"].notes
    areas = [2 * abs(roc_auc_score(inside, own.tokens[:, j]) - 0.5) for j in range(own.tokens.shape[1])]
    ranking = found.tables["table-filters"]
    for record in ranking.records():
        assert record["score"] == pytest.approx(areas[record["filter"]], abs=2e-3)
        assert record["score"] == pytest.approx(sorted(areas, reverse=True)[record["rank"] - 1], abs=2e-3)
    assert "AUROC" in ranking.notes[0]
    assert "Otsu" in run_views(model, cat, ViewsConfig(filters=(3,))).tables["table-filters"].notes[0]


def test_a_patch_shows_its_own_pixels_only_up_to_level_3_and_brightened_all_others(builtin, cat):
    """As in the paper's figure, on a trained model and a photograph."""
    own, token = Own(builtin, cat), 7 * 16 + 8
    filter_number, side = 293, own.side
    lit = drawn(own.mosaic(filter_number) / own.mosaic(filter_number).max())
    mine = np.zeros(lit.shape[:2], bool)
    mine[7 * side : 8 * side, 8 * side : 9 * side] = True
    bright = [k for k in range(256) if k != token and tile_of(own, lit, k).max() > 60]
    others = {}
    for white in (100, 95):
        config = ViewsConfig(filters=(filter_number,), patches=((7, 8),), levels=(0, 1, 2, 3, 12), white=white)
        shown = [np.asarray(p, float) for _, p in pictures(run_views(builtin, cat, config).figures["global-views"])[5:]]
        assert all(np.array_equal(x[mine], shown[0][mine]) for x in shown[:4]) and shown[0][mine].max() > 40
        others[white] = [
            (
                x[~mine].mean() / lit[~mine].mean(),
                np.mean([tile_of(own, x, k).max() > 0.05 * tile_of(own, lit, k).max() for k in bright]),
            )
            for x in shown
        ]
    assert others[100][0] == others[95][0] == (0, 0)
    for mean, share in others[100][1:4]:
        assert mean < 0.02 and share < 0.06
    for mean, share in others[95][1:4]:
        assert mean > 0.2 and share > 0.9


def tile_of(own, picture, k):
    y, x = own.patch(k)
    return picture[y : y + own.side, x : x + own.side]


def test_brightening_is_told_below_every_picture_it_changes(vit, cat):
    own = Own(vit, cat)

    found = run_views(vit, cat, ViewsConfig(filters=(3,), patches=((1, 2),), levels=(0, 2), white=80))

    whole = own.mosaic(3)
    bright = np.percentile(whole[whole > 0], 80)
    weights = own.views[2, 1 + 6]
    expected = drawn(np.clip(whole / bright, 0, 1) * own.spread(np.clip(weights / np.percentile(weights, 80), 0, 1)))
    caption, picture = pictures(found.figures["global-views"])[3]
    assert same(picture, expected) and caption.startswith("level 2, white from 80 %")
    told = [c for name in ("global-views", "mosaics", "class-attention") for c, _ in pictures(found.figures[name])]
    assert all("white from 80 %" in c for c in told if c not in ("", "picture"))
    assert any("percentile 80 of mosaics and rows of weights" in n for n in found.tables["table"].notes)
    assert ViewsConfig().white == OccludeConfig().white == 100


def test_the_logarithmic_scale_has_one_gain_for_all_views_and_its_bar(vit, cat):
    own = Own(vit, cat)

    found = run_views(vit, cat, ViewsConfig(filters=(3,), patches=((1, 2),), levels=(0, 1, 3), scale="log"))

    figure = found.figures["global-views"]
    whole = own.mosaic(3) / own.mosaic(3).max()
    for (caption, picture), level in zip(pictures(figure)[3:6], (0, 1, 3), strict=True):
        brightness = 1 + np.log10(np.maximum(own.views[level, 7], 1e-4)) / 4
        assert same(picture, drawn(whole * own.spread(brightness))) and caption == f"level {level}, log"
    bar = figure.axes[-1]
    assert bar.get_ylim() == (pytest.approx(1e-4), pytest.approx(1)) and bar.get_ylabel() == "weight of a patch"
    assert any(
        "logarithmic scale from 0.0001 (black) to 1, the same for all rows" in n for n in found.tables["table"].notes
    )
    assert len(run_views(vit, cat, ViewsConfig(levels=(0, 1, 3))).figures["global-views"].axes) == 4 * 3
    assert view_caption(2, torch.ones(4), (2, 2), 95, "log") == "level 2, log, white from 95 %"
    with pytest.raises(ConfigError, match="scale must be"):
        ViewsConfig(scale="other")
    with pytest.raises(ConfigError, match="scale must be"):
        global_view(torch.ones(3, 4, 4), torch.ones(4), (2, 2), scale="other")


def test_the_logarithm_by_hand():
    shown = global_view(torch.ones(3, 2, 2), torch.tensor([1.0, 0.1, 1e-3, 1e-9]), (2, 2), scale="log")

    torch.testing.assert_close(shown[0].flatten(), torch.tensor([1, 0.75, 0.25, 0]))
    assert FAINTEST == 1e-4


def test_a_nearly_black_view_names_who_outshines_the_others():
    row = torch.tensor([0.01, 0.02, 0.6, 0.01, 0.3, 0.02])

    assert outshining(row) == (pytest.approx(0.6 / 0.96), 2)
    assert view_caption(4, row, (2, 3)) == "level 4; 0,2 holds 62%"
    assert view_caption(4, row, (2, 3), 95) == "level 4, white from 95 %; 0,2 holds 62%"
    assert outshining(torch.tensor([0.04, 0.04, 0.6, 0.04, 0.3, 0.04])) == (0, 0)
    assert outshining(torch.zeros(6)) == (0, 0) and view_caption(0, torch.zeros(6), (2, 3)) == "level 0"


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_apps_pictures_are_the_same(model, cat, scale):
    own, token = Own(model, cat), model.layers[0].n_prefix + 5
    dark = own.crop.copy()
    dark[: dark.shape[0] // 2] = 0
    other = Own(model, dark)

    pictures = {"clean": own.crop, "black": dark}
    seen = {name: look(model, picture, 0.5) for name, picture in pictures.items()}
    alone = views_by_level(model, patch_filters(model), {"clean": own.crop}, seen, 2, token, scale)
    both = views_by_level(model, patch_filters(model), pictures, seen, 2, token, scale)

    def expected(which, level, top):
        weights = which.views[level, token]
        relative = weights / weights.max() if scale == "linear" else 1 + np.log10(np.maximum(weights, 1e-4)) / 4
        return drawn(which.mosaic(2) / top * which.spread(relative))

    depth, top = len(model.layers), own.mosaic(2).max()
    levels = [int(re.search(r"level (\d+)", c)[1]) for c, _ in alone[1 : depth + 2]]
    assert levels == list(range(depth + 1)) and same(alone[0][1], own.crop)
    for level, (_, picture) in enumerate(alone[1 : depth + 2]):
        assert same(picture, expected(own, level, top))
    top = max(top, other.mosaic(2).max())
    for name, which in (("clean", own), ("black", other)):
        views = [(c, p) for c, p in both if c.startswith(f"{name}, level")]
        assert len(views) == 3
        for caption, picture in views:
            assert same(picture, expected(which, int(re.search(r"level (\d+)", caption)[1]), top))
    assert [c for c, _ in alone if "weight of a patch" in c] == (
        ["weight of a patch, from 0.0001 to 1"] * (scale == "log")
    )


def test_white_masks_are_objects_and_a_palettes_void_is_not(tiny_folder, cat, tmp_path, capsys):
    def read(image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return read_object(buffer.getvalue()).tolist()

    values = np.array([[0, 1, 200, 255]], np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([i for rgb in range(256) for i in (rgb, 0, 255 - rgb)])
    blue = np.stack([0 * values, 0 * values, values], -1)
    assert read(palette) == [[0, 1, 1, 0]]
    assert read(Image.fromarray(values)) == read(Image.fromarray(blue)) == [[0, 1, 1, 1]]

    cat.save(tmp_path / "p.png")
    Image.fromarray(corner_mask(cat).astype(np.uint8)).save(tmp_path / "m.png")
    command = ["views", str(tiny_folder("vit")), "--image", str(tmp_path / "p.png"), "--mask", str(tmp_path / "m.png")]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path / "v")]) == 0
    assert "object share from the object" in capsys.readouterr().out


def test_a_mask_without_or_with_nothing_but_the_object_is_refused(vit, cat):
    for mask, n in ((np.zeros((cat.height, cat.width)), "none"), (np.ones((cat.height, cat.width)), "all")):
        with pytest.raises(ConfigError, match=f"owns {n} of the patches"):
            run_views(vit, cat, ViewsConfig(), mask)


def test_the_residual_reaches_the_views(vit, cat):
    weights = attention_weights(vit, to_pixels(vit, cat))[0]
    for residual in (0.0, 0.5, 0.9):
        rows = run_views(vit, cat, ViewsConfig(patches=((1, 2),), residual=residual)).tables["table"].records()
        own = joint_attention(weights, 1, residual).views[:, 7, 6].tolist()
        assert [r["own weight, patch 1,2"] for r in rows] == pytest.approx(own)


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


def test_levels_stand_where_they_do_in_twelve_layers():
    assert shown_levels(12) == [0, 4, 8, 11] and shown_levels(3) == [0, 1, 2, 3]


def test_the_readable_patch_is_lit_most_widely_and_is_not_the_one_that_outshines_the_others():
    views = torch.full((3, 5, 4), 0.01)  # levels, tokens, patches; a class token before four patches
    views[:, :, 2] = 1.0
    views[1:, 4, 1] = 0.5
    views[1:, 3] = 1.0  # that of the sink itself, which would be the widest

    joint = SimpleNamespace(views=views)

    assert readable_patch(joint) == (3, 2, 3)
