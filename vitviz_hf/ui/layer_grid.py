"""All features of a site as small tiles, with or without an atlas: its controls, and the part that runs in the page."""

import base64
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr

from vitviz_hf.atlas.store import Atlas
from vitviz_hf.models.gate import Snapshot
from vitviz_hf.models.view import list_sites
from vitviz_hf.sites import parse_site
from vitviz_hf.templates import load_template
from vitviz_hf.ui.events import one_word, whole_number
from vitviz_hf.ui.link import Kept, one_of, or_else, whole
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.sheets import COLUMNS, ROWS, AtlasTiles, Grid, Sheets, Tiles, made_tiles, photograph_tiles
from vitviz_hf.ui.shelf import Shelf
from vitviz_hf.ui.statistics import SORTS, Statistics, atlas_statistics, model_statistics

_SORTS = {
    "number": "index",
    "highest score": "maximum",
    "far above its mean": "unusual",
    "sparse: few patches active": "sparse",
}
_PICTURES = {"strongest patch": "patch", "optimized picture": "made"}
_FIRES = ("live", "dead")

GRID_CSS = """
#grid .tiles { position: relative; height: 60vh; min-height: 260px; overflow-y: auto; padding: 3px;
  border: 1px solid var(--border-color-primary); border-radius: 8px; }
#grid .all { position: relative; }
#grid .tile { position: absolute; padding: 0; border: 1px solid var(--background-fill-primary); border-radius: 4px;
  background-color: var(--background-fill-secondary); }
#grid .tile[aria-pressed=true] { outline: 3px solid var(--color-accent); outline-offset: -1px; z-index: 1; }
#grid .tile:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: -1px; z-index: 2; }
#grid .statistics { margin: 6px 0 0; font-size: 0.85rem; color: var(--body-text-color); }
#grid .statistics button { text-decoration: underline; min-width: 40px; min-height: 28px;
  padding: 2px; background: none; font-weight: normal; font-size: inherit; color: inherit; }
.cards.alone { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); }
.cards.alone .pictures { display: block; }
.cards.alone .pictures.made { display: grid; }
.card:not(.alone) .own + .own + .exemplars { grid-column: 1 / -1; grid-template-columns: repeat(4, 1fr); }
.vitviz-own { overflow-wrap: anywhere; }
.vitviz-own .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px; }
.vitviz-own figure { margin: 0; display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }
.vitviz-own figure img { width: 100%; display: block; border-radius: 4px; margin: 0; }
.vitviz-own figcaption { grid-column: 1 / -1; font-size: 12px; }
"""
_TILE = 52
"""Least side of a tile in the page."""
_JS = """
const STEPS = {ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: (cols) => -cols, ArrowDown: (cols) => cols,
  PageUp: (cols, page) => -page, PageDown: (cols, page) => page, Home: (c, p, n) => -n, End: (c, p, n) => n};
const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
let end = () => {};
const start = () => {
  end();
  const box = element.querySelector(".tiles");
  if (!box) return;
  const facts = JSON.parse(box.dataset.grid), n = facts.features.length, all = box.querySelector(".all");
  const together = facts.columns * facts.rows, tiles = new Map(), sheets = new Map();
  let at = facts.at, cols = 1, side = 1, gone = false, placed = false, resting = 0;
  const picked = (window.vitvizPicked ??= {}), closing = new AbortController(), until = {signal: closing.signal};
  all.replaceChildren();  // what the page keeps of the grid before it
  delete picked.offset;
  const fetched = async (name, ...asked) => {
    const text = await server[name]([facts.key, ...asked]);
    if (!text && !gone) { gone = true; trigger("submit"); }
    return text && decode(text);
  };
  const load = async (k) => {
    if (sheets.has(k)) return;
    sheets.set(k, "");
    const jpeg = await fetched("sheet", k).catch(() => sheets.delete(k) && null);
    if (!jpeg) return;
    sheets.set(k, URL.createObjectURL(new Blob([jpeg], {type: "image/jpeg"})));
    all.style.setProperty(`--sheet${k}`, `url(${sheets.get(k)})`);
  };
  const place = (tile, i) => {
    Object.assign(tile.style, {left: `${i % cols * side}px`, top: `${Math.floor(i / cols) * side}px`});
    tile.style.width = tile.style.height = `${side}px`;
  };
  const make = (i) => {
    const tile = document.createElement("button"), j = i % together, k = (i - j) / together;
    const [x, y] = [j % facts.columns / (facts.columns - 1), Math.floor(j / facts.columns) / (facts.rows - 1)];
    Object.assign(tile, {type: "button", className: "tile", tabIndex: i === at ? 0 : -1});
    tile.dataset.at = i;
    tile.title = `${facts.site}:${facts.features[i]}: highest score ${facts.maximum[i]}, ` +
      `${facts.unusual[i]} sd above its mean, active on ${+(100 * facts.active[i]).toPrecision(2)} % of patches` +
      (facts.told[i] && `; ${facts.told[i]}`);
    tile.setAttribute("aria-label", tile.title);
    tile.setAttribute("aria-pressed", String(picked.grid === `${facts.site}:${facts.features[i]}`));
    tile.style.background = `var(--sheet${k}) ${100 * x}% ${100 * y}% / ${100 * facts.columns}% ${100 * facts.rows}%`;
    place(tile, i);
    tiles.set(i, all.appendChild(tile));
  };
  const row = (y) => Math.round(y / side * 100) / 100;
  const seen = () => {
    const rows = [Math.floor(row(box.scrollTop)), Math.ceil(row(box.scrollTop + box.clientHeight))];
    return rows.map((r) => r * cols);
  };
  const draw = () => {
    if (!n || !box.clientWidth) return;
    cols = Math.max(1, Math.floor(all.clientWidth / LEAST));
    side = all.clientWidth / cols;
    all.style.height = `${Math.ceil(n / cols) * side}px`;
    if (!placed) box.scrollTop = Math.floor(at / cols) * side;
    placed = true;
    const [first, last] = seen(), from = Math.max(0, first - 3 * cols), to = Math.min(n, last + 3 * cols);
    for (const [i, tile] of tiles) {
      if ((i < from || i >= to) && i !== at) { tile.remove(); tiles.delete(i); } else place(tile, i);
    }
    for (let i = from; i < to; i++) if (!tiles.has(i)) make(i);
    if (!tiles.has(at)) make(at);
    for (let k = Math.floor(from / together); k * together < to; k++) load(k);
  };
  const move = (i) => {
    tiles.get(at)?.setAttribute("tabindex", -1);
    at = i;
    if (!tiles.has(at)) make(at);
    tiles.get(at).tabIndex = 0;
    picked.offset = at;
  };
  const rest = () => {
    const [first, last] = seen();
    if (!box.clientWidth) return;
    if (at < first || at >= last) move(Math.min(first, n - 1));
    draw();
    if (picked.offset !== undefined) trigger("input");
  };
  const scrolled = () => {
    requestAnimationFrame(draw);
    clearTimeout(resting);
    resting = setTimeout(rest, 300);
  };
  box.addEventListener("scroll", scrolled, until);
  box.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !event.target.closest(".tile")) return;
    event.preventDefault();
    const [first, last] = seen();
    const to = at + step(cols, Math.max(cols, last - first - 2 * cols), n);
    if (Math.abs(step(cols, 0, 0)) === cols && (to < 0 || to >= n)) return;
    move(Math.min(Math.max(to, 0), n - 1));
    tiles.get(at).focus();
    scrolled();
  }, until);
  box.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    box.querySelectorAll("[aria-pressed=true]").forEach((e) => e.setAttribute("aria-pressed", "false"));
    tile.setAttribute("aria-pressed", "true");
    move(Number(tile.dataset.at));
    picked.grid = `${facts.site}:${facts.features[at]}`;
    trigger("click");
  }, until);
  element.querySelectorAll("[data-file]").forEach((button) => button.addEventListener("click", async () => {
    const file = await fetched("statistics", button.dataset.file);
    if (!file) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file]));
    link.download = `${facts.site}.${button.dataset.file}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, until));
  const resized = new ResizeObserver(draw);
  resized.observe(box);
  end = () => {
    closing.abort();
    resized.disconnect();
    clearTimeout(resting);
    sheets.forEach((url) => url && URL.revokeObjectURL(url));
  };
  draw();
};
watch("value", start);
start();
""".replace("LEAST", str(_TILE))


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of a site, and of which sites something is."""

    sites: tuple[str, ...]
    statistics: Statistics
    patches: Tiles
    made: Tiles | None
    """None without an optimized picture."""


class LayerGrid:
    """The grid and its controls. What a tile opens, the tab says that it stands on."""

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.sheets = page, page.shelf, Sheets()
        self.look_job = page.on_device(60, SiteLook(page.shelf).look)
        with gr.Row():
            self.site = gr.Dropdown(
                [], label="Site: layer.kind", elem_id="grid-site", allow_custom_value=True, min_width=130
            )
            self.sort = gr.Dropdown(
                list(_SORTS.items()), value="index", label="Sort by", elem_id="grid-sort", min_width=150
            )
            self.fires = gr.Radio(_FIRES, value="live", label="Features", elem_id="grid-fires", min_width=130)
        self.pictures = gr.Radio(
            list(_PICTURES.items()), value="patch", label="Tiles show", elem_id="grid-pictures", visible=False
        )
        self.facts = gr.Markdown(elem_id="grid-facts")
        self.html = gr.HTML(
            elem_id="grid",
            label="Features",
            js_on_load=_JS,
            server_functions=[_served(self.sheet), _served(self.statistics)],
        )
        self.offset = gr.Number(0, precision=0, visible="hidden", label="Offset", elem_id="grid-offset")
        self.listed = gr.State("")
        """What the grid shows."""
        self.asked = [self.site, self.sort, self.fires, self.pictures, self.offset]
        self.shown = [self.site, self.sort, self.fires, self.pictures, self.offset, self.facts, self.html, self.listed]

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        return [
            Kept("site", self.site, or_else("")),
            Kept("offset", self.offset, whole(0)),
            Kept("sort", self.sort, one_of(SORTS, "index")),
            Kept("fires", self.fires, one_of(_FIRES, "live")),
        ]

    def values(self, snapshot: Snapshot, chosen: Atlas | None, asked: tuple[Any, ...], site: str) -> Values:
        """The grid of a site.

        Args:
            chosen: an atlas that was opened: its sites are offered, else all of the model.
            asked: of `self.asked`.
            site: where none is asked for.

        Raises:
            SiteError: there is no such site.
            ConfigError: an unknown order.
        """
        wanted, sort, fires, pictures, offset = asked
        found = self.look_job(snapshot, chosen, wanted or "", site)
        known, own = found.statistics, pictures == "made" and found.made
        live = one_word("fires", fires, _FIRES) == "live"
        grid = Grid(known, known.order(sort, live), own or found.patches)
        at = min(whole_number("offset", offset or 0), max(0, len(grid.order) - 1))
        told = grid.tiles.tell(grid.order.tolist())
        return {
            self.site: gr.update(choices=list(found.sites), value=str(known.site)),
            self.sort: sort,
            self.fires: fires,
            self.pictures: gr.update(visible=found.made is not None),
            self.offset: at,
            self.facts: _tell(known, live, told),
            self.html: _grid_html(grid, self.sheets.put(grid), at, told),
        }

    def sheet(self, asked: list[Any]) -> str:
        """A sheet of a grid that this server has shown, in base64; empty if there is none.

        Args:
            asked: key of the grid, number of the sheet.
        """
        match asked:
            case [str(key), int(number)]:
                return base64.b64encode(self.sheets.sheet(key, number)).decode()
        return ""

    def statistics(self, asked: list[Any]) -> str:
        """The statistics of a grid that this server has shown as a file, in base64; empty if there are none.

        Args:
            asked: key of the grid, csv or npz.
        """
        match asked:
            case [str(key), "csv" | "npz" as kind] if grid := self.sheets.grid(key):
                known = grid.statistics
                return base64.b64encode(known.to_npz() if kind == "npz" else known.to_csv().encode()).decode()
        return ""


def _served(method: Callable[[list[Any]], str]) -> Callable[[list[Any]], str]:
    """The method as a function: gradio marks it."""

    @wraps(method)
    def call(asked: list[Any]) -> str:
        return method(asked)

    return call


class SiteLook:
    """The job of a grid. On ZeroGPU it runs in a forked process."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def look(self, snapshot: Snapshot, chosen: Atlas | None, wanted: str, otherwise: str) -> Looked:
        """A site with its statistics and tiles.

        Args:
            chosen: an atlas; without one that in use for the model, and without any the built-in photographs.
            wanted: address of a site; empty for `otherwise`, or where that is missing the last one of its kind.

        Raises:
            SiteError: there is no such site.
        """
        view = self._shelf.view(snapshot)
        sites = tuple(map(str, chosen.sites if chosen else [s for s, _ in list_sites(view)]))
        same = [s for s in sites if s.partition(".")[2] == otherwise.partition(".")[2]]
        address = wanted or (otherwise if otherwise in sites else (same or sites)[-1])
        site = parse_site(address, None if chosen else view.kinds)
        atlas = chosen or self._shelf.atlas_for(snapshot, site)
        if atlas is None:
            reference = self._shelf.reference(view)
            known = model_statistics(view, reference, site)
            return Looked(sites, known, photograph_tiles(self._shelf, view, reference, site), None)
        known, made = atlas_statistics(atlas, site), made_tiles(atlas, site)
        return Looked(sites, known, AtlasTiles(atlas, site), AtlasTiles(atlas, site, made) if made else None)


