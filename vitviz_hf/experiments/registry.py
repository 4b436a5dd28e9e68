"""The experiments of the papers, by name. Importing this imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitviz_hf.experiments import claims
from vitviz_hf.experiments import config as c
from vitviz_hf.experiments.verdict import Claim


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table and a figure of a paper."""

    title: str
    source: str
    module: str
    config: type[Any]
    dataset: Literal["labelled", "any", "none"]
    """What it reads: labelled pictures, any pictures, or nothing."""
    claim: Claim
    least_images: int = 0
    """Different ones that it needs."""


_PAPER = "Ghiasi et al. 2022, arXiv:2212.06727"
_NEURONS = "What Neurons Tell and How Neurons Behave, arXiv:2210.07646"
EXPERIMENTS: Mapping[str, Experiment] = {
    "token-mixing": Experiment(
        "What the last layer mixes: accuracy without the class token's history, and of every patch token",
        f"{_PAPER}, section 4, Table 1 and Fig. 7",
        "accuracy.token_mixing",
        c.TokenMixingConfig,
        "labelled",
        claims.TOKEN_MIXING,
    ),
    "background": Experiment(
        "How much of the accuracy is in the foreground, and how much in the background",
        f"{_PAPER}, section 5, Tables 2 and 3, Fig. 9b",
        "accuracy.background",
        c.BackgroundConfig,
        "labelled",
        claims.BACKGROUND,
    ),
    "low-pass": Experiment(
        "Accuracy without high frequencies",
        f"{_PAPER}, appendix D, Fig. 16",
        "accuracy.low_pass",
        c.LowPassConfig,
        "labelled",
        claims.LOW_PASS,
    ),
    "position": Experiment(
        "Accuracy without position embeddings, and with shuffled tiles",
        f"{_PAPER}, released notes",
        "accuracy.position",
        c.PositionConfig,
        "labelled",
        claims.POSITION,
    ),
    "occlusion": Experiment(
        "Accuracy while tiles are blacked out or shuffled",
        _NEURONS,
        "accuracy.occlusion",
        c.OcclusionConfig,
        "labelled",
        claims.OCCLUSION,
    ),
    "spatial": Experiment(
        "Whether a feature's activation stays where the picture is",
        f"{_PAPER}, appendix F, Fig. 63 and 64",
        "pictures.spatial",
        c.SpatialConfig,
        "any",
        claims.SPATIAL,
    ),
    "progression": Experiment(
        "Optimized pictures from the first layer to the last",
        f"{_PAPER}, Fig. 1 and 8",
        "pictures.progression",
        c.ProgressionConfig,
        "none",
        claims.PROGRESSION,
    ),
    "narrow-sites": Experiment(
        "Wide and narrow sites: how much of an optimized picture is high-frequency",
        f"{_PAPER}, Fig. 4, 5 and 12",
        "pictures.narrow_sites",
        c.NarrowSitesConfig,
        "none",
        claims.NARROW_SITES,
    ),
    "triplets": Experiment(
        "Optimized picture, most activating image, and its activation map",
        f"{_PAPER}, Fig. 3, 6 and 9a",
        "pictures.triplets",
        c.TripletsConfig,
        "any",
        claims.TRIPLETS,
    ),
    "concepts": Experiment(
        "Optimized picture and seven of the ten most activating images, with words",
        f"{_PAPER}, Fig. 2, 10 and 11",
        "pictures.concepts",
        c.TripletsConfig,
        "any",
        claims.CONCEPTS,
    ),
    "agreement": Experiment(
        "Whether pictures tell what features see: a second network chooses photographs by them",
        "after Borowski et al. 2021, arXiv:2010.12606, and Zimmermann et al. 2024",
        "pictures.agreement",
        c.AgreementConfig,
        "any",
        claims.AGREEMENT,
        200,
    ),
}
CLAIMS: Mapping[str, Claim] = {name: e.claim for name, e in EXPERIMENTS.items()} | {"group": claims.GROUP}
"""By the name in a result's manifest; the analyses of single pictures have none."""
