"""How options are declared and checked. No torch here, so that the command line starts at once."""

import re
from dataclasses import Field, asdict, field, fields
from typing import Any, get_args, get_type_hints

from vitviz_hf.errors import ConfigError


def knob(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of `Checked`: its default, help text and range."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


class Checked:
    """Options whose fields say what they may be."""

    __slots__ = ()

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for option in fields(self):  # type: ignore[arg-type]
            if option.metadata:
                _check(option, types[option.name], getattr(self, option.name))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def parse_numbers(text: str, name: str) -> list[int]:
    """Numbers with commas between.

    Raises:
        ConfigError: something else.
    """
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", text):
        raise ConfigError(f"{name} must be numbers with commas between, such as 3,714; got {text!r}.")
    return [int(part) for part in text.split(",") if part.strip()]


def _check(option: "Field[Any]", kind: Any, value: Any) -> None:
    name, low, high = option.name, option.metadata["low"], option.metadata["high"]
    if kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be text; got {value!r}.")
        return
    choices = [c for part in (kind, *get_args(kind)) for c in get_args(part) if isinstance(c, str)]
    if low is None:
        allowed: list[Any] = list(choices) or [True, False]
        if value not in allowed or (not choices and not isinstance(value, bool)):
            raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}.")
        return
    if value in choices:
        return
    whole = kind is int
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        auto = f" or {' or '.join(map(repr, choices))}" if choices else ""
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {what} from {low:g} to {high:g}{auto}; got {value!r}.")


IMAGENET = "ILSVRC/imagenet-1k"
"""Dataset that is searched if none is named."""


CONTROLS = ("random-weights", "shuffled-weights")
"""Models that have learned nothing, to compare with."""
