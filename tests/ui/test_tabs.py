"""The tabs' handlers, called as gradio calls them, without a browser."""

import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from vitviz_hf import activation_map, activations, load_model, open_image, parse_feature, to_pixels
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.optimize.replay import replay
from vitviz_hf.stream import builtin_paths, open_source
from vitviz_hf.ui.app import TABS, App
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import link_js, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import Asked, MapsTab
from vitviz_hf.ui.optimize_tab import OptimizeTab


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


def opened(app, **query):
    """What the page shows after a link: what it restores, and what the page then asks for."""
    values, maps = app.open(SimpleNamespace(query_params=query)), app.page.tab(MapsTab)
    settings = [values.get(c, getattr(c, "value", None)) for c in maps.asked]
    picked = json.dumps({"feature": values[maps.feature]})
    return values | maps.answer(picked, None, None, *settings)


def test_the_link_keeps_these_keys_in_this_order(app):
    assert [k.key for k in app.page.kept] == [
        "tab",
        "model",
        "photo",
        "kind",
        "layer",
        "patch",
        "feature",
        "objective",
        "preset",
        "steps",
        "seed",
        "atlas",
        "shows",
        "view",
        "filter",
        "brightness",
        "result",
    ]
    assert [tab.key for tab in TABS] == ["maps", "optimize", "features", "views", "experiments"]


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
        seed="7",
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
    assert (values[optimize.preset], values[optimize.seed]) == ("paper", 7)
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
    restored = set(app.open(SimpleNamespace(query_params={})))
    assert restored <= set(loaded.outputs)
    assert set(opened(app)) - restored <= set(maps.shown)
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

    values = maps.map_feature(app.model.value, photo, address, "heatmap")

    feature = parse_feature(address)
    acts = activations(vit, to_pixels(vit, open_image(photo)), [feature.site])[feature.site]
    own = activation_map(acts, feature)[0]
    assert f"values {own.min():.3g} to {own.max():.3g} on 4 x 4" in values[maps.facts]
    assert f"mean {own.mean():.3g}" in values[maps.facts]


def test_a_run_that_is_stopped_says_so_and_another_visitors_goes_on(app):
    tab = app.page.tab(OptimizeTab)
    mine, other = (SimpleNamespace(session_hash=name) for name in ("mine", "other"))
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "paper", 1000, 0, mine)

    assert next(frames)[tab.status] == "Loading the model ..."
    assert tab.stop(other) == gr.skip()
    assert next(frames)[tab.status].startswith("Step ")
    assert tab.stop(mine) == "Stopping ..."
    cancelled, kept = frames
    assert cancelled == {tab.status: "Cancelled."}
    assert kept[tab.status].startswith("Cancelled. **1.mlp_act:3** after ") and kept[tab.download]["interactive"]
    assert tab.stop(mine) == gr.skip()


def test_a_run_that_waits_for_another_says_so_can_be_stopped_and_leaves_maps_to_others(app):
    tab, maps = app.page.tab(OptimizeTab), app.page.tab(MapsTab)
    first, second = (SimpleNamespace(session_hash=name) for name in ("first", "second"))
    running = tab.visualize(app.model.value, "1.mlp_act:3", "paper", 1000, 0, first)
    next(running)
    assert next(running)[tab.status].startswith("Step ")
    waiting = tab.visualize(app.model.value, "1.mlp_act:4", "paper", 1000, 0, second)
    next(waiting)

    assert next(waiting)[tab.status].startswith("Waiting: one run before yours")
    values = maps.map_feature(app.model.value, str(builtin_paths()["coins"]), "1.mlp_act:9", "heatmap")
    assert "values" in values[maps.facts]
    tab.stop(second)
    assert list(waiting) == [{tab.status: "Cancelled."}]
    assert next(running)[tab.status].startswith("Step ")
    tab.stop(first)
    assert next(running) == {tab.status: "Cancelled."}


def test_mistakes_are_told_as_gradio_errors(app):
    with pytest.raises(gr.Error, match="has layers 0-2; got layer 9"):
        app.page.tab(MapsTab).map_feature(app.model.value, str(builtin_paths()["coins"]), "9.mlp_act:1", "overlay")
    with pytest.raises(gr.Error, match="is not a Hub id"):
        app.page.tab(FeaturesTab).open("/etc", "maximum")
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
    assert features.gallery not in values


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

    assert len(by_link[features.gallery]) == 24 and by_link[features.shown] == atlas
    assert len(views_by_link[behavior.views]) == 6 and views_by_link[behavior.patch] == "1,2"
    assert len(features.first_look(atlas, "maximum", "")[features.gallery]) == 24
    assert features.first_look(atlas, "maximum", atlas) == gr.skip()
    assert features.first_look("", "maximum", "") == gr.skip()
    assert len(behavior.first_look(app.model.value, photo, "", -1, "linear", None)[behavior.views]) == 5
    assert behavior.first_look(app.model.value, photo, "", -1, "linear", True) == gr.skip()


