"""The tab Features in a real browser."""

import re
from pathlib import Path

import pytest

from tests.ui.browsing import SECONDS, barriers_in_every_look, opened, text, value, wait_for_text
from vitviz_hf import Feature, Site, VisualizeConfig, load_model, visualize
from vitviz_hf.atlas.config import SearchConfig
from vitviz_hf.atlas.guiding import guide_from_atlas
from vitviz_hf.atlas.words import name_features
from vitviz_hf.atlas.write import make_atlas
from vitviz_hf.sites import file_stem
from vitviz_hf.stream import open_source

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("with_atlas", [True, False])
def test_nothing_on_the_tab_of_features_shuts_anyone_out(page, url, atlas, with_atlas):
    page.goto(f"{url}?tab=features&shows=1.mlp_act:3" + (f"&atlas={atlas}" if with_atlas else ""))
    page.wait_for_selector("#grid .tile")
    wait_for_text(page, "#page", "Features whose scores go with its own")
    if with_atlas:
        page.locator("#find").click()
        page.wait_for_selector("#features .card")

    assert barriers_in_every_look(page) == []


def test_tiles_of_optimized_pictures_tell_that_they_are_and_of_what(page, url, hub, tmp_path):
    view = load_model("tiny/vit", device="cpu")
    made = make_atlas(view, open_source("builtin"), SearchConfig(layers=(1,), kinds=("mlp_act",), k=9), tmp_path / "a")
    site = Site(1, "mlp_act")
    chosen = [Feature(site, int(i)) for i in made.table(site).top_scores[:, 0].argsort()[-2:]]
    for feature, preset in zip(chosen, ("aligned", "fast"), strict=True):
        config = VisualizeConfig.preset(preset, steps=1)
        guides = [guide_from_atlas(view, made, feature, config)] if preset == "aligned" else []
        picture = visualize(view, [feature], config, guides)[0]
        picture.save(made.folder / "visualizations" / f"{file_stem(feature)}.png")
    hub.publish("datasets/tiny/pictured", made.folder)

    opened(page, url, "?tab=features&model=tiny/vit&atlas=tiny/pictured&site=1.mlp_act")
    page.get_by_label("optimized picture").check()
    wait_for_text(page, "#grid-facts", "Optimized pictures: 2, of which 1 made from real images.")
    labels = [page.locator(f"#grid .tile[aria-label^='{feature}:']").get_attribute("aria-label") for feature in chosen]

    assert re.search(r"of patches; optimized picture, made from \d real images?$", labels[0]), labels
    assert labels[1].endswith("of patches; optimized picture")
    assert page.locator("#grid .tile[aria-label*='optimized']").count() == 2


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


def test_a_visitors_atlas_is_a_hub_id_not_a_path(page, url):
    opened(page, url)
    page.get_by_role("tab", name="Features").click()
    page.locator("#atlas input, #atlas textarea").first.fill("/etc")
    page.keyboard.press("Enter")

    wait_for_text(page, "body", "'/etc' is not a Hub id; write OWNER/NAME of a dataset made by")
