"""The app as app.py starts it, in a real browser: its page, links, and what is refused."""

from urllib.request import urlopen

import pytest

from tests.ui.browsing import opened, text, value, visiting, wait_for_text, wait_until_idle
from vitviz_hf.ui.app import TABS

pytestmark = pytest.mark.slow


def test_the_first_page_shows_a_map_of_a_photograph(page, url):
    opened(page, url)

    assert "tiny/vit" in text(page, "#model-facts") and "3 layers, 4 x 4 patches" in text(page, "#model-facts")
    assert page.locator("#cards .card").count() == 12
    assert "Activation map" in page.locator("#map img").get_attribute("alt")


def test_a_link_reopens_the_same_view(page, url):
    opened(page, url, advanced=True)
    page.locator("#patch textarea, #patch input").first.fill("1,2")
    page.keyboard.press("Enter")
    wait_for_text(page, "#rank-status", "patch 1,2")
    page.wait_for_function("location.search.includes('patch=1%2C2')")
    card = page.locator("#cards .card").nth(3)
    feature = card.get_attribute("data-pick")
    card.click()
    wait_for_text(page, "#map-facts", feature)
    page.wait_for_function("f => new URLSearchParams(location.search).get('feature') === f", arg=feature)
    facts, link = text(page, "#map-facts"), page.url

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


def test_on_a_phone_all_tabs_are_in_the_bar_and_open(browser, url):
    with visiting(browser, viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True) as page:
        opened(page, url)
        bar = page.get_by_role("tab")
        assert bar.all_inner_texts() == [tab.title for tab in TABS]
        for by_touch in (True, False):
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
                assert page.evaluate("document.documentElement.scrollWidth") <= 392


def test_a_bad_id_is_explained(page, url):
    opened(page, url)
    for model_id, message in (
        ("tiny/nothing", "'tiny/nothing' is not on the Hub, or it is private"),
        ("<b>x</b>", "'<b>x</b>' is not a Hub id"),
        ("/etc", "'/etc' is not a Hub id"),
    ):
        page.locator("#model input").fill(model_id)
        page.locator("#model input").press("Enter")

        page.locator("[data-testid=toast-body]", has_text=message).wait_for()


def test_a_bad_file_is_explained(page, url, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"this is not a picture")
    opened(page, url)
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "bad.png")

    page.wait_for_selector("[data-testid=toast-body]")
    assert "not a supported image" in text(page, "[data-testid=toast-body]")


def test_the_server_gives_no_other_file(url):
    with pytest.raises(OSError, match=r"40[34]"):
        urlopen(f"{url}gradio_api/file=/etc/passwd", timeout=5)
