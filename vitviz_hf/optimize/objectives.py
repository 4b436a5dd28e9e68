"""What to maximize: weighted sums of features, directions and class logits. Bigger is better.

Features and directions count as the mean over patches, or at one token.
"""

import base64
import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vitviz_hf.errors import ConfigError, FeatureError, SiteError
from vitviz_hf.models.measure import PRE_ACT
from vitviz_hf.models.view import ModelView, check_feature, find_tap
from vitviz_hf.reading.recording import token_position
from vitviz_hf.sites import KINDS, Feature, Site, Token, parse_feature, parse_site, parse_token

MAX_TERMS = 64
Place = tuple[Site | None, Token | None]
"""Where a target is read: a site, None for the logits; and one of its tokens, None for the mean over patches."""


class Target(Protocol):
    """What an objective is a sum of: `Feature`, `Direction`, either `AtToken`, or `Logit`. Its text is its address."""

    @property
    def site(self) -> Site | None:
        """Where it is read; None for the logits."""

    def add_weights(self, weights: Any, factor: float) -> None:
        """Add to the weights [F] of its site so that their weighted sum has `factor` times this target."""

    def to_json(self) -> dict[str, str]:
        """As recipes have it; `target_from_json` is the inverse."""


@dataclass(frozen=True, slots=True)
class Direction:
    """A vector in a site; its value at a patch is the dot product with the patch's activation."""

    site: Site
    vector: tuple[float, ...]
    name: str = "direction"

    def __str__(self) -> str:
        return f"{self.site}@{self.name}"

    def add_weights(self, weights: Tensor, factor: float) -> None:
        """Add `factor` times the vector to the weights [F] of its site's features."""
        weights += factor * weights.new_tensor(self.vector)

    def to_json(self) -> dict[str, str]:
        """With the vector as float32 in base64."""
        packed = torch.tensor(self.vector, dtype=torch.float32).numpy().tobytes()
        return {"site": str(self.site), "float32": base64.b64encode(packed).decode(), "name": self.name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], kinds: Collection[str] | None = None) -> "Direction":
        """The inverse of `to_json`; kinds as in `parse_site`."""
        vector = torch.frombuffer(bytearray(base64.b64decode(values["float32"])), dtype=torch.float32)
        return cls(parse_site(values["site"], kinds), tuple(vector.tolist()), str(values["name"]))


@dataclass(frozen=True, slots=True)
class AtToken:
    """A feature or direction at one token: `11.resid:5@cls`, `5.mlp_act:10@3,4`.

    At the class token of the last layer's `resid` it is what a classifier reads that does not take the mean over
    patches. While a picture is optimized, turns, crops and shifts move it under the patch, so that what appears is
    spread over the places that come to lie there.
    """

    target: Feature | Direction
    token: Token
    """Rows and columns are those of the site's own grid; hierarchical models have others in other layers."""

    def __str__(self) -> str:
        return f"{self.target}@{self._token}"

    @property
    def _token(self) -> str:
        return self.token if self.token == "cls" else "{},{}".format(*self.token)

    @property
    def site(self) -> Site:
        """Where the feature or direction is read."""
        return self.target.site

    def add_weights(self, weights: Any, factor: float) -> None:
        """As those of the feature or direction."""
        self.target.add_weights(weights, factor)

    def to_json(self) -> dict[str, str]:
        """As recipes have it: the token stands after the address, where versions that know none refuse it."""
        return {k: f"{v}@{self._token}" if k in ("target", "site") else v for k, v in self.target.to_json().items()}


