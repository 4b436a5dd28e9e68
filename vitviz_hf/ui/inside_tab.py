"""Tab Look inside: components, similarity, attention, norms, relevance, changes and labels of one picture or two.

The page asks for values by `server` functions of its own script and draws them; it tells the link what was chosen.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
from cachetools import LRUCache

from vitviz_hf import __version__
from vitviz_hf.images import palette_stops
from vitviz_hf.inside.relevance import METHODS
from vitviz_hf.sites import KINDS
from vitviz_hf.stream import builtin_paths
from vitviz_hf.templates import load_template
from vitviz_hf.ui.drawing import photographs_html
from vitviz_hf.ui.events import LATEST, open_photo, photo_input, said, shown
from vitviz_hf.ui.files import file_link
from vitviz_hf.ui.inside_values import InsideFacts, InsideJobs, Looked
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.maps_tab import MapsTab
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.picker import picker

SCRIPTS = Path(__file__).parent / "scripts"
MODES = {
    "pca": ("PCA", "The first three components of the patches as colors"),
    "similarity": ("Similarity", "Which patches are like this one"),
    "heads": ("Attention", "Where each head looks"),
    "norms": ("Norms", "How long the tokens are, and which outshine the others"),
    "relevance": ("Why", "Which patches speak for a class, a text or a feature"),
    "lens": ("Lens", "The label that each token would get after this layer"),
    "change": ("Change", "Turn a feature, a head or a patch off and see what it changes"),
}
_STATE = ("mode", "layer", "token", "head", "why", "method", "turn", "factor")
"""What the page keeps, in the order of its hidden boxes."""
_LOAD = """
const start = () => element.querySelector(".inside") &&
  import(new URL(SCRIPT, document.baseURI)).then((script) => script.start(element, server, trigger));
watch("value", start);
start();
"""
_MOST_BYTES = 200_000_000


class InsideTab:
    """The choice of pictures above; below what the page draws by itself."""

    key, title = "inside", "Look inside"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf = page, page.shelf
        jobs = InsideJobs(page.shelf)
        self.start_job, self.values_job = page.on_device(30, jobs.start), page.on_device(60, jobs.values)
        self._looked: LRUCache[str, Looked] = LRUCache(_MOST_BYTES, lambda looked: looked.pixels.nbytes)
        self._lock = Lock()
        self.about = gr.Markdown(
            "The picture of the first tab. Move over its patches, or use the arrow keys.", elem_id="inside-about"
        )
        link = f"{file_link(str(SCRIPTS / 'inside.js'))}?{__version__}"
        self.html = gr.HTML(
            elem_id="inside",
            label="Look inside",
            js_on_load=_LOAD.replace("SCRIPT", json.dumps(link)),
            server_functions=[_served(self.values)],
        )
        with gr.Accordion("A second picture, and what is read", open=False, elem_id="inside-more"):
            self._lay_out_choice()
        self._lay_out_state()
        self.looked = gr.State("")
        """Model and pictures that the page shows."""
        self.asked = [page.model, page.tab(MapsTab).photo, self.kind, self.second, self.upload, *self.state.values()]
        self.filled = [self.html, self.kind, self.looked]

    def _lay_out_choice(self) -> None:
        self.examples = picker("inside-examples", value=photographs_html(builtin_paths()), label="A second picture")
        with gr.Row():
            self.upload = photo_input(
                label="A second picture of your own",
                sources=["upload", "clipboard"],
                format="png",
                height=120,
                elem_id="inside-photo",
                alt_text="The second picture",
            )
            with gr.Column():
                self.kind = gr.Dropdown(
                    KINDS, value="resid", label="Kind", elem_id="inside-kind", info="resid is what a layer passes on"
                )
                self.alone = gr.Button("No second picture", elem_id="inside-alone")
        self.second = gr.Textbox("", visible="hidden", label="Second photograph", elem_id="inside-second")

    def _lay_out_state(self) -> None:
        defaults = {"mode": "pca", "layer": "", "method": METHODS[0], "factor": "0"}
        self.state = {
            name: gr.Textbox(defaults.get(name, ""), visible="hidden", label=name, elem_id=f"inside-{name}")
            for name in _STATE
        }

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps; a second picture of one's own is not in it."""
        state, photos = self.state, tuple(builtin_paths())
        parse: dict[str, Callable[[str | None], Any]] = {
            "mode": one_of(MODES, "pca"),
            "method": one_of(METHODS, METHODS[0]),
            "factor": or_else("0"),
        }
        return [
            Kept("inside-kind", self.kind, one_of(KINDS, "resid")),
            Kept("beside", self.second, one_of(photos, "")),
            *(Kept(f"inside-{name}", state[name], parse.get(name, or_else(""))) for name in _STATE),
        ]

    def connect(self) -> None:
        """Connect its events; the picture is that of the tab Your picture."""
        quiet: dict[str, Any] = {"api_visibility": "private"}
        private = {**LATEST, **quiet, "show_progress_on": [self.about]}
        picked = self.examples.click(
            None, None, self.second, js="() => window.vitvizPicked['inside-examples']", **quiet
        )
        # By the page: an upload that a handler of ours updates loses its gate.
        emptied = self.alone.click(None, None, [self.second, self.upload], js="() => ['', null]", **quiet)
        for event in (
            picked.then(None, None, self.upload, js="() => [null]", **quiet).then,
            emptied.then,
            self.upload.input,
            self.kind.input,
            self.html.submit,
        ):
            self.page.link(event(self.look, self.asked, self.filled, **private))
        told = self.html.input(None, None, list(self.state.values()), js="() => window.vitvizPicked.inside", **quiet)
        self.page.link(told)

    @shown
    def look(self, *asked: Any) -> Values:
        """The pictures, anew."""
        return self.opened(*asked)

    @shown
    def first_look(self, looked: str, *asked: Any) -> Values:
        """When the tab is opened, and shows other pictures or another model than those chosen meanwhile."""
        model_id, photo, kind, second, upload, *_ = asked
        if not photo or looked == _choice(model_id, photo, kind, second, upload):
            return gr.skip()
        return self.opened(*asked)

    def opened(self, *asked: Any) -> Values:
        """The tab with its pictures; what they hold, the page asks for.

        Args:
            asked: values of `self.asked`.
        """
        model_id, photo, kind, second, upload, *state = asked
        paths = [photo, upload or (str(builtin_paths()[second]) if second else None)]
        images = [open_photo(paths[0]), *(open_photo(p) for p in paths[1:] if p)]
        names = _names(photo, second, upload)
        snapshot = self.shelf.snapshot(model_id)
        looked, facts = self.start_job(snapshot, images, names[: len(images)], kind)
        with self._lock:
            self._looked[looked.key] = looked
        return {
            self.html: page_html(looked, facts, dict(zip(_STATE, state, strict=True))),
            self.kind: gr.update(choices=list(facts.kinds), value=looked.kind),
            self.looked: _choice(model_id, photo, looked.kind, second, upload),
        }

    def values(self, asked: list[Any]) -> str:
        """What the page asks for of pictures that this server has shown, as JSON; empty if they have gone.

        Args:
            asked: key of the pictures, name of the values, and what belongs to it.
        """
        match asked:
            case [str(key), str(name), *rest]:
                with self._lock:
                    looked = self._looked.get(key)
                if looked is None:
                    return ""
                try:
                    seen = looked.snapshot
                    looked = replace(looked, snapshot=self.shelf.snapshot(seen.model_id, seen.revision))
                    return json.dumps(self.values_job(looked, name, rest))
                except Exception as error:
                    return json.dumps({"error": said(error)})
        return ""


