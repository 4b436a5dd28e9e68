"""Cards: what they say and show, against maps made one by one."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_hf import Feature, Site, activation_map, activations, open_image, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.store import Atlas, open_atlas
from vitviz_hf.atlas.words import name_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import ModelError
from vitviz_hf.reading.exemplars import Exemplar, crop_exemplar, crop_seen
from vitviz_hf.reading.reference import load_reference
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.cards import Card, FeatureCard, Fired, Made, RankResult, deviations, feature_card, usual_values
from vitviz_hf.ui.drawing import (
    cards_html,
    crop_html,
    describe,
    draw_bar,
    draw_map,
    feature_cards_html,
    peak_text,
    styles_for,
)
from vitviz_hf.ui.jobs import Jobs
from vitviz_hf.ui.shelf import Shelf

FEATURE = Feature(Site(1, "mlp_act"), 5)


@pytest.fixture(scope="module")
def jobs(tiny_folder):
    return Jobs(Shelf(str(tiny_folder("vit"))))


@pytest.fixture
def snapshot(tiny_folder):
    return Shelf(str(tiny_folder("vit"))).snapshot(str(tiny_folder("vit")))


def fired(values, patch=None):
    return Fired(FEATURE, np.array(values), patch, 0.5, 1.25)


@pytest.mark.parametrize("patch", [None, (2, 3)])
def test_a_card_and_the_map_of_its_feature_tell_the_same(jobs, snapshot, vit, patch):
    photo = open_image(builtin_paths()["coffee"])

    result = jobs.rank(snapshot, photo, FEATURE.site, patch, True, 6)
    first = result.cards[0].fired
    alone = jobs.map(snapshot, photo, str(first.feature), patch and (first.feature.site, patch)).fired

    acts = activations(vit, to_pixels(vit, photo), [first.feature.site])[first.feature.site]
    own = activation_map(acts, first.feature)[0].numpy()
    usual = getattr(load_reference(vit), "peaks" if patch else "scores")[first.feature.site][:, first.feature.index]
    assert first.score == pytest.approx(float(own[patch] if patch else own.mean()), abs=1e-5)
    assert first.unusual == pytest.approx((first.score - float(usual.mean())) / float(usual.std()), rel=0.01)
    assert (alone.score, alone.unusual) == (first.score, first.unusual)
    assert np.array_equal(alone.values, first.values)


def test_a_card_has_up_to_four_places_at_most_one_of_each_photograph(jobs, snapshot, vit):
    result = jobs.rank(snapshot, open_image(builtin_paths()["coins"]), FEATURE.site, None, False, 6)

    for card in result.cards:
        names = [e.photograph for e, _ in card.exemplars]
        assert 1 <= len(names) <= 4 and len(set(names)) == len(names)
    exemplar, crop = result.cards[0].exemplars[0]
    photograph = open_image(builtin_paths()[exemplar.photograph])
    assert crop == crop_exemplar(vit, photograph, result.cards[0].fired.feature, exemplar.patch)


def test_a_card_is_a_button_with_its_word_its_address_and_alt_texts():
    picture = Image.new("RGB", (64, 64), "red")
    card = Card(fired([[0.0, 2.0], [-1.0, 0.0]]), [(Exemplar("red_lion", (1, 0), 3.0), picture)])
    result = RankResult(picture, (2, 2), None, [card], [])

    page = cards_html(result, ["<b>fur</b> & more"])

    assert re.search(r'<button type="button" class="card" data-pick="1\.mlp_act:5"[^>]*aria-pressed="true"', page)
    assert "&lt;b&gt;fur&lt;/b&gt; &amp; more" in page and "<small>1.mlp_act:5</small>" in page
    assert 'title="1.mlp_act:5 on the whole picture: 0.5, +1.2 sd from the built-in photographs"' in page
    assert 'alt="Activation map of 1.mlp_act:5: highest 2, at patch 0,1' in page
    assert 'alt="red lion, patch 1,0: 3"' in page


def test_negative_values_are_painted_in_the_signed_style_only():
    picture, both = Image.new("RGB", (40, 20), "gray"), fired([[-2.0, 0.0, 0.5, 1.0]])

    plain, signed = (np.asarray(draw_map(picture, both, s)).astype(int) for s in ("overlay", "signed"))

    assert np.array_equal(plain[0, 5], plain[0, 15]) and np.ptp(plain[0, 35]) > 40
    assert signed[0, 5, 2] > signed[0, 5, 0] + 40 and signed[0, 35, 0] > signed[0, 35, 2]
    assert styles_for(both) == ["overlay", "heatmap", "signed"]
    assert styles_for(fired([[0.0, 1.0]])) == ["overlay", "heatmap"]
    assert "from -2 to 2" in draw_bar(both, "signed") and "from 0 to 1" in draw_bar(both, "overlay")
    assert "below 0 are not painted" in describe(both, True) and "painted" not in describe(both, False)


def test_a_map_without_positive_values_is_drawn_with_nothing_on_it():
    picture, silent = Image.new("RGB", (20, 20), "white"), fired([[-2.0, -1.0]])

    assert np.ptp(np.asarray(draw_map(picture, silent, "overlay"))) == 0
    assert "from 0 to 0" in draw_bar(silent, "overlay")
    assert peak_text(silent).endswith("highest -1, at patch 0,1")


def test_the_crop_frames_the_chosen_patch_and_knows_its_grid():
    picture = Image.new("RGB", (60, 40), "red")

    page, whole = crop_html(picture, (4, 6), (1, 3)), crop_html(picture, (4, 6), None)

    assert 'data-rows="4" data-cols="6" data-at="1,3"' in page and "left: 50.0%; top: 25.0%" in page
    assert 'data-at=""' in whole and "hidden></span>" in whole


def test_words_come_from_the_servers_own_atlas_of_this_model(tiny_view, snapshot, vit, monkeypatch, tmp_path):
    atlas = make_atlas(vit, open_source("builtin"), SearchConfig(k=2), tmp_path / "atlas")
    name_features(atlas, tiny_view("clip"), ["cat", "dog", "bus"])
    features = [Feature(FEATURE.site, i) for i in range(30)]
    monkeypatch.setenv("VITVIZ_ATLAS", str(tmp_path / "atlas"))

    words = Shelf("builtin").words(snapshot, features)

    named = open_atlas(str(tmp_path / "atlas"))
    assert words == [next((w for w, _ in named.feature_words(f)), "") for f in features] and any(words)
    assert Shelf("builtin").words(replace(snapshot, revision="other"), features) == [""] * 30


def test_without_an_atlas_that_opens_there_are_no_words(snapshot, monkeypatch, tmp_path):
    monkeypatch.delenv("VITVIZ_ATLAS", raising=False)
    assert Shelf("builtin").words(snapshot, [FEATURE]) == [""]

    monkeypatch.setenv("VITVIZ_ATLAS", str(tmp_path / "none"))
    assert Shelf("builtin").words(snapshot, [FEATURE]) == [""]


@pytest.fixture
def own_atlas(trained, monkeypatch, tmp_path):
    """The server's own atlas of the model that has learned shapes, of the photographs but for three."""
    config = SearchConfig(layers=(1,), kinds=("mlp_act",), k=5, limit=16)
    make_atlas(trained, open_source("builtin"), config, tmp_path / "atlas")
    monkeypatch.setenv("VITVIZ_ATLAS", str(tmp_path / "atlas"))
    return open_atlas(str(tmp_path / "atlas"))


