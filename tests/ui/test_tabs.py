"""The tabs' handlers, called as gradio calls them, without a browser."""

import base64
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from vitviz_hf import activation_map, activations, load_model, open_image, parse_feature, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.errors import ConfigError
from vitviz_hf.inside.words import with_labels, with_words
from vitviz_hf.manifest import cache_folder
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.replay import replay
from vitviz_hf.reading.exemplars import list_exemplars
from vitviz_hf.reading.reference import correlated_features, load_reference
from vitviz_hf.sites import Site
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui.app import TABS, App
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.beside import Beside
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import link_js, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import Asked, MapsTab
from vitviz_hf.ui.optimize_tab import OptimizeTab
from vitviz_hf.ui.shelf import Shelf


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


def restored(app, **query):
    """What the page restores of a link, first and then."""
    return app.open(SimpleNamespace(query_params=query))


def opened(app, **query):
    """What the page shows after a link: what it restores, and what the page then asks for."""
    values, maps = {k: v for part in restored(app, **query) for k, v in part.items()}, app.page.tab(MapsTab)
    settings = [values.get(c, getattr(c, "value", None)) for c in maps.asked]
    picked = json.dumps({"feature": values[maps.feature]})
    return values | maps.answer(picked, None, None, *settings)


def test_no_two_parts_of_the_page_have_one_name(app):
    names = [block.elem_id for block in app.demo.blocks.values() if block.elem_id]

    assert len(names) > 50 and sorted(names) == sorted(set(names))


def test_the_link_keeps_these_keys_in_this_order(app):
    assert [k.key for k in app.page.kept] == [
        "tab",
        "model",
        "photo",
        "kind",
        "layer",
        "patch",
        "feature",
        "inside-kind",
        "beside",
        *(f"inside-{name}" for name in ("mode", "layer", "token", "head", "why", "method", "turn", "factor")),
        "objective",
        "preset",
        "steps",
        "seed",
        "pictures",
        "atlas",
        "site",
        "offset",
        "sort",
        "fires",
        "shows",
        "view",
        "filter",
        "brightness",
        "result",
    ]
    assert [tab.key for tab in TABS] == ["maps", "inside", "optimize", "features", "views", "experiments"]


def test_what_a_link_says_is_restored_and_odd_values_give_the_default(app):
    maps, optimize, behavior = (app.page.tab(kind) for kind in (MapsTab, OptimizeTab, BehaviorTab))

    values = opened(
        app,
        tab="views",
        photo="coins",
        kind="attn_q",
        layer="2",
        patch="1,2",
        preset="paper",
        seed="9007199254740988",
        view="0,1",
        filter="3",
        feature="1.mlp_act:4",
        objective="-1.mlp_act:2",
    )
    odd = opened(app, tab="x", photo="../x", kind="x", layer="-1", preset="x", seed="1e9", filter="99999999999")

    assert values[app.page.tab_key] == "views" and values[maps.photo_key] == "coins"
    assert values[maps.photo] == str(builtin_paths()["coins"])
    assert values[maps.status].startswith("**Layer 2, attn_q, patch 1,2**")
    assert (values[maps.layer]["maximum"], values[maps.patch]) == (2, "1,2")
    assert values[maps.feature] == "1.mlp_act:4" and values[optimize.objective] == "-1.mlp_act:2"
    assert (values[optimize.preset], values[optimize.seed]) == ("paper", 2**53 - 4)
    assert (values[behavior.patch], values[behavior.filter]) == ("0,1", 3)
    assert odd[app.page.tab_key] == "maps" and odd[maps.photo_key] == "chelsea"
    assert odd[maps.status].startswith("**Layer 2, mlp_act") and odd[maps.layer]["value"] == 2  # 5, of three layers
    assert (odd[optimize.preset], odd[optimize.seed], odd[behavior.filter]) == ("auto", 0, -1)


def test_parsers_of_the_link():
    assert [or_else("a")(x) for x in (None, "", "b")] == ["a", "", "b"]
    assert [one_of(("a", "b"), "c")(x) for x in (None, "b", "x")] == ["c", "b", "c"]
    assert [whole(4)(x) for x in (None, "12", "-1", "1.5", "9" * 10)] == [4, 12, 4, 4, 4]


