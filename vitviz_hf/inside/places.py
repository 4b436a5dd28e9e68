"""Tokens as people name them: `cls`, `register 2`, a patch `3,4`, a box of patches `3,4-5,6`."""

import re
from dataclasses import dataclass

from vitviz_hf.errors import ConfigError
from vitviz_hf.models.view import ModelView


@dataclass(frozen=True, slots=True)
class Place:
    """Some tokens of a picture."""

    text: str
    """As it was named."""
    tokens: tuple[int, ...]
    """Places among all tokens, T: prefix tokens first."""
    box: tuple[int, int, int, int] | None
    """First row and column, last row and column; None for a prefix token."""

    @property
    def told(self) -> str:
        """In words."""
        if self.box is None:
            return f"the {'class' if self.text == 'cls' else self.text} token"
        top, left, bottom, right = self.box
        one = (top, left) == (bottom, right)
        return f"patch {top},{left}" if one else f"patches {top},{left} to {bottom},{right}"


def prefix_names(view: ModelView) -> tuple[str, ...]:
    """Names of the tokens before the patches: `cls`, then registers where the model says that it has so many."""
    most = max((layer.n_prefix for layer in view.layers), default=0)
    registers = getattr(view.module.config, "num_register_tokens", 0) or 0
    rest = "register" if most == 1 + registers else "prefix"
    return tuple("cls" if i == 0 else f"{rest} {i}" for i in range(most))


def parse_place(text: str, grid: tuple[int, int], names: tuple[str, ...]) -> Place:
    """A token, or a box of patches; the patch in the middle if nothing is named.

    Args:
        grid: rows and columns of patches.
        names: of the tokens before them.

    Raises:
        ConfigError: not of this form, or there is none.
    """
    text, (rows, cols) = text.strip(), grid
    if text in names:
        return Place(text, (names.index(text),), None)
    match = re.fullmatch(r"(\d+)\s*,\s*(\d+)(?:\s*-\s*(\d+)\s*,\s*(\d+))?", text or f"{rows // 2},{cols // 2}")
    if match is None:
        known = ", ".join(names) or "none here"
        raise ConfigError(
            f"{text!r} is no token; write ROW,COLUMN, a box such as 3,4-5,6, or a token without a patch ({known})."
        )
    top, left = int(match[1]), int(match[2])
    bottom, right = int(match[3] or top), int(match[4] or left)
    if not (top <= bottom < rows and left <= right < cols):
        raise ConfigError(
            f"'{text}' is outside the grid of {rows} rows (0-{rows - 1}) and {cols} columns (0-{cols - 1})."
        )
    inside = [(r, c) for r in range(top, bottom + 1) for c in range(left, right + 1)]
    return Place(text, tuple(len(names) + r * cols + c for r, c in inside), (top, left, bottom, right))