def page_html(looked: Looked, facts: InsideFacts, asked: dict[str, Any]) -> str:
    """What the script stands on."""
    last = len(facts.grids) - 1
    layer = whole(last)(str(asked["layer"]))
    state = {**asked, "layer": min(layer, last)}
    told = {
        "key": looked.key,
        "layers": [
            {"grid": grid, "prefix": n, "queries": queries}
            for grid, n, queries in zip(facts.grids, facts.prefixes, facts.query_grids, strict=True)
        ],
        "prefix": facts.names,
        "windows": facts.windows,
        "pictures": looked.names,
        "state": state,
        "kept": _STATE,
        "palettes": {"sequential": palette_stops((0, 1)), "diverging": palette_stops((-1, 1))},
        "whyHelp": "Write a class (logit:tabby or its number), a feature (5.mlp_act:10) or, for a model with a text "
        "tower, a text; the map shows which patches speak for it.",
        "turnHelp": "Write a feature, a head or a patch at a layer; times 0 turns it off. The picture shows the "
        "components of the patches after it.",
    }
    pictures = [{"name": name, "crop": crop} for name, crop in zip(looked.names, looked.crops, strict=True)]
    return load_template(__package__, "inside.html").render(
        facts=json.dumps(told),
        modes=[(key, *words) for key, words in MODES.items()],
        pictures=pictures,
        prefix=facts.names,
        last=last,
        state=state,
        methods=METHODS,
        example="logit:tabby, or 5.mlp_act:10",
    )


def _names(photo: str | None, second: str, upload: str | None) -> tuple[str, str]:
    known = {str(path): name.replace("_", " ") for name, path in builtin_paths().items()}
    return known.get(str(photo), "your picture"), "the second picture" if upload else second.replace("_", " ")


def _choice(*chosen: Any) -> str:
    return json.dumps(chosen)


def _served(method: Callable[[list[Any]], str]) -> Callable[[list[Any]], str]:
    """The method as a function: gradio marks it."""

    @wraps(method)
    def call(asked: list[Any]) -> str:
        return method(asked)

    return call