def test_every_handler_fills_components_that_its_event_names(app):
    maps = app.page.tab(MapsTab)
    loaded = next(f for f in app.demo.fns.values() if f.targets and f.targets[0][1] == "load")
    by_link = {c for tab in ("features", "views") for part in restored(app, tab=tab, shows="1.mlp_act:3") for c in part}
    assert by_link <= set(loaded.outputs)
    assert set(opened(app)) - by_link <= set(maps.shown)
    assert set(maps.emptied(Asked("x", None, "mlp_act", 1, "", "score"), "why")) <= set(maps.shown)


def answer(app, picked=None, upload=None, listed=None, **changes):
    """What the tab Your picture answers to what is picked and set."""
    own = {"image": str(builtin_paths()["chelsea"]), "kind": "mlp_act", "layer": 1, "patch": "", "rank_by": "unusual"}
    settings = {"model_id": app.model.value, **own, "style": "overlay", "feature": "", **changes}
    return app.page.tab(MapsTab).answer(json.dumps(picked or {}), upload, listed, *settings.values())


def test_a_picked_patch_is_ranked_and_every_card_shows_its_own_numbers(app, vit):
    maps = app.page.tab(MapsTab)

    values = answer(app, {"patch": "0,3"})

    assert values[maps.patch] == "0,3" and "patch 0,3" in values[maps.status]
    assert values[maps.listed].grid == (4, 4) and values[maps.cards].count("data-pick") == 12
    first = values[maps.ranked][0]
    told = f"{first['feature']} at patch 0,3: {first['score']:.3g}, {first['unusual']:+.1f} sd from the strongest"
    assert f'title="{told}' in values[maps.cards]
    assert told in values[maps.facts].replace("**", "")
    assert first["feature"] == values[maps.feature]
    ranked = [row["unusual"] for row in values[maps.ranked]]
    assert ranked == sorted(ranked, reverse=True) and max(ranked) < 10


def test_a_picked_feature_is_drawn_and_the_cards_stay(app):
    maps = app.page.tab(MapsTab)
    listed = answer(app, {"patch": "0,3"})[maps.listed]

    drawn = answer(app, {"feature": "2.mlp_act:5"}, listed=listed, patch="0,3")
    again = answer(app, listed=drawn[maps.listed], patch="0,3", feature="2.mlp_act:5")

    assert "2.mlp_act:5** on the whole picture" in drawn[maps.facts]  # its layer is not the one that is ranked
    assert drawn[maps.feature] == "2.mlp_act:5" and maps.cards not in drawn
    assert again == gr.skip()


@pytest.mark.filterwarnings("ignore::UserWarning")  # a message without a page to show it
def test_the_map_of_a_label_or_a_text_is_told_by_its_words(app, vit, hub):
    maps = app.page.tab(MapsTab)
    drawn = answer(app, {"feature": "label:bus"})
    answer(app, model_id="tiny/clip", layer=2)
    kept = set((cache_folder() / "reference").iterdir())

    text = answer(app, {"feature": 'text:"<b> fur"'}, model_id="tiny/clip", layer=2)
    wrong = answer(app, {"feature": "label:x"}, listed=drawn[maps.listed])

    pixels = to_pixels(vit, open_image(builtin_paths()["chelsea"]))
    values = activations(with_labels(vit), pixels, ["2.label"])[Site(2, "label")].map(2)
    assert f"**label:bus** on the whole picture: {values.mean():.3g}" in drawn[maps.facts]
    assert drawn[maps.feature] == "label:bus" and "of label:bus: highest" in drawn[maps.large]["alt_text"]
    assert "text:&quot;&lt;b&gt; fur&quot;** on the whole picture" in text[maps.facts]
    assert "no class is named" in wrong[maps.facts] and wrong[maps.large] is None
    assert set((cache_folder() / "reference").iterdir()) == kept