@pytest.mark.parametrize("patch", [None, (2, 3)])
def test_a_ranking_is_against_the_images_of_the_atlas_in_use(trained, own_atlas, patch):
    shelf = Shelf(trained.model_id)
    photo = open_image(builtin_paths()["rocket"])

    result = Jobs(shelf).rank(shelf.snapshot(trained.model_id), photo, FEATURE.site, patch, True, 6)
    first = result.cards[0].fired
    alone = (
        Jobs(shelf)
        .map(shelf.snapshot(trained.model_id), photo, str(first.feature), patch and (first.feature.site, patch))
        .fired
    )

    table = own_atlas.table(FEATURE.site)
    mean, std = (table.peak_mean, table.peak_std) if patch else (table.mean, table.std)
    acts = activations(trained, to_pixels(trained, photo), [FEATURE.site])[FEATURE.site]
    scores = (acts.at(patch) if patch else acts.scores())[0].numpy()
    above = (scores - mean) / np.maximum(std, 0.1 * np.median(std))
    ranked = [card.fired.feature.index for card in result.cards]
    assert ranked == np.argsort(-above, kind="stable")[:6].tolist()
    assert first.unusual == pytest.approx(above[first.feature.index], rel=1e-3) == alone.unusual
    assert first.against == alone.against == "16 photographs of builtin"
    title = re.search(r'title="([^"]+)"', cards_html(result, [""] * 6))[1]
    assert title.endswith(f"{first.unusual:+.1f} sd from {'the strongest patches of ' if patch else ''}{first.against}")
    assert title.partition(": ")[2] in describe(alone, False)


def test_an_atlas_of_another_size_or_without_the_site_leaves_the_photographs(trained, own_atlas):
    shelf, other = Shelf(trained.model_id), Site(2, "mlp_act")
    photo, snapshot = open_image(builtin_paths()["rocket"]), shelf.snapshot(trained.model_id)

    assert "the 19 built-in" in Jobs(shelf).map(snapshot, photo, str(Feature(other, 3))).fired.against
    manifest = {**own_atlas.manifest, "input_size": [32, 32]}
    (own_atlas.folder / "manifest.json").write_text(json.dumps(manifest))
    shelf = Shelf(trained.model_id)
    assert "the 19 built-in" in Jobs(shelf).map(snapshot, photo, str(FEATURE)).fired.against


