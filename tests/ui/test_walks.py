"""Five visitors, on a desktop or a phone: what they do from the first look to what they take away.

A walk is a function of the page; further tabs are walked where a visitor comes by them.
"""

import pytest

from tests.ui.browsing import opened, text, value, visiting, wait_for_text
from vitviz_hf.images import open_image
from vitviz_hf.stream import builtin_paths

pytestmark = pytest.mark.slow
SIZES = {"desktop": {"width": 1300, "height": 1000}, "phone": {"width": 390, "height": 800}}
MAP_IS_SEEN = """() => {
  const box = document.querySelector("#map img")?.getBoundingClientRect();
  return box && box.top > -1 && box.bottom < innerHeight + 1;
}"""


def tab(page, key):
    page.locator(f"[role=tab][data-tab-id={key}]").click()
    page.wait_for_selector(f"[role=tab][data-tab-id={key}][aria-selected=true]")


def fill(page, selector, what):
    page.locator(f"{selector} input, {selector} textarea").first.fill(what)
    page.keyboard.press("Enter")


def visitor(page, url):
    """Uploads a photograph, reads the cards, clicks a patch, chooses a card."""
    opened(page, url)
    page.locator("#photo input[type=file]").set_input_files(builtin_paths()["coins"])
    page.wait_for_function("location.search.includes('photo=own')")
    page.wait_for_function(MAP_IS_SEEN)
    assert "the whole picture" in text(page, "#rank-status")
    assert page.locator("#photo img").count() == 0  # the drop area is free for the next one
    width, height = open_image(builtin_paths()["coins"]).size
    shown = page.locator("#crop .photo img").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(width / height, rel=0.02)

    seen = page.locator("#crop .seen")
    seen.scroll_into_view_if_needed()
    box = seen.bounding_box()
    seen.click(position={"x": 0.6 * box["width"], "y": 0.4 * box["height"]})
    wait_for_text(page, "#rank-status", "patch 1,2")
    card = page.locator("#cards .card").nth(4)
    feature = card.get_attribute("data-pick")
    card.click()
    wait_for_text(page, "#map-facts", feature)
    page.wait_for_function(MAP_IS_SEEN)
    assert "at patch 1,2" in text(page, "#map-facts")


def student(page, url):
    """Goes through the layers, makes a picture, stops it, keeps it."""
    opened(page, url, "?layer=0")
    slider = page.locator("#layer input[type=range]")
    for layer in (1, 2):
        slider.focus()
        page.keyboard.press("ArrowRight")
        wait_for_text(page, "#rank-status", f"Layer {layer}, mlp_act")
    feature = value(page, "#feature")
    page.locator("#to-optimize").click()
    page.wait_for_selector("#optimize:visible")
    assert value(page, "#objective") == feature
    page.locator("#preset label", has_text="paper").first.click()
    page.locator("#steps input").fill("1000")
    page.locator("#pictures label", has_text="4").click()  # so that it has not ended before it is stopped
    page.locator("#optimize").click()
    wait_for_text(page, "#optimize-status", "Step ")
    page.locator("#cancel").click()
    wait_for_text(page, "#optimize-status", "Cancelled.")
    wait_for_text(page, "#optimize-status", feature)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename.endswith(".png")


def researcher(page, url):
    """Types a model and an address, downloads the map, and opens the link elsewhere."""
    opened(page, url)
    fill(page, "#model", "tiny/dinov2-registers")
    wait_for_text(page, "#model-facts", "tiny/dinov2-registers")
    fill(page, "#feature", "2.attn_q:7")
    wait_for_text(page, "#map-facts", "2.attn_q:7")
    page.wait_for_function("location.search.includes('feature=2.attn_q%3A7')")
    with page.expect_download():
        page.locator("#map button[aria-label*='ownload'], #map a[download]").first.click()
    facts, link = text(page, "#map-facts"), page.url

    page.goto("about:blank")
    page.goto(link)
    wait_for_text(page, "#map-facts", "2.attn_q:7")
    assert text(page, "#map-facts") == facts and "tiny/dinov2-registers" in text(page, "#model-facts")


def keyboard_user(page, url):
    """Never touches a mouse."""
    opened(page, url)

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement?.matches(s)", selector):
                return
        raise AssertionError(f"{selector} is out of reach")

    tab_to("#model input")
    tab_to("[role=tab]")
    page.wait_for_function("!document.querySelector('[role=listbox]')")
    assert "tiny/vit" in text(page, "#model-facts")
    tab_to("#crop .seen")
    for key in ("ArrowUp", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    wait_for_text(page, "#rank-status", "patch 1,3")
    page.wait_for_function("document.activeElement.dataset.at === '1,3'")
    tab_to("#crop .whole")
    page.keyboard.press("Enter")
    wait_for_text(page, "#rank-status", "the whole picture")
    page.locator("#crop .seen").focus()
    tab_to("#examples button")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('photo=astronaut')")
    tab_to("#cards .card:nth-child(3)")
    feature = page.evaluate("document.activeElement.dataset.pick")
    page.keyboard.press("Enter")
    wait_for_text(page, "#map-facts", feature)


def clumsy_user(page, url):
    """Clicks twice, types nonsense, leaves boxes empty, goes back, reloads in the middle."""
    opened(page, url, advanced=True)
    page.locator("#examples button").nth(4).dblclick()
    page.locator("#crop .seen").dblclick(position={"x": 5, "y": 5})
    wait_for_text(page, "#rank-status", "patch 0,0")
    page.wait_for_function("location.search.includes('photo=coffee')")
    fill(page, "#patch", "77,x")
    wait_for_text(page, "#rank-status", "patch must be one row,column")
    assert page.locator("#cards .card").count() == 0
    fill(page, "#patch", "")
    wait_for_text(page, "#rank-status", "the whole picture")
    fill(page, "#feature", "fur")
    wait_for_text(page, "#map-facts", "is not a feature")
    assert page.locator("#map img").count() == 0 and page.locator("#cards .card").count() == 12
    fill(page, "#feature", "")
    fill(page, "#model", "no/such")
    wait_for_text(page, "#rank-status", "is not on the Hub")
    assert text(page, "#model-facts") == ""
    fill(page, "#model", "tiny/vit")
    wait_for_text(page, "#model-facts", "tiny/vit")
    page.locator("#layer input[type=number]").fill("")
    page.keyboard.press("Enter")
    tab(page, "optimize")
    fill(page, "#objective", "")
    wait_for_text(page, "#optimize-status", "is not an objective")
    page.goto(f"{url}?patch=1,1")
    wait_for_text(page, "#rank-status", "patch 1,1")
    page.locator("#examples button").nth(1).click()
    page.evaluate("window.isLeft = true")
    page.go_back()
    page.wait_for_function("!window.isLeft")  # Back reloads by itself, and of two reloads at once one is cut off
    page.reload()
    wait_for_text(page, "#map-facts", "values")
    assert page.locator("#cards .card").count() == 12


@pytest.mark.parametrize(
    ("walk", "size"),
    [
        (visitor, "desktop"),
        (visitor, "phone"),
        (student, "phone"),
        (researcher, "desktop"),
        (keyboard_user, "desktop"),
        (clumsy_user, "phone"),
    ],
)
def test_a_walk(browser, url, walk, size):
    options = {"viewport": SIZES[size], "has_touch": size == "phone", "reduced_motion": "reduce"}
    with visiting(browser, walk is clumsy_user, **options) as page:
        walk(page, url)

        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"] + 2