@pytest.mark.filterwarnings("ignore::UserWarning")  # a message without a page to show it
def test_the_texts_of_an_atlas_go_to_the_first_tab_and_come_back(app, tiny_view, tmp_path, monkeypatch):
    view, tab = with_words(tiny_view("clip"), ["fur", "a bus"]), app.page.tab(FeaturesTab)
    out, name = tmp_path / "atlas", view.model_id
    make_atlas(view, open_source("builtin"), SearchConfig(kinds=("text",), k=1, limit=4), out)
    monkeypatch.setenv("VITVIZ_ATLAS", str(out))
    monkeypatch.setattr(app.page, "shelf", shelf := Shelf(name))
    monkeypatch.setattr(tab, "shelf", shelf)
    monkeypatch.setattr(tab, "page_job", Beside(shelf).page)

    given = tab.give(name, str(out), "2.text:1")[app.page.tab(MapsTab).feature]
    taken = tab.take(name, str(out), given)

    assert given == 'text:"a bus"' and taken[tab.shown] == str(out)
    assert "<code>2.text:1</code> (a bus)" in tab.feature_page(name, taken[tab.shown], given)[tab.html]
    assert tab.take(name, str(out), 'text:"a cat"')[tab.shown] == ""
    with pytest.raises(ConfigError, match="the atlas has no text 'a cat'; it has 'fur', 'a bus'"):
        tab.show(name, str(out), 'text:"a cat"')


def test_a_picture_has_no_patch_yet_and_a_ranking_no_feature(app):
    maps, coffee = app.page.tab(MapsTab), str(builtin_paths()["coffee"])
    listed = answer(app, {"patch": "0,3", "feature": "1.mlp_act:7"})[maps.listed]
    assert listed.asked.feature == "1.mlp_act:7"

    example = answer(app, {"photo": "coffee"}, listed=listed, patch="0,3", feature="1.mlp_act:7")
    own = answer(app, {"photo": None}, coffee, listed, patch="0,3", feature="1.mlp_act:7")
    both = answer(app, {"photo": "coins", "patch": "1,1"}, coffee, listed, patch="0,3")

    assert example[maps.photo] == own[maps.photo] == coffee
    assert (example[maps.photo_key], own[maps.photo_key]) == ("coffee", "")
    for values in (example, own):
        assert "the whole picture" in values[maps.status] and values[maps.patch] == ""
        assert values[maps.feature] == values[maps.ranked][0]["feature"]
    assert both[maps.photo_key] == "coins" and both[maps.patch] == "1,1"


def test_no_handler_updates_an_upload_which_would_lose_its_gate(app):
    uploads = [b for b in app.demo.blocks.values() if isinstance(b, gr.Image) and b.type == "filepath"]

    assert uploads
    assert not [f.name for f in app.demo.fns.values() if f.fn and set(uploads) & set(f.outputs)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # a message without a page to show it
def test_what_cannot_be_answered_leaves_nothing_of_the_answer_before(app, tmp_path):
    maps, bad = app.page.tab(MapsTab), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    listed = answer(app)[maps.listed]

    for values, reason in [
        (answer(app, {"patch": "x"}, listed=listed), "patch must be one row,column such as 4,6; got &#x27;x&#x27;"),
        (answer(app, {"photo": None}, str(bad), listed), "not a supported image"),
        (answer(app, listed=listed, layer=9), "has layers 0-2; got layer 9"),
        (answer(app, listed=listed, layer=None), "layer must be a whole number from 0; got nothing"),
        (answer(app, listed=listed, model_id="/etc"), "is not a Hub id"),
        (answer(app, {"photo": "../x"}, listed=listed), "Something went wrong"),
    ]:
        assert reason in values[maps.status]
        assert (values[maps.cards], values[maps.large], values[maps.bar], values[maps.facts]) == ("", None, "", "")
        assert values[maps.listed] is None and "seen" not in values[maps.crop]
    assert answer(app, listed=listed, model_id="/etc")[app.facts] == ""
    feature = answer(app, {"feature": "9.mlp_act:1"}, listed=listed)
    assert feature[maps.large] is None and "got layer 9" in feature[maps.facts] and maps.cards not in feature
    assert maps.large in answer(app, listed=feature[maps.listed], feature=listed.asked.feature)


def test_the_map_and_its_sentence_are_of_the_feature(app, vit):
    maps, address = app.page.tab(MapsTab), "1.mlp_act:9"
    photo = str(builtin_paths()["coins"])

    values = answer(app, {"feature": address}, image=photo, style="heatmap")

    feature = parse_feature(address)
    acts = activations(vit, to_pixels(vit, open_image(photo)), [feature.site])[feature.site]
    own = activation_map(acts, feature)[0]
    assert f"values {own.min():.3g} to {own.max():.3g} on 4 x 4" in values[maps.facts]
    assert f"mean {own.mean():.3g}" in values[maps.facts]


def test_a_run_that_is_stopped_says_so_and_another_visitors_goes_on(app):
    tab = app.page.tab(OptimizeTab)
    mine, other = (SimpleNamespace(session_hash=name) for name in ("mine", "other"))
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "paper", 1000, 0, 1, (), mine)

    assert next(frames)[tab.status] == "Loading the model ..."
    assert tab.stop(other) == gr.skip()
    assert next(frames)[tab.status].startswith("Step ")
    assert tab.stop(mine) == "Stopping ..."
    cancelled, kept = frames
    assert cancelled == {tab.status: "Cancelled. The picture is being kept ..."}
    assert kept[tab.status].startswith("Cancelled. **1.mlp_act:3** after ") and kept[tab.downloads[0]]["interactive"]
    assert tab.stop(mine) == gr.skip()