def test_exemplars_are_the_peaks_of_the_atlas(trained, own_atlas):
    shelf, hits = Shelf(trained.model_id), own_atlas.hits(FEATURE)

    card = feature_card(shelf, trained, own_atlas, FEATURE, "told")

    best = max(hits[:4], key=lambda hit: hit.peak)
    exemplar, crop = card.exemplars[0]
    image = own_atlas.image(best.row)
    assert (exemplar.patch, exemplar.value) == (best.place, best.peak)
    assert crop == crop_seen(open_image(image.jpeg), trained.layers[1].patch_grid, best.place)
    assert len(card.exemplars) <= 4 and len({e.photograph for e, _ in card.exemplars}) == len(card.exemplars)


def test_a_card_by_itself_shows_the_optimized_picture_its_word_and_what_is_told():
    picture = Image.new("RGB", (64, 64), "red")
    cards = [
        FeatureCard(FEATURE, "+2.5 sd", "<i>fur</i>", [(Exemplar("coins", (1, 0), 3.0), picture)], Made(picture, ""))
    ]

    page = feature_cards_html(cards, "Found features")

    assert 'aria-label="Found features"' in page and 'data-pick="1.mlp_act:5"' in page
    assert 'alt="Optimized picture of 1.mlp_act:5"' in page and 'alt="coins, patch 1,0: 3"' in page
    assert "&lt;i&gt;fur&lt;/i&gt;" in page and "<small>1.mlp_act:5, +2.5 sd</small>" in page
    assert page.count("<img") == 2
    guided = feature_cards_html([replace(cards[0], made=Made(picture, "made from 9 real images"))], "Found features")
    assert 'alt="Optimized picture of 1.mlp_act:5, made from 9 real images"' in guided
    assert "real image" not in page


def test_the_highest_score_on_a_page_is_that_of_the_photograph_named_with_it(trained, monkeypatch):
    shelf = Shelf(trained.model_id)
    reference = load_reference(trained)
    scores = reference.scores[FEATURE.site].clone()
    scores[7, FEATURE.index], scores[7, 0] = 1000, math.nan
    spoiled = replace(reference, scores={**reference.scores, FEATURE.site: scores})
    monkeypatch.setattr(Shelf, "reference", lambda *_: spoiled)
    highest, best = reference.scores[FEATURE.site][:, FEATURE.index].where(torch.arange(19) != 7, -math.inf).max(0)

    page = Beside(shelf).page(shelf.snapshot(trained.model_id), None, FEATURE)

    assert re.search(rf"highest {float(highest):.3g}\s+\({reference.names[best].replace('_', ' ')}\)", page)
    silent = replace(spoiled, scores={**reference.scores, FEATURE.site: scores * math.nan})
    monkeypatch.setattr(Shelf, "reference", lambda *_: silent)
    with pytest.raises(ModelError, match=r"no built-in photograph has finite values at 1\.mlp_act"):
        Beside(shelf).page(shelf.snapshot(trained.model_id), None, FEATURE)


@pytest.mark.parametrize("patch", [False, True])
def test_what_is_usual_in_an_atlas_spreads_by_a_tenth_of_the_median_or_more(trained, own_atlas, monkeypatch, patch):
    reference, plain = load_reference(trained), own_atlas.table(FEATURE.site)

    def usual(std):
        values = np.array(std, np.float32)
        known = replace(plain, std=values, peak_std=values, mean=values, peak_mean=values)
        monkeypatch.setattr(Atlas, "table", lambda *_: known)
        return usual_values(reference, own_atlas, FEATURE.site, patch)

    found, silent = usual([0, 0.05, 1, 3, 2]), usual([0, 0, 0])

    assert found.std.tolist() == pytest.approx([0.1, 0.1, 1, 3, 2]) and found.told == "16 photographs of builtin"
    assert (deviations(torch.zeros(3), silent) == 0).all()


def test_scores_of_an_atlas_of_strongest_patches_are_not_compared_with_means(trained, tmp_path):
    config = SearchConfig(layers=(1,), kinds=("mlp_act",), k=2, limit=16, reduce="max")
    atlas = make_atlas(trained, open_source("builtin"), config, tmp_path / "max")
    reference = load_reference(trained)

    mean, strongest = (usual_values(reference, atlas, FEATURE.site, patch) for patch in (False, True))

    assert mean.told == "the 19 built-in photographs" and strongest.told == "16 photographs of builtin"
    assert torch.equal(mean.mean, reference.scores[FEATURE.site].mean(0))


def test_exemplars_of_an_atlas_come_strongest_first(trained, own_atlas):
    mixed = [
        feature
        for feature in (Feature(FEATURE.site, i) for i in range(own_atlas.sites[FEATURE.site]))
        if np.any(np.diff([hit.peak for hit in own_atlas.hits(feature)[:4] if hit.peak > 0]) > 0)
    ]
    assert mixed  # hits come in the order of scores

    for feature in mixed[:3]:
        values = [e.value for e, _ in feature_card(Shelf(trained.model_id), trained, own_atlas, feature).exemplars]
        assert values == sorted((hit.peak for hit in own_atlas.hits(feature)[:4] if hit.peak > 0), reverse=True)
