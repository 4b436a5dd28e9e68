"""The app as app.py starts it, in a real browser and through gradio_client."""

import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.ui.browsing import SECONDS, barriers, opened, text, value, visiting, wait_for_text, wait_until_idle
from vitviz_hf import load_model
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.words import name_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.stream import open_source
from vitviz_hf.ui.app import TABS
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.maps_tab import MapsTab

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_first_page_shows_a_map_of_a_photograph(page, url):
    opened(page, url)

    assert "tiny/vit" in text(page, "#model-facts") and "3 layers, 4 x 4 patches" in text(page, "#model-facts")
    assert page.locator("#cards .card").count() == 12
    assert "Activation map" in page.locator("#map img").get_attribute("alt")


def test_an_uploaded_picture_is_mapped_and_a_clicked_patch_is_ranked(page, url, photo, tmp_path):
    photo.save(tmp_path / "mine.png")
    opened(page, url, advanced=True)
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "mine.png")
    page.wait_for_timeout(2500)
    wait_for_text(page, "#rank-status", "the whole picture")

    box = page.locator("#crop .seen").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    wait_for_text(page, "#rank-status", "patch 0,3")

    assert value(page, "#patch") == "0,3"
    page.wait_for_function("location.search.includes('patch=0%2C3')")
    assert "photo=own" in page.url
    page.locator("#crop .whole").click()
    wait_for_text(page, "#rank-status", "the whole picture")


def test_a_link_reopens_the_same_view(page, url):
    opened(page, url, advanced=True)
    page.locator("#patch textarea, #patch input").first.fill("1,2")
    page.keyboard.press("Enter")
    wait_for_text(page, "#rank-status", "patch 1,2")
    page.wait_for_function("location.search.includes('patch=1%2C2')")
    page.locator("#cards .card").nth(3).click()
    page.wait_for_timeout(1500)
    feature, facts, link = value(page, "#feature"), text(page, "#map-facts"), page.url

    page.goto("about:blank")
    page.goto(link)
    wait_for_text(page, "#rank-status", "patch 1,2")
    wait_for_text(page, "#map-facts", feature)

    assert value(page, "#feature") == feature
    assert text(page, "#map-facts") == facts


def test_back_returns_to_the_tab_before_and_then_leaves(page, url):
    page.goto("about:blank")
    opened(page, url, "?tab=nonsense")
    page.wait_for_function("location.search.includes('tab=maps')")
    page.get_by_role("tab", name="Make a picture").click()
    page.wait_for_function("location.search.includes('tab=optimize')")
    page.go_back()
    wait_for_text(page, "#map-facts", "values")
    assert page.get_by_role("tab", name="Your picture").get_attribute("aria-selected") == "true"
    page.wait_for_function("location.search.includes('tab=maps')")
    wait_until_idle(page)
    page.go_back()
    assert page.url == "about:blank"


def test_back_and_forward_between_tabs_keep_what_was_made(page, url):
    opened(page, url, "?objective=2.mlp_act:7")
    page.wait_for_function("location.search.includes('tab=maps')")
    page.get_by_role("tab", name="Make a picture").click()
    page.wait_for_function("location.search.includes('tab=optimize')")
    page.locator("#steps input").fill("2")
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 2 steps")
    page.evaluate("window.same = true")

    page.go_back()
    page.locator("[role=tab][data-tab-id=maps][aria-selected=true]").wait_for()
    page.wait_for_function("location.search.includes('tab=maps')")
    page.go_forward()
    page.locator("[role=tab][data-tab-id=optimize][aria-selected=true]").wait_for()
    wait_until_idle(page)

    assert page.evaluate("window.same") and page.locator("#tray button").count() == 1
    assert "tab=optimize" in page.url and "after 2 steps" in text(page, "#optimize-status")


