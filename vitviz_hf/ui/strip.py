"""A strip of optimized pictures from the first layer to the last. Static files: nothing is computed for it."""

import json
from typing import Any
from urllib.parse import urlencode

from vitviz_hf.sites import parse_feature
from vitviz_hf.templates import load_template
from vitviz_hf.ui.files import file_link
from vitviz_hf.ui.stored import results_folder

STRIP_CSS = """
.strip h3 { margin: 0.8rem 0 0.3rem; }
.strip ol { list-style: none; margin: 0; padding: 3px; display: grid; gap: 6px;
  grid-template-columns: repeat(8, minmax(0, 112px)); }
.strip li { margin: 0 !important; padding: 0; }
@media (max-width: 700px) { .strip ol { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
.strip a { display: block; color: var(--body-text-color); font-size: 0.75rem; text-decoration: none;
  overflow-wrap: anywhere; }
.strip a:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 1px; }
.strip a:hover { text-decoration: underline; }
.strip .part { position: relative; display: block; overflow: hidden; aspect-ratio: 1; margin-bottom: 2px; }
.strip .part img { position: absolute; max-width: none; height: auto; margin: 0; }
"""


def strip_html() -> str:
    """The strip that `make results` made; empty if there is none."""
    folder = results_folder() / "story"
    if not (folder / "story.json").is_file():
        return ""
    facts = json.loads((folder / "story.json").read_text("utf-8"))
    layers = [
        {
            "layer": row["layer"],
            "caption": row["caption"],
            "sheet": file_link(str(folder / row["sheet"])),
            "tiles": [tile | {"link": link(facts["model"]["model_id"], tile)} for tile in row["tiles"]],
        }
        for row in facts["layers"]
    ]
    return load_template(__package__, "strip.html").render(facts=facts, layers=layers)


def link(model_id: str, tile: dict[str, Any]) -> str:
    """The feature's map on the photograph that excites it most."""
    site = parse_feature(tile["feature"]).site
    return "?" + urlencode(
        {
            "tab": "maps",
            "model": model_id,
            "photo": tile["photograph"],
            "kind": site.kind,
            "layer": site.layer,
            "feature": tile["feature"],
        }
    )
