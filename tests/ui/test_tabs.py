"""The tabs' handlers, called as gradio calls them, without a browser."""

from types import SimpleNamespace

import gradio as gr
import pytest

from vitviz_hf import activation_map, activations, open_image, parse_feature, to_pixels
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.app import TABS, App
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.experiments_tab import ExperimentsTab
from vitviz_hf.ui.features_tab import FeaturesTab
from vitviz_hf.ui.link import one_of, or_else, whole
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
    for values in (opened(app), app.model_facts(app.model.value, "mlp_act", 1)):
        assert set(values) <= known
    loaded = next(f for f in app.demo.fns.values() if f.targets and f.targets[0][1] == "load")
    assert set(opened(app)) <= set(loaded.outputs)
    assert set(maps.rank_outputs) <= set(loaded.outputs)


def test_a_clicked_place_is_the_patch_under_it(app):
    maps = app.page.tab(MapsTab)
    photo = str(builtin_paths()["chelsea"])
    click = SimpleNamespace(index=(95, 10))

    values = maps.pick_patch(app.model.value, photo, "mlp_act", 1, "score", "overlay", (4, 4, 100, 100), click)

    assert values[maps.patch] == "0,3" and "patch 0,3" in values[maps.status]
    assert values[maps.layout][:2] == (4, 4) and len(values[maps.gallery]) == 12


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

    assert maps.pick_upload(app.model.value, None, "mlp_act", 1, "score", "overlay") == {
        maps.photo_key: "",
        maps.patch: "",
    }


def test_a_run_that_is_stopped_says_so_and_another_visitors_goes_on(app):
    tab = app.page.tab(OptimizeTab)
    mine, other = (SimpleNamespace(session_hash=name) for name in ("mine", "other"))
    frames = tab.visualize(app.model.value, "1.mlp_act:3", "paper", 1000, 0, mine)

    assert next(frames)[tab.status] == "Loading the model ..."
    assert tab.stop(other) == gr.skip()
    assert next(frames)[tab.status].startswith("Step ")
    assert tab.stop(mine) == "Stopping ..."
    assert list(frames) == [{tab.status: "Cancelled."}]
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
    assert list(running) == [{tab.status: "Cancelled."}]


def test_mistakes_are_told_as_gradio_errors(app):
    with pytest.raises(gr.Error, match="has layers 0-2; got layer 9"):
        app.page.tab(MapsTab).map_feature(app.model.value, str(builtin_paths()["coins"]), "9.mlp_act:1", "overlay")
    with pytest.raises(gr.Error, match="is not a Hub id"):
        app.page.tab(FeaturesTab).open("/etc", "maximum")
    with pytest.raises(gr.Error, match="there is no stored result"):
        app.page.tab(ExperimentsTab).show_result("nothing")
