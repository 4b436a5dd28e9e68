"""The experiments of pictures end to end: which features, pictures, images and numbers they show."""

import shutil

import numpy as np
import pytest
import torch

from vitviz_hf import VisualizeConfig, activations, make_atlas, open_image, to_pixels, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.config import parse_features
from vitviz_hf.experiments.config import ProgressionConfig, TripletsConfig
from vitviz_hf.experiments.pictures import choosing, progression
from vitviz_hf.experiments.run import run_experiment
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


@pytest.mark.parametrize(("rows", "layers"), [(2, [0, 2]), (3, [0, 1, 2]), (5, [0, 0, 1, 1, 2])])
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
        assert "Pictures that the atlas holds are taken from it." in result.tables["table"].notes[0]


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
