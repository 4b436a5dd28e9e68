"""The address bar: which components it keeps, under which key, and how each is read back."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PLACE = ("tab", "model", "feature")
OWN_PHOTO = "own"
"""In the link for a picture of one's own, which is not in it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A component that the address bar keeps."""

    key: str
    component: Any
    parse: Callable[[str | None], Any]
    """Text in the link, None if it has none -> value; what cannot be used gives the default."""
    empty: str = ""
    """Written for an empty value; nothing is written if this is empty too."""


def or_else(default: str) -> Callable[[str | None], str]:
    """Any text."""
    return lambda text: default if text is None else text


def one_of(choices: Iterable[str], default: str | None) -> Callable[[str | None], str | None]:
    """One of some words."""
    known = tuple(choices)
    return lambda text: text if text in known else default


def whole(default: int, digits: int = 9) -> Callable[[str | None], int]:
    """A whole number of at most so many digits."""
    return lambda text: int(text) if text and text.isdecimal() and len(text) <= digits else default


def link_js(keys: Mapping[str, str]) -> str:
    """Keeps the address bar in step with the components of these keys, {key: what is written for an empty value}.

    A Space's page is told as well, since the app lives in a frame there. Until the page has read its own link, nothing
    may write it: the request that opens the page sends the address bar as it is then. Another tab, model or feature is
    a place that the browser's Back returns to; other choices are not, nor is what the page fills in by itself.
    """
    return f"""(...values) => {{
  if (!window.vitvizOpened) return;
  const keys = {json.dumps(keys)}, query = new URLSearchParams();
  Object.entries(keys).forEach(([key, empty], i) => {{
    const value = values[i] ?? "";
    if (value !== "" || empty) query.set(key, value === "" ? empty : value);
  }});
  const before = new URLSearchParams(location.search);
  const differs = (key) => before.get(key) && before.get(key) !== query.get(key);
  const moved = window.vitvizLinked && {json.dumps(_PLACE)}.some(differs);
  window.vitvizLinked = query;
  history[moved ? "pushState" : "replaceState"](null, "", "?" + query.toString());
  if (window.parent !== window) window.parent.postMessage({{queryString: query.toString()}}, "*");
}}"""


OPENED_JS = f"""() => {{
  window.vitvizOpened = true;
  window.addEventListener("popstate", () => {{
    const now = new URLSearchParams(location.search), shown = window.vitvizLinked;
    const other = {json.dumps(_PLACE)}.filter((key) => now.get(key) !== shown?.get(key));
    const tab = document.querySelector(`button[data-tab-id="${{CSS.escape(now.get("tab"))}}"]`);
    if (shown && tab && other.join() === "tab") tab.click();
    else location.reload();
  }});
}}"""
"""Back to another tab opens it, with all that the visitor has made; another model or feature is read from the link."""