def test_a_run_that_waits_for_another_says_so_can_be_stopped_and_leaves_maps_to_others(app):
    tab, maps = app.page.tab(OptimizeTab), app.page.tab(MapsTab)
    first, second = (SimpleNamespace(session_hash=name) for name in ("first", "second"))
    running = tab.visualize(app.model.value, "1.mlp_act:3", "paper", 1000, 0, 1, (), first)
    next(running)
    assert next(running)[tab.status].startswith("Step ")
    waiting = tab.visualize(app.model.value, "1.mlp_act:4", "paper", 1000, 0, 1, (), second)
    next(waiting)

    assert next(waiting)[tab.status].startswith("Waiting: one run before yours")
    values = answer(app, {"feature": "1.mlp_act:9"})
    assert "values" in values[maps.facts]
    tab.stop(second)
    assert list(waiting) == [{tab.status: "Cancelled."}]
    assert next(running)[tab.status].startswith("Step ")
    tab.stop(first)
    assert next(running) == {tab.status: "Cancelled. The picture is being kept ..."}


def test_mistakes_are_told_as_gradio_errors(app):
    with pytest.raises(gr.Error, match="is not a Hub id"):
        app.page.tab(FeaturesTab).open("/etc", *looking(app))
    with pytest.raises(gr.Error, match="there is no stored result"):
        app.page.tab(ExperimentsTab).show_result("nothing")


@pytest.fixture(scope="module")
def atlas(hub, tmp_path_factory):
    """An atlas of `tiny/vit`, on the Hub as `tabs/atlas`."""
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    make_atlas(load_model("tiny/vit", device="cpu"), open_source("builtin"), SearchConfig(k=3), out)
    hub.publish("datasets/tabs/atlas", out)
    return "tabs/atlas"


@pytest.mark.filterwarnings("ignore::UserWarning")  # a message without a page to show it
def test_a_link_to_an_atlas_that_cannot_be_read_opens_the_rest_of_the_page(app):
    maps, features = app.page.tab(MapsTab), app.page.tab(FeaturesTab)

    values = opened(app, tab="features", atlas="no/such", shows="1.mlp_act:3")

    assert values[app.page.tab_key] == "features" and values[features.atlas] == "no/such"
    assert "3 layers" in values[app.facts] and values[maps.cards].count("data-pick") == 12
    assert values[features.shown] == "" and facts_of(values[features.grid.html])["site"] == "2.mlp_act"
    assert "1.mlp_act:3" in values[features.html]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_part_of_the_page_that_breaks_leaves_the_others(app, monkeypatch):
    monkeypatch.setattr(app.page.shelf, "atlas", lambda name: 1 / 0)

    values = opened(app, tab="features", atlas="any/atlas", shows="1.mlp_act:3")

    assert "3 layers" in values[app.facts] and app.page.tab(MapsTab).large in values


