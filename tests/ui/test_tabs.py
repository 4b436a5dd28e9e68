"""The tabs' handlers, called as gradio calls them, without a browser."""

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
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.optimize_tab import OptimizeTab


@pytest.fixture(scope="module")
def app(tiny_folder):
    return App(str(tiny_folder("vit")), lambda _: lambda job: job, True)


def opened(app, **query):
    return app.open(SimpleNamespace(query_params=query))


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
    assert values[maps.kind]["value"] == "attn_q" and values[maps.layer]["value"] == 2
    assert values[maps.feature] == "1.mlp_act:4" and values[optimize.objective] == "-1.mlp_act:2"
    assert (values[optimize.preset], values[optimize.seed]) == ("paper", 7)
    assert (values[behavior.patch], values[behavior.filter]) == ("0,1", 3)
    assert odd[app.page.tab_key] == "maps" and odd[maps.photo_key] == "chelsea"
    assert odd[maps.kind]["value"] == "mlp_act" and odd[maps.layer]["value"] == 2  # 5, of three layers
    assert (odd[optimize.preset], odd[optimize.seed], odd[behavior.filter]) == ("auto", 0, -1)


def test_parsers_of_the_link():
    assert [or_else("a")(x) for x in (None, "", "b")] == ["a", "", "b"]
    assert [one_of(("a", "b"), "c")(x) for x in (None, "b", "x")] == ["c", "b", "c"]
    assert [whole(4)(x) for x in (None, "12", "-1", "1.5", "9" * 10)] == [4, 12, 4, 4, 4]


def test_every_handler_fills_components_that_its_event_names(app):
    known = set(app.demo.blocks.values())
    maps = app.page.tab(MapsTab)
    for values in (opened(app), app.describe(app.model.value, "mlp_act", 1)):
        assert set(values) <= known
    loaded = next(f for f in app.demo.fns.values() if f.targets and f.targets[0][1] == "load")
    assert set(opened(app)) <= set(loaded.outputs)
    assert set(maps.rank_outputs) <= set(loaded.outputs)


def asked(app, **changes):
    own = {"image": str(builtin_paths()["chelsea"]), "kind": "mlp_act", "layer": 1, "patch": "", "rank_by": "unusual"}
    return (app.model.value, *{**own, "style": "overlay", **changes}.values())


def test_a_picked_patch_is_ranked_and_every_card_shows_its_own_numbers(app, vit):
    maps = app.page.tab(MapsTab)

    values = maps.rank(*asked(app, patch="0,3"))

    assert values[maps.patch] == "0,3" and "patch 0,3" in values[maps.status]
    assert values[maps.grid] == (4, 4) and values[maps.cards].count("data-pick") == 12
    first = values[maps.ranked][0]
    told = f"{first['feature']} at patch 0,3: {first['score']:.3g}, {first['unusual']:+.1f} sd from the strongest"
    assert f'title="{told}' in values[maps.cards]
    assert told in values[maps.facts].replace("**", "")
    assert first["feature"] == values[maps.feature]
    ranked = [row["unusual"] for row in values[maps.ranked]]
    assert ranked == sorted(ranked, reverse=True) and max(ranked) < 10


def test_a_feature_of_another_layer_is_told_of_on_the_whole_picture(app):
    maps = app.page.tab(MapsTab)

    values = maps.redraw(*asked(app, patch="0,3"), "2.mlp_act:5")

    assert "2.mlp_act:5** on the whole picture" in values[maps.facts]


def test_the_map_and_its_sentence_are_of_the_feature(app, vit):
    maps, address = app.page.tab(MapsTab), "1.mlp_act:9"
    photo = str(builtin_paths()["coins"])

    values = maps.map_feature(app.model.value, photo, address, "heatmap")

    feature = parse_feature(address)
    acts = activations(vit, to_pixels(vit, open_image(photo)), [feature.site])[feature.site]
    own = activation_map(acts, feature)[0]
    assert f"values {own.min():.3g} to {own.max():.3g} on 4 x 4" in values[maps.facts]
    assert f"mean {own.mean():.3g}" in values[maps.facts]


def test_a_removed_picture_clears_the_patch_only(app):
    maps = app.page.tab(MapsTab)

    assert maps.pick_upload(*asked(app, image=None, patch="1,1")) == {maps.photo_key: "", maps.patch: ""}


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
        app.page.tab(FeaturesTab).open("/etc", "maximum", app.model.value)
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
    assert len(views_by_link[behavior.views]) == 5 and views_by_link[behavior.patch] == "1,2"
    assert len(features.first_look(atlas, "maximum", "", app.model.value)[features.gallery]) == 24
    assert features.first_look(atlas, "maximum", atlas, app.model.value) == gr.skip()
    assert "built-in photographs" in features.first_look("", "maximum", "", app.model.value)[features.panel.facts]
    assert len(behavior.first_look(app.model.value, photo, "", -1, "linear", None)[behavior.views]) == 5
    assert behavior.first_look(app.model.value, photo, "", -1, "linear", (4, 4, 1, 1)) == gr.skip()


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


def test_leaving_the_model_box_as_it_was_changes_nothing(app):
    maps = app.page.tab(MapsTab)
    asked = [app.model.value, str(builtin_paths()["coins"]), "mlp_act", 1, "", "score", "overlay", None]

    assert app.choose(app.model.value, *asked) == gr.skip()
    assert app.choose("another", *asked)[maps.cards].count("data-pick") == 12


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
    with pytest.raises(gr.Error, match="layer must be a whole number from 0; got nothing"):
        app.page.tab(MapsTab).rank(
            app.model.value, str(builtin_paths()["coins"]), "mlp_act", None, "", "score", "overlay"
        )
