"""What to maximize: weighted sums of features, directions and class logits. Bigger is better."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, FeatureError
from vitviz_hf.models.measure import PRE_ACT
from vitviz_hf.models.view import ModelView, check_feature, find_tap
from vitviz_hf.sites import KINDS, Feature, Site, parse_feature


@dataclass(frozen=True, slots=True)
class Direction:
    """A vector in a site; its value at a patch is the dot product with the patch's activation."""

    site: Site
    vector: tuple[float, ...]
    name: str = "direction"

    def __str__(self) -> str:
        return f"{self.site}@{self.name}"


@dataclass(frozen=True, slots=True)
class Logit:
    """One class of the model's own classifier."""

    index: int

    def __str__(self) -> str:
        return f"logit:{self.index}"


Target = Feature | Direction | Logit


@dataclass(frozen=True, slots=True)
class Objective:
    """Weighted sum of targets. Combine with `+`, `-` and numbers; `-objective` minimizes."""

    terms: tuple[tuple[float, Target], ...]

    def __add__(self, other: "Objective") -> "Objective":
        return Objective(self.terms + other.terms)

    def __sub__(self, other: "Objective") -> "Objective":
        return self + -other

    def __neg__(self) -> "Objective":
        return -1.0 * self

    def __rmul__(self, factor: float) -> "Objective":
        return Objective(tuple((factor * w, t) for w, t in self.terms))

    def __str__(self) -> str:
        text = ""
        for weight, target in self.terms:
            sign = " - " if weight < 0 else " + "
            text += (sign if text else sign.strip(" +")) + ("" if abs(weight) == 1 else f"{abs(weight):g}*")
            text += str(target)
        return text

    @property
    def sites(self) -> frozenset[Site]:
        """Sites that must be read."""
        return frozenset(t.site for _, t in self.terms if not isinstance(t, Logit))

    @property
    def needs_logits(self) -> bool:
        """Whether the whole model must run."""
        return any(isinstance(t, Logit) for _, t in self.terms)


def to_objective(target: "Objective | Target | str", kinds: Collection[str] | None = KINDS) -> Objective:
    """An objective from a target or its text, such as `5.mlp_act:10 - 0.5*5.mlp_act:3`, `-logit:207`.

    Args:
        kinds: of the view, see `parse_site`.
    """
    if isinstance(target, Objective):
        return target
    return parse_objective(target, kinds) if isinstance(target, str) else Objective(((1.0, target),))


def parse_objective(text: str, kinds: Collection[str] | None = KINDS) -> Objective:
    """Objective from text: addresses joined by ` + ` or ` - `, each with an optional `NUMBER*`.

    Args:
        kinds: as in `parse_site`.

    Raises:
        ConfigError: not of this form.
        SiteError: an address is malformed.
    """
    term = r"(?:(\d+(?:\.\d+)?)\s*\*\s*)?([\w.]+:\d+)"
    if not re.fullmatch(rf"\s*[+-]?\s*{term}(\s*[+-]\s*{term})*\s*", text):
        raise ConfigError(
            f"{text!r} is not an objective; write '5.mlp_act:10', '-5.mlp_act:10' to minimize, 'logit:207', "
            "or a sum such as '5.mlp_act:10 - 0.5*5.mlp_act:3'."
        )
    parts = re.findall(rf"([+-]?)\s*{term}", text)
    return Objective(tuple((float(n or 1) * (-1 if sign == "-" else 1), _target(a, kinds)) for sign, n, a in parts))


def check_objective(view: ModelView, objective: Objective) -> None:
    """Raise unless the model has every target.

    Raises:
        SiteError: no such site.
        FeatureError: no such feature or class, or a direction of another width.
        ConfigError: nothing to maximize.
    """
    if not objective.terms:
        raise ConfigError("the objective has no terms.")
    for _, target in objective.terms:
        if isinstance(target, Feature):
            check_feature(view, target)
        elif isinstance(target, Logit):
            if view.labels is None:
                raise FeatureError(f"{view.model_id!r} has no classifier, so there is no '{target}'.")
            if target.index >= len(view.labels):
                raise FeatureError(f"{view.model_id!r} has {len(view.labels)} classes; got '{target}'.")
        elif len(target.vector) != (size := find_tap(view, target.site).size):
            raise FeatureError(f"'{target.site}' has {size} features; the direction has {len(target.vector)}.")


def can_revive(view: ModelView, objective: Objective) -> bool:
    """Whether the objective is one feature to maximize behind an ungated activation, which can be dead."""
    if len(objective.terms) != 1:
        return False
    weight, target = objective.terms[0]
    return (
        weight > 0
        and isinstance(target, Feature)
        and target.site.kind == "mlp_act"
        and PRE_ACT in view.layers[target.site.layer].taps
    )


def readout(view: ModelView, objectives: Sequence[Objective]) -> tuple[dict[Site, Tensor], Tensor | None]:
    """Weights of each objective on the features of each site, {site: [N, F]}, and on the logits [N, K]."""
    sites = {s for o in objectives for s in o.sites}
    weights = {s: torch.zeros(len(objectives), find_tap(view, s).size, device=view.device) for s in sites}
    logits = None
    if any(o.needs_logits for o in objectives):
        logits = torch.zeros(len(objectives), len(view.labels or ()), device=view.device)
    for n, objective in enumerate(objectives):
        for weight, target in objective.terms:
            if isinstance(target, Feature):
                weights[target.site][n, target.index] += weight
            elif isinstance(target, Direction):
                weights[target.site][n] += weight * weights[target.site].new_tensor(target.vector)
            elif logits is not None:
                logits[n, target.index] += weight
    return weights, logits


def _target(address: str, kinds: Collection[str] | None) -> Target:
    if match := re.fullmatch(r"logit:(\d+)", address):
        return Logit(int(match[1]))
    return parse_feature(address, kinds)
