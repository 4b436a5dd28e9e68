"""The experiments of pictures end to end: which features, pictures, images and numbers they show."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_noise
from vitviz_hf import VisualizeConfig, activation_map, activations, make_atlas, open_image, to_pixels, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.atlas.words import name_features
from vitviz_hf.config import parse_features
from vitviz_hf.experiments.config import ProgressionConfig, SpatialConfig, TripletsConfig
from vitviz_hf.experiments.pictures import choosing, concepts, progression
from vitviz_hf.experiments.pictures.spatial import SHARES
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.images import map_range, overlay
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.sites import Feature, Site
from vitviz_hf.stream import builtin_photographs, open_source


def scores_of(view, images):
    """Mean over patches of every feature on each picture, {layer: [N, 64]}."""
    sites = [Site(layer, "mlp_act") for layer in range(len(view.layers))]
    rows = [activations(view, to_pixels(view, image), sites) for image in images]
    return {s.layer: np.array([r[s].values[0, 1:].mean(0).tolist() for r in rows]) for s in sites}


def strongest(scores, n):
    """The features whose best score is furthest above their mean, best first."""
    above = scores.max(0) - scores.mean(0)
    return sorted(range(len(above)), key=lambda i: -above[i])[:n]


@pytest.fixture(scope="module")
def searched(labelled, tiny_view):
    """The pictures of the dataset with their labels, and the scores of the tiny ViT on them."""
    rows = [row for row, _ in open_source(str(labelled)).read(0, 1, None)]
    return [row.label for row in rows], scores_of(tiny_view("vit"), [open_image(row.data) for row in rows])


def test_progression_shows_the_strongest_features_of_every_layer_and_their_numbers(vit, tmp_path):
    photographs = list(builtin_photographs())
    scores = scores_of(vit, [e.image for e in photographs])
    config = VisualizeConfig.preset("fast", steps=3, seed=4)

    result = run_experiment("progression", [vit], None, ProgressionConfig(columns=3, steps=3, seed=4), tmp_path)

    expected = []
    for layer in range(3):
        for i in sorted(strongest(scores[layer], 3)):
            (made,) = visualize(vit, [Feature(Site(layer, "mlp_act"), i)], config)
            best = int(scores[layer][:, i].argmax())
            expected.append((f"{layer}.mlp_act:{i}", made, scores[layer][best, i], photographs[best].key))
    rows = result.tables["table"].records()
    assert len(rows) == 9 and len({row["photograph"] for row in rows}) > 1
    for row, (address, made, best, name) in zip(rows, expected, strict=True):
        assert row["feature"] == address and row["photograph"] == name
        assert row["score"] == pytest.approx(made.score, abs=1e-4)
        assert row["turned, zoomed, blurred"] == pytest.approx(made.transfer_score, abs=1e-4)
        assert row["best photograph's score"] == pytest.approx(best, abs=1e-4)
        assert row["alive"] == ("yes" if made.score > 0 else "no")
    assert "furthest above their mean" in result.tables["table"].notes[0]
    assert "Preset fast, 3 steps, 2 copies" in result.tables["table"].notes[1]


def test_progression_says_which_pictures_are_dead(vit, tmp_path, monkeypatch):
    features = [Feature(Site(1, "mlp_act"), i) for i in (3, 7)]
    made = choosing.optimized(vit, features, VisualizeConfig.preset("fast", steps=1), tmp_path)
    dead = {f: choosing.Picture(p.image, -0.1, 0.5, f.index == 7) for f, p in made.items()}
    monkeypatch.setattr(progression, "optimized", lambda *_: dead)

    result = run_experiment("progression", [vit], None, ProgressionConfig(steps=1), tmp_path / "run")

    assert [row["alive"] for row in result.tables["table"].records()] == ["no", "yes"]


@pytest.mark.parametrize(
    ("rows", "layers"), [(2, [0, 2]), (3, [0, 1, 2]), (5, [0, 0, 1, 1, 2]), (7, [0, 0, 0, 1, 1, 2, 2])]
)
def test_features_of_an_atlas_come_from_as_many_layers_as_possible(rows, layers, vit, labelled, searched, tmp_path):
    atlas = make_atlas(vit, open_source(str(labelled)), SearchConfig(k=2), tmp_path / "atlas")

    found = choosing.strong_in_atlas(atlas, rows)

    assert [f.site.layer for f in found] == layers
    for layer in set(layers):
        own = [f.index for f in found if f.site.layer == layer]
        assert own == strongest(searched[1][layer], len(own))


def test_triplets_show_each_features_picture_and_its_most_activating_image(vit, labelled, searched, tmp_path):
    labels, scores = searched
    config = TripletsConfig(rows=5, steps=2, seed=1)

    result = run_experiment("triplets", [vit], open_source(str(labelled)), config, tmp_path)

    rows, expected = result.tables["table"].records(), []
    for layer, n in ((0, 2), (1, 2), (2, 1)):
        expected += [(layer, i) for i in strongest(scores[layer], n)]
    assert [row["feature"] for row in rows] == [f"{layer}.mlp_act:{i}" for layer, i in expected]
    for row, (layer, i) in zip(rows, expected, strict=True):
        feature = Feature(Site(layer, "mlp_act"), i)
        (made,) = visualize(vit, [feature], VisualizeConfig.preset("fast", steps=2, seed=1))
        best = int(scores[layer][:, i].argmax())
        assert row["most activating image"] == labels[best]
        assert row["its score"] == pytest.approx(scores[layer][best, i], abs=2e-3)
        assert row["picture's score"] == pytest.approx(made.score, abs=1e-4)
        assert row["turned, zoomed, blurred"] == pytest.approx(made.transfer_score, abs=1e-4)
        assert row["picture"] == "from noise"
    assert len({row["most activating image"] for row in rows}) > 1
    assert "Preset fast, 2 steps, 2 copies." in result.tables["table"].notes[0]


def test_concepts_show_the_seven_most_activating_images_in_order(vit, labelled, searched, tmp_path):
    labels, scores = searched
    config = TripletsConfig(features=parse_features("2.mlp_act:9,0.mlp_act:4"), steps=2)

    result = run_experiment("concepts", [vit], open_source(str(labelled)), config, tmp_path)

    rows = result.tables["table"].records()
    assert [row["feature"] for row in rows] == ["2.mlp_act:9", "0.mlp_act:4"]
    for row, (layer, i) in zip(rows, [(2, 9), (0, 4)], strict=True):
        best = sorted(range(20), key=lambda n: -scores[layer][n, i])[:7]
        assert row["most activating images"] == "; ".join(labels[n] for n in best)
        (made,) = visualize(vit, [row["feature"]], VisualizeConfig.preset("fast", steps=2))
        assert row["picture's score"] == pytest.approx(made.score, abs=1e-4) and row["words"] is None
    assert rows[0]["most activating images"] != rows[1]["most activating images"]
    assert result.tables["table"].notes[0].startswith("Features as given.")


def test_pictures_that_an_atlas_holds_are_shown_instead_of_new_ones(vit, labelled, tmp_path):
    atlas = make_atlas(vit, open_source(str(labelled)), SearchConfig(k=10), tmp_path / "atlas")
    (stored,) = visualize(vit, ["1.mlp_act:5"], VisualizeConfig.preset("fast", steps=4, seed=8))
    (atlas.folder / "visualizations").mkdir(exist_ok=True)
    stored.save(atlas.folder / "visualizations" / "1.mlp_act-5.png")
    config = TripletsConfig(atlas=str(tmp_path / "atlas"), features=parse_features("1.mlp_act:5,1.mlp_act:6"), steps=1)

    for name in ("triplets", "concepts"):
        result = run_experiment(name, [vit], None, config, tmp_path / name)

        rows = result.tables["table"].records()
        assert rows[0]["picture's score"] == stored.score != rows[1]["picture's score"]
        assert [p.name for p in (tmp_path / name / "pictures").iterdir()] == ["1.mlp_act-6.png"]
        assert "are taken from it, whatever they were made from." in result.tables["table"].notes[0]


def test_pictures_of_other_features_that_an_atlas_holds_are_not_taken(vit, labelled, tmp_path):
    atlas = make_atlas(vit, open_source(str(labelled)), SearchConfig(k=1, layers=(1,)), tmp_path / "atlas")
    config, feature = VisualizeConfig.preset("fast", steps=1), Feature(Site(1, "mlp_act"), 5)
    (other,) = visualize(vit, ["1.mlp_act:9"], config)
    (atlas.folder / "visualizations").mkdir(exist_ok=True)
    other.save(atlas.folder / "visualizations" / "1.mlp_act-5.png")

    found = choosing.optimized(vit, [feature], config, tmp_path / "w", known=atlas)

    assert found[feature].score != other.score
    assert read_recipe(tmp_path / "w" / "pictures" / "1.mlp_act-5.png")["score"] == found[feature].score


def test_pictures_of_another_recipe_are_made_anew_and_others_kept(vit, tmp_path):
    features = [Feature(Site(1, "mlp_act"), i) for i in (3, 7)]
    first, other = (VisualizeConfig.preset("fast", steps=n) for n in (1, 2))
    made = choosing.optimized(vit, features, first, tmp_path)
    shutil.copy(tmp_path / "pictures" / "1.mlp_act-3.png", tmp_path / "kept.png")

    again = choosing.optimized(vit, features[:1], other, tmp_path)

    assert again[features[0]].score != made[features[0]].score
    assert read_recipe(tmp_path / "pictures" / "1.mlp_act-3.png")["config"]["steps"] == 2
    assert read_recipe(tmp_path / "pictures" / "1.mlp_act-7.png")["config"]["steps"] == 1
    assert torch.equal(
        torch.from_numpy(np.array(open_image(tmp_path / "kept.png"))),
        torch.from_numpy(np.array(made[features[0]].image)),
    )


def test_spatial_triplets_and_concepts_search_first_where_there_is_no_atlas(vit, labelled, tmp_path):
    source = open_source(str(labelled))

    spatial = run_experiment(
        "spatial", [vit], source, SpatialConfig(per_layer=4, threshold=0.05, min_active=1), tmp_path / "s"
    )
    triplets = run_experiment("triplets", [vit], source, TripletsConfig(rows=3, steps=2), tmp_path / "t")
    concepts = run_experiment("concepts", [vit], source, TripletsConfig(rows=2, steps=2), tmp_path / "c")

    assert [r["layer"] for r in spatial.tables["table"].records()] == [0, 1, 2]
    counted = ("features", "none active", "too few active")
    assert all(sum(r[c] for c in counted) == 4 for r in spatial.tables["table"].records())
    assert {r["dropped"] for r in spatial.data["curves"].records()} == set(SHARES)
    assert [r["feature"].split(".")[0] for r in triplets.tables["table"].records()] == ["0", "1", "2"]
    assert len(concepts.tables["table"].records()[0]["most activating images"].split("; ")) == 7
    assert "no text tower" in " ".join(concepts.tables["table"].notes)


def grid_of(figure):
    """Rows of a grid of pictures: its label, and the caption and picture of each place that is not empty."""
    rows = {}
    for ax in figure.axes:
        rows.setdefault(ax.get_subplotspec().rowspan.start, []).append(ax)
    return [
        (axes[0].get_ylabel(), [(ax.get_xlabel(), np.asarray(ax.images[0].get_array())) for ax in axes if ax.images])
        for _, axes in sorted(rows.items())
    ]


def same(picture, expected, most=2):
    return abs(np.asarray(picture, float) - np.asarray(expected, float)).max() <= most


def test_the_figure_of_progression_has_the_pictures_of_each_layer_in_its_row(vit, tmp_path):
    config = ProgressionConfig(features=parse_features("2.mlp_act:3,0.attn_k:1,2.mlp_act:1"), steps=2)

    result = run_experiment("progression", [vit], None, config, tmp_path)

    first, last = grid_of(result.figures["figure"])
    assert (first[0], last[0]) == ("layer 0", "layer 2")
    assert [c for c, _ in (*first[1], *last[1])] == ["0.attn_k:1", "2.mlp_act:1", "2.mlp_act:3"]
    for address, picture in (*first[1], *last[1]):
        assert same(picture, open_image(tmp_path / "pictures" / f"{address.replace(':', '-')}.png"), 0)
    assert result.tables["table"].notes[0] == "Features as given."


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Pictures without labels, with long names."""
    folder = tmp_path_factory.mktemp("named")
    for i in range(12):
        draw_noise(i).save(folder / f"{i:02} a name of more than thirty letters.png")
    return folder


