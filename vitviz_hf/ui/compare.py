"""Before and after: the photograph that a picture started from, and the picture, on either side of a line."""

from collections.abc import Sequence

import gradio as gr

from vitviz_hf.images import open_image
from vitviz_hf.optimize.recipe import read_recipe
from vitviz_hf.templates import load_template, to_data_uri

COMPARE_CSS = """
#before-after:not(:has(figure)) { display: none; }
.compared { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
@media (max-width: 640px) { .compared { grid-template-columns: 1fr; } }
.compared figure { max-width: 480px; margin: 0; --at: 50%; }
.compared .both { position: relative; overflow: hidden; border-radius: 4px; }
.compared .both::after { content: ""; position: absolute; inset: 0 auto 0 calc(var(--at) - 1px); width: 2px;
  background: #fff; box-shadow: 0 0 0 1px #000; pointer-events: none; }
.compared img { display: block; width: 100%; margin: 0; border-radius: 0; }
.compared .after { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }
.compared input { display: block; width: 100%; height: 28px; margin: 6px 0; accent-color: var(--color-accent); }
.compared input:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 1px; }
.compared figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 8px; font-size: 0.85rem;
  overflow-wrap: anywhere; color: var(--body-text-color); }
"""
_MOVE = """
element.addEventListener("input", (event) => {
  event.target.closest("figure").style.setProperty("--at", `${event.target.value}%`);
});
"""


def comparison() -> gr.HTML:
    """Where `compare_html` is shown. Always visible: gradio can lose the value of what has just become so."""
    return gr.HTML(elem_id="before-after", js_on_load=_MOVE, padding=False)


def compare_html(paths: Sequence[str]) -> str:
    """Of PNGs with their recipes, those that started from real images; nothing if there are none."""
    recipes = {path: read_recipe(path) for path in paths}
    started = [
        {
            "start": f"data:image/jpeg;base64,{recipe['guide']['start']}",
            "of": "the collage of images" if recipe["guide"]["moments"] else "your photograph",
            "picture": to_data_uri(open_image(path), 95),
            "what": f"{recipe['address']}, seed {recipe['config']['seed']}",
        }
        for path, recipe in recipes.items()
        if recipe.get("guide", {}).get("start")
    ]
    return load_template(__package__, "compare.html").render(started=started) if started else ""
