"""Tab Feature optimization: the picture that excites a feature most, as it grows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import gradio as gr

from vitviz_hf.config import PRESETS
from vitviz_hf.errors import ConfigError
from vitviz_hf.optimization import Visualization
from vitviz_hf.sites import file_stem
from vitviz_hf.ui.common import Gpu, shown
from vitviz_hf.ui.jobs import Frame, Jobs, gpu_seconds

_MAX_STEPS = 1000


@dataclass(frozen=True, slots=True)
class OptimizeTab:
    """The components that a link restores."""

    objective: gr.Textbox
    preset: gr.Radio
    seed: gr.Number
    connect: Callable[[Callable[[Any], Any]], None]


def build_optimize_tab(jobs: Jobs, model: gr.Dropdown, gpu: Gpu, first_feature: str) -> OptimizeTab:
    """Lay the tab out; events are connected by `connect(after)`, where `after` runs after each of them."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            objective = gr.Textbox(
                first_feature, label="Feature", elem_id="objective", max_lines=1,
                info="layer.kind:index, logit:index, or a sum such as 5.mlp_act:10 - 0.5*5.mlp_act:3; "
                "a minus in front minimizes",
            )  # fmt: skip
            preset = gr.Radio(
                ["auto", *PRESETS], value="auto", label="Preset", elem_id="preset",
                info="auto: fast without a GPU, fourier with one; paper: the recipe of arXiv:2212.06727",
            )  # fmt: skip
            steps = gr.Number(
                0, label="Steps (0: the preset's)", precision=0, minimum=0, maximum=_MAX_STEPS, elem_id="steps"
            )
            seed = gr.Number(0, label="Seed (same seed, same picture)", precision=0, minimum=0, elem_id="seed")
            with gr.Row():
                start = gr.Button("Optimize", variant="primary", elem_id="optimize", min_width=120)
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", min_width=120)
        with gr.Column(scale=2, min_width=320):
            live = gr.Image(
                label="Optimized picture", interactive=False, format="png", elem_id="live", height=480,
                alt_text="The picture that is being optimized", buttons=["fullscreen"],
            )  # fmt: skip
            status = gr.Markdown("The picture starts as noise and appears within seconds.", elem_id="optimize-status")
            download = gr.DownloadButton("Download PNG with its recipe", interactive=False, elem_id="download")

    def duration(snapshot: Any, _: str, preset: str, steps: int, __: int) -> int:
        plan = PRESETS.get(preset, {})
        return gpu_seconds(snapshot, steps or int(plan.get("steps", 300)), int(plan.get("copies", 8)))

    optimize = gpu(duration)(jobs.optimize)

    # Gradio's own `cancels` ends a run with an error badge; a flag read between frames ends it in order.
    running: dict[str, Event] = {}

    @shown
    def visualize(
        model_id: str, feature: str, preset: str, steps: int, seed: int, request: gr.Request
    ) -> Iterator[Any]:  # fmt: skip
        """Optimize a picture that maximizes a feature; streams the picture as it grows.

        Args:
            model_id: Hub id such as google/vit-base-patch16-224, or 'builtin'.
            feature: address such as 5.mlp_act:10, logit:207, or a sum of them; a minus in front minimizes.
            preset: auto, paper, paper-clip, fourier or fast.
            steps: optimizer steps; 0 for the preset's.
            seed: same seed, same picture.

        Returns:
            The picture, a sentence with its score, and at the end the PNG that carries its recipe.
        """
        if preset not in ("auto", *PRESETS):
            raise ConfigError(f"unknown preset {preset!r}; presets are auto, {', '.join(PRESETS)}.")
        if not 0 <= int(steps or 0) <= _MAX_STEPS:
            raise ConfigError(f"steps must be 0 to {_MAX_STEPS} here; got {steps}.")
        yield gr.skip(), "Loading the model ...", gr.update(interactive=False)
        session, stop = str(request.session_hash), Event()
        running[session] = stop
        try:
            for frame in optimize(jobs.prepare(model_id), feature or "", preset, int(steps or 0), int(seed or 0)):
                if stop.is_set():
                    yield gr.skip(), "Cancelled.", gr.skip()
                    return
                yield _outputs(frame, feature)
        finally:
            if running.get(session) is stop:
                del running[session]

    def stop_run(request: gr.Request) -> str:
        if stop := running.get(str(request.session_hash)):
            stop.set()
        return "Cancelled."

    def connect(after: Callable[[Any], Any]) -> None:
        inputs, outputs = [model, objective, preset, steps, seed], [live, status, download]
        options: dict[str, Any] = {
            "fn": visualize, "inputs": inputs, "outputs": outputs, "show_progress": "hidden",
            "concurrency_id": "gpu", "concurrency_limit": 1, "trigger_mode": "always_last",
        }  # fmt: skip
        start.click(**options, api_name="visualize")
        objective.submit(**options, api_visibility="private")
        after(start.click(None, api_visibility="private"))
        after(objective.submit(None, api_visibility="private"))
        cancel.click(stop_run, None, status, queue=False, api_visibility="private")

    return OptimizeTab(objective, preset, seed, connect)


def _outputs(frame: Frame, feature: str) -> tuple[Any, ...]:
    if frame.result is None:
        dead = "; the feature does not fire yet" if frame.dead else ""
        return frame.picture, f"Step {frame.index + 1} of {frame.steps}, score {frame.score:.3g}{dead}", gr.skip()
    path = Path(mkdtemp(prefix="vitviz-"), f"{file_stem(feature)}.png")
    frame.result.save(path)
    return path, _summary(frame, frame.result), gr.update(value=str(path), interactive=True)


def _summary(frame: Frame, result: Visualization) -> str:
    text = (
        f"**{result.recipe['address']}** after {frame.steps} steps: score {result.score:.3g}; "
        f"{result.transfer_score:.3g} when the picture is turned, zoomed and blurred."
    )
    if frame.photograph:
        name, best = frame.photograph
        text += f" The best of the built-in photographs, {name.replace('_', ' ')}, has {best:.3g}."
    if not result.alive:
        text += " It is dead: the feature does not fire on it. Try another seed or preset."
    return text