def test_a_tab_that_is_opened_shows_its_atlas_or_views_at_once_and_only_once(app, atlas):
    features, behavior = app.page.tab(FeaturesTab), app.page.tab(BehaviorTab)
    photo = str(builtin_paths()["coins"])

    by_link = opened(app, tab="features", atlas=atlas)
    views_by_link = opened(app, tab="views", view="1,2")

    assert by_link[features.shown] == atlas == by_link[features.grid.listed]
    assert "19 photographs of builtin" in by_link[features.grid.facts]
    assert len(views_by_link[behavior.views]) == 6 and views_by_link[behavior.patch] == "1,2"
    assert features.first_look(atlas, "", *looking(app, model="tiny/vit"))[features.shown] == atlas
    assert features.first_look(atlas, "", *looking(app))[features.shown] == ""  # it is of another model
    assert features.first_look(atlas, atlas, *looking(app, shown=atlas)) == gr.skip()
    assert features.first_look("", app.model.value, *looking(app)) == gr.skip()
    assert "built-in photographs" in features.first_look("", "", *looking(app))[features.panel.facts]
    assert len(behavior.first_look(app.model.value, photo, "", -1, "linear", None)[behavior.views]) == 5
    assert behavior.first_look(app.model.value, photo, "", -1, "linear", True) == gr.skip()


@pytest.mark.filterwarnings("ignore::UserWarning")  # a message without a page to show it
@pytest.mark.parametrize(("layer", "said"), [(None, "layer must be a whole number from 0; got nothing"), (77, "")])
def test_a_layer_that_is_not_there_is_told_or_the_last_one_is_taken(app, layer, said):
    maps = app.page.tab(MapsTab)
    values = opened(app)
    settings = [values.get(c, getattr(c, "value", None)) for c in maps.asked]
    settings[3] = maps.layer.preprocess(layer)

    shown = maps.answer("{}", None, None, *settings)

    assert said in shown[maps.status] if said else shown[maps.status].startswith("**Layer 2, mlp_act")


def test_a_ranking_is_against_the_atlas_that_was_chosen(app, atlas, hub, tmp_path):
    few = make_atlas(
        load_model("tiny/vit", device="cpu"), open_source("builtin"), SearchConfig(k=2, limit=7), tmp_path / "a"
    )
    hub.publish("datasets/tabs/few", few.folder)
    maps, asked = app.page.tab(MapsTab), {"model": "tiny/vit", "layer": "1"}

    without, chosen = opened(app, **asked), opened(app, **asked, atlas="tabs/few")
    settings = [chosen.get(c, getattr(c, "value", None)) for c in maps.asked]
    settings[2:4] = "mlp_act", 1
    other = maps.answer("{}", None, chosen[maps.listed], *settings[:-1], atlas)
    nowhere = opened(app, **asked, atlas="no/such")

    assert "the 19 built-in photographs" in without[maps.status] and "the 19" in nowhere[maps.status]
    assert "against 7 photographs of builtin" in chosen[maps.status] and "7 photographs" in chosen[maps.facts]
    assert "against 19 photographs of builtin" in other[maps.status]
    assert other[maps.feature] == chosen[maps.feature]
    best, table = chosen[maps.ranked][0], few.table(Site(1, "mlp_act"))
    i = int(best["feature"].rpartition(":")[2])
    std = max(table.std[i], 0.1 * np.median(table.std))
    assert best["unusual"] == pytest.approx((best["score"] - table.mean[i]) / std, rel=1e-4)
    assert best["unusual"] != pytest.approx(without[maps.ranked][0]["unusual"], rel=0.01)


def looking(app, model="", shown="", layer=1, site="", sort="index", fires="live", pictures="patch", offset=0):
    """What the grid of the tab Browse features asks for."""
    return [model or app.model.value, shown, "mlp_act", layer, site, sort, fires, pictures, offset]


def facts_of(page):
    return json.loads(html.unescape(re.search(r'data-grid="([^"]+)"', page)[1]))


