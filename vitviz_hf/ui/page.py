"""The page that the tabs stand on, and how they find each other."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol, TypeVar, cast

import gradio as gr

from vitviz_hf.errors import VitvizError
from vitviz_hf.manifest import cache_folder
from vitviz_hf.ui.durations import Durations, name_job, timed, timed_frames
from vitviz_hf.ui.jobs import Jobs
from vitviz_hf.ui.lane import Lane
from vitviz_hf.ui.link import Kept, link_js, one_of, or_else
from vitviz_hf.ui.shelf import Shelf

Gpu = Callable[[Any], Callable[[Callable[..., Any]], Callable[..., Any]]]
"""Duration in seconds, or a function of the job's arguments -> decorator, as spaces.GPU."""

Values = dict[Any, Any]
"""Component -> its new value; the others stay as they are."""


class Tab(Protocol):
    """A tab: components are attributes, handlers are methods that return `Values`."""

    key: str
    """In the link."""
    title: str

    def __init__(self, page: "Page") -> None:
        """Lay it out."""

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps of it."""

    def connect(self) -> None:
        """Connect its events, when all tabs are laid out."""


T = TypeVar("T")


class Page:
    """What stands around the tabs, and how they find each other."""

    def __init__(self, shelf: Shelf, gpu: Gpu, model: gr.Dropdown, facts: gr.Markdown) -> None:
        self.shelf, self.jobs, self.lane, self.gpu = shelf, Jobs(shelf), Lane(), gpu
        shared = os.environ.get("SPACES_ZERO_GPU")
        self.durations = Durations(cache_folder() / "durations.json" if shared else None)
        self.model, self.facts = model, facts
        self.loaded = gr.State("")
        """The model that the page shows."""
        self.atlas = gr.Dropdown(
            [("Automatic", "")],
            value="",
            allow_custom_value=True,
            label="Atlas: statistics and images of features",
            elem_id="atlas",
            render=False,
        )
        """What rankings and pages compare with; the tab that chooses it renders it."""
        self.tabs: gr.Tabs
        self.tab_key: gr.Textbox
        self.laid_out: list[Tab] = []

    def on_device(self, guess: int, job: Callable[..., T]) -> Callable[..., T]:
        """A short job that takes its turn on the device.

        Args:
            guess: seconds of a ZeroGPU to ask for until it has run once.
        """
        run = self.gpu(lambda *args: self.durations.ask(name_job(job, *args), guess))(timed(job))

        def take_turn(*args: Any) -> T:
            name = name_job(job, *args)
            with self.lane.turn(), self._told(name):
                seconds, result = run(*args)
            self.durations.took(name, seconds)
            return cast(T, result)

        return take_turn

    def in_frames(
        self,
        guess: Callable[..., float],
        units: Callable[..., float],
        job: Callable[..., Generator[T]],
        made: Callable[[Any], float] | None = None,
    ) -> Callable[..., Generator[T]]:
        """A long job that gives frames, for `Lane.run`.

        Args:
            guess: its arguments -> seconds of a ZeroGPU to ask for until it has run once.
            units: its arguments -> how much work it is at most after its first frame.
            made: its last frame -> how much it was, where its arguments do not tell.
        """

        def duration(*args: Any) -> int:
            return self.durations.ask(name_job(job, *args), guess(*args), units(*args))

        run = self.gpu(duration)(timed_frames(job))

        def frames(*args: Any) -> Generator[T]:
            name, taken = name_job(job, *args), []
            with self._told(name), closing(run(*args)) as found:
                for seconds, frame in found:
                    taken.append(seconds)
                    yield frame
            if taken:
                work = made(frame) if made else units(*args)
                self.durations.took(name, taken[0], sum(taken[1:]) / max(1.0, work))

        return frames

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except (VitvizError, GeneratorExit):
            raise
        except BaseException:
            self.durations.failed(name)
            raise

    def tab(self, kind: type[T]) -> T:
        """The tab of a class."""
        return cast(T, next(tab for tab in self.laid_out if isinstance(tab, kind)))

    @property
    def kept(self) -> list[Kept]:
        """What the address bar keeps, in its order."""
        keys = [tab.key for tab in self.laid_out]
        own = [Kept("tab", self.tab_key, one_of(keys, keys[0])), Kept("model", self.model, or_else(self.model.value))]
        return own + [kept for tab in self.laid_out for kept in tab.kept]

    def go(self, kind: type[Tab]) -> Values:
        """Opens the tab of a class."""
        return {self.tabs: gr.update(selected=kind.key), self.tab_key: kind.key}

    @property
    def going(self) -> list[Any]:
        """The components of `go`."""
        return [self.tabs, self.tab_key]

    def link(self, event: Any) -> None:
        """Write the address bar after an event."""
        kept = self.kept
        event.then(
            None,
            [k.component for k in kept],
            None,
            js=link_js({k.key: k.empty for k in kept}),
            api_visibility="private",
        )