@dataclass(frozen=True, slots=True)
class Logit:
    """One class of the model's own classifier."""

    index: int

    def __str__(self) -> str:
        return f"logit:{self.index}"

    @property
    def site(self) -> None:
        """None: the whole model must run."""
        return None

    def add_weights(self, weights: Any, factor: float) -> None:
        """Add `factor` to the weights [K] of the logits at this one."""
        weights[self.index] += factor

    def to_json(self) -> dict[str, str]:
        """As recipes have it."""
        return {"target": str(self)}


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
        return frozenset(t.site for _, t in self.terms if t.site is not None)

    @property
    def needs_logits(self) -> bool:
        """Whether the whole model must run."""
        return any(t.site is None for _, t in self.terms)

    def to_json(self) -> list[dict[str, Any]]:
        """As recipes have it."""
        return [{"weight": weight, **target.to_json()} for weight, target in self.terms]

    @classmethod
    def from_json(cls, terms: Sequence[Mapping[str, Any]], kinds: Collection[str] | None = None) -> "Objective":
        """The inverse of `to_json`; kinds as in `parse_site`, any name if None.

        Raises:
            SiteError: an address is malformed.
        """
        return cls(tuple((float(t["weight"]), target_from_json(t, kinds)) for t in terms))


def to_objective(target: "Objective | Target | str", kinds: Collection[str] | None = KINDS) -> Objective:
    """An objective from a target or its text, such as `5.mlp_act:10 - 0.5*5.mlp_act:3`, `-logit:207`.

    Args:
        kinds: of the view, see `parse_site`.
    """
    if isinstance(target, Objective):
        return target
    return parse_objective(target, kinds) if isinstance(target, str) else Objective(((1.0, target),))


def feature_of(objective: Objective, at_token: bool = False) -> Feature | None:
    """The feature whose mean over patches alone is maximized; None for anything else, such as a sum.

    Args:
        at_token: also one whose value at a token is.
    """
    (weight, target), *more = objective.terms
    if at_token and isinstance(target, AtToken):
        target = target.target
    return target if weight == 1 and not more and isinstance(target, Feature) else None


def parse_objective(text: str, kinds: Collection[str] | None = KINDS) -> Objective:
    """Objective from text: addresses joined by ` + ` or ` - `, each with an optional `NUMBER*`.

    Args:
        kinds: as in `parse_site`.

    Raises:
        ConfigError: not of this form, or more than `MAX_TERMS` terms.
        SiteError: an address is malformed.
    """
    term = r"(?:(\d+(?:\.\d+)?)\s*\*\s*)?([\w.]+:\d+(?:@[\w,]+)?)"
    if not re.fullmatch(rf"\s*[+-]?\s*{term}(\s*[+-]\s*{term})*\s*", text):
        raise ConfigError(
            f"{text[:200]!r} is not an objective; write '5.mlp_act:10', '-5.mlp_act:10' to minimize, 'logit:207', "
            "or a sum such as '5.mlp_act:10 - 0.5*5.mlp_act:3'; '5.mlp_act:10@cls' is at the class token, "
            "'5.mlp_act:10@3,4' at the patch in row 3, column 4."
        )
    parts = re.findall(rf"([+-]?)\s*{term}", text)
    if len(parts) > MAX_TERMS:
        raise ConfigError(f"an objective in words has at most {MAX_TERMS} terms; got {len(parts)}.")
    return Objective(
        tuple((float(n or 1) * (-1 if sign == "-" else 1), parse_target(a, kinds)) for sign, n, a in parts)
    )


def number_classes(text: str, labels: Sequence[str] | None) -> str:
    """The text with the classes that are named in it as numbers: `logit:tabby` becomes `logit:281`.

    A name of several words stands in quotes or with underscores, `logit:"tiger cat"`, `logit:tiger_cat`. Of a label
    such as `tabby, tabby cat` each part is a name.

    Raises:
        FeatureError: no class, or several, of this name.
    """

    def number(match: re.Match[str]) -> str:
        name = (match[1] or match[2]).replace("_", " ").strip().lower()
        if labels is None:
            raise FeatureError(f"the model has no classifier, so there is no class {name!r}; choose a feature.")
        names = [(part.strip().lower(), i) for i, label in enumerate(labels) for part in label.split(",")]
        exact = sorted({i for part, i in names if part.replace("_", " ") == name})
        if len(exact) == 1:
            return f"logit:{exact[0]}"
        near = difflib.get_close_matches(name, [part for part, _ in names], 8)
        close = exact or list(dict.fromkeys(i for part, i in names if name in part or part in near))[:8]
        told = ", ".join(f"logit:{i} ({labels[i]})" for i in close)
        what = f"several classes are named {name!r}" if exact else f"no class is named {name!r}"
        raise FeatureError(f"{what}; {f'close are {told}' if told else 'no name is close'}.")

    return re.sub(r'logit:(?:"([^"]+)"|([^\W\d]\w*))', number, text)