def test_the_way_to_the_atlas_is_offered_where_it_has_the_feature(app, atlas):
    offer = app.page.tab(FeaturesTab).offer

    assert offer(atlas, "tiny/vit", "1.mlp_act:3")["visible"]
    for listed, model_id, feature in [
        ("", "tiny/vit", "1.mlp_act:3"),
        (atlas, "tiny/deit", "1.mlp_act:3"),
        (atlas, "tiny/vit", "1.mlp_act:9999"),
        (atlas, "tiny/vit", "nothing"),
    ]:
        assert not offer(listed, model_id, feature)["visible"]


def test_leaving_the_model_box_as_it_was_changes_nothing_and_another_model_keeps_the_place(app, hub):
    maps = app.page.tab(MapsTab)
    first = answer(app, {"patch": "3,3"})
    set_as_shown = {"listed": first[maps.listed], "patch": "3,3", "feature": first[maps.feature]}

    assert answer(app, **set_as_shown) == gr.skip()
    other = answer(app, **set_as_shown, model_id="tiny/swin")
    assert other[maps.patch] == "12,12" and "tiny/swin" in other[app.facts]


def test_a_link_made_with_an_uploaded_photograph_says_that_it_is_not_in_it(app):
    maps = app.page.tab(MapsTab)

    values = opened(app, photo="own", patch="1,2")

    assert values[maps.photo] is None and values[maps.photo_key] == ""
    assert "uploaded photograph, which is not in it" in values[maps.status] and "3 layers" in values[app.facts]
    assert '"photo": "own"' in link_js({k.key: k.empty for k in app.page.kept})


def test_a_failed_run_leaves_no_old_picture_and_no_loading(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames, seen = tab.visualize(app.model.value, "9.mlp_act:1", "fast", 3, 0, me), []

    with pytest.raises(gr.Error):
        for values in frames:
            seen.append(values)

    assert seen[0][tab.live]["value"] is None and seen[0][tab.download]["value"] is None
    assert "got layer 9" in seen[-1][tab.status]


def test_a_stop_after_the_end_leaves_the_result(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames = tab.visualize(app.model.value, "1.mlp_act:1", "fast", 3, 0, me)
    values = next(v for v in frames if "after 3 steps" in v[tab.status])
    tab.stop(me)

    assert values[tab.download]["interactive"] and list(frames) == []


def test_a_cancelled_picture_carries_its_recipe_and_step_and_is_made_again(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "fast", 1000, 0, me)
    next(v for v in frames if v[tab.status].startswith("Step "))
    tab.stop(me)
    path = list(frames)[-1][tab.download]["value"]

    recipe, made = read_recipe(path), open_image(path)

    assert 1 <= recipe["stopped_after"] < recipe["config"]["steps"] == 1000
    again = np.asarray(replay(path).image, int)
    assert np.abs(again - np.asarray(made, int)).max() <= 1


def test_a_long_objective_is_refused_at_once_and_a_longish_one_gets_a_short_name(app):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    with pytest.raises(gr.Error, match="at most 64 terms; got 201"):
        list(tab.visualize(app.model.value, " + ".join(["1.mlp_act:3"] * 201), "fast", 2, 0, me))

    *_, last = tab.visualize(app.model.value, " + ".join(f"1.mlp_act:{i}" for i in range(40)), "fast", 2, 0, me)

    assert len(Path(last[tab.download]["value"]).name) < 130


def test_a_class_is_named_in_the_sentence_and_the_caption(app, vit):
    tab, me = app.page.tab(OptimizeTab), SimpleNamespace(session_hash="me")
    label = vit.labels[2]

    *_, last = tab.visualize(app.model.value, f'logit:"{label}"', "fast", 2, 0, me)

    assert f"**logit:2** ({label}) after 2 steps" in last[tab.status]
    assert last[tab.live]["label"] == f"Optimized picture: {label}"


def test_minutes_are_told_before_they_start(app, monkeypatch):
    tab = app.page.tab(OptimizeTab)
    monkeypatch.setattr(tab, "pace_job", lambda snapshot: 0.15)
    tab._paces.clear()

    assert tab.estimate(app.model.value, "fast", 0) == ""
    assert tab.estimate(app.model.value, "paper", 0) == "This takes about 8 minutes without a GPU."
    assert tab.estimate(app.model.value, "auto", 1000) == "This takes about 5 minutes without a GPU."


def test_an_empty_box_is_named(app):
    with pytest.raises(gr.Error, match="filter must be a whole number from -1; got nothing"):
        app.page.tab(BehaviorTab).show_view(app.model.value, str(builtin_paths()["coins"]), "", None, "linear")
