"""What the commands share: options, loading, bars and tables."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from vitviz_hf.config import plain, read, required
from vitviz_hf.errors import ConfigError
from vitviz_hf.manifest import check_absent
from vitviz_hf.optimize.config import PRESETS, WHEN
from vitviz_hf.sites import file_stem, has_words

if TYPE_CHECKING:
    from vitviz_hf.models.view import ModelView
    from vitviz_hf.optimize.recipe import Visualization
    from vitviz_hf.reading.reference import Scores

IMAGE_HELP = "a picture, or the name of a photograph that scikit-image or gradio brings: chelsea, coins, lion ..."


def add_verb(verbs: Any, name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
    """A subcommand that calls `run` with its arguments."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(run=run)
    return verb


def add_model_options(verb: argparse.ArgumentParser) -> None:
    """What every command that loads a model takes."""
    verb.add_argument("--revision", help="branch, tag or commit on the Hub")
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    verb.add_argument("--size", metavar="HxW", help="input size in pixels (default: the checkpoint's)")


def add_cluster_options(verb: argparse.ArgumentParser) -> None:
    """Where a command that can be spread runs."""
    verb.add_argument(
        "--on",
        metavar="ray[://HOST:PORT]",
        help="spread over a Ray cluster: that of RAY_ADDRESS, else this machine; or one's Ray Client address",
    )
    verb.add_argument(
        "--gpus", type=int, metavar="N", help="of the cluster (default: all; 0: the CPUs, a worker for each machine)"
    )


def check_cluster_options(args: argparse.Namespace) -> None:
    """Refuse what does not go together, and processes that torchrun or accelerate started.

    Raises:
        ConfigError: it does not.
    """
    if args.on is None and args.gpus is not None:
        raise ConfigError("--gpus needs --on; write for example --on ray.")
    if args.on is not None and args.device is not None:
        raise ConfigError("--device is this process's; with --on, --gpus says what the workers take.")
    if (os.environ.get("WORLD_SIZE") or "1") != "1":
        raise ConfigError("several GPUs are used by --on ray, started once; not by torchrun or accelerate.")


def add_knobs(parser: argparse.ArgumentParser, config: type[Any], title: str | None, defaults: bool = False) -> None:
    """An option for every field of a config; one that is not given is absent from the arguments.

    Args:
        title: of their group in the help; None puts them among the command's other options.
        defaults: tell the class's own, where the help does not.
    """
    group = parser if title is None else parser.add_argument_group(title)
    types = get_type_hints(config)
    for knob in fields(config):
        kind, help_text = required(types[knob.name]), knob.metadata["help"]
        if defaults and "default:" not in help_text and (shown := plain(knob, knob.default)) not in ("", None):
            help_text += f" (default: {shown})"
        options: dict[str, Any] = {
            "type": str if knob.metadata["parse"] else _reader(kind),
            "metavar": knob.metadata["metavar"] or _metavar(kind),
        }
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        flag = "-" if len(knob.name) == 1 else "--"
        group.add_argument(flag + knob.name.replace("_", "-"), default=argparse.SUPPRESS, help=help_text, **options)


def read_knobs(args: argparse.Namespace, config: type[Any]) -> dict[str, Any]:
    """What was given of `add_knobs`, as values of the config's types.

    Raises:
        ConfigError: an option is not written as it must be.
    """
    return {f.name: read(f, getattr(args, f.name)) for f in fields(config) if hasattr(args, f.name)}


def _metavar(kind: Any) -> str:
    choices = [str(c) for c in get_args(kind) if isinstance(c, str)]
    return "|".join(choices) if choices else "N" if kind is int else "X"


def _reader(kind: Any) -> Callable[[str], Any]:
    def to_value(text: str) -> Any:
        try:
            return text if kind is str else int(text) if kind is int else float(text)
        except ValueError:
            return text  # the config says what is possible

    return to_value


