"""What browser tests share: waiting, reading, and what a page may not do."""

import re
from contextlib import contextmanager

SECONDS = 90_000


def opened(page, url, query="", advanced=False):
    page.goto(url + query)
    if advanced:
        page.locator("#advanced button").first.click()
    page.wait_for_selector("#map img", state="attached")
    page.wait_for_function("document.querySelector('#map-facts').textContent.includes('values')")
    return page


def text(page, selector):
    return page.locator(selector).inner_text()


def value(page, selector):
    return page.locator(f"{selector} textarea, {selector} input").first.input_value()


def wait_for_text(page, selector, part):
    page.wait_for_function(
        "([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, part], timeout=SECONDS
    )


def wait_until_idle(page):
    """Until no answer is on its way, for half a second."""
    page.evaluate("window.idleSince = 0")
    page.wait_for_function(
        """() => {
          const busy = document.querySelector(".generating, .translucent, .pending, .eta-bar");
          const now = performance.now();
          if (busy || !window.idleSince) window.idleSince = busy ? 0 : now;
          return window.idleSince && now - window.idleSince > 500;
        }""",
        timeout=SECONDS,
    )


def barriers(page):
    """What axe finds serious or critical on the page at rest: faded text of what is on its way does not count."""
    from axe_playwright_python.sync_playwright import Axe

    # What is on its way between two colors has neither.
    page.add_style_tag(content="*, *::before, *::after { transition: none !important; animation: none !important; }")
    wait_until_idle(page)
    toasts = page.locator(".toast-body").all_inner_texts()
    assert not toasts, toasts
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    return [(v["id"], node["html"], node["failureSummary"]) for v in found for node in v["nodes"]]


LOOKS = ((1300, "light"), (390, "dark"))


def in_every_look(page):
    """The page on a desktop in light colors, then on a phone's width in dark ones, as (width, scheme)."""
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("dark => document.body.classList.contains('dark') === dark", arg=scheme == "dark")
        yield width, scheme


def barriers_in_every_look(page):
    """As `barriers`, and where the page is wider than the screen."""
    found = []
    for width, scheme in in_every_look(page):
        found += [(width, scheme, *barrier) for barrier in barriers(page)]
        if (whole := page.evaluate("document.documentElement.scrollWidth")) > width + 2:
            found.append((width, scheme, f"{whole} px wide"))
    return found


@contextmanager
def visiting(browser, leaves=False, **options):
    """A page that must log no error, until it is closed, and ask no other host for anything.

    Args:
        leaves: while answers are on their way, of which gradio's page says that they were cut off.
    """
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 1000}, **options})
    page = context.new_page()
    errors, elsewhere = [], []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on(
        "request", lambda r: elsewhere.append(r.url) if re.match(r"(https?|wss?)://(?!127\.0\.0\.1)", r.url) else None
    )
    page.set_default_timeout(SECONDS)
    try:
        yield page
        page.evaluate("0")  # what was logged so far has come in then
        logged = list(errors)
    finally:
        context.close()
    cut_off = "AbortError|Connection errored out" if leaves else "AbortError"
    errors = [e for e in logged if not re.search(cut_off, e)]
    assert not errors, errors
    assert not elsewhere, elsewhere