def check_objective(view: ModelView, objective: Objective) -> None:
    """Raise unless the model has every target.

    Raises:
        SiteError: no such site.
        FeatureError: no such feature or class, or a direction of another width.
        ConfigError: nothing to maximize, or no such token.
    """
    if not objective.terms:
        raise ConfigError("the objective has no terms.")
    for _, target in objective.terms:
        _check_target(view, target)


def _check_target(view: ModelView, target: Target) -> None:
    match target:
        case Feature():
            check_feature(view, target)
        case Direction():
            if len(target.vector) != (size := find_tap(view, target.site).size):
                raise FeatureError(f"'{target.site}' has {size} features; the direction has {len(target.vector)}.")
        case AtToken():
            _check_target(view, target.target)
            token_position(find_tap(view, target.site), target.site, target.token)
        case Logit():
            if view.labels is None:
                raise FeatureError(f"{view.model_id!r} has no classifier, so there is no '{target}'.")
            if target.index >= len(view.labels):
                raise FeatureError(f"{view.model_id!r} has {len(view.labels)} classes; got '{target}'.")


def can_revive(view: ModelView, objective: Objective) -> bool:
    """Whether the objective is one feature to maximize behind an ungated activation, which can be dead."""
    if len(objective.terms) != 1:
        return False
    weight, target = objective.terms[0]
    if isinstance(target, AtToken):
        target = target.target
    return (
        weight > 0
        and isinstance(target, Feature)
        and target.site.kind == "mlp_act"
        and PRE_ACT in view.layers[target.site.layer].taps
    )


def place_of(target: Target) -> Place:
    """Where a target is read."""
    return target.site, target.token if isinstance(target, AtToken) else None


def run_together(objectives: Sequence[Objective], n: int) -> list[list[int]]:
    """Rows of up to n objectives that read the same sites, so that none computes layers only another needs."""
    groups: dict[Any, list[int]] = {}
    for row, objective in enumerate(objectives):
        groups.setdefault((objective.sites, objective.needs_logits), []).append(row)
    return [rows[i : i + n] for rows in groups.values() for i in range(0, len(rows), n)]


def readout(view: ModelView, objectives: Sequence[Objective]) -> dict[Place, Tensor]:
    """Weights [N, F] of each objective on the features of each place, on the CPU; [N, K] on the logits."""
    weights: dict[Place, Tensor] = {}
    for n, objective in enumerate(objectives):
        for factor, target in objective.terms:
            site, _ = place = place_of(target)
            if place not in weights:
                size = len(view.labels or ()) if site is None else find_tap(view, site).size
                weights[place] = torch.zeros(len(objectives), size)
            target.add_weights(weights[place][n], factor)
    return weights


def parse_target(address: str, kinds: Collection[str] | None = KINDS) -> Target:
    """A feature such as `5.mlp_act:10`, perhaps at a token, or a class such as `logit:207`; kinds as in `parse_site`.

    Raises:
        SiteError: neither.
    """
    whole, at, token = address.partition("@")
    if match := re.fullmatch(r"logit:(\d+)", whole):
        if at:
            raise SiteError(f"{address!r}: a class has no tokens; write '{whole}'.")
        return Logit(int(match[1]))
    feature = parse_feature(whole, kinds)
    return AtToken(feature, parse_token(token)) if at else feature


def target_from_json(values: Mapping[str, Any], kinds: Collection[str] | None = None) -> Target:
    """The target of one term of a recipe; kinds as in `parse_site`.

    Raises:
        SiteError: an address is malformed.
    """
    if "float32" in values:
        site, at, token = str(values["site"]).partition("@")
        direction = Direction.from_json({**values, "site": site}, kinds)
        return AtToken(direction, parse_token(token)) if at else direction
    return parse_target(str(values["target"]), kinds)