def add_preset(verb: argparse.ArgumentParser, note: str = "") -> None:
    """The option --preset, and below the help when to take which, and a note."""
    verb.add_argument(
        "--preset", choices=tuple(PRESETS), help="recipe, see below (default: fast on a CPU, fourier elsewhere)"
    )
    width = max(map(len, WHEN))
    verb.epilog = "presets:\n" + "\n".join(f"  {name.ljust(width)}  {when}" for name, when in WHEN.items()) + note
    verb.formatter_class = argparse.RawDescriptionHelpFormatter


def load_view(args: Any, model_id: str | None) -> "ModelView":
    """The model that a command names, at its --revision, --device and --size.

    Raises:
        VitvizError: it cannot be used.
    """
    from vitviz_hf.models.gate import default_model
    from vitviz_hf.models.view import at_size, load_model

    size = parse_pair(args.size, "x", "--size must be HEIGHTxWIDTH such as 224x336") if args.size else None
    if model_id is None:
        model_id = default_model()
        print(f"vitviz: model {model_id}", file=sys.stderr)
    view = load_model(model_id, args.revision, args.device)
    return at_size(view, size) if size else view


def load_worded(args: Any, model_id: str | None, addresses: Sequence[str]) -> "tuple[ModelView, list[str]]":
    """The model, and the addresses with their texts and labels as features that it gains for them.

    Raises:
        VitvizError: it cannot be used, or has no such words.
    """
    from vitviz_hf.inside.words import resolve_all

    view = load_view(args, model_id)
    return resolve_all(view, addresses) if any(map(has_words, addresses)) else (view, list(addresses))


def open_picture(path: str) -> Any:
    """A picture by file, or a built-in photograph by name.

    Raises:
        ImageError: not usable.
    """
    from vitviz_hf.images import open_image
    from vitviz_hf.stream import builtin_paths

    return open_image(path if Path(path).exists() else builtin_paths().get(path, path))


@contextmanager
def counter(text: str, unit: str, keep: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first thing done."""
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(desc=text, unit=unit, leave=keep, delay=0.5)

    def show(done: int, n: int) -> None:
        bar.total = n or None
        bar.update(done - bar.n)

    with bar:
        yield show


def progress_bar(steps: Iterable[Any], n: int, text: str, unit: str = " steps") -> Iterator[Any]:
    """The steps, with a bar on stderr."""
    from tqdm import tqdm

    yield from tqdm(steps, desc=text, total=n, unit=unit)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows of text in columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def describe(result: "Visualization") -> str:
    """One line about an optimized picture."""
    text = f"score {result.score:.3g}, {result.transfer_score:.3g} turned, zoomed and blurred"
    if guide := result.recipe.get("guide"):
        n = guide["images"]
        text += f", made from {n} image{'s' * (n != 1)}" if guide["moments"] else ", from a photograph"
    return text if result.alive else f"{text}; the feature does not fire on it"


def parse_pair(text: str, separator: str, message: str) -> tuple[int, int]:
    """Two whole numbers.

    Raises:
        ConfigError: something else, told by `message`.
    """
    parts = text.lower().split(separator)
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise ConfigError(f"{message}; got {text!r}.")
    return int(parts[0]), int(parts[1])


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Model, if the first word is no address, and addresses.

    Raises:
        ConfigError: a model and nothing else.
    """
    if ":" in words[0].rsplit("/", 1)[-1]:
        return None, words
    if len(words) == 1:
        raise ConfigError(f"no feature given after the model {words[0]!r}; write for example 5.mlp_act:10.")
    return words[0], words[1:]


def new_files(folder: str, addresses: Sequence[object], endings: Sequence[str]) -> list[Path]:
    """A path without ending for each address.

    Raises:
        OutputExistsError: there is such a file.
    """
    paths = [Path(folder) / file_stem(a) for a in addresses]
    for path in paths:
        for ending in endings:
            check_absent(f"{path}{ending}")
    return paths


def photograph_scores(view: "ModelView") -> "Scores":
    """Scores of the built-in photographs, with a bar the first time."""
    from vitviz_hf.reading.reference import reference_scores

    with counter("scoring the built-in photographs, once", " photographs") as show:
        return reference_scores(view, show)
