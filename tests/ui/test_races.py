"""Gestures while an answer is on its way: the last one of each sort counts, and nothing of an earlier one stays."""

import time

import pytest

from tests.ui.browsing import text, value, visiting, wait_for_text
from vitviz_hf.stream import builtin_paths
from vitviz_hf.ui.app import _CSS, build
from vitviz_hf.ui.jobs import Jobs
from vitviz_hf.ui.stored import results_folder

pytestmark = pytest.mark.slow
SLOW = 0.4


@pytest.fixture(scope="module")
def slow(hub):
    """The app on `tiny/vit` with a ranking that takes its time."""
    quick = Jobs.rank

    def rank(*args):
        time.sleep(SLOW)
        return quick(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "rank", rank)
        demo = build("tiny/vit")
        served = [*{str(path.parent) for path in builtin_paths().values()}, str(results_folder())]
        options = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "css": _CSS}
        _, address, _ = demo.launch(**options, allowed_paths=served)
        yield address
        demo.close()


@pytest.fixture(scope="module")
def page(browser, slow):
    with visiting(browser) as page:
        for query in ("?layer=1&model=tiny/deit", "?layer=1"):  # both models are loaded then
            page.goto(slow + query)
            wait_for_text(page, "#map-facts", "values")
        page.locator("#advanced button").first.click()
        yield page


def example(page):
    page.locator("#examples button").nth(4).click()


def upload(page):
    page.locator("#photo input[type=file]").set_input_files(builtin_paths()["coins"])
    page.wait_for_selector("#photo img")


def patch(page):
    page.evaluate("document.querySelector('#crop .seen').scrollIntoView({block: 'center'})")
    box = page.locator("#crop .seen").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])


def typed_patch(page):
    page.locator("#patch input, #patch textarea").first.fill("1,2")
    page.keyboard.press("Enter")


def whole(page):
    page.locator("#crop .whole").click()


def layer(page):
    page.locator("#layer input[type=number]").fill("2")
    page.keyboard.press("Enter")


def kind(page):
    page.locator("#kind input").click()
    page.get_by_role("option", name="resid", exact=True).click()


def order(page):
    page.get_by_label("plain score").click()


def card(page):
    page.locator("#cards .card").nth(5).click()


def typed_feature(page):
    page.locator("#feature input, #feature textarea").first.fill("0.attn_q:3")
    page.keyboard.press("Enter")


def style(page):
    page.get_by_label("heatmap").click()


def model(page):
    page.locator("#model input").fill("tiny/deit")
    page.keyboard.press("Enter")


DOES = {
    example: ("photo", "coffee"),
    upload: ("photo", "own"),
    patch: ("patch", "0,3"),
    typed_patch: ("patch", "1,2"),
    whole: ("patch", ""),
    layer: ("layer", "2"),
    kind: ("kind", "resid"),
    order: ("rank_by", "most strongly"),
    card: ("feature", None),
    typed_feature: ("feature", "0.attn_q:3"),
    style: ("style", None),
    model: ("model", "tiny/deit"),
}
"""Gesture -> what it sets, and to what."""
_CLEARS = {example: ("patch",), upload: ("patch",)}


def settle(page):
    """Until nothing has changed for longer than an answer takes."""
    page.wait_for_function(
        """(quiet) => {
          const now = location.search + document.querySelector("#rank-status").innerText
            + document.querySelector("#map-facts").innerText + document.querySelector("#crop").innerHTML.length;
          if (now !== window.seenLast) [window.seenLast, window.seenAt] = [now, performance.now()];
          return performance.now() - window.seenAt > quiet;
        }""",
        arg=3000 * SLOW,
    )


def shown(page):
    """What the page shows, from its sentences and pictures and not from its boxes."""
    status, facts = text(page, "#rank-status"), text(page, "#map-facts")
    seen = page.locator("#crop .seen")
    first = status.split(":")[0]
    return {
        "photo": page.evaluate("new URLSearchParams(location.search).get('photo')"),
        "patch": seen.get_attribute("data-at"),
        "told": first,
        "rank_by": "most strongly" if "most strongly" in status else "unusual",
        "feature": facts.split(" ")[0],
        "map": page.locator("#map img").get_attribute("alt").split(":")[0] + ":",
        "model": text(page, "#model-facts").split(" ")[0].rstrip(":"),
        "frame": seen.get_attribute("aria-label"),
    }


def is_one_state(page, wanted):
    """Whether all parts of the page tell of one state, and it is the wanted one."""
    found = shown(page)
    where = f"patch {found['patch']}" if found["patch"] else "the whole picture"
    assert found["told"].endswith(where), found
    assert value(page, "#patch") == found["patch"] and value(page, "#feature") == found["feature"], found
    assert f"Activation map of {found['feature'].split(':')[0]}" in found["map"], found
    for name, what in wanted.items():
        if name in ("layer", "kind"):
            assert what in found["told"].replace(",", "").split(), (name, what, found)
        elif name != "style" and what is not None:
            assert found[name] == what, (name, what, found)


PAIRS = [(example, later) for later in (upload, patch, typed_patch, layer, card, model)]
PAIRS += [(earlier, example) for earlier in (upload, patch, typed_patch, kind, typed_feature)]
PAIRS += [(order, card), (patch, layer), (upload, patch), (typed_patch, patch), (layer, whole), (card, style)]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda gesture: gesture.__name__)
def test_the_last_gesture_wins(page, first, second):
    address = page.locator("#cards .card").nth(5).get_attribute("data-pick")

    first(page)
    page.wait_for_timeout(60)
    second(page)
    if second is model:
        wait_for_text(page, "#model-facts", "tiny/deit")
    settle(page)

    wanted = dict([DOES[first], DOES[second]])
    for cleared in _CLEARS.get(second, ()):
        wanted[cleared] = ""
    if second is card:
        wanted["feature"] = address
    elif first in (card, typed_feature):
        wanted["feature"] = None  # a new ranking brings its own
    is_one_state(page, wanted)


@pytest.mark.parametrize(
    ("second", "third", "wanted"),
    [
        (example, patch, {"photo": "coffee", "patch": "0,3"}),
        (patch, example, {"photo": "coffee", "patch": ""}),
        (typed_feature, patch, {"photo": "own", "patch": "0,3", "feature": None}),
    ],
)
def test_of_gestures_that_wait_a_later_one_undoes_what_it_must(page, second, third, wanted):
    upload(page)
    settle(page)
    order(page)
    page.get_by_label("unusual for photographs").click()
    page.wait_for_timeout(60)
    second(page)
    third(page)
    settle(page)

    is_one_state(page, wanted)
    if second is typed_feature:
        assert shown(page)["feature"] != "0.attn_q:3"


def test_after_a_failure_the_gesture_that_waits_is_answered(page):
    page.locator("#patch input, #patch textarea").first.fill("nonsense")
    page.keyboard.press("Enter")
    example(page)
    settle(page)
    assert page.locator("#cards .card").count() == 12
    is_one_state(page, {"photo": "coffee", "patch": ""})


def test_a_failure_leaves_no_old_result(page):
    page.locator("#patch input, #patch textarea").first.fill("9,9")
    page.keyboard.press("Enter")
    wait_for_text(page, "#rank-status", "9,9 is outside the grid")
    assert page.locator("#cards .card, #map img, #bar .bar, #crop .seen").count() == 0
    assert text(page, "#map-facts") == "" and page.locator("#crop .photo img").count() == 1
    page.locator("#crop .ask").click()  # the picture without a frame asks for itself
    wait_for_text(page, "#rank-status", "the whole picture")
    assert page.locator("#cards .card").count() == 12
