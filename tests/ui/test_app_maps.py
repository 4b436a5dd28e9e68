"""The tab Your picture in a real browser."""

import pytest

from tests.ui.browsing import (
    SECONDS,
    barriers_in_every_look,
    opened,
    text,
    value,
    visiting,
    wait_for_text,
    wait_until_idle,
)
from vitviz_hf.ui.behavior_tab import BehaviorTab
from vitviz_hf.ui.maps_tab import MapsTab

pytestmark = pytest.mark.slow


def test_an_uploaded_picture_is_mapped_and_a_clicked_patch_is_ranked(page, url, photo, tmp_path):
    photo.save(tmp_path / "mine.png")
    opened(page, url, advanced=True)
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "mine.png")
    page.wait_for_function("location.search.includes('photo=own')")
    wait_until_idle(page)
    assert "the whole picture" in text(page, "#rank-status")

    box = page.locator("#crop .seen").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    wait_for_text(page, "#rank-status", "patch 0,3")

    assert value(page, "#patch") == "0,3"
    page.wait_for_function("location.search.includes('patch=0%2C3')")
    assert "photo=own" in page.url
    page.locator("#crop .whole").click()
    wait_for_text(page, "#rank-status", "the whole picture")


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
    wait_until_idle(page)
    assert "photo=coffee" in page.url


def test_of_two_quick_clicks_on_the_crop_the_last_counts(page, url):
    opened(page, url)
    box = page.locator("#crop .seen").bounding_box()
    for share in (0.1, 0.9):
        page.mouse.click(box["x"] + share * box["width"], box["y"] + share * box["height"])
        page.wait_for_timeout(50)

    wait_for_text(page, "#rank-status", "patch 3,3")
    wait_until_idle(page)
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


def test_a_card_chosen_with_the_keyboard_shows_its_large_map_on_the_screen(browser, url):
    with visiting(browser, reduced_motion="reduce") as page:
        opened(page, url)
        for width, n in ((1300, 9), (390, 8)):
            page.set_viewport_size({"width": width, "height": 800})
            card = page.locator("#cards .card").nth(n)
            feature = card.get_attribute("data-pick")
            card.focus()
            page.keyboard.press("Enter")

            wait_for_text(page, "#map-facts", feature)
            page.wait_for_function(MAP_ON_SCREEN)
            assert page.locator("#map img").get_attribute("alt").startswith(f"Activation map of {feature}: highest ")
            assert card.get_attribute("aria-pressed") == "true" and value(page, "#feature") == feature
            assert card.get_attribute("title").startswith(f"{feature} on the whole picture: ")
        assert page.locator("#cards .card").nth(0).locator("img").count() >= 2


def test_nothing_on_the_tabs_of_the_picture_and_of_views_shuts_anyone_out(page, url):
    opened(page, url, "?patch=1,2", advanced=True)
    for tab in (MapsTab, BehaviorTab):
        page.locator(f"[role=tab][data-tab-id={tab.key}]").click()
        page.wait_for_selector({"maps": "#cards .card", "views": "#views .thumbnail-item"}[tab.key])
        assert barriers_in_every_look(page) == []


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


def test_another_model_brings_its_own_layers(page, url):
    opened(page, url)
    page.locator("#model input").fill("tiny/dinov2-registers")
    page.locator("#model input").press("Enter")

    wait_for_text(page, "#model-facts", "tiny/dinov2-registers")
    page.wait_for_function("location.search.includes('dinov2-registers')")
