"""Tab Experiments: stored results of the papers' experiments, and small samples of them live."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import gradio as gr
from PIL import Image

from vitviz_hf.config import IMAGENET
from vitviz_hf.experiments import EXPERIMENTS
from vitviz_hf.ui.common import Gpu, shown
from vitviz_hf.ui.jobs import MAX_SAMPLE, Jobs, Shown, experiment_seconds, stored_result, stored_results

_KIND = {"labelled": "needs a labelled dataset", "any": "any dataset, or builtin", "none": "needs no dataset"}


@dataclass(frozen=True, slots=True)
class ExperimentsTab:
    """The components that a link restores."""

    stored: gr.Dropdown
    result: list[Any]
    connect: Callable[[Callable[[Any], Any]], None]
    show: Callable[[str], list[Any]]


def build_experiments_tab(jobs: Jobs, model: gr.Dropdown, gpu: Gpu) -> ExperimentsTab:
    """Lay the tab out; events are connected by `connect(after)`."""
    names = stored_results()
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            stored = gr.Dropdown(
                names, value=names[0] if names else None, label="Stored results", elem_id="stored",
                info="made by vitviz experiment", visible=bool(names),
            )  # fmt: skip
            gr.Markdown("### A small sample, live\nOn the model above, and others to compare with.")
            name = gr.Dropdown(
                [(f"{key}: {_KIND[e.dataset]}", key) for key, e in EXPERIMENTS.items()], value="progression",
                label="Experiment", elem_id="experiment",
            )  # fmt: skip
            others = gr.Textbox(
                label="Other models", placeholder="microsoft/resnet-50, ...", elem_id="others", max_lines=1,
                info="Hub ids with commas between; for experiments that compare",
            )  # fmt: skip
            data = gr.Textbox(
                label="Dataset on the Hub", placeholder=f"such as {IMAGENET}", elem_id="dataset", max_lines=1,
                info="builtin: the built-in photographs",
            )  # fmt: skip
            limit = gr.Slider(4, MAX_SAMPLE, 16, step=4, label="Images to read", elem_id="limit")
            with gr.Row():
                start = gr.Button("Run", variant="primary", elem_id="run-experiment", min_width=120)
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel-experiment", min_width=120)
            status = gr.Markdown(elem_id="experiment-status")
        with gr.Column(scale=2, min_width=320):
            gallery = gr.Gallery(
                label="Figures", columns=1, height="auto", elem_id="experiment-figures", interactive=False,
                object_fit="contain", format="png", buttons=["fullscreen", "download"],
            )  # fmt: skip
            table = gr.Markdown(elem_id="experiment-table")
    job = gpu(lambda _, name, *__: experiment_seconds(name))(jobs.experiment)
    running: dict[str, Event] = {}

    def parts(result: Shown) -> list[Any]:
        pictures = [(Image.open(io.BytesIO(data)), title) for title, data in result.figures.items()]
        return [result.text, pictures]

    def show(name: str) -> list[Any]:
        return parts(stored_result(name))

    @shown
    def show_result(result: str) -> list[Any]:
        """Show a stored result of an experiment.

        Args:
            result: its name in the list.

        Returns:
            Tables as markdown, and figures.
        """
        return show(result)

    @shown
    def run_sample(
        model_id: str, experiment: str, others: str, dataset: str, limit: int, request: gr.Request
    ) -> Iterator[Any]:
        """Run a small sample of an experiment of the papers.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            experiment: token-mixing, background, low-pass, position, spatial, progression, narrow-sites, triplets
                or concepts.
            others: more Hub ids to compare with, commas between.
            dataset: Hub id of a dataset, or 'builtin'; empty for experiments that need none.
            limit: images to read.

        Returns:
            A sentence, tables as markdown, and figures.
        """
        yield "Loading ...", gr.skip(), gr.skip()
        session, stop = str(request.session_hash), Event()
        running[session] = stop
        ids = [model_id, *(part.strip() for part in (others or "").split(",") if part.strip())]
        try:
            snapshots = [jobs.prepare(i) for i in ids]
            for item in job(snapshots, experiment, (dataset or "").strip(), int(limit or 0)):
                if stop.is_set():
                    yield "Cancelled.", gr.skip(), gr.skip()
                    return
                if isinstance(item, Shown):
                    yield f"**{experiment}**: done, a sample only.", *parts(item)
                else:
                    done, n = item
                    yield f"{experiment}: {done}" + (f" of {n}" if n else "") + " done", gr.skip(), gr.skip()
        finally:
            if running.get(session) is stop:
                del running[session]

    def stop_run(request: gr.Request) -> str:
        if stop := running.get(str(request.session_hash)):
            stop.set()
        return "Cancelled."

    def connect(after: Callable[[Any], Any]) -> None:
        after(stored.input(show_result, stored, [table, gallery], api_name="show_result"))
        start.click(
            run_sample, [model, name, others, data, limit], [status, table, gallery], api_name="run_experiment",
            concurrency_id="gpu", concurrency_limit=1, trigger_mode="always_last", show_progress="hidden",
        )  # fmt: skip
        cancel.click(stop_run, None, status, queue=False, api_visibility="private")

    return ExperimentsTab(stored, [table, gallery], connect, show)
