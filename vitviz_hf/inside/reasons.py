"""Why a picture is seen as it is: relevance with its curves, and what a change does; from words to numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vitviz_hf.errors import ConfigError, NonFiniteError
from vitviz_hf.inside import figures
from vitviz_hf.inside.components import token_components
from vitviz_hf.inside.curves import Curves, curves
from vitviz_hf.inside.edits import EditEffect, Place, compare_edit, edited
from vitviz_hf.inside.relevance import Relevance, relevance
from vitviz_hf.inside.words import resolve_words
from vitviz_hf.models.view import ModelView
from vitviz_hf.optimize.objectives import Objective, check_objective, number_classes, parse_objective
from vitviz_hf.reading.recording import activations
from vitviz_hf.sites import Site


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Relevance of the patches of one picture for an objective, and how much it deserves belief."""

    target: str
    """In the words that it was asked for."""
    objective: Objective
    relevance: Relevance
    curves: Curves

    @property
    def told(self) -> str:
        """Where the maximum is, by which method."""
        values = self.relevance.map.float().cpu().numpy()
        return f"Relevance for {self.target} by {self.relevance.method}: {figures.peak(values)}"

    @property
    def told_curves(self) -> str:
        """The areas, beside those of a random order."""
        c = self.curves
        return (
            f"Area as patches go: {c.deletion_area:.3g}, in a random order {c.random_deletion_area:.3g} (lower "
            f"is better); as they come: {c.insertion_area:.3g}, {c.random_insertion_area:.3g} (higher is better)."
        )


def explain(view: ModelView, pixels: Tensor, target: str, method: str = "auto") -> Explained:
    """Relevance for a class, a feature or a text, with its curves.

    Args:
        pixels: [1, 3, H, W] in [0, 1].
        target: as `to_target` takes it.
    """
    view, objective = to_target(view, target)
    found = relevance(view, pixels, objective, method)
    return Explained(target.strip(), objective, found, curves(view, pixels, objective, found.map))


def to_target(view: ModelView, text: str) -> tuple[ModelView, Objective]:
    """An objective from words, and the model that has it.

    Raises:
        ConfigError: nothing is asked for, or it is no objective.
        VitvizError: the model does not have it.
    """
    if not text.strip():
        raise ConfigError("say what is to be explained: a class such as logit:207, a feature, or a text in words.")
    view, address = resolve_words(view, text)
    objective = parse_objective(number_classes(address, view.labels), view.kinds)
    check_objective(view, objective)
    return view, objective


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """What a change does to a picture, in colors and in numbers."""

    effect: EditEffect
    before: Tensor
    """Components of the patches [R, C, 3] in [0, 1], as they were."""
    after: Tensor
    """On the same scale."""
    told: str


def changed(view: ModelView, pixels: Tensor, turns: Mapping[Place, float], site: Site) -> Changed:
    """What turning something changes.

    Args:
        pixels: [1, 3, H, W] in [0, 1].
        turns: address -> factor, see `edited`.
        site: whose patches are painted.

    Raises:
        NonFiniteError: a factor is too large.
        VitvizError: as `edited`.
    """
    own = activations(view, pixels, [site])[site].in_float32()
    with edited(view, turns):
        other = activations(view, pixels, [site])[site].in_float32()
    moved = (other.patches - own.patches).norm(dim=-1) / own.patches.norm(dim=-1).clamp_min(1e-12)
    if not moved.isfinite().all():
        raise NonFiniteError(f"{_told(turns)} makes values of {site} NaN or infinite; take a smaller factor.")
    effect, found = compare_edit(view, pixels, turns), token_components(own)
    row, col = divmod(int(moved[0].argmax()), own.tap.patch_grid[1])
    told = f"{_told(turns)}: patches of {site} move by {moved.mean():.1%} of their length, most at patch {row},{col}"
    told += f" ({float(moved.max()):.1%})."
    return Changed(effect, found.paint(own)[0], found.paint(other)[0], told)


def _told(turns: Mapping[Place, float]) -> str:
    return ", ".join(f"{address} times {factor:g}" for address, factor in turns.items())


def parse_turns(texts: Sequence[str]) -> dict[Place, float]:
    """`ADDRESS=FACTOR` of what is changed -> {address: factor}.

    Raises:
        ConfigError: nothing is changed, or one is not of this form.
    """
    turns: dict[Place, float] = {}
    for text in texts:
        address, _, factor = text.rpartition("=")
        try:
            turns[address.strip()] = float(factor)
        except ValueError:
            address = ""
        if not address.strip():
            raise ConfigError(f"{text!r} is no change; write ADDRESS=FACTOR such as 5.mlp_act:10=0, 3.head:2=0.")
    if not turns:
        raise ConfigError("say what is changed: ADDRESS=FACTOR such as 5.mlp_act:10=0, 3.head:2=0 or 4.resid@3,4=0.")
    return turns
