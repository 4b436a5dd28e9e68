"""Addresses: `6.mlp_act` is a site (layer and kind), `6.mlp_act:20` one feature of it.

An objective can read a feature at one token: `6.mlp_act:20@cls`, `6.mlp_act:20@3,4` (row and column of a patch).

The kinds, and what the papers call them:

| kind | tensor | width | in the papers |
|---|---|---|---|
| attn_in | input of the q projection: of self-attention, after its norm | D | in_feat |
| attn_q, attn_k, attn_v | outputs of the q, k and v projections, heads side by side | D | queries, keys, values |
| attn_mix | input of the output projection: values mixed by attention, heads side by side | D | out_feat |
| attn_out | output of the attention's output projection | D | - |
| mlp_in | input of the feed-forward's first linear, after its norm | D | - |
| mlp_act | input of the feed-forward's last linear: GELU output, or the gated product | 4D | high, GELU features |
| mlp_out | output of the feed-forward's last linear, before layer scale | D | low |
| resid | output of the block | D | - |

Between norm and q projection CvT has a convolution, between mixing and output projection LeViT an activation function:
there attn_in and attn_mix are what comes out of these.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from vitviz_hf.errors import SiteError

KINDS = (
    "attn_in",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_mix",
    "attn_out",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "resid",
)
_LONGEST_NAME = 120
_PAPER_NAMES = {
    "in_feat": "attn_in",
    "queries": "attn_q",
    "keys": "attn_k",
    "values": "attn_v",
    "out_feat": "attn_mix",
    "high": "mlp_act",
    "low": "mlp_out",
}
Token = Literal["cls"] | tuple[int, int]
"""`cls`, the first prefix token: the class token of models that have one; or a patch as (row, column) of the grid."""


@dataclass(frozen=True, order=True)
class Site:
    """A tensor read in one layer; `str(site)` is its address. Which kinds there are, a view says."""

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True, order=True)
class Feature:
    """One coordinate of a site; `str(feature)` is its address."""

    site: Site
    index: int

    def __str__(self) -> str:
        return f"{self.site}:{self.index}"

    def add_weights(self, weights: Any, factor: float) -> None:
        """Add to the weights [F] of its site's features so that their weighted sum has `factor` times this one."""
        weights[self.index] += factor

    def to_json(self) -> dict[str, str]:
        """As recipes have it."""
        return {"target": str(self)}


def parse_site(address: str, kinds: Collection[str] | None = KINDS) -> Site:
    """Site from an address such as `6.mlp_act`.

    Args:
        kinds: those that there are; `view.kinds` of a view that gained some, None takes any name.

    Raises:
        SiteError: malformed address, or unknown kind.
    """
    match = re.fullmatch(r"(\d{1,4})\.(\w+)", address.strip())
    if match is None:
        raise SiteError(f"{address!r} is not a site; write LAYER.KIND, for example '6.mlp_act'.")
    layer, kind = match.groups()
    if kinds is not None and kind not in kinds:
        paper = _PAPER_NAMES.get(kind)
        hint = f" (the paper's {kind!r} is {paper})" if paper else ""
        raise SiteError(f"unknown kind {kind!r} in {address!r}; kinds are {', '.join(kinds)}{hint}.")
    return Site(int(layer), kind)


def parse_feature(address: str, kinds: Collection[str] | None = KINDS) -> Feature:
    """Feature from an address such as `6.mlp_act:20`; kinds as in `parse_site`.

    Raises:
        SiteError: malformed address, or unknown kind.
    """
    site, _, index = address.strip().partition(":")
    if not re.fullmatch(r"\d{1,7}", index):
        raise SiteError(f"{address!r} is not a feature; write LAYER.KIND:INDEX, for example '6.mlp_act:20'.")
    return Feature(parse_site(site, kinds), int(index))


def has_words(address: str) -> bool:
    """Whether a text or a label stands in an address, so that only the model can say which feature it is."""
    return re.search(r'(?<![\w.])(text|label):["\w]', address) is not None


def parse_token(text: str) -> Token:
    """Token from `cls` or `3,4`.

    Raises:
        SiteError: neither.
    """
    if text == "cls":
        return "cls"
    match = re.fullmatch(r"(\d{1,4}),(\d{1,4})", text)
    if match is None:
        raise SiteError(f"'@{text[:50]}' is not a token; write '@cls', or '@ROW,COLUMN' of a patch such as '@3,4'.")
    return int(match[1]), int(match[2])


def file_stem(address: object) -> str:
    """Address as a file name: `6.mlp_act:20` becomes `6.mlp_act-20`; what is too long ends in its digest."""
    name = re.sub(r"[^\w.+-]+", "-", str(address)).strip("-")
    return name if len(name) <= _LONGEST_NAME else f"{name[:80]}-{sha256(name.encode()).hexdigest()[:8]}"
