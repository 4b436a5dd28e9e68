"""Tab Papers: stored results of the papers' experiments, and small samples of them live."""

import html
from collections.abc import Iterator
from threading import Event
from typing import Any

import gradio as gr

from vitviz_hf.config import IMAGENET
from vitviz_hf.errors import ConfigError, VitvizError
from vitviz_hf.ui.events import ONCE, Runs, shown, whole_number
from vitviz_hf.ui.files import keep_file
from vitviz_hf.ui.jobs import MAX_SAMPLE, SAMPLED, experiment_seconds
from vitviz_hf.ui.lane import Stopped, Waiting, unless_stopped
from vitviz_hf.ui.link import Kept, one_of
from vitviz_hf.ui.page import Page, Values
from vitviz_hf.ui.stored import Shown, stored_result, stored_results, story_html
from vitviz_hf.ui.visitor import token_for

MOST_MODELS = 4
_KIND = {"labelled": "needs a labelled dataset", "any": "any dataset, or builtin", "none": "needs no dataset"}


class ExperimentsTab:
    """Stored results and the controls of a live sample on the left, what the result tells on the right."""

    key, title = "experiments", "Papers"

    def __init__(self, page: Page) -> None:
        self.page, self.shelf, self.runs = page, page.shelf, Runs()
        self.job = page.in_frames(lambda _, name, *__: experiment_seconds(name), lambda *_: 1, page.jobs.experiment)
        names = stored_results()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.stored = gr.Dropdown(
                    names,
                    value=names[0] if names else None,
                    label="Stored results",
                    elem_id="stored",
                    info="tables and figures of whole runs",
                    visible=bool(names),
                )
                self._lay_out_sample()
            with gr.Column(scale=2, min_width=320):
                self.story = gr.HTML(elem_id="experiment-story", label="Result")

    def _lay_out_sample(self) -> None:
        gr.Markdown("### A small sample, live\nOn the model above, and others to compare with.")
        self.name = gr.Dropdown(
            [(f"{key}: {_KIND[e.dataset]}", key) for key, e in SAMPLED.items()],
            value="progression",
            label="Experiment",
            elem_id="experiment",
        )
        self.others = gr.Textbox(
            label="Other models",
            placeholder="microsoft/resnet-50, ...",
            elem_id="others",
            max_lines=1,
            info="Hub ids with commas between; for experiments that compare",
        )
        self.data = gr.Textbox(
            label="Dataset on the Hub",
            placeholder=f"such as {IMAGENET}",
            elem_id="dataset",
            max_lines=1,
            info="builtin: the built-in photographs",
        )
        self.limit = gr.Slider(4, MAX_SAMPLE, 16, step=4, label="Images to read", elem_id="limit")
        with gr.Row():
            self.start = gr.Button("Run", variant="primary", elem_id="run-experiment", min_width=120)
            self.cancel = gr.Button("Cancel", elem_id="cancel-experiment", min_width=120)
        self.status = gr.Markdown(elem_id="experiment-status")

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps."""
        names = stored_results()
        return [Kept("result", self.stored, one_of(names, names[0] if names else None))]

    def connect(self) -> None:
        """Connect its events."""
        self.page.link(self.stored.input(self.show_result, self.stored, self.story, api_visibility="private"))
        self.start.click(
            self.run_sample,
            [self.page.model, self.name, self.others, self.data, self.limit],
            [self.status, self.story],
            api_visibility="private",
            show_progress="hidden",
            **ONCE,
        )
        self.cancel.click(self.stop, None, self.status, queue=False, api_visibility="private")

    def shows(self, result: Shown) -> Values:
        """Claim, verdict, figures, tables, notes."""
        return {self.story: story_html(result, lambda data, name: keep_file(self.story, data, name))}

    @shown
    def show_result(self, result: str) -> Values:
        """A stored result."""
        return self.shows(stored_result(result))

    def moments(
        self, model_id: str, experiment: str, others: str, dataset: str, limit: float | None, stop: Event | None = None
    ) -> Iterator[Waiting | Shown | str]:
        """A run: how it waits, how far it is, and what it found.

        Raises:
            Stopped: `stop` was set.
            ConfigError: too many models.
        """
        ids = [model_id, *(part.strip() for part in (others or "").split(",") if part.strip())]
        if len(ids) > MOST_MODELS:
            raise ConfigError(f"at most {MOST_MODELS} models are compared here; got {len(ids)}.")
        n = whole_number("images to read", limit, 1)
        stop, dataset = stop or Event(), (dataset or "").strip()
        snapshots = unless_stopped(stop, lambda: [self.shelf.snapshot(i) for i in ids])
        frames = self.job(snapshots, experiment, dataset, n, token_for(dataset))
        for item in self.page.lane.run(frames, stop):
            yield item if isinstance(item, Waiting | Shown) else f"{experiment}: {_counted(*item)} done"

    @shown
    def run_sample(
        self, model_id: str, experiment: str, others: str, dataset: str, limit: float | None, request: gr.Request
    ) -> Iterator[Values]:
        """A small sample of an experiment, live."""
        with self.runs.one_for(request) as stop:
            yield {self.status: "Loading ...", self.story: ""}
            found = False
            try:
                for item in self.moments(model_id, experiment, others, dataset, limit, stop):
                    found = isinstance(item, Shown)
                    if isinstance(item, Shown):
                        yield {
                            self.status: f"**{experiment}**: done, a sample only. {item.verdict or ''}",
                            **self.shows(item),
                        }
                    else:
                        yield {self.status: str(item)}
            except Stopped:
                if not found:
                    yield {self.status: "Cancelled."}
            except VitvizError as error:
                yield {self.status: html.escape(error.for_visitor)}
                raise

    def stop(self, request: gr.Request) -> Any:
        """End the visitor's run, which may still be waiting."""
        return self.runs.stop(request)


def _counted(done: int, n: int) -> str:
    return f"{done} of {n}" if n else str(done)