def test_a_layer_is_browsed_without_an_atlas_in_the_order_that_is_asked_for(app, vit):
    features = app.page.tab(FeaturesTab)
    peaks, scores = (getattr(load_reference(vit), part)[Site(1, "mlp_act")] for part in ("peaks", "scores"))
    live = [i for i in scores.max(0).values.argsort(descending=True, stable=True).tolist() if peaks[:, i].max() > 0]

    values = features.browse(*looking(app, sort="maximum", offset=9))
    kept = features.refresh(*looking(app, site="0.attn_q", offset=9))

    facts = facts_of(values[features.grid.html])
    assert facts["features"] == live and facts["site"] == "1.mlp_act" and facts["at"] == 0
    assert facts["maximum"][0] == pytest.approx(float(scores.max()), rel=0.01)
    assert values[features.grid.site]["value"] == "1.mlp_act" and "0.attn_q" in values[features.grid.site]["choices"]
    assert values[features.grid.pictures] == gr.update(visible=False)
    assert f"**{len(live)}** of 64 features" in values[features.grid.facts]
    assert facts_of(kept[features.grid.html])["site"] == "0.attn_q" and kept[features.grid.offset] == 9


def test_dead_features_are_listed_by_themselves(app, vit, monkeypatch):
    features, reference = app.page.tab(FeaturesTab), load_reference(vit)
    site = Site(1, "mlp_act")
    active = reference.active[site].clone()
    active[:, [4, 11]] = 0
    changed = replace(reference, active={**reference.active, site: active})
    monkeypatch.setattr(app.page.shelf, "reference", lambda view: changed)

    dead = features.browse(*looking(app, fires="dead", sort="sparse"))
    live = features.browse(*looking(app, fires="live", sort="sparse"))

    assert facts_of(dead[features.grid.html])["features"] == [4, 11]
    assert not {4, 11} & set(facts_of(live[features.grid.html])["features"])
    assert "**2** of 64 features of 1.mlp_act fire on no patch" in dead[features.grid.facts]


def test_the_page_asks_for_sheets_and_files_of_grids_that_it_was_shown(app):
    grid = app.page.tab(FeaturesTab).grid
    facts = facts_of(app.page.tab(FeaturesTab).browse(*looking(app))[grid.html])

    assert Image.open(io.BytesIO(base64.b64decode(grid.sheet([facts["key"], 0])))).size == (16 * 56, 6 * 56)
    assert base64.b64decode(grid.statistics([facts["key"], "csv"])).startswith(b"feature,mean,std,")
    assert np.load(io.BytesIO(base64.b64decode(grid.statistics([facts["key"], "npz"]))))["mean"].shape == (64,)
    for asked in (["none", 0], [facts["key"], 99], [facts["key"], "0"], [facts["key"]], None, {}):
        assert grid.sheet(asked) == ""
    for asked in (["none", "csv"], [facts["key"], "../x"], None):
        assert grid.statistics(asked) == ""


def test_a_page_without_an_atlas_has_the_features_peaks_and_neighbours_as_cards(app, vit):
    features, feature = app.page.tab(FeaturesTab), parse_feature("1.mlp_act:3")

    page = features.feature_page(app.model.value, "", str(feature))[features.html]

    reference = load_reference(vit)
    best = list_exemplars(vit, reference, feature)
    near = correlated_features(reference.scores, feature, 8)
    assert f"On the 19 built-in photographs: mean score {reference.scores[feature.site][:, 3].mean():.3g}" in page
    assert page.count("<figure>") == len(best)
    assert f"at patch {best[0].patch[0]},{best[0].patch[1]}" in page
    assert re.findall(r'data-pick="([^"]+)"', page) == [str(f) for f, _ in near]
    assert [f"correlation {r:.2f}" in page for _, r in near] == [True] * len(near)


def test_a_page_of_an_atlas_has_its_neighbours_as_cards(app, atlas):
    features = app.page.tab(FeaturesTab)

    page = features.pick(app.model.value, atlas, "1.mlp_act:3")[features.html]

    known = app.page.shelf.atlas(atlas).neighbours(parse_feature("1.mlp_act:3"), 8)
    assert "Most activating images" in page and known
    assert page.count("Features whose scores go with") == 2  # the heading, and the name of the group of cards
    assert "(correlation over the images)" not in page
    assert re.findall(r'data-pick="([^"]+)"', page) == [str(f) for f, _ in known]