def test_a_patch_keeps_its_place_on_the_coarser_grid_of_a_later_layer(page, url):
    opened(page, url, "?model=tiny/swin&layer=0&patch=8,12")
    wait_for_text(page, "#rank-status", "Layer 0, mlp_act, patch 8,12")
    assert "16 x 16 to 8 x 8 patches" in text(page, "#model-facts")

    page.locator("#layer input[type=number]").fill("2")
    page.keyboard.press("Enter")
    wait_for_text(page, "#rank-status", "Layer 2, mlp_act, patch 4,6")
    page.locator("#layer input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_text(page, "#rank-status", "Layer 3, mlp_act, patch 4,6")

    page.wait_for_function("location.search.includes('patch=4%2C6')")


def test_the_models_own_guess_is_told_and_a_network_without_features_is_refused(page, url):
    opened(page, url)
    assert "The model's own guess:" in text(page, "#rank-status") and "%" in text(page, "#rank-status")

    page.locator("#model input").fill("tiny/resnet")
    page.keyboard.press("Enter")

    wait_for_text(page, "body", "'tiny/resnet' has no feed-forward blocks, so it has no features")


@pytest.fixture(scope="module")
def atlas(hub, tmp_path_factory):
    """An atlas of `tiny/vit` with words, on the Hub as `tiny/atlas`."""
    out = tmp_path_factory.mktemp("atlas") / "atlas"
    view = load_model("tiny/vit", device="cpu")
    made = make_atlas(view, open_source("builtin"), SearchConfig(k=3), out)
    name_features(made, load_model("tiny/clip", device="cpu"), ["cat", "dog", "bus"])
    hub.publish("datasets/tiny/atlas", out)
    return "tiny/atlas"


def tile_at(page):
    return page.evaluate("Number(document.activeElement.dataset.at)")


def test_a_layer_is_browsed_with_the_keyboard_and_a_link_restores_it(page, url):
    opened(page, url, "?tab=features&model=tiny/vit&layer=1")
    page.wait_for_selector("#grid .tile")
    page.wait_for_function("getComputedStyle(document.querySelector('#grid .all')).getPropertyValue('--sheet0')")
    assert page.locator("#grid .tile[tabindex='0']").count() == 1
    page.locator("#grid .tile[tabindex='0']").focus()
    cols = page.evaluate("Math.floor(document.querySelector('#grid .all').clientWidth / 52)")

    for key, at in [("ArrowDown", cols), ("ArrowRight", cols + 1), ("ArrowUp", 1), ("ArrowUp", 1), ("ArrowLeft", 0)]:
        page.keyboard.press(key)
        assert tile_at(page) == at
    page.keyboard.press("End")
    last = tile_at(page)
    assert last + 1 == int(page.locator("#grid .tiles").get_attribute("aria-label").split()[0])
    page.keyboard.press("ArrowLeft")
    name = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")

    wait_for_text(page, "#page", "Features whose scores go with its own")
    feature = value(page, "#page-feature")
    assert name.startswith(f"{feature}: highest score ") and feature in text(page, "#page")
    page.wait_for_function(f"location.search.includes('offset={last - 1}')")
    assert "site=1.mlp_act" in page.url
    neighbour = page.locator("#page .card").first.get_attribute("data-pick")
    page.locator("#page .card").first.click()
    page.wait_for_function("f => document.querySelector('#page h2').innerText.startsWith(f)", arg=f"{neighbour} of")
    page.wait_for_function("f => location.search.includes('shows=' + encodeURIComponent(f))", arg=neighbour)
    link = page.url

    page.goto("about:blank")
    page.goto(link)
    wait_for_text(page, "#page", f"{neighbour} of")
    page.wait_for_selector(f"#grid .tile[tabindex='0'][data-at='{last - 1}']")
    assert value(page, "#grid-site") == "1.mlp_act"


def test_a_grid_of_many_sheets_keeps_few_tiles_in_the_page_and_loads_as_it_is_scrolled(browser, url):
    context = browser.new_context(viewport={"width": 390, "height": 800}, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    opened(page, url, "?tab=features&model=builtin&site=11.mlp_act")
    page.wait_for_selector("#grid .tile")
    sheet = "k => getComputedStyle(document.querySelector('#grid .all')).getPropertyValue(`--sheet${k}`)"
    page.wait_for_function(sheet, arg=0)
    assert not page.evaluate(sheet, 8) and page.locator("#grid .tile").count() < 200
    assert page.evaluate("document.documentElement.scrollWidth") <= 392

    page.evaluate("document.querySelector('#grid .tiles').scrollTop = 1e6")

    page.wait_for_function(sheet, arg=12)
    assert page.locator("#grid .tile").count() < 200 and not page.evaluate(sheet, 5)
    page.wait_for_function("Number(new URLSearchParams(location.search).get('offset')) > 1000")
    live = page.locator("#grid .tiles").get_attribute("aria-label")
    page.locator("#grid-fires label").nth(1).click()
    wait_for_text(page, "#grid-facts", "fire on no patch")
    page.wait_for_function("l => document.querySelector('#grid .tiles').ariaLabel !== l", arg=live)
    dead = page.locator("#grid .tiles").get_attribute("aria-label")
    assert int(live.split()[0]) + int(dead.split()[0]) == 1536 and "fires=dead" in page.url
    with page.expect_download() as download:
        page.locator("#grid [data-file=csv]").click()
    assert download.value.suggested_filename == "11.mlp_act.csv"
    assert len(Path(download.value.path()).read_text().splitlines()) == 1537
    context.close()


def test_an_atlas_is_browsed_and_a_features_page_links_to_its_map_and_back(page, url, atlas):
    opened(page, url)
    page.get_by_role("tab", name="Features").click()
    page.wait_for_selector("#grid .tile")
    page.locator("#atlas input, #atlas textarea").first.fill(atlas)
    page.keyboard.press("Enter")
    wait_for_text(
        page, "#atlas-facts", "In use: statistics of 19 built-in photographs in 3 layers, for tiny/vit, from the Hub."
    )
    wait_for_text(page, "#grid-facts", "19 photographs of builtin")
    page.locator("#grid .tile").nth(2).click()
    wait_for_text(page, "#page", "Most activating images")
    feature = value(page, "#page-feature")

    assert feature in text(page, "#page")
    assert page.locator("#page .vitviz-page img").count() == 2 * 2 * 3
    page.wait_for_function("location.search.includes('shows=')")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    wait_for_text(page, "#page", feature)
    page.locator("#to-map").click()
    wait_for_text(page, "#map-facts", feature)
    page.locator("#to-page").click()
    wait_for_text(page, "#page", "Most activating images")
    page.locator("#find").click()  # answered after the page: one job at a time
    page.wait_for_function("document.querySelector('#features').innerText.includes(' sd')")
    page.locator("#find-word input, #find-word textarea").first.fill("cat")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#features').innerText.includes('cat')")
    page.locator("#features button").nth(0).click()
    page.wait_for_function("document.querySelector('#page').innerText.includes('Words: cat')")


@pytest.mark.parametrize(
    ("width", "scheme", "with_atlas"), [(1300, "light", True), (1300, "dark", False), (390, "dark", True)]
)
def test_nothing_on_the_tab_of_features_shuts_anyone_out(browser, url, atlas, width, scheme, with_atlas):
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(f"{url}?tab=features&shows=1.mlp_act:3" + (f"&atlas={atlas}" if with_atlas else ""))
    page.wait_for_selector("#grid .tile")
    wait_for_text(page, "#page", "Features whose scores go with its own")
    if with_atlas:
        page.locator("#find").click()
        page.wait_for_selector("#features .card")

    found = barriers(page)
    context.close()

    assert found == []


def test_a_search_of_photographs_shows_its_ranking_and_is_there_for_the_next_visitor(page, url, browser):
    opened(page, url, "?tab=features")
    wait_for_text(page, "#atlas-facts", "In use: ")
    page.locator("#search button").first.click()
    page.locator("#search-dataset input").fill("builtin")
    page.keyboard.press("Enter")
    page.get_by_label("the layer of Your picture").check()
    page.locator("#search-start").click()
    wait_for_text(page, "#search-status", "Done: 19 photographs were searched.")
    wait_for_text(
        page, "#atlas-facts", "In use: statistics of 19 built-in photographs in layer 2, for tiny/vit, made on"
    )
    wait_for_text(page, "#grid-facts", "of 2.mlp_act fire on 19 photographs of builtin")
    page.wait_for_selector("#grid .tile")
    page.locator("#atlas-zip").click()
    wait_for_text(page, "#atlas-file", "Download atlas.zip")

    context = browser.new_context()
    other = context.new_page()
    other.goto(url + "?tab=features")
    wait_for_text(other, "#atlas-facts", "statistics of 19 built-in photographs")
    other.wait_for_selector("#grid .tile")
    context.close()


def test_stored_results_are_shown_and_linked(page, url):
    opened(page, url, "?tab=experiments&result=late")
    wait_for_text(page, "#experiment-story", "narrow-sites of tiny/vit")

    assert "2 attn_q narrow 32" in " ".join(text(page, "#experiment-story").split())
    figure = page.locator("#experiment-story figure img").first
    figure.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#experiment-story figure img').naturalWidth > 300")
    assert figure.get_attribute("alt").startswith("Optimized pictures of each site") and "The papers say" in text(
        page, "#experiment-story"
    )
    assert "Cannot be told: a sample of 1 says nothing yet" in text(page, "#experiment-story .verdict")
    page.locator("#stored input").click()
    page.get_by_role("option", name="early").click()
    page.wait_for_function("document.querySelector('#experiment-story').innerText.includes('high-frequency')")
    page.wait_for_function("location.search.includes('result=early')")


def test_a_sample_of_an_experiment_runs_live(page, url):
    opened(page, url, "?tab=experiments")
    page.locator("#run-experiment").click()

    wait_for_text(page, "#experiment-status", "progression: done, a sample only.")
    assert "0.mlp_act:" in text(page, "#experiment-story") and "2.mlp_act:" in text(page, "#experiment-story")
    page.locator("#run-experiment").click()
    page.locator("#cancel-experiment").click()
    wait_for_text(page, "#experiment-status", "Cancelled.")


def test_experiments_run_over_the_api_on_a_dataset_of_the_hub(hub, url, labelled):
    hub.publish("datasets/tiny/labelled", labelled)
    client = Client(url, verbose=False)

    def run(*arguments):
        return client.predict(*arguments, api_name="/run_experiment")

    status, table, figures = run("tiny/vit", "background", "tiny/resnet", "tiny/labelled", 8)
    assert "background" in status and "tiny/resnet" in table and len(figures) == 2
    for arguments, message in [
        (("tiny/vit", "position", "", "", 8), "position needs a dataset with labels"),
        (("tiny/vit", "position", "", "/etc", 8), "is not a Hub id"),
        (("tiny/resnet", "token-mixing", "", "tiny/labelled", 8), "it has no transformer layers"),
    ]:
        with pytest.raises(AppError, match=message):
            run(*arguments)


def test_a_clicked_patch_shows_its_views_and_a_painted_object_is_blacked_out_and_grouped(page, url):
    opened(page, url, "?tab=views")
    page.locator("#show-views").click()
    wait_for_text(page, "#view-facts", "through filter")
    page.locator("#view-crop .seen").click(position={"x": 10, "y": 10})
    wait_for_text(page, "#view-facts", "Patch 0,0 through filter")

    assert page.locator("#views .thumbnail-item").count() == 1 + 4 + 1  # the picture, levels 0 to 3, the scale
    page.wait_for_function("location.search.includes('view=0%2C0')")
    page.get_by_label("tiles on the object").click()
    page.locator("#compare").click()
    wait_for_text(page, "body", "mark the object first")
    page.get_by_text("Mark the object").first.click()
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(2000)  # the editor draws its picture
    box = page.locator("#editor canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"])
    page.mouse.down()
    for i in range(15):
        page.mouse.move(box["x"] + (0.4 + 0.015 * i) * box["width"], box["y"] + (0.4 + 0.01 * i) * box["height"])
    page.mouse.up()
    page.wait_for_timeout(500)
    page.locator("#compare").click()
    page.wait_for_function("document.querySelector('#views').innerText.includes('salient')")
    page.locator("#group").click()
    wait_for_text(page, "#groups", "Patches after layer 3 of 3")
    assert page.locator("#groups circle").count() == 16
    page.locator("#groups g").nth(5).hover(force=True)
    assert page.locator("#groups g").nth(5).locator("text").text_content() == "patch 1,1"


def test_a_model_without_one_sequence_of_tokens_has_no_views(url):
    client = Client(url, verbose=False)
    picture = handle_file(str(ROOT / "docs" / "map-chelsea.png"))

    with pytest.raises(AppError, match="has no filters to show"):
        client.predict("tiny/resnet", picture, "", -1, api_name="/show_view")


def test_a_visitors_atlas_is_a_hub_id_not_a_path(page, url):
    opened(page, url)
    page.get_by_role("tab", name="Features").click()
    page.locator("#atlas input, #atlas textarea").first.fill("/etc")
    page.keyboard.press("Enter")

    wait_for_text(page, "body", "'/etc' is not a Hub id; write OWNER/NAME of a dataset made by")


def test_a_typed_feature_is_drawn(page, url):
    opened(page, url)
    page.locator("#feature textarea, #feature input").first.fill("2.attn_q:7")
    page.keyboard.press("Enter")

    wait_for_text(page, "#map-facts", "2.attn_q:7")


def test_of_two_quick_clicks_on_photographs_the_last_counts(page, url):
    opened(page, url)
    for i in (0, 4):
        page.locator("#examples button").nth(i).click()
        page.wait_for_timeout(50)

    page.wait_for_function("location.search.includes('photo=coffee')")
    page.wait_for_timeout(1500)
    assert "photo=coffee" in page.url


def test_of_two_quick_clicks_on_the_crop_the_last_counts(page, url):
    opened(page, url)
    box = page.locator("#crop .seen").bounding_box()
    for share in (0.1, 0.9):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + share * box["height"])
        page.wait_for_timeout(50)

    wait_for_text(page, "#rank-status", "patch 3,3")
    page.wait_for_timeout(1500)
    assert "patch 3,3" in text(page, "#rank-status")


