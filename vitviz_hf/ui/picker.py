"""Pictures that are picked by mouse or keyboard.

What was picked stands in the page, and the event's `js` puts it among the handler's ordinary inputs. The data of an
event would not do: of clicks that wait, the queue sends again the data of the first.
"""

from typing import Any

import gradio as gr

_PICK = """
const pick = (value) => {
  (window.vitvizPicked ??= {})[NAME] = value;
  trigger("click");
};
element.addEventListener("click", (event) => {
  const chosen = event.target.closest("[data-pick]");
  if (!chosen || event.detail > 1) return;
  element.querySelectorAll("[data-pick]").forEach((e) => e.setAttribute("aria-pressed", String(e === chosen)));
  pick(chosen.dataset.pick);
});
"""
_PICK_PATCH = """
let again = false;
const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
const within = (at, n) => Math.min(Math.max(at, 0), n - 1);
const size = (seen) => [Number(seen.dataset.rows), Number(seen.dataset.cols)];
const show = (seen, at) => {
  const [rows, cols] = size(seen), frame = seen.querySelector(".frame");
  frame.hidden = false;
  frame.style.left = `${100 * at[1] / cols}%`;
  frame.style.top = `${100 * at[0] / rows}%`;
  frame.style.width = `${100 / cols}%`;
  frame.style.height = `${100 / rows}%`;
  seen.dataset.at = at.join(",");
};
const place = (seen) => {
  const [rows, cols] = size(seen);
  return seen.dataset.at ? seen.dataset.at.split(",").map(Number) : [rows >> 1, cols >> 1];
};
element.addEventListener("click", (event) => {
  const seen = event.target.closest(".seen");
  if (!seen || event.detail > 1) return;
  const [rows, cols] = size(seen), box = seen.getBoundingClientRect();
  const at = event.detail === 0 ? place(seen) : [
    within(Math.floor((event.clientY - box.top) / box.height * rows), rows),
    within(Math.floor((event.clientX - box.left) / box.width * cols), cols),
  ];
  again = event.detail === 0;
  show(seen, at);
  pick(at.join(","));
});
element.addEventListener("keydown", (event) => {
  const seen = event.target.closest(".seen"), step = ARROWS[event.key];
  if (!seen || !step) return;
  event.preventDefault();
  const [rows, cols] = size(seen), from = place(seen);
  const at = [within(from[0] + step[0], rows), within(from[1] + step[1], cols)];
  show(seen, at);
  element.querySelector(".told").textContent = `patch ${at.join(",")}`;
});
watch("value", () => {
  if (again) element.querySelector(".seen")?.focus();
  again = false;
});
"""


def picker(name: str, patches: bool = False, **options: Any) -> gr.HTML:
    """HTML whose elements with `data-pick` can be picked; its event is `click`.

    Args:
        name: the component's `elem_id`.
        patches: a patch of the template crop.html is picked instead, as row,column.
    """
    script = _PICK.replace("NAME", repr(name)) + (_PICK_PATCH if patches else "")
    return gr.HTML(elem_id=name, js_on_load=script, **options)


_ASKER = """
let picked = {};
window.vitvizAsk = {
  moved: false,
  pick(name, value, gesture = true) {
    this.gesture ||= gesture;
    if (name === "photo") picked = {};
    if (name === "patch") delete picked.feature;
    if (name) picked[name] = value;
    trigger("click");
  },
  take(upload) {
    const taken = picked;
    picked = {};
    this.upload = upload?.path;
    this.moved = this.gesture && ("photo" in taken || "feature" in taken);
    this.gesture = false;
    return JSON.stringify(taken);
  },
};
"""


def asker() -> gr.HTML:
    """Its `click` asks for what all gestures of a tab want; `window.vitvizAsk` in the page keeps what was picked.

    A picture that is picked undoes the patch and feature that were picked before it, a patch the feature.
    """
    return gr.HTML(visible="hidden", js_on_load=_ASKER)


def asks_js(name: str = "", gesture: bool = True) -> str:
    """For an event's `js`: asks; with the name of what was picked, whose value is the event's input if it has one.

    Args:
        gesture: the visitor did it, so that its answer is brought into sight.
    """
    return f"(value = null) => {{ window.vitvizAsk.pick({name!r}, value, {str(gesture).lower()}); return []; }}"


def take_js() -> str:
    """For the `js` of the answer: its first input becomes what was picked; its second is an upload."""
    return "(_, upload, ...set) => [window.vitvizAsk.take(upload), upload, ...set]"


def taken_js() -> str:
    """For the `js` of what follows it, from and to the upload: empties it, unless there is a new one.

    The server never does: a component that a handler updates is made anew, without the gate of `photo_input`.
    """
    return "(upload) => [upload && upload.path !== window.vitvizAsk.upload ? upload : null]"


def pick_js(name: str, picker: str) -> str:
    """For the `js` of a picker's event: as `asks_js`, with what was picked there."""
    return f"() => {{ window.vitvizAsk.pick({name!r}, window.vitvizPicked[{picker!r}]); return []; }}"


def settled(name: str) -> gr.HTML:
    """Its `click` tells that an input of the component `name` was set: released, stepped, or typed and entered.

    Of a slider's own events, `release` does not come from the keyboard, and `input` comes all along the way.
    """
    script = f"""document.addEventListener("change", (event) => {{
  if (event.target.closest("#{name}")) trigger("click");
}});"""
    return gr.HTML(visible="hidden", js_on_load=script)


def keyboard_help() -> gr.HTML:
    """For who uses the keyboard: Tab closes the list of a box."""
    script = """document.addEventListener("keydown", (event) => {
  if (event.key !== "Tab" || !event.target.matches("[role=combobox]")) return;
  const escape = new KeyboardEvent("keydown", {key: "Escape", bubbles: true});
  setTimeout(() => event.target.dispatchEvent(escape));  // the key itself opens the list
});"""
    return gr.HTML(visible="hidden", js_on_load=script)


def picked_js(name: str, at: int) -> str:
    """For the event's `js`: puts what was picked in place of input `at`."""
    return f"(...inputs) => {{ inputs[{at}] = window.vitvizPicked?.[{name!r}] ?? inputs[{at}]; return inputs; }}"


def scroll_js(target: str, wanted: str = "true", block: str = "nearest") -> str:
    """For an event's `js`: brings a component into sight, where pictures and results stand below each other.

    Args:
        wanted: JavaScript that is true if it is to be done.
        block: where on the screen, as in `scrollIntoView`; `start` for what grows when its pictures come.
    """
    return f"""() => {{
  if (!({wanted})) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.querySelector({target!r})?.scrollIntoView({{block: {block!r}, behavior: still ? "auto" : "smooth"}});
}}"""