def test_the_figure_of_triplets_is_picture_image_and_map(vit, named, tmp_path):
    config = TripletsConfig(features=parse_features("1.mlp_act:5,0.mlp_act:2"), steps=2)

    result = run_experiment("triplets", [vit], open_source(str(named)), config, tmp_path)

    files = sorted(named.iterdir())
    rows = grid_of(result.figures["figure"])
    assert [label for label, _ in rows] == ["1.mlp_act:5", "0.mlp_act:2"]
    for (address, places), record in zip(rows, result.tables["table"].records(), strict=True):
        layer, index = int(address[0]), int(address[-1])
        site = Site(layer, "mlp_act")
        crops = [to_pixels(vit, open_image(file)) for file in files]
        best = int(np.argmax([activations(vit, c, [site])[site].patches[0, :, index].mean() for c in crops]))
        own = (crops[best][0] * 255).round().byte().permute(1, 2, 0).numpy()
        (one, picture), (two, crop), (three, drawn) = places
        assert [one, three] == [f"score {record[name]:.3g}" for name in ("picture's score", "its score")]
        assert two == files[best].name[:30] and record["most activating image"] == files[best].name
        assert same(picture, open_image(tmp_path / "pictures" / f"{address.replace(':', '-')}.png"), 0)
        assert same(crop, own, 40)  # it was stored as JPEG
        acts = activations(vit, torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255, [site])[site]
        values = activation_map(acts, Feature(site, index))[0].numpy()
        assert same(drawn, overlay(Image.fromarray(crop), values, map_range(values)))
    assert [ax.get_ylabel() for ax in result.figures["figure"].axes].count("") == 4
    assert result.figures["figure"].get_size_inches() == pytest.approx([3 * 1.8 + 0.8, 2 * 2.02 + 0.1])
    assert (
        len(open_atlas(str(tmp_path / "atlas")).hits(Feature(Site(0, "mlp_act"), 0))) == 1
    )  # no more are searched than are shown


