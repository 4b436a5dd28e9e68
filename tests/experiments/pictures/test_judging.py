"""The pictures of an atlas judged by its own images, and the figures on pages and cards."""

import html
import io
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.experiments.pictures.test_agreement import ByHand
from vitviz_hf import VisualizeConfig, feature_page, make_atlas, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.guiding import guide_from_atlas
from vitviz_hf.atlas.store import open_atlas
from vitviz_hf.cli.main import main
from vitviz_hf.errors import AtlasError, ConfigError
from vitviz_hf.experiments.config import AgreementConfig
from vitviz_hf.experiments.pictures import agreement
from vitviz_hf.experiments.pictures.agreement import atlas_of
from vitviz_hf.experiments.pictures.judge import open_judge
from vitviz_hf.experiments.pictures.judging import judge_atlas
from vitviz_hf.experiments.pictures.realism import kernel_distance
from vitviz_hf.experiments.pictures.trials import choose_depths, draw_candidates, read_photographs
from vitviz_hf.experiments.run import run_experiment
from vitviz_hf.images import open_image
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.sites import Feature, Site, file_stem, parse_feature
from vitviz_hf.stream import open_source
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.cards import feature_card
from vitviz_hf.ui.drawing import cards_html, feature_cards_html
from vitviz_hf.ui.jobs import Jobs
from vitviz_hf.ui.shelf import Shelf

SITE = Site(1, "mlp_act")


def chosen(atlas):
    """Three features that fire, one more, and one that fires on no image."""
    order = np.argsort(-atlas.table(SITE).top_scores[:, 0])
    own = sorted((Feature(SITE, int(i)) for i in order[:3]), key=lambda f: f.index)
    return tuple(own), Feature(SITE, int(order[3])), Feature(SITE, int(order[-1]))


@pytest.fixture(scope="module")
def built(trained, shapes, tmp_path_factory):
    """All images are stored; five features have pictures; one fires on no image, and images went into one."""
    folder = tmp_path_factory.mktemp("judged") / "atlas"
    atlas = make_atlas(trained, open_source(str(shapes)), SearchConfig(layers=(1,), k=40, workers=0), folder)
    own, guided, silent = chosen(atlas)
    for feature in (*own, guided, silent):
        preset = "aligned" if feature == guided else "fast"
        config = VisualizeConfig.preset(preset, steps=4)
        guides = [guide_from_atlas(trained, atlas, feature, config)] if feature == guided else []
        made = visualize(trained, [feature], config, guides)[0]
        made.save(folder / "visualizations" / f"{file_stem(feature)}.png")
    return atlas


@pytest.fixture
def atlas(built, tmp_path):
    return open_atlas(str(shutil.copytree(built.folder, tmp_path / "atlas")))


class StoredByHand(ByHand):
    """By the crops of an atlas, which are all of its dataset's images, in the place of the dataset."""

    def __init__(self, model, judge, atlas):
        rows = pq.read_table(atlas.folder / "images" / "images.parquet").to_pylist()
        crops = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
        self.pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
        self.helps = np.array([int(row["key"], 16) % 2 == 0 for row in rows])
        self.model, self.judge = model, judge
        raw = self.embed(self.pixels)
        self.centers = {name: (v.mean(0), v.std(0)) for name, v in raw.items()}