def test_a_patch_is_chosen_with_the_keyboard_and_keeps_the_focus(page, url):
    opened(page, url, "?patch=1,1")
    page.locator("#crop .seen").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert text(page, "#crop .told") == "patch 2,3"  # the grid ends there
    page.keyboard.press("Enter")

    wait_for_text(page, "#rank-status", "patch 2,3")
    page.wait_for_function("document.activeElement.dataset.at === '2,3'")


MAP_ON_SCREEN = """() => {
  const box = document.querySelector("#map img").getBoundingClientRect();
  return box.top >= -1 && box.bottom <= innerHeight + 1;
}"""


def test_on_a_phone_a_chosen_photograph_brings_its_map_onto_the_screen(browser, url):
    context = browser.new_context(viewport={"width": 390, "height": 800}, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    opened(page, url)
    wait_until_idle(page)
    assert not page.evaluate(MAP_ON_SCREEN) and page.evaluate("scrollY") == 0

    page.locator("#examples button").nth(4).click()

    page.wait_for_function("location.search.includes('photo=coffee')")
    page.wait_for_function(MAP_ON_SCREEN)
    context.close()


TOP = "document.querySelector({!r}).getBoundingClientRect().top"


def test_on_a_phone_a_run_and_a_clicked_patch_bring_their_pictures_onto_the_screen(browser, url):
    with visiting(browser, leaves=True, viewport={"width": 390, "height": 800}, reduced_motion="reduce") as page:
        opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast&steps=1000")
        page.locator("#optimize").click()
        wait_for_text(page, "#optimize-status", "Step ")
        box = page.locator("#live").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800
        page.locator("#cancel").click()
        wait_for_text(page, "#optimize-status", "Cancelled.")

        opened(page, url, "?tab=views")
        wait_for_text(page, "#view-facts", "through filter")
        page.locator("#view-crop .seen").click(position={"x": 10, "y": 10})
        wait_for_text(page, "#view-facts", "Patch 0,0 through filter")
        page.wait_for_function(f"(top => top > -5 && top < 400)({TOP.format('#views')})")
        tile = page.locator("#views .thumbnail-item").first
        picture, caption = (tile.locator(part).bounding_box() for part in ("img", ".caption-label"))
        label = page.locator("#views label").first.bounding_box()
        assert caption["y"] >= picture["y"] + picture["height"] - 1
        assert label["y"] + label["height"] <= picture["y"] + 1


def test_a_double_click_on_optimize_makes_one_picture(page, url):
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast&steps=60")
    page.locator("#optimize").dblclick()
    wait_for_text(page, "#optimize-status", "after 60 steps")
    wait_until_idle(page)
    assert "after 60 steps" in text(page, "#optimize-status")
    assert page.locator("#tray button[data-pick]").count() == 1


@pytest.mark.parametrize("width", [1300, 390])
def test_a_card_chosen_with_the_keyboard_shows_its_large_map_on_the_screen(browser, url, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    opened(page, url)
    card = page.locator("#cards .card").nth(9)
    feature = card.get_attribute("data-pick")
    card.focus()
    page.keyboard.press("Enter")

    wait_for_text(page, "#map-facts", feature)
    page.wait_for_function(MAP_ON_SCREEN)
    assert page.locator("#map img").get_attribute("alt").startswith(f"Activation map of {feature}: highest ")
    assert card.get_attribute("aria-pressed") == "true" and value(page, "#feature") == feature
    assert card.get_attribute("title").startswith(f"{feature} on the whole picture: ")
    assert page.locator("#cards .card").nth(0).locator("img").count() >= 2
    context.close()


def test_the_first_page_is_small_and_shows_picture_map_and_six_cards(page, url):
    streamed, finished = {}, {}  # some requests stay open
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")

    def add(event):
        streamed[event["requestId"]] = streamed.get(event["requestId"], 0) + event["encodedDataLength"]

    session.on("Network.dataReceived", add)
    session.on("Network.loadingFinished", lambda e: finished.update({e["requestId"]: e["encodedDataLength"]}))
    opened(page, url)
    page.wait_for_timeout(1000)
    places = [
        page.locator(s).nth(i).bounding_box() for s, i in (("#crop img", 0), ("#map img", 0), ("#cards .card", 5))
    ]

    assert all(place["y"] + place["height"] <= 1000 for place in places)
    assert 300_000 < sum({**streamed, **finished}.values()) < 1_500_000


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_nothing_on_the_tabs_of_the_picture_and_of_views_shuts_anyone_out(browser, url, width, scheme):
    found = []
    with visiting(browser, viewport={"width": width, "height": 1000}, color_scheme=scheme) as page:
        opened(page, url, "?patch=1,2", advanced=True)
        for tab in (MapsTab, BehaviorTab):
            page.locator(f"[role=tab][data-tab-id={tab.key}]").click()
            page.wait_for_selector({"maps": "#cards .card", "views": "#views .thumbnail-item"}[tab.key])
            found += barriers(page)

    assert found == []


@pytest.mark.parametrize("by_touch", [True, False])
def test_on_a_phone_all_tabs_are_in_the_bar_and_open(browser, url, by_touch):
    with visiting(browser, viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True) as page:
        opened(page, url)
        bar = page.get_by_role("tab")
        assert bar.all_inner_texts() == [tab.title for tab in TABS]
        for i, tab in enumerate(TABS):
            box = bar.nth(i).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 24
            if by_touch:
                bar.nth(i).tap()
            else:
                bar.nth(i).focus()
                page.keyboard.press("Enter")
            page.wait_for_selector(f"[role=tab][data-tab-id={tab.key}][aria-selected=true]")
            page.wait_for_function(f"location.search.includes('tab={tab.key}')")


def test_a_picture_is_optimized_live_and_carries_its_recipe(page, url, tmp_path):
    opened(page, url)
    page.locator("#feature textarea, #feature input").first.fill("1.mlp_act:7")
    page.locator("#to-optimize").click()
    page.wait_for_selector("#optimize:visible")
    page.locator("#steps input").fill("40")
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 40 steps")

    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png")["address"] == "1.mlp_act:7"
    assert "tab=optimize" in page.url and "objective=1.mlp_act%3A7" in page.url


@pytest.mark.parametrize("width", [1300, 390])
def test_the_card_of_the_chosen_feature_opens_its_page_beside_the_picture(browser, url, width):
    with visiting(browser, viewport={"width": width, "height": 1000}) as page:
        opened(page, url, "?tab=optimize&objective=-1.mlp_act:7")
        page.locator("#objective-card .card").click()
        wait_for_text(page, "#objective-page", "1.mlp_act:7")
        assert value(page, "#objective") == "-1.mlp_act:7" and "tab=optimize" in page.url
        page.wait_for_function(
            "document.querySelector('#objective-page').getBoundingClientRect().top < innerHeight / 2"
        )

        neighbour = page.locator("#objective-page .card").nth(2)
        feature = neighbour.get_attribute("data-pick")
        neighbour.click()
        wait_for_text(page, "#objective-page h2", feature)
        assert value(page, "#objective") == feature
        page.wait_for_selector(f"#objective-card .card[data-pick='{feature}']")
        page.wait_for_function("f => new URLSearchParams(location.search).get('objective') === f", arg=feature)


def test_seeds_grow_side_by_side_and_the_tray_brings_one_back_with_its_files(page, url, tmp_path):
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast&steps=30&seed=3&pictures=3")
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 30 steps: seed 3 score")
    places = [page.locator(f"#live{ending} img").bounding_box() for ending in ("", "-2", "-3")]
    assert places[0]["x"] < places[1]["x"] < places[2]["x"] and len({place["y"] for place in places}) == 1
    assert page.locator("#live-4").count() == 0 and "pictures=3" in page.url

    with page.expect_download() as download:
        page.locator("#download-2").click()
    download.value.save_as(tmp_path / "b.png")
    assert read_recipe(tmp_path / "b.png")["config"]["seed"] == 4
    with page.expect_download() as download:
        page.locator("#growth").click()
    download.value.save_as(tmp_path / "growth.webp")
    assert Image.open(tmp_path / "growth.webp").size == (3 * 224, 224)

    assert page.locator("#tray button[data-pick]").count() == 3  # newest first: seed 5, 4, 3
    page.locator("#tray button[data-pick]").nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-2", state="detached")
    page.wait_for_function("document.querySelector('#live img')?.alt === 'Optimized picture of 1.mlp_act:7, seed 4'")
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_nothing_on_the_tabs_of_making_and_of_papers_shuts_anyone_out(browser, url, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast&steps=3&pictures=2")
    page.wait_for_selector("#objective-card .card")
    found = barriers(page)
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 3 steps")
    page.wait_for_selector("#optimize:not([disabled])")
    found += barriers(page)
    opened(page, url, "?tab=experiments&result=late")
    wait_for_text(page, "#experiment-story", "Cannot be told")
    found += barriers(page)
    sideways = page.evaluate("document.documentElement.scrollWidth")
    scrolls = page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('#experiment-story .scroll'))")
    context.close()

    assert found == []
    assert sideways <= width + 2 and scrolls


def test_a_tile_of_the_strip_opens_the_map_of_its_feature_in_a_new_tab(page, url):
    opened(page, url)
    tile = page.locator("#strip a").first
    tile.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#strip img').naturalWidth === 16")
    assert tile.locator("img").first.get_attribute("loading") == "lazy"
    before = page.url
    with page.expect_popup() as popup:
        tile.click()

    wait_for_text(popup.value, "#map-facts", "1.mlp_act:9")
    assert "photo=coins" in popup.value.url and "feature=1.mlp_act%3A9" in popup.value.url
    assert page.url == before


def test_a_long_run_shows_frames_and_is_cancelled_at_once(page, url):
    opened(page, url, "?tab=optimize&objective=2.mlp_act:7&preset=paper")
    page.locator("#steps input").fill("1000")
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "Step ")
    page.wait_for_selector("#live img")
    first = text(page, "#optimize-status")
    page.wait_for_function("t => document.querySelector('#optimize-status').innerText !== t", arg=first)

    assert page.locator("#optimize").is_disabled()  # a click would not be heard
    page.locator("#cancel").click()
    wait_for_text(page, "#optimize-status", "Cancelled. 2.mlp_act:7")  # what was made is kept by now
    n_steps = int(re.search(r"after (\d+)", text(page, "#optimize-status"))[1])
    assert int(re.search(r"Step (\d+)", first)[1]) < n_steps < 500
    page.locator("#preset label", has_text="auto").click()
    page.locator("#steps input").fill("3")  # the lane is free again
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 3 steps")


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("tiny/nothing", "is not on the Hub, or it is private"),
        ("<b>x</b>", "is not a Hub id"),
        ("/etc", "is not a Hub id"),
    ],
)
def test_a_bad_id_is_explained(model_id, message, page, url):
    opened(page, url)
    page.locator("#model input").fill(model_id)
    page.locator("#model input").press("Enter")

    page.wait_for_selector("[data-testid=toast-body]")
    assert message in text(page, "[data-testid=toast-body]")