def _tell(known: Statistics, live: bool, told: Sequence[str]) -> str:
    n, n_live = len(known.mean), int(known.fires.sum())
    which = (
        f"**{n_live:,}** of {n:,} features of {known.site} fire"
        if live
        else (f"**{n - n_live:,}** of {n:,} features of {known.site} fire on no patch")
    )
    made, real = sum(map(bool, told)), sum("real image" in text for text in told)
    pictures = f" Optimized pictures: {made:,}, of which {real:,} made from real images." if made else ""
    return f"{which} on {html.escape(known.told)}.{pictures} Arrow keys move, Enter opens a feature's page."


def _grid_html(grid: Grid, key: str, at: int, told: Sequence[str]) -> str:
    known = grid.statistics
    numbers = {
        name: [float(f"{x:.3g}") for x in values[grid.order].tolist()]
        for name, values in (("maximum", known.maximum), ("unusual", known.unusual), ("active", 1 - known.sparse))
    }
    facts = {
        "key": key,
        "site": str(known.site),
        "at": at,
        "columns": COLUMNS,
        "rows": ROWS,
        "features": grid.order.tolist(),
        "told": told,
        **numbers,
    }
    return load_template(__package__, "grid.html").render(
        facts=json.dumps(facts), site=str(known.site), n=len(grid.order)
    )