def test_what_a_picture_or_a_word_finds_is_shown_as_cards(app, atlas):
    features = app.page.tab(FeaturesTab)

    found = features.find_features(app.model.value, atlas, str(builtin_paths()["coins"]))[features.results]

    assert found.count("data-pick") == 24 and found.count("<img") > 24 and " sd</small>" in found
    with pytest.raises(gr.Error, match=r"no atlas of .* is open: open one above"):
        features.find_features(app.model.value, "", str(builtin_paths()["coins"]))
    with pytest.raises(gr.Error, match="have no words yet"):
        features.find_word(app.model.value, atlas, "cat")


def test_a_feature_of_another_model_closes_the_atlas(app, atlas):
    features = app.page.tab(FeaturesTab)

    assert features.take("tiny/vit", atlas, "1.mlp_act:3")[features.shown] == atlas
    assert features.take("tiny/deit", atlas, "1.mlp_act:3")[features.shown] == ""
    assert features.take("tiny/vit", atlas, "1.mlp_act:9999")[features.shown] == ""
    assert features.take("tiny/vit", "", "1.mlp_act:3")[features.feature] == "1.mlp_act:3"


def test_another_model_brings_its_own_features(app, atlas):
    features = app.page.tab(FeaturesTab)

    here = features.follow("features", "", atlas, *looking(app, shown=atlas, site="1.mlp_act", offset=9))
    elsewhere = features.follow("maps", "", atlas, *looking(app, shown=atlas))

    assert here[features.shown] == elsewhere[features.shown] == "" and elsewhere[features.grid.html] == ""
    assert here[features.grid.listed] == app.model.value and here[features.grid.offset] == 0
    assert elsewhere[features.grid.listed] == ""
    assert features.follow("maps", "", "", *looking(app)) == gr.skip()  # nothing is shown yet
    assert features.follow("maps", atlas, atlas, *looking(app, "tiny/vit", atlas)) == gr.skip()


def test_a_link_restores_the_site_the_order_and_the_place(app):
    features = app.page.tab(FeaturesTab)

    values = opened(app, tab="features", site="0.attn_q", offset="7", sort="maximum", fires="live")
    odd = opened(app, tab="features", offset="99999", sort="x", fires="x")

    facts = facts_of(values[features.grid.html])
    assert facts["site"] == "0.attn_q" and facts["at"] == 7 == values[features.grid.offset]
    assert values[features.grid.sort] == "maximum"
    assert facts_of(odd[features.grid.html])["at"] == len(facts_of(odd[features.grid.html])["features"]) - 1


def test_the_chosen_features_card_stands_beside_its_box(app):
    tab = app.page.tab(OptimizeTab)

    assert 'data-pick="1.mlp_act:3"' in tab.show_card(app.model.value, "1.mlp_act:3")
    assert 'data-pick="1.mlp_act:3"' in tab.show_card(app.model.value, "-1.mlp_act:3")
    for other in ("logit:2", "1.mlp_act:3 + 1.mlp_act:4", "9.mlp_act:1", "", None):
        assert tab.show_card(app.model.value, other) == ""
    assert tab.first_look("<div>", app.model.value, "1.mlp_act:3") == gr.skip()
    assert "data-pick" in tab.first_look(None, app.model.value, "1.mlp_act:3")


def test_leaving_the_model_box_as_it_was_changes_nothing_and_another_model_keeps_the_place(app, hub):
    maps = app.page.tab(MapsTab)
    first = answer(app, {"patch": "3,3"})
    set_as_shown = {"listed": first[maps.listed], "patch": "3,3", "feature": first[maps.feature]}

    assert answer(app, **set_as_shown) == gr.skip()
    other = answer(app, **set_as_shown, model_id="tiny/swin")
    assert other[maps.patch] == "12,12" and "tiny/swin" in other[app.facts]


def test_the_first_model_is_loaded_before_a_visitor_asks_and_one_that_cannot_be_is_left(tiny_folder, monkeypatch):
    app, lost = (App(name, lambda _: lambda job: job, True) for name in (str(tiny_folder("vit")), "no/such"))

    app.warm_up()
    lost.warm_up()

    shelf, snapshot = app.page.shelf, app.page.shelf.snapshot(app.model.value)
    monkeypatch.setattr("vitviz_hf.ui.shelf.load_snapshot", lambda *_: 1 / 0)
    monkeypatch.setattr("vitviz_hf.ui.shelf.load_reference", lambda *_: 1 / 0)
    assert shelf.reference(shelf.view(snapshot))