def test_the_figure_of_concepts_has_words_below_the_picture_and_names_below_the_images(
    tiny_view, named, tmp_path, monkeypatch
):
    namers = []

    def few_words(atlas, namer, progress=None):
        namers.append(namer)
        return name_features(atlas, namer, ("cat", "dog", "bus"), progress=progress)

    monkeypatch.setattr(concepts, "name_features", few_words)
    told = [("cat", 3.25), ("a red bus", 2.0), ("the zebra", 1.5), ("dog", 1.0)]
    monkeypatch.setattr(Atlas, "feature_words", lambda self, feature: told * (feature.index == 5))
    config, view = TripletsConfig(features=parse_features("1.mlp_act:5,0.mlp_act:2"), steps=1), tiny_view("clip")

    result = run_experiment("concepts", [view], open_source(str(named)), config, tmp_path)

    assert namers == [view]
    (first, places), (second, others) = grid_of(result.figures["figure"])
    one, two = result.tables["table"].records()
    assert (first, second) == (one["feature"], two["feature"]) == ("1.mlp_act:5", "0.mlp_act:2")
    assert one["words"] == "cat 3.2, a red bus 2.0, the zebra 1.5" and two["words"] is None
    assert places[0][0] == "cat, a red bus, the zebr" and others[0][0] == ""
    atlas = open_atlas(str(tmp_path / "atlas"))
    for row, record, feature in ((places, one, "1.mlp_act-5"), (others, two, "0.mlp_act-2")):
        names = record["most activating images"].split("; ")
        assert [c for c, _ in row[1:]] == [name[:18] for name in names] and len(row) == 8
        assert same(row[0][1], open_image(tmp_path / "pictures" / f"{feature}.png"), 0)
        for (_, picture), name in zip(row[1:], names, strict=True):
            own = (to_pixels(view, open_image(named / name))[0] * 255).round().byte().permute(1, 2, 0)
            assert same(picture, own, 60)
    assert result.figures["figure"].get_size_inches() == pytest.approx([8 * 1.3 + 0.8, 2 * 1.52 + 0.1])
    assert "The 7 most activating of 12 images of" in result.tables["table"].notes[1]
    assert result.tables["table"].notes[2] == (
        f"Words in the eyes of {view.model_id}, with their agreement; the best word for random images reaches "
        f"{atlas.words.chance:.2f}."
    )
    assert len(atlas.hits(Feature(Site(0, "mlp_act"), 0))) == 10  # that words are found from
    config = TripletsConfig(features=parse_features("1.mlp_act:5"), steps=1, atlas=str(tmp_path / "atlas"))
    again = run_experiment("concepts", [view], None, config, tmp_path / "again")
    assert again.tables["table"].notes[2] == result.tables["table"].notes[2] and len(namers) == 1


def test_an_atlas_is_not_named_by_the_way(tiny_view, named, tmp_path):
    view = tiny_view("clip")
    atlas = make_atlas(view, open_source(str(named)), SearchConfig(k=2, layers=(1,)), tmp_path / "atlas")
    config = TripletsConfig(features=parse_features("1.mlp_act:5"), steps=1, atlas=str(tmp_path / "atlas"))

    table = run_experiment("concepts", [view], None, config, tmp_path / "w").tables["table"]

    assert atlas.words is None and table.records()[0]["words"] is None
    assert table.notes[2] == "No words: the model has no text tower, the atlas no names."