def test_an_atlas_is_judged_by_its_own_images_and_keeps_the_figures(atlas, trained, trained_other, capsys, tmp_path):
    own, guided, silent = chosen(atlas)
    folder, judge = str(atlas.folder), trained_other.model_id
    config = AgreementConfig(judge=judge, atlas=folder)
    result = run_experiment("agreement", [trained], None, config, tmp_path / "work")

    assert main(["atlas", "judge", folder, "--judge", judge]) == 0

    by_hand = StoredByHand(trained, trained_other, atlas)
    depths = tuple(next(iter(result.manifest["depths"])).split(" + "))
    seen = by_hand.seen(by_hand.pixels, depths)
    for feature in own:
        kept = atlas.agreement(feature)
        helping, asked = by_hand.order(feature, True), by_hand.order(feature, False)
        n = len(asked)
        best, middle = asked[:20], asked[n // 2 - 10 : n // 2 + 10]
        picture = np.asarray(Image.open(atlas.visualization(feature)))
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
        assert kept.judge == judge
        expected = by_hand.share(seen, by_hand.seen(pixels, depths), best, middle)
        assert kept.picture == pytest.approx(expected, abs=0.6)
        assert kept.exemplar == pytest.approx(by_hand.share(seen, seen[helping[:1]], best, middle), abs=0.6)
    assert len({round(atlas.agreement(f).picture) for f in own}) > 1
    assert [row["feature"] for row in result.data["features"].records()] == list(map(str, own))
    assert not list((tmp_path / "work").rglob("*.png")) and "taken from it" in result.tables["table"].notes[0]
    assert [atlas.agreement(f) for f in (guided, silent)] == [None] * 2
    shares = [np.mean([getattr(atlas.agreement(f), x) for f in own]) for x in ("picture", "exemplar")]
    told = "3 pictures; right choices by the picture {:.0f} %, by the best photograph {:.0f} %".format(*shares)
    assert told in capsys.readouterr().out


def test_the_pictures_of_an_atlas_are_judged_by_a_dataset_too(atlas, trained, trained_other, shapes, tmp_path):
    own, _, _ = chosen(atlas)
    config = AgreementConfig(judge=trained_other.model_id, atlas=str(atlas.folder), features=own[:2])

    result = run_experiment("agreement", [trained], open_source(str(shapes)), config, tmp_path / "work")

    scores = [float(read_recipe(atlas.visualization(f))["score"]) for f in own[:2]]
    assert [r["score"] for r in result.data["features"].records()] == pytest.approx(scores, rel=0.02, abs=2e-3)
    assert f"200 images of {shapes}" in result.tables["table"].notes[1] and not list((tmp_path / "work").rglob("*.png"))


def test_pages_and_cards_tell_the_figure_of_the_picture_that_was_judged(atlas, trained, trained_other, monkeypatch):
    own, guided, _ = chosen(atlas)
    found = judge_atlas(trained, atlas, trained_other.model_id)[own[0]]
    shelf = Shelf(trained.model_id)
    monkeypatch.setenv("VITVIZ_ATLAS", str(atlas.folder))

    told = f"picks its images by this picture in {found.picture:.0f} % of the trials; by its best photograph in"
    page = Beside(shelf).page(shelf.snapshot(trained.model_id), atlas, own[0])
    card = feature_cards_html([feature_card(shelf, trained, atlas, own[0], "+2 sd")], "Found")

    assert f"{told} {found.exemplar:.0f} %" in html.unescape(feature_page(trained, atlas, own[0]))
    assert told in html.unescape(page) and told not in feature_page(trained, atlas, guided)
    assert re.search(rf'title="{own[0]} \+2 sd: [^"]*{re.escape(told)}', card)
    assert f"<small>{own[0]}, +2 sd, by its picture {found.picture:.0f} %</small>" in card
    photo = open_image(atlas.image(atlas.hits(own[0])[0].row).jpeg)
    ranked = Jobs(shelf).rank(shelf.snapshot(trained.model_id), photo, SITE, None, False, 64)
    assert told in html.unescape(cards_html(ranked, [""] * len(ranked.cards)))
    shutil.copyfile(atlas.visualization(own[1]), atlas.visualization(own[0]))
    assert atlas.agreement(own[0]) is None and told not in feature_page(trained, atlas, own[0])


def test_what_is_drawn_is_not_asked_about_by_pictures_that_its_images_went_into(
    atlas, trained, trained_other, tmp_path
):
    for picture in (atlas.folder / "visualizations").iterdir():
        picture.unlink()
    drawn = draw_candidates(trained, [SITE], 3, 0)
    scores = atlas.table(SITE).top_scores[:, 0]
    features = [f for f in drawn if scores[f.index] > 0]
    config = VisualizeConfig.preset("aligned", steps=2)
    for feature in features:
        guide = guide_from_atlas(trained, atlas, feature, config)
        visualize(trained, [feature], config, [guide])[0].save(atlas.picture_path(feature))
    quick = AgreementConfig(
        judge=trained_other.model_id, atlas=str(atlas.folder), layers=(1,), per_layer=3, preset="fast", steps=3
    )

    result = run_experiment("agreement", [trained], None, quick, tmp_path / "work")

    asked = [parse_feature(row["feature"]) for row in result.data["features"].records()]
    made = {path.name for path in (tmp_path / "work").rglob("*.png")}
    assert asked and set(asked) <= set(features) and made == {f"{file_stem(f)}.png" for f in asked}
    assert "taken from it" not in result.tables["table"].notes[0]


def test_pictures_that_come_while_others_are_judged_get_no_figure(atlas, trained, trained_other, monkeypatch):
    own, _, _ = chosen(atlas)
    further = Feature(SITE, int(np.argsort(-atlas.table(SITE).top_scores[:, 0])[4]))
    run = agreement.run

    def make(feature):
        made = visualize(trained, [feature], VisualizeConfig.preset("fast", steps=5))[0]
        atlas.picture_path(feature).write_bytes(made.png())

    def with_others(*arguments):
        make(further)
        result = run(*arguments)
        make(own[0])
        return result

    monkeypatch.setattr(agreement, "run", with_others)
    found = judge_atlas(trained, atlas, trained_other.model_id)

    assert further not in own and set(found) == set(own)
    assert all(atlas.visualization(f) and atlas.agreement(f) is None for f in (own[0], further))
    assert atlas.agreement(own[1])


def test_figures_of_other_pictures_stay(atlas, trained, trained_other):
    own, _, _ = chosen(atlas)
    first = judge_atlas(trained, atlas, trained_other.model_id)[own[1]]
    atlas.visualization(own[0]).unlink()

    assert set(judge_atlas(trained, atlas, trained_other.model_id)) == set(own[1:])
    assert atlas.agreement(own[1]).exemplar == first.exemplar
    assert set(json.loads(atlas.agreements.read_text())) == set(map(str, own))


def test_what_cannot_be_judged_is_told(atlas, trained, trained_other, tmp_path):
    own, guided, silent = chosen(atlas)
    config = AgreementConfig(judge=trained_other.model_id, atlas=str(atlas.folder), features=(guided,))
    with pytest.raises(ConfigError, match=f"went into its picture of {guided}"):
        run_experiment("agreement", [trained], None, config, tmp_path / "a")
    with pytest.raises(AtlasError, match="is not of"):
        judge_atlas(trained_other, atlas, trained.model_id)
    for feature in (*own, silent):
        atlas.visualization(feature).unlink()
    with pytest.raises(AtlasError, match="has no picture that was made without its images"):
        judge_atlas(trained, atlas, trained_other.model_id)
    manifest = atlas.folder / "manifest.json"
    manifest.write_text(json.dumps(atlas.manifest | {"n_images": 5000}))
    with pytest.raises(ConfigError, match="ranks 40 images by the mean; agreement needs 64 by the mean, or a dataset"):
        atlas_of(trained, str(atlas.folder), ranked=True)
    assert atlas_of(trained, str(atlas.folder), ranked=False).manifest["n_images"] == 5000
    manifest.write_text(json.dumps(atlas.manifest | {"n_images": 5000, "k": 64, "reduce": "max"}))
    with pytest.raises(ConfigError, match="ranks 64 images by the max"):
        atlas_of(trained, str(atlas.folder), ranked=True)


@pytest.mark.parametrize(
    "text",
    ["[1]", '{"1.mlp_act:3": 5}', '{"1.mlp_act:3": {"judge": "x", "sha256": "", "picture": 101, "exemplar": 5}}', "{"],
)
def test_figures_of_a_stranger_that_are_none_are_refused(atlas, text):
    atlas.agreements.write_text(text)

    with pytest.raises(AtlasError, match="is no atlas"):
        open_atlas(str(atlas.folder))


def test_photographs_are_near_to_photographs_and_noise_is_far(trained, trained_other, shapes):
    judge = open_judge(trained_other.model_id, trained)
    drawn = draw_candidates(trained, [SITE], 4, 0)
    photographs = read_photographs(trained, judge, open_source(str(shapes)), drawn, None, 64)
    depths = next(iter(choose_depths(photographs)))
    natural = photographs.seen(depths)
    noise = torch.rand(40, 3, *trained.input_size, generator=torch.Generator().manual_seed(0))
    far = kernel_distance(photographs.compare(depths, judge.embed(noise)), natural)
    rng = np.random.default_rng(0)

    near = []
    for _ in range(20):
        order = rng.permutation(len(natural))
        near.append(kernel_distance(natural[order[:40]], natural[order[40:]]))

    assert abs(np.mean(near)) < 0.02 * far and max(map(abs, near)) < 0.2 * far