@pytest.mark.parametrize("key", ["features", "views"])
def test_a_link_opens_its_tab_before_the_tab_is_filled(app, key):
    page, features, behavior = app.page, app.page.tab(FeaturesTab), app.page.tab(BehaviorTab)

    first, then = restored(app, tab=key, photo="coins")

    assert first[page.tabs]["selected"] == key == first[page.tab_key] and page.tab_key not in then
    filled = {"features": features.grid.html, "views": behavior.views}[key]
    assert filled in then and filled not in first
    assert len(list(restored(app, photo="coins"))) == 1


def test_a_link_made_with_an_uploaded_photograph_says_that_it_is_not_in_it(app):
    maps = app.page.tab(MapsTab)

    values = opened(app, photo="own", patch="1,2")

    assert values[maps.photo] is None and values[maps.photo_key] == ""
    assert "uploaded photograph, which is not in it" in values[maps.status] and "3 layers" in values[app.facts]
    assert '"photo": "own"' in link_js({k.key: k.empty for k in app.page.kept})


def test_a_failed_run_leaves_no_old_picture_and_no_loading(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames, seen = tab.visualize(app.model.value, "9.mlp_act:1", "fast", 3, 0, 1, (), me), []

    with pytest.raises(gr.Error):
        for values in frames:
            seen.append(values)

    assert seen[0][tab.lives[0]]["value"] is None and seen[0][tab.downloads[0]]["value"] is None
    assert "got layer 9" in seen[-1][tab.status]


def test_a_stop_after_the_end_leaves_the_result(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames = tab.visualize(app.model.value, "1.mlp_act:1", "fast", 3, 0, 1, (), me)
    values = next(v for v in frames if "after 3 steps" in v[tab.status])
    tab.stop(me)

    assert values[tab.downloads[0]]["interactive"] and list(frames) == []


def test_a_cancelled_picture_carries_its_recipe_and_step_and_is_made_again(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "fast", 1000, 0, 1, (), me)
    next(v for v in frames if v[tab.status].startswith("Step "))
    tab.stop(me)
    path = list(frames)[-1][tab.downloads[0]]["value"]

    recipe, made = read_recipe(path), open_image(path)

    assert 1 <= recipe["stopped_after"] < recipe["config"]["steps"] == 1000
    again = np.asarray(replay(path).image, int)
    assert np.abs(again - np.asarray(made, int)).max() <= 1


def test_a_long_objective_is_refused_at_once_and_a_longish_one_gets_a_short_name(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    with pytest.raises(gr.Error, match="at most 64 terms; got 201"):
        list(tab.visualize(app.model.value, " + ".join(["1.mlp_act:3"] * 201), "fast", 2, 0, 1, (), me))

    *_, last = tab.visualize(app.model.value, " + ".join(f"1.mlp_act:{i}" for i in range(40)), "fast", 2, 0, 1, (), me)

    assert len(Path(last[tab.downloads[0]]["value"]).name) < 130


def test_a_class_is_named_in_the_sentence_and_the_caption(app, vit):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    label = vit.labels[2]

    *_, last = tab.visualize(app.model.value, f'logit:"{label}"', "fast", 2, 0, 1, (), me)

    assert f"**logit:2** ({label}) after 2 steps" in last[tab.status]
    assert last[tab.lives[0]]["label"] == f"Optimized picture: {label}"


def test_minutes_are_told_before_they_start(app, monkeypatch):
    tab = app.page.tab(OptimizeTab)
    monkeypatch.setattr(tab, "pace_job", lambda snapshot: 0.15)
    tab._paces.clear()

    assert tab.estimate(app.model.value, "fast", 0) == ""
    assert tab.estimate(app.model.value, "paper", 0) == "This takes about 8 min without a GPU."
    assert tab.estimate(app.model.value, "auto", 1000) == "This takes about 5 min without a GPU."


def test_an_empty_box_is_named(app):
    with pytest.raises(gr.Error, match="filter must be a whole number from -1; got nothing"):
        app.page.tab(BehaviorTab).show_view(app.model.value, str(builtin_paths()["coins"]), "", None, "linear")
