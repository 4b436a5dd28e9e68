"""The tab Make a picture in a real browser."""

import re

import pytest
from PIL import Image

from tests.ui.browsing import (
    barriers_in_every_look,
    opened,
    text,
    value,
    visiting,
    wait_for_text,
    wait_until_idle,
)
from vitviz_hf.optimize.recipe import read_recipe

pytestmark = pytest.mark.slow


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


def test_the_card_of_the_chosen_feature_opens_its_page_beside_the_picture(page, url):
    on_screen = "document.querySelector('#objective-page').getBoundingClientRect().top < innerHeight / 2"
    opened(page, url, "?tab=optimize&objective=-1.mlp_act:7")
    page.locator("#objective-card .card").click()
    wait_for_text(page, "#objective-page", "1.mlp_act:7")
    assert value(page, "#objective") == "-1.mlp_act:7" and "tab=optimize" in page.url
    page.wait_for_function(on_screen)

    neighbour = page.locator("#objective-page .card").nth(2)
    feature = neighbour.get_attribute("data-pick")
    neighbour.click()
    wait_for_text(page, "#objective-page h2", feature)
    assert value(page, "#objective") == feature
    page.wait_for_selector(f"#objective-card .card[data-pick='{feature}']")
    page.wait_for_function("f => new URLSearchParams(location.search).get('objective') === f", arg=feature)

    page.set_viewport_size({"width": 390, "height": 1000})
    page.evaluate("scrollTo(0, 0)")
    page.locator("#objective-card .card").click()
    page.wait_for_function(on_screen)


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


def test_nothing_on_the_tabs_of_making_and_of_papers_shuts_anyone_out(page, url):
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast&steps=3&pictures=2")
    page.wait_for_selector("#objective-card .card")
    assert barriers_in_every_look(page) == []
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "after 3 steps")
    page.wait_for_selector("#optimize:not([disabled])")
    assert barriers_in_every_look(page) == []
    opened(page, url, "?tab=experiments&result=late")
    wait_for_text(page, "#experiment-story", "Cannot be told")
    assert barriers_in_every_look(page) == []
    assert page.evaluate("(e => e.scrollWidth > e.clientWidth)(document.querySelector('#experiment-story .scroll'))")


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


def test_the_presets_own_steps_are_used_when_none_are_given(page, url):
    opened(page, url, "?tab=optimize&objective=1.mlp_act:7&preset=fast")
    page.locator("#optimize").click()

    wait_for_text(page, "#optimize-status", "after 80 steps")


def test_a_photograph_is_dreamed_from_the_first_tab_and_compared_with_the_keyboard(browser, url, tmp_path):
    with visiting(browser) as page:
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
        assert barriers_in_every_look(page) == []

        page.get_by_label("fast", exact=True).check()
        wait_for_text(page, "#preset-when", "fast: as fourier")
        page.locator("#optimize").click()
        page.wait_for_selector("#before-after img", state="detached")
        wait_for_text(page, "#optimize-status", "after 3 steps")
        assert not page.locator("#before-after").is_visible()
        page.locator("#tray button[data-pick='1']").click()
        page.wait_for_selector("#before-after img.after")
