"""How options are declared, read and checked. No torch here, so that the command line starts at once."""

import re
from collections.abc import Callable, Sequence
from dataclasses import Field, field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitviz_hf.errors import ConfigError
from vitviz_hf.sites import Feature, parse_feature


def knob(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    *,
    blank: Any = None,
    parse: Callable[[str, str], Any] | None = None,
    metavar: str | None = None,
) -> Any:
    """A field of `Checked`.

    Args:
        text: help.
        low: least number.
        high: largest number.
        blank: how files and the command line write None.
        parse: (text, name of the option) -> a value that is no single number or word.
        metavar: how the help shows its value, if not by its type.
    """
    facts = {"help": text, "low": low, "high": high, "blank": blank, "parse": parse, "metavar": metavar}
    return field(default=default, metadata=facts)


class Checked:
    """Options whose fields say what they may be."""

    __slots__ = ()

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for option in fields(self):  # type: ignore[arg-type]
            if option.metadata:
                _check(option, types[option.name], getattr(self, option.name))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, written as on the command line."""
        return {option.name: plain(option, getattr(self, option.name)) for option in fields(self)}  # type: ignore[arg-type]


def plain(option: "Field[Any]", value: Any) -> Any:
    """A value of an option as a number or words, as `read` takes it: (3, 714) is '3,714'."""
    if value is None:
        return option.metadata.get("blank")
    return _words(value) if isinstance(value, tuple) else value


def read(option: "Field[Any]", value: Any) -> Any:
    """What a command line gives for an option, as a value of its type.

    Raises:
        ConfigError: it is not written as the option is.
    """
    blank, parse = option.metadata["blank"], option.metadata["parse"]
    value = value.strip() if parse else value
    if blank is not None and value == blank:
        return None
    return parse(value, option.name) if parse else value


def parse_words(text: str, name: str) -> tuple[str, ...]:
    """Words with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_numbers(text: str, name: str) -> tuple[int, ...]:
    """Numbers with commas between.

    Raises:
        ConfigError: something else.
    """
    if not re.fullmatch(r"\s*(\d+\s*(,\s*\d+\s*)*)?", text):
        raise ConfigError(f"{name} must be numbers with commas between, such as 3,714; got {text!r}.")
    return tuple(int(part) for part in text.split(",") if part.strip())


def parse_runs(text: str, name: str) -> tuple[int, ...]:
    """Numbers and runs such as `3,7-9`.

    Raises:
        ConfigError: something else.
    """
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
            raise ConfigError(f"{name} must be numbers and runs such as 3,7-9; got {text!r}.")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def parse_patches(text: str, name: str = "patches") -> tuple[tuple[int, int], ...]:
    """Patches as row,column with spaces between.

    Raises:
        ConfigError: something else.
    """
    patches = []
    for part in text.split():
        match = re.fullmatch(r"(\d+),(\d+)", part)
        if match is None:
            raise ConfigError(f"{name} are row,column with spaces between, such as '0,0 4,6'; got {part!r}.")
        patches.append((int(match[1]), int(match[2])))
    return tuple(patches)


def parse_patch(text: str, name: str) -> tuple[int, int]:
    """A patch as row,column; a space does as well as the comma.

    Raises:
        ConfigError: something else.
    """
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*,\s*|\s+)(\d{1,9})\s*", text)
    if match is None:
        raise ConfigError(f"{name} must be one row,column such as 4,6; got {text!r}.")
    return int(match[1]), int(match[2])


def parse_features(text: str, name: str = "features") -> tuple[Feature, ...]:
    """Addresses with commas between.

    Raises:
        SiteError: a malformed address.
    """
    return tuple(parse_feature(part) for part in text.split(",") if part.strip())


def required(kind: Any) -> Any:
    """A type without None."""
    return next(part for part in get_args(kind) if part is not NoneType) if NoneType in get_args(kind) else kind


def _words(value: Any) -> str:
    between = " " if value and isinstance(value[0], tuple) else ","
    return between.join(_words(part) if isinstance(part, tuple) else str(part) for part in value)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; numbers in tuples are whole and not below 0."""
    if get_origin(kind) is not tuple:
        return isinstance(value, kind) and not isinstance(value, bool) and (kind is not int or value >= 0)
    kinds = get_args(kind)
    if not isinstance(value, tuple) or (kinds[-1] is not ... and len(value) != len(kinds)):
        return False
    return all(map(_fits, value, kinds[:1] * len(value) if kinds[-1] is ... else kinds))


def _check(option: "Field[Any]", declared: Any, value: Any) -> None:
    name, low, high, kind = option.name, option.metadata["low"], option.metadata["high"], required(declared)
    if value is None and kind is not declared:
        return
    if kind is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be text; got {value!r}.")
        return
    if get_origin(kind) is tuple:
        if not _fits(value, kind):
            raise ConfigError(f"{name} must be a {kind}, with numbers from 0; got {value!r}.")
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


Precision = Literal["auto", "float32", "bfloat16"]
"""What a model with float32 weights computes in, see `at_precision`."""
IMAGENET = "ILSVRC/imagenet-1k"
"""Dataset that is searched if none is named."""
BUILTIN, BUILTIN_CNN = "builtin", "builtin-cnn"
"""The model, and the photographs, that come with the packages; and a classifier of ImageNet that is no transformer."""


CONTROLS = ("random-weights", "shuffled-weights")
"""Models that have learned nothing, to compare with."""


def check_control(control: str, seed: int) -> None:
    """Raise unless a model that knows nothing is made so.

    Raises:
        ConfigError: an unknown control, or a seed that is none.
    """
    if control not in CONTROLS:
        raise ConfigError(f"control must be one of {', '.join(CONTROLS)}; got {control!r:.100}.")
    if not 0 <= seed <= 2**53:
        raise ConfigError(f"the seed of a control must be a whole number from 0 to {2**53:,}; got {seed!r:.100}.")


MOST_TEXTS, LONGEST_TEXT = 1000, 1000


def check_texts(texts: Sequence[str]) -> None:
    """Raise unless texts are few and short enough to be features.

    Raises:
        ConfigError: more than 1,000, or one of more than 1,000 characters.
    """
    longest = max(map(len, texts), default=0)
    if len(texts) > MOST_TEXTS or longest > LONGEST_TEXT:
        raise ConfigError(
            f"at most {MOST_TEXTS:,} texts of {LONGEST_TEXT:,} characters can be features; got {len(texts):,}, the "
            f"longest of {longest:,}."
        )
