"""The pictures that a visitor has made in this session."""

from dataclasses import dataclass
from pathlib import Path

from vitviz_hf.errors import ConfigError
from vitviz_hf.templates import load_template

MOST = 24
TRAY_CSS = """
.tray { display: flex; align-items: flex-start; gap: 6px; overflow-x: auto; padding: 22px 3px 3px; }
.tray button { flex: none; width: 88px; padding: 4px; border: 1px solid var(--border-color-primary); border-radius: 6px;
  font-weight: 400; text-align: left; background: var(--block-background-fill); color: var(--body-text-color); }
.tray img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; display: block; margin: 0; }
.tray span { display: block; font-size: 0.75rem; overflow-wrap: anywhere; }
.tray button[aria-pressed=true] { outline: 3px solid var(--color-accent); }
.tray button:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 1px; }
"""


@dataclass(frozen=True, slots=True)
class TrayPicture:
    """A picture, and the files of it that gradio's cache holds."""

    number: int
    """From 1 in a session."""
    model_id: str
    address: str
    seed: int
    preset: str
    score: float
    label: str
    sentence: str
    thumbnail: str
    """As an address, JPEG."""
    path: str
    growth: str | None
    """The animation of its run."""

    @property
    def title(self) -> str:
        """What it is, in words."""
        return (
            f"Optimized picture of {self.address} of {self.model_id}, seed {self.seed}, preset {self.preset}: "
            f"score {self.score:.3g}"
        )


Tray = tuple[TrayPicture, ...]
"""Newest first."""


def put(tray: Tray, made: list[TrayPicture]) -> Tray:
    """With some more, in the order of their making."""
    return (*reversed(made), *tray)[:MOST]


def find(tray: Tray, number: str) -> TrayPicture:
    """The one of a number.

    Raises:
        ConfigError: there is none, or its file has been deleted.
    """
    kept = next((kept for kept in tray if str(kept.number) == number), None)
    if kept is None:
        raise ConfigError("this picture is no longer in the tray; choose another one.")
    if not Path(kept.path).is_file():
        raise ConfigError(
            f"the server keeps files for some hours only, and this one is gone; optimize {kept.address} with seed "
            f"{kept.seed} again, and it is the same picture."
        )
    return kept


def tray_html(tray: Tray) -> str:
    """Small pictures; each picks its number."""
    return load_template(__package__, "tray.html").render(tray=tray) if tray else ""