def test_a_bad_file_is_explained(page, url, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"this is not a picture")
    opened(page, url)
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "bad.png")

    page.wait_for_selector("[data-testid=toast-body]")
    assert "not a supported image" in text(page, "[data-testid=toast-body]")


def test_another_model_brings_its_own_layers(page, url):
    opened(page, url)
    page.locator("#model input").fill("tiny/dinov2-registers")
    page.locator("#model input").press("Enter")

    wait_for_text(page, "#model-facts", "tiny/dinov2-registers")
    page.wait_for_function("location.search.includes('dinov2-registers')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser, url, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    opened(page, url)

    width = page.evaluate("document.documentElement.scrollWidth")
    context.close()

    assert width <= 392


def test_the_server_gives_no_other_file(url):
    with pytest.raises(OSError, match=r"40[34]"):
        urlopen(f"{url}gradio_api/file=/etc/passwd", timeout=5)


def test_the_presets_own_steps_are_used_when_none_are_given(page, url):
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast")
    page.locator("#optimize").click()

    wait_for_text(page, "#optimize-status", "after 80 steps")


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_a_photograph_is_dreamed_from_the_first_tab_and_compared_with_the_keyboard(
    browser, url, width, scheme, tmp_path
):
    with visiting(browser, viewport={"width": width, "height": 1000}, color_scheme=scheme) as page:
        opened(page, url, "?photo=chelsea&feature=1.mlp_act:7&steps=3")
        page.locator("#to-dream").click()
        page.wait_for_selector("#optimize:visible")
        page.wait_for_function("location.search.includes('preset=accent')")
        wait_for_text(page, "#preset-when", "Dream my photograph: the photograph in the tab Your picture")
        assert "Step" not in text(page, "#optimize-status") and not page.locator("#before-after").is_visible()
        page.locator("#optimize").click()
        wait_for_text(page, "#optimize-status", "after 3 steps")
        page.wait_for_selector("#before-after img.after")

        line = page.get_by_role("slider", name="Share of your photograph")
        line.focus()
        page.keyboard.press("ArrowRight")
        cut = "getComputedStyle(document.querySelector('#before-after .after')).clipPath"
        assert page.evaluate(cut) == "inset(0px 0px 0px 51%)"
        page.keyboard.press("Home")
        assert page.evaluate(cut) in ("inset(0px 0px 0px 0%)", "inset(0px)")
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "dream.png")
        assert read_recipe(tmp_path / "dream.png")["guide"]["start"]
        assert barriers(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width + 2

        page.get_by_label("fast", exact=True).check()
        wait_for_text(page, "#preset-when", "fast: as fourier")
        page.locator("#optimize").click()
        page.wait_for_selector("#before-after img", state="detached")
        wait_for_text(page, "#optimize-status", "after 3 steps")
        assert not page.locator("#before-after").is_visible()
        page.locator("#tray button[data-pick='1']").click()
        page.wait_for_selector("#before-after img.after")
